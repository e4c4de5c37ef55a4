"""What a batch may hold: its structure is kept, described and hashed with every value."""

from __future__ import annotations

import collections
import subprocess
import sys
import types
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from batch_cases import CPU, Pair, data
from torch.nn.utils.rnn import pack_sequence

from landscapex.batches import describe, digest, freeze, sample_count, to_device


class Encoding(collections.UserDict):
    """Like Hugging Face's BatchEncoding: a mapping with attributes."""

    def __init__(self, data=None, note=None):
        super().__init__(data)
        self.note = note


@dataclass
class Graph:
    nodes: torch.Tensor
    name: str

    def to(self, device):
        return Graph(self.nodes.to(device), self.name)


# --- Structures ----------------------------------------------------------------------------------


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


# --- Hashes --------------------------------------------------------------------------------------


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
