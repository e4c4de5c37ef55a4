"""What torch's own losses divide by when they take a mean.

The mean of a data set is ``sum(n_b l_b) / sum(n_b)``, and it equals the mean over all samples only
if ``n_b`` is what the mean ``l_b`` of batch ``b`` was divided by. That is not always the number of
samples: there are ignored targets, class weights, elements of the output. One table holds it for
each loss of `torch.nn.functional`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landscapex._batch import describe
from landscapex.errors import LossError

Count: TypeAlias = Tensor | float  # a 0-d tensor on the device of the batch, or a number
Tensors: TypeAlias = tuple[Any, ...]
Options: TypeAlias = Mapping[str, Any]

_REGISTER = {"AVX512": 64, "AVX2": 32}.get(torch.backends.cpu.get_cpu_capability(), 16)  # bytes
_ROWS = 128  # from which on it pays to turn a table on its side


class IdentityCache:
    """Values that depend on one tensor only, kept while that very tensor lives unchanged."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[Any, tuple[int, int], Any]] = {}

    def get(
        self, tensor: Tensor, compute: Callable[[], Any], constant: Tensor | None = None
    ) -> Any:
        """Return the value kept for `tensor`, or compute and keep it.

        A 0-d tensor is kept as a number, so that only the first pass waits for its device.

        Args:
            tensor: What the value depends on.
            compute: Called without arguments if nothing is kept.
            constant: A tensor that is always the same one, but may be written to.

        Returns:
            The value.
        """
        if tensor.is_inference() or (constant is not None and constant.is_inference()):
            return compute()  # such tensors do not tell whether they changed
        version = tensor._version, 0 if constant is None else constant._version
        key = id(tensor)
        entry = self._entries.get(key)
        if entry is not None and entry[0]() is tensor and entry[1] == version:
            return entry[2]
        value = compute()
        if isinstance(value, Tensor) and not value.ndim:
            value = value.item()
        forget = functools.partial(_forget, self._entries, key)
        self._entries[key] = (weakref.ref(tensor, forget), version, value)
        return value


def _forget(entries: dict[int, Any], key: int, _: Any) -> None:
    entries.pop(key, None)


def sum_exactly(tensor: Tensor) -> Tensor:
    """Sum in float64 (floating point) or int64 (everything else).

    Args:
        tensor: Any shape.

    Returns:
        The 0-d sum, on the same device.
    """
    if tensor.dtype == torch.bool:
        return tensor.count_nonzero()  # three times as fast as a sum
    return tensor.sum(dtype=torch.float64 if tensor.is_floating_point() else torch.int64)


def as_exact(number: Tensor | float) -> Tensor:
    """Widen a number to float64, or int64 for integers.

    Args:
        number: A number or a 0-d tensor.

    Returns:
        A 0-d tensor, detached.
    """
    if isinstance(number, Tensor):
        return sum_exactly(number.detach())
    return torch.tensor(number, dtype=torch.float64 if isinstance(number, float) else torch.int64)


def scores_in_columns(scores: Any, labels: Tensor) -> tuple[Any, Tensor]:
    """Turn a table of scores for `cross_entropy` on its side, where torch is faster so.

    On the CPU, torch's softmax works number by number over rows shorter than a register, but on a
    whole register of neighbours over columns: seven times as fast for 1,500 rows of 10 classes.

    Args:
        scores: ``(N, C)``.
        labels: ``(N,)``.

    Returns:
        The same table as one sample of many positions, ``(1, C, N)`` and ``(1, N)``, which has the
        same mean and sum; or what was given, where that is as fast.

    Example:
        >>> scores, labels = scores_in_columns(torch.zeros(200, 3), torch.zeros(200).long())
        >>> scores.shape, labels.shape
        (torch.Size([1, 3, 200]), torch.Size([1, 200]))
    """
    if (
        isinstance(scores, Tensor)
        and (scores.ndim, labels.ndim) == (2, 1)
        and scores.is_cpu
        and not scores.requires_grad
        and scores.dtype in (torch.float32, torch.float64)
        and scores.shape[1] * scores.itemsize < _REGISTER
        and scores.shape[0] == len(labels) >= _ROWS
    ):
        return scores.t()[None], labels[None]
    return scores, labels


def unwrap_logits(output: Any) -> Any:
    """Take the logits out of what a model returned.

    Args:
        output: Anything.

    Returns:
        ``output.logits`` or ``output["logits"]`` if there is such a tensor, else `output`.
    """
    if isinstance(output, Tensor):
        return output
    mapping = isinstance(output, Mapping)
    logits = output.get("logits") if mapping else getattr(output, "logits", None)
    return logits if isinstance(logits, Tensor) else output


