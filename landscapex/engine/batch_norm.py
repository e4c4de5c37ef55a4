"""Layers that look at whole batches: which ones, their statistics anew, and what they refuse."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from landscapex.errors import DataError

BN_MODES = ("eval", "recompute", "batch")
WHY_WHOLE = {
    "batch": "bn='batch' normalises by whole batches",
    "recompute": "bn='recompute' averages over whole batches",
}
_ONE_VALUE = "Expected more than 1"  # value, or spatial element; so torch begins


def batch_norms(model: nn.Module) -> list[_NormBase]:
    """Modules that keep running statistics of their inputs."""
    return [m for m in model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]


def recompute_statistics(norms: Sequence[_NormBase], passes: Iterable[object]) -> None:
    """Running statistics as the plain average over batches.

    One pass in training mode with cumulative averages (``momentum=None``).

    Args:
        norms: Of a model; in evaluation mode afterwards.
        passes: Takes one batch after the other through the model.
    """
    momenta = [m.momentum for m in norms]
    # to an instance norm, a momentum of None is 0: it gets the weights of the average
    instance = [m for m in norms if isinstance(m, _InstanceNorm)]
    try:
        for m in norms:
            m.reset_running_stats()
            m.momentum = 1.0 if m in instance else None
            m.train()
        with torch.no_grad():
            for k, _ in enumerate(passes):
                for m in instance:
                    m.momentum = 1.0 / (k + 2)
    finally:
        for m, momentum in zip(norms, momenta, strict=True):
            m.momentum = momentum
            m.eval()


def refuse_single_values(error: Exception, norms: Sequence[_NormBase], bn: str) -> None:
    """Say in our words that a channel with one value has no variance.

    Args:
        error: Of an evaluation, with its notes.
        norms: Of the model.
        bn: The mode; ``"eval"`` looks at no batch.

    Raises:
        DataError: If it is such an error.
    """
    if bn == "eval" or not str(error).startswith(_ONE_VALUE):
        return
    passed = {id(f.f_locals.get("self")) for f, _ in traceback.walk_tb(error.__traceback__)}
    if not any(id(norm) in passed for norm in norms):  # somebody else's words
        return
    refused = DataError(
        f"with bn={bn!r}, every batch must give batch norm more than one value per "
        f"channel, got {str(error).partition('got ')[2]}: leave out a last batch of one sample "
        "(drop_last=True), take larger batches, or bn='eval'."
    )
    refused.__notes__ = error.__notes__
    raise refused from error
