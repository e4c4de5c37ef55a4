"""From a captured model to the program of the grid engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from landscapex.engine.lowering import (  # noqa: F401 - they register what they lower
    attention,
    contractions,
    convolutions,
    lookups,
    losses,
    moves,
    norms,
    pointwise,
    pools,
    recurrent,
    reductions,
)
from landscapex.engine.lowering.lanes import FromBatch, Lanes, Lowered, Scalar, flat
from landscapex.engine.lowering.optimize import optimize
from landscapex.engine.lowering.walk import Lowering
from landscapex.engine.plan import NotCapturedError, Plan
from landscapex.engine.program import Program
from landscapex.losses.metrics import Rule


def lower(
    plan: Plan,
    *,
    metrics: Sequence[Rule] = (),
    share: bool = True,
    simplify: bool = True,
    winograd: bool = True,
) -> Lowered:
    """Write a captured model as a grid program.

    Args:
        plan: What was captured; its outputs are the loss, then the model's output and the target.
        metrics: Rules of metrics with hits, as `losses.hits` reads them.
        share: Whether products of inputs with weights are shared among the points of a grid.
        simplify: Whether to merge steps and memory, as `optimize` does.
        winograd: See `optimize`.

    Returns:
        The program and what it needs from outside.

    Raises:
        NotCapturedError: If something in the graph has no kernel.
    """
    low = Lowering(plan, share=share)
    low.run()
    values = [low.output(name) for name in plan.outputs]
    loss = values[0]
    if not isinstance(loss, Scalar):
        raise NotCapturedError("a loss that is not a mean or a sum over the samples")
    if metrics and len(values) != 3:
        raise NotCapturedError("metrics without one output and its target")
    hits = {m.name: losses.hits(low, values[1], values[2], m) for m in metrics}
    outputs = []
    for value in values[1:2]:  # some losses do not tell what the model returned
        if isinstance(value, Lanes | FromBatch):
            output = low.full(value)
            outputs.append((output.buffer, flat(output.index)))
    program = Program(
        tuple(low.buffers), tuple(low.weights), tuple(low.steps), low.terms, tuple(outputs)
    )
    lowered = Lowered(program, tuple(low.inputs), tuple(low.slots), low.derived, loss, hits)
    if simplify:
        lowered = optimize(lowered, winograd=winograd)
    return _needed_slots(lowered, len(plan.slots))


def _needed_slots(lowered: Lowered, given: int) -> Lowered:
    """Without constants and derived slots that no weight is made of."""
    program = lowered.program
    used = {t.slot for w in program.weights for t in w.terms} | set(range(given))
    kept = sorted(used)
    number = {slot: i for i, slot in enumerate(kept)}
    weights = tuple(
        replace(w, terms=tuple(replace(t, slot=number[t.slot]) for t in w.terms))
        for w in program.weights
    )
    return replace(
        lowered,
        program=replace(program, weights=weights),
        slots=tuple(lowered.slots[i] for i in kept),
        derived={number[i]: node for i, node in lowered.derived.items() if i in used},
    )
