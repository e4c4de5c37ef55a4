"""Networks for vectors, and losses of many kinds, of the architectures."""

from __future__ import annotations

from typing import Any

import models
import torch
from architecture_case import architecture, itself, labelled, targeted
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations


@architecture(labelled(6))
def mlp() -> nn.Module:
    return models.mlp(6, 12, 9, 4)


@architecture(labelled(6))
def mlp_with_layer_norms() -> nn.Module:
    return nn.Sequential(
        nn.LayerNorm(6), nn.Linear(6, 12), nn.LayerNorm(12), nn.GELU(), nn.Linear(12, 4)
    )


@architecture(labelled(6))
def mlp_with_batch_norms() -> nn.Module:
    return nn.Sequential(
        nn.BatchNorm1d(6), nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(),
        nn.BatchNorm1d(12, affine=False), nn.Linear(12, 4),
    )  # fmt: skip


@architecture(targeted((4,), (3,)), "mse_loss")
def deep_linear() -> nn.Module:
    return nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in ((4, 5), (5, 6), (6, 3))))


@architecture(labelled(6))
def linear_alone() -> nn.Module:
    """Logits that are affine in the coordinates."""
    return nn.Linear(6, 4)


@architecture(itself(6), "mse_loss")
def autoencoder() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 2), nn.Tanh(), nn.Linear(2, 6))


@architecture(labelled(6))
class Maxout(nn.Module):
    """Goodfellow et al. 2013."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces, self.head = nn.Linear(6, 24), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pieces(x).view(-1, 8, 3).max(2)[0])


def two_inputs(n: int, rng: torch.Generator) -> Any:
    first, second = torch.randn(n, 4, generator=rng), torch.randn(n, 3, generator=rng)
    return first, second, torch.randint(4, (n,), generator=rng)


@architecture(two_inputs)
class BilinearLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(3, 3)
        self.bilinear = nn.Bilinear(5, 3, 4)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.bilinear(self.first(a).tanh(), self.second(b).tanh())


def table_rows(n: int, rng: torch.Generator) -> Any:
    numbers = torch.randn(n, 4, generator=rng)
    kinds = torch.randint(5, (n, 2), generator=rng)
    return {"numbers": numbers, "kinds": kinds}, torch.randint(4, (n,), generator=rng)


@architecture(table_rows)
class TabularResNet(nn.Module):
    """Gorishniy et al. 2021; numbers and categories under names."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.first = nn.Embedding(5, 3), nn.Linear(10, 8)
        self.norms = nn.ModuleList(nn.BatchNorm1d(8) for _ in range(2))
        self.up = nn.ModuleList(nn.Linear(8, 12) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(12, 8) for _ in range(2))
        self.head = nn.Linear(8, 4)

    def forward(self, numbers: Tensor, kinds: Tensor) -> Tensor:
        x = self.first(torch.cat([numbers, self.embedding(kinds).flatten(1)], 1))
        for norm, up, down in zip(self.norms, self.up, self.down, strict=True):
            x = x + F.dropout(down(F.relu(up(norm(x)))), 0.2, self.training)
        return self.head(x.relu())


@architecture(labelled(6))
class Highway(nn.Module):
    """Srivastava et al. 2015: gates, and one minus them; a gated linear unit."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.gate, self.glu = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x).sigmoid()
        return F.glu(self.glu(gate * self.layer(x).relu() + (1 - gate) * x), 1)


@architecture(labelled(6))
class Softmaxes(nn.Module):
    """A mixture of experts with soft gates."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(6, 4) for _ in range(3))
        self.gates = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs = torch.stack([expert(x).tanh() for expert in self.experts], 1)
        return (self.gates(x).softmax(1)[..., None] * outputs).sum(1)


@architecture(labelled(6))
def spectral_norm() -> nn.Module:
    return nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 4)
    )


