"""The user's loss as a mean with a weight, so that batches of any size add up to one number.

The loss over a data set is ``sum(n_b l_b) / sum(n_b)`` in float64, where ``l_b`` is the mean over
batch ``b`` and ``n_b`` is what that mean was divided by: torch's own denominator for its own
losses, labels or samples for everything else. `resolve` turns whatever the user passed into a
`Measure`; `Totals` adds up what it returns.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from landscapex._batch import (
    Batch,
    call_model,
    describe,
    describe_keys,
    labels_of,
    predict,
    sample_count,
    to_device,
)
from landscapex._identity import JSON, of_callable, of_constant, of_module
from landscapex.errors import (
    ArgumentError,
    ArgumentTypeError,
    DataError,
    LandscapexError,
    LossError,
)
from landscapex.metrics import Metric, Metrics, check_name, is_scalar, resolve_metrics
from landscapex.reductions import (
    TORCH_LOSSES,
    Count,
    IdentityCache,
    Options,
    TorchLoss,
    as_exact,
    of_criterion,
    of_function,
    output_tensors,
    scores_in_columns,
    sum_exactly,
    unwrap_logits,
)
from landscapex.totals import Terms as Terms
from landscapex.totals import Totals as Totals

Loss: TypeAlias = str | nn.Module | Callable[..., Any] | None
CountRule: TypeAlias = Callable[[Batch], Any] | str | None
Parts: TypeAlias = tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]

IGNORED = -100  # the label that torch and Hugging Face leave out by default


class Measure:
    """A loss bound to its weighting and metrics; ``measure(model, batch)`` gives `Terms`.

    Attributes:
        name: The loss in a word.
        rule: In words, what batches are weighted by.
        metrics: The metrics that are computed from the output of the model.
        functional: The function of `torch.nn.functional` that is called, if it is one.
        options: The keywords it is called with.
        regroupable: Whether samples may be regrouped into batches of another size.
    """

    name: str
    rule: str
    _hint: str = ""  # to what a loss that raises may have expected
    metrics: tuple[Metric, ...] = ()
    functional: str | None = None
    options: Options = MappingProxyType({})
    regroupable: bool = False

    def __call__(self, model: nn.Module, batch: Batch) -> Terms:
        """Evaluate the loss and the metrics of one batch.

        Args:
            model: The model.
            batch: One batch, on the model's device.

        Returns:
            Differentiable terms; nothing here waits for the device.

        Raises:
            DataError: If the batch has no target.
            LossError: If the loss or a metric returns something that is neither.
            LandscapexError: Any other error of ours; errors of torch or of the user's code pass
                through with a note.
        """
        try:
            return self._terms(model, batch)
        except LandscapexError:
            raise
        except Exception as error:
            error.add_note(f"In the loss {self.name}, for the batch {describe(batch)}.{self._hint}")
            raise

    def captured(self, model: nn.Module, batch: Batch) -> Parts:
        """Compute the mean loss of one batch by tensor operations alone, for `torch.export`.

        Args:
            model: The model.
            batch: One batch.

        Returns:
            The 0-d mean; what the model returned and the target it was compared with, as tuples
            of tensors, which are empty where the measure cannot tell.

        Raises:
            LossError: If there is no such mean: another reduction, metrics from the loss itself.
        """
        raise NotImplementedError

    @property
    def identity(self) -> dict[str, JSON]:
        """What the fingerprint of a run hashes: class, constants, tensors, source, metrics."""
        return {**self._identity(), "metrics": [metric.identity for metric in self.metrics]}

    def to(self, device: torch.device) -> Measure:
        """Return this measure with its own tensors (class weights, ...) on `device`.

        Args:
            device: Where batches will be.

        Returns:
            The measure itself if it holds no tensors that would move; never changes the user's
            criterion.
        """
        return self

    def _terms(self, model: nn.Module, batch: Batch) -> Terms:
        raise NotImplementedError

    def _identity(self) -> dict[str, JSON]:
        raise NotImplementedError

    def _measured(self, output: Any, target: Any, batch: Batch) -> dict[str, tuple[Tensor, Count]]:
        return {metric.name: metric.compute(output, target, batch) for metric in self.metrics}


class _TorchMeasure(Measure):
    """A loss of `torch.nn.functional`, called as a function or as a criterion."""

    def __init__(
        self, loss: TorchLoss, options: Options, criterion: nn.Module | None, metrics: Metrics
    ) -> None:
        self.name = loss.name if criterion is None else type(criterion).__name__
        self.functional = loss.name
        self.options = dict(options)
        self.metrics = resolve_metrics(
            metrics, decision=loss.decision, ignore_index=_ignore_index(options)
        )
        reduction = options.get("reduction", "mean")
        self.rule = f"{self.name} (reduction={reduction!r}), weighted by the number of {loss.rule}"
        self.regroupable = loss.per_sample(options) and all(m.built_in for m in self.metrics)
        self._loss, self._criterion, self._given_metrics = loss, criterion, metrics
        self._averaged = reduction in ("mean", "batchmean")
        self._counts = IdentityCache()

    def to(self, device: torch.device) -> Measure:
        tensors = [value for value in self.options.values() if isinstance(value, Tensor)]
        if self._criterion is not None:
            tensors += [*self._criterion.parameters(), *self._criterion.buffers()]
        if all(tensor.device == device for tensor in tensors):
            return self
        criterion = copy.deepcopy(self._criterion)
        criterion = criterion.to(device) if criterion is not None else None
        options = to_device(self.options, device)
        return _TorchMeasure(self._loss, options, criterion, self._given_metrics)

    def _terms(self, model: nn.Module, batch: Batch) -> Terms:
        output, target = predict(model, batch, self.name)
        outputs, targets = self._checked(output_tensors(output), target)
        arguments = self._loss.arguments(outputs, targets)
        if self._loss.name == "cross_entropy" and not _is_hooked(self._criterion):
            arguments = scores_in_columns(*arguments)
        try:
            if self._criterion is None:
                value = self._loss.function(*arguments, **self.options)
            else:
                value = self._criterion(*arguments)
        except Exception as error:
            error.add_note(
                f"The model returned {describe(output)}, the target is {describe(target)}."
            )
            raise
        if self._loss.counts_values:
            weight = self.options.get("weight")
            count = self._counts.get(
                targets[0], lambda: self._loss.count(outputs, targets, self.options), weight
            )
        else:
            count = self._loss.count(outputs, targets, self.options)
        loss = value if self._averaged else _divided(value, count)
        return Terms(loss, count, self._measured(output, target, batch) if self.metrics else {})

    def captured(self, model: nn.Module, batch: Batch) -> Parts:
        if _is_hooked(self._criterion):
            raise LossError(f"{self.name} must have no hooks, which may change the loss.")
        output, target = predict(model, batch, self.name)
        outputs, targets = self._checked(output_tensors(output), target)
        # sums are divided by this measure's own counts, so any reduction may be taken as the mean
        options = {**self.options, "reduction": "mean"}
        loss = self._loss.function(*self._loss.arguments(outputs, targets), **options)
        if self.options.get("reduction") == "batchmean":
            loss = loss * math.prod(outputs[0].shape[1:])
        return loss, outputs, targets

    def _checked(self, outputs: tuple[Any, ...], target: Any) -> tuple[Any, Any]:
        """Refuse numbers of tensors that torch would take for options: a silently wrong loss."""
        targets = tuple(target) if isinstance(target, (tuple, list)) else (target,)
        loss = self._loss
        if len(outputs) != loss.outputs or len(targets) != loss.targets:
            raise LossError(
                f"{self.name} must get {loss.outputs} tensor(s) from the model and {loss.targets} "
                f"from the batch, got {describe(outputs)} and {describe(targets)}; otherwise pass "
                f"`f(model, batch)` as the loss."
            )
        if not isinstance(targets[0], Tensor):
            raise LossError(f"{self.name} must get a tensor as target, got {describe(target)}.")
        return outputs, targets

    def _identity(self) -> dict[str, JSON]:
        described: dict[str, JSON] = {"functional": self.functional}
        if self._criterion is None:
            return {**described, "options": of_constant(self.options)}
        return {**described, "criterion": of_module(self._criterion, ())}


class _Weighting:
    """Weights of batches for losses that are not torch's: `count`, or labels, or samples.

    Losses per sample or per label (``reduction="none"``) are divided by as many as there are; if
    there is one per label, ignored labels do not count.
    """

    def __init__(self, count: CountRule, reduction: str, shifted: bool) -> None:
        self.count, self.reduction, self.shifted = count, reduction, shifted
        self._counts = IdentityCache()

    @property
    def rule(self) -> str:
        """What batches are weighted by, in words."""
        if self.count is not None:
            named = isinstance(self.count, str)
            by = f"batch[{self.count!r}]" if named else "the function given as `count`"
        elif self.shifted:
            by = f"the number of labels other than {IGNORED} from the second position on"
        else:
            by = f"the number of labels other than {IGNORED}, or of samples without integer labels"
        return f"reduction={self.reduction!r}, weighted by {by}"

    @property
    def identity(self) -> dict[str, JSON]:
        """What the fingerprint hashes."""
        described = of_callable(self.count) if callable(self.count) else self.count
        return {"count": described, "reduction": self.reduction, "shifted": self.shifted}

    def mean(self, value: Any, batch: Batch, labels: Any, name: str) -> tuple[Tensor, Count]:
        """Return the mean loss of a batch and its weight."""
        per_sample = self.reduction == "none"
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise LossError(f"{name} must return a floating-point tensor, got {_got(value)}.")
        if per_sample and not value.ndim:
            raise LossError(
                f'{name} must return one loss per sample with reduction="none", got {_got(value)}.'
            )
        if value.ndim and not per_sample:
            raise LossError(
                f"{name} must return a 0-d tensor, got {_got(value)}; losses per sample need "
                f'reduction="none".'
            )
        count = self._weight(batch, labels, value.numel() if per_sample else None)
        return (value if self.reduction == "mean" else _divided(value, count)), count

    def _weight(self, batch: Batch, labels: Any, num_losses: int | None) -> Count:
        """Weigh a batch; `num_losses` is how many losses it gave, if not reduced to one."""
        if self.count is not None:
            return self._given(batch)
        if isinstance(labels, Tensor) and _is_integer(labels):
            counted = labels[..., 1:] if self.shifted and labels.ndim > 1 else labels
            if num_losses is None or num_losses == counted.numel():
                return self._counts.get(labels, lambda: sum_exactly(counted != IGNORED))
        return sample_count(batch) if num_losses is None else num_losses

    def _given(self, batch: Batch) -> Count:
        if callable(self.count):
            count = self.count(batch)
        elif isinstance(batch, Mapping) and self.count in batch:
            count = batch[self.count]
            count = sum_exactly(count) if isinstance(count, Tensor) else count
        else:
            raise DataError(
                f"`count` must be a key of the batch, got {self.count!r} for "
                f"{describe_keys(batch)}."
            )
        if not is_scalar(count):
            raise LossError(f"`count` must give a number or a 0-d tensor, got {_got(count)}.")
        return count


class _WeightedMeasure(Measure):
    """A loss that is not torch's own."""

    def __init__(self, name: str, weighting: _Weighting, metrics: tuple[Metric, ...] = ()) -> None:
        self.name = name
        self.metrics = metrics
        self.rule = f"{name}: {weighting.rule}"
        self._weighting = weighting

    def _finish(self, value: Any, batch: Batch, labels: Any, measured: Any) -> Terms:
        """Take a loss, or (loss, {name: value}), and weight both."""
        values: Mapping[str, Any] = {}
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Mapping):
            value, values = value
        loss, count = self._weighting.mean(value, batch, labels, self.name)
        metrics = dict(measured)
        for name, number in values.items():
            check_name(name)
            if not is_scalar(number) or name in metrics:
                rule = "be a number or a 0-d tensor" if name not in metrics else "be new"
                raise LossError(f"Metric {name!r} of {self.name} must {rule}, got {_got(number)}.")
            metrics[name] = (as_exact(number) * count, count)
        return Terms(loss, count, metrics)

    def _parts(self, value: Any, output: Any = None, target: Any = None) -> Parts:
        """Take a 0-d mean, and the output and target if each is one tensor."""
        if self._weighting.reduction != "mean":
            raise LossError(
                f'{self.name} must have reduction="mean", got {self._weighting.reduction!r}.'
            )
        if not isinstance(value, Tensor) or value.ndim:
            raise LossError(f"{self.name} must return nothing but a 0-d tensor, got {_got(value)}.")
        if isinstance(output, Tensor) and isinstance(target, Tensor):
            return value, (output,), (target,)
        return value, (), ()


