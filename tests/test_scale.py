"""Scales: which one is chosen, where its levels lie, and what is written beside them."""

from __future__ import annotations

import warnings

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from landscapex._pictures.contours import colors_for, line_colors
from landscapex._pictures.scale import choose, distinct_texts, round_values

A, B = np.meshgrid(np.linspace(-1, 1, 13), np.linspace(-1, 1, 11), indexing="ij")
BOWL = 0.3 + A**2 + 2 * B**2 + 0.5 * A * B


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.linspace(1, 29, 50), "linear"),
        (np.geomspace(1, 31, 50), "log"),
        (np.geomspace(1e-9, 1e10, 50), "log"),
        (np.geomspace(5e-324, 1e308, 50), "log"),
        (-np.geomspace(1, 29, 50), "linear"),
        (-np.geomspace(1, 1e6, 50), "symlog"),
        (np.linspace(-1, 2, 50), "linear"),
        (np.linspace(-1, 1, 50) ** 9, "symlog"),
        (np.append(np.geomspace(1e-6, 1, 50), 0), "symlog"),
        (BOWL - 0.3, "linear"),
        ([0.0, 0.1, 0.5, 1.0], "linear"),
        ([2.0, 2.0], "linear"),
        ([0.0, 0.0], "linear"),
        ([np.nan, np.inf, 3.0], "linear"),
        ([np.nan, np.inf], "linear"),
        ([], "linear"),
    ],
)
def test_the_scale_follows_the_range(values, kind):
    assert choose([values]).kind == kind


@pytest.mark.parametrize("kind", ["linear", "log", "symlog"])
def test_a_scale_is_monotone_and_invertible(kind):
    values = np.array([1e-7, 3e-3, 0.5, 1, 40, 2e5])
    if kind == "symlog":
        values = np.concatenate([-values[::-1], [0], values])
    scale = choose([values], kind)
    places = scale.forward(values)
    assert (np.diff(places) > 0).all()
    np.testing.assert_allclose(scale.inverse(places) + scale.offset, values, rtol=1e-12)
    assert np.isnan(scale.forward([np.nan, np.inf, -np.inf])).all()


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.02, 3.0, ["0.05", "0.1", "0.2", "0.5", "1", "2"]),
        (1e-9, 1e10, ["1e\N{MINUS SIGN}6", "0.001", "1", "1000", "1e6", "1e9"]),
        (1.0, 9.0, ["2", "3", "4", "5", "6", "7", "8"]),
    ],
)
def test_levels_are_round_numbers_inside_the_range(low, high, expected):
    scale = choose([np.geomspace(low, high, 9)])
    assert scale.texts(scale.levels()) == expected


def test_symmetric_levels_include_zero():
    scale = choose([np.linspace(-1, 1, 101) ** 9 * 1e6])
    values = scale.inverse(scale.levels())
    np.testing.assert_allclose(values, -values[::-1], atol=1e-12)
    assert 0 in values


def test_a_tiny_range_on_a_large_value_is_labelled_by_differences():
    scale = choose([2.302585 + 1e-9 * BOWL])
    assert scale.offset == pytest.approx(2.302585, abs=1e-8)
    assert scale.label("loss") == f"loss \N{MINUS SIGN} {scale.offset!r} (linear scale)"
    texts = scale.texts(scale.levels())
    assert len(set(texts)) == len(texts) > 4
    assert max(map(len, texts)) < 8


def test_texts_have_digits_enough_and_no_more():
    assert distinct_texts([0.1, 0.2]) == ["0.1", "0.2"]
    assert distinct_texts([1000.25, 1000.5]) == ["1000.25", "1000.5"]
    assert distinct_texts([-1e-10, 2e10]) == ["\N{MINUS SIGN}1e\N{MINUS SIGN}10", "2e10"]
    assert distinct_texts([2.302585]) == ["2.303"]


def test_thousands_are_written_out():
    assert distinct_texts([250, 1000, 1250]) == ["250", "1000", "1250"]
    assert distinct_texts([1000, 1e4]) == ["1000", "1e4"]
    assert distinct_texts([1000.4, 3000]) == ["1000", "3000"]


def test_round_values_are_the_nearest_doubles():
    assert round_values(2e-5, 6e-5, 9).tolist() == [2e-5, 3e-5, 4e-5, 5e-5]


def test_both_signs_get_a_map_that_is_white_at_zero():
    cmap, norm = colors_for(choose([BOWL - 1]))
    assert (cmap, norm(0.0)) == ("RdBu_r", 0.5)
    below = colors_for(choose([1 - BOWL]))[1]
    assert (below.vmin, below.vmax) == (1 - BOWL.max(), BOWL.max() - 1)
    assert colors_for(choose([BOWL]))[0] == "viridis"
    assert colors_for(choose([-BOWL]))[0] == "viridis"


def test_level_lines_stand_out_from_the_colours_beside_them():
    for values in (BOWL, -BOWL, BOWL - 1, np.exp(9 * BOWL)):
        scale = choose([values])
        cmap, norm = colors_for(scale)
        places = np.linspace(*scale.limits(), 21)
        for place, color in zip(places, line_colors(scale, places), strict=True):
            bright = sum(np.array(to_rgb(mpl.colormaps[cmap](norm(place)))) * [0.21, 0.72, 0.07])
            assert abs(bright - (color == "white")) > 0.35
