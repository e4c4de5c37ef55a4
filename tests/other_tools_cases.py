"""A trained model, its loss and its directions as other tools take them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import landscapex as lx


def digits() -> tuple[nn.Module, Tensor, Tensor]:
    model, (inputs, labels), _ = lx.examples.digits()
    return model, inputs, labels


def cross_entropy(inputs: Tensor, labels: Tensor) -> Callable[[nn.Module], float]:
    """The mean over all samples in one batch."""

    def loss(module: nn.Module) -> float:
        return F.cross_entropy(module(inputs), labels).item()

    return loss


def named(directions: lx.Directions) -> list[dict[str, Tensor]]:
    return [directions[k] for k in range(len(directions))]


def flat(tensors) -> Tensor:
    return torch.cat([t.detach().double().reshape(-1) for t in tensors])
