"""Loads the compiled libraries: the CPU one where it was built, the CUDA one where torch has CUDA.

Whatever goes wrong ends in plain PyTorch and one warning that names the cause.
"""

from __future__ import annotations

import re
import sys
import warnings
from importlib.util import find_spec

import torch

from landscapex.errors import LandscapexWarning

_OLDEST_TORCH = (2, 10)


def _check_torch(version: str) -> None:
    """Refuse a torch that the compiled libraries cannot talk to.

    Args:
        version: ``torch.__version__``.

    Raises:
        ImportError: If it is older than 2.10.
    """
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
    if numbers < _OLDEST_TORCH:
        raise ImportError(
            f"landscapex needs torch 2.10 or later, got {version}; "
            f"install it with: {sys.executable} -m pip install --upgrade 'torch>=2.10'"
        )


def _load(name: str) -> str | None:
    """Load a library of this package.

    Args:
        name: Module name within the package.

    Returns:
        None, or why it is not there.
    """
    try:
        # find_spec, not a path: in an editable install it also triggers the rebuild
        spec = find_spec(f"landscapex.{name}")
        if spec is None or spec.origin is None:
            return "they were not built"
        torch.ops.load_library(spec.origin)
    except Exception as error:  # a broken library must never keep the package from working
        cause = error.__cause__ or error  # torch says which file, its cause says what is wrong
        return str(cause).strip() or type(cause).__name__
    return None


_check_torch(torch.__version__)

missing: str | None = _load("_C_cpu")
"""Why the compiled CPU operators are not there; None if they are."""

native: bool = missing is None
"""Whether the compiled CPU operators are there."""

cuda_missing: str | None
"""Why the compiled CUDA operators are not there; None if they are."""

if torch.version.cuda is None:
    cuda_missing = "torch is a build without CUDA"
elif not native:
    cuda_missing = missing
else:
    cuda_missing = _load("_C_cuda")

cuda: bool = cuda_missing is None
"""Whether the compiled CUDA operators are there."""

if not native:
    warnings.warn(
        f"The compiled kernels of landscapex are not available: {missing}. Everything runs on "
        "plain PyTorch, more slowly; landscapex.doctor() says how to get them.",
        LandscapexWarning,
        stacklevel=2,
    )
