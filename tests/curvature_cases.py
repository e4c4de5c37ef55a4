"""A small classifier with its data, and how products with its curvature are compared."""

from __future__ import annotations

import models
import torch
from torch import nn
from torch.nn import functional as F


def classifier(samples: int = 10):
    """A small network, data in float64."""
    model = models.mlp(4, 5, 3, act=nn.Tanh).double()
    rng = torch.Generator().manual_seed(3)
    x = torch.randn(samples, 4, generator=rng, dtype=torch.float64)
    return model, x, torch.randint(3, (samples,), generator=rng)


def split(x, y, sizes):
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


def cross_entropy(call, batch):
    return F.cross_entropy(call(batch[0]), batch[1]), len(batch[1])


def close(a, b, rtol=1e-10):
    assert float((a.double() - b.double()).norm()) <= rtol * float(b.double().norm())


def probe(operator):
    rng = torch.Generator().manual_seed(7)
    return torch.randn(operator.size, generator=rng, dtype=operator.dtype)
