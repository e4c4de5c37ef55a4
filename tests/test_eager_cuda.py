"""The eager engine's evaluation as graphs: on the processor by a stand-in that does the recorded
operators again, and, where there is a GPU, as CUDA graphs."""

from __future__ import annotations

import contextlib
import gc
import logging
import threading
import time

import models
import numpy as np
import pytest
import torch
from gpu import CUDA
from recorded_graph import RecordedGraph
from torch import nn
from torch.nn import functional as F

import landscapex as lx
from landscapex.engine import cuda_graph, graphs
from landscapex.engine.choice import Region
from landscapex.engine.eager import EagerEngine
from landscapex.errors import DataError, ModelChangedError

POINTS = np.random.default_rng(0).uniform(-1, 1, (20, 2))
TRUSTED = "asked for; replayed as CUDA graphs, which gave the bits of the model"


@pytest.fixture(params=["cpu", CUDA])
def place(request, monkeypatch):
    """Where models are; on the processor, graphs are those of `RecordedGraph`."""
    if request.param == "cpu":
        monkeypatch.setattr(graphs, "graphs_on", lambda device: RecordedGraph)
    RecordedGraph.captures.clear()
    RecordedGraph.alive.clear()
    return request.param


class Own:
    """A model with data, as the tests below want it."""

    def __init__(self, place, name="mlp", *, model=None, loss=None, **options):
        case = models.case(name)
        self.model = (model or case.model).to(place)
        self.objective = lx.Objective(self.model, case.batches, loss or case.loss, **options)

    @contextlib.contextmanager
    def session(self, points=POINTS):
        """A session that has chosen the eager engine for a run, and the directions of the run."""
        with self.objective.session() as session:
            drawn = lx.directions.random(self.objective, 2, seed=1, center=session.center).vectors
            region = Region(points.min(0), points.max(0), len(points))
            session.choose_engine(drawn, region, session.values(), wanted="eager")
            yield session, drawn

    def losses(self, points=POINTS):
        """Values at points, and what the provenance would say."""
        with self.session(points) as (session, directions):
            return session.losses(directions, points), session.choice.why


def ungraphed(monkeypatch, *args, **options):
    with monkeypatch.context() as patch:
        patch.setattr(graphs, "graphs_on", lambda device: None)
        found, why = Own(*args, **options).losses()
    assert why == "asked for"
    return found


OPTIONS = {
    "plain": {},
    "metrics": {"metrics": "accuracy"},
    "weight decay": {"weight_decay": 0.1},
    "bf16": {"precision": "bf16"},
    "fp32": {"precision": "fp32"},
}


@pytest.mark.parametrize("name", models.CASES)
def test_replays_give_the_bits_of_the_model(name, place, monkeypatch):
    found, why = Own(place, name).losses()
    assert why.startswith(TRUSTED)
    np.testing.assert_array_equal(found, ungraphed(monkeypatch, place, name))
    assert len(np.unique(found[:, 0])) == len(POINTS)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_replays_give_the_bits_of_the_model_with_options(options, place, monkeypatch):
    found, why = Own(place, "conv", **options).losses()
    assert why.startswith(TRUSTED)
    np.testing.assert_array_equal(found, ungraphed(monkeypatch, place, "conv", **options))


def test_batch_statistics_are_replayed(place, monkeypatch):
    own = Own(place, "conv", bn="batch")
    before = own.model.bn.running_mean.clone()
    found, why = own.losses()
    assert why.startswith(TRUSTED)
    np.testing.assert_array_equal(found, ungraphed(monkeypatch, place, "conv", bn="batch"))
    assert torch.equal(own.model.bn.running_mean, before)


