"""Runs that stop, go on or are replaced: the same bits, or a refusal."""

from __future__ import annotations

import itertools
import re

import models
import numpy as np
import pytest
import reference
import torch
from evaluate_cases import BATCH, QUIET, X, interrupted, mse, raised, small
from hypothesis import given, settings
from hypothesis import strategies as st
from storage import begun, make_header
from torch import nn

import landscapex as lx
from landscapex.engine.layout import Layout
from landscapex.errors import OutputError, ResumeMismatchError
from landscapex.grids import filling
from landscapex.grids.earlier import Earlier, read_earlier
from landscapex.grids.options import Options


@settings(deadline=None, max_examples=8)
@given(st.lists(st.integers(1, 2), max_size=2), st.integers(1, 40))
def test_the_same_bits_for_any_chunks_and_interruptions(tmp_path_factory, stops, chunk):
    truth = small()
    out = tmp_path_factory.mktemp("resume") / "s.nc"
    before, filling.CHUNK = filling.CHUNK, chunk
    try:
        total = -(-77 // chunk)
        for stop in stops:
            if total > 2 * sum(stops):
                interrupted(out, stop)
        resumed = small(out=out)
    finally:
        filling.CHUNK = before
    assert raised(resumed) == raised(truth)
    assert resumed.equals(truth)
    assert lx.open(out).equals(truth)
    assert [p.name for p in out.parent.iterdir()] == ["s.nc"]


class Drawn(torch.utils.data.Dataset):
    """Samples from a generator of its own, which nobody puts back."""

    def __init__(self):
        self.draws = np.random.default_rng(0)

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.tensor(self.draws.random(3, np.float32)), torch.zeros(1)


@pytest.mark.parametrize("finished", [True, False], ids=["result", "journal"])
def test_a_refusal_says_that_the_data_are_drawn_at_random(tmp_path, finished):
    data, out = Drawn(), tmp_path / "s.nc"

    def stop(progress):
        if not finished:
            raise RuntimeError

    def run():
        lx.line(models.mlp(3, 4, 1), data, mse, points=3, out=out, progress=False, callback=stop)

    if finished:
        run()
    else:
        with pytest.raises(RuntimeError):
            run()
    why = r"data: \w+\.\.\. -> \w+\.\.\. \(the dataset draws its samples at random: the first draw"
    with pytest.raises(ResumeMismatchError, match=why):
        run()


def other_batch():
    return [(X + 1e-3, torch.zeros(4, 1))]


def other_loss(model, batch):
    return (model(batch[0]) - batch[1]).abs().mean()


def with_buffer(model):
    model.register_buffer("b", torch.zeros(1))
    return model


MORE = {"t": BATCH}

# what another run has that this one has not -> the fields that say so
OTHERS = {
    "weights": (lambda o: lx.surface(models.mlp(3, 4, 1, seed=1), BATCH, mse, **o), "parameters"),
    "architecture": (lambda o: lx.surface(models.mlp(3, 5, 1), BATCH, mse, **o), "model"),
    "activation": (
        lambda o: lx.surface(models.mlp(3, 4, 1, act=nn.Tanh), BATCH, mse, **o),
        "model",
    ),
    "buffers": (lambda o: lx.surface(with_buffer(models.mlp(3, 4, 1)), BATCH, mse, **o), "buffers"),
    "data": (lambda o: lx.surface(models.mlp(3, 4, 1), other_batch(), mse, **o), "data"),
    "loss": (lambda o: lx.surface(models.mlp(3, 4, 1), BATCH, other_loss, **o), "loss"),
    "points": (lambda o: small(**{**o, "points": (7, 12)}), "axis beta"),
    "span": (lambda o: small(**o, span=((-1, 1), (-1, 2))), "axis beta"),
    "seed": (lambda o: small(**o, seed=1), "directions"),
    "normalize": (lambda o: small(**o, normalize="layer"), "directions"),
    "ignore": (lambda o: small(**o, ignore="copy"), "directions"),
    "kind": (
        lambda o: lx.line(models.mlp(3, 4, 1), BATCH, mse, **{**o, "points": 7}),
        "kind",
    ),
    "weight decay": (
        lambda o: lx.surface(lx.Objective(models.mlp(3, 4, 1), BATCH, mse, weight_decay=1), **o),
        "options",
    ),
    "choice": (
        lambda o: lx.surface(lx.Objective(models.mlp(3, 4, 1), BATCH, mse, params="*.weight"), **o),
        "options",
    ),
    "datasets": (
        lambda o: lx.surface(lx.Objective(models.mlp(3, 4, 1), BATCH, mse, datasets=MORE), **o),
        "columns",
    ),
    "center": (lambda o: small(**o, center=torch.ones(21)), "parameters"),
}  # fmt: skip


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("finished", [False, True], ids=["journal", "result"])
def test_fault_05_another_run_is_never_mixed_in(other, finished, tmp_path):
    """Neither with its journal nor with its result; the message names the field."""
    out = tmp_path / "s.nc"
    if finished:
        small(out=out)
    else:
        interrupted(out, 2)
    kept = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    run, field = OTHERS[other]
    with pytest.raises(ResumeMismatchError, match=rf"(\n  |: |; ){field}: .+ -> ") as caught:
        run({"out": out, "points": (7, 11), **QUIET})
    assert isinstance(caught.value, ValueError)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == kept
    assert small(out=out).equals(small())


@pytest.mark.parametrize("other", ["data", "seed", "points"])
def test_without_resume_another_run_is_replaced(other, tmp_path):
    out = tmp_path / "s.nc"
    small(out=out)
    OTHERS[other][0]({"out": out, "points": (7, 11), "resume": False, **QUIET})
    assert not lx.open(out).equals(small())


def test_a_finished_run_is_returned_without_evaluating_its_grid_again(tmp_path):
    out = tmp_path / "s.nc"
    first = small(out=out)
    stamp = out.stat().st_mtime_ns
    again = small(out=out, callback=lambda progress: pytest.fail("evaluated again"))
    assert again.equals(first)
    assert out.stat().st_mtime_ns == stamp


def test_a_journal_opens_while_the_run_goes_on(tmp_path):
    out, seen = tmp_path / "s.nc", []

    def callback(progress):
        partial = lx.open(out)
        seen.append(int(partial.evaluated.sum()))
        assert seen[-1] == progress.done
        assert np.array_equal(partial.loss[partial.evaluated], truth.loss[partial.evaluated])

    truth = small()
    small(out=out, callback=callback)
    assert seen == sorted(set(seen))
    assert seen[-1] == 77


@pytest.mark.parametrize("k", [0, 5, 40])
def test_fault_17_an_error_of_the_loss_says_where_and_keeps_the_journal(tmp_path, k):
    out, model = tmp_path / "s.nc", models.mlp(3, 4, 1)
    calls = itertools.count(-4)  # the centre is evaluated twice, on two batches

    def loss(m, batch):
        if next(calls) == 2 * k + 1:
            raise ZeroDivisionError("mine")
        return mse(m, batch)

    before = reference.everything(model)
    with pytest.raises(ZeroDivisionError, match="mine") as caught:
        lx.surface(model, BATCH + BATCH, loss, points=(7, 11), out=out, **QUIET)
    notes = " ".join(caught.value.__notes__)
    alpha, beta = (-1 + (k // 11) / 3, -1 + (k % 11) / 5)
    found = re.search(r"at alpha=(\S+), beta=(\S+)", notes)
    assert float(found[1]) == pytest.approx(alpha, abs=1e-6)
    assert float(found[2]) == pytest.approx(beta, abs=1e-6)
    assert "in batch 1 of data" in notes
    assert reference.changes(before, reference.everything(model)) == []
    kept = lx.open(out).evaluated.ravel().tolist()
    assert k - 16 < sum(kept) <= k  # a chunk at most is lost
    assert kept == sorted(kept, reverse=True)


def test_a_model_whose_attributes_changed_is_another_run(tmp_path):
    """No hash sees an attribute that forward reads; the loss at the centre does."""

    class Warm(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.temperature = nn.Linear(3, 2), 1.0

        def forward(self, x):
            return self.linear(x) / self.temperature

    model, data, out = Warm(), (torch.randn(6, 3), torch.arange(6) % 2), tmp_path / "s.nc"
    lx.line(model, data, "cross_entropy", points=3, out=out, progress=False)
    model.temperature = 5.0
    with pytest.raises(ResumeMismatchError, match="loss at the centre"):
        lx.line(model, data, "cross_entropy", points=3, out=out, progress=False)


def test_a_run_that_replaces_another_can_be_continued(tmp_path):
    model, data, out = models.mlp(3, 2), (torch.randn(6, 3), torch.arange(6) % 2), tmp_path / "s.nc"
    lx.line(model, data, "cross_entropy", points=5, out=out, progress=False)

    def stop(progress):
        if progress.done >= 16:
            raise KeyboardInterrupt

    again = {"points": 40, "out": out, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        lx.line(model, data, "cross_entropy", resume=False, callback=stop, **again)
    assert lx.open(out).shape == (5,)
    done = []
    found = lx.line(model, data, "cross_entropy", callback=lambda p: done.append(p.done), **again)
    assert found.shape == (40,)
    assert done[0] > 16
    assert [p.name for p in tmp_path.iterdir()] == ["s.nc"]


@pytest.mark.parametrize(
    ("recorded", "taken"),
    [
        (
            {"threads": 3, "engine": "eager", "layout": {"batch": 8, "channels_last": True}},
            Earlier(3, Layout(8, True), "eager"),
        ),
        ({"threads": 1, "engine": "compiled", "layout": None}, Earlier(1, None, "auto")),
        ({"threads": "many"}, Earlier()),
    ],
)
def test_what_a_journal_records_of_its_run_is_taken_over(tmp_path, recorded, taken):
    out = tmp_path / "s.nc"
    begun(out, header=make_header(3, 5, recorded=recorded))
    asked = {**dict.fromkeys(Options.__dataclass_fields__), "out": out}
    assert read_earlier(Options(**{**asked, "resume": True})) == taken
    assert read_earlier(Options(**{**asked, "resume": False})) == Earlier()
    assert read_earlier(Options(**{**asked, "resume": True, "out": None})) == Earlier()


def test_a_file_of_something_else_is_never_replaced(tmp_path):
    precious = tmp_path / "precious.pt"
    precious.write_bytes(b"weights of a week")
    model, data = models.mlp(3, 2), (torch.randn(6, 3), torch.arange(6) % 2)
    with pytest.raises(OutputError, match="must not be replaced"):
        lx.line(model, data, "cross_entropy", points=3, out=precious, resume=False)
    with pytest.raises(OutputError, match="must not be replaced"):
        lx.line(model, data, "cross_entropy", points=3, progress=False).save(precious)
    assert precious.read_bytes() == b"weights of a week"


def test_a_resumed_run_takes_the_layout_of_its_journal(tmp_path, monkeypatch):
    """Batches of other sizes round differently."""
    out = tmp_path / "s.nc"
    with monkeypatch.context() as patched:
        patched.setattr("landscapex.engine.eager.choose_layout", lambda *_, **__: Layout(3))
        interrupted(out, 2)
    resumed = small(out=out).provenance
    assert resumed["recorded"]["layout"]["batch"] == 3
    assert not [note for note in resumed["notes"] if "layout" in note or "batches" in note]
    assert small().provenance["recorded"]["layout"]["batch"] != 3


def test_a_resumed_run_takes_the_threads_of_its_journal(tmp_path):
    """Other threads may round differently, and half of the points are there."""
    model, data = models.mlp(3, 2), (torch.randn(6, 3), torch.arange(6) % 2)
    run = {"points": 40, "out": tmp_path / "s.nc", "progress": False}

    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lx.line(model, data, "cross_entropy", threads=2, callback=stop, **run)
    seen = set()
    assert torch.get_num_threads() == 1
    lx.line(
        model, data, "cross_entropy", callback=lambda _: seen.add(torch.get_num_threads()), **run
    )
    assert seen == {2}
    assert torch.get_num_threads() == 1