@architecture(labelled(6))
class ListedWeights(nn.Module):
    """Weights in a plain list, used twice; one of them has a second name."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Parameter(0.5 * torch.randn(6, 6))
        self.again = self.inner
        self.listed = [self.inner]
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = (x @ self.again).tanh()
        return self.head((x @ self.listed[0].T).tanh())


@architecture(labelled(6))
class Functions(nn.Module):
    """Elementary functions written out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x).chunk(2, 1)
        y = torch.cat([a.exp() / (1 + b.abs()), torch.sin(a) * torch.cos(b)], 1)
        y = torch.where(y > 0.5, y.clamp(max=2.0), -y * 0.5) + (y**2 + 1).sqrt().log()
        return self.head(torch.maximum(y, 0.1 * y) - torch.rsqrt(y.square() + 2))


# --- losses ---------------------------------------------------------------------------------------


def several_labels(n: int, rng: torch.Generator) -> Any:
    x = torch.randn(n, 6, generator=rng)
    return x, torch.randint(2, (n, 3), generator=rng).float()


@architecture(several_labels, nn.BCEWithLogitsLoss(pos_weight=torch.tensor([0.5, 1.0, 3.0])))
def several_binary_labels() -> nn.Module:
    return models.mlp(6, 8, 3)


@architecture(several_labels, "binary_cross_entropy")
def probabilities() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3), nn.Sigmoid())


@architecture(targeted((6,), (2,)), nn.HuberLoss(delta=0.5))
def regression() -> nn.Module:
    return models.mlp(6, 8, 2)


@architecture(targeted((6,), (2,)), nn.SmoothL1Loss(beta=0.3, reduction="sum"))
def regression_by_sums() -> nn.Module:
    return models.mlp(6, 8, 2, act=nn.SiLU)


def own_arithmetic(model: nn.Module, batch: Any) -> Tensor:
    """A mean of squares with a factor, and a penalty on the output."""
    x, target = batch
    output = model(x)
    return 0.5 * F.mse_loss(output, target) + 0.1 * output.abs().mean() + 1.0


@architecture(targeted((6,), (2,)), own_arithmetic)
def regression_with_own_loss() -> nn.Module:
    return models.mlp(6, 8, 2, act=nn.Tanh)


def squared_errors(model: nn.Module, batch: Any) -> Tensor:
    return ((model(batch[0]) - batch[1]) ** 2).mean()


@architecture(targeted((6,), (2,)), squared_errors)
def regression_written_out() -> nn.Module:
    return models.mlp(6, 8, 2)


def some_labels(n: int, rng: torch.Generator) -> Any:
    labels = torch.randint(4, (n,), generator=rng)
    labels[::3] = 1
    return torch.randn(n, 6, generator=rng), labels


WEIGHTED = nn.CrossEntropyLoss(
    torch.tensor([0.5, 1.0, 2.0, 0.25]), ignore_index=1, label_smoothing=0.1
)


@architecture(some_labels, WEIGHTED)
def weighted_classes() -> nn.Module:
    return models.mlp(6, 8, 4)


@architecture(labelled(6), "nll_loss")
def log_probabilities() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4), nn.LogSoftmax(1))


def class_probabilities(n: int, rng: torch.Generator) -> Any:
    return torch.randn(n, 6, generator=rng), torch.randn(n, 4, generator=rng).softmax(1)


@architecture(class_probabilities, "cross_entropy")
def soft_labels() -> nn.Module:
    return models.mlp(6, 8, 4)


@architecture(class_probabilities, nn.KLDivLoss(reduction="batchmean"))
def divergence() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 4), nn.LogSoftmax(1))


def counts(n: int, rng: torch.Generator) -> Any:
    return torch.randn(n, 6, generator=rng), torch.randint(6, (n, 2), generator=rng).float()


@architecture(counts, "poisson_nll_loss")
def counts_by_poisson() -> nn.Module:
    return models.mlp(6, 8, 2)


@architecture(several_labels, "soft_margin_loss")
def soft_margin() -> nn.Module:
    return models.mlp(6, 8, 3)
