"""Run a lowered model through the literal executor, and beside it the captured graph by torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import program_reference as reference
import torch
from torch import Tensor, nn

from landscapex._batch import tensor_leaves
from landscapex.engine.capture import capture, evaluate_part
from landscapex.engine.lowering.lanes import Denominator, Lowered
from landscapex.engine.lowering.lower import lower
from landscapex.engine.plan import Plan
from landscapex.engine.program import Buffer
from landscapex.engine.steps import Table
from landscapex.losses.binding import resolve

Env = dict[str, Tensor]


@dataclass(frozen=True)
class Result:
    """What a program computes for one batch at one point."""

    loss: float
    metrics: Mapping[str, float]
    outputs: list[np.ndarray]


def plan_of(model: nn.Module, batch: Any, loss: Any, moving: Sequence[str] | None = None) -> Plan:
    """Capture a model; all parameters move unless told otherwise."""
    names = [name for name, _ in model.named_parameters()] if moving is None else moving
    return capture(model.eval(), resolve(loss, model=model), batch, moving=names)


def moved(plan: Plan, seed: int, size: float = 0.05) -> list[np.ndarray]:
    """For each slot of a plan a direction, zero where it does not move."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=s.shape) * size * s.moves for s in plan.slots]


def environment(plan: Plan, batch: Any, deltas: Sequence[np.ndarray]) -> Env:
    """Values of all placeholders at a point, in float64."""
    env: Env = {}
    for name, i in plan.slot_of.items():
        tensor = plan.slots[i].tensor
        assert tensor is not None
        wide = tensor.detach().double() if tensor.is_floating_point() else tensor
        env[name] = wide + torch.from_numpy(deltas[i]) if plan.slots[i].moves else wide
    for name, tensor in zip(plan.inputs, tensor_leaves(batch), strict=True):
        env[name] = tensor.double() if tensor.is_floating_point() else tensor
    return env


def slots_at(lowered: Lowered, plan: Plan, env: Env) -> list[np.ndarray]:
    """The flattened slots of a program at the point of an environment."""
    of_slot = {i: env[name] for name, i in plan.slot_of.items()}
    of_slot |= {i: evaluate_part(plan, [n], env)[n] for i, n in lowered.derived.items()}
    values = []
    for i, slot in enumerate(lowered.slots):
        tensor = of_slot.get(i, slot.tensor)
        assert tensor is not None
        values.append(tensor.detach().double().reshape(-1).numpy())
    return values


def directions_of(lowered: Lowered, deltas: Sequence[np.ndarray]) -> list[np.ndarray]:
    """A direction for each slot of a program; zero for its constants."""
    given = [d.reshape(-1) for d in deltas]
    return given + [np.zeros(math.prod(s.shape)) for s in lowered.slots[len(given) :]]


def inputs_of(lowered: Lowered, plan: Plan, env: Env) -> dict[int, np.ndarray]:
    """What a program reads of a batch, ``[samples, elements]``."""
    found = {}
    for given in lowered.inputs:
        value = evaluate_part(plan, [given.node], env)[given.node]
        axis, rows = plan.values[given.node].shape.index(None), plan.values[given.node].rows[0]
        flat = value.unflatten(axis, (-1, rows)).movedim(axis, 0).flatten(1).numpy()
        found[given.buffer] = _arranged(flat, given.at, lowered.program.buffers[given.buffer])
    return found


def _arranged(flat: np.ndarray, at: Table | None, buffer: Buffer) -> np.ndarray:
    if buffer.kind == "input":
        flat = flat.astype(np.float64)
    return flat if at is None else np.where(at < 0, buffer.fill, flat[:, at]).astype(flat.dtype)


def denominator_of(given: Denominator | None, plan: Plan, env: Env, samples: int) -> float:
    """What a sum is divided by."""
    if given is None:
        return 1.0
    if given.labels is None:
        return given.per_sample * samples
    labels = evaluate_part(plan, [given.labels], env)[given.labels]
    counted = labels[labels != given.ignore_index]
    if given.class_weight is None:
        return counted.numel()
    return float(given.class_weight.double()[counted].sum())


def result_of(
    lowered: Lowered, plan: Plan, batch: Any, deltas: Sequence[np.ndarray], *, shared: bool = False
) -> Result:
    """Run a program at the centre plus `deltas`; `shared`: AFFINE buffers from two sets."""
    env = environment(plan, batch, deltas)
    inputs = inputs_of(lowered, plan, env)
    weights = reference.weights_at(lowered.program, slots_at(lowered, plan, env))
    options: dict[str, Any] = {}
    if shared:
        still = [0 * d for d in deltas]
        center = slots_at(lowered, plan, environment(plan, batch, still))
        along = directions_of(lowered, deltas)
        sets = [reference.weights_at(lowered.program, center)]
        sets.append(reference.weights_at(lowered.program, along, offset=False))
        options = {"sets": sets, "coefficients": (1.0, 1.0)}
    sums, buffers = reference.run(lowered.program, inputs, weights, **options)
    samples = len(next(iter(inputs.values())))
    loss = lowered.loss.constant + sum(
        p.coefficient * sums[p.term] / denominator_of(p.denominator, plan, env, samples)
        for p in lowered.loss.parts
    )
    hits = {name: sums[term] for name, term in lowered.metrics.items()}
    return Result(float(loss), hits, reference.outputs(lowered.program, buffers))


def check(
    model: nn.Module,
    batch: Any,
    loss: Any = "cross_entropy",
    *,
    moving: Sequence[str] | None = None,
    share: bool = True,
    seed: int = 0,
    tolerance: float = 1e-9,
    simplify: bool = False,
) -> Lowered:
    """Assert that a lowered model computes at a moved point what its graph does by torch."""
    plan = plan_of(model, batch, loss, moving)
    lowered = lower(plan, share=share, simplify=simplify)
    compare(plan, lowered, batch, seed=seed, tolerance=tolerance)
    return lowered


def compare(
    plan: Plan, lowered: Lowered, batch: Any, *, seed: int = 0, tolerance: float = 1e-9
) -> None:
    """Assert the same of a plan and its program, with AFFINE values from their sets and without."""
    deltas = moved(plan, seed)
    names = list(plan.outputs[:2])
    expected = evaluate_part(plan, names, environment(plan, batch, deltas))
    for shared in (False, True):
        if shared and lowered.derived:
            continue
        result = result_of(lowered, plan, batch, deltas, shared=shared)
        want = float(expected[names[0]])
        np.testing.assert_allclose(result.loss, want, rtol=tolerance, atol=tolerance)
        value = expected[names[1]]
        axis, rows = plan.values[names[1]].shape.index(None), plan.values[names[1]].rows[0]
        logits = value.unflatten(axis, (-1, rows)).movedim(axis, 0).flatten(1).numpy()
        np.testing.assert_allclose(result.outputs[0], logits, rtol=tolerance, atol=tolerance)
