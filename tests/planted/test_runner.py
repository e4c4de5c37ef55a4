"""Tests in a copy of the package: what is found, what is not, and what never ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .runner import Planted, Workspace

pytestmark = pytest.mark.slow

TESTS = '''
import os, subprocess, sys
from pathlib import Path

from landscapex.grids import grid

PACKAGE = Path(__file__).parents[1] / "landscapex"


def test_axes_have_their_names():
    assert grid.AXIS_NAMES[0] == "alpha", "another name"


def test_what_is_imported_is_the_copy():
    assert Path(grid.__file__) == PACKAGE / "grids" / "grid.py"
    code = "from landscapex.grids import grid; print(grid.__file__)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert Path(child.stdout.strip()) == PACKAGE / "grids" / "grid.py"


def test_there_are_no_libraries():
    assert not [*PACKAGE.glob("*.so")]


def test_python_breaks():
    os._exit(3)


def test_never_ends():
    code = """if True:
        import time
        while True:
            with open("alive", "a") as file:
                file.write(".")
            time.sleep(0.02)
    """
    subprocess.run([sys.executable, "-c", code])
'''
NAMES, COPY, LIBRARIES, BREAKS, ENDLESS = (
    f"tests/test_own.py::{name}"
    for name in (
        "test_axes_have_their_names",
        "test_what_is_imported_is_the_copy",
        "test_there_are_no_libraries",
        "test_python_breaks",
        "test_never_ends",
    )
)


WITH_A_THREAD = """
import runpy, sys, threading, time
threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
server = runpy.run_path(sys.argv[1])["serve"]
server.__globals__["IMPORTED"] = ()
server()
"""


def renamed(new):
    return Planted("trap", "a name", "landscapex/grids/grid.py", '("alpha"', f"({new}", NAMES)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    with Workspace(tmp_path_factory.mktemp("own")) as copied:
        (copied.folder / "tests" / "test_own.py").write_text(TESTS)
        yield copied


def test_a_defect_is_found_and_gone_afterwards(workspace):
    assert workspace.run([NAMES]) is None
    assert workspace.plant(renamed('"ALPHA"'))
    assert workspace.run([NAMES]) is None


def test_a_change_that_is_no_defect_is_not_found(workspace, monkeypatch):
    """Not even after a defect of the same length that was planted within the same second."""
    write = Path.write_text

    def write_within_a_second(path, text):
        write(path, text)
        os.utime(path, (10**9, 10**9))

    monkeypatch.setattr(Path, "write_text", write_within_a_second)
    assert workspace.plant(renamed('"ALPHA"'))
    assert not workspace.plant(renamed("'alpha'"))


def test_what_failed_is_said(workspace):
    (workspace.folder / "tests" / "test_fails.py").write_text("def test_it():\n    assert 1 == 2\n")
    failure = workspace.run([NAMES, "tests/test_fails.py"])
    assert "assert 1 == 2" in failure
    assert "1 failed, 1 passed" in failure


def test_tests_and_what_they_start_see_the_copy(workspace):
    assert workspace.run([COPY]) is None


def test_libraries_are_hidden_and_come_back(workspace):
    library = workspace.folder / "landscapex" / "own.so"
    library.write_bytes(b"")
    workspace.libraries.append(library)
    assert workspace.run([LIBRARIES], native=False) is None
    assert "1 failed" in workspace.run([LIBRARIES])
    workspace.libraries.remove(library)
    library.unlink()


def test_what_never_ends_is_ended_with_all_that_it_started(workspace):
    began = time.monotonic()
    assert workspace.run([ENDLESS], seconds=4).startswith("no end within 4 s")
    assert time.monotonic() - began < 8
    size = os.path.getsize(workspace.folder / "alive")
    time.sleep(0.3)
    assert os.path.getsize(workspace.folder / "alive") == size > 0
    assert workspace.run([NAMES]) is None


@pytest.mark.parametrize(
    ("test", "said"),
    [(BREAKS, "status 3"), ("tests/test_own.py::test_not_there", "ERROR: not found")],
)
def test_tests_that_cannot_be_run_are_an_error(workspace, test, said):
    """They say nothing about a defect."""
    with pytest.raises(RuntimeError, match=rf"(?s)pytest could not run .*{said}"):
        workspace.run([test])


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_process_with_a_thread_does_not_fork():
    script = Path(__file__).with_name("server.py")
    command = [sys.executable, "-c", WITH_A_THREAD, script]
    done = subprocess.run(command, input="", stderr=subprocess.PIPE, text=True)
    assert "RuntimeError: a process with threads must not fork" in done.stderr
    assert done.returncode == 1


def test_a_server_that_does_not_start_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with (
        Workspace(tmp_path) as copied,
        pytest.raises(RuntimeError, match=r"server\.py ended with status 1"),
    ):
        copied.run([NAMES])
