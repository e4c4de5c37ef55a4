"""Networks and data that hypothesis draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import models
import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import landscapex as lx

QUIET = {"progress": False}
SEEDS = st.integers(0, 2**31)
WIDTHS = st.lists(st.integers(1, 6), min_size=2, max_size=4)
DEEP = st.lists(st.integers(1, 6), min_size=3, max_size=4)
ACTIVATIONS = st.sampled_from([nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Softplus])
LOSSES = st.sampled_from(["cross_entropy", "mse_loss"])


@dataclass(frozen=True)
class Drawn:
    """A network with data of its own."""

    model: nn.Module
    x: Tensor
    y: Tensor
    loss: str

    def objective(self, sizes: Any = None, **options: Any) -> lx.Objective:
        """The data in one batch, or in batches of these sizes."""
        sizes = [len(self.x)] if sizes is None else sizes
        data = list(zip(self.x.split(sizes), self.y.split(sizes), strict=True))
        return lx.Objective(self.model, data, self.loss, **options)


def network(
    widths: list[int],
    act: type[nn.Module] = nn.Tanh,
    loss: str = "cross_entropy",
    seed: int = 0,
    *,
    samples: int = 9,
    dtype: torch.dtype = torch.float64,
) -> Drawn:
    """A multilayer perceptron of these widths, and labels or targets to learn."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, widths[0], generator=rng, dtype=dtype)
    model = models.mlp(*widths, act=act, seed=seed % 1000).to(dtype)
    if loss == "cross_entropy":
        return Drawn(model, x, torch.randint(widths[-1], (samples,), generator=rng), loss)
    return Drawn(model, x, torch.randn(samples, widths[-1], generator=rng, dtype=dtype), loss)


@st.composite
def networks(draw: st.DrawFn, *, widths: Any = WIDTHS, **options: Any) -> Drawn:
    """Perceptrons of drawn widths, activations and losses."""
    loss = draw(LOSSES)
    widths = draw(widths)
    if loss == "cross_entropy":
        widths = [*widths[:-1], widths[-1] + 1]  # one class would be no choice
    return network(widths, draw(ACTIVATIONS), loss, draw(SEEDS), **options)


@st.composite
def splits(draw: st.DrawFn, total: int) -> list[int]:
    """Sizes of the parts that a number of things is cut into."""
    cuts = draw(st.sets(st.integers(1, total - 1)))
    return np.diff([0, *sorted(cuts), total]).tolist()


def vectors(size: int, count: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers ``(count, size)``."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, generator=rng, dtype=torch.float64).to(dtype)


def bits(tensors: Any) -> list[tuple[str, bytes]]:
    """The bits of a state."""
    return [
        (name, t.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, t in tensors.items()
    ]
