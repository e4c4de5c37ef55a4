"""Recorded runs: whole, in order, never overwritten, and without a trace in the training."""

from __future__ import annotations

import copy
import errno
import json
import multiprocessing
import os
import random
import sys
import time
import types

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from landscapex.errors import (
    ArgumentError,
    ArgumentTypeError,
    CorruptFileError,
    OutputError,
    ParameterMismatchError,
    ResumeMismatchError,
)
from landscapex.storage import checkpoints, files
from landscapex.trajectories import recorder, runs
from landscapex.trajectories.recorder import Recorder


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


def train(model, steps, record=None, *, first=0, lr=0.1):
    """SGD with dropout and batch norm; everything drawn from torch's global generator."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    for step in range(first, first + steps):
        loss = model(torch.randn(8, 3)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if record is not None:
            record(step + 1, loss=loss, lr=lr, epoch=step / 10)
    return model


def bits(state):
    return {
        n: (t.dtype, tuple(t.shape), t.detach().reshape(-1).contiguous().view(torch.uint8).tolist())
        for n, t in state.items()
        if t.numel()
    }


def steps_in(folder):
    return runs.open_run(folder).steps.tolist()


def test_a_step_holds_parameters_and_buffers_under_the_names_of_the_state_dict(tmp_path):
    model = train(network(), 3)
    with Recorder(tmp_path / "new" / "run", model) as record:
        assert record(3)
    path = tmp_path / "new" / "run" / "step-000000003.safetensors"
    assert bits(checkpoints.read(path)) == bits(model.state_dict())
    assert "1.running_var" in checkpoints.read(path)


class Tied(nn.Module):
    """GPT-style: the embedding is the head."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight


def test_trap_22_a_tied_weight_is_stored_once_and_read_under_both_names(tmp_path):
    model = Tied()
    with Recorder(tmp_path, model) as record:
        record(0)
    path = tmp_path / runs.file_name(0)
    with safe_open(path, framework="pt") as file:
        assert list(file.keys()) == ["embedding.weight"]
    read = checkpoints.read(path)
    assert list(read) == ["embedding.weight", "head.weight"]
    assert bits(read) == bits(model.state_dict())


class Odd(nn.Module):
    """Tensors of every kind that a state_dict can hold."""

    def __init__(self):
        super().__init__()
        self.short = nn.Parameter(torch.tensor([1.0, -0.0, 3e-39]).bfloat16())
        self.waves = nn.Parameter(torch.tensor([1 + 2j, -3.5j]))
        self.turned = nn.Parameter(torch.randn(3, 5).T)
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("nothing", torch.zeros(0, 4))
        self.register_buffer("nothing_too", torch.zeros(0, 2))
        shared = torch.randn(6)
        self.register_buffer("front", shared[:3])
        self.register_buffer("whole", shared)
        self.register_buffer("mask", torch.tensor([True, False]))

    def get_extra_state(self):
        return {"not": "a tensor"}

    def set_extra_state(self, state):
        pass


def test_every_kind_of_tensor_comes_back_with_the_same_bits(tmp_path):
    model = Odd()
    with Recorder(tmp_path, model) as record:
        record(0)
    read = checkpoints.read(tmp_path / runs.file_name(0))
    expected = {n: t for n, t in model.state_dict().items() if isinstance(t, torch.Tensor)}
    assert bits(read) == bits(expected)
    assert {n: t.shape for n, t in read.items()} == {n: t.shape for n, t in expected.items()}


def test_the_index_says_step_epoch_rate_loss_and_whatever_else(tmp_path):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    groups = [{"params": p, "lr": 0.1 * (k + 1)} for k, p in enumerate(model.parameters())]
    with Recorder(tmp_path, model, optimizer=optimizer) as record:
        record(np.int64(4), epoch=0.5, loss=torch.tensor(1.5, requires_grad=True), accuracy=1)
        record(torch.tensor(5), loss=float("nan"), lr=[g["lr"] for g in groups[:2]])
        record(6, loss=np.float32(np.inf), lr=0.125)
    lines = [json.loads(line) for line in (tmp_path / "index.jsonl").read_text().splitlines()]
    for line in lines:
        assert len(line.pop("sha256")) == 64
    assert lines == [
        {"step": 4, "epoch": 0.5, "lr": 0.25, "loss": 1.5, "accuracy": 1},
        {"step": 5, "epoch": None, "lr": [0.1, 0.2], "loss": "nan"},
        {"step": 6, "epoch": None, "lr": 0.125, "loss": "inf"},
    ]
    found = runs.open_run(tmp_path)
    np.testing.assert_array_equal([c.lr for c in found], [0.25, 0.2, 0.125])
    np.testing.assert_array_equal([c.loss for c in found], [1.5, np.nan, np.inf])
    np.testing.assert_array_equal([c.epoch for c in found], [0.5, np.nan, np.nan])


