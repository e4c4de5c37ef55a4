"""Whole models through the engine for CUDA, on the emulation of a device or on a device.

The kernels by themselves are compared in test_program_kernels.py and test_program_losses.py.
"""

from __future__ import annotations

import copy
import logging

import emulated_device
import gpu
import models
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import landscapex as lx
from landscapex.engine import device as device_module
from landscapex.engine import preparation
from landscapex.engine.choice import Region
from landscapex.engine.host import HostBackend
from landscapex.errors import CaptureError

POINTS = np.array([[0.0, 0.0], [0.4, -0.7], [-0.2, 0.5]])


@pytest.fixture(params=["emulated", gpu.CUDA])
def emulation(request, monkeypatch):
    """Sends models of the CPU to the emulated device, or to a GPU; chooses its properties."""
    if request.param == "emulated":
        pytest.importorskip("landscapex._program_emulated")
    make = emulated_device.backend if request.param == "emulated" else emulated_device.on_gpu

    def choose(**about):
        backend = make(**about)
        monkeypatch.setattr(preparation, "backend_of", lambda device: backend)
        return backend

    choose()
    return choose


def losses(objective, points=POINTS):
    """Losses and metrics at points, on the compiled engine."""
    with objective.session() as session:
        vectors = lx.directions.random(objective, 2, seed=1, center=session.center).vectors
        region = Region(points.min(0), points.max(0), len(points))
        session.choose_engine(vectors, region, session.values(), wanted="compiled")
        return session.losses(vectors, points)


def few(case, batches=2, samples=6):
    """Less data: an emulated multiply-add takes a thousand times as long as a real one."""

    def cut(leaf):
        return leaf[:samples]

    return [torch.utils._pytree.tree_map(cut, b) for b in case.batches[:batches]]


