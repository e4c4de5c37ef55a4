"""Kinds of data that are cut into batches, or refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from batch_cases import CPU, Squares, data, same, tensors_of
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from landscapex.batches import freeze
from landscapex.errors import ArgumentError, ArgumentTypeError, DataError, EmptyDataError


class Stream(IterableDataset):
    def __iter__(self):
        return iter(Squares(7)[i] for i in range(7))


def test_batches_of_tensors_hold_about_half_a_megabyte():
    def sizes(*shape, dtype=torch.float32):
        x = torch.zeros(shape, dtype=dtype)
        return freeze((x, torch.zeros(len(x), dtype=torch.float64)), device=CPU).sizes

    assert sizes(300, 64) == (300,)  # 264 bytes a sample
    assert sizes(300, 3, 32, 32) == (42, 42, 42, 42, 42, 42, 42, 6)  # 12,296 bytes
    assert sizes(40, 1 << 16)[0] == 32  # never fewer
    assert sizes(5000, 1)[0] == 2048  # never more
    assert sizes(100, 4, dtype=torch.int64)[0] == 32  # tokens grow in an embedding


def test_tuples_are_cut_in_order():
    x, y = data()
    frozen = freeze((x, y), device=CPU, batch_size=4)
    assert frozen.sizes == (4, 4, 2)
    assert (len(frozen), frozen.num_samples, frozen.cache) == (3, 10, "device")
    assert not frozen.reader
    parts = list(frozen)
    assert all(type(part) is tuple for part in parts)
    assert torch.equal(torch.cat([part[0] for part in parts]), x)
    assert torch.equal(torch.cat([part[1] for part in parts]), y)
    assert freeze((x, y), device=CPU).sizes == (10,)


def test_mappings_and_single_tensors_are_cut():
    x, y = data(5)
    first, last = freeze({"x": x, "labels": y}, device=CPU, batch_size=3)
    assert list(first) == ["x", "labels"]
    assert torch.equal(last["labels"], y[3:])
    assert [b.shape for b in freeze(x, device=CPU, batch_size=4)] == [(4, 3), (1, 3)]


def test_datasets_are_read_in_order():
    frozen = freeze(Squares(), device=CPU, batch_size=4)
    assert frozen.sizes == (4, 4, 2)
    assert torch.cat([y for _, y in frozen]).tolist() == [i * i for i in range(10)]
    assert freeze(Stream(), device=CPU, batch_size=4).sizes == (4, 3)


def test_loaders_and_lists_form_their_own_batches():
    loader = DataLoader(TensorDataset(*data()), batch_size=4)
    assert freeze(loader, device=CPU).sizes == (4, 4, 2)
    frozen = freeze([torch.zeros(2, 1), torch.zeros(3, 1)], device=CPU, batch_size=1)
    assert frozen.sizes == (2, 3)
    assert "batch_size=1 does not apply" in frozen.notes[0]
    assert freeze(((torch.zeros(2), 1), (torch.zeros(1), 2)), device=CPU).sizes == (2, 1)


def test_none_is_one_batch_of_one_sample():
    frozen = freeze(None, device=CPU)
    assert (list(frozen), frozen.sizes) == ([None], (1,))


def test_trap_20_every_batch_of_the_loader_is_used():
    loader = DataLoader(TensorDataset(torch.arange(103)), batch_size=10)
    seen = torch.cat([b[0] for b in freeze(loader, device=CPU)])
    assert seen.tolist() == list(range(103))


def test_workers_give_the_same_batches_as_none():
    loaders = [DataLoader(Squares(), batch_size=4, num_workers=n) for n in (0, 1)]
    one, other = (freeze(loader, device=CPU) for loader in loaders)
    assert one.fingerprint == other.fingerprint
    assert same(tensors_of(one), tensors_of(other))


@pytest.mark.parametrize(
    ("bad", "kind", "message"),
    [
        (3, ArgumentTypeError, "`test` must be a DataLoader, .* got int"),
        ("file.npz", ArgumentTypeError, "`test` must be a DataLoader, .* got str"),
        (np.zeros(3), ArgumentTypeError, "`test` must be a DataLoader, .* got ndarray"),
        ((torch.zeros(3), 5), ArgumentTypeError, "`test` must hold only tensors .* got int at 1"),
        ({"x": [1]}, ArgumentTypeError, r"must hold only tensors .* got \[int\] at 'x'"),
        (torch.tensor(1.0), ArgumentTypeError, r"first dimension of samples, got float32 \[\]"),
        (
            (torch.zeros(3, 2), torch.zeros(4)),
            DataError,
            r"one common first dimension, got \(float32 \[3, 2\], float32 \[4\]\)",
        ),
    ],
)
def test_other_data_are_refused(bad, kind, message):
    with pytest.raises(kind, match=message):
        freeze(bad, device=CPU, name="test")


@pytest.mark.parametrize(
    ("empty", "message"),
    [
        ([], "at least one batch, got none"),
        ((), "at least one batch, got none"),
        ({}, r"at least one tensor, got \{\}"),
        (iter([]), "got none; an iterator can be read only once: was it used before"),
        ((torch.zeros(0, 3), torch.zeros(0)), "at least one batch, got none"),
        ([torch.zeros(0, 3), torch.zeros(0, 3)], "at least one sample, got 2 empty batches"),
        (DataLoader(TensorDataset(torch.zeros(0, 2))), "at least one batch, got none"),
        (DataLoader(Squares(3), batch_size=4, drop_last=True), "at least one batch, got none"),
    ],
)
@pytest.mark.parametrize("cache", ["auto", "none"])
def test_fault_14_no_data_is_an_error(empty, message, cache):
    if cache == "none" and hasattr(empty, "__next__"):
        cache = "host"
    with pytest.raises(EmptyDataError, match=message):
        freeze(empty, device=CPU, cache=cache)


@pytest.mark.parametrize("size", [0, -1, 2.0, "4"])
def test_bad_batch_sizes_are_refused(size):
    with pytest.raises(ArgumentError, match="`batch_size` must be an integer of at least 1, got"):
        freeze(data(), device=CPU, batch_size=size)


def test_bad_cache_is_refused():
    with pytest.raises(ArgumentError, match=r"`cache` must be one of 'auto', .* got 'disk'"):
        freeze(data(), device=CPU, cache="disk")
