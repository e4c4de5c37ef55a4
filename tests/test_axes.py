"""Directions: how they are drawn, scaled, made orthogonal, kept; and what is refused."""

from __future__ import annotations

import hashlib
import json
import math
import re

import models
import numpy as np
import pytest
import reference
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import landscapex as lx
from landscapex import _directions, axes
from landscapex.axes import Axis, Directions
from landscapex.errors import (
    ArgumentError,
    ArgumentTypeError,
    CorruptFileError,
    DirectionError,
    OutputError,
    ParameterMismatchError,
)
from landscapex.model.parameters import ParameterSpace


def raw(model, n=2, seed=0):
    return axes.random(model, n, seed=seed, normalize=None, ignore=None)


def named(model):
    return ParameterSpace(model).unflatten(ParameterSpace(model).gather())


def group_norms(tensors, filters):
    return torch.stack([f.double().norm() for f in filters(tensors)])


# --- The draw ------------------------------------------------------------------------------------


def test_trap_11_directions_are_gaussian():
    """Uniform draws share their mean: two directions then have a cosine of 0.76."""
    d = raw(nn.Linear(1000, 300, bias=False)).vectors.double()
    n = d.shape[1]
    for row in d:
        assert abs(row.mean()) < 5 / math.sqrt(n)
        assert abs(row.var() - 1) < 5 * math.sqrt(2 / n)
        assert abs((row**3).mean()) < 5 * math.sqrt(15 / n)
        assert abs((row**4).mean() - 3) < 5 * math.sqrt(96 / n)
        assert row.abs().max() > 4
    assert abs(torch.corrcoef(d)[0, 1]) < 5 / math.sqrt(n)
    neighbours = torch.corrcoef(torch.stack([d[0, :-1], d[0, 1:]]))[0, 1]
    assert abs(neighbours) < 5 / math.sqrt(n)


def test_trap_11_two_filter_normalised_draws_are_nearly_orthogonal():
    model = models.seeded(models.LeNet)
    cosines = axes.random(model, 3).cosine()
    assert torch.equal(cosines, cosines.T)
    torch.testing.assert_close(cosines.diagonal(), torch.ones(3).double())
    assert (cosines - torch.eye(3)).abs().max() < 0.05


def test_trap_11_an_entry_depends_on_seed_direction_and_name_alone():
    """Not on the order of the layers, the selection, the number of directions or the device."""
    model = models.seeded(models.LeNet)
    everything = raw(model, 3)
    subset = axes.random(
        lx.Objective(model, [0], lambda m, b: 0, params=["fc2.*", "conv1.weight"]),
        2,
        normalize=None,
        ignore=None,
    )
    for k in range(2):
        for name in ("conv1.weight", "fc2.weight", "fc2.bias"):
            assert torch.equal(subset[k][name], everything[k][name])
    shuffled = nn.ModuleDict(dict(reversed(list(model.named_children()))))
    again = raw(shuffled)
    for k in range(2):
        for name, tensor in again[k].items():
            assert torch.equal(tensor, everything[k][name])


def test_trap_11_seeds_directions_and_names_give_different_numbers():
    model = nn.ParameterDict({name: nn.Parameter(torch.zeros(50)) for name in "ab"})
    draws = [raw(model, seed=seed)[k][name] for seed in (0, 1, -1) for k in (0, 1) for name in "ab"]
    correlations = torch.corrcoef(torch.stack(draws))
    assert (correlations - torch.eye(len(draws))).abs().max() < 0.6


def test_trap_11_double_models_get_the_same_directions_before_rounding():
    model = models.mlp()
    single, double = raw(model).vectors, raw(models.mlp().double()).vectors
    assert double.dtype == torch.float64
    assert torch.equal(double.float(), single)
    assert not torch.equal(double, single.double())


