"""Ctrl-C and SIGTERM during long work: finish what is at hand, keep it, then stop."""

from __future__ import annotations

import _thread
import contextlib
import signal
import threading
import time
from types import FrameType
from typing import Any, Literal

from landscapex._warnings import warn
from landscapex.errors import LandscapexWarning, Terminated

GRACE = 1.5  # seconds that the point at hand may still take; a batch system kills soon after
_SOON = 1e-3  # seconds
_CONTEXTS = contextlib.contextmanager.__code__.co_filename


def terminated(message: str, *, surface: Any = None) -> Terminated:
    """What SIGTERM raises; a warning says what Python does not, which ends without a word.

    Args:
        message: What was kept, and how to go on.
        surface: What was kept.

    Returns:
        The exception.
    """
    with contextlib.suppress(LandscapexWarning):  # of a filter that makes errors of warnings
        warn(message)
    return Terminated(message, surface=surface)


class Abandon(BaseException):
    """The point at hand takes too long after a request to stop; it is given up."""


def put_off(signum: int, frame: FrameType | None) -> bool:
    """Have a signal come again in a moment if it came between a ``with`` and its generator.

    An exception there would leave the generator where it is: what it is to put back would wait
    until the exception is forgotten, which a notebook does not do.

    Args:
        signum: The signal.
        frame: Where it came.

    Returns:
        Whether it will come again.
    """
    if frame is None or frame.f_code.co_filename != _CONTEXTS:
        return False
    _thread.start_new_thread(_send_again, (signum,))
    return True


def _send_again(signum: int) -> None:
    time.sleep(_SOON)
    main = threading.main_thread().ident
    assert main is not None, "it is running"
    signal.pthread_kill(main, signum)


class Interrupts:
    """Turns the first SIGINT or SIGTERM into a request that the work looks at (main thread only).

    A second SIGINT raises KeyboardInterrupt at once; so does the first one, and SIGTERM ends the
    process, as long as there is nothing to keep.

    Attributes:
        signum: The signal that arrived, or None.
        armed: Whether there is something to keep; set it when the work begins.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.armed = False
        self._since = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(signum)
                # a signal that the caller ignores (nohup, a notebook server) stays ignored
                if callable(handler) or handler == signal.SIG_DFL:
                    self._previous[signum] = handler
                    signal.signal(signum, self._handle)
        return self

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if not self.armed:
            if put_off(signum, frame):
                return
            previous = self._previous[signum]
            if callable(previous):
                previous(signum, frame)
                return
            if signum == signal.SIGTERM:
                raise terminated("stopped by SIGTERM before the first point.")
            raise KeyboardInterrupt
        if self.signum is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum
        self._since = time.monotonic()

    def __exit__(self, *_: object) -> Literal[False]:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        handler = self._previous.get(signal.SIGTERM)
        if self.signum == signal.SIGTERM and callable(handler):
            handler(signal.SIGTERM, None)  # the user's own clean-up
        return False

    @property
    def requested(self) -> bool:
        """Whether a signal has arrived."""
        return self.signum is not None

    def poll(self) -> None:
        """Give the point at hand up if it outlasts the grace period.

        Raises:
            Abandon: If it does.
        """
        if self.signum is not None and time.monotonic() - self._since > GRACE:
            raise Abandon
