"""Elementwise operators, moves and whole models as grid programs."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import lowered
import models
import numpy as np
import pytest
import torch
from lowering_cases import (
    SAMPLES,
    Case,
    Function,
    batch_of,
    check,
    check_all,
    check_together,
    live,
    randn,
    steps,
)
from torch import Tensor, nn
from torch.nn import functional as F

from landscapex.engine.lowering.lower import lower
from landscapex.engine.steps import Map

# --- elementwise ----------------------------------------------------------------------------------

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu, "relu_": lambda x: F.relu(x + 0.1, inplace=True), "relu6": F.relu6,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2), "elu": lambda x: F.elu(x, 0.7), "selu": F.selu,
    "celu": lambda x: F.celu(x, 1.7), "gelu": F.gelu, "silu": F.silu, "mish": F.mish,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "sigmoid": torch.sigmoid,
    "softplus": lambda x: F.softplus(x, 2.0, 1.0), "tanh": torch.tanh,
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 0.7), "clamp": lambda x: x.clamp(-0.3, 0.8),
    "clamp_min": lambda x: x.clamp(min=-0.3), "clamp_max": lambda x: x.clamp(max=0.2),
    "clamp_tensor": lambda x: x.clamp(torch.tensor([-0.5, 0.0, 0.3, 0.1]), torch.ones(4)),
    "sign": torch.sign,
    "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid,
    "hardshrink": lambda x: F.hardshrink(x, 0.4), "softshrink": lambda x: F.softshrink(x, 0.4),
    "softsign": F.softsign, "logsigmoid": F.logsigmoid, "tanhshrink": F.tanhshrink,
    "exp": torch.exp, "log": lambda x: x.abs().log(), "log1p": lambda x: x.abs().log1p(),
    "log2": lambda x: x.abs().log2(), "log10": lambda x: x.abs().log10(), "exp2": torch.exp2,
    "expm1": torch.expm1, "sqrt": lambda x: x.abs().sqrt(), "rsqrt": lambda x: x.abs().rsqrt(),
    "reciprocal": torch.reciprocal, "neg": torch.neg, "sin": torch.sin, "cos": torch.cos,
    "erf": torch.erf, "square": torch.square, "cube": lambda x: x**3, "power": lambda x: x**-1,
    "root": lambda x: x.abs() ** 0.5, "real": lambda x: x.abs() ** 1.7, "base": lambda x: 1.7**x,
    "threshold": lambda x: F.threshold(x, 0.2, -1.0), "glu": F.glu,
}  # fmt: skip


def test_functions_of_one_value_equal_torch() -> None:
    cases = {name: live(function, (3, 4)) for name, function in ACTIVATIONS.items()}
    slopes = {f"prelu {n}": live(F.prelu, (3, 2, 2), (n,)) for n in (1, 3)}
    check_all(cases | slopes)


ARITHMETIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda x, w: x + w, "add_alpha": lambda x, w: torch.add(x, w, alpha=0.3),
    "sub": lambda x, w: x - w, "sub_alpha": lambda x, w: torch.sub(x, w, alpha=0.3),
    "rsub": lambda x, w: 2 - x * w, "rsub_alpha": lambda x, w: torch.rsub(x, w, alpha=0.3),
    "mul": lambda x, w: x * w * 1.5, "div": lambda x, w: x / w / 2.0, "rdiv": lambda x, w: w / x,
    "constant": lambda x, w: x * w + torch.tensor([[1.0], [2.0], [3.0]]),
    "maximum": torch.maximum, "minimum": torch.minimum, "pow": lambda x, w: x.abs() ** w,
    "addcmul": lambda x, w: torch.addcmul(x, x, w, value=0.3),
    "addcmul_1": lambda x, w: torch.addcmul(x, x, w), "lerp": lambda x, w: torch.lerp(x, w, 0.3),
    "addcdiv": lambda x, w: torch.addcdiv(x, w, x.abs() + 1, value=0.3),
    "where": lambda x, w: torch.where(torch.tensor([True, False, True, False]), x, w),
    "where_scalar": lambda x, w: torch.where(torch.tensor([True, False, True, False]), x * w, 0.5),
    "masked_fill": lambda x, w: (x * w).masked_fill(torch.eye(3, 4, dtype=torch.bool), -2.0),
    "masked_weight": lambda x, w: x + w.masked_fill(torch.eye(3, 4, dtype=torch.bool), -2.0),
    "batch_mask": lambda x, w: torch.where(x > 0, x * w, w),
    "gt": lambda x, w: torch.where(x * w > w, x, 0.0),
    "lt": lambda x, w: torch.where(x * w < 0, x, w),
    "ge": lambda x, w: torch.where(x.relu() * w >= 0, x, w),
    "eq": lambda x, w: torch.where(x.relu() * w == 0, x, w),
    "ne": lambda x, w: x.masked_fill(x.relu() * w != 0, 2.0),
    "le": lambda x, w: x.masked_fill(x * w <= w, 2.0),
    "and": lambda x, w: x.masked_fill((x * w > 0) & (w * x < 0.1), 2.0),
    "or": lambda x, w: x.masked_fill((x * w < 0) | ~(w * x < 0.1), 2.0),
    "expanded": lambda x, w: x.sum(1, keepdim=True) * w,
}  # fmt: skip


def test_arithmetic_equals_torch() -> None:
    check_all({name: Case(function, (3, 4), ((3, 4),)) for name, function in ARITHMETIC.items()})


def test_a_mask_comes_with_the_batch() -> None:
    model = Function(lambda x, mask, w: (x * w).masked_fill(mask, 0.5), (4,))
    inputs = randn(SAMPLES, 3, 4), randn(SAMPLES, 3, 1, seed=2) > 0
    lowered.check(model, batch_of(model, *inputs), "mse_loss")


def test_infinities_and_nan_pass() -> None:
    model = Function(lambda x, w: (x * w).masked_fill(torch.tensor([True, False]), -math.inf).exp(),
                     (2,))  # fmt: skip
    x = torch.tensor([[1.0, math.nan], [2.0, math.inf], [1.0, 1.0]])
    plan = lowered.plan_of(model, (x, torch.zeros(3, 2)), "mse_loss")
    still = [np.zeros(s.shape) for s in plan.slots]
    [values] = lowered.result_of(lower(plan), plan, (x, torch.zeros(3, 2)), still).outputs
    np.testing.assert_allclose(values, model(x).detach().numpy(), rtol=1e-6)


# --- moves ----------------------------------------------------------------------------------------

ONE = torch.arange(8.0).view(1, 1, 2, 4)
MOVES: dict[str, Callable[[Tensor], Tensor]] = {
    "permute": lambda x: x.permute(0, 3, 1, 2), "flip": lambda x: x.flip(1), "t": lambda x: x.mT,
    "slice": lambda x: x[:, 1:, ::2], "select": lambda x: x[:, -1], "roll": lambda x: x.roll(1, 2),
    "repeat": lambda x: x.repeat(1, 2, 1, 1), "expand": lambda x: x[:, :1].expand(-1, 3, -1, -1),
    "split": lambda x: x.split([1, 3], -1)[1], "chunk": lambda x: x.chunk(2, -1)[0],
    "unbind": lambda x: x.unbind(1)[1], "unfold": lambda x: x.unfold(3, 2, 1),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x.permute(0, 3, 1, 2), 2),
    "diagonal": lambda x: x.diagonal(0, 1, 2), "crop": lambda x: F.pad(x, (-1, 0)),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "pad": lambda x: F.pad(x, (1, 2, 0, 1), value=0.5),
    "pads": lambda x: F.pad(F.pad(x, (1, 0), value=0.5), (0, 1)),
    "reflect": lambda x: F.pad(x, (1, 1, 1, 1), "reflect"),
    "replicate": lambda x: F.pad(x, (2, 1, 0, 1), "replicate"),
    "circular": lambda x: F.pad(x, (1, 1, 1, 1), "circular"),
    "index": lambda x: x[:, [1, 0, 1]], "last": lambda x: x[torch.arange(x.shape[0]), 1],
    "index_select": lambda x: x.index_select(2, torch.tensor([1, 1, 0])),
    "cat": lambda x: torch.cat([x, x.flip(1)], 1), "stack": lambda x: torch.stack([x, -x], 2),
    "cat_other": lambda x: torch.cat([x, x.relu(), x[:, :1]], 1),
    "cat_constant": lambda x: torch.cat([ONE.expand(x.shape[0], 1, 2, 4), x], 1),
    "merge": lambda x: x.flatten(0, 1).relu().view(-1, 2, 2, 4),
    "zeros": lambda x: torch.cat([torch.zeros_like(x) + 1, x, torch.full_like(x, 2.0)], 1),
    "ones": lambda x: x * (torch.ones_like(x) + x.new_zeros(x.shape)).flip(1),
    "rows": lambda x: (
        x.flatten(1).t().reshape(4, 4 * x.shape[0]).exp().view(16, x.shape[0]).t()
    ),
    "sequence_first": lambda x: (
        x.transpose(0, 1).reshape(-1, 8).exp().view(2, -1, 8).transpose(0, 1)
    ),
}  # fmt: skip


def test_moves_equal_torch() -> None:
    check_all({name: live(function, (2, 2, 4)) for name, function in MOVES.items()})


def test_a_class_token_joins_the_patches() -> None:
    """A parameter becomes a part of a live value, as in vision transformers."""
    check(
        lambda x, w, token, place: (
            torch.cat([token.expand(x.shape[0], 1, 6), F.linear(x, w)], 1) + place
        ),
        (3, 5), (6, 5), (1, 1, 6), (4, 6),
    )  # fmt: skip


def test_parameters_can_take_the_place_of_live_values() -> None:
    """Queries that are parameters, the same for all samples: a product of two weights."""
    check(
        lambda x, query, w: F.linear(query.expand(x.shape[0], -1, -1), w).exp() * x,
        (3, 4), (3, 6), (4, 6),
    )  # fmt: skip


def test_moves_need_no_steps() -> None:
    case = live(lambda x: x.mT.flatten(1)[:, 2:].unsqueeze(1).flip(-1), (3, 4))
    assert len(steps(check_together([case]), Map)) == 1  # the factor


def test_pads_of_different_values_are_kept_apart() -> None:
    check_together([live(lambda x: F.pad(F.pad(x, (1, 0), value=-math.inf).relu(), (1, 1)), (3,))])


# --- whole models ---------------------------------------------------------------------------------


@pytest.mark.parametrize("simplify", [False, True])
@pytest.mark.parametrize(
    ("build", "shape", "classes"),
    [(models.mlp, (10,), 3), (lambda: models.seeded(models.LeNet), (1, 28, 28), 10)],
)
def test_models_equal_torch(
    build: Callable[[], nn.Module], shape: tuple[int, ...], classes: int, simplify: bool
) -> None:
    batch = (
        randn(3, *shape),
        torch.randint(classes, (3,), generator=torch.Generator().manual_seed(0)),
    )
    lowered.check(build(), batch, simplify=simplify)


def test_lowering_has_no_loop_over_elements() -> None:
    """A ResNet-20 has 250,000 of them for a sample."""
    x, y = randn(3, 3, 32, 32), torch.tensor([1, 2, 3])
    plan = lowered.plan_of(models.resnet20(), (x, y), "cross_entropy")
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        lower(plan, simplify=False)
    finally:
        sys.setprofile(None)
    assert calls < 20_000
