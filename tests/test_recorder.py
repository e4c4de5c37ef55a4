"""Recorded runs: whole, in order, and without a trace in the training."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from recorder_cases import bits, network, steps_in, train
from safetensors import safe_open
from torch import nn

from landscapex.errors import ArgumentError, ArgumentTypeError, OutputError, ParameterMismatchError
from landscapex.storage import checkpoints
from landscapex.trajectories import recorder, runs
from landscapex.trajectories.recorder import Recorder


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
        assert len(line.pop("crc32")) == 8
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


def test_other_ranks_of_a_distributed_run_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    with Recorder(tmp_path / "run", network()) as record:
        assert not record(0)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    with Recorder(tmp_path / "run", network()) as record:
        assert record(0)


def test_steps_that_go_back_are_refused(tmp_path):
    record = Recorder(tmp_path, network())
    record(3)
    with pytest.raises(ArgumentError, match="`step` must be above 3, the last recorded, got 3"):
        record(3)
    record.close()
    with pytest.raises(ArgumentError, match="`step` must be above 3, the last recorded, got 2"):
        Recorder(tmp_path, network(), resume=True)(2)


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
