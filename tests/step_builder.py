"""How the cases of `step_cases` are made: a program with what torch says that it computes.

Numbers are those of float32, so that kernels can be tested on the very same cases; expected values
are of float64.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from landscapex.engine.program import Buffer, Grid, Program, Term, Weight
from landscapex.engine.steps import Contract, Map, Operand, Step, table
from landscapex.engine.weight_order import contract_order

Array = np.ndarray
EMPTY = table(np.zeros(0))


@dataclass(frozen=True)
class StepCase:
    """A program at one grid point.

    Attributes:
        program: To be run; slot i of a plan is weight i.
        inputs: By id, ``[samples, elements]``.
        sets: Slots at the centre and along each direction.
        coefficients: Of the point, 1 first.
        outputs: Expected, one for each of the program's.
        terms: Expected.
    """

    program: Program
    inputs: dict[int, Array]
    sets: tuple[tuple[Array, ...], ...]
    coefficients: tuple[float, ...]
    outputs: tuple[Array, ...]
    terms: Array

    @property
    def slots(self) -> list[Array]:
        """At this point."""
        pairs = list(zip(self.coefficients, self.sets, strict=True))
        return [sum(c * s[i] for c, s in pairs) for i in range(len(self.program.weights))]


Maker = Callable[[int], StepCase]
CASES: dict[str, Maker] = {}


def case(*rows: tuple[Any, ...], name: str = "") -> Callable[[Callable[..., StepCase]], Any]:
    """Register a function ``f(builder, *row)``, once for each row, as ``name-row[0]``."""

    def register(make: Callable[..., StepCase]) -> Callable[..., StepCase]:
        for row in rows or ((),):
            full = "-".join([name or make.__name__, *(str(x) for x in row[:1])]).replace(" ", "+")
            assert full not in CASES
            CASES[full] = functools.partial(_made, full, make, row)
        return make

    return register


def _made(name: str, make: Callable[..., StepCase], row: Sequence[Any], samples: int) -> StepCase:
    return make(Builder(samples, zlib.crc32(name.encode())), *row)


class Builder:
    """Collects the buffers and weights of a case; `directions` > 0 makes weights move."""

    def __init__(self, samples: int, seed: int) -> None:
        self.samples, self.directions = samples, 0
        self.rng = np.random.default_rng([seed, samples])
        self.buffers: list[Buffer] = []
        self.weights: list[Weight] = []
        self.inputs: dict[int, Array] = {}
        self.slots: list[list[Array]] = []

    def normal(self, *shape: int, scale: float = 1.0) -> Array:
        """Random numbers of float32, as float64."""
        return (scale * self.rng.standard_normal(shape)).astype(np.float32).astype(np.float64)

    def coarse(self, *shape: int) -> Array:
        """Random multiples of 1/16, whose products and sums are exact in float32."""
        return np.round(16 * self.rng.standard_normal(shape)) / 16

    def wild(self, count: int, scale: float = 1.0) -> Array:
        """``[samples, count]`` with zeros, infinities and NaN in every sample."""
        x = self.normal(self.samples, count, scale=scale)
        special = [
            0.0,
            -0.0,
            np.nan,
            np.inf,
            -np.inf,
            2.0**-13,
            -(2.0**-13),
            30.0,
            -30.0,
            0.5,
            -0.5,
        ]
        x[:, : len(special)] = special[:count]
        return x

    def input(self, values: Array) -> int:
        """An input buffer with these values ``[samples, ...]``; integers make an index buffer."""
        flat = values.reshape(self.samples, -1)
        kind = "index" if values.dtype.kind == "i" else "input"
        if kind == "input":
            flat = flat.astype(np.float32).astype(np.float64)
        self.buffers.append(Buffer(flat.shape[1], Grid.NONE, kind))
        self.inputs[len(self.buffers) - 1] = flat
        return len(self.buffers) - 1

    def live(self, elements: int, grid: Grid = Grid.FULL, fill: float = 0.0) -> int:
        """A buffer for steps to write."""
        self.buffers.append(Buffer(elements, grid, fill=fill))
        return len(self.buffers) - 1

    def weight(self, *shape: int, scale: float = 1.0) -> tuple[int, Tensor]:
        """Random entries: the weight, and its value at the point."""
        parts = [self.normal(*shape, scale=scale) for _ in range(self.directions + 1)]
        value = sum(c * p for c, p in zip(self.coefficients, parts, strict=True))
        return self._add([p.reshape(-1) for p in parts]), torch.from_numpy(np.asarray(value))

    def filters(self, groups: int, outputs: int, *inner: int) -> tuple[int, Tensor]:
        """Weights of a `Contract`: the packed weight, and its value ``[groups * M, *inner]``."""
        number, value = self.weight(groups * outputs, *inner)
        taps = int(np.prod(inner))
        order = contract_order(groups, outputs, taps)
        self.slots[number] = [s[order] for s in self.slots[number]]
        return number, value

    def _add(self, slots: list[Array], winograd: tuple[int, int] | None = None) -> int:
        number, count = len(self.weights), slots[0].size
        size = count if winograd is None else count // 9 * 36
        self.weights.append(Weight(size, (Term(number, np.arange(count)),), winograd=winograd))
        self.slots.append(slots)
        return number

    def winograd(self, outputs: int, inputs: int) -> tuple[int, Tensor]:
        """Filters for a `Winograd` step."""
        value = self.normal(outputs, inputs, 3, 3, scale=0.3)
        return self._add([value.reshape(-1)], (outputs, inputs)), torch.from_numpy(value)

    @property
    def coefficients(self) -> tuple[float, ...]:
        """Of the point."""
        return (1.0, 0.75, -0.5, 0.25)[: self.directions + 1]

    def done(
        self,
        *steps: Step,
        out: int = -1,
        to: Array | None = None,
        expected: Tensor | None = None,
        terms: Sequence[float | Tensor] = (),
    ) -> StepCase:
        """The case; ``expected [samples, ...]`` lies at `to` (all of it, in order) of `out`."""
        if not self.inputs:  # the number of samples is that of the inputs
            self.input(np.zeros((self.samples, 1)))
        outputs, tables = [], []
        if expected is not None:
            outputs.append(expected.numpy().reshape(self.samples, -1))
            place = np.arange(self.buffers[out].elements) if to is None else to
            tables.append((out, table(place.reshape(-1))))
        program = Program(
            tuple(self.buffers), tuple(self.weights), steps, len(terms), tuple(tables)
        )
        sets = tuple(tuple(s[k] for s in self.slots) for k in range(self.directions + 1))
        sums = np.array([float(t) for t in terms])
        return StepCase(program, self.inputs, sets, self.coefficients, tuple(outputs), sums)


def steps_from(count: int, start: int = 0) -> Array:
    """``start, start + 1, ...``: a table."""
    return table(np.arange(start, start + count))


def rows(b: Builder, buffer: int) -> Tensor:
    """An input as a tensor ``[samples, elements]``."""
    return torch.from_numpy(b.inputs[buffer])


@dataclass(frozen=True)
class Shape:
    """Of a convolution."""

    inputs: int
    outputs: int
    size: tuple[int, int]
    kernel: tuple[int, int] = (3, 3)
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1

    @property
    def padded(self) -> tuple[int, int]:
        return self.size[0] + 2 * self.padding, self.size[1] + 2 * self.padding

    @property
    def result(self) -> tuple[int, int]:
        def count(padded: int, kernel: int) -> int:
            return (padded - self.dilation * (kernel - 1) - 1) // self.stride + 1

        return count(self.padded[0], self.kernel[0]), count(self.padded[1], self.kernel[1])

    def contract(self, source: int, out: int, weight: int, **rest: Any) -> Contract:
        """The step that reads a padded buffer and writes channel by channel."""
        height, width = self.padded
        rows, columns = self.result
        inner = self.inputs // self.groups
        c, i, j = np.ogrid[:inner, : self.kernel[0], : self.kernel[1]]
        taps = c * height * width + self.dilation * (i * width + j)
        y, x = np.ogrid[:rows, :columns]
        per_group = self.outputs // self.groups
        channels = np.arange(self.outputs).reshape(self.groups, per_group) * rows * columns
        return Contract(
            source, table(taps.reshape(-1)), table((self.stride * (y * width + x)).reshape(-1)),
            table(np.arange(self.groups) * inner * height * width), out,
            steps_from(rows * columns), table(channels), weight, **rest,
        )  # fmt: skip

    def of(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """What torch computes."""
        x = x.view(-1, self.inputs, *self.size)
        return F.conv2d(
            x, weight, bias, self.stride, self.padding, self.dilation, self.groups
        )  # fmt: skip


def padded(b: Builder, source: int, shape: Shape, fill: float = 0.0) -> tuple[int, list[Step]]:
    """The buffer with a halo, and the step that copies the image into it."""
    if not shape.padding:
        return source, []
    height, width = shape.padded
    halo = b.live(shape.inputs * height * width, fill=fill)
    c, y, x = np.ogrid[: shape.inputs, : shape.size[0], : shape.size[1]]
    to = c * height * width + (y + shape.padding) * width + x + shape.padding
    read = Operand("buffer", source, steps_from(to.size))
    return halo, [Map("copy", (read,), halo, table(to.reshape(-1)))]
