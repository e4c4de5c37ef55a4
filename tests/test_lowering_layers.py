"""Pools, interpolation, reductions and norms as grid programs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import lowered
import pytest
import torch
from lowering_cases import Function, randn
from lowering_layer_cases import SAMPLES, Scaled, check, check_each
from torch import Tensor, nn
from torch.nn import functional as F

from landscapex.engine.lowering.lower import lower
from landscapex.engine.plan import NotCapturedError
from landscapex.engine.program import Grid
from landscapex.engine.steps import Reduce


def refused(function: Callable[..., Any], *shape: int, match: str) -> None:
    model, x = Scaled(function, shape), randn(SAMPLES, *shape)
    with pytest.raises(NotCapturedError, match=match):
        lower(lowered.plan_of(model, (x, randn(*model(x).shape)), "mse_loss"), simplify=False)


# --- Pools ----------------------------------------------------------------------------------------

POOLS = {
    "max": lambda x: F.max_pool2d(x, 2),
    "max, overlapping, padded": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max, oblong": lambda x: F.max_pool2d(x, (3, 2), (2, 1), (1, 0)),
    "max, dilated": lambda x: F.max_pool2d(x, 2, 1, 0, dilation=(2, 3)),
    "max, ceil": lambda x: F.max_pool2d(x, 2, 2, ceil_mode=True),
    "max, 1-d": lambda x: F.max_pool1d(x.flatten(2), 4, 3, 1),
    "max, with indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "max, without channels": lambda x: F.max_pool2d(x[:, 0], 2),
    "average": lambda x: F.avg_pool2d(x, 2),
    "average, padded": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "average, padding left out": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "average, ceil": lambda x: F.avg_pool2d(x, 2, 2, ceil_mode=True),
    "average, ceil, padded": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    "average, divisor": lambda x: F.avg_pool2d(x, 2, divisor_override=3),
    "average, 1-d": lambda x: F.avg_pool1d(x.flatten(2), 4, 3, 1),
    "average, 1-d, padding left out": lambda x: F.avg_pool1d(
        x.flatten(2), 4, 3, 2, True, count_include_pad=False
    ),
    "average, 3-d": lambda x: F.avg_pool3d(x[:, None], 2),
    "adaptive average": lambda x: F.adaptive_avg_pool2d(x, (3, 2)),
    "adaptive average, to one": lambda x: F.adaptive_avg_pool2d(x, 1),
    "adaptive average, 1-d": lambda x: F.adaptive_avg_pool1d(x.flatten(2), 4),
    "adaptive max": lambda x: F.adaptive_max_pool2d(x, (2, 4)),
    "adaptive max, 1-d": lambda x: F.adaptive_max_pool1d(x.flatten(2), 4),
}


def test_pools() -> None:
    check_each(POOLS, 2, 7, 5, tolerance=1e-7)  # coefficients are float32


def test_sums_of_an_affine_value_are_affine_and_maxima_are_not() -> None:
    def grids(function: Callable[[Tensor], Tensor]) -> list[Grid]:
        model = nn.Sequential(nn.Linear(128, 12), Function(lambda x: function(x[:, None])))
        batch = randn(SAMPLES, 128), randn(*model(randn(SAMPLES, 128)).shape)
        program = lowered.check(model, batch, "mse_loss", tolerance=1e-7).program
        return [program.buffers[s.out].grid for s in program.steps if isinstance(s, Reduce)]

    assert grids(lambda x: F.avg_pool1d(x, 2)) == [Grid.AFFINE]
    assert grids(lambda x: x.mean(-1)) == [Grid.AFFINE]
    assert grids(lambda x: F.max_pool1d(x, 2)) == [Grid.FULL]
    assert grids(lambda x: x.amin(-1)) == [Grid.FULL]


# --- Interpolation --------------------------------------------------------------------------------

UPSAMPLING = {
    "bilinear, size": lambda x: F.interpolate(x, (9, 8), mode="bilinear"),
    "bilinear, corners": lambda x: F.interpolate(x, (9, 8), mode="bilinear", align_corners=True),
    "bilinear, factor": lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"),
    "bilinear, odd factor": lambda x: F.interpolate(x, scale_factor=(1.7, 2.3), mode="bilinear"),
    "bilinear, down": lambda x: F.interpolate(x, (3, 2), mode="bilinear"),
    "bilinear, to one": lambda x: F.interpolate(x, (1, 1), mode="bilinear", align_corners=True),
    "bicubic": lambda x: F.interpolate(x, (9, 8), mode="bicubic"),
    "linear": lambda x: F.interpolate(x.flatten(2), 50, mode="linear"),
    "linear, corners": lambda x: F.interpolate(x.flatten(2), 50, mode="linear", align_corners=True),
    "trilinear": lambda x: F.interpolate(x[:, None], (3, 9, 7), mode="trilinear"),
}


def test_interpolation() -> None:
    check_each(UPSAMPLING, 2, 7, 5, tolerance=1e-6)


# --- Reductions -----------------------------------------------------------------------------------

REDUCTIONS = {
    "mean": lambda x: x.mean(1),
    "mean, two axes": lambda x: x.mean((1, 3)),
    "mean, kept": lambda x: x.mean((-1, -2), keepdim=True),
    "sum": lambda x: x.sum(2),
    "sum, kept": lambda x: x.sum((1, 2), keepdim=True),
    "largest": lambda x: x.amax((1, 2)),
    "smallest": lambda x: x.amin(-1, keepdim=True),
    "max": lambda x: x.max(2)[0],
    "min": lambda x: x.min(1, keepdim=True).values,
    "prod": lambda x: x.prod(2),
    "var": lambda x: x.var((1, 2)),
    "var, biased": lambda x: x.var(2, unbiased=False, keepdim=True),
    "var, correction": lambda x: torch.var(x, (1, 3), correction=2),
    "std": lambda x: x.std(-1),
    "norm": lambda x: x.norm(dim=2),
    "norm 1": lambda x: torch.linalg.vector_norm(x, 1, dim=(1, 2)),
    "norm inf": lambda x: torch.linalg.vector_norm(x, math.inf, dim=1, keepdim=True),
    "normalised": lambda x: F.normalize(x, dim=1),
    "logsumexp": lambda x: x.logsumexp(1),
    "logsumexp, two axes, kept": lambda x: (300 * x).logsumexp((1, 3), keepdim=True),
    "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: F.log_softmax(10 * x, -1),
    "softmin": lambda x: F.softmin(x, 2),
    "of what is cut out": lambda x: x[:, 1:, ::2].transpose(1, 2).mean(1),
    "of padding": lambda x: F.pad(x, (1, 2), value=0.5).prod(-1),
}


def test_reductions() -> None:
    check_each(REDUCTIONS, 3, 4, 5, tolerance=1e-9)


def test_logsumexp_of_infinities_is_that_of_torch() -> None:
    low = torch.tensor([-math.inf, -math.inf, -math.inf, 1.0, math.inf])
    check(lambda x: torch.where(low > 2, x.abs(), low).view(-1, 1, 5)[:, :, :3].logsumexp(2), 5)
    check(lambda x: (x + torch.where(low == math.inf, low, 0.0)).view(-1, 1, 5).logsumexp(2), 5)


MIXING = {
    "mean": (lambda x: x.mean(0, keepdim=True).expand_as(x), r"mean.dim"),
    "amax": (lambda x: x - x.amax((0, 1), keepdim=True), r"amax"),
    "softmax": (lambda x: x.softmax(0), r"softmax.int"),
    "product": (lambda x: (x @ x.t()).sum(1), r"matmul"),
    "layer norm": (lambda x: F.layer_norm(x.t()[None], (4, x.shape[0]))[0].t(), r"layer_norm"),
    "group norm": (lambda x: F.group_norm(x.t()[None], 2)[0].t(), r"group_norm"),
    "attention": (
        lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None])[0],
        r"scaled_dot_product_attention",
    ),
}


@pytest.mark.parametrize("name", MIXING)
def test_operators_along_the_samples_are_refused(name: str) -> None:
    function, operator = MIXING[name]
    refused(function, 4, match=f"{operator}.* mixes samples")


REFUSED = {
    "norm 3": (lambda x: x.norm(3, dim=1), "norm of order 3"),
    "running statistics": (
        lambda x: F.instance_norm(x, torch.zeros(3), torch.ones(3), use_input_stats=False),
        "running statistics",
    ),
    "wide": (lambda x: x.sum(1, dtype=torch.float64).float(), "float64"),
    "dropout": (
        lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5),
        "dropout|random",
    ),
    "empty window": (lambda x: F.max_pool1d(x, 2, 1, 1, dilation=6), "nothing but padding"),
    "lone variance": (lambda x: x[:, :1].var(1), "degrees of freedom"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_kernel_is_refused(name: str) -> None:
    function, match = REFUSED[name]
    refused(function, 3, 5, match=match)


# --- Norms ----------------------------------------------------------------------------------------


def _with_parameters(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(7)
    for parameter in module.parameters():
        parameter.data = torch.rand(parameter.shape, generator=generator) - 0.3
    return module


NORMS = {
    "layer": lambda: nn.LayerNorm(6),
    "layer, two axes": lambda: nn.LayerNorm((4, 6), eps=1e-3),
    "layer, plain": lambda: nn.LayerNorm(6, elementwise_affine=False),
    "layer, no bias": lambda: nn.LayerNorm(6, bias=False),
    "group": lambda: nn.GroupNorm(2, 4),
    "group, plain": lambda: nn.GroupNorm(2, 4, affine=False),
    "instance": lambda: nn.InstanceNorm1d(4, affine=True),
    "instance, plain": lambda: nn.InstanceNorm1d(4),
    "rms": lambda: nn.RMSNorm(6),
    "rms, plain": lambda: nn.RMSNorm((4, 6), eps=0.1, elementwise_affine=False),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms(name: str) -> None:
    model = nn.Sequential(Scaled(lambda x: x, (4, 6)), _with_parameters(NORMS[name]()))
    batch = randn(SAMPLES, 4, 6), randn(SAMPLES, 4, 6, seed=2)
    lowered.check(model, batch, "mse_loss", tolerance=1e-6 if name == "rms" else 1e-9)


def test_norms_of_transposed_values() -> None:
    check(lambda x: F.layer_norm(x.transpose(1, 2), (3,)), 3, 5)
    check(lambda x: F.group_norm(x.movedim(-1, 1), 2), 3, 5, 4)
