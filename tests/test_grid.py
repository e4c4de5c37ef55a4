"""Coordinates: ends, symmetry, order of the points, and every refusal."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from landscapex.errors import ArgumentTypeError, GridError
from landscapex.grids.grid import Grid, make_grid


def test_coordinates_are_evenly_spaced_with_exact_ends():
    (axis,) = make_grid(1, (-0.3, 1.7), 21).axes
    assert axis.dtype == np.float64
    assert (axis[0], axis[-1]) == (-0.3, 1.7)
    np.testing.assert_allclose(axis, np.linspace(-0.3, 1.7, 21), rtol=0, atol=1e-15)


@pytest.mark.parametrize("span", [1.0, 0.1, 1 / 3, 1e-3, 7.0, np.float32(0.3), 2])
@pytest.mark.parametrize("points", [3, 5, 21, 51, 101])
def test_trap_03_the_centre_is_a_node_of_an_odd_symmetric_grid(span, points):
    """`range(-r, r)` and `steps / 2` leave the centre between two nodes."""
    grid = make_grid(2, span, points)
    for axis in grid.axes:
        assert axis[points // 2] == 0.0
        np.testing.assert_array_equal(axis, -axis[::-1])
    assert grid.holds_center


@pytest.mark.parametrize(
    ("span", "points", "node"), [((-0.3, 0.9), 5, 1), ((-0.1, 0.2), 4, 1), ((-0.7, 0.1), 9, 7)]
)
def test_trap_03_rounding_does_not_move_the_centre_off_its_node(span, points, node):
    grid = make_grid(1, span, points)
    assert grid.axes[0][node] == 0.0
    assert grid.holds_center


@pytest.mark.parametrize("span", [1e-30, 1e-12, 1.0, 1e12])
def test_trap_03_only_rounding_is_taken_for_the_centre(span):
    """Whatever the size of the span."""
    (axis,) = make_grid(1, span, 1001).axes
    assert (axis == 0).sum() == 1
    np.testing.assert_allclose(axis, np.linspace(-span, span, 1001), rtol=1e-12, atol=0)


def test_trap_03_a_grid_without_the_centre_says_so():
    assert not make_grid(1, 1.0, 4).holds_center
    assert not make_grid(2, 1.0, (5, 4)).holds_center
    assert make_grid(1, (0, 1), 4).holds_center


@given(st.floats(1e-6, 1e6), st.integers(2, 60), st.integers(1, 3))
def test_a_symmetric_span_gives_an_exactly_symmetric_grid(span, points, num_directions):
    grid = make_grid(num_directions, span, points)
    assert grid.shape == (points,) * num_directions
    for axis in grid.axes:
        np.testing.assert_array_equal(axis, -axis[::-1])
        assert (np.diff(axis) > 0).all()


def test_points_are_numbered_in_c_order():
    """The last axis is fastest: a 3 x 5 grid, so that a swap of axes shows."""
    grid = make_grid(2, ((0, 2), (10, 50)), (3, 5))
    expected = [(a, b) for a in (0, 1, 2) for b in (10, 20, 30, 40, 50)]
    np.testing.assert_array_equal(grid.points(0, 15), expected)
    np.testing.assert_array_equal(grid.points(4, 7), expected[4:7])
    assert grid.size == 15


def test_points_of_a_volume_are_numbered_in_c_order():
    grid = Grid((np.arange(2.0), np.arange(3.0), np.arange(4.0)))
    expected = [(a, b, c) for a in range(2) for b in range(3) for c in range(4)]
    np.testing.assert_array_equal(grid.points(0, 24), expected)


@pytest.mark.parametrize("size", [1, 4, 7, 15, 100])
def test_chunks_cover_every_point_once(size):
    grid = make_grid(2, 1.0, (3, 5))
    chunks = list(grid.chunks(size))
    assert [i for start, stop in chunks for i in range(start, stop)] == list(range(15))
    assert all(stop - start <= size for start, stop in chunks)


@pytest.mark.parametrize(
    ("span", "pairs"),
    [
        (None, [(-1, 1), (-1, 1)]),
        (2, [(-2, 2), (-2, 2)]),
        ((0, 1), [(0, 1), (0, 1)]),
        (((0, 1), (2, 5)), [(0, 1), (2, 5)]),
        (np.array([[0.0, 1.0], [2.0, 5.0]]), [(0, 1), (2, 5)]),
        ([[0, 1], 3], [(0, 1), (-3, 3)]),
    ],
    ids=["none", "number", "pair", "pairs", "array", "mixed"],
)
def test_a_span_is_a_number_a_pair_or_one_pair_per_direction(span, pairs):
    grid = make_grid(2, span, 3)
    assert [(a[0], a[-1]) for a in grid.axes] == pairs


def test_spans_that_directions_bring_are_used_unless_one_is_given():
    assert make_grid(1, None, 2, default_spans=[(-0.5, 1.5)]).axes[0].tolist() == [-0.5, 1.5]
    assert make_grid(1, 2.0, 2, default_spans=[(-0.5, 1.5)]).axes[0].tolist() == [-2.0, 2.0]


BAD_GRIDS = [
    ({"span": math.nan}, GridError, "`span` must be finite, got (nan, nan)."),
    ({"span": math.inf}, GridError, "`span` must be finite, got (-inf, inf)."),
    ({"span": (0, math.inf)}, GridError, "`span` must be finite, got (0.0, inf)."),
    ({"span": (1, 1)}, GridError, "`span` must increase from lo to hi, got (1.0, 1.0)."),
    ({"span": (1, -1)}, GridError, "`span` must increase from lo to hi, got (1.0, -1.0)."),
    ({"span": 0}, GridError, "`span` must increase from lo to hi, got (0.0, 0.0)."),
    ({"span": -1.0}, GridError, "`span` must increase from lo to hi, got (1.0, -1.0)."),
    ({"span": (1, np.nextafter(1, 2))}, GridError, "`span` must hold 5 different numbers, got"),
    ({"span": 1.7e308}, GridError, "`span` must hold 5 different numbers, got"),
    ({"span": (1, 2, 3)}, GridError, "`span` must be s, (lo, hi), or one pair per direction (2)"),
    ({"span": ((0, 1, 2), (0, 1))}, GridError, "`span` must hold pairs (lo, hi), got (0, 1, 2)."),
    ({"span": (("a", 1), (0, 1))}, ArgumentTypeError, "`span` must hold numbers, got ('a', 1)."),
    ({"span": "wide"}, GridError, "`span` must hold pairs (lo, hi), got 'wide'."),
    ({"span": True}, GridError, "`span` must hold pairs (lo, hi), got True."),
    ({"span": {1: 2}}, GridError, "`span` must be s, (lo, hi), or one pair per direction (2)"),
    ({"points": 1}, GridError, "`points` must be at least 2, got 1."),
    ({"points": 0}, GridError, "`points` must be at least 2, got 0."),
    ({"points": (5, -3)}, GridError, "`points` must be at least 2, got -3."),
    ({"points": 2.5}, ArgumentTypeError, "`points` must be a whole number, got 2.5."),
    ({"points": math.nan}, ArgumentTypeError, "`points` must be a whole number, got nan."),
    ({"points": math.inf}, ArgumentTypeError, "`points` must be a whole number, got inf."),
    ({"points": True}, ArgumentTypeError, "`points` must be a whole number, got True."),
    ({"points": (5, "7")}, ArgumentTypeError, "`points` must be a whole number, got '7'."),
    ({"points": "51"}, ArgumentTypeError, "`points` must be a whole number"),
    ({"points": None}, ArgumentTypeError, "`points` must be a whole number, got None."),
    ({"points": (3, 4, 5)}, GridError, "`points` must have one number per direction (2), got"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_GRIDS)
def test_fault_12_a_bad_grid_is_refused_with_its_value(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make_grid(2, **{"points": 5, **arguments})


@pytest.mark.parametrize("points", [10**13, (10**6, 10**6)])
def test_fault_12_a_grid_that_no_memory_could_hold_is_refused(points):
    with pytest.raises(GridError, match="`points` must be at most 100,000,000 in all, got 1"):
        make_grid(2 if isinstance(points, tuple) else 1, 1.0, points)


def test_errors_are_also_built_in_errors():
    with pytest.raises(ValueError, match="at least 2"):
        make_grid(1, 1.0, 1)
    with pytest.raises(TypeError, match="whole number"):
        make_grid(1, 1.0, [1.5])
