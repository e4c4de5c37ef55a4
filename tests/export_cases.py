"""Results to export, and ways to look at what was written."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec

import numpy as np
import pytest

from landscapex.grids.results import Surface
from landscapex.storage.store import AxisInfo, RunHeader

UNIT = "1 = the length of the weights, filter by filter (‖d‖ = {})"
ALPHA, BETA = "\N{GREEK SMALL LETTER ALPHA}", "\N{GREEK SMALL LETTER BETA}"
PLACES = {1: (np.linspace(-1, 1, 9),), 2: (np.linspace(-1, 1, 5), np.linspace(-1, 1, 7))}


def make(columns, *coordinates, done=None, **provenance) -> Surface:
    axes = tuple(
        AxisInfo(name, tuple(map(float, c)), f"random direction {k + 1}", UNIT.format(12 + k))
        for k, (name, c) in enumerate(zip(("alpha", "beta", "gamma"), coordinates, strict=False))
    )
    if not isinstance(columns, dict):
        columns = {"loss": columns}
    values = np.stack([np.asarray(v, np.float64).ravel() for v in columns.values()], axis=1)
    mask = np.ones(len(values), bool) if done is None else np.asarray(done, bool).ravel()
    kind = ("line", "surface", "volume")[len(coordinates) - 1]
    header = RunHeader(kind, axes, tuple(columns), {"parameters": "3fa2b1"}, {}, provenance)
    return Surface.from_run(header, mask, values)


def plane() -> Surface:
    """The 3 x 5 grid of f = 10 x + y."""
    x, y = np.arange(3.0), np.arange(5.0)
    return make(10 * x[:, None] + y, x, y)


def volume(values=None) -> Surface:
    x, y, z = np.linspace(-1, 1, 2), np.linspace(-1, 1, 3), np.linspace(-1, 1, 4)
    a, b, c = np.meshgrid(x, y, z, indexing="ij")
    return make(200 + 100 * a + 10 * b + c if values is None else values, x, y, z)


class Hidden:
    """A finder that answers first and says that a package is not there."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        if name.partition(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Make a package look as if it were not installed."""
    for name in [n for n in sys.modules if n.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Hidden(package), *sys.meta_path])
