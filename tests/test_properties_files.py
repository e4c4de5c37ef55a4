"""What holds for all results in files and tables, and for all ways to cut a run."""

from __future__ import annotations

import csv

import numpy as np
from export_cases import make
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from storage import bits

from landscapex import export
from landscapex.grids.grid import Grid, make_grid
from landscapex.grids.options import parse_shard
from landscapex.storage.parts import owned

ANY = st.floats(allow_nan=True, allow_infinity=True)
COUNTED = st.floats(min_value=0) | st.just(np.nan)  # -1 is what that format has for missing
SHAPES = st.lists(st.integers(2, 4), min_size=1, max_size=3).map(tuple)


@st.composite
def results(draw, elements, columns, most=3):
    """A line, plane or volume of drawn values, some of them missing."""
    shape = draw(st.lists(st.integers(2, 4), min_size=1, max_size=most).map(tuple))
    values = {c: draw(arrays(np.float64, shape, elements=elements)) for c in columns}
    done = draw(arrays(bool, shape))
    places = [np.linspace(-1, 1 / 3, n) for n in shape]
    return make(values, *places, done=done)


@settings(deadline=None, max_examples=25)
@given(results(ANY, ["loss", "accuracy"]), st.booleans())
def test_a_table_holds_the_bits_of_every_number(tmp_path_factory, surface, comments):
    path = tmp_path_factory.mktemp("csv") / "s.csv"
    surface.to_csv(path, comments=comments)
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    rows = list(csv.DictReader(lines))
    names = [axis.name for axis in surface.axes]
    grid = Grid(tuple(surface.coordinates))
    places = np.array([[float(row[n]) for n in names] for row in rows])
    np.testing.assert_array_equal(places, grid.points(0, grid.size))
    for column in surface.columns:
        read = np.array([float(row[column]) for row in rows])
        np.testing.assert_array_equal(read, surface[column].ravel())
        signs = np.signbit(read) == np.signbit(surface[column].ravel())
        assert (signs | np.isnan(read)).all()
    assert [row["evaluated"] == "True" for row in rows] == surface.evaluated.ravel().tolist()


@settings(deadline=None, max_examples=25)
@given(results(COUNTED, ["loss", "error"], most=2))
def test_a_file_of_loss_landscape_gives_the_result_back(tmp_path_factory, surface):
    path = surface.to_h5(tmp_path_factory.mktemp("h5") / "s.h5")
    again = export.read_h5(path)
    assert again.columns == surface.columns
    assert again.evaluated.tolist() == surface.evaluated.tolist()
    for mine, theirs in zip(surface.coordinates, again.coordinates, strict=True):
        np.testing.assert_array_equal(theirs, mine)
    for column in surface.columns:
        np.testing.assert_array_equal(again[column], surface[column])


@given(st.integers(0, 500), st.integers(1, 40))
def test_shards_share_all_points_and_none_twice(num_points, n):
    points = [k for i in range(n) for piece in owned(num_points, (i, n)) for k in range(*piece)]
    assert sorted(points) == list(range(num_points))
    assert owned(num_points, None) == owned(num_points, (0, 1))


@given(st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n - 1), st.just(n))))
def test_a_shard_is_read_as_it_is_written(shard):
    i, n = shard
    assert parse_shard(f"{i}/{n}") == parse_shard(shard) == parse_shard([i, n]) == shard


@given(SHAPES, st.integers(1, 70), st.data())
def test_chunks_of_a_grid_hold_every_point_once_in_order(shape, size, data):
    spans = [
        data.draw(st.tuples(st.floats(-9, -0.01), st.floats(0.01, 9)), label="span") for _ in shape
    ]
    grid = make_grid(len(shape), spans, shape)
    pieces = [grid.points(start, stop) for start, stop in grid.chunks(size)]
    assert all(0 < len(p) <= size for p in pieces)
    every = np.stack([m.ravel() for m in np.meshgrid(*grid.axes, indexing="ij")], axis=1)
    assert bits(np.concatenate(pieces)) == bits(every)
