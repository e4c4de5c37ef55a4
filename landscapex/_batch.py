"""One batch: its structure, its samples, the device it is on and the hash of its bytes."""

from __future__ import annotations

import bisect
import contextlib
import copy
import hashlib
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from landscapex.errors import DataError

Batch: TypeAlias = Any  # a tensor, or tuples, lists and mappings of batches and of other objects

TARGET_KEYS = ("labels", "label", "targets", "target", "y")
_HASH_FORMAT = b"landscapex batch 1\n"
_DESCRIBED = 8  # items of a sequence that a message shows
_IMMUTABLE = (str, bytes, int, float, complex, bool, type(None))


def call_model(model: nn.Module, inputs: Any) -> Any:
    """Call a model on the inputs of a batch.

    Args:
        model: The model.
        inputs: Keywords if a mapping, arguments if a tuple or list, nothing if None.

    Returns:
        What the model returns.
    """
    if isinstance(inputs, Tensor):
        return model(inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)) and not isinstance(inputs, PackedSequence):
        return model(*inputs)
    return model() if inputs is None else model(inputs)


def predict(model: nn.Module, batch: Batch, name: str) -> tuple[Any, Any]:
    """Split a batch into inputs and target, and call the model on the inputs.

    Args:
        model: The model.
        batch: ``(*inputs, target)``, or a mapping with the target under one of `TARGET_KEYS`.
        name: The loss that asks, for the message.

    Returns:
        What the model returned, and the target.

    Raises:
        DataError: If the batch has no target.
    """
    if isinstance(batch, (tuple, list)):
        if len(batch) > 1:
            *first, target = batch
            alone = len(first) == 1 and first[0] is not None
            return call_model(model, first[0] if alone else first), target
    elif isinstance(batch, Mapping):
        keys = [key for key in TARGET_KEYS if key in batch]
        if len(keys) == 1:
            inputs = {key: value for key, value in batch.items() if key != keys[0]}
            return call_model(model, inputs), batch[keys[0]]
    raise DataError(
        f"{name} must get batches (inputs, target), or mappings with the target under one of "
        f"{', '.join(map(repr, TARGET_KEYS))}, got {describe_keys(batch)}."
    )


def labels_of(batch: Batch) -> Any:
    """Find the labels of a batch.

    Args:
        batch: Any batch.

    Returns:
        ``batch["labels"]``, or the last of several elements, or None.
    """
    if isinstance(batch, Mapping):
        return batch.get("labels")
    several = isinstance(batch, (tuple, list)) and len(batch) > 1
    return batch[-1] if several and not isinstance(batch, PackedSequence) else None


def describe_keys(batch: Batch) -> str:
    """Write the keys of a mapping, or the structure of another batch.

    Args:
        batch: Any batch.

    Returns:
        One line.
    """
    return f"keys {list(batch)}" if isinstance(batch, Mapping) else describe(batch)


def tensor_leaves(batch: Batch) -> Iterator[Tensor]:
    """Yield the tensors of a batch in order, depth first.

    Args:
        batch: Any batch.

    Yields:
        Each tensor.

    Example:
        >>> [leaf.shape[0] for leaf in tensor_leaves({"x": torch.zeros(3), "y": [torch.zeros(2)]})]
        [3, 2]
    """
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from tensor_leaves(value)
    elif isinstance(batch, (tuple, list)):
        for value in batch:
            yield from tensor_leaves(value)


def sample_count(batch: Batch) -> int:
    """Count the samples of a batch: the first dimension of its first tensor.

    Args:
        batch: Any batch; without tensors, or if its first tensor is 0-d, it is one sample.

    Returns:
        The number of samples.

    Example:
        >>> sample_count((torch.zeros(8, 3), torch.zeros(8)))
        8
    """
    if isinstance(batch, PackedSequence):
        return int(batch.batch_sizes[0])
    if isinstance(batch, (tuple, list)) and batch and isinstance(batch[0], PackedSequence):
        return sample_count(batch[0])
    first = next(tensor_leaves(batch), None)
    return first.shape[0] if first is not None and first.ndim else 1


