"""The library that runs grid programs, and what it can do here."""

from __future__ import annotations

import importlib
import os
from typing import Any

import torch


def native_module() -> Any:
    """Load the library that runs programs.

    Returns:
        ``landscapex._program``.

    Raises:
        ImportError: If it was not built, or cannot be loaded.
    """
    return importlib.import_module("landscapex._program")


def unavailable() -> str | None:
    """Why there is no compiled engine here; None if there is one."""
    try:
        native_module()
    except ImportError as error:
        return f"the compiled engine is not installed ({error})"
    return None


def device_module(library: str = "_program_cuda") -> Any:
    """Load the library that runs programs on devices.

    Args:
        library: Its name; the tests' emulation has another.

    Returns:
        The module.

    Raises:
        ImportError: If it was not built, or cannot be loaded.
    """
    return importlib.import_module(f"landscapex.{library}")


def device_unavailable(library: str = "_program_cuda") -> str | None:
    """Find out whether there is a compiled engine for devices.

    Args:
        library: As of `device_module`.

    Returns:
        Why not; None if there is one.
    """
    try:
        device_module(library)
    except ImportError as error:
        return f"the compiled engine for CUDA is not installed ({error})"
    return None


def threads() -> int:
    """How many threads the program uses: those of torch, never more than there are processors."""
    return max(1, min(torch.get_num_threads(), os.cpu_count() or 1))


def bf16_kernel() -> str:
    """Which instructions multiply numbers of bf16 here.

    Returns:
        ``"amx"``, ``"avx512_bf16"``, or ``"portable"``: rounded to bf16, multiplied in fp32.
    """
    return str(native_module().bf16_kernel())
