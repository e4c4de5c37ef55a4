"""A small training that can be recorded, and what a record holds."""

from __future__ import annotations

import torch
from torch import nn

from landscapex.trajectories import runs
from landscapex.trajectories.recorder import Recorder


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


def train(model, steps, record=None, *, lr=0.1):
    """SGD with dropout and batch norm; everything drawn from torch's global generator."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    for step in range(steps):
        loss = model(torch.randn(8, 3)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if record is not None:
            record(step + 1, loss=loss, lr=lr, epoch=step / 10)
    return model


def recorded(folder, steps):
    """A run of so many steps from the common start, and the model at its end."""
    torch.manual_seed(1)
    model = network()
    with Recorder(folder, model) as record:
        record(0)
        torch.manual_seed(2)
        train(model, steps, record)
    return model


def bits(state):
    return {
        n: (t.dtype, tuple(t.shape), t.detach().reshape(-1).contiguous().view(torch.uint8).tolist())
        for n, t in state.items()
        if t.numel()
    }


def steps_in(folder):
    return runs.open_run(folder).steps.tolist()
