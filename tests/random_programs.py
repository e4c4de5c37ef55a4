"""Grid programs made by hand or by chance, to try an optimiser on: images of ``[C, H, W]``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import program_reference as reference
import program_rules
import torch

from landscapex.engine.lowering.lanes import Input, Lowered, Scalar
from landscapex.engine.plan import Slot
from landscapex.engine.program import Buffer, Grid, Program, Term, Weight
from landscapex.engine.steps import (
    NONE,
    Activation,
    Contract,
    ElementLoss,
    Map,
    Operand,
    Reduce,
    Softmax,
    Step,
    table,
)
from landscapex.engine.weight_order import contract_order

Array = np.ndarray
SAMPLES = 3
RELU = Activation("relu")


@dataclass(frozen=True)
class Image:
    """A value: its buffer and the element numbers ``[C, H, W]``."""

    buffer: int
    index: Array

    @property
    def flat(self) -> Array:
        return table(self.index.reshape(-1))

    def part(self, *key: Any) -> Image:
        return Image(self.buffer, self.index[key])


class Builder:
    """A program that grows step by step, as handlers make it: every value in a new buffer."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.buffers: list[Buffer] = []
        self.weights: list[Weight] = []
        self.steps: list[Step] = []
        self.slots: list[Slot] = []
        self.inputs: list[Input] = []
        self.terms = 0

    def image(self, *shape: int, grid: Grid = Grid.FULL, fill: float = 0.0) -> Image:
        n = int(np.prod(shape))
        self.buffers.append(Buffer(n, grid, fill=fill))
        return Image(len(self.buffers) - 1, np.arange(n).reshape(shape))

    def input(self, *shape: int) -> Image:
        x = self.image(*shape, grid=Grid.NONE)
        self.buffers[-1] = Buffer(x.index.size, Grid.NONE, "input")
        self.inputs.append(Input(x.buffer, f"x{x.buffer}", "input"))
        return x

    def grid(self, x: Image) -> Grid:
        return self.buffers[x.buffer].grid

    def weight(self, index: Array, *, moves: bool = True) -> int:
        """A weight that reads a new slot at `index`."""
        tensor = torch.from_numpy(self.rng.normal(size=int(index.max()) + 1))
        name = f"slot{len(self.slots)}"
        self.slots.append(
            Slot(name, (), "parameter", tuple(tensor.shape), tensor.dtype, moves, tensor)
        )
        self.weights.append(
            Weight(index.size, (Term(len(self.slots) - 1, index.astype(np.int64)),))
        )
        return len(self.weights) - 1

    def padded(self, x: Image, pad: int, fill: float = 0.0) -> Image:
        """A copy of an image in the middle of a larger one."""
        c, h, w = x.index.shape
        out = self.image(c, h + 2 * pad, w + 2 * pad, grid=self.grid(x) or Grid.FULL, fill=fill)
        self.copy(x, out.part(slice(None), slice(pad, pad + h), slice(pad, pad + w)))
        return out

    def copy(self, x: Image, out: Image, act: Activation = NONE) -> None:
        self.steps.append(
            Map("copy", (Operand("buffer", x.buffer, x.flat),), out.buffer, out.flat, act)
        )

    def conv(
        self,
        x: Image,
        outputs: int,
        size: int = 3,
        *,
        stride: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        moves: bool = True,
        grid: Grid = Grid.FULL,
    ) -> Image:
        """A convolution without padding; `outputs` channels in each group."""
        c, h, w = x.index.shape
        down, across = (stride, stride) if isinstance(stride, int) else stride
        rows, columns = (h - size) // down + 1, (w - size) // across + 1
        windows = np.lib.stride_tricks.sliding_window_view(x.index, (size, size), (1, 2))
        windows = windows[:, ::down, ::across].reshape(
            groups, c // groups, rows * columns, size * size
        )
        taps = windows[0, :, 0].reshape(-1) - windows[0, 0, 0, 0]
        out = self.image(groups * outputs, rows, columns, grid=grid)
        places = out.index.reshape(groups, outputs, -1)
        order = contract_order(groups, outputs, len(taps))
        self.steps.append(
            Contract(
                input=x.buffer,
                taps=table(taps),
                at=table(windows[0, 0, :, 0]),
                group=table(windows[:, 0, 0, 0] - windows[0, 0, 0, 0]),
                out=out.buffer,
                to=table(places[0, 0]),
                channels=table(places[:, :, 0]),
                weight=self.weight(order, moves=moves),
                bias=self.weight(np.arange(groups * outputs), moves=moves) if bias else -1,
            )
        )
        return out

    def map(self, op: str, *operands: Image | float | Operand, act: Activation = NONE) -> Image:
        images = [o for o in operands if isinstance(o, Image)]
        out = self.image(*images[0].index.shape)
        read = tuple(
            Operand("buffer", o.buffer, o.flat)
            if isinstance(o, Image)
            else (o if isinstance(o, Operand) else Operand("number", value=o))
            for o in operands
        )
        self.steps.append(Map(op, read, out.buffer, out.flat, act))
        return out

    def by_channel(self, x: Image, *, moves: bool = True) -> Operand:
        """A weight with one entry per channel of an image."""
        channels = x.index.shape[0]
        entries = np.broadcast_to(np.arange(channels)[:, None, None], x.index.shape)
        at = table(entries.reshape(-1))
        return Operand("weight", self.weight(np.arange(channels), moves=moves), at)

    def by_element(self, x: Image) -> Operand:
        """A weight with one entry per element of an image."""
        n = x.index.size
        return Operand("weight", self.weight(np.arange(n)), table(np.arange(n)))

    def norm(self, x: Image, *, moves: bool = False, act: Activation = NONE) -> Image:
        """Batch norm at rest: a scale and a shift by channel."""
        scale = self.by_channel(x, moves=moves)
        return self.map("scale_shift", x, scale, self.by_channel(x), act=act)

    def pool(self, x: Image, op: str = "max", size: int = 2, stride: int = 2) -> Image:
        windows = np.lib.stride_tricks.sliding_window_view(x.index, (size, size), (1, 2))
        windows = windows[:, ::stride, ::stride]
        out = self.image(*windows.shape[:3])
        count = windows.shape[3] * windows.shape[4]
        offsets = table(np.arange(out.index.size + 1) * count)
        sources = table(windows.reshape(-1))
        self.steps.append(Reduce(op, x.buffer, offsets, sources, out.buffer, out.flat))
        return out

    def softmax(self, x: Image) -> Image:
        out = self.image(*x.index.shape)
        rows = (x.index.shape[0], -1)
        self.steps.append(
            Softmax(
                x.buffer, table(x.index.reshape(rows)), out.buffer, table(out.index.reshape(rows))
            )
        )
        return out

    def cat(self, *parts: Image) -> Image:
        """Images below each other, channel by channel."""
        counts = [p.index.shape[0] for p in parts]
        out = self.image(sum(counts), *parts[0].index.shape[1:])
        for part, end in zip(parts, np.cumsum(counts), strict=True):
            self.copy(part, out.part(slice(end - part.index.shape[0], end)))
        return out

    def lowered(self, *outputs: Image) -> Lowered:
        """The program; the sum of the last output is its term."""
        last = outputs[-1]
        loss = ElementLoss("identity", last.buffer, last.flat, -1, table([]), self.terms)
        program = Program(
            tuple(self.buffers),
            tuple(self.weights),
            (*self.steps, loss),
            self.terms + 1,
            tuple((o.buffer, table(o.index)) for o in outputs),
        )
        inputs, slots = tuple(self.inputs), tuple(self.slots)
        return Lowered(program, inputs, slots, {}, Scalar(()), {})


