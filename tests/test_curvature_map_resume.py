"""Curvature maps that stop, go on, or are cut into shards: the same bits, or a refusal."""

from __future__ import annotations

import math
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import models
import numpy as np
import pytest
import reference
import torch
from curvature_map_cases import finished as finished
from curvature_map_cases import ragged, small
from evaluate_cases import QUIET, UNIT, Point
from torch import nn

import landscapex as lx
from landscapex import interrupts
from landscapex.curvature import maps
from landscapex.curvature.maps import curvature_map
from landscapex.errors import LandscapexWarning, ResumeMismatchError


def bits(result):
    return np.stack([result[c] for c in result.columns]).view(np.uint64)


def test_trap_01_a_point_does_not_depend_on_the_others(finished):
    """Neither by the position of the model nor by the start of Lanczos."""
    part = small(points=(3, 7), span=((0.0, 1.5), (-1.5, 1.5)))
    np.testing.assert_array_equal(bits(part), bits(finished)[:, 2:])


def test_the_same_bits_after_interruptions(finished, tmp_path):
    out, told = tmp_path / "s.nc", []

    def callback(progress):
        told.append(progress.done)
        if len(told) <= 2:
            raise StopIteration

    for _ in range(2):
        with pytest.raises(StopIteration):
            small(out=out, callback=callback)
    assert 0 < told[-1] < 35
    assert 0 < lx.open(out).evaluated.sum() < 35
    resumed = small(out=out)
    assert resumed.equals(finished)
    assert lx.open(out).equals(resumed)
    assert [p.name for p in tmp_path.iterdir()] == ["s.nc"]


def run_until_killed(out):
    """What the process of the next test does; it is killed after its first points."""
    torch.set_num_threads(1)
    small(out=out, callback=lambda progress: print(progress.done, flush=True))


def test_fault_01_a_killed_map_goes_on_to_the_same_bits(finished, tmp_path):
    out = tmp_path / "s.nc"
    code = "import sys; sys.path.insert(0, sys.argv[1])\n"
    code += "import test_curvature_map_resume as t; t.run_until_killed(sys.argv[2])"
    command = [sys.executable, "-W", "ignore", "-c", code, str(Path(__file__).parent), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        acknowledged = int(process.stdout.readline())
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert acknowledged <= lx.open(out).evaluated.sum() < 35
    assert small(out=out).equals(finished)


def test_the_same_bits_from_shards(finished, tmp_path):
    out = tmp_path / "s.nc"
    for i in (2, 0, 1):
        small(out=out, shard=(i, 3))
    assert lx.merge(out).equals(finished)


def holding(out=None, **options):
    """A map of a loss that holds a parameter itself, but only on the right; neither finite at the
    centre nor, in its derivatives, in the first row of points."""
    point = Point()
    held = point.x

    def loss(model, batch):
        x, y = held[0] if float(model.x) > 0.2 else model.x[0], model.y[0]
        return (x + 1) ** 0.5 + y**2 + 0.1 / (x**2 + y**2)

    objective = lx.Objective(point, None, loss)
    with pytest.warns(LandscapexWarning):
        return curvature_map(objective, directions=UNIT, points=(5, 7), out=out, **QUIET, **options)


def test_a_centre_that_is_not_finite_decides_nothing_for_the_other_points(tmp_path):
    """Neither does the first point of a shard: a process that begins elsewhere agrees."""
    whole = holding()
    assert whole.loss[2, 3] == math.inf
    assert np.isnan(whole["smallest"][0]).all()
    assert whole.provenance["curvature"]["start"].startswith("random")
    for i, j in ((1, 0), (1, 6), (3, 2), (4, 5)):
        x, y = whole.coordinates[0][i], whole.coordinates[1][j]
        r = x**2 + y**2
        mixed = 0.8 * x * y / r**3
        low, high = np.linalg.eigvalsh([
            [-0.25 * (x + 1) ** -1.5 + (0.6 * x**2 - 0.2 * y**2) / r**3, mixed],
            [mixed, 2 + (0.6 * y**2 - 0.2 * x**2) / r**3],
        ])  # fmt: skip
        assert whole["smallest"][i, j] == pytest.approx(low, rel=1e-10)
        assert whole["largest"][i, j] == pytest.approx(high, rel=1e-10)
    out = tmp_path / "s.nc"
    for i in (1, 0):
        holding(out=out, shard=(i, 2))
    np.testing.assert_array_equal(bits(lx.merge(out)), bits(whole))


def test_fault_02_a_slow_point_is_given_up_and_computed_later(finished, tmp_path, monkeypatch):
    """Between two products: a point of a large network takes minutes."""
    monkeypatch.setattr(interrupts, "GRACE", 0.05)
    model, out, products = models.mlp(4, 5, 3, act=nn.Tanh).double(), tmp_path / "s.nc", []
    stoppable = maps._stoppable

    def slow(operator, stop):
        made = stoppable(operator, stop)
        product = made._product

        def counted(v):
            products.append(1)
            if len(products) == 200:
                signal.raise_signal(signal.SIGINT)
            if len(products) >= 200:
                time.sleep(0.03)
            return product(v)

        made._product = counted
        return made

    monkeypatch.setattr(maps, "_stoppable", slow)
    before = reference.everything(model)
    with pytest.raises(KeyboardInterrupt) as caught:
        small(model=model, out=out)
    assert 200 < len(products) < 205
    assert reference.changes(before, reference.everything(model)) == []
    partial = caught.value.surface
    assert 0 < partial.evaluated.sum() < 35
    monkeypatch.setattr(maps, "_stoppable", stoppable)
    assert small(out=out).equals(finished)


OTHERS = {
    "a surface": (
        lambda o: lx.surface(
            models.mlp(4, 5, 3, act=nn.Tanh).double(), ragged(), "cross_entropy",
            points=(5, 7), span=1.5, **o, **QUIET,
        ),
        "computes: ends of the spectrum -> loss",
    ),
    "kind": (lambda o: small(**o, kind="ggn"), "curvature: "),
    "params": (lambda o: small(**o, params="0.*"), "curvature: "),
    "tol": (lambda o: small(**o, tol=1e-3), "curvature: "),
    "max_products": (lambda o: small(**o, max_products=17), "curvature: "),
    "seed": (lambda o: small(**o, seed=1), "directions: "),
    "weights": (
        lambda o: small(**o, model=models.mlp(4, 5, 3, act=nn.Tanh, seed=1).double()),
        "parameters: ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("stored", ["journal", "result"])
def test_fault_05_another_run_is_never_mixed_in(other, stored, finished, tmp_path):
    """Nor is a surface of losses ever continued as a map, or the other way round."""
    out = tmp_path / "s.nc"
    if stored == "result":
        finished.save(out)
    else:
        small(out=out, shard=(0, 3))
        out.with_name("s.nc.journal.shard0of3").rename(out.with_name("s.nc.journal"))
    run, message = OTHERS[other]
    with pytest.raises(ResumeMismatchError, match=re.escape(message)):
        run({"out": out})


def test_a_finished_map_is_returned_without_computing_its_points_again(finished, tmp_path):
    out = tmp_path / "s.nc"
    finished.save(out)
    again = small(out=out, callback=lambda progress: pytest.fail("a point was computed"))
    assert again.equals(finished)
