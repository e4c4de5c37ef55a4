"""Each architecture runs on the engine that it should, and gives what plain PyTorch gives."""

from __future__ import annotations

import copy
import re
from typing import Any

import lowered
import numpy as np
import program_rules
import pytest
import torch
from architectures import ARCHITECTURES, CAPTURED, Architecture
from torch import Tensor, nn

from landscapex.engine.lowering.lower import lower
from landscapex.engine.plan import NotCapturedError, Plan
from landscapex.losses import resolve
from landscapex.parameters import ParameterSpace

SERVED = [a for a in ARCHITECTURES.values() if a.expected == CAPTURED]
REFUSED = [a for a in ARCHITECTURES.values() if a.expected != CAPTURED]
SAMPLES = 3  # not a size that anything is exported with


def names(architectures: list[Architecture]) -> Any:
    return [pytest.param(a, id=a.name) for a in architectures]


def doubled(batch: Any) -> Any:
    return torch.utils._pytree.tree_map(
        lambda t: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t, batch
    )


def eager_loss(
    architecture: Architecture, model: nn.Module, plan: Plan, batch: Any, deltas: list[np.ndarray]
) -> float:
    """The loss of the model itself in float64, each parameter moved where it lies."""
    model = copy.deepcopy(model).double()
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for slot, delta in zip(plan.slots, deltas, strict=True):
            if slot.moves:
                parameters[slot.name] += torch.from_numpy(delta)
        loss = architecture.loss
        loss = copy.deepcopy(loss).double() if isinstance(loss, nn.Module) else loss
        measure = resolve(loss, model=model)
        return float(measure(model, doubled(batch)).loss)


@pytest.mark.parametrize("share", [True, False], ids=["shared", "unshared"])
@pytest.mark.parametrize("simplify", [False, True], ids=["plain", "optimised"])
@pytest.mark.parametrize("architecture", names(SERVED))
def test_a_program_means_what_the_model_means(
    architecture: Architecture, share: bool, simplify: bool
) -> None:
    """Captured, lowered, carried out literally at a point where every parameter has moved."""
    model = architecture.build()
    moving = [e.name for e in ParameterSpace(model).entries]
    plan = lowered.plan_of(model, architecture.make_batch(7, 0), architecture.loss, moving)
    made = lower(plan, share=share, simplify=simplify)
    program_rules.check(made.program)
    batch, deltas = architecture.make_batch(SAMPLES, 1), lowered.moved(plan, 2)
    found = lowered.result_of(made, plan, batch, deltas, shared=share and not made.derived)
    expected = eager_loss(architecture, model, plan, batch, deltas)
    assert found.loss == pytest.approx(expected, rel=1e-9)
