"""Sharpness under random steps, and the local learning coefficient."""

from __future__ import annotations

import math

import models
import numpy as np
import pytest
import torch
from intervals import covered
from sharpness_cases import (
    Vector,
    classification,
    positive,
    quadratic,
    relu_net,
    whole,
)

import landscapex as lx
from landscapex import sharpness
from landscapex.curvature.estimates import quantile
from landscapex.errors import ArgumentError
from landscapex.sharpness import posterior, probe

# --- Random steps --------------------------------------------------------------------------------


@pytest.mark.parametrize("antithetic", [True, False])
@pytest.mark.parametrize("adaptive", [True, False])
def test_average_case_is_the_mean_over_its_draws(antithetic, adaptive):
    objective = classification(relu_net(bias=True))
    _, _, loss = whole(objective)
    w = objective.space.gather()
    rises = []
    for k in range(3):
        z = probe.normal_vector(objective.space, 7, "average-case", k) * (
            w.abs() if adaptive else 1
        )
        signs = (1, -1) if antithetic else (1,)
        rises.append(np.mean([float(loss(w + 0.2 * s * z) - loss(w)) for s in signs]))
    found = sharpness.average_case(
        objective, 0.2, 3, antithetic=antithetic, adaptive=adaptive, seed=7
    )
    np.testing.assert_allclose(found.increases, rises, rtol=1e-9)
    assert found.value == pytest.approx(np.mean(rises), rel=1e-9)
    assert found.standard_error == pytest.approx(np.std(rises, ddof=1) / math.sqrt(3), rel=1e-9)
    assert found.losses == 2 + 3 * (1 + antithetic)


def test_noise_is_normal_and_belongs_to_the_name_of_the_parameter():
    model = models.mlp(40, 50, 3).double()
    space = lx.Objective(model, None, lambda m, b: m[0].weight.sum()).space
    drawn = torch.stack([probe.normal_vector(space, 0, "test", k) for k in range(3)])
    assert float(drawn.mean()) == pytest.approx(0, abs=0.05)
    assert float(drawn.std()) == pytest.approx(1, abs=0.05)
    assert len(set(drawn.flatten().tolist())) == drawn.numel()
    some = lx.Objective(model, None, lambda m, b: m[0].weight.sum(), params=["2.*"]).space
    entry = next(e for e in space.entries if e.name == "2.weight")
    part = probe.normal_vector(some, 0, "test", 1)[: entry.size]
    assert torch.equal(part, drawn[1, entry.offset : entry.end])


@pytest.mark.parametrize("samples", [3, 12])
def test_trap_35_coverage_of_the_error_of_the_average_case(samples):
    """200 seeds: the true mean, sigma^2 tr A / 2, lies in the interval as often as it says."""
    a = positive(6, 0)
    objective = quadratic(a, np.ones(6))
    true = 0.3**2 * np.trace(a) / 2
    found = [sharpness.average_case(objective, 0.3, samples, seed=s) for s in range(200)]
    for confidence, least, most in ((0.68, 0.58, 0.78), (0.95, 0.90, 0.99)):
        assert least <= covered([f.interval(confidence) for f in found], true) <= most
    spread = np.std([f.value for f in found], ddof=1)
    claimed = math.sqrt(np.mean([f.standard_error**2 for f in found]))
    assert claimed == pytest.approx(spread, rel=0.2)


@pytest.mark.parametrize("increase", [1e-6, 0.1, 50.0])
def test_pac_bayes_is_where_the_mean_of_its_draws_meets_the_increase(increase):
    """On a quadratic the mean of the draws is sigma^2 m; the search goes up or down to it."""
    a = positive(6, 1)
    objective = quadratic(a, np.ones(6))
    found = sharpness.pac_bayes(objective, increase, 5, seed=2)
    z = [probe.normal_vector(objective.space, 2, "pac-bayes", k).numpy() for k in range(5)]
    mean = np.mean([0.5 * v @ a @ v for v in z])
    assert found.value == pytest.approx(math.sqrt(increase / mean), rel=1e-4)
    assert found.increases.mean() == pytest.approx(increase, rel=1e-9)


def test_pac_bayes_bears_no_more_noise_than_it_says_on_a_network():
    objective = classification(relu_net())
    _, _, loss = whole(objective)
    w = objective.space.gather()
    found = sharpness.pac_bayes(objective, 0.05, 6)
    z = [
        s * probe.normal_vector(objective.space, 0, "pac-bayes", k)
        for k in range(6)
        for s in (1, -1)
    ]
    for factor, above in ((0.98, False), (1.02, True)):
        mean = np.mean([float(loss(w + factor * found.value * v)) for v in z]) - float(loss(w))
        assert bool(mean > 0.05) is above


def test_coverage_of_the_error_of_pac_bayes():
    a = positive(6, 3)
    objective = quadratic(a, np.full(6, 1.0))
    true = math.sqrt(2 * 0.1 / np.trace(a))
    found = [sharpness.pac_bayes(objective, 0.1, 8, tolerance=0.5, seed=s) for s in range(200)]
    for confidence, least, most in ((0.68, 0.58, 0.78), (0.95, 0.90, 0.99)):
        assert least <= covered([f.interval(confidence) for f in found], true) <= most


