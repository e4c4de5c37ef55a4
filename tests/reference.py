"""Slow, literal versions of what landscapex computes, in float64: written from the papers."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def rows(weight: Tensor) -> list[Tensor]:
    """The filters of a layer whose output units lie on axis 0."""
    return [weight[j] for j in range(weight.shape[0])]


def transposed(groups: int) -> Callable[[Tensor], list[Tensor]]:
    """The filters of a transposed convolution (in, out per group, ...): group, then axis 1."""

    def filters(weight: Tensor) -> list[Tensor]:
        inputs = weight.shape[0] // groups
        return [
            weight[g * inputs : (g + 1) * inputs, o]
            for g in range(groups)
            for o in range(weight.shape[1])
        ]

    return filters


def filter_normalized(
    d: Tensor, theta: Tensor, filters: Callable[[Tensor], list[Tensor]]
) -> Tensor:
    """d_f <- d_f |theta_f| / |d_f| for every filter f (Li et al., NeurIPS 2018, section 4)."""
    d = d.double().clone()
    for d_f, theta_f in zip(filters(d), filters(theta.double()), strict=True):
        length = float(d_f.pow(2).sum().sqrt())
        d_f *= float(theta_f.pow(2).sum().sqrt()) / length
    return d


def mean_loss(
    model: nn.Module, batches: Iterable[Any], loss: Callable[[nn.Module, Any], tuple[Tensor, float]]
) -> float:
    """The evaluation loop that everybody writes; ``loss`` gives the mean of a batch, its weight."""
    was_training = model.training
    model.eval()
    total, weight = 0.0, 0.0
    with torch.no_grad():
        for batch in batches:
            value, n = loss(model, batch)
            total += value.double().item() * n
            weight += n
    model.train(was_training)
    return total / weight


def surface(
    model: nn.Module,
    directions: Sequence[Mapping[str, Tensor]],
    coordinates: Sequence[Sequence[float]],
    loss: Callable[[nn.Module], float],
) -> np.ndarray:
    """``loss`` at ``theta0 + a d1 + b d2 + ...`` for all coordinates, one state_dict per point."""
    model = copy.deepcopy(model)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    values = np.empty([len(axis) for axis in coordinates])
    for index in itertools.product(*(range(len(axis)) for axis in coordinates)):
        point = dict(start)
        for name in directions[0]:
            total = start[name].double()
            for d, axis, i in zip(directions, coordinates, index, strict=True):
                total = total + axis[i] * d[name].double()
            point[name] = total.to(start[name].dtype)
        model.load_state_dict(point)
        values[index] = loss(model)
    return values


def gram_schmidt(vectors: Tensor) -> Tensor:
    """Each vector minus its projections <v, u> / <u, u> u on those before it."""
    done: list[Tensor] = []
    for v in vectors.double():
        for u in done:
            v = v - (v @ u) / (u @ u) * u
        done.append(v)
    return torch.stack(done)


def running_statistics(module: nn.Module, batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Plain averages over the batches of their means and unbiased variances, per channel."""
    means, variances = [], []
    for x in batches:
        flat = x.double().transpose(0, 1).flatten(1)
        means.append(flat.mean(1))
        variances.append(flat.var(1, unbiased=True))
    return torch.stack(means).mean(0), torch.stack(variances).mean(0)
