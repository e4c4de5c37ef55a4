"""The operators as plain PyTorch, and compiled for each instruction set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest
import torch

from landscapex import _fallback, _lib, _ops

native = pytest.mark.skipif(not _lib.native, reason="the compiled libraries were not built")
IMPLEMENTATIONS = [
    "fallback",
    *(pytest.param(isa, marks=native) for isa in ("baseline", "avx2", "avx512")),
]


@contextmanager
def implementation(name: str) -> Iterator[ModuleType]:
    """The module whose functions are the operators; skips where the processor lacks something."""
    if name == "fallback":
        yield _fallback
        return
    try:
        torch.ops.landscapex.set_isa(name)
    except RuntimeError as error:
        pytest.skip(str(error))
    yield _ops
    torch.ops.landscapex.set_isa("auto")


@pytest.fixture(params=IMPLEMENTATIONS)
def ops(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """The operators of `_ops`: plain PyTorch, or compiled for one instruction set."""
    with implementation(request.param) as found:
        yield found
