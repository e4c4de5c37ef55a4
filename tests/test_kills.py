"""Surfaces killed at random moments: nothing that was acknowledged is lost, no number is wrong."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import models
import pytest
import torch

import landscapex as lx
from landscapex.errors import CorruptFileError, LandscapexWarning

POINTS = (20, 24)


def surface(out=None, callback=None):
    """Of a network so small that the time goes into keeping the points."""
    model = models.mlp(3, 4, 1)
    batch = torch.linspace(-1, 1, 12).view(4, 3), torch.zeros(4, 1)
    return lx.surface(
        model, [batch], "mse_loss", points=POINTS, out=out, callback=callback, progress=False
    )


@dataclass
class Report:
    """What became of the runs that were killed."""

    kills: int = 0
    finished: int = 0  # ended before the signal came
    unreadable: int = 0
    lost: int = 0  # acknowledged points that are not there
    wrong: int = 0  # points whose value differs from that of the uninterrupted run
    different: int = 0  # resumed runs that are not bitwise the uninterrupted one
    leftovers: list[str] = field(default_factory=list)  # files beside the finished result
    partial: int = 0  # runs of which some points, but not all, were kept


def survive(count: int, folder: Path, seed: int = 0) -> Report:
    """Kill ``count`` runs at uniformly random moments, look at what is there, and go on.

    Runs that ended before the signal came are looked at too, but are not among the ``count``.
    """
    truth, report, rng = surface(), Report(), random.Random(seed)
    with Zygote() as zygote:
        whole = sorted(zygote.run(folder / "a.nc", None)["seconds"] for _ in range(5))[2]
        for k in range(5 * count):
            if report.kills == count:
                break
            out = folder / f"{k}" / "s.nc"
            out.parent.mkdir()
            told = zygote.run(out, rng.uniform(0, whole))
            report.kills += told["killed"]
            report.finished += not told["killed"]
            examine(out, told["acknowledged"], truth, report)
    return report


def examine(out, acknowledged, truth, report):
    try:
        found = lx.open(out)
    except CorruptFileError as error:
        nothing = not any(p.name.startswith("s.nc.journal") for p in out.parent.glob("*l"))
        report.unreadable += not (nothing and "does not exist" in str(error))
        report.lost += acknowledged
    else:
        done = found.evaluated.ravel()
        report.lost += int((~done[:acknowledged]).sum())
        report.wrong += int((found.loss.ravel()[done] != truth.loss.ravel()[done]).sum())
        report.partial += bool(0 < done.sum() < done.size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LandscapexWarning)  # a torn last line is cut
        resumed = surface(out)
    report.different += not resumed.equals(truth)  # as read from the file
    names = [p.name for p in out.parent.iterdir() if p.name != "s.nc"]
    # a file that was being written when the signal came is never mistaken for anything
    report.leftovers += [name for name in names if not name.endswith(".tmp")]


class Zygote:
    """A process that has imported everything once, and forks a child for each run."""

    def __enter__(self):
        here = Path(__file__).parent
        code = f"import sys; sys.path.insert(0, {str(here)!r}); import test_kills as t; t.zygote()"
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def run(self, out, delay):
        """One run; it is killed after ``delay`` seconds, if that is not None."""
        self.process.stdin.write(json.dumps([str(out), delay]) + "\n")
        self.process.stdin.flush()
        told = json.loads(self.process.stdout.readline())
        if delay is None:
            out.unlink()
        return told

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.stdout.close()
        assert self.process.wait(30) == 0


def zygote():
    """Serve `Zygote.run` until the input ends."""
    torch.set_num_threads(1)
    surface()
    for request in sys.stdin:
        out, delay = json.loads(request)
        reader, writer = os.pipe()
        began = time.monotonic()
        pid = os.fork()
        if pid == 0:
            child(Path(out), writer)
        os.close(writer)
        if delay is not None:
            time.sleep(delay)
            os.kill(pid, signal.SIGKILL)
        with os.fdopen(reader) as told:
            lines = told.read().splitlines()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status in (0, -signal.SIGKILL)
        answer = {
            "acknowledged": max(map(int, lines), default=0),
            "killed": status != 0,
            "seconds": time.monotonic() - began,
        }
        print(json.dumps(answer), flush=True)


def child(out, writer):
    code = 1
    try:
        surface(out, lambda progress: os.write(writer, b"%d\n" % progress.done))
        code = 0
    finally:
        os._exit(code)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.timeout(600)
def test_fault_01_killed_surfaces_lose_nothing_and_go_on_to_the_same_bits(tmp_path):
    count = 100
    report = survive(count, tmp_path)
    assert report.unreadable == report.lost == report.wrong == report.different == 0, report
    assert report.leftovers == [], report
    assert report.kills == count, report
    assert report.partial > 0.1 * count, report  # otherwise the kills came too early or too late
