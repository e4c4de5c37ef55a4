"""Checkpoints are read without running them, and fit the model or say where they do not."""

from __future__ import annotations

import json
import os
import struct
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from landscapex.errors import ArgumentError, CorruptFileError, ParameterMismatchError
from landscapex.storage import checkpoints


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def state():
    return {name: tensor.clone() for name, tensor in network().state_dict().items()}


def bits(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(a, b):
    assert list(a) == list(b)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_parts_of_a_model_are_opened_once_each_and_one_at_a_time(tmp_path, monkeypatch):
    """They are made as large as memory allows."""
    saved, opened, open_part = state(), [], checkpoints._open_torch
    names = sorted(saved)
    for k, part in enumerate((names[::2], names[1::2])):
        torch.save({name: saved[name] for name in part}, tmp_path / f"{k}.bin")
    index = {name: f"{k % 2}.bin" for k, name in enumerate(names)}
    index_file = tmp_path / "pytorch_model.bin.index.json"
    index_file.write_text(json.dumps({"weight_map": index}))

    def opening(path, mapped):
        opened.append((path.name, mapped))
        return open_part(path, mapped)

    monkeypatch.setattr(checkpoints, "_open_torch", opening)
    for mapped, read in (False, checkpoints.read), (True, checkpoints.open_lazily):
        found = dict(read(tmp_path))
        assert {name: t.tolist() for name, t in found.items()} == {
            name: t.tolist() for name, t in saved.items()
        }
        assert opened == [("0.bin", mapped), ("1.bin", mapped)]
        opened.clear()


@pytest.mark.parametrize(
    "parts", [{"w": "0.bin", "b": "../1.bin"}, {"w": "0.bin", "b": 1}, {"w": "0.txt"}, {}, []]
)
def test_an_index_names_nothing_but_checkpoints_beside_it(tmp_path, parts):
    torch.save({"w": torch.ones(1)}, tmp_path / "0.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": parts}))
    with pytest.raises(CorruptFileError, match="must name files beside it under weight_map"):
        checkpoints.read(tmp_path)


@pytest.mark.parametrize("zipped", [True, False])  # files of torch before 1.6 are not
def test_what_is_opened_lazily_stays_on_the_disk_if_it_can(tmp_path, zipped):
    """And its checksums have been looked at before: a file that changed since is not noticed."""
    path = tmp_path / "model.pt"
    saved = {"weight": torch.arange(5000.0), "none": torch.zeros(0)}  # whose checksum is 0
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    for read, mapped in (checkpoints.open_lazily, zipped), (checkpoints.read, False):
        found = read(path)
        assert torch.equal(found["weight"], saved["weight"])
        if sys.platform == "linux":
            assert (str(path) in Path("/proc/self/maps").read_text()) == mapped
        del found
    data = bytearray(path.read_bytes())
    data[data.index(saved["weight"].numpy().tobytes()) + 3] ^= 1
    path.write_bytes(data)
    assert not torch.equal(checkpoints.open_lazily(path)["weight"], saved["weight"])
    if zipped:
        with pytest.raises(CorruptFileError, match="not a readable"):
            checkpoints.read(path)


@pytest.mark.parametrize("read", [checkpoints.read, checkpoints.open_lazily])
def test_a_checkpoint_of_a_device_that_nobody_has_here_is_read_to_the_cpu(
    tmp_path, monkeypatch, read
):
    saved = state()
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "hpu:0")
    torch.save(saved, tmp_path / "model.pt")
    found = read(tmp_path / "model.pt")
    assert {t.device.type for t in found.values()} == {"cpu"}
    assert_same(found, saved)


def test_a_batch_norm_may_have_forgotten_how_many_batches_it_saw(tmp_path):
    """Checkpoints of old versions of torch do not have that number."""
    saved = state()
    count = saved.pop("1.num_batches_tracked")
    torch.save(saved, tmp_path / "model.pt")
    model = network()
    checkpoints.load(model, tmp_path / "model.pt")
    assert_same(bits(model), {n: saved.get(n, count) for n in bits(model)})


