"""Lines, surfaces and volumes: the right number at every point."""

from __future__ import annotations

import itertools
import math
import warnings

import models
import numpy as np
import pytest
import reference
import torch
from evaluate_cases import BATCH, QUIET, UNIT, Point, X, mse, plane, raised
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import landscapex as lx
from landscapex import axes
from landscapex.errors import LandscapexWarning
from landscapex.model.parameters import ParameterSpace

# --- Every point ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", models.CASES)
@pytest.mark.parametrize("kind", ["line", "surface", "volume"])
def test_every_point_against_a_loop_over_state_dicts(name, kind):
    case = models.case(name)
    points = {"line": 5, "surface": (3, 4), "volume": (2, 3, 2)}[kind]
    found = getattr(lx, kind)(case.model, case.batches, case.loss, points=points, seed=3, **QUIET)
    directions = axes.random(case.model, found.ndim, seed=3)
    expected = reference.surface(
        case.model,
        [directions[k] for k in range(found.ndim)],
        found.coordinates,
        lambda m: models.Case(m, case.batches, case.loss).reference(),
    )
    assert found.kind == kind
    assert found.columns == ("loss",)
    np.testing.assert_allclose(found.loss, expected, rtol=1e-6)


def test_trap_01_points_do_not_depend_on_the_order_of_evaluation():
    """Walking with += misaligns every second row, and drifts."""
    case = models.case("mlp")
    objective = lx.Objective(case.model, case.batches, case.loss)
    d = axes.random(objective)
    forth = lx.surface(objective, directions=d, points=(3, 5), **QUIET)
    back = lx.surface(objective, directions=-d.vectors, points=(3, 5), **QUIET)
    assert np.array_equal(forth.loss, back.loss[::-1, ::-1])
    center = ParameterSpace(case.model).gather().double()
    for i, j in itertools.product(range(3), range(5)):
        a, b = forth.coordinates[0][i], forth.coordinates[1][j]
        point = center + a * d.vectors[0].double() + b * d.vectors[1].double()
        assert forth.loss[i, j] == pytest.approx(objective.loss(point.float()), rel=1e-6)


def test_trap_01_every_row_is_in_its_place():
    surface = plane(lambda x, y: 10 * x + y, points=(3, 5), span=((0, 2), (0, 4)))
    assert surface.loss.tolist() == [[10 * i + j for j in range(5)] for i in range(3)]


def test_trap_02_the_model_is_the_same_after_a_grid():
    model = models.mlp(3, 40, 1)
    before = reference.everything(model)
    lx.surface(model, BATCH, mse, points=7, span=0.37, **QUIET)
    assert reference.changes(before, reference.everything(model)) == []


@pytest.mark.parametrize("name", models.CASES)
def test_trap_03_the_middle_of_an_odd_grid_is_the_loss_of_the_model(name):
    case = models.case(name)
    objective = lx.Objective(case.model, case.batches, case.loss)
    surface = lx.surface(objective, points=3, **QUIET)
    assert surface.loss[1, 1] == objective.loss() == surface.center_loss
    assert surface.coordinates[0][1] == surface.coordinates[1][1] == 0


def test_trap_03_an_even_grid_says_that_the_centre_is_no_point():
    surface = plane(lambda x, y: x * x + y, points=4, start=(3.0, 1.0))
    assert "the centre is not a grid point" in surface.provenance["notes"]
    assert surface.center_loss == 10
    assert 10 not in surface.loss


def test_trap_04_the_coordinate_is_the_displacement():
    """A label of 0.5 for a step of 0.490 is wrong: coordinates multiply the stored direction."""
    surface = plane(
        lambda x, y: x + 0 * y, points=(5, 2), span=((-0.3, 0.9), (-1, 1)), start=(2.0, 0.0),
        directions=[{"x": torch.tensor([2.5])}, UNIT[1]],
    )  # fmt: skip
    np.testing.assert_allclose(surface.loss[:, 0], 2 + 2.5 * surface.coordinates[0], rtol=1e-15)
    assert surface.provenance["directions"][0]["norm"] == 2.5
    assert surface.axes[0].unit == "1 = the direction itself, ‖d‖ = 2.5"


def test_trap_05_alpha_is_the_first_dimension_from_evaluation_to_file(tmp_path):
    """Square grids hide a swap of axes: 3 x 5 points of f = 10x + y."""
    out = tmp_path / "s.nc"
    options = {"points": (3, 5), "span": ((1, 3), (1, 5))}
    for surface in (plane(lambda x, y: 10 * x + y, **options, out=out), lx.open(out)):
        assert surface.shape == (3, 5)
        data = surface.to_xarray()
        assert data["loss"].dims == ("alpha", "beta")
        for i, j in itertools.product(range(3), range(5)):
            assert surface.loss[i, j] == 10 * (i + 1) + (j + 1)
            assert float(data["loss"].sel(alpha=i + 1, beta=j + 1)) == 10 * (i + 1) + (j + 1)


