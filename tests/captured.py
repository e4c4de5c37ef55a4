"""Captured models for the tests, and what to do with their plans."""

from __future__ import annotations

import functools
from typing import Any

import models
import torch
from torch import Tensor, nn

from landscapex.engine.capture import capture, evaluate_part
from landscapex.engine.plan import Plan
from landscapex.engine.program import Grid
from landscapex.engine.sharing import operator_name
from landscapex.losses.binding import resolve
from landscapex.model.parameters import ParameterSpace


def captured(
    model: nn.Module, loss: Any, batch: Any, *, moving: Any = None, params: Any = None
) -> Plan:
    """The plan of a model in evaluation mode; everything moves unless `moving` says what does."""
    names = [entry.name for entry in ParameterSpace(model, params).entries]
    measure = resolve(loss, model=model)
    return capture(model.eval(), measure, batch, moving=names if moving is None else moving)


def environment(plan: Plan, batch: Any, coordinates: tuple[float, ...], *, seed: int = 0) -> Any:
    """Values of all placeholders in float64, at a point of a random plane."""
    rng = torch.Generator().manual_seed(seed)
    env: dict[str, Tensor] = {}
    at = []
    for slot in plan.slots:
        value = slot.tensor.double() if slot.dtype == torch.float32 else slot.tensor.clone()
        for c in coordinates if slot.moves else ():
            value = value + c * torch.randn(slot.shape, generator=rng, dtype=torch.float64)
        at.append(value)
    env |= {name: at[i] for name, i in plan.slot_of.items()}
    tensors = leaves(batch)
    return env | {
        name: t.double() if t.dtype == torch.float32 else t
        for name, t in zip(plan.inputs, tensors, strict=True)
    }


def leaves(batch: Any) -> list[Tensor]:
    if isinstance(batch, Tensor):
        return [batch]
    items = batch.values() if isinstance(batch, dict) else batch
    return [
        t for item in items if isinstance(item, (Tensor, dict, list, tuple)) for t in leaves(item)
    ]


def move(model: nn.Module, *, seed: int, scale: float = 0.1) -> None:
    """Take every parameter somewhere else, in place."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += scale * torch.randn(p.shape, generator=rng)


def run(plan: Plan, batch: Any) -> list[Tensor]:
    """The outputs of the graph on the model's live parameters."""
    env = {name: plan.slots[i].tensor for name, i in plan.slot_of.items()}
    env |= dict(zip(plan.inputs, leaves(batch), strict=True))
    found = evaluate_part(plan, plan.outputs, env)
    return [found[name] for name in plan.outputs]


def slot_named(plan: Plan, name: str) -> Any:
    return next(slot for slot in plan.slots if slot.name == name)


def operators(plan: Plan) -> list[str]:
    return [operator_name(n) for n in plan.graph.nodes if n.op == "call_function"]


def image_case() -> models.Case:
    rng = torch.Generator().manual_seed(3)
    batches = [
        (torch.randn(n, 3, 8, 8, generator=rng), torch.randint(10, (n,), generator=rng))
        for n in (6, 1, 2)
    ]
    return models.Case(models.resnet20(), batches, "cross_entropy")


def language_case() -> models.Case:
    rng = torch.Generator().manual_seed(3)
    batches = []
    for n in (4, 1, 7):
        ids = torch.randint(20, (n, 5), generator=rng)
        batches.append({"input_ids": ids, "labels": ids.clone()})
    return models.Case(models.seeded(models.TiedLMHeadModel), batches, None)


CASES = {
    **{name: functools.partial(models.case, name) for name in models.CASES},
    "resnet20": image_case,
    "tied language model": language_case,
}


@functools.cache
def case_and_plan(name: str) -> tuple[models.Case, Plan]:
    case = CASES[name]()
    return case, captured(case.model, case.loss, case.batches[0])


def check_labels(plan: Plan, batch: Any) -> set[Grid]:
    """Check every floating-point value: NONE stands still, AFFINE is linear in the coordinates.

    Returns the labels that occurred.
    """
    names = [name for name, value in plan.values.items() if value.dtype.is_floating_point]
    corners = [(0.6, -0.8), (0.0, 0.0), (1.0, 0.0), (0.0, 1.0)]
    found = [evaluate_part(plan, names, environment(plan, batch, at)) for at in corners]
    seen = set()
    for name in names:
        v, v00, v10, v01 = (values[name] for values in found)
        grid = plan.values[name].grid
        seen.add(grid)
        if grid == Grid.NONE:
            assert torch.equal(v, v00), name
        elif grid == Grid.AFFINE and v.numel():
            line = v00 + 0.6 * (v10 - v00) - 0.8 * (v01 - v00)
            assert (v - line).abs().max() <= 1e-9 * max(1, v.abs().max()), name
    return seen
