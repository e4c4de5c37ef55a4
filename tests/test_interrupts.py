"""Ctrl-C and SIGTERM: stop within two seconds, keep what is done, put the model back."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time

import models
import numpy as np
import pytest
import reference
import torch

import landscapex as lx
from landscapex import interrupts
from landscapex.errors import Terminated
from landscapex.interrupts import Abandon, Interrupts

BATCH = [(torch.linspace(-1, 1, 12).view(4, 3), torch.zeros(4, 1))]
SIGNALS = [signal.SIGINT, signal.SIGTERM]


def mse(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def small(loss=mse, data=BATCH, model=None, **options):
    model = models.mlp(3, 4, 1) if model is None else model
    return lx.surface(model, data, loss, **{"points": (7, 11), "progress": False, **options})


def send(signum):
    os.kill(os.getpid(), signum)


def handlers():
    return [signal.getsignal(s) for s in SIGNALS]


# --- The requests themselves ---------------------------------------------------------------------


@pytest.mark.parametrize("signum", SIGNALS)
def test_the_first_signal_is_a_request(signum, monkeypatch):
    received = []
    monkeypatch.setattr(interrupts, "GRACE", 0.05)
    previous = signal.signal(signal.SIGTERM, lambda *a: received.append(a[0]))
    try:
        before = handlers()
        with Interrupts() as requests:
            requests.armed = True
            requests.poll()
            assert requests.signum is None
            send(signum)
            assert requests.signum == signum
            requests.poll()
            time.sleep(0.06)
            with pytest.raises(Abandon):
                requests.poll()
        assert handlers() == before
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert received == ([signum] if signum == signal.SIGTERM else [])


def test_the_second_ctrl_c_stops_at_once():
    with Interrupts() as requests:
        requests.armed = True
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert requests.signum == signal.SIGINT


def test_before_there_is_anything_to_keep_signals_do_what_they_always_do():
    received = []
    with Interrupts() as requests, pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)
    with Interrupts(), pytest.raises(Terminated, match="before the first point"):
        send(signal.SIGTERM)
    previous = signal.signal(signal.SIGTERM, lambda *a: received.append(a[0]))
    try:
        with Interrupts():
            send(signal.SIGTERM)
            assert received == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert received == [signal.SIGTERM]
    assert requests.signum is None


UNCAUGHT = """
import signal, sys
import torch
import landscapex as lx

def stop(progress):
    signal.raise_signal(signal.SIGTERM)