class Recorder:
    """A list that is not part of what a loss is."""

    def __init__(self):
        self.items = []


def test_trap_06_no_loss_counts_as_not_computed(tmp_path):
    """Losses of zero and below were computed again for ever."""
    record, kept = Recorder(), []

    def f(x, y):
        record.items.append((float(x), float(y)))
        odd = [x * 0 - 1, x * 0, x * math.nan, x.exp() * math.inf, x]
        return odd[round(3 * float(x) + 7 * float(y)) % 5]

    def run(stop_after=None):
        def callback(progress):
            kept.append(progress.done)
            if stop_after is not None and progress.done >= stop_after:
                raise StopIteration

        return plane(f, points=(6, 7), out=tmp_path / "s.nc", callback=callback)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LandscapexWarning)
        with pytest.raises(StopIteration):
            run(stop_after=15)
        assert len(record.items) == 1 + kept[-1] < 42
        finished = run()
    assert len(record.items) == 1 + 42 + 1
    assert finished.complete
    assert (finished.loss <= 0).any()
    assert np.isnan(finished.loss).any()


def test_trap_07_fault_11_what_was_computed_is_stored(tmp_path):
    """NaN stays NaN and infinity infinity; they are counted, and nothing is replaced."""

    def f(x, y):
        return torch.where(x > 0.5, x * math.inf, torch.where(y > 0.5, y * math.nan, x))

    with pytest.warns(LandscapexWarning, match="7 of 15 losses are NaN or infinite; kept as they"):
        surface = plane(f, points=(3, 5), out=tmp_path / "s.nc")
    assert surface.nonfinite == 7
    assert np.isposinf(surface.loss[2]).all()
    assert np.isnan(surface.loss[:2, 4]).all()
    assert surface.loss[:2, :4].tolist() == [[-1.0] * 4, [0.0] * 4]
    assert surface.evaluated.all()
    assert raised(lx.open(tmp_path / "s.nc")) == raised(surface)


def test_fault_11_losses_that_are_all_nan_are_not_taken_for_equal():
    with pytest.warns(LandscapexWarning) as caught:
        plane(lambda x, y: (x + y) * math.nan, points=3)
    assert [str(w.message) for w in caught] == [
        "9 of 9 losses are NaN or infinite; kept as they are."
    ]


# --- Known answers -------------------------------------------------------------------------------


def rescaled(factors):
    """A bias-free ReLU network 10-32-3 whose hidden units are scaled by s and 1/s."""
    model = models.mlp(10, 32, 3, bias=False).double()
    s = torch.as_tensor(factors, dtype=torch.float64) * torch.ones(32)
    with torch.no_grad():
        model[0].weight.mul_(s[:, None])
        model[2].weight.div_(s)
    return model


def invariance(factors, normalize):
    """Largest difference of two surfaces over [-1, 1] with the same draw, and the range."""
    x, y = torch.randn(50, 10).double(), torch.arange(50) % 3
    a, b = (
        lx.surface(
            rescaled(f), (x, y), "cross_entropy", points=5, normalize=normalize, **QUIET
        ).loss
        for f in (1.0, factors)
    )
    return np.abs(a - b).max(), np.ptp(a)


def test_filter_normalised_surfaces_do_not_see_a_scale_that_the_network_does_not_see():
    """W1 * 10 and W2 / 10 give the same function: < 1e-12 with, > 1 without normalisation."""
    assert invariance(10.0, "filter")[0] < 1e-12
    assert invariance(10.0, None)[0] > 1


def test_c2_factors_per_neuron_are_seen():
    difference, extent = invariance(np.linspace(0.2, 5, 32), "filter")
    assert difference > 0.1 * extent
    assert invariance(3.0, "filter")[0] < 1e-12


def test_trap_10_zero_filters_are_counted_in_the_result():
    model = models.mlp(3, 4, 1)
    with torch.no_grad():
        model[0].weight[1:3] = 0
    surface = lx.surface(model, BATCH, mse, points=3, **QUIET)
    assert np.isfinite(surface.loss).all()
    assert [d["zero_filters"] for d in surface.provenance["directions"]] == [2, 2]
    assert any("zero in 2 filters" in note for note in surface.provenance["notes"])


def test_trap_12_the_cosine_of_the_axes_is_reported():
    d = axes.random(models.mlp(3, 4, 1), ignore="copy")
    surface = lx.surface(models.mlp(3, 4, 1), BATCH, mse, directions=d, points=2, **QUIET)
    np.testing.assert_allclose(surface.provenance["cosines"], d.cosine())


