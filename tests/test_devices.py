"""Tensors on other devices, and a device that fails: what a machine with a GPU does, in stand-ins.

A CUDA device reports an error when somebody next waits for it, and what it gave meanwhile is worth
nothing. Faults 19 and 21; short memory is in test_short_memory.py.
"""

from __future__ import annotations

import subprocess
import sys

import emulated_device
import models
import numpy as np
import pytest
import reference
import torch
from evaluate_cases import BATCH, mse
from torch import nn

import landscapex as lx
from landscapex import _ops
from landscapex.engine import preparation
from landscapex.engine.device import DeviceRunner
from landscapex.grids import filling
from landscapex.model.parameters import ParameterSpace
from landscapex.storage import checkpoints

LOST = "CUDA error: an illegal memory access was encountered"
QUIET = {"points": (4, 5), "progress": False}


# --- Fault 19: tensors that are somewhere else ---------------------------------------------------


class Elsewhere(torch.Tensor):
    """Stands for a tensor of another device: it can be brought here, and nothing else."""

    FREE = (
        torch.Tensor.to,
        torch.Tensor.__len__,
        torch.Tensor.shape.__get__,
        torch.Tensor.ndim.__get__,
    )

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            if func in cls.FREE:
                made = func(*args, **(kwargs or {}))
                return made.as_subclass(torch.Tensor) if isinstance(made, torch.Tensor) else made
        raise RuntimeError(f"expected all tensors to be on the same device ({func})")


def test_fault_19_directions_of_another_device_and_dtype_are_brought_to_the_model():
    model = models.mlp(3, 4, 1)
    here = lx.directions.random(lx.Objective(model, BATCH, mse), 2, seed=1)
    truth = lx.surface(model, BATCH, mse, directions=here, **QUIET)
    for vectors in (here.vectors.as_subclass(Elsewhere), here.vectors.double()):
        there = type(here)(vectors, here.axes, here.layout)
        found = lx.surface(model, BATCH, mse, directions=there, **QUIET)
        np.testing.assert_array_equal(found.loss, truth.loss)
        assert there.vectors is vectors  # the user's own stay where they are


def scattered():
    """Filters along both axes, stacked ones, and parameters that are not contiguous."""
    model = nn.ModuleList(
        [nn.ConvTranspose2d(2, 3, 2), nn.MultiheadAttention(4, 2), nn.Linear(3, 4)]
    )
    model[2].weight = nn.Parameter(torch.randn(3, 4).T)
    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda model, other: lx.directions.random(model, orthogonalize=True, ignore=None),
        lambda model, other: lx.directions.random(model, normalize="weight", ignore="copy"),
        lambda model, other: lx.directions.random_in_pieces(model),
        lambda model, other: lx.directions.between(model, other),
        lambda model, other: lx.directions.given(model, dict(other.named_parameters())),
        lambda model, other: lx.directions.normalize(
            lx.directions.given(model, [{}, dict(other.named_parameters())]), model
        ),
    ],
    ids=["random", "copy", "in_pieces", "between", "given", "normalize"],
)
def test_fault_19_directions_are_where_the_model_is_whatever_the_default_device(make):
    model, other = models.seeded(scattered), models.seeded(scattered, 1)
    here = make(model, other)
    with torch.device("meta"):
        there = make(model, other)
        made, lengths = [there[k] for k in range(len(there))], there.norm()
    assert there.axes == here.axes
    assert torch.equal(lengths, here.norm())
    for k, tensors in enumerate(made):
        assert all(torch.equal(t, here[k][name]) for name, t in tensors.items())


def test_fault_19_points_are_written_where_the_model_is_whatever_the_default_device():
    model = models.seeded(scattered)
    space = ParameterSpace(model)
    center, steps = space.gather(), torch.randn(2, space.size)
    with torch.device("meta"):
        space.move(center, steps, [0.5, 2.0])
    torch.testing.assert_close(space.gather(), center + 0.5 * steps[0] + 2 * steps[1])


def test_fault_19_a_centre_of_another_dtype_is_brought_to_the_model():
    model = models.mlp(3, 4, 1)
    state = {name: t.double() for name, t in models.mlp(3, 4, 1, seed=1).state_dict().items()}
    truth = lx.surface(models.mlp(3, 4, 1, seed=1), BATCH, mse, **QUIET)
    np.testing.assert_array_equal(
        lx.surface(model, BATCH, mse, center=state, **QUIET).loss, truth.loss
    )


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_fault_19_a_checkpoint_of_a_machine_with_a_gpu_is_read_without_one(
    tmp_path, monkeypatch, suffix
):
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    model, path = models.mlp(3, 4, 1), tmp_path / f"model{suffix}"
    if suffix == ".pt":
        monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:3")
        torch.save(model.state_dict(), path)
        with pytest.raises(RuntimeError, match="on a CUDA device"):
            torch.load(path, weights_only=True)  # so it does say
    else:
        path.write_bytes(checkpoints.to_safetensors(model.state_dict(), {}))
    for read in (checkpoints.read, checkpoints.open_lazily):
        found = read(path)
        for name, tensor in model.state_dict().items():
            assert found[name].device.type == "cpu"
            assert torch.equal(found[name], tensor)


