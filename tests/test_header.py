"""What a run says about itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from storage import (
    HEADER,
    bits,
    make_header,
)

from landscapex.errors import (
    ArgumentError,
)
from landscapex.storage.header import AxisInfo, RunHeader, differences

AXES = HEADER.axes


# Headers


def test_a_header_survives_json_with_the_bits_of_its_coordinates():
    axis = AxisInfo("alpha", (-0.1, 0.1 + 0.2, 5e-324), "ü", "1 = ‖w‖")
    provenance = {"center": {"loss": np.float64(0.1)}, "t": (1, np.int64(2)), "a": np.zeros(2)}
    header = RunHeader("line", (axis,), ("loss",), {"a": "b"}, {"x": None}, provenance)
    again = RunHeader.from_json(header.to_json())
    assert again == header
    assert bits(np.array(again.axes[0].values)) == bits(np.array(axis.values))
    assert again.provenance == {"center": {"loss": 0.1}, "t": [1, 2], "a": [0.0, 0.0]}
    assert "\n" not in header.to_json()


def test_a_header_does_not_share_the_dicts_it_was_made_of():
    notes = ["first"]
    header = make_header(3, provenance={"notes": notes})
    notes.append("second")
    assert header.provenance == {"notes": ["first"]}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kind": "volume"}, "`kind` must be 'surface' for 2 axes, got 'volume'"),
        ({"axes": ()}, r"`axes` must be the first of \('alpha', 'beta', 'gamma'\), got \(\)"),
        ({"axes": AXES[::-1]}, r"`axes` must be the first of .* got \('beta', 'alpha'\)"),
        ({"columns": ()}, r"`columns` must begin with 'loss', got \(\)"),
        ({"columns": ("accuracy", "loss")}, "`columns` must begin with 'loss', got"),
        ({"columns": ("loss", "a", "a")}, "`columns` must differ from each other, got"),
        ({"columns": ("loss", "beta")}, "`columns` must not use the name 'beta': it is taken"),
        ({"columns": ("loss", "evaluated")}, "must not use the name 'evaluated'"),
        ({"columns": ("loss", "top/5")}, "hold no slash or control character, got 'top/5'"),
        ({"columns": ("loss", "")}, "`columns` must be names that begin with a letter"),
        ({"columns": ("loss", ".")}, "`columns` must be names that begin with a letter"),
        ({"columns": ("loss", "x ")}, "`columns` must be names that begin with a letter"),
        ({"recorded": {"x": object()}}, "`recorded` must be made of JSON values: object is not"),
        ({"provenance": [1]}, "`provenance` must be a mapping, got list"),
    ],
)
def test_a_header_that_does_not_fit_together_is_refused(changed, message):
    with pytest.raises(ArgumentError, match=message):
        make_header(3, 5, **changed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("delta", (0.0,)), "`name` must be one of .* got 'delta'"),
        (("alpha", ()), "`values` of axis alpha must be one or more finite numbers"),
        (("alpha", (0.0, np.nan)), "`values` of axis alpha must be one or more finite numbers"),
    ],
)
def test_an_axis_that_is_none_is_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        AxisInfo(*arguments)


@pytest.mark.parametrize(
    "text", ["", "[]", "3", '{"axes": 3}', '{"axes": [{}]}', "{}", "[" * 99999]
)
def test_text_that_is_no_header_is_refused(text):
    with pytest.raises(ArgumentError, match="`text` must be the JSON of a header"):
        RunHeader.from_json(text)


@pytest.mark.parametrize(
    ("value", "shown"),
    [("a" * 40, "a" * 40), ("b" * 41, "b" * 16 + "..."), (None, "nothing"), (3, "3")],
)
def test_differences_show_short_values_whole(value, shown):
    other = make_header(3, 5, fingerprint={**HEADER.fingerprint, "data": value})
    assert differences(HEADER, other) == [f"data: 99ab00 -> {shown}"]


def test_points_that_differ_within_equal_ends_are_named():
    first, second = HEADER.axes
    moved = (*second.values[:2], 0.125, *second.values[3:])
    other = make_header(3, 5, axes=(first, AxisInfo("beta", moved, second.label, second.unit)))
    (line,) = differences(HEADER, other)
    assert line.endswith("0.0 at point 2 -> 0.125 at point 2")


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (2.0, 2.0 + 1.9e-6, True),  # another order of additions
        (2.0, 2.0 + 2.1e-6, False),
        (-2.0, -2.0 - 1.9e-6, True),
        (-2.0 - 2.1e-6, -2.0, False),
        (float("nan"), float("nan"), True),
        (float("nan"), 2.0, False),
        (2.0, None, True),  # nothing is known of it
        (0.0, 0.0, True),
    ],
)
def test_the_loss_at_the_centre_may_differ_by_rounding(a, b, same):
    stored, mine = (make_header(3, provenance={"center": {"loss": x}}) for x in (a, b))
    expected = [] if same else [f"loss at the centre: {a} -> {b}"]
    assert differences(stored, mine) == expected
    assert differences(mine, stored) == ([] if same else [f"loss at the centre: {b} -> {a}"])
    elsewhere = replace(mine, recorded={"threads": 3})
    assert differences(stored, elsewhere) == []  # what other threads round differently
