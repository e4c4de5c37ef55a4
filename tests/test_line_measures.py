"""What the curve of a line says: barriers, defects, and a picture of a real one."""

from __future__ import annotations

import math

import models
import numpy as np
import pytest
from interpolation_cases import QUIET

import landscapex as lx
from landscapex._pictures.interpolation import interpolation
from landscapex.errors import ArgumentError
from landscapex.grids import line_measures
from landscapex.storage.header import AxisInfo, RunHeader
from landscapex.studies.interpolation import interpolate


def curve(values, alpha=None, evaluated=None, column="loss"):
    values = np.asarray(values, dtype=np.float64)
    alpha = np.linspace(0, 1, values.size) if alpha is None else alpha
    axis = AxisInfo("alpha", tuple(alpha), "a line", "1 = there")
    columns = ("loss",) if column == "loss" else ("loss", column)
    done = np.ones(values.size, bool) if evaluated is None else np.array(evaluated)
    rows = np.stack([values] * len(columns), axis=1)
    return lx.Surface.from_run(RunHeader("line", (axis,), columns, {}), done, rows)


def slow_measures(a, j):
    """The definitions, literally."""
    n, pairs = len(j), range(len(j))
    barrier = max(j[k] - ((1 - a[k]) * j[0] + a[k] * j[-1]) for k in pairs)
    violation = sum(max(0.0, j[k + 1] - j[k]) for k in range(n - 1))
    bump = max((max(0.0, j[k] - j[i]) for k in pairs for i in range(k)), default=0.0)
    over = [0.0]
    for k in range(1, n - 1):
        t = (a[k] - a[k - 1]) / (a[k + 1] - a[k - 1])
        over.append(j[k] - ((1 - t) * j[k - 1] + t * j[k + 1]))
    return barrier, violation, max(over) / abs(j[0] - j[-1]), bump


@pytest.mark.parametrize("seed", range(5))
def test_measures_against_their_definitions(seed):
    rng = np.random.default_rng(seed)
    a = np.concatenate([[0.0], np.sort(rng.uniform(0.01, 0.99, 8)), [1.0]])
    j = rng.normal(size=10)
    line = curve(j, alpha=a)
    found = (line.barrier, line.monotone_violation, line.convexity_defect, line.bump)
    np.testing.assert_allclose(found, slow_measures(a, j), rtol=1e-12)
    assert not line.monotone


def test_only_the_way_between_the_models_counts():
    beyond = curve([9.0, 3.0, 2.0, 1.0, 8.0], alpha=[-0.5, 0.0, 0.5, 1.0, 1.5])
    assert beyond.monotone
    assert beyond.barrier == 0
    assert beyond.bump == 0


def test_a_convex_curve_has_no_defect_and_no_barrier():
    line = curve((np.linspace(0, 1, 11) - 0.8) ** 2)
    assert line.barrier == 0
    assert line.convexity_defect == 0
    assert line.bump == pytest.approx(0.04)
    assert not line.monotone


@pytest.mark.parametrize(("rise", "expected"), [(5e-7, True), (5e-6, False)])
def test_monotone_allows_for_the_noise_of_a_float32_mean(rise, expected):
    assert curve([1.0, 0.5, 0.5 + rise, 0.4]).monotone is expected


def test_a_slow_creep_upwards_is_not_monotone():
    """Every step is below the noise, the climb is not."""
    assert not curve(1 + np.linspace(0, 1e-5, 101)).monotone


@pytest.mark.parametrize(
    ("values", "evaluated"),
    [([1, np.nan, 0], [True] * 3), ([1, 2, 0], [True, False, True]), ([np.nan, 1, 2], [True] * 3)],
)
def test_what_is_not_known_is_not_hidden(values, evaluated):
    line = curve(values, evaluated=evaluated)
    for value in (line.barrier, line.monotone_violation, line.convexity_defect, line.bump):
        assert math.isnan(value)
    assert line.monotone is False


def test_a_nan_beyond_the_models_does_not_matter():
    assert curve([2, 1, np.nan], alpha=[0, 1, 2]).barrier == 0


def test_infinite_losses_make_infinite_barriers():
    line = curve([1, np.inf, 0.5])
    assert line.barrier == line.bump == line.monotone_violation == np.inf
    assert not line.monotone
    assert math.isnan(curve([np.inf, 1, 0]).barrier)
    assert curve([np.inf, 1, 0.5]).monotone


def test_defect_of_equal_ends_is_infinite_unless_convex():
    assert curve([1, 2, 1]).convexity_defect == np.inf
    assert curve([1, 0, 1]).convexity_defect == 0


def test_measures_of_another_column():
    line = curve([0, 3, 0], column="error")
    assert line.measures("error").barrier == 3
    with pytest.raises(ArgumentError, match="`column` must be one of"):
        line.measures("accuracy")


