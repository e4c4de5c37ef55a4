"""A model for which memory is short: fewer samples at a time, the same numbers, a clear end.

The compiled engine's share is in test_device_engine.py, that of data in test_batches.py.
"""

from __future__ import annotations

import math
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor

import models
import numpy as np
import pytest
import reference
import torch
from recorded_graph import RecordedGraph
from torch import nn

import landscapex as lx
from landscapex.engine import graphs, memory
from landscapex.engine.layout import Layout
from landscapex.errors import LandscapexWarning

QUIET = {"points": 3, "progress": False}
KINDS = {
    "device": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "processor": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate "
        "memory: you tried to allocate 800 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "system": lambda: RuntimeError("posix_memalign failed:Cannot allocate memory (12)"),
    "C++": lambda: RuntimeError("std::bad_alloc"),
    "oneDNN": lambda: RuntimeError("could not create a primitive"),
    "python": MemoryError,
}


TOGETHER = {True: lambda x: x.mean(0), "first": lambda x: x[0], "last": lambda x: x[-1]}


class Greedy(nn.Module):
    """Has room for so many samples, from its ``after``-th call on."""

    def __init__(self, room=math.inf, *, after=0, kind="device", together=False, inner=None):
        super().__init__()
        self.inner = models.mlp(3, 4, 2) if inner is None else inner
        self.memory = {"room": room, "after": after, "kind": kind, "calls": 0, "seen": []}
        self.together = together

    def forward(self, x):
        self.memory["calls"] += 1
        if self.memory["calls"] > self.memory["after"]:
            if len(x) > self.memory["room"]:
                raise KINDS[self.memory["kind"]]()
            self.memory["seen"].append(len(x))
        return self.scores(x)

    def scores(self, x):
        return self.inner(x - TOGETHER[self.together](x) if self.together else x)


def data(*sizes):
    rng = torch.Generator().manual_seed(0)
    return [
        (torch.randn(n, 3, generator=rng), torch.randint(2, (n,), generator=rng)) for n in sizes
    ]


def surface(model, sizes=(16, 16, 7), loss="cross_entropy", **options):
    return lx.surface(model, data(*sizes), loss, metrics="accuracy", **{**QUIET, **options})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("room", "chosen"), [(15, 8), (7, 4), (3, 2), (2, 2)])
def test_fault_20_batches_are_halved_until_there_is_room(kind, room, chosen):
    model = Greedy(room, kind=kind)
    before = reference.everything(model)
    message = rf"memory is short: {chosen} samples go through the model at a time"
    with pytest.warns(LandscapexWarning, match=message) as caught:
        found = surface(model)
    said = [w for w in caught if "memory" in str(w.message)]
    assert len(said) == (2 if kind == "oneDNN" else 1)  # that it takes no part any more
    assert reference.changes(before, reference.everything(model)) == []
    truth = surface(Greedy())
    np.testing.assert_allclose(found.loss, truth.loss, rtol=1e-6)
    np.testing.assert_array_equal(found["accuracy"], truth["accuracy"])
    assert model.memory["seen"][-1] == 7 % chosen  # of the last batch
    note = f"memory was short: {chosen} samples went through the model at a time"
    assert note in found.provenance["notes"]
    assert note not in truth.provenance["notes"]


def test_fault_20_memory_that_becomes_short_on_the_way_ends_nothing():
    """Another program took it: the point at hand is computed again, with less."""
    model = Greedy(15, after=13)
    with pytest.warns(LandscapexWarning, match="8 samples go through"):
        found = surface(model)
    np.testing.assert_allclose(found.loss, surface(Greedy()).loss, rtol=1e-6)
    said = [note for note in found.provenance["notes"] if "memory" in note]
    assert said == ["memory was short: 8 samples went through the model at a time"]


def test_fault_20_an_objective_remembers_and_a_journal_too(tmp_path):
    """Neither tries in vain again, and a run that goes on has the bits of one that never ended."""
    out = tmp_path / "s.nc"

    def stop(progress):
        raise KeyboardInterrupt

    with pytest.warns(LandscapexWarning, match="8 samples go through"):
        whole = surface(Greedy(15))
    with pytest.warns(LandscapexWarning), pytest.raises(KeyboardInterrupt):
        surface(Greedy(15), out=out, callback=stop)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert surface(Greedy(), out=out).equals(whole)
    objective = lx.Objective(Greedy(15), data(16), "cross_entropy")
    with pytest.warns(LandscapexWarning):
        first = objective.loss()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert objective.loss() == first


