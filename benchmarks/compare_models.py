"""Small models and data of which the loss, its mean or its Hessian is known in closed form."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import models
from spectra import rotated

Batches = list[tuple[Tensor, Tensor]]


class Mean(nn.Module):
    """The criterion of a model whose outputs are losses."""

    reduction = "mean"  # curvlinops asks for it

    def forward(self, outputs: Tensor, _: Tensor) -> Tensor:
        return outputs.mean()


def any_batch() -> Batches:
    """For models that do not look at their inputs."""
    return [(torch.zeros(4), torch.zeros(4))]


def bowl(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return x * x / 2 + 5 * y * y + x * y


class Bowl(nn.Module):
    """A quadratic of two parameters. They are at (0.6, 0.8), whose length is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor([0.6]))
        self.y = nn.Parameter(torch.tensor([0.8]))

    def forward(self, inputs: Tensor) -> Tensor:
        return bowl(self.x, self.y) * torch.ones_like(inputs)


class Cliff(Bowl):
    """NaN beyond (+0.35, +0.35) from where its parameters start, infinite beyond (-0.35, -0.35)."""

    def forward(self, inputs: Tensor) -> Tensor:
        x, y = float(self.x.detach()) - 0.6, float(self.y.detach()) - 0.8
        there = np.nan if min(x, y) > 0.35 else np.inf if max(x, y) < -0.35 else 1.0
        return super().forward(inputs) * there


class Distance(nn.Module):
    """The squared distance of a network's parameters from where they started."""

    def __init__(self) -> None:
        super().__init__()
        self.net = models.mlp()
        self.start = [p.detach().clone() for p in self.net.parameters()]

    def forward(self, inputs: Tensor) -> Tensor:
        pairs = zip(self.net.parameters(), self.start, strict=True)
        return sum((p - start).square().sum() for p, start in pairs) * torch.ones_like(inputs)


def convolutional(*, dropout: float = 0.0, fresh: bool = False) -> nn.Module:
    """For images of 6 x 6: a convolution, batch norm, a linear layer.

    Batch norm is as if it had been trained, or fresh: with biases of 0.
    """

    def build() -> nn.Module:
        norm = nn.BatchNorm2d(8)
        if not fresh:
            for t in (norm.weight.data, norm.running_var):
                t.uniform_(0.5, 1.5)
            for t in (norm.bias.data, norm.running_mean):
                t.uniform_(-0.5, 0.5)
        last = (nn.ReLU(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(288, 10))
        return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), norm, *last)

    return models.seeded(build)


def images(samples: int = 32) -> Batches:
    return [numbers(samples, 1, 6, 6, classes=10)]


def numbers(samples: int, *shape: int, classes: int = 3) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(samples, *shape, generator=rng)
    return x, torch.randint(classes, (samples,), generator=rng)


# --- Ten samples, in two batches -----------------------------------------------------------------


class Split:
    """Softmax regression on ten samples of ten numbers, whose last layer of weights is 0.

    Attributes:
        x: Inputs.
        y: Labels of three classes; some may be -100, which cross entropy leaves out.
        batches: The ten samples, cut in two.
    """

    def __init__(self, size: int, ignored: int = 0) -> None:
        self.x, self.y = numbers(10, 10)
        self.x[size:] *= 3  # so that the mean of one batch is not that of the other
        self.y[:ignored] = -100
        self.batches: Batches = list(zip(self.x.split(size), self.y.split(size), strict=True))

    def model(self, *, zero: bool = False) -> nn.Module:
        """A linear layer, of random weights or all 0."""
        made = models.seeded(lambda: nn.Linear(10, 3, bias=False))
        if zero:
            nn.init.zeros_(made.weight)
        return made.eval()

    def loss(self) -> float:
        """Of the random layer, over all labels that count, by hand and in float64."""
        counted = self.y >= 0
        scores = self.x.double().numpy() @ self.model().weight.detach().double().numpy().T
        log_sums = np.log(np.exp(scores).sum(1))
        return float((log_sums - scores[np.arange(10), self.y.clamp(min=0)])[counted].mean())

    def top_eigenvalue(self) -> float:
        """Of the layer of zeros: all classes are as likely, so it is that of x x' over 3."""
        x = self.x[self.y >= 0].double().numpy()
        return float(np.linalg.eigvalsh(x.T @ x / len(x))[-1] / 3)


SPLITS: dict[str, Callable[[], Split]] = {
    "8 + 2 samples": lambda: Split(8),
    "4 of 10 labels ignored": lambda: Split(5, ignored=4),
}


# --- Hessians ------------------------------------------------------------------------------------


class Quadratic(nn.Module):
    """``w A w / 2`` of its parameters, which are 0: its Hessian is A."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(len(matrix)))
        self.matrix = matrix.float()

    def forward(self, inputs: Tensor) -> Tensor:
        return 0.5 * (self.w @ self.matrix @ self.w) * torch.ones_like(inputs)


FIVE = [10.0, 9.0, 8.0, 7.0, 6.0]
OUTLIERS = np.concatenate([FIVE, np.linspace(-1, 1, 395)])
HARMONIC = 1 / np.arange(1, 81)
OPPOSITE = np.concatenate([[5, -5], np.linspace(-4, 4, 98)])
TWO_VALUES = np.repeat([1.0, 5.0], 30)


def spectrum(values: np.ndarray) -> Quadratic:
    """A dense matrix with these eigenvalues as the Hessian of a model."""
    return Quadratic(rotated(values))


MATRICES: dict[str, tuple[Callable[[], Tensor], list[float]]] = {
    "identity": (lambda: torch.eye(50), [1.0, 1.0, 1.0]),
    "zero": (lambda: torch.zeros(50, 50), [0.0, 0.0, 0.0]),
    "rank one": (lambda: torch.full((50, 50), 0.5), [25.0, 0.0, 0.0]),
}


class Attention(nn.Module):
    """One layer of torch's transformer encoder, and a linear one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).mean(1))


class Unused(nn.Module):
    """A linear layer, and one that the forward pass leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(5, 3), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x.flatten(2).mean(1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "attention": (lambda: models.seeded(Attention).eval(), (5, 4)),
    "LSTM": (lambda: models.seeded(lambda: models.LSTMClassifier(4, 4)).eval(), (5, 4)),
    "unused layer": (lambda: models.seeded(Unused).eval(), (5, 5)),
}


def network(name: str) -> tuple[nn.Module, Batches]:
    """One of `NETWORKS` and eight samples."""
    build, shape = NETWORKS[name]
    return build(), [numbers(8, *shape)]


def differenced_hessian(model: nn.Module, batches: Batches, step: float = 1e-5) -> np.ndarray:
    """Of the mean cross entropy, by central differences of gradients in float64."""
    wide = copy.deepcopy(model).double()
    parameters = list(wide.parameters())
    start = _flat(parameters)
    ((x, y),) = batches

    def gradient(vector: Tensor) -> Tensor:
        with torch.no_grad():
            nn.utils.vector_to_parameters(vector, parameters)
        loss = F.cross_entropy(wide(x.double()), y)
        return _flat(
            torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        )

    steps = step * torch.eye(len(start), dtype=start.dtype)
    rows = [gradient(start + e) - gradient(start - e) for e in steps]
    matrix = (torch.stack(rows) / (2 * step)).numpy()
    return (matrix + matrix.T) / 2


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])