def test_trap_11_the_numbers_are_the_same_in_every_version():
    """Published figures are drawn again from their seed."""
    model = nn.Linear(2, 2, bias=False).double()
    drawn = raw(model, 1).vectors[0].tolist()
    assert drawn == pytest.approx(
        [-0.8417652710528518, -1.4796734672853857, -0.3938332648625929, 0.37659620981643277],
        rel=1e-15,
    )


def test_trap_11_the_draw_is_philox_under_a_hash_of_its_name():
    model = models.mlp(3, 2, 1).double()
    d = raw(model, 2, seed=41)
    for k in range(2):
        for name, tensor in d[k].items():
            digest = hashlib.sha256(f"41/direction/{k}/{name}".encode()).digest()
            key, stream = (int.from_bytes(digest[i : i + 8], "little") for i in (0, 8))
            expected = reference.normals(key, stream, tensor.numel())
            assert tensor.flatten().tolist() == pytest.approx(expected, rel=1e-13)


@pytest.mark.usefixtures("generators_untouched")
def test_global_generators_are_untouched():
    first = axes.random(models.mlp()).vectors
    torch.manual_seed(0)
    assert torch.equal(axes.random(models.mlp()).vectors, first)


# --- Normalising ---------------------------------------------------------------------------------


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


def test_trap_16_buffers_are_no_directions():
    """Stepping along running_var makes it negative: 120 of 121 points were NaN."""
    model = models.case("conv").model
    names = {name for name, _ in axes.random(model, normalize=None, ignore=None).layout}
    assert names == {name for name, _ in model.named_parameters()}
    assert not names & {name for name, _ in model.named_buffers()}


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


# --- Orthogonal ----------------------------------------------------------------------------------


def correlated(model):
    """Three directions that are far from orthogonal, and not of length one."""
    space = ParameterSpace(model)
    base, noise = torch.randn(space.size), torch.randn(3, space.size)
    vectors = 7 * base + noise
    return axes.given(model, vectors)


def test_trap_12_orthogonal_directions_are_orthogonal():
    """Divided by the norm instead of its square, |cos| stays at 0.97."""
    model = models.mlp(10, 16, 3)
    d = axes.random(model, 3, ignore="copy", orthogonalize=True)
    assert (d.cosine() - torch.eye(3)).abs().max() < 1e-6
    plain = axes.random(model, 3, ignore="copy")
    torch.testing.assert_close(
        d.vectors.double(), reference.gram_schmidt(plain.vectors), rtol=1e-5, atol=1e-6
    )


def test_trap_12_orthogonalising_comes_last_and_says_what_it_did():
    model = models.mlp(10, 16, 3)
    plain, d = (axes.random(model, 2, ignore="copy", orthogonalize=o) for o in (False, True))
    assert torch.equal(d.vectors[0], plain.vectors[0])
    assert d.axes[0].note == ""
    cosine = plain.cosine()[1, 0].item()
    found = re.fullmatch(
        r"made orthogonal to the directions before it \(cosine was (\S+)\); "
        r"a filter changed its length by up to (\S+)%",
        d.axes[1].note,
    )
    assert found
    assert float(found[1]) == pytest.approx(cosine, rel=0.06)
    changes = [
        abs(group_norms(d[1][n], f) / group_norms(plain[1][n], f) - 1).max().item()
        for n, f in [("0.weight", reference.rows), ("2.weight", reference.rows),
                     ("0.bias", lambda b: [b]), ("2.bias", lambda b: [b])]
    ]  # fmt: skip
    assert float(found[2]) / 100 == pytest.approx(max(changes), abs=1e-4)


# --- Cosines and lengths -------------------------------------------------------------------------


def test_lengths_and_cosines_against_numpy():
    d = correlated(models.mlp())
    v = d.vectors.double().numpy()
    np.testing.assert_allclose(d.norm(), np.linalg.norm(v, axis=1), rtol=1e-12)
    expected = v @ v.T / np.outer(*[np.linalg.norm(v, axis=1)] * 2)
    np.testing.assert_allclose(d.cosine(), expected, rtol=1e-12)