def evaluate(
    lowered: Lowered, *, seed: int = 0, shared: bool = False
) -> tuple[Array, list[Array], dict[int, Array]]:
    """Run a program at a moved point: terms, outputs, buffers.

    Args:
        lowered: From `Builder.lowered`, optimised or not.
        seed: Of the data and the directions.
        shared: AFFINE buffers from their sets.
    """
    program_rules.check(lowered.program)
    inputs = {}
    for given in lowered.inputs:
        data = np.random.default_rng([seed, int(given.node[1:])])
        elements = lowered.program.buffers[given.buffer].elements
        inputs[given.buffer] = data.normal(size=(elements, SAMPLES)).T
    ways = np.random.default_rng(seed)
    center = [s.tensor.numpy() for s in lowered.slots if s.tensor is not None]
    along = [ways.normal(size=(2, c.size)) for c in center]
    along = [d * s.moves for d, s in zip(along, lowered.slots, strict=True)]
    point = [c + 0.4 * d[0] - 0.3 * d[1] for c, d in zip(center, along, strict=True)]
    options: dict[str, Any] = {}
    if shared:
        sets = [reference.weights_at(lowered.program, center)]
        for k in range(2):
            direction = [d[k] for d in along]
            sets.append(reference.weights_at(lowered.program, direction, offset=False))
        options = {"sets": sets, "coefficients": (1.0, 0.4, -0.3)}
    terms, buffers = reference.run(
        lowered.program,
        inputs,
        reference.weights_at(lowered.program, point),
        storage=bool(lowered.program.storage),
        **options,
    )
    return terms, reference.outputs(lowered.program, buffers), buffers