def test_trap_16_variances_never_become_negative():
    """Buffers as directions gave 120 NaN of 121 points."""
    case = models.case("conv")
    surface = lx.surface(
        case.model, case.batches, case.loss, points=(5, 3), span=3.0, ignore="copy", **QUIET
    )
    assert np.isfinite(surface.loss).all()


def test_trap_18_the_surface_of_ragged_batches_is_that_of_one_batch():
    x, y = torch.randn(10, 3).double(), torch.arange(10) % 2
    whole, ragged = (
        lx.surface(
            models.mlp(3, 4, 2).double(),
            list(zip(x.split(n), y.split(n), strict=True)),
            "cross_entropy",
            points=3,
            **QUIET,
        )
        for n in (10, 8)
    )
    np.testing.assert_allclose(ragged.loss, whole.loss, rtol=1e-12)


def test_trap_22_tied_weights_move_once():
    model = models.TiedLMHeadModel()
    batch = {"input_ids": torch.arange(12).view(2, 6), "labels": torch.arange(12).view(2, 6)}
    d = {"embedding.weight": torch.ones(20, 12)}
    line = lx.line(model, [batch], None, directions=[d], points=3, **QUIET)
    with torch.no_grad():
        model.head.weight.add_(1.0)
        expected = model(**batch).loss.item()
    assert line.loss[2] == pytest.approx(expected, rel=1e-6)


def test_trap_25_steps_below_the_resolution_of_the_parameters_warn():
    """In bfloat16 78 % of the weights do not move at a = 1e-3."""
    model = models.mlp(3, 40, 1).bfloat16()
    batch = [(X.bfloat16(), torch.zeros(4, 1).bfloat16())]
    with pytest.warns(LandscapexWarning, match=r"\d\d% of the parameters do not move at all"):
        lx.line(model, batch, mse, span=1e-3, points=3, **QUIET)
    with warnings.catch_warnings():
        warnings.simplefilter("error", LandscapexWarning)
        lx.line(model, batch, mse, span=1.0, points=3, **QUIET)
        lx.line(models.mlp(3, 40, 1), BATCH, mse, span=1e-3, points=3, **QUIET)


def test_trap_25_half_precision_points_are_formed_in_float32():
    model = models.mlp(3, 40, 1).bfloat16()
    batch = (X.bfloat16(), torch.zeros(4, 1).bfloat16())
    line = lx.line(model, [batch], mse, points=5, seed=1, **QUIET)
    d = axes.random(model, 1, seed=1)
    assert d.vectors.dtype == torch.float32
    expected = reference.surface(
        model, [d[0]], line.coordinates, lambda m: mse(m, batch).double().item()
    )
    np.testing.assert_array_equal(line.loss, expected)


def test_a_loss_that_does_not_see_the_model_warns():
    other = models.mlp(3, 4, 1)
    with pytest.warns(LandscapexWarning, match="the loss is the same at every point: it does not"):
        lx.surface(models.mlp(3, 4, 1), BATCH, lambda m, b: mse(other, b), points=3, **QUIET)


# --- Properties ----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 1000), st.integers(2, 5), st.integers(2, 5), st.floats(0.1, 3))
def test_symmetry_of_the_plane(seed, n, m, span):
    """f(a, b; d1, d2) = f(-a, b; -d1, d2) = f(b, a; d2, d1), bit by bit."""
    model = models.mlp(3, 4, 1)
    d = axes.random(model, seed=seed).vectors
    options = {**QUIET, "span": span}
    f = lx.surface(model, BATCH, mse, directions=d, points=(n, m), **options).loss
    flipped = lx.surface(model, BATCH, mse, directions=d * torch.tensor([[-1], [1]]),
                         points=(n, m), **options)  # fmt: skip
    assert np.array_equal(flipped.loss, f[::-1])
    swapped = lx.surface(model, BATCH, mse, directions=d.flip(0), points=(m, n), **options)
    np.testing.assert_allclose(swapped.loss, f.T, rtol=1e-6)


# --- Options --------------------------------------------------------------------------------------


def test_metrics_and_further_data_become_columns(tmp_path):
    model, x, y = models.mlp(3, 4, 2), torch.randn(9, 3), torch.arange(9) % 2
    objective = lx.Objective(
        model,
        (x[:6], y[:6]),
        "cross_entropy",
        metrics="accuracy",
        datasets={"test": (x[6:], y[6:])},
    )
    surface = lx.surface(objective, points=(3, 4), out=tmp_path / "s.nc", **QUIET)
    assert surface.columns == ("loss", "accuracy", "test_loss", "test_accuracy")
    d = axes.random(model)
    for column, part, f in [
        ("loss", slice(6), lambda o, y: F.cross_entropy(o, y).item()),
        ("test_accuracy", slice(6, 9), lambda o, y: (o.argmax(1) == y).double().mean().item()),
    ]:
        expected = reference.surface(
            model, [d[0], d[1]], surface.coordinates,
            lambda m, part=part, f=f: f(m(x[part]).detach(), y[part]),
        )  # fmt: skip
        np.testing.assert_allclose(lx.open(tmp_path / "s.nc")[column], expected, rtol=1e-6)


