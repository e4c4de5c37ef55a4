"""The worst loss near a point: in a ball, for groups of samples, in a box."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import optimize
from sharpness_cases import (
    classification,
    gradient_of,
    positive,
    quadratic,
    relu_net,
    whole,
)
from torch import nn

import landscapex as lx
from landscapex import sharpness
from landscapex.curvature.estimates import quantile
from landscapex.sharpness import probe
from landscapex.sharpness.ascent import weighted_mean

# --- The worst loss in a ball --------------------------------------------------------------------


def test_sam_is_the_rise_at_the_end_of_one_normalised_gradient_step():
    objective = classification(relu_net(bias=True))
    _, _, loss = whole(objective)
    w = objective.space.gather()
    g = gradient_of(loss, w)
    step = 0.1 * g / g.norm()
    found = sharpness.sam(objective, 0.1)
    assert found.value == pytest.approx(float(loss(w + step) - loss(w)), rel=1e-9)
    torch.testing.assert_close(found.displacement, step, rtol=1e-9, atol=1e-14)
    assert (found.losses, found.gradients, found.standard_error) == (3, 1, None)
    assert found.loss == pytest.approx(float(loss(w)), rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_many_steps_find_the_maximum_of_a_convex_quadratic_in_the_ball(seed):
    """The trust-region problem, solved by its secular equation."""
    a, w = positive(8, seed), np.random.default_rng(seed).standard_normal(8)
    rho, g = 0.7, a @ w
    values, q = np.linalg.eigh(a)
    c = q.T @ g

    def excess(shift):  # e = g / (shift - A), |e| = rho, shift above every eigenvalue
        return np.sum((c / (shift - values)) ** 2) - rho**2

    shift = optimize.brentq(excess, values[-1] * (1 + 1e-9), values[-1] + 1e3, xtol=1e-14)
    e = q @ (c / (shift - values))
    best = g @ e + 0.5 * e @ a @ e
    objective = quadratic(a, w)
    found = sharpness.sam(objective, rho, steps=60)
    assert found.value == pytest.approx(best, rel=1e-6)
    assert float(found.displacement.norm()) == pytest.approx(rho, rel=1e-12)
    first = sharpness.sam(objective, rho)
    assert found.increases[0] == first.value < found.value
    assert found.value == found.increases.max()


def test_steps_stay_in_the_ball_and_stop_at_a_top_inside_it():
    objective = quadratic(np.diag([-1.0, -1.0]), [0.1, 0.0])  # the top is 0.1 away
    found = sharpness.sam(objective, 0.1, steps=5)
    assert found.value == pytest.approx(0.005, rel=1e-12)
    assert (len(found.increases), found.gradients) == (1, 2)
    wide = sharpness.sam(objective, 0.3, steps=4)
    assert float(wide.displacement.norm()) <= 0.3 * (1 + 1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.05])
def test_asam_takes_the_step_of_its_own_metric(eta):
    objective = classification(relu_net(bias=True))
    _, _, loss = whole(objective)
    w = objective.space.gather()
    t = w.abs() + eta
    g = gradient_of(loss, w)
    step = 0.4 * t**2 * g / (t * g).norm()
    found = sharpness.asam(objective, 0.4, eta=eta)
    assert found.value == pytest.approx(float(loss(w + step) - loss(w)), rel=1e-9)
    torch.testing.assert_close(found.displacement, step, rtol=1e-9, atol=1e-14)
    assert sharpness.asam(objective, 0.4, eta=eta, steps=5).value > found.value


# --- Groups of samples ---------------------------------------------------------------------------


@pytest.mark.parametrize("adaptive", [False, True])
def test_m_sharpness_is_the_mean_of_the_groups_own_rises(adaptive):
    """Batches of the objective as groups: 10, 10 and 5 samples."""
    objective = classification(relu_net())
    _, _, loss = whole(objective)
    w = objective.space.gather()
    t = w.abs() if adaptive else torch.ones_like(w)
    rises, sizes = [], []
    for rows in (slice(0, 10), slice(10, 20), slice(20, 25)):
        g = gradient_of(loss, w, rows)
        step = 0.1 * t**2 * g / (t * g).norm()
        rises.append(float(loss(w + step, rows) - loss(w, rows)))
        sizes.append(rows.stop - rows.start)
    found = sharpness.m_sharpness(objective, None, 0.1, adaptive=adaptive)
    np.testing.assert_allclose(found.increases, rises, rtol=1e-9)
    assert found.value == pytest.approx(np.average(rises, weights=sizes), rel=1e-9)
    assert found.standard_error is None
    assert (found.losses, found.gradients) == (8, 3)


def test_groups_are_disjoint_and_dealt_at_random():
    model, dealt = relu_net(), []
    objective = classification(model)
    x, _, _ = whole(objective)
    handle = model.register_forward_pre_hook(lambda _, args: dealt.append(args[0]))
    found = sharpness.m_sharpness(objective, 6)
    handle.remove()
    groups = {
        tuple(tuple(row.tolist()) for row in batch) for batch in dealt if len(batch) in (6, 7)
    }
    place = {tuple(row.tolist()): k for k, row in enumerate(x)}
    members = [[place[row] for row in group] for group in groups]
    assert sorted(k for group in members for k in group) == list(range(25))
    assert sorted(map(len, members)) == [6, 6, 6, 7]
    assert [k for group in members for k in group] != list(range(25))
    assert (found.settings["groups"], found.settings["of"]) == (4, 4)
    other = sharpness.m_sharpness(objective, 6, seed=1)
    assert other.value != found.value
    assert sharpness.m_sharpness(objective, 6).value == found.value


def test_one_group_of_all_samples_is_sam_and_smaller_groups_are_sharper():
    objective = classification(relu_net())
    alone = sharpness.sam(objective, 0.1).value
    assert sharpness.m_sharpness(objective, 25, 0.1).value == pytest.approx(alone, rel=1e-9)
    assert sharpness.m_sharpness(objective, 1, 0.1).value > alone


def test_groups_count_by_their_weight_in_the_loss():
    """A group whose labels are all ignored has no part in the mean."""
    x, y = torch.randn(12, 10).double(), torch.arange(12) % 3
    y[4:8] = -100
    y[8] = -100
    model = relu_net()
    batches = list(zip(x.split(4), y.split(4), strict=True))
    found = sharpness.m_sharpness(lx.Objective(model, batches, "cross_entropy"), None, 0.1)
    alone = [
        sharpness.sam(lx.Objective(model, [batches[k]], "cross_entropy"), 0.1).value for k in (0, 2)
    ]
    assert found.value == pytest.approx((4 * alone[0] + 3 * alone[1]) / 7, rel=1e-9)


def test_a_group_without_a_slope_has_no_rise():
    model = nn.Linear(1, 1, bias=False).double()
    x = torch.tensor([[0.0], [0.0], [1.0], [2.0]]).double()
    batches = [(x[:2], torch.ones(2, 1).double()), (x[2:], torch.ones(2, 1).double())]
    found = sharpness.m_sharpness(lx.Objective(model, batches, "mse_loss"), None, 0.1)
    assert found.increases[0] == 0.0
    assert found.value == pytest.approx(0.5 * found.increases[1], rel=1e-12)


def test_coverage_of_the_error_of_some_groups():
    """200 draws of 8 of 20 groups of unequal weight: the mean of all lies in their interval."""
    objective = classification(relu_net(sizes=(10, 4, 3)), 60)
    everything = sharpness.m_sharpness(objective, 3, 0.1)
    assert everything.standard_error is None
    part = sharpness.m_sharpness(objective, 3, 0.1, groups=8)
    assert set(part.increases) < set(everything.increases)
    mean, error = weighted_mean(part.increases, np.full(8, 3.0), 20)
    assert (part.value, part.standard_error) == pytest.approx((mean, error), rel=1e-12)
    rng = np.random.default_rng(0)
    weights = rng.uniform(1, 3, 20)
    true, none = weighted_mean(everything.increases, weights, 20)
    assert none is None
    hits, means, errors = 0, [], []
    for _ in range(200):
        chosen = rng.permutation(20)[:8]
        mean, error = weighted_mean(everything.increases[chosen], weights[chosen], 20)
        hits += abs(mean - true) <= quantile(0.9, 7) * error
        means.append(mean)
        errors.append(error)
    assert 0.83 <= hits / 200 <= 0.96
    assert math.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(means), rel=0.15)


# --- The box of Keskar et al. --------------------------------------------------------------------


def test_keskar_finds_the_corner_of_a_separable_quadratic():
    d, w, epsilon = np.array([1.0, 4.0, 0.3, 2.0]), np.array([0.5, -0.1, 2.0, 0.0]), 0.05
    objective = quadratic(np.diag(d), w, slope=[0.0, 0.0, -0.9, 0.2], constant=0.7)
    box = epsilon * (np.abs(w) + 1)
    g = d * w + np.array([0.0, 0.0, -0.9, 0.2])
    best = np.sum(np.abs(g) * box + 0.5 * d * box**2)
    found = sharpness.keskar(objective, epsilon)
    assert found.value == pytest.approx(100 * best / (1 + found.loss), rel=1e-9)
    np.testing.assert_allclose(np.abs(found.displacement), box, rtol=1e-12)
    assert found.increases.max() == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("scale", [1.0, 1e-9])
def test_a_small_gradient_does_not_end_the_climb(scale):
    """At a minimum, exactly or nearly: L-BFGS-B's own thresholds would stop it at the start."""
    d = np.array([1.0, 4.0, 0.3])
    objective = quadratic(scale * np.diag(d), [1e-6, -1e-6, 1e-6])
    best = np.sum(scale * (d * 1e-6 * 0.05 * (1 + 1e-6) + 0.5 * d * (0.05 * (1 + 1e-6)) ** 2))
    found = sharpness.keskar(objective, 0.05)
    assert found.value == pytest.approx(100 * best / (1 + found.loss), rel=1e-6)
    exact = sharpness.keskar(quadratic(scale * np.diag(d), np.zeros(3)), 0.05)
    assert exact.value == pytest.approx(100 * scale * 0.5 * np.sum(d) * 0.05**2, rel=1e-9)


