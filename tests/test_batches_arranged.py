"""Frozen samples in batches of another size or layout."""

from __future__ import annotations

import pytest
import torch
from batch_cases import CPU, Pair, data
from torch.nn.utils.rnn import pack_sequence

from landscapex.batches import freeze
from landscapex.errors import DataError


@pytest.mark.parametrize(
    ("sizes", "size", "expected"),
    [
        ((4, 4, 2), 5, (5, 5)),
        ((4, 4, 2), 4, (4, 4, 2)),
        ((4, 4, 1), 4, (4, 5)),  # a rest of less than half goes to the last batch
        ((3,), 7, (3,)),
        ((1, 0, 2), 7, (3,)),
        ((10,), 3, (3, 3, 4)),
        ((2, 2, 2, 2, 2), 1, (1,) * 10),
    ],
)
def test_arranged_batches_hold_the_same_samples_in_order(sizes, size, expected):
    x, y = data(sum(sizes))
    given = [
        {"x": a, "more": Pair(a.double(), [b])}
        for a, b in zip(x.split(sizes), y.split(sizes), strict=True)
    ]
    frozen = freeze(given, device=CPU)
    arranged = frozen.arranged(size)
    assert arranged.sizes == expected
    assert arranged.fingerprint == frozen.fingerprint
    assert arranged.num_samples == len(x)
    found = list(arranged)
    assert all(isinstance(batch["more"], Pair) for batch in found)
    assert torch.equal(torch.cat([batch["x"] for batch in found]), x)
    assert torch.equal(torch.cat([batch["more"].x for batch in found]), x.double())
    assert torch.equal(torch.cat([batch["more"].y[0] for batch in found]), y)
    assert torch.equal(frozen.head(len(x) - 1)["x"], x[:-1])


def test_batches_are_arranged_once_and_cut_without_a_copy():
    frozen = freeze(data(), device=CPU, batch_size=10)
    arranged = frozen.arranged(5)
    assert frozen.arranged(5) is arranged
    assert frozen.arranged(None) is frozen
    kept = [x.data_ptr() for x, _ in frozen]
    assert next(iter(arranged))[0].data_ptr() == kept[0]
    moved = frozen.to(torch.device("meta"))
    assert next(iter(moved.arranged(5)))[0].is_meta


def test_images_are_laid_out_with_their_channels_together():
    x, y = torch.randn(6, 3, 4, 5), torch.randint(9, (6, 1, 2, 2))
    frozen = freeze([(x[:4], y[:4]), (x[4:], y[4:])], device=CPU)
    for size, sizes in ((None, (4, 2)), (3, (3, 3))):
        arranged = frozen.arranged(size, channels_last=True)
        assert arranged.sizes == sizes
        assert all(a.is_contiguous(memory_format=torch.channels_last) for a, _ in arranged)
        assert torch.equal(torch.cat([a for a, _ in arranged]), x)
        assert all(b.is_contiguous() for _, b in arranged)  # integers are no images


@pytest.mark.parametrize(
    "given",
    [
        [(torch.zeros(2, 3), torch.zeros(2)), (torch.zeros(2, 4), torch.zeros(2))],
        [(torch.zeros(2, 3), torch.zeros(2)), (torch.zeros(2, 3), torch.zeros(2).long())],
        [(torch.zeros(2, 3), torch.zeros(2)), [torch.zeros(2, 3), torch.zeros(2)]],
        [(torch.zeros(2, 3), torch.zeros(3))],
        [(torch.zeros(2, 3), torch.tensor(0.0))],
        [(torch.zeros(2, 3), "name")],
        [(torch.zeros(2, 3, requires_grad=True), torch.zeros(2))],
        [(pack_sequence([torch.zeros(3, 1)]), torch.zeros(1))],
        [torch.zeros(2, 3).to_sparse()],
        [None],
    ],
    ids=["shapes", "dtypes", "containers", "lengths", "0-d", "text", "leaf", "packed", "sparse",
         "none"],
)  # fmt: skip
def test_batches_whose_samples_cannot_be_told_apart_are_not_arranged(given):
    frozen = freeze(given, device=CPU)
    assert not frozen.separable
    with pytest.raises(DataError, match=r"must be in memory and hold tensors of one common first"):
        frozen.arranged(1)


def test_data_that_are_read_again_are_not_arranged():
    assert not freeze([data()], device=CPU, cache="none").separable
    assert freeze([data()], device=CPU, cache="host").separable


def test_arranged_batches_are_watched_like_others():
    arranged = freeze([data(4), data(4)], device=CPU).arranged(8)
    batch = next(iter(arranged))
    batch[0].add_(1.0)
    with pytest.raises(DataError, match=r"must not be changed in place, got batch 0 \(float32"):
        next(iter(arranged))