def own_loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def refused(objective, advice, part="batch"):
    """Whether the error is torch's own, with advice, and the model as it was."""
    before = reference.everything(objective.model)
    with pytest.raises(Exception, match="CUDA out of memory") as caught:
        lx.surface(objective, **QUIET)
    assert type(caught.value) is torch.OutOfMemoryError
    said = [note for note in caught.value.__notes__ if "memory is short" in note]
    assert len(said) == 1
    assert advice in said[0]
    assert f"landscapex: in {part} 0 of data" in caught.value.__notes__
    assert reference.changes(before, reference.everything(objective.model)) == []


@pytest.mark.parametrize(
    ("together", "loss"),
    [(True, "cross_entropy"), (False, own_loss)],
    ids=["samples meet", "own loss"],
)
def test_fault_20_batches_that_cannot_be_cut_are_an_error_that_helps(together, loss):
    objective = lx.Objective(Greedy(10, together=together), data(16), loss)
    refused(objective, "with batches of 16 samples. They are not cut")


@pytest.mark.parametrize("together", TOGETHER)
@pytest.mark.parametrize("room", [2, 3])
def test_fault_20_samples_that_meet_are_found_with_little_room(together, room):
    """Neither a first nor a last sample that others are compared with passes for alone."""
    objective = lx.Objective(Greedy(room, together=together), data(16), "cross_entropy")
    refused(objective, "because samples may meet in this model or loss: pass smaller batches.")


def test_fault_20_data_of_two_samples_can_be_cut():
    """Memory was short for a moment, and two can be tried together."""

    class Once(Greedy):
        def forward(self, x):
            if not self.memory["calls"]:
                self.memory["calls"] += 1
                raise MemoryError
            return super().forward(x)

    with pytest.warns(LandscapexWarning, match="1 samples go through"):
        found = surface(Once(), (2,))
    np.testing.assert_allclose(found.loss, surface(Greedy(), (2,)).loss, rtol=1e-6)


def test_fault_20_what_oneDNN_cannot_do_is_no_want_of_memory():
    said = "could not create a primitive descriptor for the matmul primitive."
    assert not memory.is_short(RuntimeError(said))
    assert not memory.is_short(ValueError("could not create a primitive"))


class Poisoned(nn.Module):
    """Has oneDNN fail, once and for all, as it does in a thread where it had no room."""

    def __init__(self, kind="oneDNN"):
        super().__init__()
        self.inner = models.mlp(3, 4, 2)
        self.without = {"kind": kind, "samples": []}

    def forward(self, x):
        if self.without["kind"] and torch._C._get_mkldnn_enabled():
            raise KINDS[self.without["kind"]]()
        self.without["samples"].append(len(x))
        return self.inner(x)


