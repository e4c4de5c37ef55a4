"""Contractions, elementwise operators, moves and refusals of the lowering.

Every case compares the program, carried out literally in float64, with the captured graph run by
torch at a moved point, with AFFINE values computed from their sets and without.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import lowered
import models
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscapex.engine.lowering.contractions import pays
from landscapex.engine.lowering.lanes import FromBatch, Lanes, Lowered
from landscapex.engine.lowering.lower import lower
from landscapex.engine.lowering.walk import Lowering
from landscapex.engine.plan import NotCapturedError
from landscapex.engine.program import Grid
from landscapex.engine.steps import Contract, Map
from landscapex.losses.metrics import Rule

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


def refused(model: nn.Module, *inputs: Tensor, match: str, loss: Any = "mse_loss") -> None:
    with pytest.raises(NotCapturedError, match=match):
        lower(lowered.plan_of(model, batch_of(model, *inputs), loss))


# --- products with a weight -----------------------------------------------------------------------


MATRIX = randn(4, 4, seed=5)
PRODUCTS = {
    "linear": Case(F.linear, (7,), ((3, 7), (3,))),
    "linear of rows": Case(F.linear, (4, 7), ((9, 7),)),
    "addmm": Case(lambda x, w, b: torch.addmm(b, x, w), (6,), ((6, 4), (4,))),
    "addmm, beta": Case(
        lambda x, w, b: torch.addmm(b, x, w, beta=0.5, alpha=2.0), (6,), ((6, 4), (4,))
    ),
    "addmm, row": Case(lambda x, w, b: torch.addmm(b, x, w, alpha=2.0), (6,), ((6, 4), (1, 4))),
    "matrix": Case(lambda x, w: x @ w, (4, 6), ((6, 3),)),
    "vector": Case(lambda x, w: x @ w, (4, 6), ((6,),)),
    "from left": Case(lambda x, w: w @ x, (4, 6), ((5, 4),)),
    "vector from left": Case(lambda x, w: w @ x, (4, 6), ((4,),)),
    "a matrix for each head": Case(torch.matmul, (2, 4, 6), ((2, 6, 3),)),
    "one input for all heads": Case(torch.matmul, (1, 4, 6), ((3, 6, 2),)),
    "heads from left": Case(lambda x, w: torch.matmul(w, x), (2, 4, 6), ((2, 3, 4),)),
    "samples are rows": Case(
        lambda x, w: (x.transpose(0, 1) @ w).transpose(0, 1), (3, 6), ((3, 6, 2),)
    ),
    "bilinear": Case(lambda x, w, b: F.bilinear(x[:, :4], x[:, 4:], w, b), (7,), ((5, 4, 3), (5,))),
    "bilinear, live": Case(
        lambda x, v, w: F.bilinear(F.linear(x, v), x, w), (2, 7), ((4, 7), (5, 4, 7))
    ),
    "constant from left": live(lambda x: MATRIX @ x, (4, 6)),
    "constant": live(lambda x: x @ MATRIX, (4,)),
    "both reordered": Case(
        lambda x, w: x.flip(-1)[..., [3, 0, 1]].unsqueeze(1) @ w.t()[[4, 2, 1]], (6,), ((4, 5),)
    ),
    "weight norm": Case(
        lambda x, v, g: F.linear(x, torch._weight_norm(v, g, 0)), (6,), ((4, 6), (4, 1))
    ),
}


def test_products_with_a_weight_equal_torch() -> None:
    check_all(PRODUCTS)


def test_a_linear_layer_reads_slices_and_transposes_in_place() -> None:
    program = check(lambda x, v, w: F.linear(F.linear(x, v)[:, ::2].transpose(1, 2), w), (6, 4),
                    (5, 4), (2, 3))  # fmt: skip
    assert not steps(program, Map)


def test_weights_computed_from_parameters_are_slots_of_their_own() -> None:
    program = check(lambda x, w: F.linear(x, w / w.norm()), (6,), (4, 6))
    assert list(program.derived.values()) == ["div"]


# --- convolutions ---------------------------------------------------------------------------------


CONVOLUTIONS = [
    (F.conv1d, (3, 9), (4, 3, 3), {}),
    (F.conv1d, (3, 9), (4, 3, 3), {"stride": 2, "padding": 1, "dilation": 2}),
    (F.conv1d, (3, 9), (4, 3, 4), {"padding": "same"}),
    (F.conv2d, (3, 6, 7), (4, 3, 3, 3), {}),
    (F.conv2d, (3, 6, 7), (4, 3, 3, 2), {"stride": (2, 1), "padding": (1, 2)}),
    (F.conv2d, (4, 6, 7), (6, 2, 3, 3), {"groups": 2, "dilation": (1, 2), "padding": 2}),
    (F.conv2d, (4, 6, 6), (4, 1, 3, 3), {"groups": 4, "padding": "same"}),
    (F.conv2d, (3, 6, 6), (4, 3, 1, 1), {"stride": 2}),
    (F.conv2d, (3, 5, 5), (4, 3, 3, 5), {"padding": "same", "dilation": (2, 1)}),
    (F.conv2d, (3, 6, 6), (4, 3, 3, 3), {"padding": "valid"}),
    (F.conv3d, (2, 4, 5, 3), (3, 2, 2, 3, 3), {"padding": 1, "stride": (1, 2, 1)}),
]
TRANSPOSED = [
    (F.conv_transpose1d, (4, 5), (4, 3, 4), {"stride": 3, "padding": 2, "output_padding": 1}),
    (F.conv_transpose2d, (4, 3, 4), (4, 2, 3, 3), {}),
    (F.conv_transpose2d, (4, 3, 4), (4, 2, 4, 3), {"stride": 2, "padding": 1}),
    (F.conv_transpose2d, (4, 3, 4), (4, 2, 3, 3), {"stride": 2, "output_padding": 1}),
    (F.conv_transpose2d, (4, 3, 4), (4, 2, 3, 3), {"groups": 2, "dilation": (2, 3)}),
    (F.conv_transpose2d, (4, 3, 4), (4, 2, 1, 2), {"stride": (3, 2)}),  # smaller than the stride
    (F.conv_transpose2d, (2, 3, 3), (2, 2, 3, 3), {"stride": 2, "dilation": 2, "padding": 2}),
    (F.conv_transpose3d, (2, 2, 3, 2), (2, 3, 2, 3, 2), {"stride": 2, "padding": (0, 1, 1)}),
]


def _convolutions(table: list[Any], axis: int, *, of_live: bool) -> dict[str, Case]:
    cases = {}
    for function, x, weight, options in table:
        outputs = weight[axis] * (options.get("groups", 1) if axis else 1)
        call = partial(function, **options)
        name = f"{function.__name__} {weight} {options}"
        case = live(call, x, weight) if of_live else Case(call, x, (weight, (outputs,)))
        cases[name] = case
    return cases


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("of_live", [False, True])
def test_convolutions_equal_torch(of_live: bool) -> None:
    check_all(_convolutions(CONVOLUTIONS, 0, of_live=of_live))


@pytest.mark.parametrize("of_live", [False, True])
def test_transposed_convolutions_equal_torch(of_live: bool) -> None:
    check_all(_convolutions(TRANSPOSED, 1, of_live=of_live))


def test_a_convolution_reads_any_arrangement() -> None:
    """Steps that differ along an axis, and images whose axes are turned, merged or repeated."""
    check_all(
        {
            "turned": live(
                lambda x, w: F.conv2d(x.permute(0, 3, 1, 2), w), (4, 5, 2), (3, 2, 2, 3)
            ),
            "shuffled": live(lambda x, w: F.conv1d(x[:, :, [0, 3, 1, 2]], w), (2, 4), (3, 2, 2)),
            "pixels": live(
                lambda x, w: F.conv2d(F.pixel_shuffle(x, 2), w, padding=1), (8, 3, 3), (3, 2, 3, 3)
            ),
            "merged": live(
                lambda x, w: F.conv1d(x.flatten(0, 1), w).view(-1, 3, 3, 4), (3, 2, 5), (3, 2, 2)
            ),
            "repeated": live(
                lambda x, w: F.conv1d(x[:, :1].expand(-1, 2, -1), w), (3, 5), (3, 2, 2)
            ),
        }
    )


def test_the_halo_of_an_input_is_packed_with_it() -> None:
    program = check(lambda x, w: F.conv2d(x, w, padding=1), (1, 4, 4), (2, 1, 3, 3))
    assert not steps(program, Map)
    read = program.program.buffers[steps(program, Contract)[0].input]
    assert (read.grid, read.elements, read.fill) == (Grid.NONE, 36, 0.0)


def test_an_input_can_be_arranged_again() -> None:
    model = nn.Linear(3, 2)
    plan = lowered.plan_of(model, batch_of(model, randn(SAMPLES, 3)), "mse_loss")
    low = Lowering(plan)
    x = low.lanes(FromBatch(plan.inputs[0]))
    turned = low.contiguous(low.moved(x, x.index.flip(-1)))
    padded = low.contiguous(
        Lanes(turned.buffer, F.pad(turned.index, (1, 0), value=-1), x.grid, 7.0)
    )
    at = [given.at for given in low.inputs]
    assert at[0] is None
    assert [a.tolist() for a in at[1:]] == [[2, 1, 0], [-1, 2, 1, 0]]
    assert low.buffers[padded.buffer].fill == 7.0
    assert not low.steps


def test_batch_norm_equals_torch_with_fixed_and_moving_scale() -> None:
    norm = nn.BatchNorm2d(3).eval()
    norm.running_mean, norm.running_var = randn(3), randn(3).exp()
    nn.init.normal_(norm.weight, 1, 0.3)
    model = nn.Sequential(nn.Conv2d(2, 3, 2), norm, nn.ReLU())
    batch = batch_of(model.eval(), randn(SAMPLES, 2, 4, 5))
    lowered.check(model, batch, "mse_loss")
    lowered.check(model, batch, "mse_loss", moving=["0.weight"])
    lowered.check(model, batch, "mse_loss", moving=["0.weight", "1.bias"], simplify=True)
    plain = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, affine=False)).eval()
    plain[1].running_var = randn(3).exp()
    lowered.check(plain, batch_of(plain, randn(SAMPLES, 4)), "mse_loss")


# --- sharing --------------------------------------------------------------------------------------


def test_products_of_inputs_are_shared_where_that_pays() -> None:
    def grid(x: int, outputs: int, **options: Any) -> Grid:
        program = check(F.linear, (x,), (outputs, x), **options)
        return program.program.buffers[steps(program, Contract)[0].out].grid

    assert grid(16, 4) is Grid.AFFINE
    assert grid(15, 4) is Grid.FULL
    assert grid(16, 4, share=False) is Grid.FULL
    assert pays(16, outputs=6250)
    assert not pays(16, outputs=6251)
    assert pays(128, outputs=10**6)


def test_only_products_of_inputs_are_shared() -> None:
    program = check(lambda x, v, w: F.linear(F.linear(x, v), w), (20,), (30, 20), (4, 30))
    grids = [program.program.buffers[s.out].grid for s in steps(program, Contract)]
    assert grids == [Grid.AFFINE, Grid.FULL]


def test_shared_products_stay_shared_through_moves_and_joins() -> None:
    program = check(
        lambda x, v, w: torch.cat([F.pad(F.linear(x, v), (1, 1)), F.linear(x, w)], 1).relu(),
        (20,), (3, 20), (5, 20),
    )  # fmt: skip
    copies = [s for s in steps(program, Map) if s.activation.name == "none"]
    assert {program.program.buffers[s.out].grid for s in copies} == {Grid.AFFINE}


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


# --- losses as numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss",
    [
        lambda m, b: F.mse_loss(m(b[0]), b[1]) * 2 + 0.5 * F.l1_loss(m(b[0]), b[1]),
        lambda m, b: 1 - F.mse_loss(m(b[0]), b[1]) / 4,
        lambda m, b: -(m(b[0]) * b[1]).mean() - 3.0,
        lambda m, b: torch.add(F.mse_loss(m(b[0]), b[1]), F.l1_loss(m(b[0]), b[1]), alpha=0.5),
    ],
)
def test_losses_are_combined(loss: Callable[..., Tensor]) -> None:
    model = nn.Linear(4, 3)
    batch = batch_of(model, randn(SAMPLES, 4))
    plan = lowered.plan_of(model, batch, loss)
    deltas = lowered.moved(plan, 0)
    env = lowered.environment(plan, batch, deltas)
    expected = lowered.evaluate_part(plan, plan.outputs[:1], env)[plan.outputs[0]]
    assert lowered.result_of(lower(plan), plan, batch, deltas).loss == pytest.approx(
        float(expected), rel=1e-9
    )


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (lambda x, w: (x * w).cumsum(1), "the operator cumsum has no kernel"),
        (lambda x, w: x * w + (x * w).mean(0), "mixes samples"),
        (lambda x, w: (x * w).flip(0), "flip mixes samples: it works along their axis"),
        (lambda x, w: (x * w).roll(1, 0), "roll mixes samples: it works along their axis"),
        (lambda x, w: (x * w).softmax(0), "softmax.int mixes samples"),
        (lambda x, w: torch.cat([x * w, x], 0).unflatten(0, (2, -1)).sum(0), "cat mixes samples"),
        (lambda x, w: (x * w).repeat(2, 1).unflatten(0, (-1, 2))[:, 0], "repeat mixes samples"),
        (
            lambda x, w: (x * w).flatten().unflatten(0, (2, -1)).exp().flatten().view(-1, 4),
            "view mixes samples: their axis is cut",
        ),
        (
            lambda x, w: (x * w).t().contiguous().view(4 * x.shape[0]).view(x.shape[0], 4),
            "view mixes samples: their axis is cut",
        ),
        (
            lambda x, w: ((x * w).t().contiguous().view(4 * x.shape[0]) + (x * w).view(-1)).view(
                -1, 4
            ),
            "mixes samples: they are in different orders",
        ),
        (
            lambda x, w: (x * w)[torch.zeros(x.shape[0], dtype=torch.long)],
            "index.Tensor mixes samples",
        ),
        (lambda x, w: torch.where(x * w > math.inf, x, w), "a comparison with infinity"),
    ],
)
def test_what_cannot_be_lowered_is_refused(function: Callable[..., Any], match: str) -> None:
    refused(Function(function, (4,)), randn(SAMPLES, 4), match=match)


@pytest.mark.parametrize(
    ("loss", "match"),
    [
        (lambda m, b: F.mse_loss(m(b[0]), b[1]).sqrt(), "sqrt of a loss"),
        (lambda m, b: F.mse_loss(m(b[0]), b[1]) * F.l1_loss(m(b[0]), b[1]), "a product of losses"),
        (lambda m, b: 1 / F.mse_loss(m(b[0]), b[1]), "a quotient of losses|reciprocal of a loss"),
        (lambda m, b: F.mse_loss(m(b[0]), b[1]) + m.weight.square().sum(), "a penalty beside"),
    ],
)
def test_losses_that_are_no_sum_over_samples_are_refused(
    loss: Callable[..., Tensor], match: str
) -> None:
    refused(nn.Linear(4, 3), randn(SAMPLES, 4), loss=loss, match=match)


def test_moving_statistics_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval()
    plan = lowered.plan_of(
        model, batch_of(model, randn(SAMPLES, 4)), "mse_loss", ["1.running_mean"]
    )
    with pytest.raises(NotCapturedError, match="running statistics that move"):
        lower(plan)


def test_metrics_need_one_output_and_its_target() -> None:
    model = nn.Linear(4, 3)
    batch = randn(SAMPLES, 4), torch.zeros(SAMPLES, 3)
    plan = lowered.plan_of(model, batch, lambda m, b: F.mse_loss(m(b[0]), b[1]))
    with pytest.raises(NotCapturedError, match="metrics without one output and its target"):
        lower(plan, metrics=[Rule("accuracy", "class", -100, False)])


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


def test_lowering_is_quick() -> None:
    """No loop over elements: a ResNet-20 takes a fraction of a second."""
    x, y = randn(3, 3, 32, 32), torch.tensor([1, 2, 3])
    plan = lowered.plan_of(models.resnet20(), (x, y), "cross_entropy")
    start = time.perf_counter()
    lower(plan, simplify=False)
    assert time.perf_counter() - start < 2
