"""How values become colours and heights: linear, logarithmic or symmetric-logarithmic.

Pictures are drawn on the transformed values, so that level lines are interpolated on the scale a
person sees. The texts beside ticks and level lines are always in the unit of the column itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from landscapex.errors import ArgumentError, ArgumentTypeError

KINDS = ("auto", "linear", "log", "symlog")

_WIDE = 30.0  # a linear scale shows a range of thirty with some room at its bottom; not more
_DECADE_STEPS = (1, 2, 3, 5, 10, 20, 30, 50, 100, 200)
_MANTISSAS = (
    (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0),
    (1.0, 2.0, 3.0, 5.0),
    (1.0, 2.0, 5.0),
    (1.0, 3.0),
)


@dataclass(frozen=True)
class Scale:
    """A monotone map from values to what is drawn, and the range it was chosen for.

    Attributes:
        kind: "linear", "log" or "symlog".
        low: Smallest value that is drawn; NaN where there is none.
        high: Largest value that is drawn; NaN where there is none.
        threshold: "symlog" is linear between -threshold and threshold.
        offset: "linear" draws values minus this: what a tiny range on a large value has in common.
        signed: Whether the sign matters even where all values have the same.
    """

    kind: str
    low: float
    high: float
    threshold: float = 1.0
    offset: float = 0.0
    signed: bool = False

    @property
    def empty(self) -> bool:
        """Whether there is no value to draw."""
        return math.isnan(self.low)

    @property
    def constant(self) -> bool:
        """Whether all values are the same."""
        return self.low == self.high

    @property
    def diverging(self) -> bool:
        """Whether the colour has to say which sign a value has: of both, or where it matters."""
        return self.signed or (self.offset == 0 and self.low < 0 < self.high)

    def drawable(self, values: ArrayLike) -> NDArray[np.bool_]:
        """The values that have a place on this scale: finite, and positive on a log scale."""
        array = np.asarray(values, dtype=np.float64)
        finite = np.isfinite(array)
        return finite & (array > 0) if self.kind == "log" else finite

    def forward(self, values: ArrayLike) -> NDArray[np.float64]:
        """What is drawn for `values`; NaN where nothing can be."""
        array = np.asarray(values, dtype=np.float64)
        good = self.drawable(array)
        if self.kind == "log":
            return np.where(good, np.log10(np.where(good, array, 1.0)), np.nan)
        if self.kind == "symlog":
            ratio = np.where(good, array, 0.0) / self.threshold
            far = np.abs(ratio) > 1
            bent = np.sign(ratio) * (1 + np.log10(np.where(far, np.abs(ratio), 1.0)))
            return np.where(good, np.where(far, bent, ratio), np.nan)
        return np.where(good, array - self.offset, np.nan)

    def levels(self, count: int = 9) -> NDArray[np.float64]:
        """About `count` round values strictly inside the range, as places on the drawn scale."""
        if self.empty or self.constant:
            return np.empty(0)
        first, last = self.forward([self.low, self.high])
        if self.kind == "linear":
            steps = MaxNLocator(nbins=count, steps=[1, 2, 2.5, 5, 10])
            places = np.asarray(steps.tick_values(first, last), dtype=np.float64)
        elif self.kind == "log":
            places = self.forward(round_values(self.low, self.high, count))
        else:
            places = self.forward(self._signed_values(count))
        margin = 1e-6 * (last - first)  # a line within a hair of the extremes is noise
        return places[(places > first + margin) & (places < last - margin)]

    def limits(self) -> tuple[float, float]:
        """First and last place on the drawn scale, never the same."""
        if self.empty:
            return 0.0, 1.0
        first, last = (float(x) for x in self.forward([self.low, self.high]))
        if first < last:
            return first, last
        room = 0.05 * abs(first) or 0.5
        largest = float(np.finfo(np.float64).max)
        return max(first - room, -largest), min(last + room, largest)

    def texts(self, places: ArrayLike) -> list[str]:
        """The values at `places` of the drawn scale, with digits enough to tell them apart."""
        values = self.inverse(np.asarray(places, dtype=np.float64))
        if self.kind == "linear" and values.size > 1:
            values[np.abs(values) < 1e-9 * np.ptp(values)] = 0.0  # steps miss it by a rounding
        return distinct_texts(values)

    def number(self, value: float) -> str:
        """One value, with digits enough to tell it from its neighbours in the range."""
        digits = 4
        if self.kind == "linear" and math.isfinite(value) and value != 0 and self.low < self.high:
            spread = (self.high / abs(value)) - (self.low / abs(value))
            if math.isfinite(spread) and spread > 0:
                digits = min(max(digits, 2 + math.ceil(-math.log10(spread))), 17)
        return number_text(value, digits)

    def label(self, column: str) -> str:
        """The text beside the colour bar: what is shown, and on which scale."""
        name = column.replace("_", " ")
        if self.offset:
            name = f"{name} \N{MINUS SIGN} {self.offset!r}"
        return f"{name} ({self.kind} scale)"

    def inverse(self, places: NDArray[np.float64]) -> NDArray[np.float64]:
        """The values at `places` of the drawn scale; on a linear one less the offset."""
        if self.kind == "log":
            return np.power(10.0, places)
        if self.kind == "symlog":
            far = np.abs(places) > 1
            powers = np.power(10.0, np.where(far, np.abs(places) - 1, 0.0))
            return self.threshold * np.where(far, np.sign(places) * powers, places)
        return places.copy()

    def _signed_values(self, count: int) -> NDArray[np.float64]:
        each = max(count // 2, 2) if self.diverging else count
        positive = round_values(self.threshold, max(self.high, 0.0), each)
        negative = round_values(self.threshold, max(-self.low, 0.0), each)
        return np.concatenate([-negative[::-1], [0.0], positive])


def choose(arrays: Iterable[ArrayLike], kind: str = "auto", *, signed: bool = False) -> Scale:
    """The scale for all values of `arrays` together.

    Args:
        arrays: Values of any shape; those that are not finite do not count.
        kind: "linear", "log", "symlog"; or "auto": logarithmic for positive values that span more
            than a factor of thirty, symmetric-logarithmic where zeros or both signs occur and a
            quarter of the values would vanish within a thirtieth of a linear scale, else linear.
        signed: Whether the sign of a value matters even where all have the same: colours then
            diverge from 0, which a logarithmic scale has no place for.

    Returns:
        The scale. Its range holds every value that can be drawn on it.

    Raises:
        ArgumentTypeError: `kind` is not a string.
        ArgumentError: `kind` is unknown, or is "log" and no value is positive.
    """
    check_kind(kind)
    flat = [np.asarray(a, dtype=np.float64).ravel() for a in arrays]
    values = np.concatenate(flat) if flat else np.empty(0)
    values = values[np.isfinite(values)]
    if values.size == 0:
        return Scale("linear" if kind == "auto" else kind, math.nan, math.nan)
    if signed and kind == "auto":
        kind = {"log": "symlog"}.get(found := _automatic(values), found)
    signed = signed and kind != "log"
    if kind == "log" and values.max() <= 0:
        raise ArgumentError(
            f'`scale="log"` needs values above 0, got at most {number_text(float(values.max()))}; '
            'use "symlog" or "linear".'
        )
    if kind == "auto":
        kind = _automatic(values)
    if kind == "log":
        values = values[values > 0]
    low, high = float(values.min()), float(values.max())
    if kind == "symlog":
        return Scale(kind, low, high, threshold=_threshold(values), signed=signed)
    offset = _offset(low, high) if kind == "linear" and not signed else 0.0
    return Scale(kind, low, high, offset=offset, signed=signed)


def check_kind(kind: str) -> None:
    """Refuse a scale that does not exist.

    Raises:
        ArgumentTypeError: `kind` is not a string.
        ArgumentError: `kind` is unknown.
    """
    if not isinstance(kind, str):
        raise ArgumentTypeError(f"`scale` must be a string, got {type(kind).__name__}.")
    if kind not in KINDS:
        raise ArgumentError(f"`scale` must be one of {', '.join(KINDS)}, got {kind!r}.")


def round_values(low: float, high: float, count: int) -> NDArray[np.float64]:
    """Round values (1, 2, 5, ... times powers of ten) in [low, high], about `count` of them.

    Args:
        low: Positive.
        high: Nothing is returned where it is below `low`.
        count: The densest set with at most this many values is taken; at least one power of ten
            per 200 decades.

    Returns:
        Ascending values.
    """
    if high < low:
        return np.empty(0)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    found = np.empty(0)
    candidates = [(m, 1) for m in _MANTISSAS] + [((1.0,), step) for step in _DECADE_STEPS]
    for mantissas, step in candidates:
        exponents = range(-(-first // step) * step if step > 1 else first, last + 1, step)
        # From the text: 3 * 10.0**-5 is not the nearest number to 3e-5.
        values = np.array([float(f"{m}e{e}") for e in exponents for m in mantissas])
        found = values[(values >= low) & (values <= high)]
        if found.size <= count:
            break
    return found


def number_text(value: float, digits: int = 4) -> str:
    """A number for people: ``1e-9`` rather than ``1e-09``, with a real minus sign."""
    text = f"{value:.{digits}g}"
    mantissa, mark, exponent = text.partition("e")
    if mark:
        text = f"{mantissa}e{int(exponent)}"
    return text.replace("-", "\N{MINUS SIGN}")


def distinct_texts(values: Sequence[float] | NDArray[np.float64]) -> list[str]:
    """One text per value: as few digits as show each to a tenth of the smallest gap."""
    array = np.asarray(values, dtype=np.float64)
    gaps = np.diff(np.sort(array))
    gaps = gaps[gaps > 0]
    allowed = 0.1 * gaps.min() if gaps.size else math.inf
    for digits in range(3, 17):
        rounded = np.array([float(f"{v:.{digits}g}") for v in array])
        if np.all(np.abs(rounded - array) <= np.minimum(allowed, 1e-3 * np.abs(array))):
            break
    # Rounded first: 1250 of three digits is read more easily than 1.25e3.
    return [number_text(float(f"{v:.{digits}g}"), max(digits, 4)) for v in array]


def _automatic(values: NDArray[np.float64]) -> str:
    low, high = float(values.min()), float(values.max())  # Python's floats overflow silently
    if low > 0:
        return "log" if high / low > _WIDE else "linear"
    sizes = np.abs(values)
    sizes = sizes[sizes > 0]
    if sizes.size == 0:
        return "linear"
    wide = float(sizes.max()) / float(np.quantile(sizes, 0.25)) > _WIDE
    return "symlog" if wide else "linear"


def _threshold(values: NDArray[np.float64]) -> float:
    """A power of ten below which a tenth of the sizes lie; at most 12 decades under the largest."""
    sizes = np.abs(values)
    sizes = sizes[sizes > 0]
    if sizes.size == 0:
        return 1.0
    largest = float(sizes.max())
    wanted = min(max(float(np.quantile(sizes, 0.1)), 1e-12 * largest), 0.1 * largest)
    return float(f"1e{math.floor(math.log10(max(wanted, 1e-300)))}")


def _offset(low: float, high: float) -> float:
    """What to subtract before drawing when the range is less than 1e-5 of the values."""
    largest = max(abs(low), abs(high))
    spread = high - low
    if not 0 < spread < 1e-5 * largest or largest < 1e-290:
        return 0.0
    return float(f"{low:.{min(math.ceil(-math.log10(spread / largest)) + 1, 17)}g}")
