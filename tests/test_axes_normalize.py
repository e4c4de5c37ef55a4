"""Directions get the lengths of a model's filters, or of what another rule names."""

from __future__ import annotations

import models
import pytest
import reference
import torch
from axes_cases import named, raw
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from landscapex import axes
from landscapex.model.parameters import ParameterSpace


@pytest.mark.parametrize("layer", reference.LAYERS)
def test_trap_08_filters_get_the_length_of_the_same_filter_of_the_model(layer):
    build, filters_of = reference.LAYERS[layer]
    model = models.seeded(build)
    theta, before, after = named(model), raw(model)[1], axes.random(model)[1]
    for name, filters in filters_of.items():
        expected = reference.filter_normalized(before[name], theta[name], filters)
        torch.testing.assert_close(after[name].double(), expected, rtol=1e-6, atol=1e-8)


def test_trap_08_biases_are_not_part_of_a_filter():
    model = models.mlp(3, 4, 2)
    small = axes.random(model)
    with torch.no_grad():
        model[0].bias.fill_(1e6)
    assert torch.equal(axes.random(model).vectors, small.vectors)


@pytest.mark.parametrize("name", models.CASES)
def test_c1_directions_have_the_filter_lengths_and_the_length_of_the_model(name):
    model = models.case(name).model
    space = ParameterSpace(model)
    d, theta = axes.random(model), space.gather().double()
    moving = torch.zeros(space.size, dtype=torch.bool)
    for e in space.entries:
        moving[e.offset : e.end] = not e.is_bias_bn
    for k in range(2):
        assert d.norm()[k].item() == pytest.approx(theta[moving].norm().item(), rel=1e-6)
        assert not d.vectors[k][~moving].any()


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(1e-3, 1e3), min_size=4, max_size=4), st.integers(0, 2**40))
def test_c2_scaling_a_filter_scales_its_direction(factors, seed):
    """Rescale filter j by s: the same seed gives d scaled by s, there and nowhere else."""
    model = models.mlp(3, 4, 2)
    before = axes.random(model, 1, seed=seed)[0]
    s = torch.tensor(factors)[:, None]
    with torch.no_grad():
        model[0].weight.mul_(s)
    after = axes.random(model, 1, seed=seed)[0]
    torch.testing.assert_close(after["0.weight"], before["0.weight"] * s, rtol=1e-5, atol=0)
    assert torch.equal(after["2.weight"], before["2.weight"])


@pytest.mark.parametrize("rule", ["layer", "model", "weight", None])
def test_other_rules_against_their_definition(rule):
    layers = [nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), models.mlp(5, 4)]
    model = nn.Sequential(*layers)
    theta, before = named(model), raw(model)[0]
    after = axes.random(model, normalize=rule)[0]
    weights = ["0.weight", "3.0.weight"]
    lengths = {n: theta[n].double().norm() / before[n].double().norm() for n in weights}
    both = [torch.cat([t[n].double().flatten() for n in weights]).norm() for t in (theta, before)]
    for n in weights:
        d, t = before[n].double(), theta[n].double()
        expected = {
            "layer": d * lengths[n],
            "model": d * both[0] / both[1],
            "weight": d * t,
            None: d,
        }[rule]
        torch.testing.assert_close(after[n].double(), expected, rtol=1e-6, atol=1e-8)
    for n in theta.keys() - set(weights):
        assert not after[n].any()


def test_the_layers_of_attention_are_its_three_projections():
    model = models.seeded(lambda: nn.MultiheadAttention(4, 2))
    with torch.no_grad():
        model.in_proj_weight[4:8] *= 100
    d, theta = axes.random(model, normalize="layer")[0], named(model)
    for block in (slice(0, 4), slice(4, 8), slice(8, 12)):
        ours, own = (t["in_proj_weight"][block].double().norm().item() for t in (d, theta))
        assert ours == pytest.approx(own, rel=1e-6)


@pytest.mark.parametrize("rule", ["filter", "layer", "model"])
def test_trap_13_normalising_twice_changes_nothing(rule):
    """Norms that are recomputed while rescaling give other numbers the second time."""
    model = models.case("conv").model
    once = axes.random(model, normalize=rule, ignore=None)
    twice = axes.normalize(once, model, rule)
    torch.testing.assert_close(twice.vectors, once.vectors, rtol=1e-6, atol=0)