@pytest.mark.parametrize(
    ("every", "kept"),
    [
        (1, list(range(30))),
        (7, [0, 7, 14, 21, 28]),
        ({2, 3, 25, 99}, [2, 3, 25]),
        (lambda step: step > 26, [27, 28, 29]),
        ("log", [*range(12), 13, 14, 16, 18, 20, 22, 25, 28]),
    ],
)
def test_the_steps_that_are_wanted_are_kept(tmp_path, every, kept):
    record = Recorder(tmp_path, nn.Linear(1, 1), every=every)
    assert [step for step in range(30) if record(step)] == kept
    assert steps_in(record) == kept


def test_log_spaced_steps_are_about_twenty_in_each_later_decade(tmp_path):
    record = Recorder(tmp_path, nn.Linear(1, 1), every="log")
    wanted = [step for step in range(100_001) if record._wanted(step)]
    assert [sum(10**d < s <= 10 ** (d + 1) for s in wanted) for d in (2, 3, 4)] == [20, 20, 20]


def test_the_last_step_is_kept_unless_the_model_has_moved_on(tmp_path):
    for name, changes in (("still", False), ("moved", True)):
        model = network()
        with Recorder(tmp_path / name, model, every=10) as record:
            for step in range(14):
                record(step)
            if changes:
                train(model, 1)
        assert steps_in(record) == ([0, 10] if changes else [0, 10, 13])


@pytest.mark.parametrize("layers", [1, 30])
@pytest.mark.parametrize("which", ["all", "last"])
def test_a_model_written_to_past_its_version_counters_has_moved_on(tmp_path, layers, which):
    """``p.data -= lr * p.grad`` does not count as a change for torch."""
    model = nn.Sequential(*[nn.Conv2d(2, 2, 3, padding=1) for _ in range(layers)])
    model.to(memory_format=torch.channels_last)
    model[0].bias.requires_grad_(False)
    with Recorder(tmp_path, model, every=10) as record:
        for step in range(14):
            record(step)
        for p in model.parameters() if which == "all" else model[-1].parameters():
            p.data += 1e-3
    assert steps_in(record) == [0, 10]


def test_samples_lie_within_their_tensors_and_all_over_them():
    layouts = [
        torch.arange(1000.0), torch.arange(7.0), torch.tensor(3.0), torch.arange(6.0).view(2, 3),
        torch.arange(40_000.0).view(200, 200).T, torch.arange(9000.0).view(3, 1000, 3)[:, ::7, 1:],
        torch.arange(4000.0).view(2, 5, 20, 20).to(memory_format=torch.channels_last),
        torch.zeros(0, 3), torch.view_as_complex(torch.arange(100.0).view(50, 2)).conj(),
    ]  # fmt: skip
    for t in layouts:
        seen = recorder._sample(nn.Parameter(t))
        entries = t.reshape(-1).tolist()
        assert len(seen) == min(32, max(t.shape, default=1)) * bool(t.numel())
        assert set(seen.tolist()) <= set(entries)
        if len(seen) > 1:
            assert len(set(seen.tolist())) == len(seen)
            longest = max(t.shape)
            step = (longest - 1) // (len(seen) - 1)
            assert step * (len(seen) - 1) > 0.5 * (longest - 1)  # not its beginning alone