@pytest.mark.parametrize("name", ["barrier", "monotone", "monotone_violation", "bump"])
def test_measures_are_refused_for_planes(name):
    case = models.case("mlp")
    plane = lx.surface(case.model, case.batches, case.loss, points=2, **QUIET)
    with pytest.raises(ArgumentError, match="must be asked of a line, got a surface"):
        getattr(plane, name)
    with pytest.raises(ArgumentError, match="must be asked of a line, got a surface"):
        _ = plane.convexity_defect


def test_measures_need_both_models_among_the_points():
    with pytest.raises(ArgumentError, match=r"coordinates 0 and 1 among.* from 0 to 1\.2"):
        _ = curve([1, 2, 3], alpha=[0, 0.6, 1.2]).barrier
    inexact = curve([1, 2, 3], alpha=[0, 0.5, np.nextafter(1.0, 2)])
    assert inexact.barrier == 0
    assert isinstance(inexact.measures(), line_measures.LineMeasures)


# --- A real network, and its picture -------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    model, data, loss = lx.examples.digits()
    start = lx.examples.train_digits(epochs=0)
    return interpolate(
        start, model, data, loss, points=41, datasets={"test": lx.examples.digits_test()}, **QUIET
    )


def test_training_meets_no_obstacle_on_the_straight_line(trained):
    """Goodfellow, Vinyals, Saxe 2015: from the initialisation to the solution the loss falls."""
    assert trained.monotone
    assert trained.loss[0] > 2
    assert trained.loss[-1] < 0.05
    assert trained.measures("test_loss").bump < 1e-3 * trained["test_loss"][0]


def test_the_picture_shows_the_way_and_both_ends(trained):
    figure = interpolation(trained, column=["loss", "test_loss"], title="there")
    whole, start, end = figure.axes
    texts = [t.get_text() for t in whole.get_legend().get_texts()]
    assert texts[:2] == ["loss", "test loss"]
    assert texts[2].startswith("chord; barrier ")
    assert (start.get_xlim(), end.get_xlim()) == ((0, 0.1), (0.9, 1))
    low, high = end.get_ylim()
    near = np.stack([trained["loss"], trained["test_loss"]])[:, trained.coordinates[0] >= 0.9]
    assert low < near.min() < near.max() < high < 1
    (loss_curve, *_) = [x for x in whole.lines if len(x.get_xdata()) == 41]
    assert np.array_equal(loss_curve.get_ydata(), trained.loss)


def test_marks_outside_a_close_up_are_not_drawn_beside_it():
    """The grid minimum, at 0.5, is in neither of them."""
    figure = interpolation(curve([4.0, 3.0, 2.0, 1.0, 2.0, 3.0, 4.0]), zoom=(0.4, 0.6))
    close = figure.axes[1:]
    assert len(close) == 2
    assert all(line.get_clip_on() for ax in close for line in ax.lines)


@pytest.mark.parametrize(
    ("zoom", "ends"),
    [
        ((0.1, 0.9), []),
        ((0.25, 0.75), []),
        ((0.5, 0.9), ["0 to 0.5"]),
        ((0.1, 0.5), ["0.5 to 1"]),
        ((0.5, 0.75), ["0 to 0.5"]),
    ],
)
def test_an_end_of_fewer_than_three_points_has_no_close_up(zoom, ends):
    whole, *close = interpolation(curve([3.0, 2.0, 1.0, 2.5, 3.0]), zoom=zoom).axes
    alpha = "\N{GREEK SMALL LETTER ALPHA}"
    assert [ax.get_xlabel() for ax in close] == [f"{alpha} from {end}" for end in ends]
    for ax in close:  # as wide as the whole
        assert ax.get_subplotspec().colspan == whole.get_subplotspec().colspan


def test_a_close_up_is_drawn_if_one_of_the_lines_has_the_points():
    lines = curve([1.0, 2.0, 3.0]), curve(np.linspace(1, 3, 41))
    assert len(interpolation(*lines).axes) == 3


def test_the_picture_of_several_lines_names_them(trained):
    figure = interpolation(trained, trained, labels=["one", "two"], zoom=None)
    assert len(figure.axes) == 1
    texts = [t.get_text() for t in figure.axes[0].get_legend().get_texts()]
    assert texts[:2] == ["one", "two"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"zoom": (0.9, 0.1)}, "`zoom` must be two increasing numbers or None"),
        ({"labels": ["a", "b"]}, "`labels` must be one name per result"),
        ({"column": "accuracy"}, "`column` must be one of loss"),
        ({"scale": "cubic"}, "`scale` must be one of"),
    ],
)
def test_pictures_that_cannot_be_drawn_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        interpolation(curve([1, 2, 3]), **options)
