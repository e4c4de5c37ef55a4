"""Directions as they are drawn, and a model as named tensors."""

from __future__ import annotations

from landscapex import axes
from landscapex.model.parameters import ParameterSpace


def raw(model, n=2, seed=0):
    return axes.random(model, n, seed=seed, normalize=None, ignore=None)


def named(model):
    return ParameterSpace(model).unflatten(ParameterSpace(model).gather())
