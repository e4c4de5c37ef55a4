"""Directions: how they are drawn, made orthogonal and measured."""

from __future__ import annotations

import hashlib
import math
import re

import models
import numpy as np
import pytest
import reference
import torch
from axes_cases import raw
from torch import nn

import landscapex as lx
from landscapex import axes
from landscapex.axes import Axis, Directions
from landscapex.errors import ArgumentError, ArgumentTypeError, DirectionError
from landscapex.model.parameters import ParameterSpace

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
    """Not on the order of the layers, the selection or the number of directions."""
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


def test_trap_16_buffers_are_no_directions():
    """Stepping along running_var makes it negative: 120 of 121 points were NaN."""
    model = models.case("conv").model
    names = {name for name, _ in axes.random(model, normalize=None, ignore=None).layout}
    assert names == {name for name, _ in model.named_parameters()}
    assert not names & {name for name, _ in model.named_buffers()}


def test_trap_22_tied_weights_get_one_direction():
    d = axes.random(models.TiedLMHeadModel())
    assert [name for name, _ in d.layout] == ["embedding.weight", "mix.weight", "mix.bias"]


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


# --- Orthogonal ----------------------------------------------------------------------------------


def group_norms(tensors, filters):
    return torch.stack([f.double().norm() for f in filters(tensors)])


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


def test_filters_that_are_zero_are_no_change_of_length():
    """The default leaves biases at zero."""
    plain, d = (axes.random(models.mlp(10, 16, 3), 2, orthogonalize=o) for o in (False, True))
    changes = [
        abs(group_norms(d[1][n], reference.rows) / group_norms(plain[1][n], reference.rows) - 1)
        for n in ("0.weight", "2.weight")
    ]
    found = re.search(r"by up to (\S+)%$", d.axes[1].note)
    assert found
    assert float(found[1]) / 100 == pytest.approx(torch.cat(changes).max().item(), abs=1e-4)


# --- Cosines and lengths -------------------------------------------------------------------------


def correlated(model):
    """Three directions that are far from orthogonal, and not of length one."""
    space = ParameterSpace(model)
    base, noise = torch.randn(space.size), torch.randn(3, space.size)
    vectors = 7 * base + noise
    return axes.given(model, vectors)


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