def test_after_an_exception_nothing_more_is_kept(tmp_path):
    def interrupted():
        with Recorder(tmp_path, network(), every=10) as record:
            record(0)
            record(1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert steps_in(tmp_path) == [0]
    assert not list(tmp_path.glob("*.lock"))


def test_recording_leaves_the_training_as_it_was_bit_for_bit(tmp_path):
    plain = train(network(), 12)
    generator = torch.get_rng_state()
    torch.manual_seed(0)
    model = network()
    with Recorder(tmp_path, model, every=2) as record:
        recorded = train(model, 12, record)
    assert bits(recorded.state_dict()) == bits(plain.state_dict())
    assert torch.equal(torch.get_rng_state(), generator)
    assert recorded.training
    for a, b in zip(recorded.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
        assert a.requires_grad


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrappers_are_looked_through(tmp_path, wrap):
    model = network()
    with Recorder(tmp_path, wrap(model)) as record:
        record(0)
    assert bits(checkpoints.read(tmp_path / runs.file_name(0))) == bits(model.state_dict())


def test_a_run_that_is_there_is_not_touched(tmp_path):
    with Recorder(tmp_path, network()) as record:
        record(0)
        record(5)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(OutputError, match="holds a run of 2 checkpoints, the last of step 5"):
        Recorder(tmp_path, network())
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def recorded(folder, steps):
    """A run of so many steps from the common start, and the model at its end."""
    torch.manual_seed(1)
    model = network()
    with Recorder(folder, model) as record:
        record(0)
        torch.manual_seed(2)
        train(model, steps, record)
    return model


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
    assert whole["index.jsonl"].splitlines()[0][:20] == part["index.jsonl"].splitlines()[0][:20]
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


def test_steps_that_go_back_are_refused(tmp_path):
    record = Recorder(tmp_path, network())
    record(3)
    with pytest.raises(ArgumentError, match="`step` must be above 3, the last recorded, got 3"):
        record(3)
    record.close()
    with pytest.raises(ArgumentError, match="`step` must be above 3, the last recorded, got 2"):
        Recorder(tmp_path, network(), resume=True)(2)


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


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"every": 0}, ArgumentError, "`every` must be at least 1, got 0"),
        ({"every": True}, ArgumentError, "`every` must be at least 1, got True"),
        (
            {"every": "often"},
            ArgumentError,
            "`every` must be a number, 'log' or.*'often'",
        ),
        ({"every": 1.5}, ArgumentTypeError, "`every` must be a number, 'log' or steps, got float"),
        ({"every": [1.5]}, ArgumentTypeError, "`step` must be a whole number, got 1.5"),
        ({"resume": -1}, ArgumentError, "`resume` must be False, True or a step, got -1"),
        ({"resume": "yes"}, ArgumentError, "`resume` must be False, True or a step, got 'yes'"),
    ],
)
def test_options_that_cannot_be_used_are_refused(tmp_path, options, kind, message):
    with pytest.raises(kind, match=message):
        Recorder(tmp_path, network(), **options)


@pytest.mark.parametrize(
    ("step", "values", "kind", "message"),
    [
        (-1, {}, ArgumentError, "`step` must be at least 0, got -1"),
        (1.0, {}, ArgumentTypeError, "`step` must be a whole number, got 1.0"),
        (True, {}, ArgumentTypeError, "`step` must be a whole number, got True"),
        (0, {"loss": "low"}, ArgumentTypeError, "`loss` must be a number, got str"),
        (0, {"lr": torch.ones(2)}, ArgumentTypeError, "`lr` must be a number, got Tensor"),
        (0, {"sha256": 1}, ArgumentError, "a value must have another name than 'sha256'"),
    ],
)
def test_steps_and_values_that_are_none_are_refused(tmp_path, step, values, kind, message):
    record = Recorder(tmp_path, network())
    with pytest.raises(kind, match=message):
        record(step, **values)
    assert not list(tmp_path.iterdir())


def test_what_is_no_module_or_no_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ArgumentTypeError, match=r"`model` must be a torch.nn.Module, got list"):
        Recorder(tmp_path, [])
    with pytest.raises(OutputError, match="file cannot be made"):
        Recorder(tmp_path / "file", network())


def meta():
    return nn.Linear(2, 2, device="meta")


def sparse():
    model = nn.Linear(2, 2)
    model.register_buffer("few", torch.eye(2).to_sparse())
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.LazyLinear(3), r"weight \(lazy, not initialised yet"),
        (meta, r"weight \(on the meta device"),
        (sparse, r"few \(torch.sparse_coo, torch.float32\)"),
    ],
)
def test_fault_24_tensors_that_cannot_be_stored_are_named(tmp_path, make, message):
    record = Recorder(tmp_path, make())
    with pytest.raises(ParameterMismatchError, match=f"must be plain and dense.*{message}"):
        record(0)
    assert not list(tmp_path.glob("step*"))


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


