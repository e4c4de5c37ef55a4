"""Functions of a batch and of parameters, alone or many in one model, beside torch.

Every case compares the program, carried out literally in float64, with the captured graph run by
torch at a moved point, with AFFINE values computed from their sets and without.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lowered
import torch
from torch import Tensor, nn

from landscapex.engine.lowering.lanes import Lowered
from landscapex.engine.lowering.lower import lower
from landscapex.engine.plan import NotCapturedError

SAMPLES = 5


@dataclass(frozen=True)
class Case:
    """A function of a value ``[samples, *x]`` and of parameters of the given shapes."""

    function: Callable[..., Any]
    x: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...] = ()


class Function(nn.Module):
    """A function of the batch and of parameters of the given shapes."""

    def __init__(self, function: Callable[..., Any], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        self.weights = nn.ParameterList([nn.Parameter(randn(*s, seed=7) * 0.5) for s in shapes])

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs, *self.weights)


class Together(nn.Module):
    """Many cases in one model: exporting takes longer than all the rest."""

    def __init__(self, cases: list[Case]) -> None:
        super().__init__()
        self.cases = nn.ModuleList([Function(c.function, *c.shapes) for c in cases])

    def forward(self, *inputs: Tensor) -> Tensor:
        results = [case(x) for case, x in zip(self.cases, inputs, strict=True)]
        return torch.cat([r.flatten(1) for r in results], 1)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def batch_of(model: nn.Module, *inputs: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return (*inputs, randn(*model(*inputs).shape, seed=3))


def live(function: Callable[..., Any], x: tuple[int, ...], *shapes: Any) -> Case:
    """A case whose x is multiplied by a parameter first, so that it depends on the point."""
    return Case(lambda x, factor, *w: function(x * factor, *w), x, (x, *shapes))


def check_all(cases: dict[str, Case]) -> None:
    """Compare all cases with torch, before and after `optimize`; say which of them is wrong."""
    try:
        check_together(list(cases.values()))
    except (AssertionError, NotCapturedError):
        for name, case in cases.items():
            try:
                check_together([case])
            except (AssertionError, NotCapturedError) as error:
                raise AssertionError(name) from error
        raise


def check_together(cases: list[Case]) -> Lowered:
    model = Together(cases)
    inputs = [randn(SAMPLES, *case.x, seed=i) for i, case in enumerate(cases)]
    batch = batch_of(model, *inputs)
    plan = lowered.plan_of(model, batch, "mse_loss")
    lowered.compare(plan, lower(plan), batch)
    plain = lower(plan, simplify=False)
    lowered.compare(plan, plain, batch)
    return plain


def check(
    function: Callable[..., Any], x: tuple[int, ...], *shapes: Any, **options: Any
) -> Lowered:
    """Compare ``function(x, *weights)`` with torch; x comes with the batch."""
    model = Function(function, *shapes)
    return lowered.check(model, batch_of(model, randn(SAMPLES, *x)), "mse_loss", **options)


def steps(program: Lowered, kind: type) -> list[Any]:
    return [s for s in program.program.steps if isinstance(s, kind)]