def test_a_loss_that_jumps_to_infinity_bears_noise_up_to_the_jump():
    def loss(model, batch):
        return torch.where(model.w.abs().max() > 0.5, math.inf, 1.0) + 0 * model.w.sum()

    objective = lx.Objective(Vector([0.0, 0.0]), None, loss)
    found = sharpness.pac_bayes(objective, 0.1, 4)
    z = torch.cat([probe.normal_vector(objective.space, 0, "pac-bayes", k) for k in range(4)])
    assert found.value == pytest.approx(0.5 / float(z.abs().max()), rel=0.011)
    assert found.value <= 0.5 / float(z.abs().max())
    assert math.isnan(found.standard_error)


def test_noise_that_changes_nothing_is_refused():
    def loss(model, batch):
        return 1.0 + 0.01 * torch.tanh(model.w).sum()

    with pytest.raises(ArgumentError, match=r"rise of the mean loss that noise reaches, got 0\.1"):
        sharpness.pac_bayes(lx.Objective(Vector([0.0]), None, loss), 0.1, 2)


# --- The local learning coefficient --------------------------------------------------------------


def test_the_learning_coefficient_of_a_quadratic():
    """sum_i n beta h_i / (n beta h_i + gamma) / 2: half the dimension, flat directions less."""
    h, gamma = torch.tensor([3.0, 2.0, 1e-6]).double(), 5.0
    objective = lx.Objective(
        Vector([0.0, 0.0, 0.0]), [torch.zeros(60, 1), torch.zeros(40, 1)],
        lambda m, b: 0.5 * (h * m.w**2).sum(),
    )  # fmt: skip
    found = sharpness.local_learning_coefficient(
        objective, localization=gamma, steps=250, warmup=60, chains=3
    )
    weight = 100 / math.log(100)
    true = 0.5 * float((weight * h / (weight * h + gamma)).sum())
    assert true == pytest.approx(0.913, abs=1e-3)
    assert abs(found.value - true) < 3 * found.standard_error
    assert found.standard_error < 0.15
    np.testing.assert_allclose(weight * found.increases.mean(), found.value, rtol=1e-12)
    assert 0.3 < found.settings["accepted"] < 0.9
    assert found.losses == 2 + 3 * (1 + 310)


def chain_of(seed, h, weight, gamma):
    rng = torch.Generator().manual_seed(seed)
    potential = posterior.Potential(lambda e: 0.5 * float(h @ e**2), lambda e: h * e, weight, gamma)
    return posterior.Chain(
        potential,
        torch.zeros_like(h),
        lambda k: torch.randn(len(h), generator=rng, dtype=torch.float64),
        lambda k: float(torch.rand(1, generator=rng)),
    )


def test_coverage_of_the_error_of_the_learning_coefficient():
    """200 seeds of four chains whose steps are far too large to be right without being refused."""
    h = torch.tensor([1.0, 1.5]).double()
    true, hits = 0.5 * float((4 * h / (4 * h + 1)).sum()), 0
    for seed in range(200):
        values = []
        for c in range(4):
            chain = chain_of(4 * seed + c, h, 4.0, 1.0)
            chain.size = 0.35
            chain.run(6)
            values.append(4.0 * np.mean(chain.run(25)))
        error = np.std(values, ddof=1) / 2
        hits += abs(np.mean(values) - true) <= quantile(0.9, 3) * error
    assert 0.83 <= hits / 200 <= 0.96


def test_the_size_of_a_step_is_found_while_warming_up():
    h = torch.full((20,), 100.0).double()
    chain = chain_of(0, h, 10.0, 1.0)
    for size in (1e-8, 10.0):
        chain.size = size
        chain.run(150, adapt=True)
        chain.run(150)
        assert 0.35 < chain.accepted / 150 < 0.8


def test_a_step_to_where_there_is_no_loss_is_refused():
    potential = posterior.Potential(
        lambda e: 0.0 if abs(float(e)) < 1 else math.nan, lambda e: 0 * e, 1.0, 1e-6
    )
    normals = iter([0.5, 3.0, 0.2])
    chain = posterior.Chain(
        potential, torch.zeros(1).double(),
        lambda k: torch.tensor([next(normals)]).double(), lambda k: 0.5,
    )  # fmt: skip
    chain.size = 1.0
    chain.run(3)
    assert chain.accepted == 2


def test_a_chain_that_never_moves_gives_no_number():
    """It would be 0 with an error of 0."""
    cliff = lx.Objective(
        Vector([0.0]), [torch.zeros(9, 1)], lambda m, b: (1e12 * m.w**2).sum()
    )  # fmt: skip
    with pytest.raises(ArgumentError, match=r"`warmup` must be long enough .* got 0: a chain has"):
        sharpness.local_learning_coefficient(cliff, warmup=0, steps=3)
