"""Every planted defect is found by the test that is there for it."""

from __future__ import annotations

import pytest
from native.harness import marks

from .runner import ROOT, Planted, Workspace
from .table import TABLE

# By name of a trap, a fault, ...: `make check` plants these, `make reliability` all.
FIRST = list({p.trap: p for p in reversed(TABLE)}.values())
# The tests of a file, with the compiled libraries and without.
GROUPS = [
    pytest.param(planted, *group, marks=marks(planted is FIRST))
    for planted in (FIRST, TABLE)
    for group in sorted({(p.test.partition("::")[0], p.native) for p in planted})
]


@pytest.fixture(scope="session")
def workspace(tmp_path_factory):
    with Workspace(tmp_path_factory.mktemp("planted")) as copied:
        yield copied


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("among", "file", "native"), GROUPS)
def test_without_a_defect_the_tests_pass(workspace, among, file, native):
    """Otherwise they would find anything."""
    chosen = {p.test for p in among if p.test.startswith(f"{file}::") and p.native == native}
    if failure := workspace.run(sorted(chosen), native=native, seconds=1000):
        pytest.fail(failure, pytrace=False)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "planted", [pytest.param(p, id=p.name, marks=marks(p in FIRST)) for p in TABLE]
)
def test_a_planted_defect_is_found(workspace, planted):
    assert workspace.plant(planted)


@pytest.mark.parametrize("planted", TABLE, ids=lambda p: p.name)
def test_a_planted_defect_can_be_planted(planted):
    """Each one fits the source as it is now."""
    assert (ROOT / planted.file).read_text().count(planted.old) == 1
    file, _, name = planted.test.partition("::")
    assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text()


def test_each_defect_has_a_name_of_its_own():
    names = [(p.trap, p.what) for p in TABLE]
    assert len(set(names)) == len(names)
    assert all(isinstance(p, Planted) for p in TABLE)
