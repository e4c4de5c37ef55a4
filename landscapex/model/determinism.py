"""Who makes a loss differ from itself: the data, a module, or the loss function."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from landscapex.losses.measure import Measure


def name_culprit(model: nn.Module, measure: Measure, batches: Iterable[Any]) -> str:
    """Evaluate batches twice and say, in words, where the first difference arises.

    Args:
        model: At the point in question, in the mode of the evaluation.
        measure: The loss.
        batches: Frozen batches.

    Returns:
        A clause such as "module `drop` (Dropout) gives different outputs for the same input".
    """
    with torch.no_grad():
        for b, batch in enumerate(batches):
            (loss1, outputs1), (loss2, outputs2) = (
                _recorded(model, measure, batch) for _ in range(2)
            )
            for (name, first), (_, second) in zip(outputs1, outputs2, strict=False):
                if not _same(first, second):
                    kind = type(model.get_submodule(name)).__name__
                    return (
                        f"module `{name or 'model'}` ({kind}) gives different outputs for the same "
                        f"input in batch {b}"
                    )
            if not _same(loss1, loss2):
                return f"the loss function itself differs on batch {b}, with equal model outputs"
    return "single batches agree with themselves: the state left behind by one changes the next"


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


def _recorded(
    model: nn.Module, measure: Measure, batch: Any
) -> tuple[Tensor, list[tuple[str, Tensor]]]:
    """Loss of a batch and the outputs of all modules in order of completion."""
    outputs: list[tuple[str, Tensor]] = []
    handles = [
        module.register_forward_hook(
            lambda _m, _i, out, name=name: outputs.extend((name, t.clone()) for t in _tensors(out))
        )
        for name, module in model.named_modules()
    ]
    try:
        loss = measure(model, batch).loss.detach().clone()
    finally:
        for handle in handles:
            handle.remove()
    return loss, outputs


def _tensors(out: Any) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out.detach()]
    if isinstance(out, dict):
        out = list(out.values())
    return [t for o in out for t in _tensors(o)] if isinstance(out, list | tuple) else []
