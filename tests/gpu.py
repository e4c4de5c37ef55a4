"""What tests need to run on a GPU too: `pytest -m gpu` selects them.

Without a GPU they are skipped, and so are those of a compiled library that is not there.
"""

from __future__ import annotations

import importlib

import pytest
import torch

CUDA = pytest.param("cuda", marks=pytest.mark.gpu)
"""A parameter of fixtures and tests: on a GPU."""


def missing() -> str | None:
    """Why nothing here can run on a GPU; None if it can."""
    if torch.version.cuda is None:
        return "needs a CUDA device, and this torch is built without CUDA"
    return None if torch.cuda.is_available() else "needs a CUDA device"


def require(library: str) -> None:
    """Skip a test without this compiled library of the package."""
    try:
        importlib.import_module(f"landscapex.{library}")
    except ImportError as error:
        pytest.skip(f"landscapex.{library} is not there: {error}")
