"""Recorded runs that go on: never overwritten, never mixed, and whole after every fault."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import time

import pytest
import torch
from recorder_cases import bits, network, recorded, steps_in, train
from torch import nn

from landscapex.errors import CorruptFileError, OutputError, ResumeMismatchError
from landscapex.storage import checkpoints, files
from landscapex.trajectories import recorder, runs
from landscapex.trajectories.recorder import Recorder


def test_a_run_that_is_there_is_not_touched(tmp_path):
    with Recorder(tmp_path, network()) as record:
        record(0)
        record(5)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(OutputError, match="holds a run of 2 checkpoints, the last of step 5"):
        Recorder(tmp_path, network())
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_resumed_run_goes_on_where_it_was_and_is_the_uninterrupted_one(tmp_path):
    recorded(tmp_path / "whole", 6)
    recorded(tmp_path / "part", 4)
    torch.manual_seed(1)
    model = network()
    with Recorder(tmp_path / "part", model, resume=True) as record:
        assert not record(0)  # training starts over, and comes by what is there
        torch.manual_seed(2)
        train(model, 6, record)
    whole, part = (
        {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("whole", "part")
    )
    assert whole.keys() == part.keys()
    whole_index, part_index = (
        [
            {**json.loads(line), "sha256": "", "crc32": ""}
            for line in files["index.jsonl"].splitlines()
        ]
        for files in (whole, part)
    )
    assert whole_index == part_index
    for name in set(whole) - {"index.jsonl"}:
        a, b = (checkpoints.read(tmp_path / run / name) for run in ("whole", "part"))
        assert bits(a) == bits(b)


def test_other_weights_at_a_step_that_is_there_are_refused(tmp_path):
    recorded(tmp_path, 4)
    torch.manual_seed(1)
    model = network()
    with Recorder(tmp_path, model, resume=True) as record:
        torch.manual_seed(3)
        message = r"step 1 is in .* with other weights \(0.weight, ...\).*Pass resume=0 to"
        with pytest.raises(ResumeMismatchError, match=message):
            train(model, 1, record)
    assert steps_in(tmp_path) == [0, 1, 2, 3, 4]


def test_what_came_after_a_step_is_dropped_on_request(tmp_path):
    model = recorded(tmp_path, 5)
    with Recorder(tmp_path, model, resume=3) as record:
        assert steps_in(tmp_path) == [0, 1, 2, 3, 4, 5]  # until there is something to write
        record(4, loss=9.0)
    assert steps_in(tmp_path) == [0, 1, 2, 3, 4]
    assert runs.open_run(tmp_path)[-1].loss == 9.0
    assert bits(runs.open_run(tmp_path)[-1].read()) == bits(model.state_dict())
    assert sorted(p.name for p in tmp_path.glob("step*")) == [runs.file_name(k) for k in range(5)]


def test_the_run_of_another_model_is_refused(tmp_path):
    recorded(tmp_path, 1)
    other = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(4))
    record = Recorder(tmp_path, other, resume=True)
    message = r"holds the run of another model; it differs in 0.bias, 0.weight, 3.bias, 3.weight"
    with pytest.raises(ResumeMismatchError, match=message):
        record(2)
    assert steps_in(tmp_path) == [0, 1]


def test_fault_06_two_recorders_do_not_share_a_folder(tmp_path):
    first = Recorder(tmp_path, network())
    second = Recorder(tmp_path, network())
    first(0)
    with pytest.raises(OutputError, match="must not be written by two runs at once"):
        second(0)
    first.close()
    assert steps_in(tmp_path) == [0]


def test_a_run_that_appeared_meanwhile_is_not_touched(tmp_path):
    first, second = Recorder(tmp_path, network()), Recorder(tmp_path, network())
    first(0)
    first.close()
    for _ in range(2):  # also when asked again
        with pytest.raises(OutputError, match="holds a run of 1 checkpoints, the last of step 0"):
            second(1)
    assert steps_in(tmp_path) == [0]
    assert first(1)  # its own run goes on


def test_fault_04_a_torn_line_is_cut_and_its_step_recorded_again(tmp_path):
    model = recorded(tmp_path, 3)
    index = tmp_path / "index.jsonl"
    whole = index.read_bytes()
    for tail in (b"\0" * 50, whole.splitlines(keepends=True)[-1][:-9]):
        index.write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]) + tail)
        (tmp_path / "step-000000007.safetensors.12.34.tmp").write_bytes(b"left by a killed process")
        assert steps_in(tmp_path) == [0, 1, 2]
        with Recorder(tmp_path, model, resume=True) as record:
            assert record(3, loss=None)
        assert steps_in(tmp_path) == [0, 1, 2, 3]
        assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line[:-5],
        lambda line: line.replace(b'"step":1', b'"step":-1'),
        lambda line: line.replace(b'"step":1', b'"step":"1"'),
        lambda line: line.replace(b'"step":1', b'"step":0'),
        lambda line: line.replace(b'"sha256":"', b'"sha256":"x'),
        lambda line: line.replace(b'"loss"', b'"loss":"high","l"'),
        lambda line: b"[]",
        lambda line: b"{}",
    ],
)
def test_fault_09_a_damaged_line_is_named(tmp_path, change):
    recorded(tmp_path, 2)
    index = tmp_path / "index.jsonl"
    lines = index.read_bytes().splitlines()
    lines[1] = change(lines[1])
    index.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(CorruptFileError, match=r"index.jsonl is damaged in line 2"):
        runs.open_run(tmp_path)


def test_no_flipped_bit_of_a_checkpoint_goes_unnoticed(tmp_path):
    recorded(tmp_path, 1)
    path = tmp_path / runs.file_name(1)
    whole = path.read_bytes()
    rng = random.Random(0)
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(CorruptFileError, match=r"step-000000001.safetensors is damaged"):
            runs.open_run(tmp_path)[1].read()


def test_fault_03_a_full_disk_leaves_the_index_as_it_was(tmp_path, monkeypatch):
    model = recorded(tmp_path, 2)
    index = tmp_path / "index.jsonl"
    before = index.read_bytes()

    def half(descriptor, data):
        os.write(descriptor, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(recorder, "write_all", half)
    record = Recorder(tmp_path, model, resume=True)
    with pytest.raises(OutputError, match=r"index.jsonl could not be written: No space left"):
        record(3)
    assert index.read_bytes() == before
    monkeypatch.setattr(recorder, "write_all", files.write_all)
    assert record(3)
    assert steps_in(tmp_path) == [0, 1, 2, 3]


def record_many(folder, told):
    """In a child process: states whose every entry is the step."""
    model = nn.Linear(20, 20)
    with Recorder(folder, model, resume=True) as record:
        for step in range(len(record._records), 100_000):
            with torch.no_grad():
                for p in model.parameters():
                    p.fill_(step)
            record(step)
            told.value = step


def test_fault_01_killed_at_any_time_a_run_keeps_what_was_recorded(tmp_path):
    fork, rng = multiprocessing.get_context("fork"), random.Random(0)
    acknowledged = fork.Value("i", -1, lock=False)
    partial = 0
    for _ in range(12):
        child = fork.Process(target=record_many, args=(tmp_path, acknowledged))
        child.start()
        time.sleep(rng.uniform(0.01, 0.12))
        child.kill()
        child.join()
        if not (tmp_path / "index.jsonl").exists():
            continue
        records, _ = runs.read_index(tmp_path)
        assert len(records) > acknowledged.value
        assert [r["step"] for r in records] == list(range(len(records)))
        for checkpoint in runs.open_run(tmp_path)[-5:] if records else ():
            state = checkpoint.read()
            assert all(bool((t == checkpoint.step).all()) for t in state.values())
        partial += len(records) > 0
    assert partial > 3
