"""Contractions in bf16: kernels against numbers rounded by torch, and whole models in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import models
import numpy as np
import pytest
import torch
from step_builder import Shape
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

import landscapex as lx
from landscapex import axes
from landscapex.engine import choice, validation
from landscapex.engine.compiled import CompiledEngine
from landscapex.engine.preparation import PlanCache
from landscapex.engine.program import Buffer, Grid, Program, Weight
from landscapex.engine.steps import Activation, Contract, table
from landscapex.engine.weight_order import contract_order
from landscapex.errors import CaptureError

native = pytest.importorskip("landscapex._program")

Array = np.ndarray
KERNELS = ("portable", "avx512_bf16", "amx")
INF, NAN = math.inf, math.nan
ULP = 2.0**-23


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param not in native.bf16_kernels().split(","):
        pytest.skip(f"this processor or this build has no {request.param}")
    native.set_bf16_kernel(request.param)
    assert native.bf16_kernel() == request.param
    yield request.param
    native.set_bf16_kernel("auto")


def linear(inputs: int, outputs: int) -> Shape:
    return Shape(inputs, outputs, (1, 1), (1, 1))


SHAPES = {
    "one_tap": linear(1, 9),
    "one_output": linear(40, 1),
    "odd_linear": linear(67, 10),
    "uneven_tiles": linear(33, 17),
    "wide": linear(300, 45),
    "3x3": Shape(16, 16, (8, 6), padding=1),
    "odd_channels": Shape(5, 20, (6, 5), padding=1),
    "5x5_of_6": Shape(6, 16, (8, 8), (5, 5)),
    "one_channel": Shape(1, 6, (9, 7), (5, 5), padding=2),
    "stem": Shape(3, 18, (12, 12), (7, 7), stride=2, padding=3),
    "strided": Shape(16, 33, (9, 8), stride=2, padding=1),
    "strided_pointwise": Shape(12, 6, (7, 6), (1, 1), stride=2),
    "dilated": Shape(4, 8, (8, 8), padding=2, dilation=2),
    "grouped": Shape(12, 40, (5, 5), padding=1, groups=2),
    "depthwise": Shape(6, 6, (5, 4), padding=1, groups=6),
    "1d": Shape(3, 6, (1, 12), (1, 4), stride=2),
}


class Layer:
    """One contraction of random numbers; its input has a halo of random numbers too."""

    def __init__(self, shape: Shape, samples: int = 19, directions: int = 0) -> None:
        rng = np.random.default_rng(7)
        self.shape, self.samples = shape, samples
        inner, self.inputs = shape.inputs // shape.groups, shape.inputs * math.prod(shape.padded)
        self.x: Array = rng.normal(size=(samples, self.inputs)).astype(np.float32)
        filters = (directions + 1, shape.outputs, inner, *shape.kernel)
        self.weight: Array = rng.normal(size=filters).astype(np.float32)
        self.bias = rng.normal(size=(directions + 1, shape.outputs)).astype(np.float32)
        self.outputs = shape.outputs * math.prod(shape.result)

    def program(self, step: Contract | None = None, extra: tuple[Weight, ...] = ()) -> Program:
        buffers = (Buffer(self.inputs, Grid.NONE, "input"), Buffer(self.outputs, Grid.FULL))
        step = step or self.shape.contract(0, 1, 0, bias=1)
        weights = (Weight(self.weight[0].size, ()), Weight(self.shape.outputs, ()), *extra)
        return Program(buffers, weights, (step,), 0, ((1, table(range(self.outputs))),))

    def native(
        self,
        program: Program | None = None,
        extra: tuple[Array, ...] = (),
        points: Array | None = None,
        lanes: int = 16,
        threads: int = 1,
    ) -> Array:
        """``[points, samples, outputs]``."""
        tiles = -(-self.samples // lanes)
        x = np.full((tiles * lanes, self.inputs), NAN, np.float32)  # in unused lanes, too
        x[: self.samples] = self.x
        x = np.ascontiguousarray(x.reshape(tiles, lanes, -1).transpose(0, 2, 1))
        groups = self.shape.groups
        taps = self.weight[0].size // self.shape.outputs
        order = contract_order(groups, self.shape.outputs // groups, taps)
        packed = np.ascontiguousarray(self.weight.reshape(len(self.weight), -1)[:, order])
        points = np.zeros((1, 0)) if points is None else points
        valid = np.minimum(self.samples - lanes * np.arange(tiles), lanes)
        program = program or self.program()
        inputs = [x, *[None] * (len(program.buffers) - 1)]
        _, values = native.Program(lanes, program, bf16=True).run(
            valid, np.zeros(tiles, np.int64), inputs, points,
            [(w, False) for w in (packed, self.bias, *extra)], threads, with_values=True,
        )  # fmt: skip
        values = values.transpose(1, 0, 3, 2).reshape(len(points), tiles * lanes, -1)
        return np.asarray(values[:, : self.samples])

    def expected(self, x: Tensor, weight: Tensor, bias: Tensor) -> Array:
        """By torch, on the padded input."""
        x = x.view(-1, self.shape.inputs, *self.shape.padded)
        y = F.conv2d(
            x, weight, bias, self.shape.stride, 0, self.shape.dilation, self.shape.groups
        )  # fmt: skip
        return y.reshape(self.samples, -1).numpy()

    def rounded(self) -> tuple[Array, Array]:
        """The exact result for inputs and weights of bf16, and the sum of its magnitudes."""
        x, w, b = (torch.from_numpy(a) for a in (self.x, self.weight[0], self.bias[0]))
        x, w, b = x.bfloat16().double(), w.bfloat16().double(), b.double()
        return self.expected(x, w, b), self.expected(x.abs(), w.abs(), b.abs())


@pytest.mark.parametrize("lanes", [16, 48])
@pytest.mark.parametrize("name", SHAPES)
def test_products_of_bf16_are_added_in_fp32(name: str, lanes: int, kernel: str) -> None:
    layer = Layer(SHAPES[name], samples=50 if lanes == 48 else 19)
    [found] = layer.native(lanes=lanes)
    expected, magnitude = layer.rounded()
    assert (np.abs(found - expected) <= 3 * ULP * magnitude).all()


@pytest.mark.parametrize("name", ["odd_linear", "strided", "grouped", "depthwise"])
@pytest.mark.parametrize("parts", ["scale shift residual", "scale", "shift residual"])
@pytest.mark.parametrize("act", ["relu", "gelu", "none"])
def test_the_epilogue_stays_fp32(name: str, parts: str, act: str, kernel: str) -> None:
    """Of a contraction whose weights are exact in bf16; the residual is another layer's input."""
    layer = Layer(SHAPES[name])
    layer.x = np.round(4 * layer.x) / 4
    layer.weight = np.round(4 * layer.weight) / 4
    rng, outputs = np.random.default_rng(1), layer.shape.outputs
    scale, shift = rng.normal(size=(2, 1, outputs)).astype(np.float32)
    positions = layer.outputs // outputs
    residual_at = table(rng.permutation(layer.inputs)[:positions] % 8)
    channels = table(np.arange(outputs) % max(layer.inputs - 8, 1))
    rest: dict[str, object] = {"scale": 2} if "scale" in parts else {}
    rest |= {"shift": 3} if "shift" in parts else {}
    if "residual" in parts:
        shaped = channels.reshape(layer.shape.groups, -1)
        rest |= {"residual": 0, "residual_at": residual_at, "residual_channels": shaped}
    # the residual is the very input that is rounded: numbers that bf16 cannot hold show it
    layer.x[:, : layer.inputs // 2] += np.float32(2.0**-20)
    step = layer.shape.contract(0, 1, 0, bias=1, activation=Activation(act), **rest)
    [found] = layer.native(layer.program(step, (Weight(outputs, ()),) * 2), (scale, shift))
    y = layer.rounded()[0].reshape(layer.samples, outputs, positions)
    if "scale" in parts:
        y = y * scale[0][:, None]
    if "shift" in parts:
        y = y + shift[0][:, None]
    if "residual" in parts:
        y = y + layer.x[:, channels[:, None] + residual_at]
    activated = torch.from_numpy(y.reshape(layer.samples, -1))
    if act != "none":
        activated = getattr(F, act)(activated)
    np.testing.assert_allclose(found, activated, rtol=3e-6, atol=2e-5)


def test_products_that_points_share_stay_fp32(kernel: str) -> None:
    """Here they are the residual of a contraction whose numbers are exact in bf16."""
    layer = Layer(linear(12, 8), directions=2)
    layer.x, layer.weight = np.round(4 * layer.x) / 4, np.round(2 * layer.weight) / 2
    shared = np.random.default_rng(2).normal(size=(3, 8, 12)).astype(np.float32)
    one, of_x, channels = table([0]), table(range(12)), table(np.arange(8)[None])
    program = Program(
        (Buffer(12, Grid.NONE, "input"), Buffer(8, Grid.AFFINE), Buffer(8, Grid.FULL)),
        tuple(Weight(n, ()) for n in (96, 8, 96)),
        (
            Contract(0, of_x, one, one, 1, one, channels, 2),
            Contract(0, of_x, one, one, 2, one, channels, 0, 1, -1, -1, 1, one, channels),
        ),
        0,
        ((2, table(range(8))),),
    )
    packed = shared.reshape(3, -1)[:, contract_order(1, 8, 12)]
    point = np.array([1.0, 0.5, -0.25])
    [found] = layer.native(program, (packed,), point[None, 1:])
    weight, bias = (np.tensordot(point, a, 1) for a in (layer.weight + shared[..., None, None],
                                                        layer.bias))  # fmt: skip
    np.testing.assert_allclose(found, layer.x @ weight[..., 0, 0].T + bias, atol=2e-5)


def test_numbers_are_rounded_to_the_nearest_even(kernel: str) -> None:
    numbers = [1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 2**-9, 3.4e38, INF, NAN]
    layer = Layer(linear(2, 4), samples=len(numbers))
    layer.bias[:] = 0
    for x, w in ((numbers, [1.0]), ([1.0], numbers)):
        for row in range(len(w)):
            layer.x[:, 0], layer.x[:, 1] = x if len(x) > 1 else x[0], 0
            layer.weight[0] = 0
            layer.weight[0, :, 0] = w[row]
            [found] = layer.native()
            want = torch.tensor(x if len(x) > 1 else [w[row]] * len(numbers)).bfloat16().float()
            np.testing.assert_array_equal(found, want[:, None].expand(-1, 4))


def test_quiet_and_signalling_nan_stay_nan(kernel: str) -> None:
    patterns = np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF, 0x7FC00000], np.uint32)
    layer = Layer(linear(2, 4), samples=4)
    layer.x[:, 0] = patterns.view(np.float32)
    assert np.isnan(layer.native()).all()