def test_trap_25_lengths_are_summed_in_float64():
    """In float32 the length of many small entries stops growing."""
    vectors = torch.full((1, 1 << 23), 1e-3)
    vectors[0, 0] = 1e3
    d = Directions(vectors, (Axis("a", "given"),), (("w", (1 << 23,)),))
    small = float(torch.tensor(1e-3)) ** 2 * ((1 << 23) - 1)
    assert d.norm().item() == pytest.approx(math.sqrt(1e6 + small), rel=1e-11)


def test_the_cosine_with_a_zero_direction_is_zero():
    d = axes.given(models.mlp(1, 1), torch.tensor([[0.0, 0.0], [1.0, 2.0]]))
    assert d.cosine().tolist() == [[0.0, 0.0], [0.0, pytest.approx(1.0)]]


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([[0.0, 0.0]], "given direction 1 must not be zero everywhere, got length 0."),
        ([[1.0, 0.0], [0.0, 0.0]], "given direction 2 must not be zero everywhere"),
        ([[1.0, math.nan]], "given direction 1 must be finite, got a length of nan."),
        ([[math.inf, 1.0]], "given direction 1 must be finite, got a length of inf."),
        ([[1.0, 0.0], [-2.0, 1e-3]], "given direction 1 and given direction 2 must not be"),
    ],
)
def test_fault_13_directions_that_span_nothing_are_refused(vectors, message):
    d = axes.given(models.mlp(1, 1), torch.tensor(vectors))
    with pytest.raises(DirectionError, match=re.escape(message)):
        _directions.check_usable(d)


def test_fault_13_nearly_parallel_is_still_usable():
    d = axes.given(models.mlp(1, 1), torch.tensor([[1.0, 0.0], [1.0, 0.05]]))
    assert 0.998 < d.cosine()[0, 1] < _directions.PARALLEL
    _directions.check_usable(d)


# --- Directions of one's own ---------------------------------------------------------------------


def test_between_leads_to_the_other_models():
    a, b, c = (models.mlp(seed=s) for s in range(3))
    for ends in ([b], [b.state_dict(), c], [ParameterSpace(b).gather()]):
        d = axes.between(a, *ends)
        assert d.axes[0].default_span == (-0.5, 1.5)
        space = ParameterSpace(a)
        center = space.gather()
        space.move(center, d.vectors, [1.0] + [0.0] * (len(d) - 1))
        torch.testing.assert_close(space.gather(), ParameterSpace(b).gather(), rtol=0, atol=1e-7)
        space.move(center, d.vectors[:0], [])
    labels = [axis.label for axis in axes.between(a, b, c).axes]
    assert labels == ["towards the other model 1", "towards the other model 2"]


def test_between_from_another_centre():
    a, b = models.mlp(seed=0), models.mlp(seed=1)
    center = torch.zeros(ParameterSpace(a).size)
    assert torch.equal(axes.between(a, b, center=center).vectors[0], ParameterSpace(b).gather())


def test_between_needs_a_model_that_fits():
    with pytest.raises(ArgumentError, match="`models` must hold at least one model, got none"):
        axes.between(models.mlp())
    with pytest.raises(ParameterMismatchError, match=r"model 1 must fit.*0.weight: shape \(5, 4\)"):
        axes.between(models.mlp(), models.mlp(4, 5, 3))


def test_trap_22_tied_weights_get_one_direction():
    d = axes.random(models.TiedLMHeadModel())
    assert [name for name, _ in d.layout] == ["embedding.weight", "mix.weight", "mix.bias"]