def output_tensors(output: Any) -> Tensors:
    """Unwrap what a model returned.

    Args:
        output: A tensor, a tuple or list, or an object or mapping with ``logits`` (Hugging Face).

    Returns:
        The tensors that go into a loss.

    Raises:
        LossError: If it is anything else.
    """
    output = unwrap_logits(output)
    if isinstance(output, Tensor):
        return (output,)
    if isinstance(output, (tuple, list)):
        return tuple(output)
    raise LossError(
        "The model must return a tensor, a tuple of tensors or an object with `.logits`, "
        f"got {describe(output)}; pass `f(model, batch)` as the loss."
    )


def _elements(outputs: Tensors, targets: Tensors, options: Options) -> Count:
    """Elements of the loss before it is reduced: output and target broadcast."""
    shape = targets[0].shape
    if outputs[0].shape != shape:
        shape = torch.broadcast_shapes(outputs[0].shape, shape)
    return math.prod(shape)


def _weights_or_elements(outputs: Tensors, targets: Tensors, options: Options) -> Count:
    weight = options.get("weight")
    return _elements(outputs, targets, options) if weight is None else sum_exactly(weight)


def _batch_or_elements(outputs: Tensors, targets: Tensors, options: Options) -> Count:
    if options.get("reduction") == "batchmean":
        return outputs[0].shape[0] if outputs[0].ndim else 1
    return _elements(outputs, targets, options)


def _class_targets(outputs: Tensors, targets: Tensors, options: Options) -> Count:
    """Targets that count, each with the weight of its class; positions for class probabilities."""
    target = targets[0]
    weight = options.get("weight")
    if target.is_floating_point():
        # Probabilities have the shape of the logits, classes on axis 1: neither weights nor
        # ignore_index enter what torch divides by.
        return target.numel() // max(1, target.shape[min(1, target.ndim - 1)])
    ignored = options.get("ignore_index")
    valid = target != (-100 if ignored is None else ignored)
    if weight is None:
        return sum_exactly(valid)
    return sum_exactly(weight.detach()[torch.where(valid, target, 0).long()] * valid)


def _rows(outputs: Tensors, targets: Tensors, options: Options) -> Count:
    return outputs[0].shape[0] if outputs[0].ndim > 1 else 1


def _label_sets(outputs: Tensors, targets: Tensors, options: Options) -> Count:
    return math.prod(outputs[0].shape[:-1])


def _sequences(outputs: Tensors, targets: Tensors, options: Options) -> Count:
    return outputs[0].shape[1] if outputs[0].ndim == 3 else 1  # (T, N, C) or (T, C)


def _pairs(outputs: Tensors, targets: Tensors, options: Options) -> Count:
    return math.prod(torch.broadcast_shapes(*(t.shape for t in (*outputs, targets[0]))))


def _embedding_pairs(outputs: Tensors, targets: Tensors, options: Options) -> Count:
    shapes = (targets[0].shape, *(output.shape[:-1] for output in outputs))
    return math.prod(torch.broadcast_shapes(*shapes))


@dataclass(frozen=True)
class TorchLoss:
    """One loss of `torch.nn.functional`.

    Attributes:
        name: Its name there.
        criterion: The module of `torch.nn` that calls it.
        count: What its mean divides by, from outputs, targets and options.
        rule: The same in words.
        outputs: Tensors that the model returns for it.
        targets: Tensors that the target is made of.
        decision: How outputs become decisions: ``"class"`` (largest score), ``"logit"`` (above 0),
            ``"probability"`` (above 0.5), ``"sign"`` (above 0, targets are -1 and 1), or None.
    """

    name: str
    criterion: str
    count: Callable[[Tensors, Tensors, Options], Count]
    rule: str
    outputs: int = 1
    targets: int = 1
    decision: str | None = None

    @property
    def function(self) -> Callable[..., Tensor]:
        """The function itself."""
        return getattr(F, self.name)

    def per_sample(self, options: Options) -> bool:
        """Tell whether samples may be regrouped into other batches.

        Args:
            options: Keywords of the function.

        Returns:
            False if a tensor among the options may hold one entry per sample of a batch, or if
            samples are not along the first dimension.
        """
        weight, positive = options.get("weight"), options.get("pos_weight")
        return (
            self.name not in ("ctc_loss", "linear_cross_entropy")
            and (weight is None or self.decision == "class")
            and (positive is None or positive.numel() == 1)
        )

    @property
    def counts_values(self) -> bool:
        """Whether the count needs the values of the target, and is worth keeping."""
        return self.count is _class_targets

    def arguments(self, outputs: Tensors, targets: Tensors) -> Tensors:
        """Put outputs and targets into the order of the function's arguments.

        Args:
            outputs: What the model returned.
            targets: What the batch holds.

        Returns:
            Positional arguments.
        """
        if self.name == "gaussian_nll_loss":  # (input, target, var)
            return outputs[0], targets[0], outputs[1]
        return outputs + targets


