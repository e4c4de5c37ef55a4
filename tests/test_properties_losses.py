"""What holds for the losses of all models and data: symmetries, batches, engines, both ends."""

from __future__ import annotations

import copy

import interpolation_cases
import models
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from property_cases import DEEP, QUIET, SEEDS, Drawn, bits, network, networks, splits, vectors
from torch import nn

import landscapex as lx
from landscapex import axes
from landscapex.engine.native import unavailable
from landscapex.grids.line_measures import measure_line

KINDS = st.sampled_from(list(models.CASES))


@settings(deadline=None, max_examples=12)
@given(KINDS, SEEDS, st.integers(2, 7), st.floats(0.01, 3))
def test_a_line_read_backwards_is_that_of_the_opposite_direction(kind, seed, points, span):
    """f(a; d) = f(-a; -d), bit by bit, for networks of every kind."""
    case = models.case(kind)
    objective = lx.Objective(case.model, case.batches, case.loss)
    d = axes.random(objective, 1, seed=seed).vectors
    options = {**QUIET, "points": points, "span": span, "engine": "eager"}
    there = lx.line(objective, directions=d, **options).loss
    back = lx.line(objective, directions=-d, **options).loss
    assert np.ptp(there) > 0
    np.testing.assert_array_equal(back, there[::-1])


@settings(deadline=None, max_examples=12)
@given(networks(), SEEDS, st.floats(0.01, 100))
def test_a_longer_direction_is_a_shorter_span(drawn, seed, factor):
    """f(a; c d) = f(c a; d)."""
    objective = drawn.objective()
    d = vectors(objective.space.size, 1, seed)
    short = lx.line(objective, directions=d * factor, points=5, span=1 / factor, **QUIET).loss
    np.testing.assert_allclose(
        short, lx.line(objective, directions=d, points=5, span=1, **QUIET).loss, rtol=1e-9
    )


class Normed(nn.Sequential):
    """A convolution whose scale the batch norm behind it takes back."""

    def __init__(self) -> None:
        # epsilon is what would make the scale felt
        super().__init__(
            nn.Conv2d(1, 3, 2, bias=False), nn.BatchNorm2d(3, eps=1e-12), nn.ReLU(),
            nn.Flatten(), nn.Linear(12, 2),
        )  # fmt: skip


@settings(deadline=None, max_examples=10)
@given(
    st.lists(st.floats(0.02, 50), min_size=3, max_size=3),
    st.sampled_from(["batch", "recompute"]),
    SEEDS,
)
def test_the_scale_of_filters_before_batch_norm_leaves_the_curve(factors, bn, seed):
    """The reason for filter normalisation (Li et al. 2018, section 4): a curve without it moves."""
    model = models.seeded(Normed).double()
    x = vectors(9, 8, seed).view(8, 1, 3, 3)
    y = torch.arange(8) % 2
    options = {**QUIET, "points": 5, "span": 1.0, "seed": seed % 1000}

    def curve(normalize):
        objective = lx.Objective(model, (x, y), "cross_entropy", bn=bn)
        return lx.line(objective, normalize=normalize, **options).loss

    before, plain = curve("filter"), curve(None)
    with torch.no_grad():
        model[0].weight.mul_(torch.tensor(factors)[:, None, None, None])
    np.testing.assert_allclose(curve("filter"), before, rtol=1e-7)
    if max(factors) > 2:
        assert np.abs(curve(None) / plain - 1).max() > 1e-5


@settings(deadline=None, max_examples=25)
@given(st.data(), networks(samples=11), st.sets(st.integers(0, 10), max_size=10))
def test_a_loss_and_its_gradient_do_not_depend_on_how_samples_are_batched(data, drawn, ignored):
    """Neither on their order, also where labels are ignored, in whole batches of them too."""
    if drawn.loss == "cross_entropy":
        drawn.y[list(ignored)] = -100
    order = torch.tensor(data.draw(st.permutations(range(11))))
    sizes = data.draw(splits(11))
    whole = drawn.objective()
    parts = Drawn(drawn.model, drawn.x[order], drawn.y[order], drawn.loss).objective(sizes)
    assert parts.loss() == pytest.approx(whole.loss(), rel=1e-12)
    torch.testing.assert_close(parts.gradient(), whole.gradient(), rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=15)
@given(st.data(), networks(samples=11, dtype=torch.float32))
def test_batches_of_a_function_of_ones_own_weigh_what_they_hold(data, drawn):
    """Such batches are evaluated as they are; their means are weighed by their samples."""
    sizes = data.draw(splits(11))
    function = getattr(nn.functional, drawn.loss)

    def mean(model, batch):
        return function(model(batch[0]), batch[1])

    batches = list(zip(drawn.x.split(sizes), drawn.y.split(sizes), strict=True))
    found = lx.Objective(drawn.model, batches, mean).loss()
    assert found == pytest.approx(drawn.objective().loss(), rel=1e-6)


