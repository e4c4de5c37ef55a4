"""What several handlers ask of values: as lanes, and with the samples apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import fx

from landscapex.engine.lowering.lanes import FromBatch, Lanes
from landscapex.engine.lowering.walk import Lowering
from landscapex.engine.plan import NotCapturedError
from landscapex.engine.sharing import operator_name


def separate(low: Lowering, node: fx.Node, axes: Iterable[int]) -> None:
    """Refuse operators that work along the batch.

    Args:
        low: The lowering.
        node: Whose first argument is meant.
        axes: Along which it works.

    Raises:
        NotCapturedError: If the samples of a batch lie along one of them.
    """
    if set(axes) & set(low.batch_axes(node.args[0])):
        raise NotCapturedError(f"{operator_name(node)} mixes samples")


def shape_of(low: Lowering, x: Any) -> tuple[int, ...]:
    """The shape of anything at batch size 1.

    Args:
        low: The lowering.
        x: `Lanes`, `FromBatch`, `Entries`, or a Tensor.

    Returns:
        Sizes.
    """
    if isinstance(x, FromBatch):
        return low.shape_of(low.plan.values[x.node])
    return tuple(x.shape)


def as_lanes(low: Lowering, x: Any, shape: Sequence[int] | None = None) -> Lanes:
    """Anything as FULL or NONE lanes: what does not depend on the data is written to a buffer.

    Args:
        low: The lowering.
        x: `Lanes`, `FromBatch`, `Entries`, a Tensor, or a number.
        shape: To which values without data are broadcast; None for their own.

    Returns:
        Dense.
    """
    if isinstance(x, Lanes | FromBatch):
        return low.full(x)
    return low.elementwise("copy", shape_of(low, x) if shape is None else shape, x)