_TARGETS = "targets that are not ignored, each with the weight of its class (1 if there are none)"
_ELEMENTS = "elements of the output"

_WEIGHTS = f"{_ELEMENTS}, or the sum of the weights"
_BATCHMEAN = f'{_ELEMENTS}, or samples for "batchmean"'

TORCH_LOSSES: dict[str, TorchLoss] = {
    loss.name: loss
    for loss in (
        TorchLoss("cross_entropy", "CrossEntropyLoss", _class_targets, _TARGETS, decision="class"),
        TorchLoss("nll_loss", "NLLLoss", _class_targets, _TARGETS, decision="class"),
        TorchLoss(
            "linear_cross_entropy", "LinearCrossEntropyLoss", _class_targets, _TARGETS, outputs=2
        ),
        TorchLoss("multi_margin_loss", "MultiMarginLoss", _rows, "samples", decision="class"),
        TorchLoss("multilabel_margin_loss", "MultiLabelMarginLoss", _rows, "samples"),
        TorchLoss(
            "multilabel_soft_margin_loss",
            "MultiLabelSoftMarginLoss",
            _label_sets,
            "label sets",
            decision="logit",
        ),
        TorchLoss("binary_cross_entropy", "BCELoss", _elements, _ELEMENTS, decision="probability"),
        TorchLoss(
            "binary_cross_entropy_with_logits",
            "BCEWithLogitsLoss",
            _elements,
            _ELEMENTS,
            decision="logit",
        ),
        TorchLoss("soft_margin_loss", "SoftMarginLoss", _elements, _ELEMENTS, decision="sign"),
        TorchLoss("hinge_embedding_loss", "HingeEmbeddingLoss", _elements, _ELEMENTS),
        TorchLoss("mse_loss", "MSELoss", _weights_or_elements, _WEIGHTS),
        TorchLoss("l1_loss", "L1Loss", _weights_or_elements, _WEIGHTS),
        TorchLoss("smooth_l1_loss", "SmoothL1Loss", _elements, _ELEMENTS),
        TorchLoss("huber_loss", "HuberLoss", _elements, _ELEMENTS),
        TorchLoss("poisson_nll_loss", "PoissonNLLLoss", _elements, _ELEMENTS),
        TorchLoss("gaussian_nll_loss", "GaussianNLLLoss", _elements, _ELEMENTS, outputs=2),
        TorchLoss("kl_div", "KLDivLoss", _batch_or_elements, _BATCHMEAN),
        TorchLoss("margin_ranking_loss", "MarginRankingLoss", _pairs, "pairs", outputs=2),
        TorchLoss(
            "cosine_embedding_loss", "CosineEmbeddingLoss", _embedding_pairs, "pairs", outputs=2
        ),
        TorchLoss("ctc_loss", "CTCLoss", _sequences, "sequences", targets=3),
    )
    if hasattr(F, loss.name)  # linear_cross_entropy is newer than the oldest torch we serve
}


def of_criterion(criterion: nn.Module) -> tuple[TorchLoss, Options] | None:
    """Find the functional that a criterion calls, and the options it calls it with.

    Args:
        criterion: A criterion.

    Returns:
        The loss and its options, or None if `criterion` computes anything of its own. A subclass
        that inherits ``forward`` counts as torch's.
    """
    for loss in TORCH_LOSSES.values():
        kind = getattr(nn, loss.criterion)
        if not isinstance(criterion, kind) or type(criterion).forward is not kind.forward:
            continue
        if loss.name == "linear_cross_entropy":  # the criterion owns the weight
            loss = dataclasses.replace(loss, outputs=1)
        known = inspect.signature(loss.function).parameters
        return loss, {key: getattr(criterion, key) for key in known if hasattr(criterion, key)}
    return None


def of_function(function: Any) -> tuple[TorchLoss, Options] | None:
    """Recognise a function of `torch.nn.functional`, or a `functools.partial` of one.

    Args:
        function: Any callable.

    Returns:
        The loss and the keywords bound to it, or None.
    """
    options = getattr(function, "keywords", {})
    if getattr(function, "args", ()):
        return None
    plain = getattr(function, "func", function)
    loss = TORCH_LOSSES.get(getattr(plain, "__name__", ""))
    return (loss, options) if loss is not None and loss.function is plain else None
