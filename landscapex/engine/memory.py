"""Short memory: fewer samples go through the model at a time, and the numbers stay."""

from __future__ import annotations

import ctypes
import sys
import traceback
from collections.abc import Iterable, Iterator
from operator import itemgetter

import torch

from landscapex._batch import Batch, form, map_leaves, sample_count

# by torch, by the system's own word (kernels that ask it themselves), by C++
_SAID_BY = (
    "DefaultCPUAllocator: can't allocate memory",
    "Cannot allocate memory",
    "std::bad_alloc",
)
# all that oneDNN says; what it cannot do at all is a "primitive descriptor" of this or that
_SAID_BY_ONEDNN = ("could not create a primitive", "could not create a memory object")


def is_short(error: Exception) -> bool:
    """Whether an error says that memory is short.

    Args:
        error: From anywhere within an evaluation.

    Returns:
        True for a CUDA device without memory, and for a system that refuses more of it.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    return ended_onednn(error) or any(part in str(error) for part in _SAID_BY)


def ended_onednn(error: Exception) -> bool:
    """Whether oneDNN had no room for a kernel.

    It makes no other one from then on, however small, in this thread: its code generator keeps the
    error, in versions without pull request 5907 of oneDNN, which is of August 2026.

    Args:
        error: From anywhere within an evaluation.

    Returns:
        True for the words of torch that stand for it.
    """
    return isinstance(error, RuntimeError) and str(error) in _SAID_BY_ONEDNN


def let_go(error: Exception, device: torch.device) -> None:
    """Give back what a failed evaluation still holds.

    Args:
        error: Its traceback keeps the tensors of every function that it went through.
        device: Of the model; what torch keeps there for later may lie in pieces too small to use.
    """
    traceback.clear_frames(error.__traceback__)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        # What the C library keeps for later is of no use to what asks the system itself, such as
        # oneDNN, which makes a kernel for every shape.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)


def in_pieces(batches: Iterable[Batch], most: int | None) -> Iterator[Batch]:
    """Hand out batches in pieces.

    Args:
        batches: Of any kind; those that are not tensors of samples stay whole.
        most: Samples of a piece, at most; None leaves all batches whole.

    Yields:
        Views of the batches, in order.

    Example:
        >>> [len(piece) for piece in in_pieces([torch.zeros(5), torch.zeros(2)], 2)]
        [2, 2, 1, 2]
    """
    for batch in batches:
        samples = sample_count(batch)
        if most is None or samples <= most or form(batch, samples) is None:
            yield batch
            continue
        for start in range(0, samples, most):
            yield map_leaves(batch, itemgetter(slice(start, start + most)))


def advice(most: int, device: torch.device, whole: str | None) -> str:
    """What to say to who gets the error all the same.

    Args:
        most: Samples that went through the model at a time.
        device: Of the model.
        whole: Why they cannot go through it in smaller numbers; None if it was one alone.

    Returns:
        A line.
    """
    peak = ""
    if device.type == "cuda":
        peak = f"; {torch.cuda.max_memory_allocated(device):,} bytes were in use at most"
    if whole is None:
        return f"landscapex: memory is short with one sample at a time{peak}."
    return (
        f"landscapex: memory is short with batches of {most} samples{peak}. They are not cut into "
        f"smaller ones, because {whole}: pass smaller batches."
    )
