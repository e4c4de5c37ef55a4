"""
The path of a training run
==========================

A run in the plane of its principal components, over the contours of the loss, with the drops of the
learning rate marked.
"""

# %%
# Two lines in an ordinary training loop record it. The learning rate is divided by ten twice.

import tempfile

import torch
from torch import nn

import landscapex as lx

data, loss = lx.examples.digits()[1:]
inputs, labels = data
model = lx.examples.train_digits(seed=0, epochs=0).train()  # untrained weights
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [20, 30], gamma=0.1)
order = torch.Generator().manual_seed(0)
folder = tempfile.TemporaryDirectory()
with lx.Recorder(folder.name, model, optimizer=optimizer) as recorder:
    for epoch in range(40):
        recorder(epoch, epoch=epoch)
        for batch in torch.randperm(len(inputs), generator=order).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
            optimizer.step()
        schedule.step()
    recorder(40)

# %%
# The plane goes through the trained weights; its axes are the two directions along which the
# recorded weights vary most.

objective = lx.Objective(model, data, loss)
path = lx.trajectory(folder.name, objective, progress=False)
plane = lx.surface(objective, directions=path, span=path.span, points=41, progress=False)
path.plot(plane)

# %%
# **What is seen.** Every dot is a checkpoint, its colour its own true loss; the contours are the
# loss of the plane. Red circles mark the epochs at which the learning rate was divided by ten;
# from there on the run hardly moves. The lower panel says how far each checkpoint is from the
# plane it is drawn on.
#
# **What it means.** Where a dot has another colour than the plane around it, the checkpoint is off
# the plane far enough for it to matter: what is drawn there is the loss of another network. Here
# that is the case in the first half of the run. From the first drop on it lies in the plane, and
# the contours are its own.
#
# **What it does not mean.** The share of the variance in the axis labels looks impressive; a
# random walk of as many steps in as many dimensions has a large share too, which stands beside it.
# Principal components of anything that moves steadily are smooth curves like this one. Only what
# goes beyond the random walk says something about training.

print(path)
print("explained  ", path.explained[:4].round(3))
print("random walk", path.walk[:4].round(3))

# %%
# A control: the same run in a random plane. Mind the scale: less than a hundredth of the movement
# is left. The loss of this plane is the same nearly everywhere, and that of the checkpoints is
# another.

random = lx.controls.random_plane(folder.name, objective, progress=False)
around = lx.surface(objective, directions=random, span=random.span, points=21, progress=False)
random.plot(around)

# %%
# Sources: Li, Xu, Taylor, Studer, Goldstein, "Visualizing the Loss Landscape of Neural Nets",
# NeurIPS 2018, section 7 and figure 9; Antognini, Sohl-Dickstein, "PCA of high dimensional random
# walks with comparison to neural network training", NeurIPS 2018 (the random walk).

folder.cleanup()
