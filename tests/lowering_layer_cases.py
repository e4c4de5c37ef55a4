"""Functions of values that depend on the point, and their losses, beside torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lowered
import numpy as np
import torch
from lowering_cases import randn
from torch import Tensor, nn

from landscapex.engine.lowering.lanes import Lowered
from landscapex.engine.lowering.lower import lower

SAMPLES = 6
IGNORED = torch.tensor([0, -100, 3, 2, -100, 1])


class Scaled(nn.Module):
    """A function behind a factor that moves, so that what it gets is live (and affine)."""

    def __init__(self, function: Callable[..., Any], shape: tuple[int, ...]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.factor = nn.Parameter(torch.rand(shape, generator=generator) + 0.5)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x * self.factor)


def labels(classes: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed))


def check(function: Callable[..., Any], *shape: int, **options: Any) -> Lowered:
    """Compare a function of live values ``[samples, *shape]`` with torch."""
    model, x = Scaled(function, shape), randn(SAMPLES, *shape)
    y = randn(*model(x).shape, seed=3)
    return lowered.check(model, (x, y), "mse_loss", **options)


def check_each(functions: dict[str, Callable[..., Any]], *shape: int, tolerance: float) -> None:
    """Compare functions of live values with torch, in one graph: exports are slow."""

    def together(x: Tensor) -> Tensor:
        return torch.cat([function(x).flatten(1) for function in functions.values()], 1)

    model, x = Scaled(together, shape), randn(SAMPLES, *shape)
    plan = lowered.plan_of(model, (x, torch.zeros_like(model(x))), "mse_loss")
    found, deltas = lower(plan, simplify=False), lowered.moved(plan, 0)
    batch = x, torch.zeros_like(model(x))
    env = lowered.environment(plan, batch, deltas)
    torch_output = lowered.evaluate_part(plan, plan.outputs[1:2], env)[plan.outputs[1]]
    sizes = [function(x).flatten(1).shape[1] for function in functions.values()]
    for shared in (False, True):
        (output,) = lowered.result_of(found, plan, batch, deltas, shared=shared).outputs
        starts = np.cumsum(sizes)[:-1]
        parts = np.split(output, starts, 1), np.split(torch_output.numpy(), starts, 1)
        for name, got, want in zip(functions, *parts, strict=True):
            np.testing.assert_allclose(got, want, tolerance, tolerance, err_msg=name)


def loss_is_that_of_torch(model: nn.Module, batch: Any, loss: Any) -> Lowered:
    plan = lowered.plan_of(model, batch, loss)
    found = lower(plan, simplify=False)
    deltas = lowered.moved(plan, 0)
    env = lowered.environment(plan, batch, deltas)
    expected = float(lowered.evaluate_part(plan, plan.outputs[:1], env)[plan.outputs[0]])
    got = lowered.result_of(found, plan, batch, deltas).loss
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)
    return found
