"""
How large the weights are
=========================

Weight decay and the size of the batch change the size of the weights, and with it what an
unnormalised surface looks like.
"""

# %%
# Four networks from the same random weights: batches of 32 and of 512 images, with and without
# weight decay. All see the images equally often, so that the small batches make sixteen times as
# many steps.

import torch
from torch import nn

import landscapex as lx

inputs, labels = lx.examples.digits()[1]


def train(batch_size, weight_decay, epochs=30):
    """Return the state after every epoch."""
    model = lx.examples.train_digits(seed=0, epochs=0).train()
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=weight_decay)
    order = torch.Generator().manual_seed(0)
    states = [nn.utils.parameters_to_vector(parameters).detach().clone()]
    for _ in range(epochs):
        for batch in torch.randperm(len(inputs), generator=order).split(batch_size):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        states.append(nn.utils.parameters_to_vector(parameters).detach().clone())
    return states


model = lx.examples.train_digits(epochs=0)
runs = {
    "32": train(32, 0.0),
    "32, decay": train(32, 5e-3),
    "512": train(512, 0.0),
    "512, decay": train(512, 5e-3),
}
ends = lx.weight_histograms([run[-1] for run in runs.values()], model, labels=list(runs))
ends.plot()

# %%
# **What is seen.** Left, the distribution of all weights at the end of each run; right, their
# length. With weight decay and small batches most weights are close to zero.
#
# **What it means.** Weight decay takes a small part of the weights at every step, and small
# batches make more steps. A random step of a given length then moves this network further,
# relative to its weights, and its minimum looks sharper than that of the others although nothing
# else need be different. This is why directions are scaled to the filters (:doc:`01_surface`).
#
# **What it does not mean.** That the network with the small weights is a better or a worse one.
#
# Over one run, that with small batches and weight decay, every six epochs (a step is an epoch):

run = dict(enumerate(runs["32, decay"]))
lx.weight_histograms({epoch: run[epoch] for epoch in range(0, 31, 6)}, model).plot()

# %%
# Source: Li, Xu, Taylor, Studer, Goldstein, "Visualizing the Loss Landscape of Neural Nets",
# NeurIPS 2018, section 3, figures 2 and 10.
