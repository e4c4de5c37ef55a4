"""Runs of every kind are found, in the order of their steps, and read without running them."""

from __future__ import annotations

import copy
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from landscapex.errors import (
    ArgumentError,
    ArgumentTypeError,
    CorruptFileError,
    LandscapexWarning,
    ParameterMismatchError,
)
from landscapex.storage import checkpoints
from landscapex.trajectories.runs import open_run, step_in


def state(value):
    """Of a linear layer, all entries the same."""
    return {"weight": torch.full((2, 3), float(value)), "bias": torch.full((2,), float(value))}


def save(path, value, wrap=lambda s: s):
    path.parent.mkdir(parents=True, exist_ok=True)
    (save_file if path.suffix == ".safetensors" else torch.save)(wrap(state(value)), path)


def values_of(run):
    return [float(s["weight"][0, 0]) for _, s in run.states()]


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("epoch=3-step=120.ckpt", 120),
        ("epoch=3-val_loss=0.25.ckpt", 3),
        ("checkpoint-500", 500),
        ("checkpoint_7.pt", 7),
        ("model_20.pt", 20),
        ("model-v2-0010.pth", 10),
        ("iter_30000_0.93.pt", 30000),
        ("step-000000012.safetensors", 12),
        ("Step12.pt", 12),
        ("best.pt", None),
        ("last-v1.ckpt", None),
        ("epoch=3-step=120-v2.ckpt", 120),
    ],
)
def test_steps_are_read_from_names(name, step):
    assert step_in(Path(name)) == step


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin", ".ckpt"])
def test_files_are_ordered_by_step_and_not_by_letter(tmp_path, suffix):
    for step in (100, 20, 3):
        save(tmp_path / f"model_{step}{suffix}", step)
    (tmp_path / "notes.txt").touch()
    for source in (tmp_path, str(tmp_path), sorted(tmp_path.glob("model*"))):
        run = open_run(source)
        assert run.steps.tolist() == [3, 20, 100]
        assert values_of(run) == [3, 20, 100]


def test_one_file_is_a_run_of_one(tmp_path):
    save(tmp_path / "final.pt", 5)
    assert values_of(open_run(tmp_path / "final.pt")) == [5]
    assert values_of(open_run(tmp_path)) == [5]


def test_files_without_a_step_are_left_out_aloud(tmp_path):
    for name in ("epoch=0-step=10.ckpt", "epoch=1-step=20.ckpt", "last.ckpt"):
        save(tmp_path / name, 1, lambda s: {"state_dict": s, "epoch": 3, "global_step": 10})
    with pytest.warns(LandscapexWarning, match=r"no step in the names of last.ckpt .*left out"):
        run = open_run(tmp_path)
    assert run.steps.tolist() == [10, 20]
    assert [c.epoch for c in run] == [0, 1]


def hugging_face(folder, step, *, sharded=False, suffix="safetensors"):
    """A folder as transformers.Trainer writes it."""
    here = folder / f"checkpoint-{step}"
    here.mkdir(parents=True)
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    write = save_file if suffix == "safetensors" else torch.save
    parts = {f"{stem}.{suffix}": state(step)}
    if sharded:
        parts = {
            f"{stem}-0000{k}-of-00002.{suffix}": {name: t}
            for k, (name, t) in enumerate(state(step).items(), 1)
        }
        where = {name: file for file, tensors in parts.items() for name in tensors}
        index = {"metadata": {"total_size": 32}, "weight_map": where}
        (here / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    for file, tensors in parts.items():
        write(tensors, here / file)
    torch.save({"state": {}}, here / "optimizer.pt")
    torch.save([1], here / "training_args.bin")
    log = [
        {"step": s, "epoch": s / 10, "learning_rate": 1 / s, "loss": 2.0 / s}
        for s in range(5, step + 1, 5)
    ]
    log.append({"step": step, "epoch": step / 10, "eval_loss": 3.0})
    (here / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    return here


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_hugging_face_folders_are_read_with_their_log(tmp_path, sharded, suffix):
    for step in (100, 20):
        here = hugging_face(tmp_path, step, sharded=sharded, suffix=suffix)
    save(tmp_path / "model.safetensors", 7)  # the final model, beside its checkpoints
    run = open_run(tmp_path)
    assert run.steps.tolist() == [20, 100]
    assert values_of(run) == [20, 100]
    assert [c.lr for c in run] == [1 / 20, 1 / 100]
    assert [c.loss for c in run] == [2 / 20, 2 / 100]
    assert [c.epoch for c in run] == [2, 10]
    assert dict(checkpoints.open_lazily(here)).keys() == {"weight", "bias"}
    assert values_of(open_run(here)) == [20]


def test_a_damaged_log_is_no_log(tmp_path):
    (hugging_face(tmp_path, 5) / "trainer_state.json").write_text('{"log_history": [1, {}')
    assert math.isnan(open_run(tmp_path)[0].lr)
    (tmp_path / "checkpoint-5" / "trainer_state.json").write_text(
        '{"log_history": [1, {"step": "a"}, {"step": 5, "learning_rate": "x", "loss": 4}]}'
    )
    assert math.isnan(open_run(tmp_path)[0].lr)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"weight": "../model_9.safetensors"}, "must name files beside it"),
        ({"weight": "/etc/passwd"}, "must name files beside it"),
        ({"weight": "part.txt"}, "must name files beside it"),
        ({"weight": 3}, "must name files beside it"),
        ({}, "must name files beside it"),
        ([], "must name files beside it|not a readable index"),
        ({"weight": "model-1.safetensors", "absent": "model-1.safetensors"}, "must hold absent"),
    ],
)
def test_an_index_leads_nowhere_but_beside_it(tmp_path, weight_map, message):
    save(tmp_path / "model_9.safetensors", 9)
    here = tmp_path / "checkpoint-1"
    save(here / "model-1.safetensors", 1)
    (here / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CorruptFileError, match=message):
        checkpoints.read(here)


