"""How the eager engine lays out data for a processor: samples per batch, order in memory.

The rules count bytes and never look at a clock, so that a run that goes on elsewhere, or a shard,
has the same batches and the same bits. They were found by timing; see `batch_size`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from landscapex._batch import Batch, map_leaves, predict, tensor_leaves, to_channels_last
from landscapex.batches import FrozenBatches
from landscapex.engine import memory
from landscapex.engine.onednn import linear_is_faster, linear_modules
from landscapex.losses.measure import Measure
from landscapex.losses.reductions import output_tensors

_CACHE_BYTES = 4 << 20  # of the largest activation of a batch
_COPIED_BYTES = 1 << 30  # of data, at most, that are kept a second time
_PROBED = 8  # samples
_AGAIN = slice(3, 6)  # of these; neither the first nor the last, and no divisor as a number
# samples that are probed where memory is short, and those that then go through the model alone
_FEW = ((3, (1,)), (2, (0, 1)))
_TOLERANCE = 1e-3  # relative; one sample in two batches, where samples do not meet


@dataclass(frozen=True)
class Layout:
    """How data are laid out.

    Attributes:
        batch: Samples per batch; None leaves the user's batches as they are.
        channels_last: Whether the channels of images are together.
        onednn_linear: Whether oneDNN computes linear layers.
        onednn: Whether oneDNN takes part at all: not after it had no room for a kernel.
        most: Samples that go through the model at a time, at most: fewer than a batch where memory
            was short; None if it was not.
        most_in_gradients: The same where activations are kept. It decides about no number that
            others go on with, and is not recorded.
    """

    batch: int | None = None
    channels_last: bool = False
    onednn_linear: bool = False
    onednn: bool = True
    most: int | None = None
    most_in_gradients: int | None = None

    def apply(self, batches: FrozenBatches) -> FrozenBatches:
        """Lay batches out.

        Args:
            batches: As the user gave them.

        Returns:
            The same samples; these very batches if they cannot be laid out, or would have to be
            copied and are large.
        """
        if not batches.separable or batches.num_bytes > _COPIED_BYTES:
            return batches
        size = self.batch if batches.ours else None
        if size is not None and _is_near(batches, size):
            size = None
        return batches.arranged(size, channels_last=self.channels_last)

    def recorded(self) -> dict[str, Any]:
        """What a journal keeps; ``Layout(**recorded)`` is the layout again."""
        recorded = asdict(self)
        del recorded["most_in_gradients"]
        if self.onednn:  # as in journals from before there was a choice
            del recorded["onednn"]
        return recorded


def choose_layout(
    model: nn.Module, measure: Measure, data: Mapping[str, FrozenBatches], *, regroup: bool = True
) -> Layout:
    """Find a layout by a rule, and make sure that the model gives the same outputs in it.

    Eight samples go through the model, and three of them again; buffers are lent to it as copies.

    Args:
        model: In the mode of the evaluation.
        measure: The loss.
        data: Batches by name; the first decides.
        regroup: Whether the options of the run let samples be regrouped.

    Returns:
        The layout. Batches are those of the user where samples may not be regrouped, or meet in the
        model (batch statistics, contrast within a batch).
    """
    layout = _choose_batches(model, measure, next(iter(data.values()))) if regroup else Layout()
    linear = linear_is_faster() and bool(linear_modules(model))
    return replace(layout, onednn_linear=linear)


def _choose_batches(model: nn.Module, measure: Measure, first: FrozenBatches) -> Layout:
    if (
        not measure.regroupable
        or first.device.type != "cpu"
        or not first.separable
        or any(_is_compiled(m) for m in model.modules())
    ):
        return Layout()
    if first.num_samples < _PROBED:
        return Layout()
    batch = first.head(_PROBED)

    def outputs(samples: slice, channels_last: bool = False) -> list[Tensor]:
        part = map_leaves(batch, itemgetter(samples))
        if channels_last:
            part = map_leaves(part, to_channels_last)
        called = _with_own_buffers(model)
        return list(output_tensors(predict(called, part, measure.name)[0]))

    try:
        with _Outputs() as larger:
            expected = outputs(slice(_PROBED))
        with _Outputs() as smaller:
            found = outputs(_AGAIN)
        if not _same_samples(expected, found):
            return Layout()
        per_sample = _bytes_per_sample(larger.sizes, smaller.sizes)
    except Exception:  # whatever a model cannot do with fewer samples, it need not
        return Layout()
    size = None if per_sample is None else batch_size(per_sample, _bytes(model.parameters()))
    if not _prefers_channels_last(model, batch):
        return Layout(size)
    try:
        same = _same_samples(expected, outputs(_AGAIN, channels_last=True))
    except Exception:  # a view of what is no longer in one piece
        same = False
    return Layout(size, channels_last=same)


def samples_are_separate(model: nn.Module, measure: Measure, batches: FrozenBatches) -> bool:
    """Whether samples may go through the model in smaller batches than those of the user.

    One sample goes through it twice: between two others, and alone. Where there is no room for
    three, two go through it together, and each of them alone.

    Args:
        model: In the mode of the evaluation.
        measure: The loss.
        batches: Any data.

    Returns:
        False too if that cannot be found out: where there is room for one sample alone, say.
    """
    if not measure.regroupable or not batches.separable:
        return False
    called = _with_own_buffers(model)

    def outputs(batch: Batch) -> list[Tensor]:
        return list(output_tensors(predict(called, batch, measure.name)[0]))

    for count, alone in _FEW:
        if batches.num_samples < count:
            continue
        try:
            batch = batches.head(count)
            expected = outputs(batch)
            return all(
                _same_samples(expected, outputs(map_leaves(batch, itemgetter(s))), s)
                for s in (slice(k, k + 1) for k in alone)
            )
        except Exception as error:  # whatever a model cannot do with fewer samples, it need not
            if not memory.is_short(error):
                return False
            memory.let_go(error, batches.device)
    return False


def batch_size(activation_bytes: int, parameter_bytes: int) -> int:
    """Samples that go through a network together: a power of two.

    The largest activation takes 4 MB of a cache, more where parameters are many: they are read, and
    laid out for the kernels, once per batch. On one core of an AVX-512 machine this was within 3 %
    of the best power of two for 10 of 12 networks (MLPs, LeNet-5, ResNet-20, a small and a large
    VGG, MobileNet, a transformer, ...) and within 13 % for the others; the worst powers of two take
    1.2 to 4 times as long.

    Args:
        activation_bytes: Of the largest activation of one sample.
        parameter_bytes: Of all parameters.

    Returns:
        At least 1.

    Example:
        >>> batch_size(16 * 32 * 32 * 4, 1_080_000)
        64
    """
    samples = max(_CACHE_BYTES, parameter_bytes // 2) // max(1, activation_bytes)
    return 1 << max(0, samples.bit_length() - 1)


def _is_near(batches: FrozenBatches, size: int) -> bool:
    """Whether the batches are as good as they are: not larger, and not much smaller."""
    usual = sorted(batches.sizes)[len(batches.sizes) // 2]
    return usual <= size and (3 * size <= 4 * usual or usual == batches.num_samples)


def _prefers_channels_last(model: nn.Module, batch: Batch) -> bool:
    """Whether there are several convolutions of images, with fewer weights than activations."""
    # The weights stay as they are, and each call lays them out anew: 5 to 30 % less time for small
    # networks, 20 to 50 % more for a VGG-11 with 37 MB of weights.
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    weights = [m.weight for m in convolutions]
    return (
        len(convolutions) > 1
        and {w.dtype for w in weights} == {torch.float32}
        and _bytes(weights) <= _CACHE_BYTES
        and any(leaf.ndim == 4 and leaf.is_floating_point() for leaf in tensor_leaves(batch))
    )


def _is_compiled(module: nn.Module) -> bool:
    # other shapes would compile it again
    return type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None


def _with_own_buffers(model: nn.Module) -> Any:
    """The model, on copies of its buffers: what it writes there is lost."""
    buffers = {name: b.detach().clone() for name, b in model.named_buffers()}
    if not buffers:
        return model
    return lambda *args, **kwargs: functional_call(model, buffers, args, kwargs)


class _Outputs(TorchDispatchMode):
    """Notes the bytes of every tensor that an operator returns."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # torch would import its compiler (a second or two) to keep it away from the function below
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.sizes.append(sum(t.nbytes for t in tensor_leaves(result)))
        return result


def _bytes_per_sample(many: list[int], few: list[int]) -> int | None:
    """The largest growth with the samples: it leaves parameters and their views out."""
    samples = _PROBED - (_AGAIN.stop - _AGAIN.start)
    if len(many) != len(few):
        return None
    return max(((a - b) // samples for a, b in zip(many, few, strict=True)), default=0)


def _same_samples(expected: list[Tensor], found: list[Tensor], again: slice = _AGAIN) -> bool:
    """Whether samples have the same outputs in both batches."""
    if len(expected) != len(found):
        return False
    for a, b in zip(expected, found, strict=True):
        if a.ndim == 0 or a[again].shape != b.shape or not a.is_floating_point():
            return False
        a, b = a[again].detach().double(), b.detach().double()
        scale = float(a.abs().nan_to_num(posinf=0.0).amax()) if a.numel() else 0.0
        if not torch.allclose(a, b, rtol=_TOLERANCE, atol=_TOLERANCE * scale, equal_nan=True):
            return False
    return True


def _bytes(tensors: Any) -> int:
    return sum(t.nbytes for t in tensors)