def test_given_directions_are_taken_as_they_are():
    model = models.mlp(2, 3, 1)
    tensors = [torch.randn(3, 2), torch.randn(3)]
    some = {"0.weight": tensors[0], "0.bias": tensors[1]}
    d = axes.given(model, [some, named(model)])
    assert torch.equal(d[0]["0.weight"], tensors[0])
    assert torch.equal(d[0]["0.bias"], tensors[1])
    assert not d[0]["2.weight"].any()
    assert torch.equal(d.vectors[1], ParameterSpace(model).gather())
    assert [a.note for a in d.axes] == ["parameters not given do not move", ""]
    assert d.axes[0].normalize is None


def test_a_given_direction_may_use_any_name_of_a_tied_weight():
    d = axes.given(models.TiedLMHeadModel(), {"head.weight": torch.ones(20, 12)})
    assert d[0]["embedding.weight"].sum() == 240


def test_a_tensor_of_directions_is_copied():
    vectors = torch.randn(2, 13)
    d = axes.given(models.mlp(2, 3, 1), vectors)
    kept = vectors.clone()
    vectors.zero_()
    assert torch.equal(d.vectors, kept)


@pytest.mark.parametrize(
    ("directions", "error", "message"),
    [
        (torch.ones(2, 4), DirectionError, "`directions` must have shape (K, 13), got (2, 4)."),
        (torch.ones(13), DirectionError, "`directions` must have shape (K, 13), got (13,)."),
        ([torch.ones(13)], ArgumentTypeError, "must hold mappings {parameter name: tensor}, got"),
        ([], ArgumentTypeError, "`directions` must be Directions, a tensor (K, P) or a"),
        (3.0, ArgumentTypeError, "or a sequence of mappings, got float."),
        (
            [{"x": torch.ones(1)}],
            ParameterMismatchError,
            "direction 1 must fit the parameters, got",
        ),
    ],
)
def test_given_directions_that_do_not_fit_are_refused(directions, error, message):
    with pytest.raises(error, match=re.escape(message)):
        axes.given(models.mlp(2, 3, 1), directions)


