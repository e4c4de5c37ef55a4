"""Objectives on which measures of sharpness are known, or can be written down again."""

from __future__ import annotations

import models
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import landscapex as lx


class Vector(nn.Module):
    """Nothing but parameters."""

    def __init__(self, start):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(start, dtype=torch.float64))


def quadratic(matrix, point, slope=None, constant=0.0):
    """J = w A w / 2 + b w + c at a point."""
    a = torch.as_tensor(np.asarray(matrix), dtype=torch.float64)
    b = torch.from_numpy(np.zeros(len(a)) if slope is None else np.asarray(slope, float))

    def loss(model, batch):
        return 0.5 * model.w @ a @ model.w + b @ model.w + constant

    return lx.Objective(Vector(np.asarray(point, float)), None, loss)


def positive(size, seed):
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.standard_normal((size, size)))
    return (q * rng.uniform(0.2, 3.0, size)) @ q.T


def relu_net(bias=False, sizes=(10, 12, 3), seed=0):
    return models.mlp(*sizes, bias=bias, seed=seed).double()


def classification(model, count=25, *, classes=3, inputs=10, **options):
    rng = torch.Generator().manual_seed(11)
    x = torch.randn(count, inputs, generator=rng).double()
    y = torch.randint(classes, (count,), generator=rng)
    return lx.Objective(model, (x, y), "cross_entropy", batch_size=10, **options)


def whole(objective):
    """All data in one batch, and the loss of them as a function of a flat vector."""
    batches = list(objective._data["data"])
    if not isinstance(batches[0], (tuple, list)):
        batches = [objective._data["data"]]
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))

    def loss(vector, rows=slice(None)):
        named = objective.space.unflatten(vector)
        output = torch.func.functional_call(objective.model, named, (x[rows],))
        return F.cross_entropy(output, y[rows])

    return x, y, loss


def gradient_of(loss, vector, *args):
    return torch.func.grad(loss)(vector, *args)
