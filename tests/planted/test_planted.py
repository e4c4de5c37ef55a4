"""Every planted defect is found by the test that is there for it."""

from __future__ import annotations

import pytest

from .runner import Planted, Workspace
from .table import TABLE


@pytest.fixture(scope="session")
def workspace(tmp_path_factory):
    copied = Workspace(tmp_path_factory.mktemp("planted"))
    failure = copied.run(sorted({planted.test for planted in TABLE}))
    assert failure is None, f"without any defect:\n{failure}"
    return copied


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("planted", TABLE, ids=lambda p: f"{p.trap}-{p.what}".replace(" ", "_"))
def test_a_planted_defect_is_found(workspace, planted):
    assert workspace.plant(planted)


@pytest.mark.parametrize("planted", TABLE, ids=lambda p: f"{p.trap}-{p.what}".replace(" ", "_"))
def test_a_planted_defect_can_be_planted(planted):
    """Each one fits the source as it is now."""
    from .runner import ROOT

    assert (ROOT / planted.file).read_text().count(planted.old) == 1
    file, _, name = planted.test.partition("::")
    assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text()


def test_each_defect_has_a_name_of_its_own():
    names = [(p.trap, p.what) for p in TABLE]
    assert len(set(names)) == len(names)
    assert all(isinstance(p, Planted) for p in TABLE)
