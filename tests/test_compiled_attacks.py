"""The compiled engine under odd but legitimate use: right, or refused, and nothing is left."""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections import deque

import models
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import landscapex as lx
from landscapex.engine import choice
from landscapex.engine.compiled import CompiledEngine
from landscapex.engine.native import unavailable
from landscapex.engine.validation import check_points
from landscapex.errors import CaptureError

pytestmark = pytest.mark.skipif(
    unavailable() is not None, reason="the compiled engine is not built"
)


def mlp() -> nn.Module:
    return models.seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)))


def batch(samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 6, generator=rng)
    return x, torch.randint(4, (samples,), generator=rng)


def by_function(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def both(objective: lx.Objective, **options) -> tuple[lx.Surface, lx.Surface]:
    options = {"points": 3, "progress": False, **options}
    return tuple(lx.surface(objective, engine=e, **options) for e in ("compiled", "eager"))


@pytest.mark.parametrize("loss", ["cross_entropy", by_function], ids=["regrouped", "by batch"])
@pytest.mark.parametrize("empty", [0, 1, 2])
def test_empty_batch_adds_nothing(loss, empty):
    batches = [batch(7), batch(5, 1)]
    batches.insert(empty, batch(0))
    compiled, eager = both(lx.Objective(mlp(), batches, loss))
    np.testing.assert_allclose(compiled.loss, eager.loss, rtol=1e-6)


def test_batches_that_require_gradients():
    batches = [(x.requires_grad_(), y) for x, y in (batch(7), batch(5, 1))]
    objective = lx.Objective(mlp(), batches, "cross_entropy")
    compiled, eager = both(objective)
    np.testing.assert_allclose(compiled.loss, eager.loss, rtol=1e-6)


def test_batch_without_a_counted_label():
    """Its loss is NaN, and it weighs nothing."""
    x, y = batch(8)
    batches = [(x, torch.full_like(y, -100)), batch(5, 1)]
    compiled, eager = both(lx.Objective(mlp(), batches, "cross_entropy"))
    np.testing.assert_allclose(compiled.loss, eager.loss, rtol=1e-6)


@pytest.mark.filterwarnings("ignore::landscapex.errors.LandscapexWarning")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_input_that_is_not_finite_does_not_refuse_the_model(value):
    x, y = batch(8)
    x[3, 2] = value
    compiled, eager = both(lx.Objective(mlp(), [(x, y)], "cross_entropy"))
    assert compiled.provenance["engine"]["name"] == "compiled"
    np.testing.assert_allclose(compiled.loss, eager.loss, rtol=1e-6)


class Halves(nn.Module):
    """Takes inputs of any precision: factors of float32 make them float32."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(6))
        self.linear = nn.Linear(6, 4)

    def forward(self, x):
        return self.linear(x * self.factor)


def test_error_of_our_own_is_a_reason_for_the_eager_engine(monkeypatch):
    monkeypatch.setattr(choice, "_WORTH_WHILE", 0)

    def fail(*_):
        raise ValueError("nobody thought of this\nat all")

    monkeypatch.setattr(choice, "compile_engine", fail)
    objective = lx.Objective(mlp(), [batch(8)], "cross_entropy")
    result = lx.surface(objective, points=3, progress=False)
    assert result.provenance["engine"]["name"] == "eager"
    assert result.provenance["engine"]["why"] == "ValueError: nobody thought of this"
    with pytest.raises(CaptureError, match="got: ValueError: nobody thought of this"):
        lx.surface(objective, points=3, progress=False, engine="compiled")


def test_model_that_is_changed_while_it_is_compiled_is_an_error(monkeypatch):
    objective = lx.Objective(mlp(), [batch(8)], "cross_entropy")
    compile_engine = choice.compile_engine

    def interfere(*arguments):
        with torch.no_grad():
            objective.model[0].weight.add_(1)
        return compile_engine(*arguments)

    monkeypatch.setattr(choice, "compile_engine", interfere)
    with pytest.raises(lx.errors.ModelChangedError, match=r"0\.weight was written to"):
        lx.surface(objective, points=3, progress=False, engine="compiled")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_inputs_of_another_precision(dtype):
    x, y = batch(8)
    objective = lx.Objective(models.seeded(Halves), [(x.to(dtype), y)], "cross_entropy")
    compiled, eager = both(objective)
    np.testing.assert_allclose(compiled.loss, eager.loss, rtol=1e-6)


def test_one_point_of_the_comparison_is_near_the_centre():
    """Where everything overflows there is nothing to compare."""
    center, directions = torch.full((4,), 3.0), torch.tensor([[1e30, 0, 0, 0], [0, 0.5, 0, 0]])
    points = check_points(np.array([-1e10, 1.0]), np.array([1e10, 2.0]), center, directions)
    assert (np.abs(points[1:-1, 0]) > 1e6).all()
    assert 0 < np.abs(points[-1, 0]) * 1e30 <= 6.0001
    assert ((points[1:, 1] >= 1) & (points[1:, 1] <= 2)).all()


def process_state() -> list[object]:
    loggers = {
        name: logger.disabled
        for name, logger in logging.root.manager.loggerDict.items()
        if isinstance(logger, logging.Logger) and name.startswith("torch")
    }
    call = nn.Module.__call__, nn.Module.__getattr__
    return [sys.stdout, sys.stderr, list(warnings.filters), any(loggers.values()), call]


def test_objectives_in_several_threads_are_captured_one_after_the_other():
    """Export patches the process: torch's modules, the streams, the filters of warnings."""
    objectives = [lx.Objective(mlp(), [batch(8, i)], "cross_entropy") for i in range(3)]
    expected = [both(o)[1].loss for o in objectives]
    # made here: seeds belong to the process
    others = [lx.Objective(mlp(), [batch(8, i)], "cross_entropy") for i in range(3)]
    found: dict[int, object] = {}

    def work(i: int) -> None:
        try:
            found[i] = lx.surface(others[i], points=3, progress=False, engine="compiled").loss
        except Exception as error:
            found[i] = error

    before = process_state()
    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert process_state() == before
    for i, loss in enumerate(expected):
        np.testing.assert_allclose(found[i], loss, rtol=1e-6)


class Keeps(nn.Module):
    """Collects what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.recent, self.all = nn.Linear(6, 4), deque(maxlen=1000), set()

    def forward(self, x):
        y = self.linear(x)
        self.recent.append(y)
        self.all.add(y)
        return y


def test_trap_15_what_forward_collects_holds_no_tensors_of_the_export():
    model = models.seeded(Keeps)
    lx.surface(model, [batch(8)], "cross_entropy", points=3, progress=False, engine="compiled")
    assert model.recent
    assert {type(y) for y in (*model.recent, *model.all)} == {Tensor}


def test_weights_of_every_point_are_formed_for_few_points_at_once(monkeypatch):
    """Weights that torch computes (weight norm) take memory too."""
    monkeypatch.setattr("landscapex.engine.host._FORMED_BYTES", 4 * 6 * 4 * 5)
    model = models.seeded(lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)))
    objective = lx.Objective(model, [batch(8)], "cross_entropy")
    directions = lx.directions.random(objective).vectors
    with objective.session() as session:
        region = choice.Region(np.full(2, -1.0), np.ones(2), 9)
        session.choose_engine(directions, region, session.values(), wanted="compiled")
        assert 1 <= session.choice.compiled.points_at_once <= 5


@pytest.mark.parametrize("room", [0, 1, 5])
def test_fault_20_short_memory_makes_calls_smaller_and_changes_no_number(monkeypatch, room):
    def compiled():
        objective = lx.Objective(models.mlp(6, 8, 4), [batch(8)], "cross_entropy")
        return lx.surface(objective, points=5, engine="compiled", progress=False)

    expected = compiled()
    whole, called = CompiledEngine._values, []

    def scarce(self, points):
        if len(points) > room:
            raise MemoryError("std::bad_alloc")
        called.append(len(points))
        return whole(self, points)

    monkeypatch.setattr(CompiledEngine, "_values", scarce)
    if not room:
        with pytest.raises(CaptureError, match="got: MemoryError"):
            compiled()
        return
    assert compiled().equals(expected)
    assert max(called) <= room


@pytest.mark.parametrize(("kept", "fewest"), [(1 << 20, 1), (0, 8)])
def test_products_that_are_made_anew_in_each_call_are_made_for_several_points(
    monkeypatch, kept, fewest
):
    monkeypatch.setattr("landscapex.engine.host._PRODUCT_BYTES", kept)
    data = (torch.randn(8, 64), torch.randint(4, (8,)))
    objective = lx.Objective(models.mlp(64, 32, 4), data, "cross_entropy")
    directions = lx.directions.random(objective).vectors
    with objective.session() as session:
        region = choice.Region(np.full(2, -1.0), np.ones(2), 9)
        session.choose_engine(directions, region, session.values(), wanted="compiled")
        assert session.choice.compiled.fewest_at_once == fewest


def test_points_that_share_work_are_computed_together_however_long_they_take(monkeypatch):
    monkeypatch.setattr("landscapex.engine.host._PRODUCT_BYTES", 0)
    monkeypatch.setattr("landscapex.grids.filling.TOGETHER_SECONDS", 0.0)
    data = (torch.randn(8, 64), torch.randint(4, (8,)))
    blocks = []
    found = lx.surface(
        models.mlp(64, 32, 4), data, "cross_entropy", engine="compiled", points=(4, 5),
        progress=False, callback=lambda p: blocks.append(len(p.values)),
    )  # fmt: skip
    assert blocks == [8, 8, 4]
    assert found.complete


def test_class_losses_over_a_size_of_the_batch_are_means_over_samples():
    """A sum over the batch's size: the size of the batch at hand, not of the one exported."""

    def mean_by_hand(model, batch):
        x, y = batch
        return F.cross_entropy(model(x), y, reduction="sum") / x.shape[0]

    objective = lx.Objective(mlp(), [batch(8), batch(5, 1)], mean_by_hand)
    eager, compiled = both(objective)
    np.testing.assert_allclose(compiled.loss, eager.loss, rtol=1e-6)