def random_program(seed: int) -> Lowered:
    """A network of a dozen random steps that end in a scalar and one or two outputs."""
    b = Builder(seed)
    rng = b.rng
    size = int(rng.choice([4, 6, 8]))
    x = b.input(int(rng.choice([1, 2, 4])), size, size)
    first = b.conv(
        x,
        4,
        3 if rng.random() < 0.3 else 1,
        moves=bool(rng.random() < 0.8),
        grid=Grid.AFFINE if rng.random() < 0.5 else Grid.FULL,
    )
    pool = [first]

    def some() -> Image:
        return pool[-1 - min(int(rng.exponential(0.7)), len(pool) - 1)]

    def ready(x: Image) -> Image:
        """For steps that read no AFFINE value."""
        if b.grid(x) is not Grid.AFFINE:
            return x
        full = b.image(*x.index.shape)
        b.copy(x, full)
        return full

    def twin(x: Image) -> Image:
        same = [y for y in pool if y.index.shape == x.index.shape]
        return same[rng.integers(len(same))]

    def conv() -> Image:
        x, size = ready(some()), int(rng.choice([1, 3]))
        if size == 3 or rng.random() < 0.2:
            x = b.padded(x, int(rng.choice([1, 2])))
        size = min(size, *x.index.shape[1:])
        groups = 2 if x.index.shape[0] % 2 == 0 and rng.random() < 0.3 else 1
        stride = int(rng.choice([1, 1, 2]))
        channels = int(rng.choice([2, 3, 4]))
        return b.conv(
            x, channels, size, stride=stride, groups=groups, bias=bool(rng.random() < 0.6)
        )

    def act() -> Image:
        name = str(rng.choice(["relu", "tanh", "square", "scale", "leaky_relu"]))
        return b.map("copy", some(), act=Activation(name, float(rng.choice([0.5, -0.5]))))

    def norm() -> Image:
        return b.norm(
            some(), moves=bool(rng.random() < 0.5), act=RELU if rng.random() < 0.5 else NONE
        )

    def pair() -> Image:
        x = some()
        return b.map(str(rng.choice(["add", "add", "sub", "mul"])), x, twin(x))

    def constant() -> Image:
        x = some()
        other = (0.7, b.by_channel(x), b.by_element(x))[rng.integers(3)]
        op = str(rng.choice(["add", "sub", "mul"]))
        return b.map(op, x, other) if rng.random() < 0.7 else b.map(op, other, x)

    def pooled() -> Image:
        x = some()
        if min(x.index.shape[1:]) < 2:
            return act()
        return b.pool(x, str(rng.choice(["max", "min", "sum"])), 2, int(rng.choice([1, 2])))

    def joined() -> Image:
        x = some()
        return b.cat(x, twin(x))

    def moved() -> Image:
        x = some()
        every = slice(None)
        twice = Image(x.buffer, np.repeat(x.index, 2, 1 + rng.integers(2)))
        reversed_rows = x.part(every, every, slice(None, None, -1))
        return (x.part(slice(None, None, -1)), reversed_rows, twice)[rng.integers(3)]

    def cropped() -> Image:
        x = some()
        return b.padded(x.part(slice(None), slice(0, 2), slice(0, 2)), 1, float(rng.choice([0, 1])))

    makers: list[Callable[[], Image]] = [
        conv, conv, conv, act, act, norm, norm, pair, pair, constant, pooled, joined, moved,
        cropped, lambda: b.softmax(ready(some())),
    ]  # fmt: skip
    for _ in range(int(rng.integers(4, 13))):
        made = makers[rng.integers(len(makers))]()
        if made.index.size <= 2000:
            pool.append(made)
    outputs = [some(), pool[-1]] if rng.random() < 0.4 else [pool[-1]]
    return b.lowered(*outputs)