def describe(batch: Batch) -> str:
    """Write the structure of a batch in one line, for messages.

    Args:
        batch: Any batch.

    Returns:
        Containers, dtypes and shapes.

    Example:
        >>> describe((torch.zeros(8, 3), {"label": 1}))
        "(float32 [8, 3], {'label': int})"
    """
    if isinstance(batch, Tensor):
        return f"{str(batch.dtype).removeprefix('torch.')} {list(batch.shape)}"
    if isinstance(batch, Mapping):
        return "{" + ", ".join(f"{k!r}: {describe(v)}" for k, v in batch.items()) + "}"
    if isinstance(batch, (tuple, list)):
        inside = ", ".join(describe(value) for value in batch[:_DESCRIBED])
        inside += f", ... {len(batch)} in all" if len(batch) > _DESCRIBED else ""
        return f"[{inside}]" if isinstance(batch, list) else f"({inside})"
    return "None" if batch is None else type(batch).__name__


def to_device(batch: Batch, device: torch.device, *, non_blocking: bool = False) -> Batch:
    """Move every tensor of a batch, keeping its structure and the types of its containers.

    Args:
        batch: Any batch. Objects that are not containers move by their own ``.to(device)``, if any.
        device: Where to.
        non_blocking: Passed to ``Tensor.to``; only safe to use for sources in pinned memory.

    Returns:
        The batch on `device`; tensors that were there already are not copied.

    Example:
        >>> to_device([torch.zeros(2), "name"], torch.device("cpu"))
        [tensor([0., 0.]), 'name']
    """

    def move(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.to(device, non_blocking=non_blocking)
        if isinstance(leaf, _IMMUTABLE) or not callable(getattr(leaf, "to", None)):
            return leaf
        return leaf.to(device)

    return map_leaves(batch, move)


def map_leaves(batch: Batch, function: Callable[[Any], Any]) -> Batch:
    """Rebuild a batch with `function` applied to everything that is not a container.

    Args:
        batch: Any batch.
        function: Called with each leaf.

    Returns:
        Containers of the same types, with what `function` returned.
    """
    if isinstance(batch, (Tensor, PackedSequence)):
        return function(batch)
    if isinstance(batch, Mapping):
        moved = {key: map_leaves(value, function) for key, value in batch.items()}
        if type(batch) is dict or not isinstance(batch, MutableMapping):
            return moved
        rebuilt = copy.copy(batch)  # keeps what BatchEncoding, defaultdict, ... hold beside items
        for key, value in moved.items():
            rebuilt[key] = value
        return rebuilt
    if isinstance(batch, (tuple, list)):
        items = [map_leaves(value, function) for value in batch]
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    return function(batch)


def form(batch: Batch, size: int) -> Batch | None:
    """Tell what batches must have in common to be regrouped.

    Args:
        batch: Any batch.
        size: Its samples.

    Returns:
        The dtype and the shape of one sample in the place of each tensor; None if a leaf is not a
        tensor of samples.
    """
    parts: list[Any] = []

    def note(leaf: Any) -> Any:
        plain = isinstance(leaf, Tensor) and leaf.layout == torch.strided and not leaf.is_nested
        separate = plain and leaf.ndim > 0 and len(leaf) == size and not leaf.requires_grad
        parts.append((leaf.dtype, leaf.shape[1:]) if separate else None)
        return parts[-1]

    noted = map_leaves(batch, note)
    return None if None in parts or not parts else noted


def regrouped(kept: Sequence[Batch], sizes: Sequence[int], size: int) -> tuple[Batch, ...]:
    """Put the samples of batches into batches of another size, in order.

    Args:
        kept: Batches of one `form`.
        sizes: Samples of each.
        size: Samples of each new batch; the last one takes a rest of less than half of it.

    Returns:
        The new batches: views of the old ones where none is merged.
    """
    total = sum(sizes)
    number = total // size + (2 * (total % size) >= size)
    starts = [size * i for i in range(max(1, number))]
    cuts = [*starts[1:], total]
    offsets = list(itertools.accumulate(sizes, initial=0))
    batches = []
    for start, end in zip(starts, cuts, strict=True):
        first, last = bisect.bisect_right(offsets, start) - 1, bisect.bisect_left(offsets, end)
        pieces = [
            map_leaves(batch, operator.itemgetter(slice(max(start - offset, 0), end - offset)))
            for batch, offset in zip(kept[first:last], offsets[first:last], strict=True)
        ]
        leaves = zip(*(tensor_leaves(piece) for piece in pieces), strict=True)
        merged = [torch.cat(parts) if len(parts) > 1 else parts[0] for parts in leaves]
        batches.append(map_leaves(pieces[0], _in_turn(merged)))
    return tuple(batches)


def _in_turn(leaves: Iterable[Tensor]) -> Callable[[Any], Tensor]:
    """For `map_leaves`: put these in the places of the leaves."""
    left = iter(leaves)
    return lambda _: next(left)


def to_channels_last(leaf: Tensor) -> Tensor:
    """Lay images out with their channels together.

    Args:
        leaf: Of any shape.

    Returns:
        The same numbers; the same tensor if it is not ``(N, C, H, W)`` and floating point.
    """
    if leaf.ndim != 4 or not leaf.is_floating_point():
        return leaf
    # `contiguous` returns images of one channel as they are, and torch goes by their strides
    made = torch.empty_like(leaf, memory_format=torch.channels_last)
    return made.copy_(leaf.detach()) if made.stride() != leaf.stride() else leaf


def snapshot(batch: Batch, device: torch.device, pin: bool) -> Batch:
    """Copy a batch, so that nobody else holds its memory.

    Args:
        batch: Any batch.
        device: Where the copy lives.
        pin: Whether to keep it in page-locked memory, for faster copies to a GPU.

    Returns:
        The copy. Inputs that require a gradient become leaves that require one.
    """

    def copy_leaf(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            kept = leaf.detach().to(device, copy=True)
            kept = kept.pin_memory() if pin else kept
            return kept.requires_grad_() if leaf.requires_grad else kept
        if isinstance(leaf, _IMMUTABLE):
            return leaf
        with contextlib.suppress(Exception):  # an object that cannot be copied is kept as it is
            leaf = copy.deepcopy(leaf)
        return to_device(leaf, device)

    with torch.inference_mode(False):  # inference tensors could not serve a gradient later
        return map_leaves(batch, copy_leaf)


def digest(batch: Batch) -> str:
    """Hash the structure, keys, dtypes, shapes and bytes of a batch, wherever its tensors lie.

    Args:
        batch: Any batch.

    Returns:
        SHA-256 in hexadecimal; the same in every process and on every device.

    Example:
        >>> digest(torch.tensor([1.0, 2.0])) == digest(torch.tensor([1.0, 2.5]))
        False
    """
    hasher = hashlib.sha256(_HASH_FORMAT)
    _feed(hasher.update, batch, ())
    return hasher.hexdigest()


def _feed(update: Callable[[Any], None], item: Any, parents: tuple[int, ...]) -> None:
    """Feed one item; records carry their length, so no two batches feed the same bytes."""
    if isinstance(item, Tensor):
        _feed_tensor(update, item)
    elif isinstance(item, (np.ndarray, np.generic)):
        update(f"array {item.dtype.str} {item.shape};".encode())
        if item.dtype.hasobject:
            _feed(update, item.tolist(), parents)
        else:
            update(item.tobytes())
    elif isinstance(item, float):
        update(f"float {item.hex()};".encode())
    elif isinstance(item, _IMMUTABLE):
        text = item if isinstance(item, bytes) else str(item).encode()
        update(f"{type(item).__name__} {len(text)};".encode() + text)
    elif isinstance(item, (Mapping, tuple, list)):
        kind = next(c for c in (Mapping, tuple, list) if isinstance(item, c)).__name__
        update(f"{kind} {len(item)};".encode())
        for pair in item.items() if isinstance(item, Mapping) else zip(item):
            for value in pair:
                _feed(update, value, parents)
    else:
        _feed_object(update, item, parents)


def _feed_object(update: Callable[[Any], None], item: Any, parents: tuple[int, ...]) -> None:
    """Feed any other object by its attributes, or else by its text if that holds no address."""
    update(f"object {type(item).__module__}.{type(item).__qualname__};".encode())
    if isinstance(item, (set, frozenset)):
        _feed(update, sorted(digest(value) for value in item), parents)
    elif callable(item):
        _feed(update, getattr(item, "__qualname__", ""), parents)
    elif getattr(item, "__dict__", None) and id(item) not in parents:
        _feed(update, vars(item), (*parents, id(item)))
    elif " at 0x" not in (text := repr(item)):
        _feed(update, text, parents)


def _feed_tensor(update: Callable[[Any], None], tensor: Tensor) -> None:
    update(f"tensor {tensor.dtype} {tuple(tensor.size(i) for i in _sized_dims(tensor))};".encode())
    if tensor.is_nested:
        for part in tensor.unbind():
            _feed_tensor(update, part)
        return
    tensor = tensor.detach()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    tensor = tensor.cpu().resolve_conj().resolve_neg().contiguous()
    update(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _sized_dims(tensor: Tensor) -> range:
    return range(1 if tensor.is_nested else tensor.ndim)  # nested: ragged
