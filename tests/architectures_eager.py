"""Networks of the architectures that only the eager engine serves, each for a reason of its own."""

from __future__ import annotations

from typing import Any

import models
import torch
from architecture_case import architecture, labelled, targeted
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence


def sequences_with_lengths(n: int, rng: torch.Generator) -> Any:
    lengths = torch.randint(1, 6, (n,), generator=rng)
    return torch.randn(n, 5, 3, generator=rng), lengths, torch.randint(4, (n,), generator=rng)


@architecture(sequences_with_lengths, expected="torch.export: ")
class PackedSequences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 6, batch_first=True), nn.Linear(6, 4)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.head(self.lstm(packed)[1][0][-1])


class Inner(nn.Module):
    """A perceptron whose parts subclasses disturb."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x).relu())


@architecture(labelled(6), expected="torch.export: .*data-dependent")
class BranchOnValues(Inner):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.head(y.relu() if y.sum() > 0 else y.tanh())


@architecture(labelled(6), expected="torch.export: .*data-dependent")
class BranchOnAWeight(Inner):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2.0 if self.head.bias[0].item() > 0 else 0.5)


@architecture(labelled(6), expected="torch.export: .*Constraints violated")
class HardCodedBatch(Inner):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 100:
            x = x * 2
        return super().forward(x)


@architecture(labelled(6), expected="statistics from the batch")
class BatchStatistics(Inner):
    """Batch norm in training mode, whatever the mode of the model."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.batch_norm(self.first(x), None, None, training=True).relu())


@architecture(labelled(6), expected="random draws", repeatable=False)
class RandomInEvaluation(Inner):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.dropout(self.first(x).relu()))


@architecture(labelled(6), expected="random draws", repeatable=False)
class CountsItsCalls(Inner):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) + 0.01 * self.calls


@architecture(labelled(6), expected="softmax.int mixes samples")
class SoftmaxOverTheBatch(Inner):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x).softmax(0))


@architecture(labelled(6), expected="mean mixes samples")
class CentredOverTheBatch(Inner):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.head((y - y.mean(0)).relu())


@architecture(labelled(6), expected="matmul mixes samples")
class SamplesAttendToEachOther(Inner):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.head((y @ y.T).softmax(1) @ y)


@architecture(labelled(5, 6), expected="scaled_dot_product_attention mixes samples")
class AttentionOverTheBatch(nn.Module):
    """The first axis is taken for the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(6, 2), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


@architecture(labelled(3, 6, 6), expected="instance norm with running statistics")
def instance_norm_with_statistics() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.InstanceNorm2d(6, track_running_stats=True), nn.ReLU(),
        nn.Flatten(), nn.Linear(96, 4),
    )  # fmt: skip


@architecture(labelled(6), expected="complex")
class Fourier(Inner):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.fft.fft(self.first(x), dim=1).real.tanh())


@architecture(labelled(6), expected="TorchScript")
def scripted() -> nn.Module:
    return torch.jit.script(models.mlp(6, 8, 4))


@architecture(labelled(6), expected="the operator lgamma has no kernel")
class UnknownOperator(Inner):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.lgamma(self.first(x).square() + 1))


@architecture(labelled(6), expected="forward writes")
class WritesABuffer(Inner):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        self.seen.copy_(y.detach().amax(0))
        return self.head(y)


def slope_penalty(model: nn.Module, batch: Any) -> Tensor:
    """The mean squared slope beside the error: physics-informed."""
    x, target = batch

    def value(point: Tensor) -> Tensor:
        return model(point[None])[0, 0]

    slopes = torch.func.vmap(torch.func.grad(value))(x)
    return F.mse_loss(model(x), target) + slopes.square().mean()


@architecture(targeted((3,), (1,)), slope_penalty, expected="torch.export: ")
def gradient_in_the_loss() -> nn.Module:
    return models.mlp(3, 8, 1, act=nn.Tanh)
