"""Clocks that are set, and processes that are stopped for a while: the same numbers, sane times."""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import sys
import time

import models
import numpy as np
import pytest
import torch
import tqdm.std
from evaluate_cases import BATCH, mse
from torch import nn

import landscapex as lx
from landscapex import interrupts
from landscapex._progress_bar import progress_bar
from landscapex.interrupts import Abandon, Interrupts

YEAR = 3.2e7  # seconds


@pytest.fixture
def jumping(monkeypatch):
    """The clock on the wall, set at random at every look."""
    rng = random.Random(0)

    def now():
        return 1.7e9 + rng.uniform(-YEAR, YEAR)

    monkeypatch.setattr(time, "time", now)
    monkeypatch.setattr(tqdm.std, "time", now)


def test_fault_30_a_clock_that_jumps_changes_neither_results_nor_times(jumping, tmp_path):
    """Nor does it end a run whose time limit is an hour away."""
    told, out = [], tmp_path / "s.nc"
    options = {"points": (7, 11), "progress": True, "time_limit": 3600}
    began = time.monotonic()
    found = lx.surface(
        models.mlp(3, 4, 1), BATCH, mse, out=out, callback=lambda p: told.append(p), **options
    )
    real = time.monotonic() - began
    seconds = [0.0, *[progress.seconds for progress in told], real]
    assert seconds == sorted(seconds)
    assert 0 < found.provenance["seconds"] < real + 0.001
    assert found.complete
    assert found.equals(lx.surface(models.mlp(3, 4, 1), BATCH, mse, points=(7, 11), progress=False))
    assert lx.open(out).equals(found)


def test_fault_30_a_stopped_run_has_its_seconds_of_grace(jumping, monkeypatch):
    """A clock that was set must not give the point at hand up at once, or never."""
    monkeypatch.setattr(interrupts, "GRACE", 0.2)
    with Interrupts() as requests:
        requests.armed = True
        began = time.monotonic()
        os.kill(os.getpid(), signal.SIGINT)

        def poll_for_a_minute():
            while time.monotonic() - began < 60:
                requests.poll()

        with pytest.raises(Abandon):
            poll_for_a_minute()
        assert 0.2 <= time.monotonic() - began < 60


def test_fault_30_the_time_left_is_that_of_a_clock_that_nobody_sets(jumping):
    began, shown = time.monotonic(), io.StringIO()
    with progress_bar(total=10, file=shown, mininterval=0) as bar:
        for _ in range(5):
            time.sleep(0.02)
            bar.update()
        told, real = bar.format_dict, time.monotonic() - began
    assert 0.1 <= told["elapsed"] <= real
    assert 5 / real <= told["rate"] or told["rate"] is None
    assert "5/10 [00:0" in shown.getvalue()
    assert list(progress_bar(range(3), disable=True)) == [0, 1, 2]


SCRIPT = """
import sys
import time
import torch
import landscapex as lx
from landscapex.grids import filling

torch.set_num_threads(1)
filling.BLOCK_SECONDS = 0.0  # point by point
model = torch.nn.Linear(3, 1)
torch.nn.init.constant_(model.weight, 0.5), torch.nn.init.zeros_(model.bias)
x = torch.linspace(-1, 1, 12).view(4, 3)

def loss(m, batch):
    time.sleep(0.01)
    return m(batch).square().mean()

def callback(progress):
    print(progress.done, progress.seconds, flush=True)

lx.surface(model, [x], loss, points=(6, 8), out=sys.argv[1], progress=False, callback=callback)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks at the state in /proc")
def test_fault_30_a_process_that_was_stopped_goes_on_as_if_nothing_had_been(tmp_path):
    """SIGSTOP and SIGCONT, as batch systems and closed laptops have it."""
    began, out = time.monotonic(), tmp_path / "s.nc"
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    first = process.stdout.readline()
    process.send_signal(signal.SIGSTOP)
    while state(process.pid) != "T":
        time.sleep(0.01)
    journal = out.with_name("s.nc.journal")
    before = journal.stat().st_size
    time.sleep(0.7)
    assert journal.stat().st_size == before
    partial = lx.open(out)
    process.send_signal(signal.SIGCONT)
    text, errors = process.communicate()
    assert process.returncode == 0, errors
    told = (first + text).splitlines()
    assert [line.split()[0] for line in told] == [str(k) for k in range(1, 49)]
    seconds = [float(line.split()[1]) for line in told]
    assert seconds == sorted(seconds)
    assert 0.7 < seconds[-1] < time.monotonic() - began
    model, x = nn.Linear(3, 1), torch.linspace(-1, 1, 12).view(4, 3)
    nn.init.constant_(model.weight, 0.5), nn.init.zeros_(model.bias)
    alone = lx.surface(model, [x], lambda m, b: m(b).square().mean(), points=(6, 8), progress=False)
    found, kept = lx.open(out), partial.evaluated
    assert np.array_equal(found.loss, alone.loss)
    assert 0 < kept.sum() < 48
    assert np.array_equal(partial.loss[kept], alone.loss[kept])


def state(pid):
    """One letter, as Linux has it."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]
