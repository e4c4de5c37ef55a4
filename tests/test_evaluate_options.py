"""What a run of a grid is asked, refuses, and says about itself."""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import sys

import models
import numpy as np
import pytest
import reference
import torch
from evaluate_cases import BATCH, QUIET, X, interrupted, mse, small
from torch import nn

import landscapex as lx
from landscapex import _lib, axes
from landscapex._progress_bar import progress_bar
from landscapex.curvature import lanczos
from landscapex.errors import (
    ArgumentError,
    ArgumentTypeError,
    DirectionError,
    GridError,
    LandscapexWarning,
    ParameterMismatchError,
)
from landscapex.grids import filling


def test_what_a_callback_is_told():
    told = []
    surface = small(callback=told.append)
    assert [p.done for p in told] == np.cumsum([len(p.values) for p in told]).tolist()
    assert told[-1].done == 77
    assert {p.total for p in told} == {77}
    assert {p.columns for p in told} == {("loss",)}
    seconds = [p.seconds for p in told]
    assert seconds == sorted(seconds)
    points = np.concatenate([p.coordinates for p in told])
    alpha, beta = surface.coordinates
    np.testing.assert_array_equal(points, [(a, b) for a in alpha for b in beta])
    np.testing.assert_array_equal(
        np.concatenate([p.values for p in told])[:, 0], surface.loss.ravel()
    )


def test_the_provenance_says_how_the_numbers_were_made():
    p = small(seed=4).provenance
    assert p["seed"] == 4
    assert p["center"]["loss"] == lx.Objective(models.mlp(3, 4, 1), BATCH, mse).loss()
    assert p["model"]["entries"] == 21
    assert p["data"]["data"]["samples"] == 4
    assert p["engine"].keys() == {"name", "why"}
    assert p["engine"]["name"] == "eager"
    assert p["seconds"] == round(p["seconds"], 3)
    assert [d["label"] for d in p["directions"]] == ["random direction 1", "random direction 2"]
    assert p["versions"]["torch"] == torch.__version__
    assert {"model", "parameters", "buffers", "data", "loss", "options"} <= set(p["fingerprint"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", p["created"])
    assert p["recorded"] == {
        "torch": torch.__version__,
        "threads": 1,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "native": _lib.native,
        "engine": "eager",
        "layout": p["recorded"]["layout"],
        "batches": {"data": [4]},
    }
    json.dumps(p)


@pytest.mark.usefixtures("generators_untouched")
def test_threads_are_set_for_the_run_only():
    seen = []
    before = torch.get_num_threads()
    small(threads=2, callback=lambda p: seen.append(torch.get_num_threads()), points=2)
    assert set(seen) == {2}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("progress", [True, False])
def test_a_progress_bar_on_request(capsys, progress, monkeypatch):
    small(progress=progress)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert progress or captured.err == ""


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"engine": "fast"},
            ArgumentError,
            "`engine` must be 'auto', 'eager' or 'compiled', got 'fast'.",
        ),
        ({"out": 3}, ArgumentTypeError, "`out` must be a path, got int."),
        ({"callback": 3}, ArgumentTypeError, "`callback` must be callable, got 3"),
        ({"threads": 0}, ArgumentError, "`threads` must be a whole number of at least 1, got 0."),
        ({"shard": "2/2"}, ArgumentError, "`shard` i/n must have 0 <= i < n"),
        ({"shard": "x"}, ArgumentError, "`shard` must be 'i/n', (i, n) or 'auto', got 'x'."),
        ({"directions": "hessian!"}, ArgumentError, "`directions` must be 'random' or 'hessian', "),
        ({"directions": [{}]}, DirectionError, "a surface needs 2 direction(s), got 1."),
        ({"directions": [{}, {}]}, DirectionError, "must not be zero everywhere, got length 0."),
        ({"directions": torch.ones(2, 21)}, DirectionError, "must not be parallel (|cosine| <="),
        ({"directions": [{"nope": X}] * 2}, ParameterMismatchError, "nope: no such parameter"),
        ({"normalize": "x"}, ArgumentError, "`normalize` must be 'filter', 'layer', 'model', 'wei"),
        ({"seed": 1.5}, ArgumentTypeError, "`seed` must be a whole number, got 1.5."),
        ({"center": torch.ones(3)}, ParameterMismatchError, "`center` must have shape (21,), got"),
        ({"points": 1}, GridError, "`points` must be at least 2, got 1."),
        ({"points": (3, 3, 3)}, GridError, "`points` must have one number per direction (2), got"),
        ({"span": (1, 0)}, GridError, "`span` must increase from lo to hi, got (1.0, 0.0)."),
        ({"span": math.nan}, GridError, "`span` must be finite, got (nan, nan)."),
    ],
)  # fmt: skip
def test_fault_12_fault_13_bad_arguments_are_refused(options, error, message, tmp_path):
    model = models.mlp(3, 4, 1)
    before = reference.everything(model)
    with pytest.raises(error, match=re.escape(message)):
        lx.surface(model, BATCH, mse, **{"out": tmp_path / "s.nc", **QUIET, **options})
    assert reference.changes(before, reference.everything(model)) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("progress", [True, False])