class Accumulates(nn.Module):
    """Counts its calls in a buffer, by which it goes."""

    def __init__(self):
        super().__init__()
        self.inner = models.mlp(10, 16, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.inner(x) * self.calls


def test_buffers_start_alike_at_every_point_although_replays_write_to_them(place, monkeypatch):
    expected = ungraphed(monkeypatch, place, model=models.seeded(Accumulates))
    own = Own(place, model=models.seeded(Accumulates))
    found, why = own.losses()
    assert why.startswith(TRUSTED)
    np.testing.assert_array_equal(found, expected)
    assert own.model.calls == 0


def test_no_python_of_the_model_runs_at_a_point(place):
    own, calls = Own(place), []
    own.model[0].register_forward_hook(lambda *_: calls.append(1))
    with own.session() as (session, directions):
        calls.clear()
        session.losses(directions, POINTS)
    assert not calls


def test_many_batches_are_several_graphs(place, monkeypatch):
    monkeypatch.setattr(graphs, "_BATCHES", 2)
    found, why = Own(place, datasets={"test": models.case("mlp", 1).batches[:1]}).losses()
    assert why.startswith(TRUSTED)
    monkeypatch.setattr(graphs, "_BATCHES", 32)
    other, _ = Own(place, datasets={"test": models.case("mlp", 1).batches[:1]}).losses()
    np.testing.assert_array_equal(found, other)
    if place == "cpu":
        assert len(RecordedGraph.captures) == (2 + 1) + (1 + 1)


def test_the_model_stands_at_the_centre_when_it_has_been_compared(place):
    with Own(place, weight_decay=0.1).session() as (session, _):
        assert session.engine.recording is not None
        assert torch.equal(session.space.gather(), session.center)
        assert session.values() == session.engine.recording.values()


def test_few_points_are_not_worth_a_graph(place):
    assert Own(place).losses(points=POINTS[:8])[1] == "asked for"


class Reads(nn.Module):
    """Python goes by a number that the weights decide."""

    def __init__(self):
        super().__init__()
        self.inner = models.mlp(10, 16, 3)

    def forward(self, x):
        y = self.inner(x)
        return y if y.sum() > 0 else 2 * y


class Draws(Reads):
    def forward(self, x):
        return self.inner(x) + 0 * torch.rand_like(x[:, :1])


def own_loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def own_metric(output, batch):
    return (output.argmax(1) == batch[1]).float()


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        (Reads, {}, "makes Python wait for numbers"),
        (Draws, {}, "it draws random numbers"),
        (None, {"loss": own_loss}, "the loss is a function of the user's"),
        (None, {"metrics": {"mine": own_metric}}, "a metric is a function of the user's"),
        (None, {"check": False}, "check=False asks for random draws"),
        (None, {"cache": "none"}, "the batches of data are read again for each point"),
    ],
    ids=["control flow", "random", "loss", "metric", "check=False", "cache=none"],
)
def test_what_cannot_be_recorded_runs_as_before_and_says_why(model, options, reason, place, caplog):
    own = Own(place, model=model and models.seeded(model), **options)
    with caplog.at_level(logging.INFO, "landscapex"):
        found, why = own.losses()
    assert why.startswith("asked for; not as CUDA graphs: ")
    assert reason in why
    assert len([r for r in caplog.records if "without CUDA graphs" in r.message]) == 1
    assert np.isfinite(found).all()
    assert not RecordedGraph.alive


class Overwrites(Reads):
    """Its own input, which is the batch."""

    def forward(self, x):
        return self.inner(x.mul_(1.5))


def test_a_model_that_overwrites_its_batches_is_refused_as_without_graphs(place):
    own = Own(place, model=models.seeded(Overwrites))
    with pytest.raises(DataError, match="must not be changed in place"):
        own.losses()
    assert not RecordedGraph.alive


def test_batch_norm_that_is_computed_anew_is_not_recorded(place):
    _, why = Own(place, "conv", bn="recompute").losses()
    assert "not as CUDA graphs: bn='recompute' goes through the data twice" in why


def test_a_loss_that_differentiates_is_not_recorded(place, monkeypatch):
    own = Own(place)
    monkeypatch.setattr(EagerEngine, "differentiates", True)
    assert own.losses()[1].endswith("not as CUDA graphs: the loss differentiates")


def test_a_failed_capture_is_no_error(place, monkeypatch):
    expected = ungraphed(monkeypatch, place)
    freed = []

    class Broken(RecordedGraph):
        def capture(self, work):
            work()
            raise RuntimeError("operation failed due to a previous error during capture\nmore")

        def free(self):
            freed.append(self)

    monkeypatch.setattr(graphs, "graphs_on", lambda device: Broken)
    found, why = Own(place).losses()
    assert why == (
        "asked for; not as CUDA graphs: RuntimeError: operation failed due to a previous error "
        "during capture"
    )
    np.testing.assert_array_equal(found, expected)
    assert len(freed) == 1


def test_fault_20_short_memory_is_no_error_either(place, monkeypatch):
    expected = ungraphed(monkeypatch, place)

    class Large(RecordedGraph):
        def capture(self, work):
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(graphs, "graphs_on", lambda device: Large)
    found, why = Own(place).losses()
    assert why == "asked for; not as CUDA graphs: device memory is short"
    np.testing.assert_array_equal(found, expected)


