"""Small surfaces whose numbers are known."""

from __future__ import annotations

import models
import numpy as np
import pytest
import torch
from torch import nn

import landscapex as lx

QUIET = {"progress": False}
X = torch.linspace(-1, 1, 12).view(4, 3)
BATCH = [(X, torch.zeros(4, 1))]


def mse(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


class Point(nn.Module):
    """Two numbers; whatever is computed from them is the loss."""

    def __init__(self, x=0.0, y=0.0):
        super().__init__()
        self.x = nn.Parameter(torch.tensor([x], dtype=torch.float64))
        self.y = nn.Parameter(torch.tensor([y], dtype=torch.float64))


UNIT = [{"x": torch.ones(1)}, {"y": torch.ones(1)}]


def plane(f, **options):
    """A surface of ``f(x, y)`` in its own coordinates."""
    start = options.pop("start", (0.0, 0.0))
    return lx.surface(
        lx.Objective(Point(*start), None, lambda m, b: f(m.x[0], m.y[0]), check=False),
        **{"directions": UNIT, **QUIET, **options},
    )


def raised(surface):
    """A surface's loss as bits."""
    return surface.loss.view(np.uint64).tolist()


def small(**options):
    return lx.surface(models.mlp(3, 4, 1), BATCH, mse, **{"points": (7, 11), **QUIET, **options})


def interrupted(out, chunks, **options):
    """A run that ends with an error after some chunks of points; how many points it did."""
    done = []

    def callback(progress):
        done.append(progress.done)
        if len(done) == chunks:
            raise StopIteration

    with pytest.raises(StopIteration):
        small(out=out, callback=callback, **options)
    return done[-1]