class _CriterionMeasure(_WeightedMeasure):
    """A criterion module of the user's own: ``criterion(model(*inputs), target)``."""

    def __init__(
        self,
        criterion: nn.Module,
        weighting: _Weighting,
        metrics: tuple[Metric, ...],
        shared: tuple[nn.Module, ...],
    ) -> None:
        super().__init__(type(criterion).__name__, weighting, metrics)
        self._criterion, self._shared = criterion, shared

    def to(self, device: torch.device) -> Measure:
        tensors = [*self._criterion.parameters(), *self._criterion.buffers()]
        if all(tensor.device == device for tensor in tensors):
            return self
        # A criterion that holds the model must go on seeing that very model.
        keep = {id(module): module for module in self._shared}
        criterion = copy.deepcopy(self._criterion, keep).to(device)
        return _CriterionMeasure(criterion, self._weighting, self.metrics, self._shared)

    def _terms(self, model: nn.Module, batch: Batch) -> Terms:
        output, target = predict(model, batch, self.name)
        value = self._criterion(unwrap_logits(output), target)
        return self._finish(value, batch, target, self._measured(output, target, batch))

    def captured(self, model: nn.Module, batch: Batch) -> Parts:
        output, target = predict(model, batch, self.name)
        logits = unwrap_logits(output)
        return self._parts(self._criterion(logits, target), logits, target)

    def _identity(self) -> dict[str, JSON]:
        described = of_module(self._criterion, self._shared)
        return {"criterion": described, **self._weighting.identity}


