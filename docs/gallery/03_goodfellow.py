"""
From initial to trained weights, six networks
=============================================

Goodfellow's experiment: along the straight line from where training began to where it ended,
does the loss go down all the way?
"""

# %%
# Six small networks with different non-linearities, all trained by the same ten lines. The images
# have 8 x 8 pixels; the LSTM reads them row by row, the deep linear network has no non-linearity
# at all.

import copy

import numpy as np
import torch
from torch import nn

import landscapex as lx

data, loss = lx.examples.digits()[1:]


class Maxout(nn.Module):
    """The larger of two linear functions, for every output."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.linear = nn.Linear(inputs, 2 * outputs)

    def forward(self, x):
        return self.linear(x).unflatten(1, (-1, 2)).amax(2)


class RowLSTM(nn.Module):
    """Reads an image row by row."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(8, 32, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        return self.head(self.lstm(x.unflatten(1, (8, 8)))[0][:, -1])


def dense(activation, lr):
    """Two hidden layers of 48 units."""
    layers = nn.Linear(64, 48), activation(), nn.Linear(48, 48), activation(), nn.Linear(48, 10)
    return nn.Sequential(*layers), lr


def networks():
    """Names, with networks and learning rates."""
    yield "ReLU", dense(nn.ReLU, 0.1)
    yield "sigmoid", dense(nn.Sigmoid, 1.0)
    yield "maxout", (nn.Sequential(Maxout(64, 24), Maxout(24, 24), nn.Linear(24, 10)), 0.1)
    convolutions = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    convolutions += [nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    image = nn.Unflatten(1, (1, 8, 8))
    yield "LeNet", (nn.Sequential(image, *convolutions, nn.Flatten(), nn.Linear(64, 10)), 0.1)
    yield "LSTM", (RowLSTM(), 0.5)
    widths = (64, 32), (32, 32), (32, 32), (32, 10)
    yield "deep linear", (nn.Sequential(*(nn.Linear(*w) for w in widths)), 0.05)


def train(model, lr, epochs=25):
    """Minimise the cross entropy by SGD with momentum."""
    inputs, labels = data
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    order = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for batch in torch.randperm(len(inputs), generator=order).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
            optimizer.step()


models, starts, lines = {}, {}, {}
torch.manual_seed(0)
for name, (model, lr) in networks():
    starts[name] = copy.deepcopy(model)
    train(model, lr)
    models[name] = model
    lines[name] = lx.interpolate(starts[name], model, data, loss, points=51, progress=False)
    print(f"{name:12} {lines[name].loss[-1]:.4f}  falls all the way: {lines[name].monotone}")

# %%
# 0 is where training began, 1 where it ended. The scale is logarithmic, so that both ends can be
# seen.

title = "From initial to trained weights"
lx.plot.line(*lines.values(), labels=list(lines), scale="log", title=title)

# %%
# **What is seen.** Every line but that of the sigmoid network falls all the way. On this scale the
# exception is hardly to be seen. A closer look at the first quarter, on a scale of its own: on the
# way down, the loss rises a little once.

ends = starts["sigmoid"], models["sigmoid"]
near = lx.interpolate(*ends, data, loss, span=(0.0, 0.25), points=51, progress=False)
lx.plot.line(near, scale="linear", title="sigmoid, the first quarter of the line")

# %%
# **What it means.** If somebody had known the direction, a line search would have found these
# solutions: no barrier stands on the straight line from random weights to trained ones.
#
# **What it does not mean.** That training took this line: it did not (see :doc:`05_cost_strip`).
# Nor that the problem is convex: a curve may fall all the way and not be convex, and other lines
# have walls (see :doc:`02_interpolation`). Nor is it a property of the initial weights of this
# run. Random weights that training never saw, of the same length or three times as long, are a
# control:

model = models["ReLU"]
controls = [
    lx.interpolate(lx.controls.random_point(model, scale=s), model, data, loss, progress=False)
    for s in (1, 3)
]
labels = ["initial weights", "random, as long as the solution", "random, three times as long"]
lx.plot.line(lines["ReLU"], *controls, labels=labels, scale="log", title="ReLU")

# %%
# A deep linear network with a squared loss is the case that can be solved: its output is a product
# of L matrices, each linear in the coordinate, so that the loss on the line is a polynomial of
# degree 2 L. With four layers, nine points determine the other 42.

x, y = data[0].double(), nn.functional.one_hot(data[1]).double()
start, end = starts["deep linear"].double(), models["deep linear"].double()
for layer in (*start, *end):
    nn.init.zeros_(layer.bias)
line = lx.interpolate(start, end, (x, y), "mse_loss", points=51, progress=False)
alpha, nodes = line.coordinates[0], np.linspace(0, 50, 9).astype(int)
polynomial = np.polynomial.Polynomial.fit(alpha[nodes], line.loss[nodes], deg=8)
print(f"largest difference from the polynomial: {abs(polynomial(alpha) - line.loss).max():.1e}")

# %%
# Source: Goodfellow, Vinyals, Saxe, "Qualitatively characterizing neural network optimization
# problems", ICLR 2015, sections 3 to 6 and figures 1 to 5.