@pytest.mark.parametrize("name", ["odd_linear", "3x3", "5x5_of_6", "stem", "grouped", "strided"])
def test_infinities_and_nan_reach_their_outputs_and_no_others(name: str, kernel: str) -> None:
    """Zeros that fill up tiles must not meet an infinity: that would be NaN."""
    layer = Layer(SHAPES[name])
    rng = np.random.default_rng(3)
    for sample, value in ((0, INF), (1, -INF), (2, NAN), (3, INF), (4, NAN)):
        layer.x[sample, rng.integers(layer.inputs)] = value
    [found] = layer.native()
    expected, _ = layer.rounded()
    special = ~np.isfinite(expected)
    assert special.any()
    assert np.isfinite(expected[0]).any() or name == "odd_linear"
    np.testing.assert_array_equal(found[special], expected[special])
    np.testing.assert_allclose(found[~special], expected[~special], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["odd_linear", "3x3", "depthwise"])
def test_bits_do_not_depend_on_threads_or_chunks(name: str, kernel: str) -> None:
    layer = Layer(SHAPES[name], samples=70, directions=2)
    points = np.random.default_rng(5).normal(size=(7, 2))
    once = layer.native(points=points)
    for threads in (2, 4):
        np.testing.assert_array_equal(layer.native(points=points, threads=threads), once)
    parts = [layer.native(points=points[:3], threads=2), layer.native(points=points[3:])]
    np.testing.assert_array_equal(np.concatenate(parts), once)


