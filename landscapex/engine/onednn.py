"""Linear layers by oneDNN, where torch's own choice, MKL, is slow: on processors by AMD.

And nothing by oneDNN, where it has no room for its kernels.

On an AMD EPYC, oneDNN took 1 / 2.2 of the time of MKL for a whole MLP 784-512-512-10; on Intel
processors both are as fast. torch has no switch for it, so the method `forward` of plain
`nn.Linear` modules is covered by an attribute of the instance while points are evaluated.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

_WORTH_WHILE = 1 << 24  # multiplications; a call of oneDNN takes 12 us more than one of MKL


@functools.cache
def linear_is_faster() -> bool:
    """Whether this processor is one on which oneDNN is the faster one."""
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text() and _has_operator()
    except OSError:
        return False


def linear_modules(model: nn.Module) -> list[nn.Linear]:
    """The modules that `covered_linear` covers.

    Args:
        model: Any module.

    Returns:
        Plain linear layers in float32 on the CPU, whose `forward` nobody else has covered.
    """
    return [
        m
        for m in model.modules()
        if type(m) is nn.Linear
        and "forward" not in vars(m)
        and m._compiled_call_impl is None
        and type(m.weight) is nn.Parameter
        and m.weight.dtype == torch.float32
        and m.weight.is_cpu
    ]


@contextlib.contextmanager
def covered_linear(model: nn.Module) -> Iterator[None]:
    """Let linear layers of a model call oneDNN.

    Args:
        model: Any module; afterwards it has its own methods again.

    Yields:
        Nothing.
    """
    modules = linear_modules(model) if _has_operator() else []
    try:
        for m in modules:
            vars(m)["forward"] = functools.partial(_forward, m)
        yield
    finally:
        for m in modules:
            vars(m).pop("forward", None)


class _Switch:
    """One for all threads, as torch's is: whoever comes last puts it back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = True

    # `torch.backends.mkldnn.flags` switches more, and warns of it
    def off(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = torch._C._get_mkldnn_enabled()
                torch._C._set_mkldnn_enabled(False)
            self._inside += 1

    def back(self) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                torch._C._set_mkldnn_enabled(self._before)


_SWITCH = _Switch()


@contextlib.contextmanager
def without_onednn() -> Iterator[None]:
    """Let torch compute everything by other means, in all threads.

    Yields:
        Nothing.
    """
    _SWITCH.off()
    try:
        yield
    finally:
        _SWITCH.back()


def _has_operator() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _forward(module: nn.Linear, x: Tensor) -> Tensor:
    """`nn.Linear.forward`; by oneDNN for large products of plain numbers."""
    weight = module.weight
    if (
        not x.dtype == weight.dtype == torch.float32
        or x.numel() * len(weight) < _WORTH_WHILE
        or torch.is_grad_enabled()  # the operator has no gradient
        or torch.is_autocast_enabled("cpu")
        or forward_ad._current_level >= 0  # nor tangents
        or torch._C._functorch.peek_interpreter_stack() is not None  # nor rules for torch.func
        or not torch._C._get_mkldnn_enabled()
    ):
        return F.linear(x, weight, module.bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, module.bias, "none", [], "")
