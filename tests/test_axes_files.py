"""Directions in files: they come back bit for bit, and no damage goes unnoticed."""

from __future__ import annotations

import json
import re

import models
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from landscapex import _directions, axes
from landscapex.errors import CorruptFileError, OutputError
from landscapex.storage import tensor_file


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 3), st.integers(0, 1000), st.booleans(), st.sampled_from(list(models.CASES)))
def test_saved_directions_come_back_bit_for_bit(tmp_path_factory, n, seed, double, name):
    model = models.case(name).model
    d = axes.random(model.double() if double else model, n, seed=seed)
    path = tmp_path_factory.mktemp("directions") / "d.safetensors"
    d.save(path)
    loaded = axes.load(path)
    assert torch.equal(loaded.vectors, d.vectors)
    assert loaded.vectors.dtype == d.vectors.dtype
    assert (loaded.axes, loaded.layout) == (d.axes, d.layout)
    assert loaded.fingerprint() == d.fingerprint()


def test_a_file_of_directions_is_plain_safetensors(tmp_path):
    d = axes.random(models.mlp(2, 3, 1))
    path = tmp_path / "richtungen ü.safetensors"
    d.save(str(path))
    tensors = safetensors.torch.load_file(path)
    assert sorted(tensors) == sorted(f"{k}/{n}" for k in range(2) for n, _ in d.layout)
    assert torch.equal(tensors["1/0.weight"], d[1]["0.weight"])
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def resigned(path, change):
    """Change the header of a file as somebody would who does not know the hash."""
    with safetensors.safe_open(path, framework="pt") as file:
        header, tensors = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    change(header, tensors)
    safetensors.torch.save_file(tensors, path, metadata=header)


def other_format(header, tensors):
    header["format"] = "something else"


def other_number(header, tensors):
    tensors["0/0.weight"][0, 0] += 1


def other_axes(header, tensors):
    header["axes"] = json.dumps([{"colour": "red"}])


def missing_tensor(header, tensors):
    del tensors["0/0.weight"]


def other_shape(header, tensors):
    tensors["0/0.weight"] = tensors["0/0.weight"].T.contiguous()[:1]


@pytest.mark.parametrize(
    "change", [other_format, other_number, other_axes, missing_tensor, other_shape]
)
def test_fault_09_a_damaged_file_of_directions_is_refused(tmp_path, change):
    path = tmp_path / "d.safetensors"
    axes.random(models.mlp(2, 3, 1)).save(path)
    resigned(path, change)
    with pytest.raises(CorruptFileError, match=re.escape(str(path))):
        axes.load(path)


@pytest.mark.parametrize(
    ("tensors", "texts"),
    [
        ({}, {}),
        ({}, {"axes": "[{]", "layout": "[]"}),
        ({}, {"axes": '[{"label": "d", "source": "given"}]', "layout": '[["weight", [2]]]'}),
        (
            {"0/weight": torch.ones(2)},
            {"axes": '[{"colour": "red"}]', "layout": '[["weight", [2]]]'},
        ),
    ],
)
def test_fault_09_a_file_that_is_whole_but_makes_no_sense_is_refused(tmp_path, tensors, texts):
    """Its hash is right: another version, or somebody, wrote it so."""
    path = tensor_file.save(tmp_path / "d.safetensors", _directions._FORMAT, tensors, texts)
    with pytest.raises(CorruptFileError, match=f"{re.escape(str(path))} is damaged: "):
        axes.load(path)


def test_a_file_of_something_else_is_not_read_as_directions(tmp_path):
    path = tensor_file.save(tmp_path / "t.safetensors", "a tree", {"0/weight": torch.ones(2)}, {})
    with pytest.raises(
        CorruptFileError, match=f"must be a file of {_directions._FORMAT}, got 'a tree'"
    ):
        axes.load(path)


@pytest.mark.parametrize("size", [0, 4, 50, 400])
def test_fault_09_a_truncated_file_of_directions_is_refused(tmp_path, size):
    path = tmp_path / "d.safetensors"
    axes.random(models.mlp(2, 3, 1)).save(path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CorruptFileError, match=re.escape(str(path))):
        axes.load(path)


def test_fault_09_no_flipped_bit_of_a_file_of_directions_goes_unnoticed(tmp_path):
    path = axes.random(models.mlp(2, 3, 1)).save(tmp_path / "d.safetensors")
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(CorruptFileError, match=re.escape(str(path))):
                axes.load(path)


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(CorruptFileError, match="must exist, got no such file"):
        axes.load(tmp_path / "d.safetensors")


def test_a_folder_that_is_missing_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="could not be written"):
        axes.random(models.mlp()).save(tmp_path / "no" / "d.safetensors")
