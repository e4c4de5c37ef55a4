"""Published tools in the versions that `.ci/oracles.txt` pins, imported without what they lack."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

PINS = Path(__file__).parents[1] / ".ci" / "oracles.txt"


def skip_unless_installed(*names: str) -> None:
    """Skip the file that is being imported unless the pinned versions are there."""
    pins = dict(line.strip().split("==") for line in PINS.read_text().splitlines() if "==" in line)
    for name in names:
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = None
        if found != pins[name]:
            pytest.skip(
                f"needs the other tools: {name} {pins[name]}, found {found} "
                "(pip install --no-deps -r .ci/oracles.txt)",
                allow_module_level=True,
            )


@contextlib.contextmanager
def stand_ins(*names: str) -> Iterator[None]:
    """While it is open, modules that are not installed can be imported and do nothing.

    Args:
        names: What a tool imports for features that nothing here calls; submodules one by one.
    """
    absent = [name for name in names if importlib.util.find_spec(name.split(".")[0]) is None]
    sys.modules.update((name, mock.MagicMock()) for name in absent)
    try:
        yield
    finally:
        for name in absent:  # only these: a module imported meanwhile must not be imported twice
            del sys.modules[name]
