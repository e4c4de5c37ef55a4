"""Processes of torchrun: each computes its part, the last joins them, whoever dies."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluate_cases import raised, small

import landscapex as lx
from landscapex import cli
from landscapex.errors import ArgumentError
from landscapex.grids.ranks import Rank, claim_device, this_rank

VARIABLES = {"RANK": "1", "WORLD_SIZE": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


# --- In this process ------------------------------------------------------------------------------


@pytest.fixture
def as_rank(monkeypatch):
    """`as_rank(1, 3)`: be process 1 of 3."""

    def become(number, size):
        for name, value in zip(VARIABLES, (number, size, number, size), strict=True):
            monkeypatch.setenv(name, str(value))

    return become


def test_the_variables_of_torchrun_tell_who_one_is():
    assert this_rank(VARIABLES) == Rank(1, 3, 1, 2)
    assert this_rank({"RANK": "4", "WORLD_SIZE": "5"}) == Rank(4, 5, 4, 5)
    assert this_rank({"RANK": "0"}) is this_rank({"WORLD_SIZE": "2"}) is this_rank({}) is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"RANK": "3"}, "0 <= RANK < WORLD_SIZE, got 3 and 3"),
        ({"RANK": "-1"}, "0 <= RANK < WORLD_SIZE, got -1 and 3"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE must be a whole number, got 'many'"),
        ({"LOCAL_RANK": ""}, "LOCAL_RANK must be a whole number, got ''"),
    ],
)
def test_variables_that_contradict_each_other_are_refused(changed, message):
    with pytest.raises(ArgumentError, match=re.escape(message)):
        this_rank({**VARIABLES, **changed})


def test_auto_is_the_part_of_this_process_and_all_of_it_without_others(tmp_path, as_rank):
    out, truth = tmp_path / "s.nc", small()
    assert small(shard="auto").equals(truth)
    as_rank(0, 1)
    assert small(shard="auto").equals(truth)
    assert small(out=tmp_path / "one.nc", shard="auto").equals(truth)
    for number in (2, 0, 1):
        as_rank(number, 3)
        part = small(out=out, shard="auto")
        assert part.complete == (number == 1)
    assert raised(lx.open(out)) == raised(truth)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.nc", "s.nc"]


def test_processes_without_a_file_cannot_share_their_points(as_rank):
    as_rank(0, 2)
    with pytest.raises(ArgumentError, match="`out` must be given with shard='auto'"):
        small(shard="auto")
    assert small().complete  # without it, nobody shares anything


def test_the_same_file_from_every_process_is_refused_with_advice(tmp_path, as_rank):
    out = tmp_path / "s.nc"
    as_rank(1, 2)
    notes = []

    def another(progress):
        with pytest.raises(lx.errors.OutputError, match="two runs at once") as caught:
            small(out=out)
        notes.extend(caught.value.__notes__)

    small(out=out, callback=another)
    assert "with shard='auto', every process of torchrun computes its own part" in notes[0]


@pytest.mark.parametrize("number", [0, 1])
def test_one_bar_is_enough(number, as_rank, tmp_path, capsys, monkeypatch):
    seen = []
    bar = lx.grids.filling.progress_bar
    monkeypatch.setattr(
        lx.grids.filling, "progress_bar", lambda **how: seen.append(how["disable"]) or bar(**how)
    )
    as_rank(number, 2)
    small(out=tmp_path / "s.nc", shard="auto", progress=True)
    assert seen == [number > 0]


class Devices:
    """A stand-in for a machine with several GPUs."""

    def __init__(self, monkeypatch, count):
        self.current = 0
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", self.choose)

    def choose(self, device):
        self.current = device.index


@pytest.mark.parametrize(
    ("count", "local", "index"), [(4, 0, 0), (4, 3, 3), (2, 3, 1), (1, 1, None), (0, 1, None)]
)
def test_every_process_has_its_own_gpu(count, local, index, monkeypatch):
    """Tested by a stand-in."""
    devices = Devices(monkeypatch, count)
    device = claim_device(Rank(5, 8, local, 4))
    assert device == (None if index is None else torch.device("cuda", index))
    assert devices.current == (index or 0)


class Moved(torch.nn.Module):
    """A stand-in for a model on a GPU."""

    def __init__(self, kind):
        super().__init__()
        self.place, self.moves = torch.device(kind, 0), []

    def parameters(self, recurse=True):
        yield self

    @property
    def device(self):
        return self.place

    def to(self, device):
        self.moves.append(device)
        return self


@pytest.mark.parametrize(("kind", "moves"), [("cuda", [torch.device("cuda", 1)]), ("cpu", [])])
def test_a_model_on_a_gpu_goes_to_the_one_of_its_process(kind, moves, as_rank, monkeypatch):
    """Also if its function names another; a model on the CPU stays there. By a stand-in."""
    devices, model, at_call = Devices(monkeypatch, 2), Moved(kind), []
    monkeypatch.setattr(cli, "_call", lambda _: at_call.append(devices.current) or (model, 1, 2))
    as_rank(1, 2)
    assert cli._call_on_own_device("train:build") == (model, 1, 2)
    assert model.moves == moves
    assert at_call == [1]  # "cuda" meant the right one
    monkeypatch.delenv("RANK")
    assert cli._call_on_own_device("train:build") == (model, 1, 2)
    assert model.moves == moves


# --- Real processes ------------------------------------------------------------------------------

TRAIN = """
import os
import time

import torch

torch.set_num_threads(1)


def build():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    inputs = torch.randn(32, 4)

    def loss(model, batch):
        if os.path.exists("slow"):
            time.sleep(0.5)  # one process must not be done before the other begins
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

    return model, [(inputs, inputs[:, :3].argmax(1))], loss