@pytest.mark.parametrize("kept", [0, 1])
def test_weights_are_formed_in_fp32_and_then_rounded(kept: int, kernel: str) -> None:
    """Also those that no direction moves, which are rounded once for all points."""
    layer = Layer(linear(40, 8), directions=1)
    if kept:
        layer.weight = layer.weight[:1]
    points = np.array([[0.0], [0.37], [-1.9]])
    found = layer.native(points=points)
    for values, (c,) in zip(found, points, strict=True):
        at = Layer(linear(40, 8))
        sums = np.float32(c) * layer.weight[1].astype(float) if not kept else 0.0
        at.weight[0] = (layer.weight[0].astype(float) + sums).astype(np.float32)
        at.bias[0] = layer.bias[0] + np.float32(c) * layer.bias[1]
        expected, magnitude = at.rounded()
        # one number may be rounded to the other side of a tie
        assert np.quantile(np.abs(values - expected) / magnitude, 0.9) <= 4 * ULP
        assert (np.abs(values - expected) <= 2**-9 * magnitude).all()


def test_a_narrow_instruction_set_takes_the_portable_kernel() -> None:
    before = native.isa()
    try:
        native.set_isa("baseline")
        assert native.bf16_kernel() == "portable"
    finally:
        native.set_isa(before)


