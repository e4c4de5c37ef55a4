"""The compiled engine as users meet it: equal to the model, the same bits, never silent."""

from __future__ import annotations

import copy
import itertools
import logging

import models
import numpy as np
import pytest
import reference
import torch
from torch import nn
from torch.nn import functional as F

import landscapex as lx
from landscapex.engine import choice
from landscapex.engine.native import unavailable
from landscapex.engine.preparation import PlanCache
from landscapex.errors import CaptureError

pytestmark = pytest.mark.skipif(
    unavailable() is not None, reason="the compiled engine is not built"
)


def exact(objective: lx.Objective, directions: lx.Directions, axes) -> np.ndarray:
    """The surface by a plain loop over the module in float64."""
    double = copy.deepcopy(objective.model).double()
    moved = dict(double.named_parameters())
    start = {n: p.detach().clone() for n, p in moved.items()}
    named = [objective.space.unflatten(v) for v in directions.vectors]
    losses = []
    for point in itertools.product(*axes):
        with torch.no_grad():
            for name in named[0]:
                step = sum(c * d[name].double() for c, d in zip(point, named, strict=True))
                moved[name].copy_((start[name] + step).float())
        losses.append(mean_loss(double, objective))
    return np.array(losses).reshape([len(a) for a in axes])


def mean_loss(model: nn.Module, objective: lx.Objective) -> float:
    total = weight = 0.0
    with torch.no_grad():
        for batch in objective._freeze()["data"]:
            wide = [t.double() if t.is_floating_point() else t for t in batch]
            terms = objective.measure(model.eval(), tuple(wide))
            total += float(terms.loss) * float(terms.weight)
            weight += float(terms.weight)
    return total / weight


def surface(objective, directions="random", **options) -> lx.Surface:
    options = {"points": 5, "engine": "compiled", "progress": False, **options}
    return lx.surface(objective, directions=directions, **options)


@pytest.mark.parametrize("name", ["mlp", "lenet", "conv", "lstm", "autoencoder"])
def test_surface_equals_the_model_in_float64(name):
    case = models.case(name)
    objective = lx.Objective(case.model, case.batches, case.loss)
    directions = lx.directions.random(objective, seed=3)
    before = reference.everything(case.model)
    got = surface(objective, directions, points=(3, 4), span=1.5)
    expected = exact(objective, directions, [a.values for a in got.axes])
    assert got.provenance["engine"]["name"] == "compiled"
    np.testing.assert_allclose(got.loss, expected, rtol=1e-6)
    assert not reference.changes(before, reference.everything(case.model))


def test_bits_do_not_depend_on_threads_chunks_or_shards(tmp_path):
    case = models.case("lenet")
    objective = lx.Objective(case.model, case.batches, case.loss, metrics="accuracy")
    threads = torch.get_num_threads()
    whole = surface(objective, points=9, threads=1)
    try:
        for count in (2, 4):
            torch.set_num_threads(count)
            many = surface(objective, points=9, threads=count)
            assert np.array_equal(whole.loss, many.loss)
    finally:
        torch.set_num_threads(threads)
    for i in range(3):
        surface(objective, points=9, out=tmp_path / "s.nc", shard=(i, 3))
    merged = lx.merge(tmp_path / "s.nc")
    assert np.array_equal(whole.loss, merged.loss)
    accuracy = [s.to_xarray()["accuracy"].to_numpy() for s in (whole, merged)]
    assert np.array_equal(*accuracy)


@pytest.mark.parametrize("pieces", [[1] * 30, [7, 23], [30]])
def test_points_do_not_depend_on_what_is_computed_with_them(pieces):
    """Any chunk size, kept products or not."""
    case = models.case("lenet")
    objective = lx.Objective(case.model, case.batches, case.loss)
    points = np.random.default_rng(0).uniform(-1, 1, (30, 2))
    with objective.session() as session:
        directions = lx.directions.random(objective, center=session.center).vectors
        region = choice.Region(points.min(0), points.max(0), len(points))
        session.choose_engine(directions, region, session.values(), wanted="compiled")
        all_at_once = session.losses(directions, points)
        for runner in session.choice.compiled._runners.values():  # nothing kept
            runner._products, runner._ready = None, False
        parts = np.split(points, np.cumsum(pieces)[:-1])
        in_parts = np.concatenate([session.losses(directions, p) for p in parts])
    assert np.array_equal(all_at_once, in_parts)


def test_resumed_run_has_the_bits_of_an_uninterrupted_one(tmp_path):
    case = models.case("mlp")
    objective = lx.Objective(case.model, case.batches, case.loss)
    whole = surface(objective, points=21)

    def stop(progress):
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        surface(objective, points=21, out=tmp_path / "s.nc", callback=stop)
    partial = lx.open(next(tmp_path.glob("*journal*")))
    assert 0 < partial.evaluated.sum() < partial.loss.size
    resumed = surface(objective, points=21, out=tmp_path / "s.nc")
    assert np.array_equal(whole.loss, resumed.loss)