ASKED = {
    "loss": lambda objective: objective.loss(),
    "gradient": lambda objective: objective.gradient(),
    "surface": lambda objective: torch.from_numpy(lx.surface(objective, **QUIET).loss),
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_fault_20_without_room_for_kernels_of_oneDNN_those_of_torch_take_their_place(ask):
    """It would fail for every number of samples, down to one."""
    model = Poisoned()
    objective = lx.Objective(model, data(16, 16), "cross_entropy")
    expected = lx.Objective(Poisoned(None), data(16, 16), "cross_entropy")
    with pytest.warns(LandscapexWarning, match="oneDNN has no room for its kernels") as caught:
        found = ask(objective)
    assert len([w for w in caught if "memory" in str(w.message)]) == 1
    torch.testing.assert_close(found, ask(expected), rtol=1e-5, atol=1e-7)
    assert set(model.without["samples"]) == {16}  # all that there are in a batch
    assert torch._C._get_mkldnn_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = lx.surface(objective, **QUIET)  # it remembers
    note = "memory was short: torch's own kernels took the place of oneDNN's"
    assert note in again.provenance["notes"]


def test_fault_20_oneDNN_is_back_when_the_last_of_several_threads_is_done():
    """torch has one switch for all of them."""
    objectives = [lx.Objective(Poisoned(), data(16, 16), "cross_entropy") for _ in range(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ThreadPoolExecutor(4) as pool:
            found = list(
                pool.map(lambda o: lx.surface(o, points=7, progress=False).loss, objectives)
            )
    assert torch._C._get_mkldnn_enabled()
    for loss in found:
        np.testing.assert_array_equal(loss, found[0])


def test_fault_20_samples_are_tried_without_oneDNN():
    """It may have kernels for whole batches, and make none for the two or three of a trial."""

    class Cached(Poisoned):
        def forward(self, x):
            if len(x) == 16:
                raise MemoryError
            return super().forward(x)

    objective = lx.Objective(Cached(), data(16), "cross_entropy")
    with pytest.warns(LandscapexWarning, match="8 samples go through"):
        found = objective.loss()
    expected = lx.Objective(Poisoned(None), data(16), "cross_entropy").loss()
    assert found == pytest.approx(expected, rel=1e-6)


def test_layouts_are_recorded_as_before_there_was_a_choice_of_oneDNN():
    """A run goes on from an older journal without a word."""
    assert "onednn" not in Layout().recorded()
    assert Layout(**Layout(onednn=False).recorded()) == Layout(onednn=False)


def test_a_note_on_several_data_is_said_once():
    objective = lx.Objective(Poisoned(), data(16), "cross_entropy", datasets={"b": data(8)})
    with pytest.warns(LandscapexWarning, match="oneDNN"):
        notes = lx.surface(objective, **QUIET).provenance["notes"]
    assert len(set(notes)) == len(notes)


def test_fault_20_other_errors_do_not_end_oneDNN():
    with pytest.raises(RuntimeError, match="can't allocate"):
        lx.Objective(Poisoned("processor"), data(16), "cross_entropy").loss()


def test_fault_20_no_room_for_one_sample_is_an_error_that_helps():
    model = Greedy(5)
    objective = lx.Objective(model, data(16), "cross_entropy")
    with pytest.warns(LandscapexWarning, match="4 samples"):
        objective.loss()
    model.memory["room"] = 0
    refused(objective, "memory is short with one sample at a time.", part="piece")


def test_fault_20_only_data_whose_batches_are_cut_have_a_note():
    small = {"small": data(4, 8)}
    objective = lx.Objective(Greedy(15), data(16), "cross_entropy", datasets=small)
    with pytest.warns(LandscapexWarning, match="8 samples go through"):
        found = lx.surface(objective, **QUIET)
    notes = {name: about["notes"] for name, about in found.provenance["data"].items()}
    assert any("8 samples went through" in note for note in notes["data"])
    assert not any("memory" in note for note in notes["small"])


def test_fault_20_an_error_of_a_piece_names_the_piece():
    class Broken(Greedy):
        def forward(self, x):
            scores = super().forward(x)
            if self.memory["calls"] > 20:
                raise ValueError("broken")
            return scores

    with pytest.warns(LandscapexWarning), pytest.raises(ValueError, match="broken") as caught:
        surface(Broken(3), (16,))
    assert any("landscapex: in piece " in note for note in caught.value.__notes__)


def test_batches_that_are_not_of_samples_stay_whole():
    batch = {"x": torch.zeros(4, 2), "edges": torch.zeros(2, 7)}
    (piece,) = memory.in_pieces([batch], 2)
    assert piece is batch


def normalised(room=math.inf):
    def layers():
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))

    return Greedy(room, inner=models.seeded(layers))


@pytest.mark.parametrize(
    ("bn", "why"),
    [
        ("batch", "bn='batch' normalises by whole batches"),
        ("recompute", "bn='recompute' averages over whole batches"),
    ],
)
def test_fault_20_batch_statistics_are_those_of_whole_batches(bn, why):
    objective = lx.Objective(normalised(10), data(16), "cross_entropy", bn=bn)
    refused(
        objective,
        f"with batches of 16 samples. They are not cut into smaller ones, because {why}: ",
    )


@pytest.mark.parametrize("bn", ["eval", "batch", "recompute"])
def test_fault_20_batches_are_cut_where_no_norm_looks_at_them(bn):
    """Running statistics are those of any batch; without norms, `bn` means nothing."""
    model = normalised if bn == "eval" else Greedy
    with pytest.warns(LandscapexWarning, match="8 samples go through"):
        found = lx.Objective(model(10), data(16), "cross_entropy", bn=bn).loss()
    expected = lx.Objective(model(), data(16), "cross_entropy", bn=bn).loss()
    assert found == pytest.approx(expected, rel=1e-6)


class Wide(Greedy):
    """Looks at the first three columns."""

    def forward(self, x):
        return super().forward(x[:, :3])


def test_fault_20_of_several_data_the_ones_that_cannot_be_cut_are_named():
    """Those before them were cut down to single samples, which gave no room."""
    (x, y), (_, z) = data(16, 16)
    mixed = [(x, y), (torch.cat([x, x], 1), z)]
    objective = lx.Objective(Wide(10), data(8), "cross_entropy", datasets={"test": mixed})
    with pytest.raises(torch.OutOfMemoryError) as caught:
        objective.loss()
    where, said = [note for note in caught.value.__notes__ if note.startswith("landscapex: ")]
    assert where == "landscapex: in batch 0 of test"
    assert "with batches of 16 samples" in said
    assert "because not all of `test` are tensors of samples of one shape: pass" in said


# ---------------------------------------------------------------- gradients


class Kept(Greedy):
    """Has room for so many samples where activations are kept, and for any number elsewhere."""

    def forward(self, x):
        if torch.is_grad_enabled():
            return super().forward(x)
        return self.scores(x)


def test_fault_20_gradients_are_summed_over_pieces_for_which_there_is_room():
    sizes = (16, 5)
    model = Kept(7)
    before = reference.everything(model)
    objective = lx.Objective(model, data(*sizes), "cross_entropy", weight_decay=0.1)
    message = "memory is short: gradients are of 4 samples at a time"
    with pytest.warns(LandscapexWarning, match=message) as caught:
        found = objective.gradient()
    assert len(caught) == 1
    assert model.memory["seen"] == [4, 4, 4, 4, 4, 1]
    expected = lx.Objective(Kept(), data(*sizes), "cross_entropy", weight_decay=0.1).gradient()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert reference.changes(before, reference.everything(model)) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(objective.gradient(), found)  # what it has learnt it keeps
        losses = lx.surface(objective, **QUIET)  # which need less
    assert losses.provenance["notes"] == []
    assert losses.provenance["recorded"] == surface(Kept(), sizes).provenance["recorded"]
    assert model.memory["seen"] == 2 * [4, 4, 4, 4, 4, 1]


def test_fault_20_what_an_evaluation_has_learnt_a_gradient_knows():
    objective = lx.Objective(Greedy(7), data(16), "cross_entropy")
    with pytest.warns(LandscapexWarning, match="4 samples"):
        objective.loss()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        objective.gradient()


@pytest.mark.parametrize(
    ("model", "loss", "advice"),
    [
        (Kept(7, together=True), "cross_entropy", "because samples may meet in this model or loss"),
        (Kept(7), own_loss, "because samples may meet in this model or loss"),
        (Kept(0), "cross_entropy", "memory is short with one sample at a time."),
    ],
)
def test_fault_20_a_gradient_without_room_is_an_error_that_helps(model, loss, advice):
    before = reference.everything(model)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory") as caught:
        lx.Objective(model, data(16), loss).gradient()
    (said,) = [note for note in caught.value.__notes__ if "memory is short" in note]
    assert advice in said
    assert reference.changes(before, reference.everything(model)) == []


def test_fault_20_a_failed_evaluation_holds_nothing_while_the_next_one_runs():
    """Its traceback would keep every activation of the larger batch."""
    made, held = [], []

    class Activation:
        pass

    class Holds(Greedy):
        def forward(self, x):
            held.append(sum(activation() is not None for activation in made))
            mine = Activation()
            made.append(weakref.ref(mine))
            return super().forward(x)

    with pytest.warns(LandscapexWarning, match="4 samples"):
        lx.Objective(Holds(5), data(16), "cross_entropy").loss()
    assert len(held) > 5
    assert set(held) == {0}


def test_fault_20_a_device_without_room_gets_no_graphs(monkeypatch):
    """They would hold whole batches, and give the bits of those."""
    monkeypatch.setattr(graphs, "graphs_on", lambda device: RecordedGraph)
    model = Greedy(15)
    objective = lx.Objective(model, data(16), "cross_entropy")
    with pytest.warns(LandscapexWarning, match="8 samples"):
        objective.loss()
    model.memory["room"] = math.inf
    found = lx.surface(objective, points=5, engine="eager", progress=False)
    assert found.provenance["engine"]["why"] == (
        "asked for; not as CUDA graphs: device memory is short"
    )