class TinyResNet(nn.Module):
    """Both kinds of shortcut, strides, batch norm and pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.same, self.down = models.BasicBlock(8, 8, 1), models.BasicBlock(8, 16, 2)
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        return self.fc(self.down(self.same(x)).mean((2, 3)))


def objective_of(name, **options):
    if name == "resnet":
        rng = torch.Generator().manual_seed(0)
        data = [
            (torch.randn(n, 3, 8, 8, generator=rng), torch.randint(4, (n,), generator=rng))
            for n in (9, 5)
        ]
        return lx.Objective(models.seeded(TinyResNet), data, F.cross_entropy, **options)
    case = models.case(name)
    return lx.Objective(case.model, few(case), case.loss, **options)


@pytest.mark.parametrize(
    "name", ["mlp", "lenet", "conv", "resnet", "lstm", "transformer", "autoencoder"]
)
def test_the_device_gives_what_the_processor_gives(name, monkeypatch, emulation):
    """Which test_compiled.py compares with float64."""
    found = losses(objective_of(name))
    monkeypatch.setattr(preparation, "backend_of", lambda device: HostBackend())
    np.testing.assert_allclose(found, losses(objective_of(name)), rtol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["mlp", "lenet", "conv", "resnet", "lstm", "transformer"])
def test_a_model_on_the_gpu_gives_what_it_gives_on_the_processor(name):
    """Nothing of a model there may be read as if it were here."""
    gpu.require("_program_cuda")
    expected = losses(objective_of(name, weight_decay=0.1))
    objective = objective_of(name, weight_decay=0.1)
    objective.model.cuda()
    np.testing.assert_allclose(losses(objective), expected, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lenet", "resnet20"])
def test_the_networks_of_the_benchmarks_agree_with_float64(name, emulation, monkeypatch):
    """Whole, with few samples; compared by hand, so that it need not be emulated once more."""
    monkeypatch.setattr("landscapex.engine.choice.validate", lambda *_: None)
    model = models.seeded(models.LeNet) if name == "lenet" else models.resnet20()
    rng = torch.Generator().manual_seed(0)
    shape = (16, 1, 28, 28) if name == "lenet" else (4, 3, 32, 32)
    data = torch.randn(shape, generator=rng), torch.randint(10, shape[:1], generator=rng)
    objective = lx.Objective(model, data, F.cross_entropy)
    found = losses(objective, POINTS[:2])
    with objective.session() as session:
        vectors = lx.directions.random(objective, 2, seed=1, center=session.center).vectors
        center = session.center.double()
    double = copy.deepcopy(model).double().eval()
    for point, loss in zip(POINTS[:2], found[:, 0], strict=True):
        moved = (center + torch.from_numpy(point) @ vectors.double()).float().double()
        nn.utils.vector_to_parameters(moved, double.parameters())
        with torch.no_grad():
            expected = float(F.cross_entropy(double(data[0].double()), data[1]))
        assert abs(loss - expected) <= 1e-6 * expected


@pytest.mark.parametrize(("cache_bytes", "block_bytes"), [(1, 0), (1 << 16, 0), (1, 200 << 10)])
def test_bits_do_not_depend_on_the_size_of_calls(cache_bytes, block_bytes, emulation):
    points = np.random.default_rng(0).uniform(-1, 1, (7, 2))
    emulation(cache_bytes=1 << 24)
    whole = losses(objective_of("conv", metrics="accuracy"), points)
    emulation(cache_bytes=cache_bytes, block_bytes=block_bytes)
    np.testing.assert_array_equal(losses(objective_of("conv", metrics="accuracy"), points), whole)


@pytest.mark.parametrize("order", emulated_device.ORDERS)
def test_bits_do_not_depend_on_the_order_of_threads(order, emulation):
    if emulation().device.type == "cuda":
        pytest.skip("the threads of a GPU have an order of their own")
    module = pytest.importorskip("landscapex._program_emulated")
    expected = losses(objective_of("resnet"), POINTS[1:2])
    module.set_order(emulated_device.ORDERS[order], 5)
    try:
        np.testing.assert_array_equal(losses(objective_of("resnet"), POINTS[1:2]), expected)
    finally:
        module.set_order(0)


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("tf32", 2e-3), ("bf16x3", 1e-5), ("bf16", 2e-2)]
)
@pytest.mark.parametrize("name", ["mlp", "resnet", "lstm"])
def test_tensor_cores_give_about_the_same(name, precision, tolerance, emulation, monkeypatch):
    monkeypatch.setattr("landscapex.objective.check_precision", lambda *_: None)
    if emulation().about.capability < (8, 0):
        pytest.skip("this GPU has no such tensor cores")
    exact = losses(objective_of(name))
    found = losses(objective_of(name, precision=precision))
    np.testing.assert_allclose(found, exact, rtol=tolerance)
    assert not np.array_equal(found, exact)


def test_weights_that_are_no_linear_function_of_parameters_come_with_the_points(emulation):
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 9)), nn.Linear(9, 3))
    rng = torch.Generator().manual_seed(0)
    data = [(torch.randn(20, 6, generator=rng), torch.randint(3, (20,), generator=rng))]
    found = losses(lx.Objective(model, data, F.cross_entropy))
    objective = lx.Objective(model, data, F.cross_entropy)
    with objective.session() as session:
        vectors = lx.directions.random(objective, 2, seed=1, center=session.center).vectors
        session.values()
        eager = session.losses(vectors, POINTS)
    np.testing.assert_allclose(found, eager, rtol=1e-6)


def test_losses_that_normalise_by_batch_keep_their_batches(emulation):
    """Tiles of several groups of samples, each with a divisor of its own."""
    case = models.case("mlp")

    def mean(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1], label_smoothing=0.1)

    data = [(x[:n], y[:n]) for n, (x, y) in zip((20, 7), case.batches, strict=False)]
    objective = lx.Objective(case.model, data, mean)
    with objective.session() as session:
        vectors = lx.directions.random(objective, 2, seed=1, center=session.center).vectors
        session.values()
        eager = session.losses(vectors, POINTS)
    np.testing.assert_allclose(losses(lx.Objective(case.model, data, mean)), eager, rtol=1e-6)


class WorkAgain:
    """Stands for a CUDA graph: does its work again when it is replayed."""

    replays = 0
    fails = False

    def capture(self, work):
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.work = work
        return work()

    def replay(self):
        type(self).replays += 1
        self.work()

    def free(self):
        pass


@pytest.mark.parametrize("fails", [False, True])
def test_full_calls_are_replayed_as_a_graph(fails, monkeypatch, caplog):
    pytest.importorskip("landscapex._program_emulated")
    monkeypatch.setattr(WorkAgain, "replays", 0)
    monkeypatch.setattr(WorkAgain, "fails", fails)
    points = np.random.default_rng(0).uniform(-1, 1, (9, 2))
    found = []
    for graphs in (None, WorkAgain):
        backend = emulated_device.backend(cache_bytes=1, graphs=graphs)
        monkeypatch.setattr(preparation, "backend_of", lambda device, b=backend: b)
        with caplog.at_level(logging.INFO, "landscapex"):
            found.append(losses(objective_of("mlp"), points))
    np.testing.assert_array_equal(*found)
    assert ("no CUDA graph: operation not permitted" in caplog.text) is fails
    assert (WorkAgain.replays > 0) is not fails


def test_fault_20_short_memory_makes_calls_smaller_and_changes_no_number(
    emulation, monkeypatch, caplog
):
    emulation(cache_bytes=1 << 26)
    expected = losses(objective_of("lenet"))
    limit, empty = 1 << 22, torch.empty

    def scarce(size, *args, **options):
        if options.get("dtype") == torch.uint8 and size > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return empty(size, *args, **options)

    monkeypatch.setattr(device_module.torch, "empty", scarce)
    with caplog.at_level(logging.INFO, "landscapex"):
        np.testing.assert_array_equal(losses(objective_of("lenet")), expected)
    assert "device memory is short" in caplog.text


def test_fault_20_memory_for_not_even_one_point_is_an_error(emulation, monkeypatch):
    empty = torch.empty

    def none(size, *args, **options):
        if options.get("dtype") == torch.uint8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return empty(size, *args, **options)

    monkeypatch.setattr(device_module.torch, "empty", none)
    with pytest.raises(CaptureError, match="OutOfMemoryError"):
        losses(objective_of("mlp"))


@pytest.mark.parametrize("precision", ["tf32", "bf16x3", "bf16"])
def test_a_device_without_tensor_cores_says_so(precision, emulation, monkeypatch):
    monkeypatch.setattr("landscapex.objective.check_precision", lambda *_: None)
    emulation(capability=(7, 5))
    with pytest.raises(CaptureError, match=f"{precision} needs compute capability 8.0"):
        losses(objective_of("mlp", precision=precision))


def test_a_package_without_the_cuda_library_says_so():
    backend = device_module.DeviceBackend(torch.device("cuda"), "_no_such_library")
    assert "is not installed" in (backend.unavailable("fp32") or "")


def test_a_surface_on_the_device_is_that_of_the_processor(emulation, monkeypatch):
    """The user's way in: provenance, metrics, resume and all."""
    case = models.case("mlp")
    options = {"points": 5, "engine": "compiled", "progress": False}
    found = lx.surface(case.model, few(case), case.loss, metrics="accuracy", **options)
    monkeypatch.setattr(preparation, "backend_of", lambda device: HostBackend())
    same = lx.surface(case.model, few(case), case.loss, metrics="accuracy", **options)
    np.testing.assert_allclose(found.loss, same.loss, rtol=1e-6)
    np.testing.assert_array_equal(found["accuracy"], same["accuracy"])
    assert found.provenance["engine"]["name"] == "compiled"
