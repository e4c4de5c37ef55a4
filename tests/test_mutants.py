"""What measures whether tests find small changes: the changes, their sample, and a trial."""

from __future__ import annotations

import ast
import types
from collections import Counter

import pytest
from reliability import mutants, mutator
from reliability.mutants import Package, Trial

SOURCE = '''
"""Text about x == y."""
from os import path

Kind = Literal["a", "b"]
__all__ = ["f"]
MOST = 3


def f(x: int | None = 1, *, deep: bool = True) -> list[int]:
    """More text."""
    if x < MOST and not deep:
        raise ValueError(f"`x` must be {MOST - 1}, got x")
    for i in range(x):
        while i:
            break
    return [min(a, x) for a in g(x, sep=",") if a != "end of it"]
'''
EXPECTED = [
    ("MOST = 3", "MOST = None"), ("3", "4"),
    ("1", "2"), ("True", "False"),
    ("if x < MOST and (not deep):", "if not (x < MOST and (not deep)):"),
    ("x < MOST and (not deep)", "x < MOST or not deep"), ("x < MOST", "x <= MOST"),
    ("not deep", "deep"),
    ("raise ValueError(f'`x` must be {MOST - 1}, got x')", "pass"),
    ("while i:", "while not i:"), ("break", "continue"),
    ("return [min(a, x) for a in g(x, sep=',') if a != 'end of it']", "return None"),
    ("min(a, x)", "max(a, x)"), ("sep=','", ""), ("','", "'XX,'"),
    (" for a in g(x, sep=',') if a != 'end of it'",
     " for a in g(x, sep=',') if not a != 'end of it'"),
    ("a != 'end of it'", "a == 'end of it'"),
]  # fmt: skip


def test_every_small_change_is_made_and_what_cannot_matter_is_left_alone():
    found = mutator.changes(ast.parse(SOURCE))
    assert Counter((c.old, c.new) for c in found) == Counter(EXPECTED)
    plain = ast.unparse(ast.parse(SOURCE))
    for number, change in enumerate(found):
        text = mutator.changed(SOURCE, number)
        assert text != plain
        assert change.new in text
        compile(text, "changed", "exec")


def test_changes_outside_of_functions_know_what_they_change():
    first, *_ = mutator.changes(ast.parse(SOURCE))
    assert first.block is None
    assert mutator.users(SOURCE, first.names) == {0, 1}  # the function, and its condition


def test_signals_to_processes_are_never_changed():
    """`os.kill(pid, 0)` asks whether a process is there; with 1 instead, it ends."""
    found = mutator.changes(ast.parse("def f(p):\n    os.kill(p, 0)\n    g(0)\n"))
    assert {(c.old, c.new) for c in found} == {
        ("os.kill(p, 0)", "pass"), ("g(0)", "pass"), ("0", "1"),
    }  # fmt: skip
    assert all(c.line == 3 for c in found if c.old == "0")


def test_marked_sources_do_the_same_and_say_which_blocks_they_enter(monkeypatch):
    entered, space = [], {}
    touched = types.ModuleType("touched")
    touched.enter = lambda file, block: entered.append((file, block))
    monkeypatch.setitem(__import__("sys").modules, "touched", touched)
    source = "def f(x):\n    'Text.'\n    if x:\n        return 1\n    else:\n        return 2\n"
    exec(mutator.marked(source, "a.py"), space)
    assert (space["f"](True), space["f"](False)) == (1, 2)
    assert entered == [("a.py", 0), ("a.py", 1), ("a.py", 0), ("a.py", 2)]
    assert space["f"].__doc__ == "Text."
    blocks = {c.old: c.block for c in mutator.changes(ast.parse(source))}
    assert (blocks["return 1"], blocks["return 2"]) == (1, 2)


def test_a_sample_has_its_part_of_every_file_and_is_the_same_each_time():
    changes = [("a", i, None) for i in range(30)] + [("b", i, None) for i in range(10)]
    sample = Trial.sample(changes, 20)
    assert Counter(file for file, *_ in sample) == {"a": 15, "b": 5}
    assert sample == Trial.sample(changes, 20)
    assert sample[:8] == Trial.sample(changes, 8)
    assert len(set(sample)) == 20
    assert sorted(Trial.sample(changes, 100)) == changes


def test_the_interval_is_wilsons():
    """Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
    for found, tried, low, high in [(81, 263, 0.2553, 0.3662), (0, 20, 0.0, 0.1611)]:
        assert mutants.interval(found, tried) == pytest.approx((low, high), abs=5e-5)


def test_known_changes_that_change_nothing_are_there_and_say_why():
    assert mutants.stale() == []
    assert all(len(entry["why"]) > 10 for entry in mutants.harmless())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_trial_tells_what_is_found_from_what_is_not(monkeypatch):
    package = Package(("grids/grid.py",), ("grid",))
    monkeypatch.setitem(mutants.PACKAGES, "grid alone", package)
    with Trial(["grid alone"], 1) as trial:
        assert trial.unfounded("grid alone") == []
        changes = trial.changes("grid alone")
        found = [c for c in changes if (c[2].function, c[2].old) == ("_axis", "lo * (n - 1 - i)")]
        unused = [c for c in changes if c[2].old == "4"]  # a bit more rounding
        (a, b) = trial.try_out(found + unused, "")
    assert a.tests > 1
    assert "1 failed" in a.said
    assert b.tests > 1
    assert b.said is None