def test_weight_decay_is_part_of_every_point():
    objective = lx.Objective(Point(1.0, 2.0), None, lambda m, b: m.x[0] * 0, weight_decay=2.0)
    surface = lx.surface(objective, directions=UNIT, points=3, **QUIET)
    expected = [[(1 + a) ** 2 + (2 + b) ** 2 for b in (-1, 0, 1)] for a in (-1, 0, 1)]
    np.testing.assert_allclose(surface.loss, expected)


def test_only_the_chosen_parameters_move():
    model = models.mlp(3, 4, 1)
    objective = lx.Objective(model, BATCH, mse, params="2.*")
    surface = lx.line(objective, points=3, **QUIET)
    d = axes.random(objective, 1)
    assert [name for name, _ in d.layout] == ["2.weight", "2.bias"]
    expected = reference.surface(
        model, [d[0]], surface.coordinates, lambda m: mse(m, BATCH[0]).item()
    )
    np.testing.assert_allclose(surface.loss, expected, rtol=1e-6)
    assert torch.equal(d[0]["2.weight"], axes.random(model, 1)[0]["2.weight"])


@pytest.mark.parametrize("bn", ["eval", "recompute", "batch"])
def test_batch_norm_at_every_point(bn):
    """Recomputed statistics belong to the point: each point equals the loss of a model there."""
    case = models.case("conv")
    objective = lx.Objective(case.model, case.batches, case.loss, bn=bn)
    surface = lx.surface(objective, points=(3, 2), **QUIET)
    d, center = axes.random(case.model).vectors.double(), ParameterSpace(case.model).gather()
    for i, a in enumerate(surface.coordinates[0]):
        for j, b in enumerate(surface.coordinates[1]):
            point = (center.double() + a * d[0] + b * d[1]).float()
            assert surface.loss[i, j] == objective.loss(point)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: m], ids=["wrapped", "plain"])
def test_the_centre_may_be_given(wrap):
    model, other = models.mlp(3, 4, 1), models.mlp(3, 4, 1, seed=1)
    expected = lx.surface(other, BATCH, mse, points=3, **QUIET)
    before = reference.everything(model)
    for center in (other.state_dict(), ParameterSpace(other).gather(), other):
        found = lx.surface(wrap(model), BATCH, mse, points=3, center=center, **QUIET)
        assert raised(found) == raised(expected)
    assert reference.changes(before, reference.everything(model)) == []


def test_between_two_models():
    a, b = models.mlp(3, 4, 1), models.mlp(3, 4, 1, seed=1)
    line = lx.line(a, BATCH, mse, directions=axes.between(a, b), points=5, **QUIET)
    assert line.coordinates[0].tolist() == [-0.5, 0.0, 0.5, 1.0, 1.5]
    assert line.loss[1] == lx.Objective(a, BATCH, mse).loss()
    assert line.loss[3] == pytest.approx(lx.Objective(b, BATCH, mse).loss(), rel=1e-5)
    assert line.provenance["directions"][0]["source"] == "between"
    wide = lx.line(a, BATCH, mse, directions=axes.between(a, b), points=3, span=(0, 1), **QUIET)
    assert wide.loss[0] == line.loss[1]


def test_saved_directions_give_the_same_bits(tmp_path):
    model = models.mlp(3, 4, 1)
    axes.random(model, seed=8).save(tmp_path / "d.safetensors")
    loaded = axes.load(tmp_path / "d.safetensors")
    again = lx.surface(model, BATCH, mse, directions=loaded, points=4, **QUIET)
    assert raised(again) == raised(lx.surface(model, BATCH, mse, seed=8, points=4, **QUIET))


def test_given_directions_are_normalised_on_request_only():
    model = models.mlp(3, 4, 1)
    raw = axes.random(model, normalize=None, ignore=None)
    plain = lx.surface(model, BATCH, mse, directions=raw, points=3, **QUIET)
    assert plain.provenance["directions"][0]["norm"] == pytest.approx(raw.norm()[0].item())
    scaled = lx.surface(model, BATCH, mse, directions=raw, points=3, normalize="filter",
                        ignore="bias_bn", **QUIET)  # fmt: skip
    assert raised(scaled) == raised(lx.surface(model, BATCH, mse, points=3, **QUIET))
