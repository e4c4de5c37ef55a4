"""The figures of the promises: measured in processes of their own, kept, and put on a page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from reliability import run
from reliability.figure import Figure
from reliability.page import PROMISES, Measured, Promise, page

MODULE = """
from reliability.figure import Figure

def measure(share):
    yield Figure("a first", f"{round(1000 * share)} times", "0 wrong", kept=True)
    SECOND
"""


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Measure a promise whose module ends with the given line; returns the figures."""

    def measure(second, share=1.0):
        package = tmp_path / "reliability"
        package.mkdir(exist_ok=True)
        (package / "planted.py").write_text(MODULE.replace("SECOND", second))
        # packages without __init__ join
        monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
        monkeypatch.setitem(PROMISES, "R0", Promise("Planted", "It holds.", ("planted",)))
        monkeypatch.setattr(run, "OUT", tmp_path / "out")
        monkeypatch.setattr(sys, "argv", ["run.py", "R0", "--share", str(share)])
        status = run.main()
        kept = tmp_path / "out" / "R0.json"
        return status, json.loads(kept.read_text()) if kept.exists() else None

    return measure


def test_figures_come_from_a_process_and_are_kept(measured, capsys):
    status, kept = measured("print('not a figure')")
    assert status == 0
    (figure,) = kept["figures"]
    assert figure == {"what": "a first", "count": "1000 times", "found": "0 wrong", "kept": True}
    assert "kept      a first: 1000 times: 0 wrong" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("second", "found"),
    [
        ("yield Figure('another', '2 times', '1 wrong', kept=False)", "1 wrong"),
        ("raise SystemExit(3)", "ended with exit status 3"),
        ("import os; os.kill(os.getpid(), 9)", "ended with exit status -9"),
    ],
)
def test_what_is_not_kept_or_falls_over_is_told_beside_what_was_seen(measured, second, found):
    status, kept = measured(second)
    assert status == 1
    good, bad = kept["figures"]
    assert (good["kept"], bad["kept"], bad["found"]) == (True, False, found)


def test_figures_at_a_share_of_the_counts_are_not_kept(measured):
    assert measured("", share=0.01) == (0, None)


def test_the_page_shows_figures_that_are_not_kept_as_well():
    figures = (
        Figure("kills | one process", "250 kills", "0 lost", kept=True),
        Figure("kills | four", "250 kills", "1 lost", kept=False),
    )
    text = page([Measured("R1", figures, 61.0, "2026-01-02")])
    assert "## R1: Crashes" in text
    assert r"| kills \| one process | 250 kills | 0 lost | kept |" in text
    assert r"| kills \| four | 250 kills | 1 lost | **not kept** |" in text
    assert "Measured on 2026-01-02, in 61 s." in text
    assert text.count("**Not measured**") == len(PROMISES) - 1


def test_every_promise_has_a_measurement():
    folder = Path(run.__file__).parent
    for promise in PROMISES.values():
        for module in promise.modules:
            assert (folder / f"{module}.py").exists(), module


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["R11"], "got R11"), (["R1", "--share", "0"], "must be in (0, 1], got 0.0")],
)
def test_what_cannot_be_measured_is_refused(arguments, said):
    line = [sys.executable, run.__file__, *arguments]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 2
    assert said in done.stderr
