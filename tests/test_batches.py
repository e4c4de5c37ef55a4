"""Frozen batches: the same bytes at every pass, or an error."""

from __future__ import annotations

import collections
import subprocess
import sys
import types
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from landscapex import batches as batches_module
from landscapex.batches import describe, digest, freeze, sample_count, to_device
from landscapex.errors import ArgumentError, ArgumentTypeError, DataError, EmptyDataError

CPU = torch.device("cpu")
Pair = collections.namedtuple("Pair", "x y")


class Encoding(collections.UserDict):
    """Like Hugging Face's BatchEncoding: a mapping with attributes."""

    def __init__(self, data=None, note=None):
        super().__init__(data)
        self.note = note


def data(n=10):
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(0))
    return x, torch.arange(n)


def tensors_of(frozen):
    return [[leaf.clone() for leaf in batch] for batch in frozen]


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, b)
        for p, q in zip(one, other, strict=True)
        for a, b in zip(p, q, strict=True)
    )


# --- Kinds of data ------------------------------------------------------------------------------


class Squares(Dataset):
    def __init__(self, n=10):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        return torch.tensor([float(index)]), index * index


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


# --- The same batches at every pass -------------------------------------------------------------


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


def test_quiet_loaders_have_no_notes():
    assert freeze(DataLoader(Squares(), batch_size=4), device=CPU).notes == ()
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


# --- Structures ---------------------------------------------------------------------------------


@dataclass
class Graph:
    nodes: torch.Tensor
    name: str

    def to(self, device):
        return Graph(self.nodes.to(device), self.name)


NESTED = {
    "x": torch.ones(2, 3),
    "more": [Pair(torch.zeros(2), "name"), (1, 2.5, None, b"raw")],
    "array": np.arange(4),
    "graph": Graph(torch.ones(1), "g"),
}


@pytest.mark.parametrize("cache", ["device", "host", "none"])
def test_nested_batches_with_other_leaves_keep_their_structure(cache):
    frozen = freeze([NESTED], device=CPU, cache=cache)
    (batch,) = frozen
    assert list(batch) == list(NESTED)
    assert type(batch["more"][0]) is Pair
    assert batch["more"][0].y == "name"
    assert batch["more"][1] == (1, 2.5, None, b"raw")
    assert np.array_equal(batch["array"], NESTED["array"])
    assert batch["graph"].name == "g"
    assert frozen.sizes == (2,)


def test_to_device_keeps_types_and_attributes():
    meta = torch.device("meta")
    encoding = Encoding({"ids": torch.ones(2)}, note="kept")
    moved = to_device(encoding, meta)
    assert type(moved) is Encoding
    assert (moved.note, moved["ids"].device.type) == ("kept", "meta")
    assert encoding["ids"].device.type == "cpu"
    defaults = to_device(collections.defaultdict(list, a=torch.ones(1)), meta)
    assert defaults["missing"] == []
    assert to_device(types.MappingProxyType({"a": torch.ones(1)}), meta)["a"].device.type == "meta"
    assert to_device(Graph(torch.ones(1), "g"), meta).nodes.device.type == "meta"
    pair = to_device(Pair(torch.ones(1), "y"), meta)
    assert (type(pair), pair.x.device.type) == (Pair, "meta")
    x = torch.ones(1)
    assert to_device([x], CPU)[0] is x
    packed = pack_sequence([torch.ones(3), torch.ones(2)])
    assert to_device((packed, x), CPU)[0].data.tolist() == [1.0] * 5


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        (torch.zeros(3, 2), 3),
        ((torch.zeros(4), torch.zeros(9)), 4),
        ({"name": "x", "ids": [torch.zeros(5)]}, 5),
        (torch.tensor(1.0), 1),
        (["no", "tensor"], 1),
        (None, 1),
        (torch.zeros(0, 3), 0),
        (pack_sequence([torch.ones(3), torch.ones(2)]), 2),
        ((pack_sequence([torch.ones(3), torch.ones(2)]), torch.zeros(2)), 2),
    ],
)
def test_sample_count(batch, count):
    assert sample_count(batch) == count


def test_describe_writes_structure_dtypes_and_shapes():
    batch = {"x": torch.zeros(2, 3), "y": [1, (None,)]}
    assert describe(batch) == "{'x': float32 [2, 3], 'y': [int, (None)]}"
    assert describe(["text"] * 500) == "[str, str, str, str, str, str, str, str, ... 500 in all]"


# --- Hashes -------------------------------------------------------------------------------------

BASE = {"x": torch.arange(6.0).reshape(2, 3), "y": (torch.tensor([1, 2]), "a", 3)}


