"""One writer per journal."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from storage import (
    HEADER,
    VALUES,
    dead_pid,
    fill,
    fork,
    lock_of,
    unprivileged,
    wait,
)

from landscapex.errors import (
    OutputError,
)
from landscapex.storage import lock
from landscapex.storage.store import Journal


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "s.nc"


# Fault 6


def test_fault_06_a_second_writer_fails_at_once(out):
    with Journal.open(out, HEADER) as j:
        began = time.monotonic()
        with pytest.raises(OutputError, match="two runs at once: this very process") as caught:
            Journal.open(out, HEADER)
        assert caught.value.errno == errno.EBUSY
        read, write = os.pipe()

        def second() -> None:
            try:
                Journal.open(out, HEADER)
            except OutputError as error:
                os.write(write, str(error).encode())

        assert wait(fork(second)) == 0
        os.close(write)
        with os.fdopen(read) as pipe:
            message = pipe.read()
        assert f"process {os.getpid()} on {socket.gethostname()}" in message
        assert str(j.path) + ".lock" in message
        assert time.monotonic() - began < 2
        fill(j, VALUES)
    assert sorted(os.listdir(out.parent)) == ["s.nc.journal"]
    Journal.open(out, HEADER).close()


def test_fault_06_the_lock_of_a_dead_process_is_stale(out):
    lock_of(out, pid=dead_pid())
    with Journal.open(out, HEADER) as j:
        fill(j, VALUES)
    assert os.listdir(out.parent) == ["s.nc.journal"]


def test_fault_06_the_lock_of_a_killed_writer_is_stale(out):
    ready, go = os.pipe()

    def work() -> None:
        Journal.open(out, HEADER).append(0, VALUES[:4])
        os.write(go, b"!")
        time.sleep(60)

    pid = fork(work)
    assert os.read(ready, 1) == b"!"
    with pytest.raises(OutputError, match=f"process {pid} on"):
        Journal.open(out, HEADER)
    os.kill(pid, 9)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # a zombie until its parent asks for it
    with Journal.open(out, HEADER) as j:
        assert j.done.sum() == 4
    wait(pid)


def test_fault_06_a_process_number_that_is_used_again_is_not_the_old_process(out):
    lock_of(out, start=lock.process_start(os.getpid()))
    with pytest.raises(OutputError, match="this very process"):
        Journal.open(out, HEADER)
    lock_of(out, start="1")
    Journal.open(out, HEADER).close()


@pytest.mark.parametrize(
    "changed", [{"host": "elsewhere", "pid": 2**22 + 1}, {"start": None}, {"start": ""}]
)
def test_fault_06_a_lock_that_cannot_be_judged_is_respected(out, changed):
    path = lock_of(out, **changed)
    before = path.read_bytes()
    with pytest.raises(OutputError, match=f"if that run is gone, delete {path}"):
        Journal.open(out, HEADER)
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["", '{"pid": 1', "[]", '{"pid": "x"}'])
def test_fault_06_a_lock_that_nobody_finished_writing_is_stale(out, monkeypatch, text):
    monkeypatch.setattr(lock, "_PATIENCE", 0.1)
    out.with_name("s.nc.journal.lock").write_text(text)
    Journal.open(out, HEADER).close()


def test_fault_06_who_writes_a_lock_at_this_moment_has_two_seconds(out, monkeypatch):
    path, slept = out.with_name("s.nc.journal.lock"), []
    path.touch()
    monkeypatch.setattr(lock, "time", SimpleNamespace(sleep=slept.append))
    lock.check_free(path, out)
    assert not path.exists()
    assert sum(slept) == pytest.approx(2)
    assert max(slept) < 0.1  # and is not kept waiting when it has written


def test_fault_06_of_many_that_find_a_stale_lock_one_takes_it(out):
    for _ in range(5):
        lock_of(out, pid=dead_pid())
        ready, go = os.pipe()
        hold, done = os.pipe()

        def work(go=go, hold=hold, done=done) -> None:
            os.close(done)
            try:
                with Journal.open(out, HEADER):
                    os.write(go, b"!")
                    os.read(hold, 1)  # until the parent closes its end
            except OutputError:
                os.write(go, b".")
                raise

        pids = [fork(work) for _ in range(6)]
        os.close(go)
        os.close(hold)
        said = b""
        while len(said) < len(pids) and (more := os.read(ready, 1)):  # nobody comes too late
            said += more
        os.close(done)
        statuses = [wait(pid) for pid in pids]
        os.close(ready)
        assert sorted(said) == sorted(b"!.....")
        assert sorted(statuses) == [0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("looks", [0, 2])
def test_fault_06_a_lock_that_somebody_was_faster_to_take_over_is_respected(
    out, monkeypatch, looks
):
    """Who finds a stale lock waits while another looks at it."""
    path, left = lock_of(out, pid=dead_pid()), [None] * looks
    before = path.read_bytes()

    def somebody_is_faster(descriptor: int) -> bool:
        if left:
            left.pop()
            assert path.read_bytes() == before
            return False
        monkeypatch.undo()
        path.unlink()
        lock_of(out, host="elsewhere")
        return True

    # it is stopped for ten seconds whenever it looks at the clock, and has not waited for that
    clock = itertools.count(step=10.0)
    stopped = SimpleNamespace(**{**vars(time), "monotonic": lambda: next(clock)})
    monkeypatch.setattr(lock, "time", stopped)
    monkeypatch.setattr(lock, "_lock_others_out", somebody_is_faster)
    with pytest.raises(OutputError, match="on elsewhere has been writing it"):
        Journal.open(out, HEADER)
    assert json.loads(path.read_text())["host"] == "elsewhere"


def test_fault_06_a_lock_that_is_taken_for_abandoned_while_it_is_made_is_made_again(
    out, monkeypatch
):
    """Its process was stopped before it had written anything into the file, for too long."""
    path, write, made = out.with_name("s.nc.journal.lock"), lock.write_all, []

    def somebody_removes_the_first(descriptor: int, data: bytes) -> None:
        write(descriptor, data)
        made.append(os.fstat(descriptor).st_nlink)
        if len(made) == 1:
            path.unlink()

    with monkeypatch.context() as patch:
        patch.setattr(lock, "write_all", somebody_removes_the_first)
        j = Journal.open(out, HEADER)
    with j:
        assert made == [1, 1]
        assert json.loads(path.read_text())["pid"] == os.getpid()
        with pytest.raises(OutputError, match="two runs at once: this very process"):
            Journal.open(out, HEADER)
    assert not path.exists()


def test_fault_06_a_stale_lock_that_must_not_be_removed_is_respected():
    """The folder of somebody else: who may delete there is told what to delete."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to other users
        os.chmod(folder, 0o755)
        path = lock_of(Path(folder, "s.nc"), pid=dead_pid())
        path.chmod(0o666)
        os.chmod(folder, 0o555)
        with unprivileged(), pytest.raises(OutputError, match=f"delete {path}") as caught:
            lock.check_free(path, Path(folder, "s.nc"))
        os.chmod(folder, 0o755)
        assert caught.value.errno == errno.EBUSY
        lock.check_free(path, Path(folder, "s.nc"))
        assert not path.exists()