def test_other_ranks_of_a_distributed_run_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    with Recorder(tmp_path / "run", network()) as record:
        assert not record(0)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    with Recorder(tmp_path / "run", network()) as record:
        assert record(0)


class LightningCallback:
    """What lightning.pytorch.Callback is to its Trainer: a base class with empty hooks."""

    def setup(self, trainer, pl_module, stage):
        pass

    def on_train_start(self, trainer, pl_module):
        pass

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        pass

    def on_train_end(self, trainer, pl_module):
        pass

    def state_dict(self):
        return {}


class LightningTrainer:
    """Calls hooks in the order and with the arguments of lightning.pytorch.Trainer.fit."""

    def __init__(self, model, callback, *, accumulate=1, is_global_zero=True):
        self.model, self.callback, self.accumulate = model, callback, accumulate
        self.is_global_zero, self.global_step, self.current_epoch = is_global_zero, 0, 0
        self.optimizers = [torch.optim.SGD(model.parameters(), lr=0.1)]

    def call(self, hook, *arguments):
        getattr(self.callback, hook)(self, self.model, *arguments)

    def fit(self, epochs, batches):
        self.call("setup", "fit")
        self.call("on_fit_start")
        self.call("on_train_start")
        for self.current_epoch in range(epochs):
            self.call("on_train_epoch_start")
            for k in range(batches):
                self.call("on_train_batch_start", None, k)
                loss = self.model(torch.randn(4, 3)).square().mean()
                self.call("on_before_backward", loss)
                loss.backward()
                if (k + 1) % self.accumulate == 0:
                    self.optimizers[0].step()
                    self.optimizers[0].zero_grad()
                    self.global_step += 1
                self.call("on_train_batch_end", {"loss": loss.detach()}, None, k)
            self.call("on_train_epoch_end")
        self.call("on_train_end")
        self.call("on_fit_end")
        self.call("teardown", "fit")


@pytest.mark.parametrize("imported", [[], ["lightning.pytorch"], ["pytorch_lightning"]])
def test_lightning_callback_records_the_start_every_update_and_the_end(
    tmp_path, monkeypatch, imported
):
    for name in imported:
        module = types.ModuleType(name)
        module.Callback = LightningCallback
        monkeypatch.setitem(sys.modules, name, module)
    model = network()
    record = Recorder(tmp_path, model, every=4)
    callback = record.lightning()
    # their Trainer refuses what is not derived from their class
    assert isinstance(callback, LightningCallback) == bool(imported)
    assert callback.state_dict() == {}
    assert str(tmp_path) in callback.state_key
    LightningTrainer(model, callback, accumulate=2).fit(3, 6)
    found = runs.open_run(tmp_path)
    assert found.steps.tolist() == [0, 4, 8, 9]
    assert [c.epoch for c in found] == [0, 1, 2, 2]
    assert [c.lr for c in found] == [0.1] * 4
    assert np.isnan(found[0].loss)
    assert found[1].loss > 0
    assert bits(found[-1].read()) == bits(model.state_dict())


def test_lightning_callback_writes_on_the_first_process_only(tmp_path):
    model = network()
    record = Recorder(tmp_path, model)
    LightningTrainer(model, record.lightning(), is_global_zero=False).fit(1, 2)
    assert not list(tmp_path.iterdir())


def test_lightning_callback_gives_the_folder_free_when_training_fails(tmp_path):
    model = network()
    record = Recorder(tmp_path, model, every=4)
    trainer = LightningTrainer(model, record.lightning())
    trainer.call("on_train_start")
    assert list(tmp_path.glob("*.lock"))
    trainer.call("on_exception", KeyboardInterrupt())
    assert not list(tmp_path.glob("*.lock"))
    assert steps_in(tmp_path) == [0]