def varied(**changes):
    return {**BASE, **changes}


VARIANTS = {
    "value": varied(x=BASE["x"] + torch.eye(2, 3) * 1e-6),
    "dtype": varied(x=BASE["x"].double()),
    "integers": varied(x=BASE["x"].int()),
    "shape": varied(x=BASE["x"].reshape(3, 2)),
    "key": {"z": BASE["x"], "y": BASE["y"]},
    "order": {"y": BASE["y"], "x": BASE["x"]},
    "container": varied(y=list(BASE["y"])),
    "string": varied(y=(BASE["y"][0], "b", 3)),
    "number": varied(y=(BASE["y"][0], "a", 4)),
    "type": varied(y=(BASE["y"][0], "a", 3.0)),
    "bool": varied(y=(BASE["y"][0], "a", True)),
    "missing": {"x": BASE["x"]},
    "array": varied(y=(np.array([1, 2]), "a", 3)),
    "nesting": varied(y=(BASE["y"][0], ("a", 3))),
    "zero": varied(x=BASE["x"] * torch.tensor([[-1.0, 1, 1], [1, 1, 1]])),  # -0.0
}


def test_digest_changes_with_every_part():
    found = {name: digest(batch) for name, batch in {"base": BASE, **VARIANTS}.items()}
    assert len(set(found.values())) == len(found)


def test_digest_ignores_memory_layout_and_copies():
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    assert digest(x.t().contiguous().t()) == digest(x.clone()) == digest(x)
    assert digest(x[:, ::2]) == digest(x[:, ::2].contiguous())
    assert digest(torch.nn.Parameter(x)) == digest(x)
    assert digest(torch.ones(1, 3).expand(2, 3)) == digest(torch.ones(2, 3))


@pytest.mark.parametrize(
    "make",
    [
        lambda v: torch.tensor(v),
        lambda v: torch.tensor([v]).bfloat16(),
        lambda v: torch.tensor([v], dtype=torch.complex64).conj(),
        lambda v: torch.tensor([v > 1]),
        lambda v: torch.tensor([[0.0, v]]).to_sparse(),
        lambda v: torch.nested.nested_tensor(
            [torch.tensor([v]), torch.zeros(2)], layout=torch.jagged
        ),
        lambda v: np.float32(v),
        lambda v: np.array([v, "text"], dtype=object),
        lambda v: v * 1j,
        lambda v: float(v),
        lambda v: {int(v), 7},
        lambda v: Graph(torch.tensor([v]), "g"),
        lambda v: np.datetime64(int(v), "D"),
        lambda v: range(int(v)),
    ],
)
def test_digest_sees_the_value_of_every_kind_of_leaf(make):
    assert digest(make(1.0)) == digest(make(1.0))
    assert digest(make(1.0)) != digest(make(2.0))


def test_digest_survives_cycles_and_objects_without_a_value():
    graph = Graph(torch.ones(1), "g")
    graph.name = graph
    assert digest(graph) == digest(graph)
    assert digest(object()) == digest(object())
    assert digest(len) != digest(max)


SCRIPT = """
import numpy as np, torch
from landscapex.batches import digest, freeze
batch = {"x": torch.arange(6.0).reshape(2, 3), "y": [np.arange(3), "a", 2.5, {"p", "q", "r"}]}
print(freeze([batch, batch], device=torch.device("cpu")).fingerprint)
"""


def test_fingerprint_is_the_same_in_every_process():
    env = {"PYTHONPATH": ":".join(p for p in sys.path if p), "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", SCRIPT]
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    batch = {"x": torch.arange(6.0).reshape(2, 3), "y": [np.arange(3), "a", 2.5, {"p", "q", "r"}]}
    here = freeze([batch, batch], device=CPU).fingerprint
    assert run.stdout.strip() == here


def test_fingerprint_depends_on_order_and_cut_of_batches():
    x, y = data()
    whole = freeze((x, y), device=CPU, batch_size=5).fingerprint
    parts = [(x[:5], y[:5]), (x[5:], y[5:])]
    assert freeze(parts, device=CPU).fingerprint == whole
    assert freeze(parts[::-1], device=CPU).fingerprint != whole
    assert freeze((x, y), device=CPU, batch_size=4).fingerprint != whole
    assert len(whole) == 64


def test_global_generators_are_untouched_by_freezing_tensors():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    list(freeze(data(), device=CPU, batch_size=3))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_repr_tells_sizes_and_place():
    text = repr(freeze(data(), device=CPU, batch_size=4))
    assert text.startswith("FrozenBatches(3 batches, 10 samples, cache='device', device='cpu', ")


# --- Batches of another size --------------------------------------------------------------------


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
