"""Which function lowers which operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Handler = Callable[..., Any]
_HANDLERS: dict[str, Handler] = {}
_ON_WEIGHTS: set[str] = set()


def handles(*names: str, weights: bool = False) -> Callable[[Handler], Handler]:
    """Register a function ``f(lowering, node, *arguments)`` for operators on live values.

    Args:
        names: As `operator_name` writes them.
        weights: Whether it is also for `Entries`; torch computes others once per grid point.

    Returns:
        The decorator. Arguments come in the order of the operator's schema, defaults filled in;
        tensors as `Lanes` (live), `FromBatch`, `Entries` or Tensor (constants).
    """

    def register(handler: Handler) -> Handler:
        for name in names:
            _HANDLERS[name] = handler
            if weights:
                _ON_WEIGHTS.add(name)
        return handler

    return register


def handler_of(name: str) -> Handler | None:
    """The function that is registered for an operator.

    Args:
        name: As `operator_name` writes it.

    Returns:
        None if there is none.
    """
    return _HANDLERS.get(name)


def lowers_weights(name: str) -> bool:
    """Whether an operator is lowered where its values do not depend on the data.

    Args:
        name: As `operator_name` writes it.

    Returns:
        False if torch computes it once per grid point.
    """
    return name in _ON_WEIGHTS
