"""Tests in processes of their own are counted, and never those of another landscapex."""

from __future__ import annotations

import textwrap

import pytest
from hypothesis import settings
from reliability import suites
from reliability.suites import run_tests

# indented: it is no test file that a search for properties may find
SUITE = textwrap.dedent("""
    import pytest, landscapex
    from hypothesis import given, settings, strategies as st

    def test_passes(): pass
    def test_fails(): assert False
    @pytest.fixture
    def broken(): raise ValueError
    def test_cannot_start(broken): pass
    @pytest.mark.skip(reason="needs the moon")
    def test_waits(): pass
    @settings(max_examples=7)
    @given(st.integers(0, 10**6))
    def test_draws(n): pass
""")


def test_what_became_of_tests_is_counted(tmp_path):
    path = tmp_path / "test_suite.py"
    path.write_text(SUITE)
    found = run_tests(str(path))
    assert found.passed == ("test_passes", "test_draws")
    assert sorted(found.failed) == ["test_cannot_start", "test_fails"]
    assert list(found.skipped.values()) == ["needs the moon"]
    assert list(found.examples.values()) == [7]
    assert not found.clean
    assert str(found) == (
        f"2 passed, 2 failed ({', '.join(found.failed)}), 1 skipped (needs the moon)"
    )
    assert run_tests(str(path), "-k", "passes or draws").clean


def test_every_property_may_be_tried_on_more_examples():
    """Also one whose number of examples is written at the test."""
    chosen = "tests/test_properties_files.py", "-m", "property"
    named = "test_a_shard_is_read_as_it_is_written"
    tables = "test_a_table_holds_the_bits_of_every_number"
    found = run_tests(*chosen, "--examples=2", "-k", f"{named} or {tables}").examples
    counts = {test.split("::")[1]: count for test, count in found.items()}
    assert counts == {named: 2 * settings.get_profile("default").max_examples, tables: 2 * 25}


def test_a_process_without_tests_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="pytest ended with exit status 5"):
        run_tests(str(tmp_path))


def test_tests_of_another_landscapex_are_refused(monkeypatch, tmp_path):
    other = tmp_path / "landscapex" / "__init__.py"
    other.parent.mkdir()
    other.touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=rf"tests must be of .*, got {other}"):
        run_tests("tests/test_grid.py")
    assert suites.ROOT.joinpath("landscapex").is_dir()
