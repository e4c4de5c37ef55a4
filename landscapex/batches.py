"""Frozen data: every grid point sees the same batches, in the same order, with the same bytes.

A loader that shuffles, drops or augments gives another loss at every pass, and the difference
between two grid points is then noise. `freeze` reads the data once and keeps what it read; with
``cache="none"`` it reads again at each pass and compares a hash instead.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import operator
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from landscapex._batch import (
    Batch,
    describe,
    digest,
    form,
    map_leaves,
    regrouped,
    sample_count,
    snapshot,
    tensor_leaves,
    to_channels_last,
    to_device,
)
from landscapex._loaders import loader_notes, random_sampler
from landscapex.errors import ArgumentError, ArgumentTypeError, DataError, EmptyDataError

CACHES = ("auto", "device", "host", "none")
_BATCH_BYTES = 1 << 19  # of a batch of tensors: small enough for a cache, large enough for a call
_BATCH_SAMPLES = (32, 2048)  # but never fewer or more than this
_DATASET_BATCH = 64  # for datasets, whose samples are not known before they are read


@dataclass(frozen=True, eq=False, repr=False)
class FrozenBatches:
    """Batches that stay the same; iterating is one pass over them, on `device`.

    Attributes:
        name: What the data are called in messages.
        device: Where the batches are when they are handed out.
        cache: ``"device"``, ``"host"`` or ``"none"``: where they stay between passes.
        sizes: Samples per batch.
        fingerprint: SHA-256 over structure, dtypes, shapes and bytes of every batch, in order.
        notes: What a reader of the result should know about the data.
        ours: Whether the size of the batches was our choice: the user gave tensors or a dataset,
            and no size.
    """

    name: str
    device: torch.device
    cache: str
    sizes: tuple[int, ...]
    fingerprint: str
    notes: tuple[str, ...]
    ours: bool = False
    _digests: tuple[str, ...] = field(default=())
    _kept: tuple[Batch, ...] = field(default=())
    _versions: tuple[tuple[int, ...], ...] = field(default=())
    _source: Iterable[Batch] = field(default=())
    _arranged: dict[Any, FrozenBatches] = field(default_factory=dict)

    @property
    def num_samples(self) -> int:
        """Samples in one pass."""
        return sum(self.sizes)

    @property
    def reader(self) -> bool:
        """Whether every pass reads the user's data again."""
        return self.cache == "none"

    def __len__(self) -> int:
        """Batches in one pass."""
        return len(self.sizes)

    def __iter__(self) -> Iterator[Batch]:
        """Hand out every batch once.

        Yields:
            The batches, on `device`, in the frozen order.

        Raises:
            DataError: If a batch was changed in place, or a pass differs from the first one.
        """
        if self.cache == "none":
            yield from self._read_again()
            return
        on_device = self.cache == "device"
        for index, batch in enumerate(self._kept):
            # The counters say for the price of a comparison that nobody wrote to the batch.
            if _versions(batch) != self._versions[index]:
                raise DataError(
                    f"Batches of `{self.name}` must not be changed in place, got batch {index} "
                    f"{describe(batch)} written to by the model or the loss; copy it there first."
                )
            yield batch if on_device else to_device(batch, self.device, non_blocking=True)

    def to(self, device: torch.device) -> FrozenBatches:
        """Return the same batches for another device.

        Args:
            device: Where batches are wanted now.

        Returns:
            Batches of the same fingerprint; copies that lie in main memory are shared.
        """
        device = torch.device(device)
        if device == self.device:
            return self
        kept = self._kept
        if self.cache == "device":
            kept = tuple(to_device(batch, device) for batch in kept)
        return replace(
            self,
            device=device,
            notes=(*self.notes, f"the batches were moved from {self.device} to {device}"),
            _kept=kept,
            _versions=tuple(_versions(batch) for batch in kept),
            _arranged={},
        )

    def arranged(self, size: int | None, *, channels_last: bool = False) -> FrozenBatches:
        """Return the same samples in batches of another size, or in another memory format.

        Only for losses that are means over samples; see `Measure.regroupable`. What was arranged
        once is kept.

        Args:
            size: Samples per batch; the last batch takes a rest of less than half of it. None
                leaves the batches as they are.
            channels_last: Lay images (four dimensions, floating point) out with their channels
                together.

        Returns:
            Batches of the same fingerprint; these very ones if nothing changes.

        Raises:
            DataError: If they are not `separable`.

        Example:
            >>> pair = torch.zeros(5, 3), torch.zeros(5)
            >>> freeze(pair, device=torch.device("cpu"), batch_size=2).arranged(3).sizes
            (3, 2)
        """
        if size is None and not channels_last:
            return self
        if not self.separable:
            raise DataError(
                f"Batches of `{self.name}` must be in memory and hold tensors of one common first "
                f"dimension and otherwise equal shapes to be arranged anew, got {self!r}."
            )
        key = size, channels_last
        if key not in self._arranged:
            kept = self._kept if size is None else regrouped(self._kept, self.sizes, size)
            if channels_last:
                kept = tuple(map_leaves(batch, to_channels_last) for batch in kept)
            self._arranged[key] = replace(
                self,
                sizes=tuple(sample_count(batch) for batch in kept),
                _kept=kept,
                _versions=tuple(_versions(batch) for batch in kept),
                _arranged={},
            )
        return self._arranged[key]

    def head(self, samples: int) -> Batch:
        """The first samples as one batch.

        Args:
            samples: How many, at most `num_samples`; the batches must be `separable`.

        Returns:
            The batch; its tensors may share memory with those that are kept.
        """
        ends = list(itertools.accumulate(self.sizes))
        enough = next(k for k, end in enumerate(ends, start=1) if end >= samples)
        joined = regrouped(self._kept[:enough], self.sizes[:enough], ends[enough - 1])[0]
        return map_leaves(joined, operator.itemgetter(slice(samples)))

    @cached_property
    def separable(self) -> bool:
        """Whether the batches can be cut into samples, and samples put together to batches."""
        forms = [form(batch, n) for batch, n in zip(self._kept, self.sizes, strict=False)]
        return bool(forms) and forms[0] is not None and all(f == forms[0] for f in forms)

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of all tensors that are kept."""
        return sum(leaf.nbytes for batch in self._kept for leaf in tensor_leaves(batch))

    def _read_again(self) -> Iterator[Batch]:
        count = 0
        for count, batch in enumerate(self._source, start=1):
            if count > len(self) or digest(batch) != self._digests[count - 1]:
                found = "one more batch" if count > len(self) else f"another batch {count - 1}"
                raise self._differs(f"{found} {describe(batch)}")
            yield to_device(batch, self.device)
        if count < len(self):
            raise self._differs(f"{count} of {len(self)} batches")

    def _differs(self, found: str) -> DataError:
        return DataError(
            f'Every pass over `{self.name}` must be the same with cache="none", got {found}. Turn '
            f'shuffling and augmentation off, or freeze the first pass with cache="host".'
        )

    def __repr__(self) -> str:
        """Show sizes and where the batches are."""
        return (
            f"FrozenBatches({len(self)} batches, {self.num_samples} samples, "
            f"cache={self.cache!r}, device={str(self.device)!r}, {self.fingerprint[:12]})"
        )


def freeze(
    data: Any,
    *,
    device: torch.device,
    cache: str = "auto",
    batch_size: int | None = None,
    name: str = "data",
) -> FrozenBatches:
    """Read the data once and keep them.

    Reading may draw from global random generators (shuffling, augmentation, seeds of workers):
    whoever calls restores them.

    Args:
        data: A DataLoader; any iterable of batches; a tuple or mapping of tensors with one common
            first dimension, or one tensor, cut into batches in order; a `torch.utils.data.Dataset`,
            read in order; None for losses that need no data: one batch None, one sample.
        device: Where batches are wanted.
        cache: ``"device"`` keeps them on `device`, ``"host"`` in main memory (pinned when `device`
            is a GPU); ``"none"`` reads `data` again for each pass and compares hashes; ``"auto"``
            takes the first of these three that fits into half of the free memory.
        batch_size: Samples per batch for tensors and datasets; None takes about half a megabyte
            of tensors (32 to 2,048 samples), or 64 samples of a dataset. Loaders and iterables form
            their own batches.
        name: What the data are called in messages.

    Returns:
        The frozen batches.

    Raises:
        ArgumentError: If `cache` or `batch_size` has no such value.
        ArgumentTypeError: If `data` is none of the above.
        DataError: If tensors differ in their first dimension, or an iterator must be read twice.
        EmptyDataError: If there is no batch, or no sample.

    Example:
        >>> pair = torch.zeros(5, 3), torch.zeros(5)
        >>> freeze(pair, device=torch.device("cpu"), batch_size=2).sizes
        (2, 2, 1)
    """
    if cache not in CACHES:
        choices = ", ".join(map(repr, CACHES))
        raise ArgumentError(f"`cache` must be one of {choices}, got {cache!r}.")
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise ArgumentError(f"`batch_size` must be an integer of at least 1, got {batch_size!r}.")
    once = isinstance(data, Iterator)
    if once and cache == "none":
        raise DataError(
            f'`{name}` must be readable more than once with cache="none", got a one-shot '
            f'{type(data).__name__}: pass a re-iterable (a list, a DataLoader), or cache="host".'
        )
    device = torch.device(device)
    source, notes = _source(data, batch_size, name)
    reading = _Reading(
        source, device, cache, rereadable=not once and random_sampler(source) is None
    )
    if not reading.sizes:
        hint = "; an iterator can be read only once: was it used before?" if once else ""
        raise EmptyDataError(f"`{name}` must hold at least one batch, got none{hint}.")
    if not sum(reading.sizes):
        raise EmptyDataError(
            f"`{name}` must hold at least one sample, got {len(reading.sizes)} empty batches."
        )
    notes += reading.notes
    if once:
        notes.append(f"the {type(source).__name__} was consumed once and frozen")
    notes += loader_notes(source, frozen=reading.cache != "none")
    return FrozenBatches(
        name=name,
        device=device,
        cache=reading.cache,
        sizes=tuple(reading.sizes),
        fingerprint=hashlib.sha256("\n".join(reading.digests).encode()).hexdigest(),
        notes=tuple(notes),
        ours=batch_size is None and (isinstance(source, _Slices) or source is not data),
        _digests=tuple(reading.digests),
        _kept=tuple(reading.kept),
        _versions=tuple(_versions(batch) for batch in reading.kept),
        _source=source if reading.cache == "none" else (),
    )


class _Reading:
    """The first pass: sizes, hashes and, unless ``cache`` is ``"none"``, copies of the batches."""

    def __init__(
        self, source: Iterable[Batch], device: torch.device, cache: str, *, rereadable: bool
    ) -> None:
        self.sizes: list[int] = []
        self.digests: list[str] = []
        self.kept: list[Batch] = []
        self.notes: list[str] = []
        self.cache = cache
        self._bytes = 0
        self._came_from: set[str] = set()
        pin = device.type == "cuda"
        home = device if cache == "device" else torch.device("cpu")
        budget = _free_host_memory() // 2 if cache == "auto" and rereadable else None
        for batch in source:
            self.sizes.append(sample_count(batch))
            self.digests.append(digest(batch))
            for leaf in tensor_leaves(batch):
                self._bytes += leaf.numel() * leaf.element_size()
                self._came_from.add(str(leaf.device))
            if budget is not None and self._bytes > budget:
                self.cache, self.kept = "none", []
            if self.cache != "none":
                self.kept.append(snapshot(batch, home, pin and self.cache != "device"))
        self._settle(device)

    def _settle(self, device: torch.device) -> None:
        """Decide where the copies stay, and bring them there."""
        if self.cache == "none":
            self.notes.append("the data are read again for each pass and compared by a hash")
        elif self.cache == "auto":
            fits = device.type != "cuda" or self._bytes <= torch.cuda.mem_get_info(device)[0] // 2
            self.cache = "device" if fits else "host"
            if fits and device.type != "cpu":
                self._move(device)
        moved = sorted(place for place in self._came_from if torch.device(place) != device)
        if moved:
            when = "once" if self.cache == "device" else "for each pass"
            self.notes.append(f"the batches are moved from {', '.join(moved)} to {device} {when}")

    def _move(self, device: torch.device) -> None:
        """To the device, unless memory there is shorter than it seemed."""
        try:
            self.kept = [snapshot(batch, device, pin=False) for batch in self.kept]
        except torch.OutOfMemoryError:
            self.cache = "host"
            self.notes.append(f"the batches stay in main memory: {device} has no room for them")


@dataclass(frozen=True)
class _Slices:
    """Tensors with one common first dimension, cut into batches: an iterable that can be reread."""

    tensors: Tensor | tuple[Tensor, ...] | Mapping[Any, Tensor]
    batch_size: int

    def __iter__(self) -> Iterator[Batch]:
        length = next(tensor_leaves(self.tensors)).shape[0]
        for start in range(0, length, self.batch_size):
            part = slice(start, start + self.batch_size)
            yield map_leaves(self.tensors, operator.itemgetter(part))


def _source(data: Any, batch_size: int | None, name: str) -> tuple[Iterable[Batch], list[str]]:
    """Find out what kind of data these are; returns an iterable of batches, and notes."""
    if data is None:
        return (None,), []
    if isinstance(data, (Tensor, Mapping)) or (
        isinstance(data, tuple) and any(isinstance(item, Tensor) for item in data)
    ):
        return _slices(data, batch_size, name), []
    if isinstance(data, tuple) and any(isinstance(item, np.ndarray) for item in data):
        raise ArgumentTypeError(
            f"`{name}` must hold tensors, got {describe(data)}: use torch.from_numpy."
        )
    if isinstance(data, Dataset):
        return DataLoader(data, batch_size=batch_size or _DATASET_BATCH), []
    if isinstance(data, (str, bytes, np.ndarray)) or not isinstance(data, Iterable):
        raise ArgumentTypeError(
            f"`{name}` must be a DataLoader, an iterable of batches, a tuple or mapping of "
            f"tensors, a Dataset or None, got {type(data).__name__}."
        )
    ignored = f"batch_size={batch_size} does not apply: the data form their own batches"
    return data, [] if batch_size is None else [ignored]


def _slices(data: Any, size: int | None, name: str) -> _Slices:
    items = {None: data} if isinstance(data, Tensor) else data
    items = items if isinstance(items, Mapping) else dict(enumerate(items))
    if not items:
        raise EmptyDataError(f"`{name}` must hold at least one tensor, got {data!r}.")
    for key, item in items.items():
        if not isinstance(item, Tensor) or item.ndim == 0:
            raise ArgumentTypeError(
                f"`{name}` must hold only tensors with a first dimension of samples, got "
                f"{describe(item)} at {key!r}; pass a list for an iterable of batches."
            )
    if len({item.shape[0] for item in items.values()}) > 1:
        raise DataError(
            f"The tensors of `{name}` must have one common first dimension, got {describe(data)}."
        )
    return _Slices(data, size or _default_batch_size(list(items.values())))


def _default_batch_size(tensors: list[Tensor]) -> int:
    """Samples that go through a network together: the fewer, the larger each of them is."""
    fewest, most = _BATCH_SAMPLES
    if any(t.ndim > 1 and not t.is_floating_point() for t in tensors):
        return fewest  # tokens: an embedding makes each of them a vector
    sample_bytes = sum(t.numel() * t.element_size() for t in tensors) // max(1, len(tensors[0]))
    return max(fewest, min(most, _BATCH_BYTES // max(1, sample_bytes)))


def _versions(batch: Batch) -> tuple[int, ...]:
    if isinstance(batch, (tuple, list)):  # of tensors: the usual batch, at every point
        versions = [leaf._version for leaf in batch if isinstance(leaf, Tensor)]
        if len(versions) == len(batch):
            return tuple(versions)
    return tuple(leaf._version for leaf in tensor_leaves(batch))


def _free_host_memory() -> int:
    """Bytes of main memory that can be had; where the system does not tell, all there are."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