def test_journal_of_an_eager_run_is_resumed_on_the_eager_engine(tmp_path, monkeypatch):
    monkeypatch.setattr(choice, "_WORTH_WHILE", 0)
    case = models.case("mlp")
    objective = lx.Objective(case.model, case.batches, case.loss)
    options = {"points": 7, "out": tmp_path / "s.nc"}

    def stop(progress):
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        surface(objective, engine="eager", callback=stop, **options)
    resumed = surface(objective, engine="auto", **options)
    assert resumed.provenance["engine"]["name"] == "eager"
    assert np.array_equal(resumed.loss, surface(objective, engine="eager", points=7).loss)


def test_several_data_sets_metrics_and_weight_decay():
    case, other = models.case("mlp"), models.case("mlp", seed=5)
    objective = lx.Objective(
        case.model, case.batches, case.loss, metrics=["accuracy", "error"], weight_decay=0.3,
        datasets={"test": other.batches},
    )  # fmt: skip
    directions = lx.directions.random(objective)
    compiled = surface(objective, directions).to_xarray()
    eager = surface(objective, directions, engine="eager").to_xarray()
    assert list(compiled) == list(eager)
    for name in ("loss", "test_loss"):
        np.testing.assert_allclose(compiled[name], eager[name], rtol=1e-6)
    for name in ("accuracy", "error", "test_accuracy", "test_error"):
        assert np.array_equal(compiled[name], eager[name])


def mean_of_squares(model, batch):
    inputs, target = batch
    return 0.5 * ((model(inputs) - F.one_hot(target, 3)) ** 2).mean() + 1.0


def sum_over_samples(model, batch):
    inputs, target = batch
    return F.mse_loss(model(inputs), F.one_hot(target, 3).float(), reduction="sum") / len_of(inputs)


def len_of(inputs):
    return inputs.shape[0]


LOSSES = {
    "divided by the samples": sum_over_samples,
    "class weights": nn.CrossEntropyLoss(torch.tensor([0.2, 1.0, 3.0])),
    "label smoothing": nn.CrossEntropyLoss(label_smoothing=0.2),
    "ignore_index": nn.CrossEntropyLoss(ignore_index=1),
    "sum": nn.CrossEntropyLoss(reduction="sum"),
    "function": mean_of_squares,
}


@pytest.mark.parametrize("name", LOSSES)
def test_batches_weigh_what_they_weigh_in_torch(name):
    case = models.case("mlp")
    objective = lx.Objective(case.model, case.batches, LOSSES[name])
    directions = lx.directions.random(objective)
    compiled = surface(objective, directions)
    eager = surface(objective, directions, engine="eager")
    np.testing.assert_allclose(compiled.loss, eager.loss, rtol=1e-6)


def test_directions_on_biases_and_batch_norm():
    case = models.case("conv")
    objective = lx.Objective(case.model, case.batches, case.loss)
    rng = torch.Generator().manual_seed(1)
    vectors = 0.3 * torch.randn(2, objective.space.size, generator=rng)
    named = [objective.space.unflatten(v) for v in vectors]
    compiled = surface(objective, named)
    eager = surface(objective, named, engine="eager")
    np.testing.assert_allclose(compiled.loss, eager.loss, rtol=1e-6)


def test_batches_of_several_shapes():
    rng = torch.Generator().manual_seed(0)
    model = models.seeded(models.LSTMClassifier)
    batches = [
        (torch.randn(n, t, 5, generator=rng), torch.randint(3, (n,), generator=rng))
        for n, t in ((8, 6), (5, 4), (8, 6), (1, 4))
    ]
    objective = lx.Objective(model, batches, "cross_entropy")
    directions = lx.directions.random(objective)
    compiled = surface(objective, directions, points=3)
    eager = surface(objective, directions, points=3, engine="eager")
    np.testing.assert_allclose(compiled.loss, eager.loss, rtol=1e-6)


def test_trap_07_nan_and_infinity_survive():
    case = models.case("mlp")
    objective = lx.Objective(case.model, case.batches, case.loss)
    directions = lx.directions.random(objective, 1)
    options = {"span": (-1e30, 1e30), "points": 7, "progress": False}
    with pytest.warns(lx.errors.LandscapexWarning, match="NaN or infinite"):
        compiled = lx.line(objective, directions=directions, engine="compiled", **options)
    with pytest.warns(lx.errors.LandscapexWarning, match="NaN or infinite"):
        eager = lx.line(objective, directions=directions, engine="eager", **options)
    assert np.array_equal(np.isnan(compiled.loss), np.isnan(eager.loss))
    assert np.array_equal(np.isinf(compiled.loss), np.isinf(eager.loss))