batch = torch.ones(4, 3), torch.zeros(4, 1)
lx.line(
    torch.nn.Linear(3, 1), batch, "mse_loss", points=30000, out=sys.argv[1], callback=stop,
    confirm=True, progress=False,
)
"""


@pytest.mark.parametrize("filters", ["default", "error"])
def test_a_script_that_sigterm_ends_says_how_to_go_on(tmp_path, filters):
    out = tmp_path / "s.nc"
    done = subprocess.run(
        [sys.executable, f"-W{filters}:stopped by SIGTERM:UserWarning", "-c", UNCAUGHT, out],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 143, done.stderr
    kept = int(lx.open(out).evaluated.sum())
    said = f"stopped by SIGTERM: {kept} of 30000 points are kept beside {out}; the same call goes"
    assert (said in done.stderr) == (filters == "default")


def test_signals_that_the_caller_ignores_stay_ignored():
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts() as requests:
            send(signal.SIGINT)
            assert requests.signum is None
    finally:
        signal.signal(signal.SIGINT, previous)


def test_other_threads_leave_signals_alone():
    before, seen = handlers(), []

    def work():
        seen.append(small().complete)
        with Interrupts() as requests:
            seen.append(handlers() == before)
            requests.poll()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True, True]


# --- Surfaces ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signum", "error"), [(SIGNALS[0], KeyboardInterrupt), (SIGNALS[1], Terminated)]
)
@pytest.mark.parametrize("stored", [False, True])
def test_fault_02_a_stopped_surface_keeps_its_points(signum, error, stored, tmp_path):
    model, told = models.mlp(3, 4, 1), []
    out = tmp_path / "s.nc" if stored else None

    def callback(progress):
        told.append(progress.done)
        if len(told) == 2:
            send(signum)

    before = reference.everything(model)
    with pytest.raises(error) as caught:
        small(model=model, out=out, callback=callback)
    assert reference.changes(before, reference.everything(model)) == []
    assert type(caught.value) is error  # a subclass of KeyboardInterrupt would end a script with 1
    assert not isinstance(caught.value, Exception)
    partial, truth = caught.value.surface, small()
    assert len(told) == 2
    assert partial.evaluated.ravel().tolist() == [k < told[1] for k in range(77)]
    assert np.array_equal(partial.loss[partial.evaluated], truth.loss[partial.evaluated])
    assert f"{told[1]} of 77 points" in str(caught.value)
    if stored:
        assert str(out) in str(caught.value)
        assert lx.open(out).equals(partial)
        assert small(out=out).equals(truth)
    else:
        assert "points are in `.surface`" in str(caught.value)


def test_fault_02_sigterm_is_exit_status_143():
    with pytest.raises(SystemExit) as caught:
        small(callback=lambda progress: send(signal.SIGTERM))
    assert caught.value.code == 143


def test_fault_02_a_signal_within_a_chunk_ends_it_early():
    calls = []

    def loss(m, batch):
        calls.append(1)
        if len(calls) == 2 + 5:
            send(signal.SIGINT)
        return mse(m, batch)

    with pytest.raises(KeyboardInterrupt) as caught:
        small(loss)
    assert caught.value.surface.evaluated.sum() == 5
    assert len(calls) == 2 + 5


def test_fault_02_a_slow_point_is_given_up():
    """A loader of many batches: the point at hand would take 20 s."""
    calls = []

    def loss(m, batch):
        calls.append(1)
        if len(calls) > 400:
            time.sleep(0.1)
        if len(calls) == 420:
            send(signal.SIGINT)
        return mse(m, batch)

    began = time.monotonic()
    objective = lx.Objective(models.mlp(3, 4, 1), BATCH * 200, loss, check=False)
    with pytest.raises(KeyboardInterrupt) as caught:
        lx.line(objective, points=2, progress=False)
    assert time.monotonic() - began < 20 * 0.1 + 2 + 3
    assert caught.value.surface.evaluated.sum() == 1


@pytest.mark.parametrize("where", ["centre", "data"])
def test_fault_02_ctrl_c_before_the_first_point_stops_at_once(where):
    """There is nothing to keep yet."""
    model = models.mlp(3, 4, 1)

    left = [signal.SIGINT]

    def slowly(now):
        if now:
            while left:
                send(left.pop())
            time.sleep(0.05)

    def loss(m, batch):
        slowly(where == "centre")
        return mse(m, batch)

    def data():
        for _ in range(60):
            slowly(where == "data")
            yield BATCH[0]

    before = reference.everything(model)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        small(loss, data(), model)
    assert time.monotonic() - began < 2
    assert reference.changes(before, reference.everything(model)) == []


SCRIPT = """
import sys, time
import torch
import landscapex as lx

torch.set_num_threads(1)
model = torch.nn.Linear(3, 1)
torch.nn.init.constant_(model.weight, 0.5), torch.nn.init.zeros_(model.bias)
x = torch.linspace(-1, 1, 12).view(4, 3)

def loss(m, batch):
    time.sleep(float(sys.argv[1]))
    return m(batch).square().mean()

def callback(progress):
    print(progress.done, flush=True)

before = [p.clone() for p in model.parameters()]
try:
    surface = lx.surface(model, [x], loss, points=(20, 30), out={out!r}, progress=False,
                         callback=callback)
finally:
    print("restored", all(map(torch.equal, before, model.parameters())), flush=True)
print(surface.loss.sum().hex())
"""


def run_script(out, delay):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SCRIPT.format(out=str(out)), str(delay)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_fault_02_a_real_process_stops_in_time_and_goes_on_later(signum, status, tmp_path):
    out = tmp_path / "s.nc"
    process = run_script(out, 0.005)
    first = process.stdout.readline()
    assert 0 < int(first) <= 16, process.stderr.read()
    time.sleep(0.1)
    process.send_signal(signum)
    began = time.monotonic()
    text = "".join(iter(process.stdout.readline, "restored True\n"))
    assert time.monotonic() - began < 2
    _, errors = process.communicate(timeout=30)
    # a shell reports a process that ended by a signal as 128 + signal
    code = process.returncode
    assert (128 - code if code < 0 else code) == status
    partial = lx.open(out)
    acknowledged = int(re.findall(r"^(\d+)$", first + text, re.MULTILINE)[-1])
    assert acknowledged <= partial.evaluated.sum() < 600
    if signum == signal.SIGINT:
        assert "the same call goes on" in errors
    assert [p.name for p in tmp_path.iterdir()] == ["s.nc.journal"]
    second = run_script(out, 0)
    text, errors = second.communicate(timeout=60)
    assert second.returncode == 0, errors
    assert int(text.split()[0]) > partial.evaluated.sum()
    finished = lx.open(out)
    assert finished.complete
    assert np.array_equal(finished.loss[partial.evaluated], partial.loss[partial.evaluated])
