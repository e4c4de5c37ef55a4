"""What the provenance says about a loader: does it shuffle, leave samples out, draw them anew?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from landscapex._batch import Batch, digest

FROZEN = "was frozen"  # how notes on data end that another reading would find different
_PROBED_SAMPLES = 4  # read twice to notice augmentation; a coin flip stays hidden with p = 1/16


def random_sampler(source: Iterable[Batch]) -> Any:
    """The sampler of a loader if it draws at random; otherwise, and without a loader, None."""
    if not isinstance(source, DataLoader):
        return None
    sampler = getattr(source.batch_sampler, "sampler", source.sampler)
    random = isinstance(sampler, (RandomSampler, SubsetRandomSampler, WeightedRandomSampler))
    return sampler if random or getattr(sampler, "shuffle", False) is True else None


def loader_notes(source: Iterable[Batch], *, frozen: bool) -> list[str]:
    """What is to be said of a loader.

    Args:
        source: Anything; there is something to say of a DataLoader alone.
        frozen: Whether its first pass is kept.

    Returns:
        Lines.
    """
    if not isinstance(source, DataLoader):
        return []
    notes = []
    if (sampler := random_sampler(source)) is not None:
        order = f"its first order {FROZEN}" if frozen else "every pass must have the same order"
        notes.append(f"the loader shuffles ({type(sampler).__name__}): {order}")
    if isinstance(source.dataset, IterableDataset):
        return notes
    available = len(source.dataset)  # type: ignore[arg-type]
    if (dropped := _left_out(source, available)) > 0:
        notes.append(f"the loader leaves out {dropped} of the {available} samples of its dataset")
    if frozen and _augments(source, available):
        notes.append(f"the dataset draws its samples at random: the first draw {FROZEN}")
    return notes


def _left_out(loader: DataLoader[Any], available: int) -> int:
    """Samples that a loader never gives: dropped, of another rank, or not in its subset."""
    if loader.batch_size is None:  # the user's own batch sampler, or no batching at all
        return 0
    sampled = len(loader.sampler)  # type: ignore[arg-type]
    used = sampled - sampled % loader.batch_size if loader.drop_last else sampled
    return available - used


def _augments(loader: DataLoader[Any], length: int) -> bool:
    """Read a few samples twice: two draws that differ mean augmentation."""
    probed = [[index] for index in range(min(_PROBED_SAMPLES, length)) for _ in range(2)]
    with contextlib.suppress(Exception):  # a dataset that only its own sampler can index
        # With workers the dataset may never have been opened in this process, and must not be now;
        # one reads both draws, for two of them draw differently.
        again = DataLoader(
            loader.dataset,
            batch_sampler=probed,
            collate_fn=list,
            num_workers=min(loader.num_workers, 1),
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            timeout=loader.timeout,
        )
        draws = [digest(samples) for samples in again]
        return draws[::2] != draws[1::2]
    return False
