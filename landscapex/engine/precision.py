"""The arithmetic of an evaluation: which precisions there are, and the switches that choose one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from landscapex.errors import ArgumentError
from landscapex.model.parameters import ParameterSpace

PRECISIONS = ("model", "fp32", "tf32", "bf16x3", "bf16")


@contextlib.contextmanager
def precision_context(precision: str, device: torch.device) -> Iterator[None]:
    """Arithmetic of one evaluation; the global switches are put back."""
    if precision == "bf16":
        with torch.autocast(device.type, dtype=torch.bfloat16):
            yield
    elif precision in ("fp32", "tf32", "bf16x3"):  # of the last, PyTorch knows nothing
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before[0])
            torch.backends.cudnn.allow_tf32 = before[1]
    else:
        yield


def check_precision(precision: str, space: ParameterSpace) -> None:
    """Refuse a precision that this model and device cannot have.

    Raises:
        ArgumentError: If the name is unknown or does not fit.
    """
    if precision not in PRECISIONS:
        raise ArgumentError(
            f"`precision` must be one of {', '.join(PRECISIONS)}, got {precision!r}."
        )
    dtypes = {e.dtype for e in space.entries}
    if precision != "model" and dtypes != {torch.float32}:
        names = ", ".join(sorted(str(d) for d in dtypes))
        raise ArgumentError(
            f"`precision` must be 'model' unless all parameters are float32, got {precision!r} "
            f"for {names}."
        )
    if precision in ("tf32", "bf16x3") and space.device.type != "cuda":
        raise ArgumentError(f"`precision={precision!r}` needs a CUDA device, got {space.device}.")
