"""A time limit: the work ends before it, with the points at hand taken into account."""

from __future__ import annotations

import math
import re
import time

from landscapex.engine.eager import Stop
from landscapex.errors import ArgumentError
from landscapex.interrupts import Abandon

_RESERVE = 0.05  # of the limit: to write the rest, put the model back and leave
_MOST_RESERVE = 5.0  # seconds
_SLOWER = 1.5  # as the next points may be than the last

_CLOCK = re.compile(r"(?:(\d+)-)?(\d+):([0-5]?\d):([0-5]?\d(?:\.\d*)?)")

TimeLimit = float | str | None


class Deadline:
    """Asks the work to end in time, and passes on what others ask.

    Args:
        stop: Who else may want the work to end.
        seconds: The limit; None for none.
        began: When its time began to run, by `time.monotonic`.
    """

    def __init__(self, stop: Stop, seconds: float | None, began: float) -> None:
        self._stop = stop
        self._end = math.inf
        if seconds is not None:
            self._end = began + seconds - min(_RESERVE * seconds, _MOST_RESERVE)

    @property
    def requested(self) -> bool:
        """Whether to return what there is."""
        return self._stop.requested or time.monotonic() >= self._end

    def poll(self) -> None:
        """Give the point at hand up if there is no time for it.

        Raises:
            Abandon: If there is none.
        """
        self._stop.poll()
        if time.monotonic() >= self._end:
            raise Abandon

    def room(self, seconds: float) -> float:
        """How many points there is time for, if one takes a bit longer than lately.

        Args:
            seconds: What a point took lately.

        Returns:
            Infinity without a limit, below 0 after it.
        """
        left = self._end - time.monotonic()
        return left / max(_SLOWER * seconds, 1e-9)


def parse_time_limit(limit: TimeLimit) -> float | None:
    """A limit in seconds.

    Args:
        limit: Seconds as a number or as text, or ``"H:MM:SS"`` or ``"D-HH:MM:SS"``, as batch
            systems write it; None for none.

    Returns:
        Seconds; None for none.

    Raises:
        ArgumentError: If it is something else, or not above 0.

    Example:
        >>> parse_time_limit("2:30:00"), parse_time_limit("1-00:00:00"), parse_time_limit(90)
        (9000.0, 86400.0, 90.0)
    """
    if limit is None:
        return None
    seconds = math.nan
    if isinstance(limit, str) and (clock := _CLOCK.fullmatch(limit.strip())):
        # not as whole numbers, of which Python refuses to read some and to add others
        days, hours, minutes = (float(part or 0) for part in clock.groups()[:3])
        seconds = ((days * 24 + hours) * 60 + minutes) * 60 + float(clock[4])
    elif isinstance(limit, str | int | float) and not isinstance(limit, bool):
        try:
            seconds = float(limit)
        except (ValueError, OverflowError):
            seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ArgumentError(
            "`time_limit` must be a number of seconds above 0, 'H:MM:SS' or 'D-HH:MM:SS', got "
            f"{limit!r}."
        )
    return seconds
