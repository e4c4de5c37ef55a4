"""Small curvature maps: of a function of two numbers, and of a network."""

from __future__ import annotations

import models
import pytest
import torch
from evaluate_cases import QUIET, UNIT, Point
from torch import nn

import landscapex as lx
from landscapex.curvature.maps import curvature_map

ENDS = ("smallest", "largest")


def plane(f, **options):
    """A map of ``f(x, y)`` in its own coordinates."""
    objective = lx.Objective(Point(), None, lambda m, b: f(m.x[0], m.y[0]))
    return curvature_map(objective, **{"directions": UNIT, "points": (3, 5), **QUIET, **options})


def small(out=None, seed=0, model=None, **options):
    """A map of a tanh network in float64 on ragged batches."""
    model = models.mlp(4, 5, 3, act=nn.Tanh).double() if model is None else model
    return curvature_map(
        model, ragged(), "cross_entropy", seed=seed, out=out,
        **{"points": (5, 7), "span": 1.5, **QUIET, **options},
    )  # fmt: skip


def ragged():
    rng = torch.Generator().manual_seed(0)
    return [
        (torch.randn(n, 4, generator=rng).double(), torch.randint(3, (n,), generator=rng))
        for n in (8, 2)
    ]


@pytest.fixture(scope="module")
def finished():
    """One whole map, for tests that compare with it."""
    return small()