class Forgetful(RecordedGraph):
    """Keeps the numbers of the first replay."""

    def replay(self):
        if not self.replays:
            super().replay()


class Rounding(RecordedGraph):
    """The last bit of what comes out is another one away from where it was recorded."""

    def replay(self):
        super().replay()
        out = next(t for _, _, _, made in reversed(self.calls) for t in made if not t.ndim)
        out.copy_(torch.nextafter(out, out + 1))


@pytest.mark.parametrize("wrong", [Forgetful, Rounding])
def test_replays_with_other_bits_are_not_trusted(wrong, monkeypatch):
    expected = ungraphed(monkeypatch, "cpu")
    monkeypatch.setattr(graphs, "graphs_on", lambda device: wrong)
    found, why = Own("cpu").losses()
    assert "not as CUDA graphs: they give another loss at (" in why
    np.testing.assert_array_equal(found, expected)


def test_a_replaced_parameter_is_noticed_and_no_stale_number_is_given(place, caplog):
    own = Own(place)
    old = own.model[0].weight
    with own.session() as (session, directions), caplog.at_level(logging.INFO, "landscapex"):
        assert session.engine.recording is not None
        own.model[0].weight = nn.Parameter(torch.zeros_like(old))
        with pytest.raises(ModelChangedError, match=r"weight was replaced"):
            session.losses(directions, POINTS)
        assert session.engine.recording is None
        own.model[0].weight = old
    assert "not that of the model any more" in caplog.text


@pytest.mark.parametrize("change", ["other batches", "autocast"])
def test_a_recording_of_another_evaluation_is_not_replayed(change, place, monkeypatch):
    own = Own(place)
    with own.session() as (session, directions):
        engine = session.engine
        if change == "other batches":
            engine.laid_out = {"data": engine.data["data"].arranged(5)}
            found = session.losses(directions, POINTS)
        else:
            with torch.autocast(place, torch.bfloat16):
                found = session.losses(directions, POINTS)
        assert engine.recording is None
        assert not RecordedGraph.alive
    assert (found != ungraphed(monkeypatch, place)).any()


def test_fault_batches_written_to_are_noticed_although_nobody_reads_them(place):
    own = Own(place)
    with own.session() as (session, directions):
        next(iter(session.engine.laid_out["data"]))[0].zero_()
        with pytest.raises(DataError, match="must not be changed in place"):
            session.losses(directions, POINTS)


def test_the_memory_of_graphs_is_given_back_with_the_session(place):
    own = Own(place)
    own.losses()
    assert not RecordedGraph.alive
    if place == "cuda":
        gc.collect()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        for _ in range(3):
            own.losses()
        gc.collect()
        assert torch.cuda.memory_allocated() <= before
    elif place == "cpu":
        assert RecordedGraph.captures


def test_an_error_while_replaying_says_where_and_gives_the_memory_back(monkeypatch):
    class Breaks(RecordedGraph):
        def replay(self):
            super().replay()
            if self.replays > 4:
                raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(graphs, "graphs_on", lambda device: Breaks)
    RecordedGraph.alive.clear()
    with pytest.raises(RuntimeError, match="illegal memory access") as caught:
        Own("cpu").losses()
    assert caught.value.__notes__[-1].startswith("landscapex: at alpha=")
    assert not RecordedGraph.alive


def test_models_of_several_threads_are_recorded_one_after_the_other(place, monkeypatch):
    expected = {name: ungraphed(monkeypatch, place, name) for name in ("mlp", "lstm")}
    inside, most, found = [], [], {}
    recording = graphs.Recording._record

    def watched(self, eager):
        inside.append(1)
        time.sleep(0.1)
        most.append(len(inside))
        recording(self, eager)
        inside.pop()

    monkeypatch.setattr(graphs.Recording, "_record", watched)
    own = {name: Own(place, name) for name in expected}  # they draw

    def run(name):
        found[name] = own[name].losses()

    threads = [threading.Thread(target=run, args=(name,)) for name in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, values in expected.items():
        assert found[name][1].startswith(TRUSTED)
        np.testing.assert_array_equal(found[name][0], values)
    assert max(most) == 1


def test_a_surface_tells_in_its_provenance(place):
    own = Own(place)
    surface = lx.surface(own.objective, points=5, engine="eager", progress=False)
    assert surface.provenance["engine"] == {
        "name": "eager",
        "why": f"{TRUSTED} where they were compared",
    }


def test_a_processor_has_no_graphs():
    assert cuda_graph.graphs_on(torch.device("cpu")) is None
    _, why = Own("cpu").losses()
    assert why == "asked for"