@pytest.mark.parametrize("text", ["{", "[]", '{"weights": {}}', "[" * 100_000, '{"weight_map": 3}'])
def test_an_index_that_cannot_be_read_is_named(tmp_path, text):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(CorruptFileError, match=f"{index} is not a readable index of weights"):
        checkpoints.read(tmp_path)


def test_the_tensors_of_several_files_are_counted(tmp_path):
    lazily = checkpoints.open_lazily(hugging_face(tmp_path, 5, sharded=True))
    assert len(lazily) == len(list(lazily)) == 2


def test_lists_hold_states_modules_vectors_and_paths(tmp_path):
    save(tmp_path / "a.pt", 1)
    module = nn.Linear(3, 2)
    run = open_run([tmp_path / "a.pt", state(2), nn.DataParallel(module), torch.ones(8)])
    assert run.steps.tolist() == [0, 1, 2, 3]
    kinds = [type(s) for _, s in run.states()]
    assert kinds == [dict, dict, dict, torch.Tensor]
    assert torch.equal(run[2].read()["weight"], module.weight)
    assert not run[2].read()["weight"].requires_grad
    assert len(run[1:]) == 3
    assert repr(run) == "Run(4 checkpoints, steps 0 to 3)"


def test_lists_without_steps_in_all_names_stay_as_they_are(tmp_path):
    for name, value in (("b_20.pt", 1), ("a_3.pt", 2), ("final.pt", 3)):
        save(tmp_path / name, value)
    run = open_run([tmp_path / "b_20.pt", tmp_path / "a_3.pt", tmp_path / "final.pt"])
    assert run.steps.tolist() == [0, 1, 2]
    assert values_of(run) == [1, 2, 3]


def test_steps_can_be_given():
    for source in ({30: state(3), 10: state(1)}, [(30, state(3)), (10, state(1))]):
        run = open_run(source)
        assert run.steps.tolist() == [10, 30]
        assert values_of(run) == [1, 3]
    flat = torch.arange(6.0).view(3, 2)
    assert [s.tolist() for _, s in open_run(flat).states()] == flat.tolist()
    assert open_run(run) is run


def test_a_list_of_live_states_is_refused():
    """``states.append(model.state_dict())`` appends the same tensors again and again."""
    model = nn.Linear(3, 2)
    live = [model.state_dict() for _ in range(3)]
    with pytest.raises(ArgumentError, match=r"must be copies, but checkpoint 0 and checkpoint 1"):
        open_run(live)
    with pytest.raises(ArgumentError, match=r"append copy.deepcopy\(model.state_dict\(\)\)"):
        open_run([model, model])
    assert len(open_run([copy.deepcopy(s) for s in live])) == 3


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        ([], ArgumentError, "must hold at least one checkpoint, got none"),
        ({}, ArgumentError, "must hold at least one checkpoint, got none"),
        ("nowhere", ArgumentError, "`checkpoints` must exist, got 'nowhere'"),
        (
            iter([1]),
            ArgumentTypeError,
            "must be a folder, a list.*got list_iterator",
        ),
        (state(1), ArgumentTypeError, "must be a folder, a list of checkpoints.*got dict"),
        ([3.5], ArgumentTypeError, "must hold paths, state_dicts.*got float for checkpoint 0"),
        ([torch.ones(2, 3, 4)], ArgumentTypeError, r"got shape \(2, 3, 4\) for checkpoint 0"),
        ([(1, state(1)), state(2)], ArgumentTypeError, r"must hold pairs \(step, checkpoint\)"),
        ([(1, state(1)), (1, state(2))], ArgumentError, "must have different steps, got"),
    ],
)
def test_what_is_no_run_is_refused(source, kind, message):
    with pytest.raises(kind, match=message):
        open_run(source)