class _FunctionMeasure(_WeightedMeasure):
    """``f(model, batch)``."""

    _hint = " It is called as f(model, batch)."

    def __init__(self, function: Callable[..., Any], weighting: _Weighting) -> None:
        super().__init__(getattr(function, "__name__", type(function).__name__), weighting)
        self._function = function

    def _terms(self, model: nn.Module, batch: Batch) -> Terms:
        return self._finish(self._function(model, batch), batch, labels_of(batch), {})

    def captured(self, model: nn.Module, batch: Batch) -> Parts:
        return self._parts(self._function(model, batch))

    def _identity(self) -> dict[str, JSON]:
        return {"function": of_callable(self._function), **self._weighting.identity}


class _ModelMeasure(_WeightedMeasure):
    """The loss that the model's own output carries."""

    _hint = " Without `loss`, the model gets the whole batch and returns `.loss`."

    def __init__(self, weighting: _Weighting, metrics: tuple[Metric, ...]) -> None:
        super().__init__("the model's .loss", weighting, metrics)

    def _terms(self, model: nn.Module, batch: Batch) -> Terms:
        output, loss = self._called(model, batch)
        labels = labels_of(batch)
        measured = self._measured(output, labels, batch) if self.metrics else {}
        return self._finish(loss, batch, labels, measured)

    def captured(self, model: nn.Module, batch: Batch) -> Parts:
        output, loss = self._called(model, batch)
        return self._parts(loss, unwrap_logits(output), labels_of(batch))

    def _called(self, model: nn.Module, batch: Batch) -> tuple[Any, Any]:
        """Call the model; return its output, and the loss that the output carries."""
        output = call_model(model, batch)
        loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if loss is None:
            raise LossError(
                "With `loss=None` the model must return an object with `.loss`, got "
                f"{_got(output)} for the batch {describe(batch)}; are labels missing?"
            )
        return output, loss

    def _identity(self) -> dict[str, JSON]:
        return {"model": "loss", **self._weighting.identity}


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
        raise ArgumentError(
            f"`loss` must be one of {', '.join(TORCH_LOSSES)}, got {loss!r}; any other loss is a "
            "function f(model, batch)."
        )
    known = _torch_measure(loss, count, reduction, metrics)
    if known is not None:
        return known
    own = getattr(loss, "reduction", None) if isinstance(loss, nn.Module) else None
    how = str(reduction or (own if own in ("sum", "none") else "mean"))
    if isinstance(loss, nn.Module):
        weighting = _Weighting(count, how, shifted=False)
        ignored = getattr(loss, "ignore_index", IGNORED)
        found = resolve_metrics(metrics, decision="any", ignore_index=ignored)
        return _CriterionMeasure(loss, weighting, found, tuple(model.modules()))
    weighting = _Weighting(count, how, shifted=_is_causal(model))
    if loss is None:
        found = resolve_metrics(metrics, decision="any", shifted=weighting.shifted)
        return _ModelMeasure(weighting, found)
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
    return _FunctionMeasure(loss, weighting)


