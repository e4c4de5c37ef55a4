"""Progress bars whose time left is right although somebody sets the clock."""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from typing import Any

from tqdm import TqdmWarning

with warnings.catch_warnings():
    # in a notebook without ipywidgets the bar is made of text, which is no reason to warn
    warnings.simplefilter("ignore", TqdmWarning)
    from tqdm.auto import tqdm

_process = os.getpid()


def progress_bar(*args: Any, **options: Any) -> Any:
    """A bar of tqdm's that goes by the monotonic clock.

    Args:
        *args: Of `tqdm.auto.tqdm`.
        **options: Of `tqdm.auto.tqdm`. Where nobody sees the bar move, it is written every ten
            seconds unless they say otherwise: lines of a log file stay.

    Returns:
        The bar.
    """
    _leave_the_lock_of_others()
    options.setdefault("mininterval", 0.1 if _watched() else 10.0)
    bar = tqdm(*args, **options)
    bar._time = time.monotonic  # else that of the wall, which may jump by hours
    bar.start_t = bar.last_print_t = bar._time()
    return bar


def _watched() -> bool:
    """Whether somebody sees the bar move: a terminal or a notebook."""
    return (sys.stderr is not None and sys.stderr.isatty()) or "ipykernel" in sys.modules


def _leave_the_lock_of_others() -> None:
    """Give a process that was forked a lock of its own.

    Every bar takes tqdm's lock, also one that is not shown. It lies in memory that the processes
    share: one that is killed while it holds the lock would stop all others for ever.
    """
    global _process
    if os.getpid() != _process:
        tqdm.set_lock(threading.RLock())
        _process = os.getpid()
