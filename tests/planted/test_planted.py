"""Every planted defect is found by the test that is there for it."""

from __future__ import annotations

import pytest

from .runner import ROOT, Planted, Workspace
from .table import TABLE

# The tests of a file, with the compiled libraries and without.
GROUPS = sorted({(planted.test.partition("::")[0], planted.native) for planted in TABLE})

each_defect = pytest.mark.parametrize(
    "planted", TABLE, ids=lambda p: f"{p.trap}-{p.what}".replace(" ", "_")
)


@pytest.fixture(scope="session")
def workspace(tmp_path_factory):
    with Workspace(tmp_path_factory.mktemp("planted")) as copied:
        yield copied


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("file", "native"), GROUPS)
def test_without_a_defect_the_tests_pass(workspace, file, native):
    """Otherwise they would find anything."""
    chosen = {p.test for p in TABLE if p.test.startswith(f"{file}::") and p.native == native}
    if failure := workspace.run(sorted(chosen), native=native, seconds=1000):
        pytest.fail(failure, pytrace=False)


@pytest.mark.slow
@pytest.mark.timeout(600)
@each_defect
def test_a_planted_defect_is_found(workspace, planted):
    assert workspace.plant(planted)


@each_defect
def test_a_planted_defect_can_be_planted(planted):
    """Each one fits the source as it is now."""
    assert (ROOT / planted.file).read_text().count(planted.old) == 1
    file, _, name = planted.test.partition("::")
    assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text()


def test_each_defect_has_a_name_of_its_own():
    names = [(p.trap, p.what) for p in TABLE]
    assert len(set(names)) == len(names)
    assert all(isinstance(p, Planted) for p in TABLE)