class TransformersTrainer:
    """Calls events in the order and with the arguments of transformers.Trainer.train."""

    def __init__(self, model, callback, *, zero=True):
        self.model, self.callback = model, callback
        self.state = types.SimpleNamespace(global_step=0, epoch=0.0, is_world_process_zero=zero)
        self.control = types.SimpleNamespace(should_training_stop=False)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.5)

    def call(self, event):
        result = getattr(self.callback, event)(
            types.SimpleNamespace(), self.state, self.control, model=self.model,
            processing_class=None, optimizer=self.optimizer, lr_scheduler=None,
            train_dataloader=None, eval_dataloader=None,
        )  # fmt: skip
        assert result is None  # the control is left alone

    def train(self, steps):
        self.call("on_init_end")
        self.call("on_train_begin")
        self.call("on_epoch_begin")
        for _ in range(steps):
            self.call("on_step_begin")
            self.model(torch.randn(4, 3)).square().mean().backward()
            self.call("on_pre_optimizer_step")
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.state.global_step += 1
            self.state.epoch = self.state.global_step / steps
            self.call("on_step_end")
            self.call("on_log")
        self.call("on_epoch_end")
        self.call("on_train_end")


@pytest.mark.parametrize("zero", [True, False])
def test_transformers_callback_records_the_start_every_update_and_the_end(tmp_path, zero):
    model = network()
    record = Recorder(tmp_path, model, every=3)
    TransformersTrainer(model, record.transformers(), zero=zero).train(5)
    if not zero:
        assert not list(tmp_path.iterdir())
        return
    found = runs.open_run(tmp_path)
    assert found.steps.tolist() == [0, 3, 5]
    assert [c.epoch for c in found] == [0.0, 0.6, 1.0]
    assert [c.lr for c in found] == [0.5] * 3
    assert bits(found[-1].read()) == bits(model.state_dict())


def test_transformers_callback_leaves_no_lock_when_training_fails(tmp_path):
    """That Trainer tells no callback that training has failed, and a notebook goes on."""
    model = network()
    callback = Recorder(tmp_path, model, every=2).transformers()
    trainer = TransformersTrainer(model, callback)
    trainer.call("on_train_begin")
    train(model, 1)
    trainer.state.global_step = 2
    trainer.call("on_step_end")  # and now an exception in the next step
    assert not list(tmp_path.glob("*.lock"))
    with Recorder(tmp_path, model, resume=True) as record:
        assert record(3)
    assert steps_in(tmp_path) == [0, 2, 3]
    del callback


def test_fault_06_transformers_callbacks_do_not_share_a_folder(tmp_path):
    one, other = (Recorder(tmp_path, network()).transformers() for _ in range(2))
    TransformersTrainer(network(), one).train(1)
    with pytest.raises(OutputError, match="holds a run of 2 checkpoints"):
        TransformersTrainer(network(), other).train(1)
    assert steps_in(tmp_path) == [0, 1]


@pytest.mark.parametrize("kind", ["lightning", "transformers"])
def test_training_that_starts_again_is_never_mixed_with_the_first(tmp_path, kind):
    """Steps that come again are not skipped: they must be the same bit by bit."""
    model = network()
    start = copy.deepcopy(model.state_dict())
    if kind == "lightning":
        callback = Recorder(tmp_path, model).lightning()
        begin, step = "on_train_start", ("on_train_batch_end", {"loss": torch.ones(())}, None, 0)
        trainer = LightningTrainer(model, callback)
        place = trainer
    else:
        callback = Recorder(tmp_path, model).transformers()
        begin, step = "on_train_begin", ("on_step_end",)
        trainer = TransformersTrainer(model, callback)
        place = trainer.state

    def advance(last):
        trainer.call(begin)
        while place.global_step < last:
            torch.manual_seed(place.global_step)
            train(model, 1)
            place.global_step += 1
            trainer.call(*step)

    advance(3)  # and fails
    if kind == "lightning":
        trainer.call("on_exception", RuntimeError())
    advance(4)  # goes on where it was
    assert steps_in(tmp_path) == [0, 1, 2, 3, 4]
    trainer.call("on_train_end")
    advance(5)
    assert steps_in(tmp_path) == [0, 1, 2, 3, 4, 5]
    model.load_state_dict(start)
    place.global_step = 0
    advance(6)  # the same training once more
    assert steps_in(tmp_path) == [0, 1, 2, 3, 4, 5, 6]
    place.global_step = 0
    with pytest.raises(ResumeMismatchError, match=r"step 0 is in .* with other weights"):
        advance(1)


def test_a_callback_has_no_other_attributes_than_hooks(tmp_path):
    callback = Recorder(tmp_path, network()).transformers()
    assert callback.on_whatever_comes_next(1, 2, named=3) is None
    with pytest.raises(AttributeError, match="has no attribute 'monitor'"):
        _ = callback.monitor