def test_trap_13_every_entry_of_a_filter_gets_the_same_factor():
    """A norm recomputed inside the loop that rescales would give the last entries another one."""
    model = models.mlp(50, 4, 2)
    with torch.no_grad():
        model[0].weight.mul_(10)
    ratio = axes.random(model)[0]["0.weight"] / raw(model)[0]["0.weight"]
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-6, atol=0)
    assert len(ratio[:, 0].unique()) == 4


def test_trap_09_biases_and_norms_do_not_move_by_default():
    d = axes.random(models.case("conv").model)
    for k in range(2):
        for name in ("conv.bias", "bn.weight", "bn.bias", "up.bias", "head.bias"):
            assert not d[k][name].any()
        assert d[k]["head.weight"].all()
    assert all(a.ignore == "bias_bn" for a in d.axes)


def test_trap_09_copying_biases_is_only_done_on_request():
    """As the reference code does: two such directions are correlated."""
    model = models.mlp(10, 16, 3)
    with torch.no_grad():
        model[0].bias.fill_(1.0)
    d = axes.random(model, ignore="copy")
    for k in range(2):
        assert torch.equal(d[k]["0.bias"], model[0].bias.detach())
    assert d.cosine()[0, 1] > 0.5
    assert abs(axes.random(model).cosine()[0, 1]) < 0.3


def test_trap_09_without_a_policy_each_bias_is_one_filter():
    model = models.mlp(3, 4, 2)
    d, before = axes.random(model, ignore=None)[0], raw(model)[0]
    for name in ("0.bias", "2.bias"):
        expected = reference.filter_normalized(
            before[name], named(model)[name], lambda bias: [bias]
        )
        torch.testing.assert_close(d[name].double(), expected, rtol=1e-6, atol=1e-8)


def test_trap_10_filters_that_are_zero_do_not_move_and_are_counted():
    model = models.mlp(5, 4, 3)
    with torch.no_grad():
        model[0].weight[1:3] = 0
    d = axes.random(model)
    for k in range(2):
        assert torch.isfinite(d.vectors).all()
        assert not d[k]["0.weight"][1:3].any()
        assert d[k]["0.weight"][[0, 3]].all()
        assert d.axes[k].zero_filters == 2


def test_trap_10_a_direction_that_is_zero_in_a_filter_stays_zero():
    model = models.mlp(3, 2, 1)
    step = torch.zeros(2, 3)
    step[0] = 1.0
    d = axes.normalize(axes.given(model, {"0.weight": step}), model, "filter")
    assert torch.isfinite(d.vectors).all()
    assert not d[0]["0.weight"][1].any()
    length = model[0].weight[0].detach().double().norm()
    assert d[0]["0.weight"][0].double().norm().item() == pytest.approx(length.item(), rel=1e-6)


def test_trap_26_complex_filters_have_the_length_of_their_moduli():
    """(t ** 2).sum() of a complex tensor is no norm."""
    model = nn.Module()
    model.weight = nn.Parameter(torch.complex(torch.randn(3, 4), torch.randn(3, 4)))
    d = axes.random(model)[0]["weight"]
    theirs = model.weight.detach().abs().double().pow(2).sum(1).sqrt()
    ours = torch.view_as_complex(d).abs().double().pow(2).sum(1).sqrt()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


def test_directions_are_scaled_to_the_centre_that_is_asked_for():
    model = models.mlp(3, 4, 2)
    center = 10 * ParameterSpace(model).gather()
    expected = 10 * axes.random(model).vectors
    torch.testing.assert_close(axes.random(model, center=center).vectors, expected)
    given_ = axes.normalize(raw(model), model, "filter", ignore="bias_bn", center=center)
    torch.testing.assert_close(given_.vectors, expected)


def test_normalize_leaves_the_directions_it_is_given_alone():
    model = models.mlp()
    d = raw(model)
    kept = d.vectors.clone()
    scaled = axes.normalize(d, model, "filter", ignore="bias_bn")
    assert torch.equal(d.vectors, kept)
    torch.testing.assert_close(scaled.vectors, axes.random(model).vectors)
    assert (scaled.axes[0].normalize, d.axes[0].normalize) == ("filter", None)
