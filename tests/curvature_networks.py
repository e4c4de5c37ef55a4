"""Networks of every kind with labelled data, and how their curvature is compared."""

from __future__ import annotations

from collections.abc import Callable

import models
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscapex.curvature.operators import Curvature

SPLIT = (5, 5, 2)  # a ragged last batch


class Reshaped(nn.Module):
    """A layer between others that want another shape."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(x)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module], **options: object) -> None:
        super().__init__()
        self.layer = kind(2, 2, batch_first=True, **options)
        self.head = nn.Linear(2 * (2 if options.get("bidirectional") else 1), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


class SelfAttention(nn.Module):
    """Fused attention, called as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(2, 6)
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.head(F.scaled_dot_product_attention(q, k, v).mean(1))


class Unused(nn.Module):
    """One layer is never called, another one is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 5)
        self.never = nn.Linear(4, 5)
        self.frozen = nn.Linear(5, 3).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(self.first(x).tanh())


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(2, 2, 4, batch_first=True)
    return nn.Sequential(layer, Reshaped(lambda x: x.mean(1)), nn.Linear(2, 3))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, stride=2, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(2, 2, 3, padding=(2, 1), dilation=(2, 1), groups=2, bias=False), nn.Tanh(),
        nn.ConvTranspose2d(2, 2, 3, stride=2, padding=1, output_padding=1, groups=2),
        nn.MaxPool2d(2), nn.ReLU6(), nn.Conv2d(2, 1, 1, padding="same"), nn.Flatten(),
        nn.Linear(2 * 2, 3),
    )  # fmt: skip


def line_convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular"), nn.GELU(),
        nn.ConvTranspose1d(3, 2, 2, stride=2), nn.Softplus(), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip


def normed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.GroupNorm(2, 4),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(4), nn.Dropout(0.5), nn.Linear(4, 3),
    )  # fmt: skip


def volumes() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 2, 2), nn.ELU(), nn.AvgPool3d(2), nn.Flatten(), nn.Linear(2, 3)
    )


def bilinear() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 4), nn.PReLU(), Reshaped(lambda x: x * x.roll(1, 1)), nn.Linear(4, 3)
    )


# name -> (model, shape of one sample)
CLASSIFIERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "relu": (lambda: models.mlp(4, 6, 3), (4,)),
    "sigmoid": (lambda: models.mlp(4, 6, 3, act=nn.Sigmoid), (4,)),
    "linear": (lambda: nn.Linear(4, 3), (4,)),
    "prelu": (bilinear, (4,)),
    "conv": (convolutions, (1, 4, 4)),
    "conv1d": (line_convolutions, (2, 4)),
    "conv3d": (volumes, (1, 3, 3, 3)),
    "norms": (normed, (2, 4, 4)),
    "lstm": (lambda: Recurrent(nn.LSTM), (3, 2)),
    "lstm both ways": (lambda: Recurrent(nn.LSTM, bidirectional=True), (2, 2)),
    "gru": (lambda: Recurrent(nn.GRU), (3, 2)),
    "rnn": (lambda: Recurrent(nn.RNN, nonlinearity="relu"), (3, 2)),
    "sdpa": (SelfAttention, (3, 2)),
    "encoder": (encoder, (3, 2)),
    "unused and frozen": (Unused, (4,)),
}  # fmt: skip


def made(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor, Tensor]:
    build, shape = CLASSIFIERS[name]
    model = models.seeded(build).to(dtype).train()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean += 0.3
                module.running_var *= 1.7
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(sum(SPLIT), *shape, generator=rng, dtype=torch.float64).to(dtype)
    return model, x, torch.randint(3, (len(x),), generator=rng)


def batches_of(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    return list(zip(*(t.split(SPLIT) for t in tensors), strict=True))


def compare(operator: Curvature, expected: Tensor, rtol: float = 1e-10) -> None:
    """Entries agree relative to the largest, and products are those of a symmetric matrix."""
    found = operator.dense().double()
    scale = expected.abs().max()
    assert scale > 0
    assert float((found - expected).abs().max()) <= rtol * float(scale)
    assert float((found - found.T).abs().max()) <= rtol * float(scale)