def test_keskar_in_a_random_subspace():
    """For a linear loss the maximum is a corner: sum_i |(A^T g)_i| eps (|(A^+ w)_i| + 1)."""
    rng = np.random.default_rng(5)
    g, w = rng.standard_normal(30), rng.standard_normal(30)
    objective = quadratic(np.zeros((30, 30)), w, slope=g, constant=20.0)
    found = sharpness.keskar(objective, 0.01, subspace=4, seed=3)
    a = np.stack(
        [probe.normal_vector(objective.space, 3, "keskar/subspace", k).numpy() for k in range(4)],
        axis=1,
    )
    box = 0.01 * (np.abs(np.linalg.pinv(a) @ w) + 1)
    best = np.sum(np.abs(a.T @ g) * box)
    assert found.value == pytest.approx(100 * best / (1 + found.loss), rel=1e-9)
    z = np.linalg.lstsq(a, found.displacement.numpy())[0]
    np.testing.assert_allclose(np.abs(z), box, rtol=1e-9)
    other = sharpness.keskar(objective, 0.01, subspace=4, seed=4)
    assert other.value != found.value


def test_keskar_of_a_network_is_at_least_what_one_step_to_the_corner_gives():
    objective = classification(relu_net(bias=True))
    _, _, loss = whole(objective)
    w = objective.space.gather()
    corner = 1e-2 * (w.abs() + 1) * gradient_of(loss, w).sign()
    rise = float(loss(w + corner) - loss(w))
    found = sharpness.keskar(objective, 1e-2)
    assert found.value >= 100 * rise / (1 + found.loss) * (1 - 1e-9)
    at_best = float(loss(w + found.displacement) - loss(w))
    assert found.value == pytest.approx(100 * at_best / (1 + found.loss), rel=1e-9)
    assert bool((found.displacement.abs() <= 1e-2 * (w.abs() + 1) * (1 + 1e-12)).all())