class Payload:
    """Unpickling this makes a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin", ".ckpt"])
def test_a_state_dict_is_read_into_the_model(tmp_path, suffix):
    saved, path = state(), tmp_path / f"model{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(saved, path)
    model = network()
    checkpoints.load(model, path)
    assert_same(bits(model), saved)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_what_training_scripts_wrap_around_a_state_dict_is_taken_off(tmp_path, key, prefix):
    saved = state()
    wrapped = {prefix + name: tensor for name, tensor in saved.items()}
    torch.save({key: wrapped, "epoch": 3}, tmp_path / "model.pt")
    model = network()
    checkpoints.load(model, tmp_path / "model.pt")
    assert_same(bits(model), saved)


@pytest.mark.parametrize(
    ("stored", "prefix"),
    [
        (["net.w", "net.b", "other.w"], "net."),
        (["net.w", "other.w"], ""),  # either may be meant
        (["w", "net.w"], ""),
        (["net.w", "b"], ""),
        (["total"], ""),
    ],
)
def test_the_prefix_is_that_of_the_most_names_and_none_if_two_have_as_many(stored, prefix):
    assert checkpoints.common_prefix(stored, ["w", "b"]) == prefix


def test_a_model_that_is_itself_wrapped_keeps_its_prefix(tmp_path):
    model = nn.Sequential()
    model.add_module("module", nn.Linear(3, 4))
    saved = {"module.weight": torch.ones(4, 3), "module.bias": torch.ones(4)}
    torch.save(saved, tmp_path / "model.pt")
    checkpoints.load(model, tmp_path / "model.pt")
    assert_same(bits(model), saved)


def test_one_name_of_tied_parameters_is_enough(tmp_path):
    model = nn.ModuleDict({"a": nn.Linear(3, 3, bias=False), "b": nn.Linear(3, 3, bias=False)})
    model["b"].weight = model["a"].weight
    save_file({"b.weight": torch.full((3, 3), 7.0)}, tmp_path / "model.safetensors")
    checkpoints.load(model, tmp_path / "model.safetensors")
    assert (model["a"].weight == 7).all()


def test_a_safetensors_file_holds_each_tensor_once_and_empty_ones_as_they_are(tmp_path):
    weight = torch.arange(6.0).view(2, 3)
    given = {
        "a": weight, "tied": weight, "transposed": weight.T, "part": weight[:1],
        "none": torch.zeros(0, 3), "nothing": torch.zeros(0, 3), "z": torch.ones(2) * 1j,
        "conjugate": (torch.ones(2) * 1j).conj(), "negative": (torch.ones(2) * 1j).conj().imag,
    }  # fmt: skip
    path = tmp_path / "model.safetensors"
    path.write_bytes(checkpoints.to_safetensors(given, {"kind": "a test"}))
    assert_same(checkpoints.read(path), {n: given[n] for n in checkpoints.read(path)})
    assert set(checkpoints.read(path)) == set(given)
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(given) - {"tied"}
        assert file.metadata()["kind"] == "a test"
        assert file.metadata()["format"] == "pt"  # Hugging Face refuses others


@pytest.mark.parametrize(
    ("header", "bad"),
    [
        ({"landscapex.complex": '["a"]'}, "Tensor must have a last dimension"),
        ({"landscapex.tied": '{"b": "c"}'}, "'c'"),
        ({"landscapex.tied": "{"}, "Expecting"),
    ],
)
def test_fault_09_a_safetensors_file_whose_header_lies_is_named(tmp_path, header, bad):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(3)}, path, metadata=header)
    with pytest.raises(CorruptFileError, match=rf"{path} is not a readable.*{bad}"):
        checkpoints.read(path)


def test_what_a_module_stores_besides_tensors_is_its_own_business(tmp_path):
    class Counted(nn.Linear):
        def get_extra_state(self):
            return {"calls": 3}

        def set_extra_state(self, state):
            raise AssertionError("it was not in the file")

    model = nn.Sequential(Counted(3, 2), nn.Linear(2, 1))
    saved = {n: t + 1 for n, t in model.state_dict().items() if isinstance(t, torch.Tensor)}
    torch.save(saved, tmp_path / "model.pt")
    checkpoints.load(model, tmp_path / "model.pt")
    assert all(torch.equal(t, saved[n]) for n, t in model.named_parameters())
    del saved["1.bias"]
    torch.save(saved, tmp_path / "model.pt")
    with pytest.raises(ParameterMismatchError, match=r"1\.bias: missing") as caught:
        checkpoints.load(model, tmp_path / "model.pt")
    assert "extra" not in str(caught.value)


def test_a_checkpoint_of_lower_precision_is_read_exactly(tmp_path):
    halves = {n: t.half() if t.is_floating_point() else t for n, t in state().items()}
    torch.save(halves, tmp_path / "model.pt")
    model = network()
    checkpoints.load(model, tmp_path / "model.pt")
    assert_same({n: t.to(halves[n].dtype) for n, t in bits(model).items()}, halves)


def test_fault_08_a_malicious_pickle_is_refused_and_not_run(tmp_path):
    victim = tmp_path / "owned"
    torch.save({"weight": Payload(victim)}, tmp_path / "evil.pt")
    with pytest.raises(CorruptFileError, match=r"was refused.*would run code.*mkdir.*state_dict"):
        checkpoints.read(tmp_path / "evil.pt")
    assert not victim.exists()


def test_fault_08_a_whole_pickled_model_is_refused(tmp_path):
    torch.save(network(), tmp_path / "model.pt")
    with pytest.raises(CorruptFileError, match=r"was refused: .* in it \(torch\.nn\.\S+\)\. Save"):
        checkpoints.read(tmp_path / "model.pt")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_fault_08_an_archive_of_torchscript_is_refused_with_advice(tmp_path):
    torch.jit.script(nn.Linear(2, 1)).save(tmp_path / "m.pt")
    with pytest.raises(CorruptFileError, match=r"was refused: .* Save the weights alone"):
        checkpoints.read(tmp_path / "m.pt")


def test_fault_08_a_pickle_that_only_begins_is_refused_without_a_name(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"not a checkpoint at all")
    with pytest.raises(CorruptFileError, match=r"was refused: .* stored in it\. Save"):
        checkpoints.read(tmp_path / "model.pt")


@pytest.mark.parametrize("before", [b"", b"\x80\x02", b"K\x01.", b"K\x01.K\x02.K\x03."])
def test_fault_08_a_class_with_a_long_name_is_refused_before_torch_looks_at_it(tmp_path, before):
    """With or without the number of a protocol, in any of the four pickles of an old file."""
    path = tmp_path / "model.pt"
    path.write_bytes(before + b"cos\n" + b"x" * 2000 + b"\n.")
    with pytest.raises(CorruptFileError, match=r"is not a readable torch.save file: _LongName"):
        checkpoints.read(path)


def damaged(kind, tmp_path):
    """A file of the given kind of damage."""
    good = tmp_path / "good.safetensors"
    save_file(state(), good)
    torch.save(state(), tmp_path / "good.pt")
    content = good.read_bytes()
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 80]}}).encode()
    content = {
        "truncated.safetensors": content[:-7],
        "header longer than the file.safetensors": struct.pack("<Q", 1 << 62) + content[8:],
        "offsets past the end.safetensors": struct.pack("<Q", len(header)) + header + bytes(8),
        "empty.safetensors": b"",
        "text.safetensors": b"not a checkpoint at all",
        "truncated.pt": (tmp_path / "good.pt").read_bytes()[:-300],
        "empty.pt": b"",
        "text.pt": b"not a checkpoint at all",
    }[kind]
    (tmp_path / kind).write_bytes(content)
    return tmp_path / kind


@pytest.mark.parametrize(
    "kind",
    [
        "truncated.safetensors",
        "header longer than the file.safetensors",
        "offsets past the end.safetensors",
        "empty.safetensors",
        "text.safetensors",
        "truncated.pt",
        "empty.pt",
        "text.pt",
    ],
)
def test_fault_09_a_damaged_file_is_named(tmp_path, kind):
    path = damaged(kind, tmp_path)
    with pytest.raises(CorruptFileError, match=f"{kind} (is not a readable|was refused)"):
        checkpoints.read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, r"must hold a state_dict .*, got a mapping with keys \[\]"),
        ({"epoch": 3, "lr": 0.1}, r"got a mapping with keys \['epoch', 'lr'\]"),
        ([1, 2], "got a list"),
        (torch.ones(3), "got a Tensor"),
        ({"w": torch.ones(1), "lr": 0.1}, r"got a mapping with keys \['w', 'lr'\]"),
        ({"w": torch.ones(1), 7: torch.ones(1)}, r"got a mapping with keys \['w', '7'\]"),
    ],
)
def test_a_file_without_a_state_dict_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(CorruptFileError, match=message):
        checkpoints.read(tmp_path / "model.pt")


def test_fault_09_one_error_lists_every_kind_of_mismatch(tmp_path):
    saved = state()
    del saved["0.bias"]
    saved["extra"] = torch.ones(1)
    saved["2.weight"] = torch.ones(2, 5)
    saved["1.running_mean"] = saved["1.running_mean"].double()
    torch.save(saved, tmp_path / "model.pt")
    model = network()
    before = bits(model)
    with pytest.raises(ParameterMismatchError) as caught:
        checkpoints.load(model, tmp_path / "model.pt")
    assert str(caught.value).splitlines()[1:] == [
        "  0.bias: missing in the checkpoint",
        "  1.running_mean: torch.float32 in the model, torch.float64 in the checkpoint",
        "  2.weight: shape (2, 4) in the model, (2, 5) in the checkpoint",
        "  extra: not in the model",
    ]
    assert_same(bits(model), before)


@pytest.mark.parametrize(("layers", "more"), [(5, []), (10, ["  and 10 more"])])
def test_fault_09_at_most_ten_names_are_listed(tmp_path, layers, more):
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(layers)])
    torch.save({"other": torch.ones(1), "0.weight": torch.ones(2, 2)}, tmp_path / "model.pt")
    with pytest.raises(ParameterMismatchError) as caught:
        checkpoints.load(model, tmp_path / "model.pt")
    lines = str(caught.value).splitlines()[1:]
    assert len(lines[:10]) == 10
    assert lines[10:] == more


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.pt", "`checkpoint` must be a file, got .*absent.pt"),
        (".", "`checkpoint` must be a file"),
        ("model.npy", r"`checkpoint` must end in one of \.safetensors, \.pt.*got .*model\.npy"),
    ],
)
def test_a_path_that_is_no_checkpoint_is_refused(tmp_path, name, message):
    (tmp_path / "model.npy").touch()
    with pytest.raises(ArgumentError, match=message):
        checkpoints.read(tmp_path / name)