def test_training_between_two_surfaces_is_seen(monkeypatch):
    """Plans are kept, numbers are not: parameters, buffers and frozen weights."""
    monkeypatch.setattr(PlanCache, "forget", lambda self: pytest.fail("a stale program ran"))
    case = models.case("conv")
    objective = lx.Objective(case.model, case.batches, case.loss)
    surface(objective, points=3)
    case.model.train()
    optimizer = torch.optim.SGD(case.model.parameters(), 0.1)
    for inputs, target in case.batches:
        optimizer.zero_grad()
        F.cross_entropy(case.model(inputs), target).backward()
        optimizer.step()
    compiled = surface(objective, points=3)
    eager = surface(objective, points=3, engine="eager")
    np.testing.assert_allclose(compiled.loss, eager.loss, rtol=1e-6)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.factor = nn.Linear(10, 3), 1.0

    def forward(self, x):
        return self.linear(x) * self.factor


def test_number_that_the_graph_has_baked_in_is_noticed():
    batches = models.case("mlp").batches
    objective = lx.Objective(models.seeded(Scaled), batches, "cross_entropy")
    surface(objective, points=3)
    objective.model.factor = 3.0
    compiled = surface(objective, points=3)
    eager = surface(objective, points=3, engine="eager")
    np.testing.assert_allclose(compiled.loss, eager.loss, rtol=1e-6)


class Copies(nn.Module):
    """The graph holds the numbers of a weight as they were at the centre."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(10, 3)
        self.numbers = [self.linear.weight.detach().numpy()]

    def forward(self, x):
        return self.linear(x) + x @ x.new_tensor(self.numbers[0].tolist()).T


def test_weight_that_stands_still_in_the_graph_is_noticed_away_from_the_centre():
    batches = models.case("mlp").batches
    objective = lx.Objective(models.seeded(Copies), batches, "cross_entropy")
    with pytest.raises(CaptureError, match=r"another output than the model: .* off at"):
        surface(objective, points=3)


class Coupled(nn.Module):
    """Samples of a batch see each other: no tile can be computed by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(10, 3)

    def forward(self, x):
        return self.linear(x).softmax(0)


def test_model_that_cannot_be_captured_runs_eagerly_and_says_why(caplog, monkeypatch):
    monkeypatch.setattr(choice, "_WORTH_WHILE", 0)
    batches = models.case("mlp").batches
    objective = lx.Objective(models.seeded(Coupled), batches, "cross_entropy")
    with caplog.at_level(logging.INFO, "landscapex"):
        result = surface(objective, points=3, engine="auto")
    with pytest.raises(CaptureError, match="'compiled'` must have a model that can be captured"):
        surface(objective)
    assert result.provenance["engine"]["name"] == "eager"
    assert len(caplog.records) == 1
    assert result.provenance["engine"]["why"] in caplog.text


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"bn": "recompute"}, "bn='recompute'"),
        ({"bn": "batch"}, "bn='batch'"),
        ({"check": False}, "check=False"),
        ({"cache": "none"}, "read again for each point"),
        ({"metrics": {"mine": lambda output, batch: output.sum(1)}}, "a metric is a function"),
    ],
)
def test_settings_that_only_the_eager_engine_serves(options, reason):
    case = models.case("conv")
    objective = lx.Objective(case.model, case.batches, case.loss, **options)
    with pytest.raises(CaptureError, match=reason):
        surface(objective, points=3)


def test_float64_models_stay_float64():
    case = models.case("mlp")
    batches = [(x.double(), y) for x, y in case.batches]
    objective = lx.Objective(case.model.double(), batches, case.loss)
    with pytest.raises(CaptureError, match="parameters are float64"):
        surface(objective)


def test_small_runs_are_not_captured():
    case = models.case("mlp")
    result = surface(lx.Objective(case.model, case.batches, case.loss), engine="auto")
    assert result.provenance["engine"]["name"] == "eager"
    assert "small" in result.provenance["engine"]["why"]


def test_explain_names_what_is_shared_and_fused():
    case = models.case("lenet")
    text = repr(lx.explain(case.model, case.batches, case.loss))
    assert "engine: compiled" in text
    assert "once" in text
    assert "relu" in text
    shares = [layer.share for layer in lx.explain(case.model, case.batches, case.loss).layers]
    assert sum(shares) == pytest.approx(1)


def test_explain_gives_the_reason_of_the_eager_engine():
    batches = models.case("mlp").batches
    explanation = lx.explain(models.seeded(Coupled), batches, "cross_entropy")
    assert explanation.engine == "eager"
    assert explanation.why in repr(explanation)
    with pytest.raises(lx.errors.ArgumentError, match="`axes` must be 1, 2 or 3, got 4"):
        lx.explain(models.seeded(Coupled), batches, "cross_entropy", axes=4)


def test_long_sequences_keep_wide_tiles():
    """A recurrent layer works on short buffers, however long the one that it walks through."""
    rng = torch.Generator().manual_seed(0)
    data = torch.randn(48, 200, 5, generator=rng), torch.randint(3, (48,), generator=rng)
    assert lx.explain(models.seeded(models.LSTMClassifier), data, "cross_entropy").lanes == 48
