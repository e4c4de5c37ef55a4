"""Frozen batches: the same bytes at every pass, or an error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from batch_cases import CPU, Squares, data, same, tensors_of
from torch.utils.data import DataLoader, TensorDataset, get_worker_info

from landscapex import batches as batches_module
from landscapex.batches import digest, freeze
from landscapex.errors import DataError

# --- Kept ----------------------------------------------------------------------------------------


class Noisy(Squares):
    def __getitem__(self, index):
        return torch.rand(2), index


@pytest.mark.parametrize("cache", ["auto", "device", "host"])
def test_trap_19_fault_16_shuffling_and_augmentation_are_frozen(cache):
    loader = DataLoader(Noisy(), batch_size=3, shuffle=True, drop_last=True)
    frozen = freeze(loader, device=CPU, cache=cache)
    assert same(tensors_of(frozen), tensors_of(frozen))
    assert frozen.sizes == (3, 3, 3)
    text = "; ".join(frozen.notes)
    assert "the loader shuffles (RandomSampler): its first order was frozen" in text
    assert "leaves out 1 of the 10 samples" in text
    assert "draws its samples at random: the first draw was frozen" in text


class Watched(Noisy):
    """Remembers who reads it."""

    def __init__(self):
        super().__init__()
        self.readers = []  # of this process

    def __getitem__(self, index):
        if get_worker_info() is None:
            self.readers.append(index)
        return super().__getitem__(index)


def test_trap_19_augmentation_in_workers_is_noticed_there():
    dataset = Watched()
    loader = DataLoader(dataset, batch_size=3, shuffle=True, num_workers=2)
    assert freeze(loader, device=CPU).notes == (
        "the loader shuffles (RandomSampler): its first order was frozen",
        "the dataset draws its samples at random: the first draw was frozen",
    )
    assert not dataset.readers


@pytest.mark.parametrize("workers", [0, 1])
def test_quiet_loaders_have_no_notes(workers):
    loader = DataLoader(Squares(), batch_size=4, num_workers=workers)
    assert freeze(loader, device=CPU).notes == ()
    assert freeze(data(), device=CPU).notes == ()


def test_fault_15_generators_are_consumed_once_and_frozen():
    generator = (torch.full((2, 1), float(i)) for i in range(3))
    frozen = freeze(generator, device=CPU)
    assert [float(b[0]) for b in frozen] == [float(b[0]) for b in frozen] == [0.0, 1.0, 2.0]
    assert frozen.notes == ("the generator was consumed once and frozen",)
    with pytest.raises(DataError, match=r"got a one-shot generator: pass a re-iterable"):
        freeze((i for i in range(3)), device=CPU, cache="none")


@pytest.mark.parametrize("cache", ["device", "host"])
def test_frozen_batches_do_not_share_memory_with_the_user(cache):
    x, y = data()
    names = np.arange(3.0)
    frozen = freeze([(x, y, names)], device=CPU, cache=cache)
    before = digest(next(iter(frozen)))
    x.zero_()
    y.zero_()
    names[:] = 7
    assert digest(next(iter(frozen))) == before

    def one_buffer():
        buffer = torch.zeros(2)
        for i in range(3):
            buffer.fill_(i)
            yield buffer

    assert [b.tolist() for b in freeze(one_buffer(), device=CPU)] == [[0, 0], [1, 1], [2, 2]]


def test_fault_19_batches_are_moved_once_with_a_note():
    frozen = freeze(data(), device=torch.device("meta"), cache="device")
    assert next(iter(frozen))[0].device.type == "meta"
    assert frozen.notes == ("the batches are moved from cpu to meta once",)
    frozen = freeze(data(), device=torch.device("meta"), cache="host")
    first, second = next(iter(frozen)), next(iter(frozen))
    assert first[0].device.type == "meta"
    assert first[0] is not second[0]
    assert frozen.notes == ("the batches are moved from cpu to meta for each pass",)


def test_fault_20_batches_for_which_a_device_has_no_room_stay_in_main_memory(monkeypatch):
    """What was free before they are moved may be gone, or in pieces."""
    meta, copies = torch.device("meta"), []

    def scarce(batch, device, pin):
        copies.append(device)
        if copies.count(meta) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return snapshot(batch, device, pin)

    snapshot = batches_module.snapshot
    monkeypatch.setattr(batches_module, "snapshot", scarce)
    frozen = freeze(data(), device=meta, batch_size=3)
    assert (frozen.cache, frozen.sizes) == ("host", (3, 3, 3, 1))
    assert frozen.notes == (
        "the batches stay in main memory: meta has no room for them",
        "the batches are moved from cpu to meta for each pass",
    )
    assert all(batch[0].is_meta for batch in frozen)
    copies.clear()
    with pytest.raises(torch.OutOfMemoryError):  # who asks for the device gets it, or an error
        freeze(data(), device=meta, batch_size=3, cache="device")


@pytest.mark.parametrize("cache", ["device", "host", "none"])
def test_frozen_batches_move_to_another_device(cache):
    frozen = freeze(data(), device=CPU, cache=cache)
    assert frozen.to(CPU) is frozen
    moved = frozen.to(torch.device("meta"))
    assert next(iter(moved))[0].device.type == "meta"
    assert next(iter(frozen))[0].device.type == "cpu"
    assert (moved.fingerprint, moved.sizes) == (frozen.fingerprint, frozen.sizes)
    assert moved.notes[-1] == "the batches were moved from cpu to meta"


def test_cached_batches_keep_their_identity():
    frozen = freeze(data(), device=CPU)
    assert next(iter(frozen)) is next(iter(frozen))


@pytest.mark.parametrize("cache", ["device", "host"])
def test_writing_to_a_frozen_batch_is_an_error_at_the_next_pass(cache):
    frozen = freeze(data(), device=CPU, cache=cache, batch_size=5)
    for x, _ in frozen:
        x.mul_(2)
    with pytest.raises(DataError, match=r"must not be changed in place, got batch 0 \(float32"):
        list(frozen)


def test_inputs_that_require_a_gradient_still_do():
    x = torch.ones(3, requires_grad=True)
    (kept,) = freeze([x * 2], device=CPU)
    assert kept.requires_grad
    assert kept.is_leaf
    with torch.inference_mode():
        (kept,) = freeze([torch.ones(3)], device=CPU)
    assert not kept.is_inference()


def test_a_nested_tensor_that_was_written_to_is_noticed():
    frozen = freeze([(torch.zeros(4), {"more": torch.zeros(4)})], device=CPU)
    next(iter(frozen))[1]["more"].add_(1.0)
    with pytest.raises(DataError, match="must not be changed in place"):
        next(iter(frozen))


def test_a_batch_from_which_something_was_taken_is_noticed():
    frozen = freeze([[*data(4)]], device=CPU)
    next(iter(frozen)).pop()
    with pytest.raises(DataError, match="must not be changed in place"):
        next(iter(frozen))


def test_global_generators_are_untouched_by_freezing_tensors():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    list(freeze(data(), device=CPU, batch_size=3))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_repr_tells_sizes_and_place():
    text = repr(freeze(data(), device=CPU, batch_size=4))
    assert text.startswith("FrozenBatches(3 batches, 10 samples, cache='device', device='cpu', ")


# --- Read again ----------------------------------------------------------------------------------


class Changing:
    """Every pass is another one."""

    def __init__(self, *passes):
        self.passes = iter(passes)

    def __iter__(self):
        return iter(next(self.passes))


def rows(*values):
    return [(torch.tensor([float(v)]), {"y": [v]}) for v in values]


def test_reading_again_gives_the_same_batches_and_fingerprint():
    loader = DataLoader(Squares(), batch_size=4)
    frozen = freeze(loader, device=CPU, cache="none")
    assert frozen.reader
    assert (frozen.cache, frozen.sizes) == ("none", (4, 4, 2))
    assert same(tensors_of(frozen), tensors_of(frozen))
    assert frozen.fingerprint == freeze(loader, device=CPU).fingerprint
    assert "read again for each pass" in frozen.notes[0]
    x, y = data()
    again = freeze((x, y), device=CPU, cache="none", batch_size=4)
    assert same(tensors_of(again), tensors_of(freeze((x, y), device=CPU, batch_size=4)))


@pytest.mark.parametrize(
    ("second", "message", "handed_out"),
    [
        (rows(1, 2, 4), r"got another batch 2 \(float32 \[1\], \{'y': \[int\]\}\)", 2),
        (rows(2, 1, 3), "got another batch 0", 0),
        (rows(1, 2), "got 2 of 3 batches", 2),
        (rows(1, 2, 3, 4), "got one more batch", 3),
        ([], "got 0 of 3 batches", 0),
    ],
)
def test_fault_16_a_pass_that_differs_is_an_error(second, message, handed_out):
    frozen = freeze(Changing(rows(1, 2, 3), second), device=CPU, cache="none", name="test")
    seen = []
    with pytest.raises(DataError, match=rf'`test` must be the same with cache="none", {message}'):
        seen.extend(frozen)
    assert len(seen) == handed_out


def test_shuffling_cannot_be_read_again():
    loader = DataLoader(Squares(64), batch_size=8, shuffle=True)
    frozen = freeze(loader, device=CPU, cache="none")
    assert "every pass must have the same order" in "; ".join(frozen.notes)
    with pytest.raises(DataError, match="Turn shuffling and augmentation off"):
        list(frozen)


def test_auto_reads_again_what_does_not_fit(monkeypatch):
    monkeypatch.setattr(batches_module, "_free_host_memory", lambda: 100)
    x, y = data(20)
    big = freeze((x, y), device=CPU, batch_size=4)
    assert big.cache == "none"
    assert same(tensors_of(big), [[x[i : i + 4], y[i : i + 4]] for i in range(0, 20, 4)])
    assert freeze(iter([x]), device=CPU).cache == "device"  # it cannot be read again
    shuffled = DataLoader(TensorDataset(x), batch_size=4, shuffle=True)
    assert freeze(shuffled, device=CPU).cache == "device"
    assert freeze((x[:2], y[:2]), device=CPU).cache == "device"


def test_free_memory_is_told():
    assert 1 << 20 < batches_module._free_host_memory() < 1 << 50
