"""Checkpoints are read without running them, and fit the model or say where they do not."""

from __future__ import annotations

import json
import os
import struct

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
    with pytest.raises(CorruptFileError, match="was refused"):
        checkpoints.read(tmp_path / "model.pt")


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


def test_fault_09_at_most_ten_names_are_listed(tmp_path):
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(10)])
    torch.save({"other": torch.ones(1)}, tmp_path / "model.pt")
    with pytest.raises(ParameterMismatchError) as caught:
        checkpoints.load(model, tmp_path / "model.pt")
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == 11
    assert lines[-1] == "  and 11 more"


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
