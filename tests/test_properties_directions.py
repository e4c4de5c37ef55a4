"""What holds for all directions and all paths of weights."""

from __future__ import annotations

import models
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from property_cases import SEEDS, WIDTHS, bits, network, vectors
from reference import rows, transposed
from torch import nn
from trajectory_cases import P, linear, skewed

import landscapex as lx
from landscapex import axes, export
from landscapex.trajectories.plane import trajectory
from landscapex.trajectories.trajectory import Trajectory

SIZES = st.integers(1, 4)


@st.composite
def layers(draw):
    """A layer of drawn sizes, and how its weight is cut into filters by its definition."""
    groups, a, b, k = draw(st.integers(1, 3)), draw(SIZES), draw(SIZES), draw(st.integers(2, 3))
    kind = draw(st.sampled_from(["linear", "conv1d", "conv2d", "transposed", "embedding"]))
    if kind == "linear":
        return nn.Linear(a + 1, b), rows
    if kind == "embedding":
        return nn.Embedding(a, b + 1), rows
    if kind == "transposed":
        made = nn.ConvTranspose2d(groups * a, groups * b, k, groups=groups)
        return made, transposed(groups)
    conv = nn.Conv1d if kind == "conv1d" else nn.Conv2d
    return conv(groups * a, groups * b, k, groups=groups), rows


@settings(deadline=None, max_examples=40)
@given(layers(), SEEDS, st.sampled_from([torch.float32, torch.float64]))
def test_filters_of_a_direction_are_as_long_as_those_of_the_model(layer, seed, dtype):
    module, filters = layer
    module = module.to(dtype)
    d = axes.random(module, 2, seed=seed)
    # a filter of one entry counts as a bias
    for k in range(2):
        for found, theta in zip(filters(d[k]["weight"]), filters(module.weight), strict=True):
            if theta.numel() > 1:
                expected = float(theta.double().norm())
                assert float(found.double().norm()) == pytest.approx(expected, rel=1e-6)
            assert theta.numel() > 1 or not found.any()
        assert not d[k]["bias"].any() if "bias" in d[k] else True


@settings(deadline=None, max_examples=20)
@given(WIDTHS, SEEDS, st.sampled_from(["filter", "layer", "model"]))
def test_normalising_twice_is_normalising_once_and_knows_no_length(widths, seed, rule):
    drawn = network([widths[0] + 1, *widths[1:]], seed=seed)
    space = lx.Objective(drawn.model, None, lambda model, batch: model[0].weight.sum()).space
    raw = axes.given(drawn.model, vectors(space.size, 2, seed))
    once = axes.normalize(raw, drawn.model, rule)
    again = axes.normalize(once, drawn.model, rule)
    torch.testing.assert_close(again.vectors, once.vectors, rtol=1e-12, atol=0)
    longer = axes.given(drawn.model, 1e3 * raw.vectors)
    torch.testing.assert_close(
        axes.normalize(longer, drawn.model, rule).vectors, once.vectors, rtol=1e-12, atol=0
    )


@settings(deadline=None, max_examples=15)
@given(SEEDS, st.integers(2, 5), st.booleans(), st.sampled_from(["filter", "layer", None]))
def test_orthogonalised_directions_are_orthogonal_and_span_the_same(seed, n, double, rule):
    model = models.mlp(4, 5, 3).to(torch.float64 if double else torch.float32)
    made = axes.random(model, n, seed=seed, normalize=rule, orthogonalize=True)
    plain = axes.random(model, n, seed=seed, normalize=rule)
    tolerance = 1e-12 if double else 1e-6
    off = made.cosine() - torch.eye(n)
    assert float(off.abs().max()) < tolerance
    # what came first is part of what comes next: the k-th lies in the span of the first k
    for k in range(n):
        span = plain.vectors[: k + 1].double()
        found = made.vectors[k].double()
        nearest = torch.linalg.lstsq(span.T, found[:, None]).solution
        assert float((span.T @ nearest - found[:, None]).norm()) < 10 * tolerance * found.norm()


@settings(deadline=None, max_examples=15)
@given(SEEDS, st.integers(1, 3), st.integers(1, 4), st.sampled_from(["filter", "layer", "weight"]))
def test_a_draw_depends_on_nothing_but_seed_number_and_name(seed, fewer, more, rule):
    """Not on how many are drawn, nor on what else moves."""
    model = models.mlp(4, 5, 3)
    data = torch.zeros(2, 4), torch.zeros(2, dtype=torch.long)
    part = lx.Objective(model, data, "cross_entropy", params=["2.*"])
    all_of_it = axes.random(model, fewer + more, seed=seed, normalize=rule)
    some = axes.random(part, fewer, seed=seed, normalize=rule)
    for k in range(fewer):
        for name in ("2.weight", "2.bias"):
            assert torch.equal(some[k][name], all_of_it[k][name])
    assert not torch.equal(all_of_it[0]["2.weight"], all_of_it[1]["2.weight"])


