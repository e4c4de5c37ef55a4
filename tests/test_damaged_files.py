"""Damaged files: of every format, an error of ours or the right numbers. And how that is found out.

The same code at full count is the measurement `reliability.damage`; inputs that a fuzzer found are
in `data/damaged`, see `reliability.fuzz`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import re
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from export_cases import plane
from recorder_cases import network
from reliability import damage, fuzz, fuzz_targets, workers
from reliability.formats import FORMATS, Format, record_run
from torch import nn

import landscapex as lx
from landscapex import export
from landscapex.errors import ArgumentError, CorruptFileError
from landscapex.storage import checkpoints
from landscapex.trajectories import runs
from landscapex.trajectories.recorder import Recorder

FILES = 40
KEPT = [(target, path) for target in fuzz_targets.TARGETS for path in fuzz.kept(target)]


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_are_refused_or_read_right(tmp_path, name):
    found = damage.figure(name, FORMATS[name](tmp_path), FILES)
    assert found.kept, found.found


@pytest.mark.parametrize(("target", "path"), KEPT, ids=[f"{t}-{p.name}" for t, p in KEPT])
def test_what_a_fuzzer_found_is_no_defect_any_more(target, path):
    fuzz_targets.TARGETS[target](path.read_bytes())


@pytest.mark.parametrize("target", fuzz_targets.TARGETS)
def test_the_fuzzer_begins_with_valid_input(target):
    """Else it would never come past the first line of a reader; and its targets take anything."""
    for data in fuzz_targets.SEEDS()[target]:
        fuzz_targets.TARGETS[target](data)
    for junk in (b"", b"\xff", b"{}", b"[[", b"\n\n", b"9" * 99):
        fuzz_targets.TARGETS[target](junk)


def test_kept_input_belongs_to_a_target():
    folders = {path.name for path in fuzz.KEPT.iterdir()}
    assert folders <= {target.replace(" ", "_") for target in fuzz_targets.TARGETS}
    assert len(KEPT) == sum(len(list(path.iterdir())) for path in fuzz.KEPT.iterdir()) > 0


# ---------------------------------------------------------------- checksums


def test_fault_09_a_flipped_bit_in_a_file_of_torch_is_noticed(tmp_path):
    """torch itself does not compare the checksums of its files."""
    path, state = tmp_path / "m.pt", {"weight": torch.randn(64)}
    torch.save(state, path)
    data = bytearray(path.read_bytes())
    data[data.index(state["weight"].numpy().tobytes()) + 99] ^= 1
    path.write_bytes(data)
    assert not torch.equal(torch.load(path)["weight"], state["weight"])
    with pytest.raises(CorruptFileError, match=r"m.pt is not a readable torch.save file"):
        checkpoints.read(path)


def test_files_of_torch_without_checksums_are_read(tmp_path):
    path, state = tmp_path / "m.pt", {"weight": torch.randn(64)}
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, path)
    finally:
        torch.serialization.set_crc32_options(before)
    assert {part.CRC for part in zipfile.ZipFile(path).infolist()} == {0}
    assert torch.equal(checkpoints.read(path)["weight"], state["weight"])


def test_two_files_of_torch_in_one_are_refused(tmp_path):
    """Who looks for the checksums begins at the end of the file, and torch where it is told to."""
    path, state = tmp_path / "m.pt", {"weight": torch.randn(64)}
    torch.save(state, path)
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[whole.index(state["weight"].numpy().tobytes()) + 99] ^= 1
    path.write_bytes(damaged + whole)
    with pytest.raises(CorruptFileError, match="not a readable"):
        checkpoints.read(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_fault_08_a_class_with_an_endless_name_is_refused_at_once(tmp_path, zipped):
    """torch.load looks at a name of n characters n^2 times before it refuses it."""
    path, state = tmp_path / "m.pt", {"weight": torch.ones(3)}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    if zipped:
        with zipfile.ZipFile(path) as old:
            parts = {part.filename: old.read(part) for part in old.infolist()}
    else:
        parts = {"data.pkl": path.read_bytes()}
    with zipfile.ZipFile(path, "w") if zipped else contextlib.nullcontext() as new:
        for name, data in parts.items():
            longer = data.replace(b"_rebuild_tensor_v2", b"[" * 100_000)
            assert (longer == data) == (not name.endswith("data.pkl"))
            new.writestr(name, longer) if zipped else path.write_bytes(longer)
    began = time.monotonic()
    with pytest.raises(CorruptFileError, match=r"not a readable torch.save file"):
        checkpoints.read(path)
    assert time.monotonic() - began < 3


def _without_middle(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[2]]


def _flipped_loss(lines: list[bytes]) -> list[bytes]:
    at = lines[1].index(b'"loss":') + 9
    return [lines[0], lines[1][:at] + bytes([lines[1][at] ^ 1]) + lines[1][at + 1 :], lines[2]]


@pytest.mark.parametrize("change", [_without_middle, _flipped_loss])
def test_a_changed_index_of_a_recorded_run_is_noticed(tmp_path, change):
    record_run(tmp_path, 3)
    index = tmp_path / runs.INDEX
    lines = index.read_bytes().splitlines(keepends=True)
    index.write_bytes(b"".join(change(lines)))
    with pytest.raises(CorruptFileError, match=r"damaged in line 2: its checksum is another"):
        runs.open_run(tmp_path)


def test_a_line_of_another_run_is_damage_in_the_index(tmp_path):
    for name, seed in (("mine", 1), ("theirs", 2)):
        with Recorder(tmp_path / name, network(seed)) as record:
            record(0)
            record(1, loss=seed)
    mine, theirs = ((tmp_path / n / runs.INDEX).read_bytes() for n in ("mine", "theirs"))
    last = theirs.splitlines(keepends=True)[1]
    (tmp_path / "mine" / runs.INDEX).write_bytes(mine.splitlines(keepends=True)[0] + last)
    with pytest.raises(CorruptFileError, match="damaged in line 2"):
        runs.open_run(tmp_path / "mine")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"step": -1}, "no step above 0"),
        ({"step": 0}, "no step above 0"),
        ({"step": "1"}, "no step above 0"),
        ({"step": 2**63}, "no step above 0"),
        ({"sha256": "x" * 64}, "no SHA-256"),
        ({"loss": "high"}, "could not convert"),
        ({"lr": [10**400]}, "too large"),
        ({"lr": {}}, "must be a string or a real number"),
    ],
)
def test_a_whole_line_of_an_index_that_makes_no_sense_is_named(tmp_path, changed, message):
    record_run(tmp_path, 2)
    records, _ = runs.read_index(tmp_path)
    index = tmp_path / runs.INDEX
    first = index.read_bytes().splitlines(keepends=True)[0]
    record = {"step": 1, "sha256": "0" * 64, **changed}
    index.write_bytes(first + runs.index_line(record, records[:1]))
    with pytest.raises(CorruptFileError, match=rf"index.jsonl is damaged in line 2: .*{message}"):
        runs.open_run(tmp_path)


def test_values_of_a_record_must_not_be_called_as_its_checksum(tmp_path):
    with pytest.raises(ArgumentError, match="must have another name than 'crc32'"):
        Recorder(tmp_path, network())(0, crc32=1)


def test_fault_07_an_array_that_hdf5_takes_for_zeros_is_damage(tmp_path):
    """Of the trees of HDF5 1.8, which say where the parts of an array are, there is no checksum."""
    path = plane().to_h5(tmp_path / "s.h5")
    data = bytearray(path.read_bytes())
    size = (5 * 3 * 8 + 4).to_bytes(4, "little")  # of the only part of "train_loss"
    (node,) = (
        m.start() for m in re.finditer(rb"TREE\x01", data) if data[m.end() + 19 :][:4] == size
    )
    data[node + 32] = 5  # its first row
    path.write_bytes(data)
    with h5py.File(path) as file:
        assert not file["train_loss"][:].any()  # and no error
    with pytest.raises(CorruptFileError, match="its numbers do not match their SHA-256"):
        export.read_h5(path)


@pytest.mark.parametrize("name", ["train_loss", "xcoordinates", "ycoordinates"])
def test_fault_07_numbers_of_ours_that_somebody_changed_are_damage(tmp_path, name):
    path = plane().to_h5(tmp_path / "s.h5")
    with h5py.File(path, "r+") as file:
        file[name][..., 1] += 1
    with pytest.raises(CorruptFileError, match="its numbers do not match their SHA-256"):
        export.read_h5(path)


def test_trap_06_points_that_their_code_computes_again_may_change(tmp_path):
    """It takes what is not positive for missing."""
    surface = plane()
    assert surface.loss[0, 0] == 0.0
    path = surface.to_h5(tmp_path / "s.h5")
    with h5py.File(path, "r+") as file:
        file["train_loss"][0, 0] = 1e-9
    assert export.read_h5(path).loss[0, 0] == 1e-9


@pytest.mark.parametrize("name", ["xdirection/0", "ydirection/5"])
def test_fault_07_directions_of_ours_that_somebody_changed_are_damage(tmp_path, name):
    model = network()
    path = export.directions_to_h5(lx.directions.random(model, 2), tmp_path / "d.h5", model)
    with h5py.File(path, "r+") as file:
        file[name][..., 0] += 1
    with pytest.raises(CorruptFileError, match="its numbers do not match their SHA-256"):
        export.directions_from_h5(path, model)


def test_directions_of_a_machine_with_another_order_of_bytes_are_read(tmp_path):
    model = network()
    arrays = [p.detach().numpy() for p in model.parameters()]
    with h5py.File(tmp_path / "d.h5", "w") as file:
        for k, array in enumerate(arrays):
            file[f"xdirection/{k}"] = array.astype(">f4")
    found = export.directions_from_h5(tmp_path / "d.h5", model)
    assert found.vectors[0].tolist() == np.concatenate([a.ravel() for a in arrays]).tolist()


def test_directions_that_torch_has_no_numbers_for_are_refused(tmp_path):
    model = network()
    with h5py.File(tmp_path / "d.h5", "w") as file:
        for k, p in enumerate(model.parameters()):
            file[f"xdirection/{k}"] = p.detach().numpy().astype(np.longdouble)
    with pytest.raises(CorruptFileError, match="is not a direction file of loss-landscape"):
        export.directions_from_h5(tmp_path / "d.h5", model)


@pytest.mark.parametrize("text", [None, b""])
def test_fault_07_a_file_of_ours_that_does_not_say_what_it_holds_is_damaged(tmp_path, text):
    path = plane().to_h5(tmp_path / "s.h5")
    with h5py.File(path, "r+") as file:
        length = file["landscapex"].dtype
        del file["landscapex"]
        if text is not None:  # as if HDF5 had not found it
            file["landscapex"] = np.array([text], length)
    with pytest.raises(CorruptFileError, match="it must hold the text 'landscapex'"):
        export.read_h5(path)


# ---------------------------------------------------------------- how it is found out


def _misbehave(number: int) -> bool:
    match number:
        case 1:
            os.abort()
        case 2:
            time.sleep(30)
        case 3:
            raise CorruptFileError("damaged")
        case 4:
            raise KeyError("x")
        case 5:
            raise SystemExit
    return number != 6


def test_whatever_a_reader_does_is_seen_and_the_next_file_is_read(monkeypatch):
    monkeypatch.setattr(workers, "SECONDS", 0.5)
    found = list(workers.serve(_misbehave, range(9)))
    assert [r.number for r in found] == list(range(9))
    assert [r.what for r in found] == [
        "same", "crash", "hang", "refused", "foreign", "foreign", "other", "same", "same"
    ]  # fmt: skip
    assert found[2].seconds >= 0.5
    assert found[4].said == "KeyError: 'x'"


@pytest.mark.parametrize(
    ("behave", "plain", "kept"),
    [
        (lambda path: path.read_bytes() == b"0" * 99, False, False),
        (lambda path: path.read_bytes() == b"0" * 99, True, True),
        (lambda path: True, False, False),  # nothing was damaged
        (lambda path: 1 / 0, True, False),
        (lambda path: os.abort(), True, False),
        (lambda path: int("nothing"), False, False),
    ],
)
def test_a_reader_that_is_not_ours_does_not_keep_the_promise(tmp_path, behave, plain, kept):
    form = Format((b"0" * 99, b"1" * 99), tmp_path / "f", behave, plain)
    assert damage.figure("files", form, 10).kept == kept


def test_a_crash_in_the_process_for_it_is_one_that_the_reader_may_answer(tmp_path):
    def refuse(path: Path) -> bool:
        raise CorruptFileError("the library crashed on it")

    form = Format((b"0" * 99,), tmp_path / "f", lambda path: os.abort(), through=refuse)
    found = damage.figure("files", form, 5)
    assert found.kept
    assert "5 refused" in found.found
    assert "crashed on 5" in found.found


def test_damage_depends_on_its_number_alone_and_is_of_many_kinds(generators_untouched):
    files = bytes(range(256)) * 4, b"1 2 3\n" * 200
    for lines in (False, True):
        made = [damage.damaged(files, k, lines=lines) for k in range(200)]
        assert made == [damage.damaged(files, k, lines=lines) for k in range(200)]
        assert len(set(made)) > 190
        assert not set(made) & set(files)
        sizes = np.sign([len(data) - len(files[0]) for data in made])
        assert all(np.count_nonzero(sizes == sign) > 20 for sign in (-1, 0, 1))


def test_json_stays_json_when_a_fuzzer_changes_it():
    line = json.dumps({"a": [1, {"b": "x"}], "c": None}).encode()
    rng = random.Random(0)
    made = [fuzz.change_json(line[1:] + b"\n" + line, rng) for _ in range(200)]
    changed = [data for data in made if data is not None]
    assert 50 < len(changed) < 150
    for data in changed:
        first, second = data.split(b"\n")
        json.loads(b"{" + first), json.loads(second)
    assert len(set(changed)) > 40
    assert fuzz.change_json(b"{", rng) is None


def test_a_safetensors_header_keeps_its_length_when_a_fuzzer_changes_it():
    (data,) = fuzz_targets.SEEDS()["safetensors"]
    rng = random.Random(0)
    changed = [d for _ in range(50) if (d := fuzz.change_header(data, rng))]
    assert len(changed) > 10
    for made in changed:
        json.loads(made[8 : 8 + int.from_bytes(made[:8], "little")])


def test_without_the_fuzzer_the_promise_is_not_kept(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (figure,) = fuzz.measure(1.0)
    assert not figure.kept
    assert "not installed" in figure.found


def test_a_checkpoint_that_is_refused_leaves_the_model_alone(tmp_path):
    """Of formats without checksums: names, shapes and dtypes are compared before anything else."""
    model = nn.Linear(2, 2)
    before = [p.tolist() for p in model.parameters()]
    torch.save({"weight": torch.ones(2, 2), "bias": torch.ones(3)}, tmp_path / "m.pt")
    with pytest.raises(lx.errors.ParameterMismatchError, match="bias: shape"):
        checkpoints.load(model, tmp_path / "m.pt")
    assert [p.tolist() for p in model.parameters()] == before