def test_the_gradient_is_a_direction():
    case = models.case("mlp")
    objective = lx.Objective(case.model, case.batches, case.loss)
    d = axes.gradient(objective)
    assert torch.equal(d.vectors[0], objective.gradient())
    assert (d.axes[0].source, d.axes[0].normalize) == ("gradient", None)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n": 0}, ArgumentError, "`n` must be a whole number of at least 1, got 0."),
        ({"n": 1.5}, ArgumentError, "`n` must be a whole number of at least 1, got 1.5."),
        ({"seed": 0.5}, ArgumentTypeError, "`seed` must be a whole number, got 0.5."),
        ({"seed": True}, ArgumentTypeError, "`seed` must be a whole number, got True."),
        ({"normalize": "channel"}, ArgumentError, "`normalize` must be 'filter', 'layer', "),
        ({"ignore": "biasbn"}, ArgumentError, "`ignore` must be 'bias_bn', 'copy' or None, got"),
    ],
)
def test_random_refuses_unknown_values(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        axes.random(models.mlp(), **arguments)


def test_what_is_neither_model_nor_objective_is_refused():
    with pytest.raises(ArgumentTypeError, match="`objective` must be an Objective or a module"):
        axes.random({"weight": torch.ones(2)})


def test_directions_of_another_model_are_refused():
    space = ParameterSpace(models.mlp(10, 16, 3))
    with pytest.raises(DirectionError, match=r"the objective's 4 .*got \('0.weight', \(16, 9\)\)"):
        _directions.check_layout(axes.random(models.mlp(9, 16, 3)), space)
    with pytest.raises(DirectionError, match="got 2 parameters"):
        _directions.check_layout(axes.random(models.mlp(10, 16)), space)


def test_as_many_axes_as_vectors():
    with pytest.raises(DirectionError, match=r"`vectors` must have shape \(K, P\) with K = 1"):
        Directions(torch.ones(2, 3), (Axis("a", "given"),), (("w", (3,)),))


@pytest.mark.parametrize(
    ("axis", "words"),
    [
        (Axis("a", "random", "filter"), "1 = each filter moves by its own length, ‖d‖ = 2.5"),
        (Axis("a", "random", "layer"), "1 = each layer moves by its own length, ‖d‖ = 2.5"),
        (Axis("a", "random", "model"), "1 = the weights move by their own length, ‖d‖ = 2.5"),
        (Axis("a", "between"), "1 = at the other model, ‖d‖ = 2.5"),
        (Axis("a", "given"), "1 = the direction itself, ‖d‖ = 2.5"),
    ],
)
def test_an_axis_says_what_its_unit_is(axis, words):
    assert axis.unit(2.5) == words


# --- Files ---------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 3), st.integers(0, 1000), st.booleans(), st.sampled_from(list(models.CASES)))
def test_saved_directions_come_back_bit_for_bit(tmp_path_factory, n, seed, double, name):
    model = models.case(name).model
    d = axes.random(model.double() if double else model, n, seed=seed)
    path = tmp_path_factory.mktemp("directions") / "d.safetensors"
    d.save(path)
    loaded = axes.load(path)
    assert torch.equal(loaded.vectors, d.vectors)
    assert loaded.vectors.dtype == d.vectors.dtype
    assert (loaded.axes, loaded.layout) == (d.axes, d.layout)
    assert loaded.fingerprint() == d.fingerprint()


def test_a_file_of_directions_is_plain_safetensors(tmp_path):
    d = axes.random(models.mlp(2, 3, 1))
    path = tmp_path / "richtungen ü.safetensors"
    d.save(str(path))
    tensors = safetensors.torch.load_file(path)
    assert sorted(tensors) == sorted(f"{k}/{n}" for k in range(2) for n, _ in d.layout)
    assert torch.equal(tensors["1/0.weight"], d[1]["0.weight"])
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def resigned(path, change):
    """Change the header of a file as somebody would who does not know the hash."""
    with safetensors.safe_open(path, framework="pt") as file:
        header, tensors = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    change(header, tensors)
    safetensors.torch.save_file(tensors, path, metadata=header)


def other_format(header, tensors):
    header["format"] = "something else"


def other_number(header, tensors):
    tensors["0/0.weight"][0, 0] += 1


def other_axes(header, tensors):
    header["axes"] = json.dumps([{"colour": "red"}])


def missing_tensor(header, tensors):
    del tensors["0/0.weight"]


def other_shape(header, tensors):
    tensors["0/0.weight"] = tensors["0/0.weight"].T.contiguous()[:1]


@pytest.mark.parametrize(
    "change", [other_format, other_number, other_axes, missing_tensor, other_shape]
)
def test_fault_09_a_damaged_file_of_directions_is_refused(tmp_path, change):
    path = tmp_path / "d.safetensors"
    axes.random(models.mlp(2, 3, 1)).save(path)
    resigned(path, change)
    with pytest.raises(CorruptFileError, match=re.escape(str(path))):
        axes.load(path)


@pytest.mark.parametrize("size", [0, 4, 50, 400])
def test_fault_09_a_truncated_file_of_directions_is_refused(tmp_path, size):
    path = tmp_path / "d.safetensors"
    axes.random(models.mlp(2, 3, 1)).save(path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CorruptFileError, match=re.escape(str(path))):
        axes.load(path)


def test_fault_09_no_flipped_bit_of_a_file_of_directions_goes_unnoticed(tmp_path):
    path = axes.random(models.mlp(2, 3, 1)).save(tmp_path / "d.safetensors")
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(CorruptFileError, match=re.escape(str(path))):
                axes.load(path)


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(CorruptFileError, match="must exist, got no such file"):
        axes.load(tmp_path / "d.safetensors")


def test_a_folder_that_is_missing_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="could not be written"):
        axes.random(models.mlp()).save(tmp_path / "no" / "d.safetensors")
