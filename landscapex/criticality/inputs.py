"""Gradients and curvatures as they come from callers."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from landscapex._arrays import Array
from landscapex.curvature.linear import SymmetricOperator
from landscapex.errors import ArgumentError, ArgumentTypeError

Curvature: TypeAlias = SymmetricOperator | Tensor | np.ndarray


def vector(given: object) -> Tensor:
    """A gradient as a float64 tensor ``(P,)``."""
    if not isinstance(given, Tensor | np.ndarray):
        raise ArgumentTypeError(
            f"`gradient` must be a tensor or an array, got {type(given).__name__}."
        )
    g = torch.as_tensor(given).detach()
    if g.ndim != 1 or not len(g):
        raise ArgumentError(f"`gradient` must have shape (P,), got {tuple(g.shape)}.")
    if not bool(torch.isfinite(g).all()):
        raise ArgumentError("`gradient` must be finite, got NaN or infinity.")
    return g.double()


def matrix(given: object, size: int) -> Array:
    """A whole curvature matrix, ``(P, P)`` float64, exactly symmetric."""
    if not isinstance(given, Tensor | np.ndarray):
        raise ArgumentTypeError(
            "the curvature must be a tensor, an array or known by products, got "
            f"{type(given).__name__}."
        )
    t = torch.as_tensor(given).detach().cpu()
    if tuple(t.shape) != (size, size):
        raise ArgumentError(
            f"the curvature must have shape ({size}, {size}), got {tuple(t.shape)}."
        )
    if not bool(torch.isfinite(t).all()):
        raise ArgumentError("the curvature must be finite, got NaN or infinity.")
    eps = torch.finfo(t.dtype).eps if t.is_floating_point() else 0.0
    wide: Array = t.double().numpy()
    skew = float(np.abs(wide - wide.T).max())
    if skew > math.sqrt(eps) * float(np.abs(wide).max()):
        raise ArgumentError(
            f"the curvature must be symmetric, got entries that differ by {skew:.3g}."
        )
    return 0.5 * (wide + wide.T)
