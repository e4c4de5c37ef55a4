"""The user's loss as a mean with a weight, so that batches of any size add up to one number.

The loss over a data set is ``sum(n_b l_b) / sum(n_b)`` in float64, where ``l_b`` is the mean over
batch ``b`` and ``n_b`` is what that mean was divided by: torch's own denominator for its own
losses, labels or samples for everything else. `resolve` turns whatever the user passed into a
`Measure`; `Totals` adds up what it returns.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from landscapex._names import did_you_mean
from landscapex.errors import ArgumentError, ArgumentTypeError
from landscapex.losses.measure import Loss, Measure
from landscapex.losses.metrics import Metrics, resolve_metrics
from landscapex.losses.own_measures import CriterionMeasure, FunctionMeasure, ModelMeasure
from landscapex.losses.reductions import TORCH_LOSSES
from landscapex.losses.torch_measure import torch_measure
from landscapex.losses.weighting import IGNORED, CountRule, Weighting


def resolve(
    loss: Loss,
    *,
    model: nn.Module,
    metrics: Metrics = (),
    count: CountRule = None,
    reduction: str | None = None,
) -> Measure:
    """Bind a loss to the rule that weights its batches.

    Args:
        loss: A name from `torch.nn.functional`, or a function from there (with keywords bound by
            `functools.partial`); a criterion module; ``f(model, batch)``; or None if the model's
            output carries ``.loss``. Names and criteria take batches ``(*inputs, target)``, or
            mappings with the target under "labels", "label", "targets", "target" or "y".
        model: The model, asked only for its class and configuration.
        metrics: As in `resolve_metrics`. A function of the user's own returns
            ``(loss, {name: value})`` instead.
        count: Weight of a batch: ``f(batch)`` or a key of it. None: labels other than -100
            (without the first position for causal language models), else samples. Torch's own
            losses know theirs.
        reduction: What the loss does: ``"mean"``, ``"sum"`` or ``"none"``. None: its own setting.

    Returns:
        The measure.

    Raises:
        ArgumentError: If an argument has no such value, or does not go with this loss.
        ArgumentTypeError: If `loss` is none of the above.

    Example:
        >>> import torch
        >>> measure = resolve("mse_loss", model=torch.nn.Linear(3, 1))
        >>> measure(torch.nn.Linear(3, 1), (torch.zeros(4, 3), torch.zeros(4, 1))).weight
        4
    """
    if isinstance(loss, type):
        raise ArgumentTypeError(
            f"`loss` must be a criterion, got its class: write {loss.__name__}()."
        )
    if reduction not in (None, "mean", "sum", "none") and (loss, reduction) != (
        "kl_div",
        "batchmean",
    ):
        raise ArgumentError(f'`reduction` must be "mean", "sum" or "none", got {reduction!r}.')
    if count is not None and not isinstance(count, str) and not callable(count):
        raise ArgumentTypeError(
            f"`count` must be a function of the batch or a key, got {type(count).__name__}."
        )
    if isinstance(loss, str) and loss not in TORCH_LOSSES:
        hint = did_you_mean(loss, TORCH_LOSSES) or "."
        raise ArgumentError(
            f"`loss` must be one of {', '.join(TORCH_LOSSES)}, got {loss!r}{hint} Any other loss "
            "is a function f(model, batch)."
        )
    known = torch_measure(loss, count, reduction, metrics)
    if known is not None:
        return known
    own = getattr(loss, "reduction", None) if isinstance(loss, nn.Module) else None
    how = str(reduction or (own if own in ("sum", "none") else "mean"))
    if isinstance(loss, nn.Module):
        weighting = Weighting(count, how, shifted=False)
        ignored = getattr(loss, "ignore_index", IGNORED)
        found = resolve_metrics(metrics, decision="any", ignore_index=ignored)
        return CriterionMeasure(loss, weighting, found, tuple(model.modules()))
    weighting = Weighting(count, how, shifted=_is_causal(model))
    if loss is None:
        found = resolve_metrics(metrics, decision="any", shifted=weighting.shifted)
        return ModelMeasure(weighting, found)
    if not callable(loss):
        raise ArgumentTypeError(
            "`loss` must be a name from torch.nn.functional, a criterion, f(model, batch) or None, "
            f"got {type(loss).__name__}."
        )
    if metrics:
        raise ArgumentError(
            "`metrics` must be empty for a loss f(model, batch), whose output only it sees; let it "
            f"return (loss, {{name: value}}) instead. Got {metrics!r}."
        )
    return FunctionMeasure(loss, weighting)


def _is_causal(model: nn.Module) -> bool:
    """Whether the model shifts its labels: it, or what it wraps, is a causal language model."""
    part: Any = model
    while part is not None:
        name = type(part).__name__
        if "CausalLM" in name or "LMHead" in name:
            return True
        if getattr(getattr(part, "config", None), "is_decoder", False) is True:
            return True
        # parallel and compiled wrappers; other submodules may be heads of masked language models
        part = getattr(part, "module", None) or getattr(part, "_orig_mod", None)
    return False