def test_fault_06_a_lock_says_which_machine_and_container_it_is_of(out, monkeypatch):
    """Where the system does not tell, there is nothing to compare."""
    said = []
    for known in True, False:
        with monkeypatch.context() as patch:
            if not known:
                patch.setattr(lock.os, "readlink", missing_file)
                patch.setattr(Path, "read_text", missing_file)
                patch.setattr(lock, "_stat_of_ps", lambda pid: ("S", "noon"))
            with Journal.open(out, HEADER):
                said.append(json.loads(out.with_name("s.nc.journal.lock").read_bytes()))
            # of another machine or container, if one knew: its process has ended
            for stranger in {"boot": "another"}, {"space": "pid:[1]"}:
                lock_of(out, pid=dead_pid(), **stranger)
                Journal.open(out, HEADER).close()
    if sys.platform == "linux":
        assert said[0]["boot"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        assert said[0]["space"] == os.readlink("/proc/self/ns/pid")
    assert (said[1]["boot"], said[1]["space"], said[1]["start"]) == ("", "", "noon")


def missing_file(*_: object) -> None:
    raise FileNotFoundError(errno.ENOENT, "No such file or directory")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell their starts")
def test_fault_06_a_lock_of_the_time_before_the_last_start_is_stale(out):
    """Also if a process of now has the number and the start, which count from the start."""
    mine = lock.process_start(os.getpid())
    lock_of(out, start=mine, boot="another")
    Journal.open(out, HEADER).close()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    lock_of(out, start=mine, boot=boot)
    with pytest.raises(OutputError, match="two runs at once: this very process"):
        Journal.open(out, HEADER)


@pytest.mark.parametrize("somebody", [True, False])
def test_an_advisory_lock_is_had_by_one_and_tells_if_there_are_none(
    tmp_path, monkeypatch, somebody
):
    with open(tmp_path / "a", "w") as mine, open(tmp_path / "a") as theirs:
        if somebody:
            fcntl.flock(theirs, fcntl.LOCK_EX)
        assert lock._lock_others_out(mine.fileno()) is not somebody
        if not somebody:
            assert lock._lock_others_out(theirs.fileno()) is False

        def missing(descriptor: int, how: int) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(lock.fcntl, "flock", missing)
        assert lock._lock_others_out(mine.fileno()) is None


def test_fault_06_without_advisory_locks_it_works_all_the_same(out, monkeypatch):
    def missing(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", missing)
    lock_of(out, pid=dead_pid())
    with Journal.open(out, HEADER), pytest.raises(OutputError, match="two runs at once"):
        Journal.open(out, HEADER)
    lock_of(out, boot="another")  # the machine was started anew
    Journal.open(out, HEADER).close()
    lock_of(out, pid=dead_pid(), space="pid:[1]")  # a container whose processes nobody sees here
    with pytest.raises(OutputError, match="two runs at once"):
        Journal.open(out, HEADER)


@pytest.mark.skipif(sys.platform != "linux", reason="needs namespaces of processes")
@pytest.mark.parametrize("unknown", ["_process_space", "_boot"])
def test_fault_06_containers_with_one_name_see_each_others_locks(out, monkeypatch, unknown):
    """Their numbers of processes mean nothing to each other; the advisory lock of the file does."""
    monkeypatch.setattr(lock, "_PATIENCE", 0.2)
    ready, go = os.pipe()

    def work() -> None:
        monkeypatch.setattr(lock, unknown, lambda: "another")
        Journal.open(out, HEADER).append(0, VALUES[:4])
        os.write(go, b"!")
        time.sleep(60)

    pid = fork(work)
    assert os.read(ready, 1) == b"!"
    with monkeypatch.context() as patch:
        patch.setattr(lock, "process_start", lambda pid: None)  # as if nobody had this number
        with pytest.raises(OutputError, match=f"two runs at once: process {pid} on"):
            Journal.open(out, HEADER)
    os.kill(pid, 9)
    wait(pid)
    with Journal.open(out, HEADER) as j:
        assert j.done.sum() == 4


def test_fault_06_a_child_does_not_keep_the_lock_of_its_killed_parent(out, monkeypatch):
    """It lives on, and has inherited the advisory lock: a worker of a loader, say."""
    monkeypatch.setattr(lock, "_PATIENCE", 0.2)
    ready, go = os.pipe()

    def work() -> None:
        journal = Journal.open(out, HEADER)
        journal.append(0, VALUES[:4])
        os.write(go, fork(lambda: time.sleep(60)).to_bytes(8, "little"))
        time.sleep(60)

    pid = fork(work)
    child = int.from_bytes(os.read(ready, 8), "little")
    os.kill(pid, 9)
    wait(pid)
    try:
        with Journal.open(out, HEADER) as j:
            assert j.done.sum() == 4
    finally:
        os.kill(child, 9)


def test_the_advisory_lock_is_given_back_with_the_lock(out):
    with Journal.open(out, HEADER) as j, open(f"{j.path}.lock") as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        j.close()
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_forked_child_does_not_give_the_lock_of_its_parent_back(out):
    with Journal.open(out, HEADER) as j:
        assert wait(fork(j.close)) == 0
        with pytest.raises(OutputError, match="two runs at once"):
            Journal.open(out, HEADER)
        j.append(0, VALUES[:4])


def test_a_journal_that_nobody_closed_gives_its_lock_back(out):
    Journal.open(out, HEADER)
    Journal.open(out, HEADER).close()


def test_a_lock_that_is_no_longer_ours_is_left_alone(out):
    with Journal.open(out, HEADER):
        path = out.with_name("s.nc.journal.lock")
        path.unlink()
        path.write_text("somebody else's")
    assert path.read_text() == "somebody else's"


def test_the_start_of_a_process_tells_it_from_others():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    mine = lock.process_start(os.getpid())
    assert mine
    assert mine == lock.process_start(os.getpid())
    assert lock.process_start(child.pid)
    child.communicate(b"\n")
    assert lock.process_start(child.pid) is None
    assert lock.process_start(2**80) is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
@pytest.mark.parametrize("name", ["a) Z 1 (b", ") Z ("])
def test_the_name_of_a_process_may_look_like_its_state(name):
    (go, tell), (listen, say) = os.pipe(), os.pipe()

    def work() -> None:
        os.close(tell)
        os.read(go, 1)
        Path("/proc/self/comm").write_text(name)
        os.write(say, b"!")
        os.read(go, 1)  # or the parent has ended

    child = fork(work)
    before = lock.process_start(child)
    assert int(before) > int(lock.process_start(os.getpid()))  # in ticks since the last start
    os.write(tell, b"!")
    assert os.read(listen, 1) == b"!"
    assert Path(f"/proc/{child}/comm").read_text() == f"{name}\n"
    assert lock.process_start(child) == before
    os.write(tell, b"!")
    assert wait(child) == 0
    for end in go, tell, listen, say:
        os.close(end)


@pytest.mark.parametrize(
    ("said", "start"),
    [("Ss+  Sun  Nov 22", "Sun Nov 22 C UTC0 -o state=,lstart= -p 1"), ("Z+ Sun", None)],
)
def test_what_ps_says_is_read_as_macos_writes_it(tmp_path, monkeypatch, said, start):
    """A state of several letters, and a start in words of no language and no zone of time."""
    ps = tmp_path / "ps"
    ps.write_text(f'#!/bin/sh\necho "{said} $LC_ALL $TZ $*"\n')
    ps.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(lock, "_stat_of_proc", lambda pid: None)
    assert lock.process_start(1) == start
    ps.write_text("#!/bin/sh\n")
    assert lock.process_start(1) == ""
    ps.unlink()
    assert lock.process_start(1) == ""


def test_where_there_is_no_proc_ps_tells(monkeypatch):
    """As on macOS."""
    try:
        subprocess.run(["ps"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs ps")
    monkeypatch.setattr(lock, "_stat_of_proc", lambda pid: None)
    start = lock.process_start(os.getpid())
    assert start
    assert start == lock.process_start(os.getpid())
    assert str(time.gmtime().tm_year) in start
    child = fork(lambda: None)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert lock.process_start(child) is None  # a zombie
    wait(child)
    monkeypatch.setattr(lock, "_stat_of_ps", lambda pid: None)
    assert lock.process_start(os.getpid()) == ""