@settings(deadline=None, max_examples=10)
@given(networks(), st.floats(0, 3), SEEDS)
def test_weight_decay_adds_half_the_squared_length(drawn, decay, seed):
    point = vectors(drawn.objective().space.size, 1, seed)[0]
    expected = drawn.objective().loss(point) + decay / 2 * float(point @ point)
    decayed = drawn.objective(weight_decay=decay)
    assert decayed.loss(point) == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(
        decayed.gradient(point),
        drawn.objective().gradient(point) + decay * point,
        rtol=1e-9,
        atol=1e-12,
    )


@settings(deadline=None, max_examples=12)
@given(KINDS, st.sampled_from([torch.float32, torch.float64, torch.bfloat16]), SEEDS)
def test_a_run_leaves_every_bit_of_the_model(kind, dtype, seed):
    """Whatever is in it: negative zeros and subnormal numbers are restored too."""
    case = models.case(kind)
    model = case.model.to(dtype).train(bool(seed % 2))
    special = torch.tensor([-0.0, torch.finfo(dtype).tiny / 4], dtype=dtype)
    with torch.no_grad():
        next(p for p in model.parameters() if p.ndim > 1).view(-1)[:2] = special
    before = bits(model.state_dict())
    kept = copy.deepcopy([(p.requires_grad, p.grad) for p in model.parameters()])
    data = [in_dtype(batch, dtype) for batch in case.batches]
    lx.line(model, data, case.loss, points=3, span=1e6, seed=seed, engine="eager", **QUIET)
    assert bits(model.state_dict()) == before
    assert [(p.requires_grad, p.grad) for p in model.parameters()] == kept
    assert model.training == bool(seed % 2)


def in_dtype(batch, dtype):
    """A batch for a model of that dtype; tokens and labels are what they are."""
    if isinstance(batch, dict):
        return batch
    return tuple(t.to(dtype) if t.is_floating_point() else t for t in batch)


@pytest.mark.skipif(unavailable() is not None, reason="there is no compiled engine")
@settings(deadline=None, max_examples=6)
@given(networks(widths=DEEP, dtype=torch.float32, samples=13), SEEDS, st.integers(2, 7))
def test_the_compiled_engine_gives_the_losses_of_the_eager_one(drawn, seed, points):
    # plain numbers: filters of one entry would not move
    options = {**QUIET, "points": points, "seed": seed, "normalize": None, "ignore": None}
    eager, compiled = (
        lx.line(drawn.objective(), engine=e, **options) for e in ("eager", "compiled")
    )
    assert compiled.provenance["engine"]["name"] == "compiled"
    np.testing.assert_allclose(compiled.loss, eager.loss, rtol=1e-6)


@settings(deadline=None, max_examples=6)
@given(st.sampled_from(["mlp", "lenet", "conv", "lstm"]), st.integers(2, 6))
def test_a_line_between_models_ends_at_their_losses_and_may_be_walked_either_way(kind, points):
    first, other, data, loss = interpolation_cases.two(kind)
    there = interpolation_cases.between(first, other, data, loss, points=points).loss
    back = interpolation_cases.between(other, first, data, loss, points=points).loss
    ends = [lx.Objective(m, data, loss).loss() for m in (first, other)]
    np.testing.assert_allclose(there[[0, -1]], ends, rtol=1e-7)
    np.testing.assert_allclose(back, there[::-1], rtol=1e-6)


CURVES = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12)


@settings(max_examples=100)
@given(CURVES, st.floats(-1e3, 1e3), st.floats(-1e3, 1e3), st.sampled_from([0.25, 2.0, 64.0]))
def test_measures_of_a_line_know_no_slope_no_level_and_no_unit(curve, level, slope, unit):
    """A straight line that is added is not a barrier; what is climbed is counted once."""
    j, a = np.array(curve), np.linspace(0, 1, len(curve))
    found = measure_line(a, j)
    assert found.barrier >= 0
    assert 0 <= found.bump <= found.monotone_violation + 1e-9
    assert measure_line(a, j + level + slope * a).barrier == pytest.approx(found.barrier, abs=1e-9)
    assert measure_line(a, unit * j).bump == pytest.approx(unit * found.bump)
    assert measure_line(a, j[::-1]).barrier == pytest.approx(found.barrier, abs=1e-9)
    assert measure_line(a, np.sort(j)[::-1]).bump == 0


@settings(deadline=None, max_examples=10)
@given(st.lists(st.integers(1, 5), min_size=2, max_size=4), SEEDS, st.floats(0.01, 1))
def test_sharpness_of_a_convex_loss_rises_with_the_radius(widths, seed, rho):
    """Along the gradient, a convex loss rises ever more: f(2 r) - f(0) >= 2 (f(r) - f(0)) > 0."""
    drawn = network([widths[0], widths[-1] + 1], seed=seed)
    near, far = (lx.sharpness.sam(drawn.objective(), r).value for r in (rho, 2 * rho))
    assert far >= 2 * near * (1 - 1e-9) > 0
