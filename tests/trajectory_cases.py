"""Paths of weights, planes, and small models to lay them through."""

from __future__ import annotations

import torch
from torch import nn

from landscapex import axes


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def linear(dtype=torch.float64):
    """Something with 70 parameters: 12 x 5 + 5 + 5."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 5), nn.LayerNorm(5, bias=False)).to(dtype)


P = 70


def curve(count=9, seed=0, dtype=torch.float64):
    """A curved path with components of falling strength, ``(T, P)``."""
    t = torch.linspace(0, 1, count, dtype=torch.float64)[:, None]
    basis = torch.randn(4, P, generator=rng(seed), dtype=torch.float64)
    shape = torch.cat([3 * t, torch.sin(3 * t), 0.3 * torch.cos(7 * t), 0.1 * t**4], 1)
    return (5 + shape @ basis).to(dtype)


def skewed(model, seed=1):
    """Two filter-normalised directions that are neither orthogonal nor of length 1."""
    plane = axes.random(model, 2, seed=seed)
    mixed = torch.stack([plane.vectors[0], 0.6 * plane.vectors[0] + plane.vectors[1]])
    return axes.given(model, mixed)


def batch_norm():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.embedding(x))
