"""The workloads W1-W4 and W6: a model, data, and the planes on which contenders are timed."""

from __future__ import annotations

import copy
import functools
import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import landscapex as lx

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import models
import real_data
import reference

DISTANCE = 0.5  # of the farthest point, in lengths of a filter
_CHUNK = 16  # samples at once in float64, which torch computes fastest in the cache


@dataclass(frozen=True)
class Plane:
    """Losses at ``alpha[i] d1 + beta[j] d2`` are asked for; both axes are evenly spaced."""

    directions: list[dict[str, Tensor]]
    alpha: np.ndarray
    beta: np.ndarray

    def digest(self) -> str:
        """The same for the same points."""
        parts = [t.numpy() for d in self.directions for t in d.values()]
        parts += [self.alpha, self.beta]
        return hashlib.sha256(b"".join(p.tobytes() for p in parts)).hexdigest()

    def thinned(self, most: int = 5) -> tuple[Plane, int]:
        """Every n-th column, so that at most `most` are left; n."""
        every = -(-len(self.beta) // most)
        return replace(self, beta=self.beta[::every]), every


@dataclass(frozen=True)
class Size:
    """How much of a workload.

    A loop costs the same at every point, so a few of them tell. landscapex works on many points at
    once, and gets as many as it would in earnest.
    """

    samples: int
    side: int  # points per axis of the square plane of all loops
    eager: tuple[int, int]  # points per axis of the plane of landscapex without a plan
    compiled: tuple[int, int]  # the same with one


@dataclass(frozen=True, eq=False)
class Workload:
    """A model with its data; cross entropy over ten classes."""

    name: str
    title: str
    model: nn.Module
    inputs: Tensor
    labels: Tensor
    data: str  # where they come from
    size: Size
    known: dict[str, np.ndarray] = field(default_factory=dict)  # results of `exact`

    @functools.cached_property
    def directions(self) -> list[dict[str, Tensor]]:
        """Two random directions, normalised per filter; biases and batch norm stay."""
        drawn = lx.directions.random(self.model)
        return [drawn[0], drawn[1]]

    def square(self) -> Plane:
        axis = centered(self.size.side)
        return Plane(self.directions, axis, axis)

    def rectangle(self, points: tuple[int, int]) -> Plane:
        return Plane(self.directions, *(np.linspace(-DISTANCE, DISTANCE, n) for n in points))

    def mean_loss(self, module: nn.Module) -> float:
        """All samples in one batch: what the other tools are given."""
        return F.cross_entropy(module(self.inputs), self.labels).item()

    def exact(self, plane: Plane) -> np.ndarray:
        """The plane in float64, by setting a state_dict per point; computed once."""
        key = plane.digest()
        if key not in self.known:
            self.known[key] = self._exact(plane)
        return self.known[key]

    def _exact(self, plane: Plane) -> np.ndarray:
        module = copy.deepcopy(self.model).double()
        batches = list(
            zip(self.inputs.double().split(_CHUNK), self.labels.split(_CHUNK), strict=True)
        )

        @torch.no_grad()
        def loss(module: nn.Module) -> float:
            sums = (F.cross_entropy(module(x), y, reduction="sum").item() for x, y in batches)
            return sum(sums) / len(self.labels)

        return reference.surface(module, plane.directions, (plane.alpha, plane.beta), loss)


def centered(points: int) -> np.ndarray:
    """The only axis that landscaper walks along: the centre is point ``points // 2`` of it."""
    return (np.arange(points) - points // 2) * DISTANCE / (points / 2)


class ResNet56(models.ResNet20):
    """The CIFAR ResNet of He et al. 2016, section 4.2, with n = 9."""

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        rest = [models.BasicBlock(outputs, outputs, 1) for _ in range(8)]
        return nn.Sequential(models.BasicBlock(inputs, outputs, stride), *rest)


class LSTM(nn.Module):
    """One LSTM layer; classifies by its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(32, 64, batch_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


Data = tuple[Tensor, Tensor, str]


def _random(samples: int, *shape: int) -> Data:
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(samples, *shape, generator=rng)
    return x, torch.randint(10, (samples,), generator=rng), "random numbers"


def _images(samples: int, folder: Path) -> Data:
    del folder
    found = real_data.fashion_mnist("t10k", samples)
    return (*found, "Fashion-MNIST") if found else _random(samples, 1, 28, 28)


def _flat_images(samples: int, folder: Path) -> Data:
    inputs, labels, source = _images(samples, folder)
    return inputs.flatten(1), labels, source


def _cifar(samples: int, folder: Path) -> Data:
    found = real_data.cifar10_test(folder)
    if found is None:
        return _random(samples, 3, 32, 32)
    return found[0][:samples], found[1][:samples], "CIFAR-10 test images"


def _sequences(samples: int, folder: Path) -> Data:
    del folder
    return _random(samples, 50, 32)


def _resnet56(inputs: Tensor) -> nn.Module:
    """Random weights; running statistics of the data, without which activations would overflow."""
    model = models.seeded(ResNet56)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(inputs)
    return model


@dataclass(frozen=True)
class _Recipe:
    title: str
    data: Callable[[int, Path], Data]
    model: Callable[[Tensor], nn.Module]
    weights: str
    full: Size
    quick: Size


_QUICK = {"side": 3, "eager": (2, 4), "compiled": (2, 10)}
_RECIPES = {
    "W1": _Recipe(
        "MLP 784-512-512-10",
        _flat_images,
        lambda _: models.mlp(784, 512, 512, 10),
        "random weights",
        Size(10_000, 3, (2, 6), (2, 51)),
        Size(96, **_QUICK),
    ),
    "W2": _Recipe(
        "LeNet-5",
        _images,
        lambda _: models.seeded(models.LeNet),
        "random weights",
        Size(10_000, 2, (2, 4), (2, 51)),
        Size(96, **_QUICK),
    ),
    "W3": _Recipe(
        "ResNet-20",
        _cifar,
        lambda _: models.resnet20(),
        "trained weights",
        Size(384, 2, (2, 4), (2, 8)),
        Size(20, **_QUICK),
    ),
    "W4": _Recipe(
        "ResNet-56",
        _cifar,
        _resnet56,
        "random weights",
        Size(128, 2, (2, 4), (2, 8)),
        Size(12, **_QUICK),
    ),
    "W6": _Recipe(
        "LSTM 32-64, 50 steps",
        _sequences,
        lambda _: models.seeded(LSTM),
        "random weights",
        Size(1_000, 5, (2, 24), (2, 32)),
        Size(24, **_QUICK),
    ),
}
NAMES = tuple(_RECIPES)


@functools.cache  # with the results of `exact`
def make(name: str, size: str, folder: Path = real_data.CIFAR_FOLDER) -> Workload:
    """A workload in full or quick size.

    Args:
        name: One of NAMES.
        size: "full" or "quick".
        folder: With CIFAR-10 as JPEG; random numbers are used without.
    """
    recipe = _RECIPES[name]
    amount: Size = getattr(recipe, size)
    inputs, labels, source = recipe.data(amount.samples, folder)
    model = recipe.model(inputs).eval()
    about = f"{recipe.weights}, {len(labels):,} samples ({source})"
    return Workload(name, recipe.title, model, inputs, labels, about, amount)
