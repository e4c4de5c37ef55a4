"""Each architecture runs on the engine that it should, and gives what plain PyTorch gives."""

from __future__ import annotations

import copy
from typing import Any

import lowered
import numpy as np
import program_rules
import pytest
import torch
from architectures import ARCHITECTURES, CAPTURED, Architecture
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import landscapex as lx
from landscapex.engine import preparation
from landscapex.engine.capture import capture
from landscapex.engine.lowering.lanes import Lowered
from landscapex.engine.lowering.lower import lower
from landscapex.engine.plan import Plan
from landscapex.engine.steps import Contract
from landscapex.errors import CaptureError
from landscapex.losses.binding import resolve
from landscapex.model.parameters import ParameterSpace

BATCHES = ((6, 0), (6, 1), (3, 2))  # (samples, seed); no size that anything is exported with
COORDINATES = np.array([-0.5, 0.25, 1.0])


def named(*, captured: bool) -> list[Any]:
    those = [a for a in ARCHITECTURES.values() if (a.expected == CAPTURED) == captured]
    return [pytest.param(a, id=a.name) for a in those]


def doubled(value: Any) -> Any:
    """A batch, model or loss in float64."""
    if isinstance(value, nn.Module):
        return copy.deepcopy(value).double()
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    return pytree.tree_map(doubled, value) if isinstance(value, (tuple, dict)) else value


def mean_loss(architecture: Architecture, model: nn.Module, batches: list[Any]) -> float:
    """A plain evaluation loop; the model and the batches are of float64."""
    measure = resolve(doubled(architecture.loss), model=model)
    total, weight = 0.0, 0.0
    with torch.no_grad():
        for batch in batches:
            terms = measure(model, batch)
            total += float(terms.loss) * float(terms.weight)
            weight += float(terms.weight)
    return total / weight


def directions_of(model: nn.Module, seed: int) -> list[dict[str, Tensor]]:
    """Two random directions that move every parameter."""
    rng = torch.Generator().manual_seed(seed)
    return [
        {e.name: 0.1 * torch.randn(e.shape, generator=rng) for e in ParameterSpace(model).entries}
        for _ in range(2)
    ]


def losses_by_hand(
    architecture: Architecture, model: nn.Module, directions: list[dict[str, Tensor]]
) -> np.ndarray:
    """The surface by plain PyTorch in float64: parameters are written where they lie."""
    model = doubled(model)
    batches = [doubled(architecture.make_batch(*b)) for b in BATCHES]
    entries = ParameterSpace(model).entries
    parameters = dict(model.named_parameters(remove_duplicate=False))
    center = {e.name: parameters[e.name].detach().clone() for e in entries}
    losses = np.empty((len(COORDINATES), len(COORDINATES)))
    for i, alpha in enumerate(COORDINATES):
        for j, beta in enumerate(COORDINATES):
            for name, at in center.items():
                step = alpha * directions[0][name] + beta * directions[1][name]
                parameters[name].data.copy_(at + step)
            losses[i, j] = mean_loss(architecture, model, batches)
    return losses


def surface(architecture: Architecture, model: nn.Module, engine: str, **options: Any) -> Any:
    batches = [architecture.make_batch(*b) for b in BATCHES]
    objective = lx.Objective(model, batches, architecture.loss, check=architecture.repeatable)
    span = (COORDINATES[0], COORDINATES[-1])
    return lx.surface(
        objective, span=span, points=len(COORDINATES), engine=engine, progress=False, **options
    )