def _torch_measure(
    loss: Loss, count: CountRule, reduction: str | None, metrics: Metrics
) -> _TorchMeasure | None:
    """Return the measure if this is a loss of torch's own."""
    criterion = loss if isinstance(loss, nn.Module) else None
    if criterion is not None:
        found = of_criterion(criterion)
    else:
        found = (TORCH_LOSSES[loss], {}) if isinstance(loss, str) else of_function(loss)
    if found is None:
        return None
    torch_loss, options = found
    if count is not None:
        raise ArgumentError(
            f"`count` must be None for {torch_loss.name}, which is weighted by what torch divides "
            f"by, got {count!r}."
        )
    if options.get("size_average") is not None or options.get("reduce") is not None:
        raise ArgumentError("`size_average` and `reduce` must be replaced by `reduction`.")
    if reduction is not None:
        if criterion is not None and options.get("reduction") != reduction:
            raise ArgumentError(
                f"`reduction` must be that of the criterion, {options.get('reduction')!r}, or "
                f"None, got {reduction!r}."
            )
        options = {**options, "reduction": reduction}
    return _TorchMeasure(torch_loss, options, criterion, metrics)


def _is_hooked(criterion: nn.Module | None) -> bool:
    """Whether somebody sees what a criterion is called with."""
    return criterion is not None and bool(criterion._forward_hooks or criterion._forward_pre_hooks)


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


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


def _ignore_index(options: Options) -> int:
    ignored = options.get("ignore_index")
    return IGNORED if ignored is None else ignored


def _divided(value: Tensor, count: Count) -> Tensor:
    """Make a mean of a sum, or of losses per sample; NaN if nothing counts."""
    total = value.sum() if value.ndim else value
    if isinstance(count, Tensor):
        return total / count.to(total.dtype)
    return total / count if count else total * math.nan


def _got(value: Any) -> str:
    if isinstance(value, Tensor):
        return describe(value)
    inside = isinstance(value, (tuple, list, Mapping))
    return f"{type(value).__name__} {describe(value) if inside else format(repr(value), '.40')}"