@settings(deadline=None, max_examples=15)
@given(SEEDS, st.sampled_from(list(models.CASES)), st.integers(1, 2))
def test_directions_come_back_from_a_file_of_loss_landscape(tmp_path_factory, seed, kind, n):
    model = models.case(kind).model
    d = axes.random(model, n, seed=seed, ignore=None)
    path = tmp_path_factory.mktemp("h5") / "d.h5"
    export.directions_to_h5(d, path, model)
    assert torch.equal(export.directions_from_h5(path, model).vectors, d.vectors)


# Paths


def walk(seed: int, count: int) -> torch.Tensor:
    return vectors(P, count, seed).cumsum(0)


@settings(deadline=None, max_examples=20)
@given(SEEDS, st.integers(3, 8), st.data(), st.booleans())
def test_coordinates_and_residuals_of_a_path_make_up_its_distances(seed, count, data, center):
    """Pythagoras, in a plane of orthonormal directions, whose shares of the variance fall."""
    path = walk(seed, count)
    origin = data.draw(st.integers(0, count - 1))
    made = trajectory(list(path), linear(), n=2, origin=origin, center=center, progress=False)
    gram = made.directions.vectors.double() @ made.directions.vectors.double().T
    torch.testing.assert_close(gram, torch.eye(len(gram), dtype=gram.dtype), rtol=0, atol=1e-10)
    expected = (path - path[origin]).norm(dim=1)
    np.testing.assert_allclose(made.distances, expected, rtol=1e-9)
    inside = (made.coordinates**2).sum(axis=1)
    np.testing.assert_allclose(
        np.sqrt(inside + made.residuals**2), made.distances, atol=1e-9 * float(expected.max())
    )
    assert (np.diff(made.explained) <= 1e-12).all()
    assert (made.explained >= -1e-12).all()
    assert made.explained.sum() == pytest.approx(1)
    for k in range(2):  # the farthest checkpoint lies on the positive side
        assert made.coordinates[np.abs(made.coordinates[:, k]).argmax(), k] > 0


@settings(deadline=None, max_examples=15)
@given(SEEDS, st.integers(4, 7), st.floats(-5, 5), st.booleans())
def test_a_path_that_is_moved_or_dealt_anew_looks_the_same(seed, count, step, center):
    """Nothing depends on where the whole path is, nor on the order of all but the origin."""
    options = {"origin": "first", "center": center, "progress": False}
    path = walk(seed, count)
    rest = torch.randperm(count - 1, generator=torch.Generator().manual_seed(seed))
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + rest])
    made = trajectory(list(path), linear(), **options)
    moved = trajectory(list(path + step), linear(), **options)
    dealt = trajectory(list(path[order]), linear(), **options)
    for name in ("coordinates", "residuals", "distances"):
        expected = getattr(made, name)
        np.testing.assert_allclose(getattr(moved, name), expected, atol=1e-7)
        np.testing.assert_allclose(getattr(dealt, name), expected[order.numpy()], atol=1e-7)


@settings(deadline=None, max_examples=20)
@given(SEEDS, st.lists(st.floats(-10, 10), min_size=2, max_size=2), st.booleans())
def test_a_point_of_a_plane_is_found_again_in_it(seed, coordinates, is_skewed):
    """Of any plane, also of directions that are neither orthogonal nor of length 1."""
    path, model = walk(seed, 4), linear()
    directions = skewed(model, seed) if is_skewed else None
    made = trajectory(list(path), model, directions=directions, progress=False)
    place = torch.tensor(coordinates, dtype=torch.float64)
    point = path[-1] + place @ made.directions.vectors.double()
    found = made.project(point)
    np.testing.assert_allclose(found.coordinates, coordinates, atol=1e-8)
    assert found.residual == pytest.approx(0, abs=1e-9 * max(1, found.distance))
    assert found.distance == pytest.approx(float((point - path[-1]).norm()), abs=1e-9)


@settings(deadline=None, max_examples=15)
@given(SEEDS, st.integers(2, 6), st.booleans())
def test_a_saved_path_comes_back_bit_for_bit(tmp_path_factory, seed, count, known):
    drawn = network([12, 5, 5], loss="mse_loss", seed=seed)
    states = [
        {n: t + 0.1 * k * torch.sin(t + k) for n, t in drawn.model.state_dict().items()}
        for k in range(count)
    ]
    made = trajectory(states, drawn.objective() if known else drawn.model, progress=False)
    path = made.save(tmp_path_factory.mktemp("path") / "p.safetensors")
    again = Trajectory.load(path)
    for name, value in vars(made).items():
        found = getattr(again, name)
        if isinstance(value, np.ndarray):
            assert found.tobytes() == value.tobytes(), name
        elif name == "directions":
            assert found.fingerprint() == value.fingerprint()
        elif name == "center":
            assert dict(bits(found)) == dict(bits(value))
        elif name != "_rows":  # where its files are, which a file does not hold
            assert found == value, name