def test_the_progress_bar_counts_the_points_of_the_whole_run(tmp_path, monkeypatch, progress):
    bars = []

    class Bar(contextlib.nullcontext):
        def __init__(self, **options):
            super().__init__()
            self.options, self.done = options, options["initial"]
            bars.append(self)

        def update(self, count):
            self.done += count

    monkeypatch.setattr(filling, "progress_bar", Bar)
    first = interrupted(tmp_path / "s.nc", 2)
    small(out=tmp_path / "s.nc", progress=progress)
    assert [(b.options["initial"], b.done) for b in bars] == [(0, first), (first, 77)]
    told = bars[1].options
    assert (told["total"], told["unit"], told["desc"]) == (77, "point", "surface")
    assert told["disable"] is not progress


@pytest.mark.parametrize("watched", [True, False, None])
def test_lines_of_a_log_are_fewer_than_those_that_somebody_watches(monkeypatch, watched):
    told, stderr = [], None if watched is None else io.StringIO()
    if stderr is not None:
        stderr.isatty = lambda: watched

    def bar(**options):
        made = progress_bar(**options)
        told.append((made.disable, getattr(made, "mininterval", None)))
        return made

    monkeypatch.setattr(filling, "progress_bar", bar)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", stderr)
        small(points=3, progress=True)
    # without a stream there is nowhere to write to
    assert told == [{True: (False, 0.1), False: (False, 10), None: (True, None)}[watched]]


@pytest.mark.parametrize("progress", [True, False])
def test_the_search_for_eigenvectors_has_a_bar_too(monkeypatch, progress):
    hidden = []

    def bar(**options):
        hidden.append(options["disable"])
        return progress_bar(**{**options, "disable": True})

    monkeypatch.setattr(lanczos, "progress_bar", bar)
    small(directions="hessian", points=2, progress=progress)
    assert hidden == [not progress]


@pytest.mark.parametrize(("run", "points"), [(lx.line, 1_000_001), (lx.volume, 101)])
def test_fault_12_large_lines_and_volumes_must_be_confirmed(run, points):
    with pytest.raises(GridError, match="must be confirmed"):
        run(models.mlp(3, 4, 1), BATCH, mse, points=points, **QUIET)


def test_fault_12_more_than_a_million_points_must_be_confirmed():
    with pytest.raises(GridError, match=r"of 1,002,001 points .* hours and \d+ MB; pass confirm"):
        small(points=1001)
    calls = []

    def callback(progress):
        calls.append(progress.total)
        raise StopIteration

    with pytest.raises(StopIteration):
        small(points=1001, confirm=True, callback=callback)
    assert calls == [1_002_001]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None,), ArgumentTypeError, "`data` must be given with a module, got None."),
        (
            (BATCH, mse),
            ArgumentError,
            "with an Objective, data, loss must be given to the Objective",
        ),
    ],
)
def test_a_module_comes_with_data_and_an_objective_without(arguments, error, message):
    model = models.mlp(3, 4, 1)
    if len(arguments) > 1:
        model = lx.Objective(model, BATCH, mse)
    with pytest.raises(error, match=re.escape(message)):
        lx.surface(model, *arguments, **QUIET)


@pytest.mark.parametrize(
    "build",
    [lambda: nn.LazyLinear(2), lambda: nn.Linear(3, 1, device="meta")],
    ids=["lazy", "meta"],
)
def test_fault_24_models_that_cannot_move_are_refused_by_surface(build):
    with pytest.raises(ParameterMismatchError, match="weight"):
        lx.surface(build(), BATCH, mse, **QUIET)


def test_what_a_line_between_models_leaves_behind_is_said():
    torch.manual_seed(0)
    a, b = (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)) for _ in range(2))
    b(torch.randn(50, 3))
    a.eval(), b.eval()
    with pytest.warns(LandscapexWarning, match=r"differs in 2 tensors .*1\.running_mean"):
        directions = axes.between(a, b)
    data = torch.randn(6, 3), torch.arange(6) % 2
    line = lx.line(a, data, "cross_entropy", directions=directions, points=3, progress=False)
    assert any("running_mean" in note for note in line.provenance["notes"])
