"""The numbers beside linear axes: each is whole, and none lies on another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from landscapex._pictures.scale import Scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHORT = (0.02, 1e5)  # sizes of coordinates whose texts fit side by side, however many there are
_FEW = 5  # steps between longer ones


def plain_ticks(ax: Axes, offset: float | None = None) -> float:
    """Whole numbers beside linear axes: a factor of its own lies on the legend or on a label.

    Args:
        ax: The axes, drawn; those that a caller chose the texts of are left alone.
        offset: What to subtract from the vertical coordinates; None for what was chosen before.

    Returns:
        What is subtracted from the vertical coordinates, which their label has to say.
    """
    for name, axis in (("x", ax.xaxis), ("y", ax.yaxis)):
        ours = offset is not None and isinstance(axis.get_major_formatter(), TickTexts)
        if not (axis.isDefault_majfmt or ours) or axis.get_scale() != "linear":
            continue
        axis.set_major_formatter(TickTexts((offset or 0.0) if name == "y" else 0.0))
        low, high = axis.get_view_interval()
        largest = max(abs(low), abs(high))
        if name == "x" and axis.isDefault_majloc and not _SHORT[0] < largest < _SHORT[1]:
            axis.set_major_locator(MaxNLocator(_FEW, steps=[1, 2, 5, 10]))
    chosen = ax.yaxis.get_major_formatter()
    return chosen.subtracted if isinstance(chosen, TickTexts) else 0.0


class TickTexts(ScalarFormatter):
    """The texts of matplotlib; whole numbers where it would take out a factor or a summand.

    Also where its own are longer: 7.5e-5 rather than 0.000075.

    Attributes:
        subtracted: From every number.
    """

    def __init__(self, subtracted: float = 0.0) -> None:
        super().__init__()
        self.subtracted = subtracted

    def format_ticks(self, values: Any) -> list[str]:
        """One text per tick."""
        places = np.asarray(values, dtype=np.float64) - self.subtracted
        texts = super().format_ticks(values)
        if not places.size:
            return texts
        whole = Scale("linear", float(places.min()), float(places.max())).texts(places)
        stands_alone = not self.subtracted and not super().get_offset()
        return texts if stands_alone and _longest(texts) <= _longest(whole) else whole

    def get_offset(self) -> str:
        """Nothing: the texts are whole."""
        return ""


def _longest(texts: Sequence[str]) -> int:
    return max(map(len, texts), default=0)
