"""Directions: where published tools are wrong on an input on which landscapex is right.

loss-landscapes 3.0.6 and landscaper 1.3.1, as they are. Each test shows the defect, with its size,
and asserts what landscapex does on the same input; the numbers are those of the list of traps.
"""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import other_tools
import pytest
import torch
from other_tools import Function, loss_landscapes, loss_landscapes_parameters
from other_tools_cases import cross_entropy, digits, flat, named
from torch import Tensor, nn

import landscapex as lx


def biases(model: nn.Module) -> Tensor:
    """Which entries of the flat vector belong to tensors of one dimension."""
    return flat(torch.full_like(p, p.ndim == 1) for p in model.parameters()).bool()


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def random_plane_directions(model: nn.Module, seed: int, **options) -> tuple[Tensor, Tensor]:
    """The two directions that loss-landscapes' `random_plane` walks along, from where it goes."""
    seen: list[Tensor] = []
    torch.manual_seed(seed)
    loss_landscapes.random_plane(
        copy.deepcopy(model),
        Function(lambda module: seen.append(flat(module.parameters())) or 0.0),
        steps=2,
        **options,
    )
    # in the order of its walk: (0, 1), (0, 2), (1, 1), (1, 0)
    second = seen[1] - seen[0]
    return seen[2] - seen[0], second


def test_trap_08_loss_landscapes_replaces_random_biases_by_their_lengths():
    """It normalises a bias as one filter and then each entry: whatever was drawn, it is |b|."""
    model, *_ = digits()
    mask = biases(model)
    first, _ = random_plane_directions(model, seed=0)
    other, _ = random_plane_directions(model, seed=1)
    assert cosine(first[mask], other[mask]) > 0.9999
    assert cosine(first[mask], flat(model.parameters())[mask].abs()) > 0.9999

    ours = lx.directions.random(model, ignore=None).vectors.double()
    assert abs(cosine(ours[0, mask], ours[1, mask])) < 0.25
    for name, p in model.named_parameters():
        if p.ndim == 1:  # one filter, as long as the bias itself
            drawn = lx.directions.random(model, 1, ignore=None)[0][name]
            assert float(drawn.norm()) == pytest.approx(float(p.detach().norm()), rel=1e-5)


def test_trap_08_landscaper_normalises_tensors_and_not_filters():
    """Of the same Gaussian draw: relative to the weights, one filter moves 4 times as far."""
    model, *_ = digits()
    drawn = lx.directions.random(model, 1, normalize=None)
    theirs = other_tools.landscaper_directions(model, named(drawn))
    ours = named(lx.directions.normalize(drawn, model, "filter"))

    def relative(direction: dict[str, Tensor]) -> Tensor:
        """The length of each filter in that of the model's own."""
        return torch.cat(
            [
                direction[name].double().norm(dim=1) / p.detach().double().norm(dim=1)
                for name, p in model.named_parameters()
                if p.ndim == 2
            ]
        )

    assert float(relative(theirs[0]).max() / relative(theirs[0]).min()) > 3
    assert relative(ours[0]).numpy() == pytest.approx(1, rel=1e-5)


def test_trap_08_landscaper_gives_another_surface_to_a_network_that_computes_the_same():
    """``W1 * 10``, ``W2 / 10``, the same draw: its steps do not follow the lengths of weights."""
    _, inputs, labels = digits()
    inputs = inputs.double()
    model = nn.Sequential(
        nn.Linear(64, 32, bias=False), nn.ReLU(), nn.Linear(32, 10, bias=False)
    ).double()
    rescaled = copy.deepcopy(model)
    with torch.no_grad():
        rescaled[0].weight *= 10
        rescaled[2].weight /= 10
    draw = [{n: torch.randn_like(p) for n, p in model.named_parameters()} for _ in range(2)]
    loss = cross_entropy(inputs, labels)
    assert loss(model) == pytest.approx(loss(rescaled), rel=1e-12)

    theirs = [other_tools.landscaper_surface(m, draw, 5, 0.5, loss)[0] for m in (model, rescaled)]
    assert np.abs(theirs[0] - theirs[1]).max() > 1
    ours = [
        lx.surface(
            m,
            [(inputs, labels)],
            "cross_entropy",
            directions=draw,
            normalize="filter",
            points=5,
            progress=False,
        ).loss
        for m in (model, rescaled)
    ]
    assert np.abs(ours[0] - ours[1]).max() < 1e-12


def test_trap_10_loss_landscapes_divides_by_zero_at_a_zero_bias():
    """Every fresh batch norm has one."""
    model = nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))
    nn.init.uniform_(model[0].bias, 0.1, 0.2)
    with pytest.raises(ZeroDivisionError):
        loss_landscapes.random_plane(copy.deepcopy(model), Function(lambda module: 0.0), steps=2)

    directions = lx.directions.random(model, ignore=None)
    assert directions.axes[0].zero_filters == 1
    assert torch.isfinite(directions.vectors).all()
    assert not directions[0]["1.bias"].any()


def test_trap_11_the_directions_of_loss_landscapes_are_uniform_and_all_alike():
    """Cosine 0.75 between the first directions of two planes (of two random lines as well).

    The second direction of a plane is made orthogonal to the first (cosine 0.00), before it is
    normalised.
    """
    model, *_ = digits()
    firsts = [random_plane_directions(model, seed)[0] for seed in range(3)]
    for a, b in pairwise(firsts):
        assert cosine(a, b) == pytest.approx(0.75, abs=0.02)
    drawn = loss_landscapes_parameters.rand_u_like(list(model.parameters()))
    assert min(float(t.min()) for t in drawn.parameters) >= 0

    ours = [lx.directions.random(model, 1, seed=seed).vectors[0].double() for seed in range(3)]
    for a, b in pairwise(ours):
        assert abs(cosine(a, b)) < 0.03


def test_trap_12_the_orthogonal_directions_of_landscaper_are_parallel():
    """It subtracts <v, u> u without dividing by <u, u>: |cosine| 0.997 and more."""
    model, *_ = digits()
    theirs = []
    for seed in range(5):
        torch.manual_seed(seed)
        pair = other_tools.landscaper_utils.generate_random_orthogonal_directions(model, 2)
        theirs.append(abs(cosine(flat(pair[0]), flat(pair[1]))))
    assert min(theirs) > 0.99

    for seed in range(5):
        ours = lx.directions.random(model, seed=seed, orthogonalize=True)
        assert abs(float(ours.cosine()[0, 1])) < 1e-6


def test_trap_13_loss_landscapes_computes_the_norm_anew_while_it_rescales():
    """Normalised to the length of the model, a direction is 1.7 times as long, and turned."""
    model, *_ = digits()
    point = loss_landscapes_parameters.ModelParameters([p.detach() for p in model.parameters()])
    direction = loss_landscapes_parameters.rand_n_like(point)
    before = flat(direction.parameters)
    direction.model_normalize_(point)
    after = flat(direction.parameters)
    assert float(after.norm()) / point.model_norm() > 1.5
    assert cosine(before, after) < 0.95

    names = [n for n, _ in model.named_parameters()]
    parts = before.split([p.numel() for p in model.parameters()])
    given = lx.directions.given(
        model,
        {n: d.view_as(p) for n, d, p in zip(names, parts, model.parameters(), strict=True)},
    )
    ours = lx.directions.normalize(given, model, "model").vectors[0].double()
    assert float(ours.norm()) == pytest.approx(point.model_norm(), rel=1e-6)
    assert cosine(before, ours) == pytest.approx(1, abs=1e-6)