def test_unknown_kernels_are_refused() -> None:
    with pytest.raises(ValueError, match="a bf16 kernel of this processor, got sse"):
        native.set_bf16_kernel("sse")


# --- whole models ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compiled:
    engine: CompiledEngine
    why: str
    center: Tensor
    directions: Tensor


def compiled(
    model: torch.nn.Module, data: object, loss: str, *, precision: str = "bf16"
) -> Compiled:
    objective = lx.Objective(model, data, loss, precision=precision)
    with objective.session() as s:
        directions = axes.random(objective, 2, seed=0, center=s.center).vectors
        region = choice.Region(np.full(2, -0.5), np.full(2, 0.5), 100)
        made = choice.choose(
            "compiled", s.engine, s.snapshot, s.center, directions, region, s.values(), PlanCache()
        )
        assert made.compiled is not None
        return Compiled(made.compiled, made.why, s.center.clone(), directions)


def in_float64(
    model: torch.nn.Module, x: Tensor, y: Tensor, made: Compiled, points: Array
) -> Array:
    double = copy.deepcopy(model).double().eval()
    losses = []
    for point in torch.from_numpy(points):
        flat = made.center.double() + point @ made.directions.double()
        tensors = made.engine.space.unflatten(flat)
        with torch.no_grad():
            scores = functional_call(double, dict(tensors), (x.double(),))
            losses.append(float(F.cross_entropy(scores, y)))
    return np.array(losses)


POINTS = np.random.default_rng(11).uniform(-0.5, 0.5, (6, 2))


@pytest.mark.parametrize("name", ["digits", "lenet", "resnet20"])
def test_losses_of_models_are_those_of_float64_to_a_percent(name: str, kernel: str) -> None:
    rng = torch.Generator().manual_seed(0)
    if name == "digits":
        model: torch.nn.Module
        model, (x, y), _ = lx.examples.digits()
    else:
        size = (64, 1, 28, 28) if name == "lenet" else (32, 3, 32, 32)
        model = models.seeded(models.LeNet) if name == "lenet" else models.resnet20()
        x, y = torch.randn(size, generator=rng), torch.randint(10, size[:1], generator=rng)
    made = compiled(model, (x, y), "cross_entropy")
    assert made.why.endswith(f"; bf16: {kernel}")
    found = made.engine.losses(POINTS)[:, 0]
    expected = in_float64(model, x, y, made, POINTS)
    relative = np.abs(found / expected - 1)
    assert 1e-7 < np.median(relative) < 0.01  # bf16 shows, but not much


def test_plans_are_kept_for_each_precision() -> None:
    case = models.case("mlp")
    plans, made = PlanCache(), {}
    for precision in ("bf16", "model"):
        objective = lx.Objective(case.model, case.batches, case.loss, precision=precision)
        with objective.session() as s:
            batch = next(iter(next(iter(s.engine.data.values()))))
            moving = frozenset(e.name for e in s.engine.space.entries)
            made[precision] = plans.captured(s.engine, "form", batch, moving)
            assert plans.captured(s.engine, "form", batch, moving) is made[precision]
    assert made["bf16"].math == "bf16"
    assert made["model"].math == "fp32"
    assert made["bf16"].plan is made["model"].plan


def test_winograd_is_left_out() -> None:
    """Its transforms lose the digits that bf16 still has."""
    x, y = torch.randn(4, 32, 8, 8), torch.randint(32, (4,))
    model = torch.nn.Sequential(
        torch.nn.Conv2d(32, 32, 3, padding=1), torch.nn.ReLU(),
        torch.nn.Conv2d(32, 32, 3, padding=1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
    )  # fmt: skip
    kinds = {}
    for precision in ("model", "bf16"):
        made = compiled(model, (x, y), "cross_entropy", precision=precision)
        steps = made.engine.shares[0].captured.lowered.program.steps
        kinds[precision] = {type(step).__name__ for step in steps}
    assert "Winograd" in kinds["model"]
    assert "Winograd" not in kinds["bf16"]


def test_outputs_that_are_far_off_are_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "ROUNDED", 1e-6)
    monkeypatch.setattr(validation, "AS_AUTOCAST", 0.0)
    model, data, loss = lx.examples.digits()
    with pytest.raises(CaptureError, match="bf16 gives another output than the model"):
        compiled(model, data, loss)


def test_outputs_are_not_rounded(kernel: str) -> None:
    [found] = Layer(linear(16, 8)).native()
    held = torch.from_numpy(np.ascontiguousarray(found)).bfloat16().float().numpy()
    assert (held != found).any()
