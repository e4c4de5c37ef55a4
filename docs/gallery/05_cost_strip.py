"""
How far training is from the straight line
==========================================

The cost strip of Goodfellow, Vinyals and Saxe, and the residual of a run beside that of a
random walk.
"""

# %%
# One state is kept per epoch. A list of states does instead of a folder.

import torch
from torch import nn

import landscapex as lx

data, loss = lx.examples.digits()[1:]
inputs, labels = data
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
order = torch.Generator().manual_seed(0)
states = [nn.utils.parameters_to_vector(model.parameters()).detach().clone()]
for _ in range(40):
    for batch in torch.randperm(len(inputs), generator=order).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
        optimizer.step()
    states.append(nn.utils.parameters_to_vector(model.parameters()).detach().clone())

# %%
# Every checkpoint is split into its progress along the line from the first weights to the last
# ones, and the residual: how far it is from this line. First the residual itself.

objective = lx.Objective(model, data, loss)
run = lx.projections.residual_coordinates(states, objective, label="training")
run.plot()

# %%
# **What is seen.** The run leaves the line and comes back to it, in one arc.
#
# **What it means.** The arc is lower than the half circle that a random walk draws in many
# dimensions: training moves rather straight. The right panel has the number that counts, the
# residual beside the length of the weights.
#
# **What it does not mean.** That there is an obstacle which the run walks around. Anything that
# ends on the line must come back to it, and the distance itself says nothing about the loss. The
# strip does:

strip = lx.projections.cost_strip(objective, states, progress=False)
print(strip)

# %%
strip.plot()

# %%
# **What is seen.** The loss at ``alpha`` (progress along the line, from left to right) and at an
# offset across it, in the direction in which this checkpoint is off the line. The run itself is
# the curve; it lies on the strip exactly, because each column is turned towards its own
# checkpoint.
#
# **What it means.** Along the line the loss falls all the way. Early on, it hardly depends on the
# offset. Late in the run the strip has become a valley with steep sides: the few residuals that
# are left point along directions of high curvature.
#
# **What it does not mean.** The strip is no plane: neighbouring columns have different directions,
# and nothing between two columns was computed. The last checkpoint is the solution and the first
# the start; they have no residual, and their columns show a random direction.
#
# Source: Goodfellow, Vinyals, Saxe, "Qualitatively characterizing neural network optimization
# problems", ICLR 2015, appendix.