@pytest.mark.usefixtures("generators_untouched")
@pytest.mark.parametrize("architecture", list(ARCHITECTURES.values()), ids=list(ARCHITECTURES))
def test_an_architecture_is_small_settled_and_the_same_every_time(
    architecture: Architecture,
) -> None:
    model, again = architecture.build(), architecture.build()
    assert sum(p.numel() for p in model.parameters()) < 20_000
    assert not any(m.training for m in model.modules())
    for (name, first), second in zip(
        model.state_dict().items(), again.state_dict().values(), strict=True
    ):
        assert torch.equal(first, second), name
        if name.endswith(("running_mean", "running_var")):
            assert first.unique().numel() > 1, name
    batches = [pytree.tree_leaves(architecture.make_batch(4, seed)) for seed in (0, 0, 1)]
    assert all(len(leaf) == 4 for leaf in batches[0])
    assert all(map(torch.equal, batches[0], batches[1]))
    assert not all(map(torch.equal, batches[0], batches[2]))


# Plans that a surface was computed with; an export takes half of the time of these tests.
PLANS: dict[str, tuple[nn.Module, Plan]] = {}


@pytest.mark.parametrize("architecture", named(captured=True))
def test_a_captured_model_gives_what_it_gives_by_hand(
    architecture: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("landscapex._program")
    model = architecture.build()

    def recorded(*args: Any, **options: Any) -> Plan:
        PLANS[architecture.name] = model, capture(*args, **options)
        return PLANS[architecture.name][1]

    monkeypatch.setattr(preparation, "capture", recorded)
    directions = directions_of(model, 3)
    found = surface(architecture, model, "compiled", directions=directions)
    assert found.provenance["engine"]["name"] == "compiled"
    expected = losses_by_hand(architecture, model, directions)
    np.testing.assert_allclose(found.to_xarray()["loss"].values, expected, rtol=1e-6)


@pytest.mark.parametrize("architecture", named(captured=True))
def test_a_program_means_what_the_model_means(architecture: Architecture) -> None:
    """Captured, lowered, carried out literally at a point where every parameter has moved.

    Shared or not, optimised or not; to 1e-7, as coefficients of windows are of float32.
    """
    model, plan = PLANS.pop(architecture.name, None) or captured(architecture)
    batch, deltas = architecture.make_batch(3, 1), lowered.moved(plan, 2)
    double = doubled(model)
    parameters = dict(double.named_parameters())
    with torch.no_grad():
        for slot, delta in zip(plan.slots, deltas, strict=True):
            if slot.moves:
                parameters[slot.name] += torch.from_numpy(delta)
    expected = mean_loss(architecture, double, [doubled(batch)])
    for share in (True, False):
        for simplify in (False, True):
            made = lower(plan, share=share, simplify=simplify)
            check_program(made)
            # a direction has no derived slots of its own
            shared = share and not made.derived
            found = lowered.result_of(made, plan, batch, deltas, shared=shared)
            assert found.loss == pytest.approx(expected, rel=1e-7), (share, simplify)


def captured(architecture: Architecture) -> tuple[nn.Module, Plan]:
    model = architecture.build()
    measure = resolve(architecture.loss, model=model)
    moving = [e.name for e in ParameterSpace(model).entries]
    return model, capture(model, measure, architecture.make_batch(7, 0), moving=moving)


def check_program(made: Lowered) -> None:
    """It keeps the rules of all programs, and shares no product whose weight is not affine."""
    program_rules.check(made.program)
    for step in made.program.steps:
        if isinstance(step, Contract) and program_rules.is_shared(made.program, step):
            weights = [made.program.weights[w] for w in (step.weight, step.bias) if w >= 0]
            assert not {t.slot for w in weights for t in w.terms} & set(made.derived)


@pytest.mark.parametrize("architecture", named(captured=False))
def test_a_model_that_is_not_captured_says_why(architecture: Architecture) -> None:
    pytest.importorskip("landscapex._program")
    model = architecture.build()
    with pytest.raises(CaptureError, match=architecture.expected):
        surface(architecture, model, "compiled")
    directions = directions_of(model, 3)
    found = surface(architecture, model, "auto", directions=directions)
    assert found.provenance["engine"]["name"] == "eager"
    if architecture.repeatable and not isinstance(model, torch.jit.ScriptModule):
        expected = losses_by_hand(architecture, model, directions)
        np.testing.assert_allclose(found.to_xarray()["loss"].values, expected, rtol=1e-5)