# --- Fault 21: a device that is lost -------------------------------------------------------------


class Device:
    """What has become of it; not part of what a loss is."""

    calls, lost = 0, False


@pytest.mark.parametrize("seconds", [0.0, filling.BLOCK_SECONDS], ids=["point by point", "chunks"])
@pytest.mark.parametrize("k", [0, 7, 19])
def test_fault_21_no_point_of_a_lost_device_is_journalled(k, seconds, tmp_path, monkeypatch):
    """The kernels of point k fail: its loss looks like any other, and the next launch tells."""
    monkeypatch.setattr(filling, "BLOCK_SECONDS", seconds)
    model, out = models.mlp(3, 4, 1), tmp_path / "s.nc"
    launch, device = _ops.perturb_, Device()

    def loss(m, batch):
        device.calls += 1
        if device.calls == 2 + k + 1:  # the centre is evaluated twice
            device.lost = True
            return torch.tensor(0.125)
        return mse(m, batch)

    def perturb_(*arguments):
        if device.lost:
            raise RuntimeError(LOST)
        launch(*arguments)

    before = reference.everything(model)
    with monkeypatch.context() as patch:
        patch.setattr(_ops, "perturb_", perturb_)
        with pytest.raises(RuntimeError, match=LOST):
            lx.surface(model, BATCH, loss, out=out, **QUIET)
    assert reference.changes(before, reference.everything(model)) == []
    kept, truth = lx.open(out), lx.surface(model, BATCH, loss, **QUIET)
    count = int(kept.evaluated.sum())
    assert count == k if seconds == 0.0 else count <= k
    assert np.array_equal(kept.loss[kept.evaluated], truth.loss[kept.evaluated])
    assert 0.125 not in kept.loss
    assert lx.surface(model, BATCH, loss, out=out, **QUIET).equals(truth)


def test_fault_21_sums_of_the_compiled_engine_are_waited_for(tmp_path, monkeypatch):
    """Sums that lie on the device are garbage once it failed; the copy of them says so."""
    pytest.importorskip("landscapex._program_emulated")
    backend = emulated_device.backend(cache_bytes=1)  # a point per call
    monkeypatch.setattr(preparation, "backend_of", lambda device: backend)
    model, out, lost, told = models.mlp(3, 4, 2), tmp_path / "s.nc", [], []
    data = [(torch.linspace(-1, 1, 15).view(5, 3), torch.arange(5) % 2)]
    options = {**QUIET, "points": 3, "engine": "compiled"}
    truth = lx.surface(model, data, "cross_entropy", **options)
    enqueue, cpu = DeviceRunner._enqueue, torch.Tensor.cpu

    def fail_later(runner, space, count, outputs=None):
        enqueue(runner, space, count, outputs)
        if told:
            lost.append(1)
            space.totals.fill_(0.125)

    def copy(tensor, *arguments, **options):
        if lost:
            raise RuntimeError(LOST)
        return cpu(tensor, *arguments, **options)

    def callback(progress):
        if progress.done >= 3:
            told.append(progress.done)

    before = reference.everything(model)
    with monkeypatch.context() as patch:
        patch.setattr(DeviceRunner, "_enqueue", fail_later)
        patch.setattr(torch.Tensor, "cpu", copy)
        with pytest.raises(RuntimeError, match=LOST):
            lx.surface(model, data, "cross_entropy", out=out, callback=callback, **options)
    assert reference.changes(before, reference.everything(model)) == []
    kept = lx.open(out)
    assert kept.evaluated.sum() == told[0] < 9
    assert np.array_equal(kept.loss[kept.evaluated], truth.loss[kept.evaluated])
    assert lx.surface(model, data, "cross_entropy", out=out, **options).equals(truth)


SCRIPT = """
import sys
import torch
import landscapex as lx

class Lost(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.calls = torch.nn.Parameter(torch.ones(3)), 0

    def forward(self, x):
        self.calls += 1
        if self.calls > 20:
            raise torch.AcceleratorError({said!r})
        return x @ self.weight

lx.line(Lost(), [torch.ones(2, 3)], lambda m, b: m(b).mean(), points=40, out=sys.argv[1],
        normalize=None, ignore=None, progress=False)
"""


def test_fault_21_the_process_ends_with_an_error_and_a_journal(tmp_path):
    out = tmp_path / "s.nc"
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT.format(said=LOST), str(out)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 1
    assert f"AcceleratorError: {LOST}\n" in ended.stderr
    assert ended.stderr.splitlines()[-2] == "landscapex: in batch 0 of data"
    assert ended.stderr.splitlines()[-1].startswith("landscapex: at alpha=")
    kept = lx.open(out)
    assert 0 < kept.evaluated.sum() <= 18  # the centre is evaluated twice