def test_folders_without_an_order_are_refused(tmp_path):
    with pytest.raises(ArgumentError, match="must hold checkpoints, got the folder"):
        open_run(tmp_path)
    for name in ("first.pt", "second.pt"):
        save(tmp_path / name, 1)
    with pytest.raises(ArgumentError, match=r"must have their steps in their names, got first.pt"):
        open_run(tmp_path)
    for name in ("epoch=1-step=20.ckpt", "epoch=1-step=20-v1.ckpt"):
        save(tmp_path / "twice" / name, 1)
    with pytest.raises(ArgumentError, match=r"must have different steps, got .* with 20"):
        open_run(tmp_path / "twice")


class Payload:
    """Unpickling this makes a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("how", [checkpoints.read, checkpoints.open_lazily])
def test_trap_41_fault_08_a_malicious_checkpoint_is_refused_and_not_run(tmp_path, how):
    victim = tmp_path / "owned"
    save(tmp_path / "run" / "model_1.pt", 1)
    torch.save(
        {"state_dict": state(2), "hyper": Payload(victim)}, tmp_path / "run" / "model_2.ckpt"
    )
    run = open_run(tmp_path / "run")
    with pytest.raises(CorruptFileError, match=r"model_2.ckpt was refused: .*would run code"):
        how(run[1].source)
    assert not victim.exists()


def test_tensors_are_read_one_by_one(tmp_path):
    save(tmp_path / "model_1.safetensors", 1)
    save(tmp_path / "model_2.pt", 2)
    for checkpoint in open_run(tmp_path):
        opened = checkpoint.open()
        assert float(opened["bias"][0]) == checkpoint.step
        assert sorted(opened) == ["bias", "weight"]
        assert len(opened) == 2
    with pytest.raises(KeyError):
        _ = open_run(tmp_path)[0].open()["absent"]


@pytest.mark.parametrize(
    ("stored", "expected", "prefix"),
    [
        (["net.a.weight", "net.a.bias", "metric.total"], ["a.weight", "a.bias"], "net."),
        (["module._orig_mod.weight"], ["weight"], "module._orig_mod."),
        (["module.weight"], ["module.weight"], ""),
        (["module.module.weight"], ["module.weight"], "module."),
        (["student.weight", "teacher.weight"], ["weight"], ""),
        (["weight", "average.weight"], ["weight"], ""),
        (["lightweight"], ["weight"], ""),
        (["a.bias", "b.weight", "b.bias"], ["weight", "bias"], "b."),
        ([], ["weight"], ""),
        (["weight"], [], ""),
    ],
)
def test_the_prefix_of_a_model_inside_something_larger_is_found(stored, expected, prefix):
    assert checkpoints.common_prefix(stored, expected) == prefix


def test_a_lightning_checkpoint_is_loaded_into_the_model_inside(tmp_path):
    inside = {f"net.{n}": t for n, t in state(4).items()}
    content = {"state_dict": {**inside, "accuracy.total": torch.ones(())}, "global_step": 8}
    torch.save(content, tmp_path / "epoch=0-step=8.ckpt")
    model = nn.Linear(3, 2)
    checkpoints.load(model, tmp_path / "epoch=0-step=8.ckpt")
    assert (model.weight == 4).all()
    torch.save({"state_dict": {**inside, "net.extra": torch.ones(1)}}, tmp_path / "b.ckpt")
    with pytest.raises(ParameterMismatchError, match="extra: not in the model"):
        checkpoints.load(model, tmp_path / "b.ckpt")


def test_files_of_old_versions_of_torch_are_read_too(tmp_path):
    path = tmp_path / "model_1.pt"
    torch.save(state(3), path, _use_new_zipfile_serialization=False)
    assert torch.equal(checkpoints.open_lazily(path)["weight"], state(3)["weight"])


def test_steps_are_whole_numbers():
    assert open_run([state(1), state(2)]).steps.dtype == np.int64
