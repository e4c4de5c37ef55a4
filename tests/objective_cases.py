"""A small objective, and the parameters of a model as one vector."""

from __future__ import annotations

import torch

import landscapex as lx


def mse_of(model, **options):
    x = torch.linspace(-1, 1, 12).view(4, 3)
    return lx.Objective(model, [(x, torch.zeros(4, 1))], "mse_loss", **options)


def flat(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])
