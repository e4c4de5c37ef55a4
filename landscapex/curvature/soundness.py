"""Whether second derivatives that torch gives can be those of the function.

Torch cannot know. A function of the user's own whose backward pass is no function of torch is a
constant to it, one that is marked as differentiable once is silently left out unless it lies on
the way to a parameter, and some of torch's own were wrong. Nearly all of this shows in one
property: a matrix of second derivatives is symmetric.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from landscapex.curvature import draws
from landscapex.curvature.estimates import dot
from landscapex.curvature.linear import SymmetricOperator
from landscapex.errors import LossError

# A missing term is of order 1; products in float32 of well-behaved networks reach 1e-5.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-8}


def check_graph(gradient: Sequence[Tensor | None]) -> None:
    """Refuse a gradient that depends on a function which is differentiable once.

    Args:
        gradient: With its graph.

    Raises:
        LossError: If it does.
    """
    nodes = _nodes(gradient)
    if any(type(node).__name__ == "Error" for node in nodes):
        raise LossError(
            "the loss must be twice differentiable for its curvature, got a function that is "
            f"marked with @once_differentiable: one of {_own(nodes)}."
        )


def asymmetry(operator: SymmetricOperator, gradient: Sequence[Tensor | None]) -> float:
    """How far ``<u, A v>`` and ``<v, A u>`` are apart for random vectors, for the size of A.

    Args:
        operator: Should be symmetric.
        gradient: With the graph that its products come from.

    Returns:
        The difference over ``||A u|| + ||A v||``; NaN if the products are not finite.

    Raises:
        LossError: If it is too large to be rounding.
    """
    u, v = (draws.gaussian(operator, 0, "symmetry", number) for number in range(2))
    left, right = operator.apply(u), operator.apply(v)
    size = math.sqrt(dot(left, left)) + math.sqrt(dot(right, right))
    if not math.isfinite(size):
        return math.nan
    if not size:
        return 0.0
    difference = abs(dot(v, left) - dot(u, right)) / size
    coarse = any(g is not None and g.dtype.to_real() == torch.float32 for g in gradient)
    if difference > _TOLERANCE[torch.float32 if coarse else operator.dtype]:
        own = _own(_nodes(gradient))
        raise LossError(
            "the second derivatives of the loss must be symmetric, got a relative difference of "
            f"{difference:.2g}: a function of the model or the loss has a backward pass that torch "
            f"does not differentiate rightly{own and f' (perhaps one of {own})'}."
        )
    return difference


def _nodes(gradient: Sequence[Tensor | None]) -> set[torch.autograd.graph.Node]:
    """Of the graph, each once."""
    found: set[torch.autograd.graph.Node] = set()
    waiting = [g.grad_fn for g in gradient if g is not None]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [following for following, _ in node.next_functions]
    return found


def _own(nodes: set[torch.autograd.graph.Node]) -> str:
    """Names of functions that are not torch's, nor ours."""
    kinds = {type(node) for node in nodes if isinstance(node, BackwardCFunction)}
    written = [getattr(kind, "_forward_cls", kind) for kind in kinds]
    names = [c.__name__ for c in written if not c.__module__.startswith("landscapex.")]
    return ", ".join(sorted(names))
