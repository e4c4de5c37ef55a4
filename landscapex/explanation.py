"""How a surface of a model would be computed: the plan in words and numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from landscapex.axes import random
from landscapex.engine.choice import Region
from landscapex.engine.program import Grid, Program
from landscapex.engine.steps import Contract, Map, MatMul, Reduce, Step, Winograd
from landscapex.errors import ArgumentError, CaptureError
from landscapex.grids.grid import AXIS_NAMES
from landscapex.objective import Objective, bind

# Time of one operation on the lanes of a tile, in multiply-adds of a contraction that runs at full
# speed, as measured: elementwise work waits for the cache, functions take a polynomial.
_ELEMENT, _FUNCTION, _SOURCE, _GATES = 4.0, 20.0, 2.0, 80.0
_WINOGRAD = 0.5  # of the multiply-adds of the direct convolution, transforms included
_CHEAP = ("none", "relu", "leaky_relu", "clamp", "abs", "neg", "scale", "shift", "threshold")


@dataclass(frozen=True)
class Layer:
    """One step of a program.

    Attributes:
        kind: Of the step.
        what: Sizes, and everything that is fused into it.
        shared: Whether its products serve all points of a chunk.
        work: Multiply-adds per sample, or what takes as long.
        share: Of the time of a point, estimated.
    """

    kind: str
    what: str
    shared: bool
    work: float
    share: float


@dataclass(frozen=True, repr=False)
class Explanation:
    """How the points of a run would be evaluated; ``print(explanation)`` shows it as text.

    Attributes:
        engine: ``"compiled"`` or ``"eager"``.
        why: In words.
        layers: Of the program, in order; none for the eager engine.
        notes: What was found while the model was captured.
        lanes: Samples per tile.
        multiply_adds: Of one sample at one point, without sharing.
    """

    engine: str
    why: str
    layers: tuple[Layer, ...] = ()
    notes: tuple[str, ...] = ()
    lanes: int = 0
    multiply_adds: int = 0

    def __repr__(self) -> str:
        """The text."""
        head = f"engine: {self.engine} ({self.why})"
        if not self.layers:
            return head
        lines = [
            head,
            f"{self.multiply_adds:,} multiply-adds per sample and point, {self.lanes} samples per "
            "tile",
            "",
            f"{'step':<14}{'time':>5}  what",
        ]
        for layer in self.layers:
            time = "once" if layer.shared else f"{layer.share:.0%}"
            lines.append(f"{layer.kind:<14}{time:>5}  {layer.what}")
        if any(layer.shared for layer in self.layers):
            lines += ["", "once: its input does not depend on the point; computed for the centre"]
            lines.append("      and each direction, then combined at every point")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def explain(
    model: nn.Module | Objective,
    data: Any = None,
    loss: Any = None,
    *,
    axes: int = 2,
    metrics: Any = (),
    precision: str = "model",
) -> Explanation:
    """Say how a surface would be computed: captured or not, what is fused, what takes the time.

    The model is captured and compared with itself, as before a surface; no surface is computed.

    Args:
        model: A module, or an `Objective` (then without data, loss, metrics and precision).
        data: See `Objective`.
        loss: See `Objective`.
        axes: Number of random filter-normalised directions: 1, 2 or 3.
        metrics: See `Objective`.
        precision: See `Objective`.

    Returns:
        The explanation; ``print`` shows it.

    Raises:
        ArgumentError: If ``axes`` is not 1, 2 or 3.

    Example:
        >>> import landscapex as lx
        >>> lx.explain(*lx.examples.digits()).engine in ("compiled", "eager")
        True
    """
    if axes not in range(1, len(AXIS_NAMES) + 1):
        raise ArgumentError(f"`axes` must be 1, 2 or 3, got {axes!r}.")
    objective = bind(model, data, loss, metrics=metrics, precision=precision)
    with objective.session() as session:
        drawn = random(objective, axes, center=session.center)
        region = Region(np.full(axes, -1.0), np.full(axes, 1.0), 1)
        values = session.checked_center()
        try:
            session.choose_engine(drawn.vectors, region, values, wanted="compiled")
        except CaptureError as error:
            return Explanation("eager", error.reason)
        choice = session.choice
        assert choice.compiled is not None
        largest = max(choice.compiled.shares, key=lambda share: int(share.tiles.valid.sum()))
        captured = largest.captured
        return _explained(captured.lowered.program, captured.plan.notes, largest.lanes, choice.why)


def _explained(program: Program, notes: Sequence[str], lanes: int, why: str) -> Explanation:
    rows = [(step, *_described(step, program)) for step in program.steps]
    shared = [_is_shared(step, program) for step in program.steps]
    total = sum(w for (_, _, w, _), s in zip(rows, shared, strict=True) if not s) or 1.0
    layers = tuple(
        Layer(type(step).__name__, what, s, work, 0.0 if s else work / total)
        for (step, what, work, _), s in zip(rows, shared, strict=True)
    )
    return Explanation(
        "compiled", why, layers, tuple(notes), lanes, round(sum(macs for *_, macs in rows))
    )


def _is_shared(step: Step, program: Program) -> bool:
    out = getattr(step, "out", None)
    return out is not None and program.buffers[out].grid is Grid.AFFINE


def _described(step: Step, program: Program) -> tuple[str, float, int]:
    """What it does, its work, and its multiply-adds as a direct computation."""
    if isinstance(step, Contract):
        groups, outputs = step.channels.shape
        positions, taps = len(step.at), len(step.taps)
        macs = groups * outputs * positions * taps
        sizes = f"{groups * outputs} outputs x {positions} positions, {taps} taps each"
        sizes += f", {groups} groups" if groups > 1 else ""
        return sizes + _fused(step), macs + _after(step, groups * outputs * positions), macs
    if isinstance(step, Winograd):
        macs = step.inputs * step.outputs * step.height * step.width * 9
        what = (
            f"{step.inputs} -> {step.outputs} channels, {step.height} x {step.width}, F(4x4, 3x3)"
        )
        return what + _fused(step), macs * _WINOGRAD, macs
    if isinstance(step, MatMul):
        batch, rows, inner = step.x_at.shape
        macs = batch * rows * inner * step.y_at.shape[2]
        return f"{batch} x ({rows} x {inner}) ({inner} x {step.y_at.shape[2]})", 2.0 * macs, macs
    if isinstance(step, Reduce):
        work = _SOURCE * len(step.sources) + _after(step, len(step.to))
        return f"{step.op} of {len(step.sources)} into {len(step.to)}" + _fused(step), work, 0
    if isinstance(step, Map):
        affine = sum(
            o.kind == "buffer" and program.buffers[o.id].grid is Grid.AFFINE for o in step.operands
        )
        what = f"{step.op}, {len(step.to)} elements" + (", combines shared sets" if affine else "")
        work = _ELEMENT * len(step.to) * (1 + affine) + _after(step, len(step.to))
        return what + _fused(step), work, 0
    names = ("sources", "gates_at", "x_at", "to", "at")
    table = next(t for name in names if (t := getattr(step, name, None)) is not None)
    count = math.prod(table.shape)
    each = {"LstmCell": _GATES / 4, "GruCell": _GATES / 3, "Embedding": _ELEMENT, "Hits": _ELEMENT}
    work = each.get(type(step).__name__, _FUNCTION) * count
    return f"{count} elements", work, 0


def _fused(step: Contract | Winograd | Map | Reduce) -> str:
    parts = []
    if isinstance(step, Contract | Winograd):
        parts += ["bias"] if step.bias >= 0 else []
        parts += ["batch norm"] if step.scale >= 0 else []
        parts += ["residual"] if step.residual >= 0 else []
    parts += [step.activation.name] if step.activation.name != "none" else []
    return " + " + " + ".join(parts) if parts else ""


def _after(step: Contract | Map | Reduce, elements: int) -> float:
    return 0.0 if step.activation.name in _CHEAP else _FUNCTION * elements