"""

# Everything that is computed on a grid, as a part of a script that torchrun started, or not.
SCRIPT = """
import sys

import landscapex as lx
from train import build

model, data, loss = build()
options = {"shard": "auto", "progress": False}
lx.line(model, data, loss, points=40, out="line.nc", **options)
lx.surface(model, data, loss, points=(7, 11), out="surface.nc", **options)
lx.volume(model, data, loss, points=4, out="volume.nc", **options)
lx.curvature_map(model, data, loss, points=5, out="map.nc", **options)
other, _, _ = build()
for p in other.parameters():
    p.data.mul_(0.5)
lx.interpolate(model, other, data, loss, points=40, out="between.nc", **options)
"""
RESULTS = ("line", "surface", "volume", "map", "between")
COMMAND = ["surface", "train:build", "--points", "17x17", "--out", "s.nc"]


PATIENCE = 240  # seconds, on a machine that has other things to do

started = []


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "train", raising=False)
    Path("train.py").write_text(TRAIN)
    Path("script.py").write_text(SCRIPT)
    yield tmp_path
    while started:  # if the test failed
        process = started.pop()
        if process.poll() is None:
            process.terminate()
            process.wait(PATIENCE)


def start(*command):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([os.getcwd(), environment.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", *command],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    started.append(process)
    return process


def torchrun(*command, ranks=2, options=()):
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return start(*launcher, *options, *command)


def finish(process, status=0):
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == status, err
    return out, err


def wait_for(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition()


def counts():
    """How many points each journal has."""
    journals = [p for p in Path().glob("s.nc.journal*") if p.suffix != ".lock"]
    return {p.name: len(p.read_bytes().splitlines()) - 1 for p in journals}


def begun(n):
    return len(counts()) >= n and all(counts().values())


def children(process):
    """The processes that torchrun started, by rank."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            variables = path.read_bytes().decode(errors="replace").split("\0")
            parent = int(path.with_name("stat").read_text().rpartition(")")[2].split()[1])
            named = dict(v.split("=", 1) for v in variables if "=" in v)
            if parent == process.pid and "RANK" in named:
                found[int(named["RANK"])] = int(path.parent.name)
    return found


@pytest.mark.timeout(3 * PATIENCE)
def test_a_script_under_torchrun_gives_the_bits_of_one_process(folder):
    """Lines, surfaces, volumes, curvature maps and interpolations."""
    finish(torchrun("script.py"))
    names = sorted(p.name for p in folder.glob("*.nc*"))
    assert names == sorted(f"{name}.nc" for name in RESULTS)
    split = {name: lx.open(f"{name}.nc") for name in RESULTS}
    for name in RESULTS:
        Path(f"{name}.nc").unlink()
    finish(start("script.py"))
    for name, result in split.items():
        whole = lx.open(f"{name}.nc")
        assert result.complete
        assert whole.columns == result.columns
        for column in whole.columns:
            bits = [r[column].view(np.uint64).tolist() for r in (whole, result)]
            assert bits[0] == bits[1], (name, column)


@pytest.mark.timeout(3 * PATIENCE)
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_fault_02_a_signal_to_torchrun_leaves_journals_that_others_go_on_with(folder, signum):
    Path("slow").touch()
    process = torchrun("-m", "landscapex", *COMMAND)
    wait_for(lambda: begun(2))
    partial = lx.open("s.nc")  # while it goes on
    assert 0 < partial.evaluated.sum() < 289
    process.send_signal(signum)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert "are kept beside s.nc" in err
    assert "torchrun --nproc-per-node 2 -m landscapex surface train:build" in err
    assert sorted(p.name for p in folder.glob("s.nc*")) == [
        "s.nc.journal.shard0of2", "s.nc.journal.shard1of2",
    ]  # fmt: skip
    stopped = lx.open("s.nc")
    assert (stopped.evaluated | ~partial.evaluated).all()
    Path("slow").unlink()
    ranks = 3 if signum == signal.SIGTERM else 1
    finish(torchrun("-m", "landscapex", *COMMAND, ranks=ranks))
    check_whole(stopped)


def check_whole(partial):
    """The result is that of one process, and holds what was there before."""
    assert sorted(p.name for p in Path().glob("s.nc*")) == ["s.nc"]
    result = lx.open("s.nc")
    assert np.array_equal(result.loss[partial.evaluated], partial.loss[partial.evaluated])
    whole = lx.surface(*importlib.import_module("train").build(), points=17, progress=False)
    assert raised(result) == raised(whole)


@pytest.mark.timeout(3 * PATIENCE)
def test_fault_22_points_of_a_rank_that_was_killed_are_taken_up_by_the_next_run(folder):
    Path("slow").touch()
    process = torchrun("-m", "landscapex", *COMMAND)
    wait_for(lambda: begun(2))
    os.kill(children(process)[1], signal.SIGKILL)
    process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    partial = lx.open("s.nc")
    assert 0 < partial.evaluated.sum() < 289
    with pytest.warns(lx.errors.LandscapexWarning, match=r"of 145 of part 0/2; .* of part 1/2"):
        lx.merge("s.nc")
    Path("slow").unlink()
    finish(start("-m", "landscapex", *COMMAND))
    check_whole(partial)


@pytest.mark.timeout(3 * PATIENCE)
def test_a_time_limit_under_torchrun_ends_all_processes_in_peace(folder):
    """Status 0: of any other, torchrun makes an error, and may start everything again."""
    Path("slow").touch()
    out, err = finish(torchrun("-m", "landscapex", *COMMAND, "--time-limit", "5"))
    assert err.count("Stopped at the time limit") == 2
    assert "Written" not in out
    assert sorted(counts()) == ["s.nc.journal.shard0of2", "s.nc.journal.shard1of2"]
