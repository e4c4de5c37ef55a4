"""Progress bars whose time left is right although somebody sets the clock."""

from __future__ import annotations

import time
from typing import Any

from tqdm.auto import tqdm


def progress_bar(*args: Any, **options: Any) -> Any:
    """A bar of tqdm's that goes by the monotonic clock.

    Args:
        *args: Of `tqdm.auto.tqdm`.
        **options: Of `tqdm.auto.tqdm`.

    Returns:
        The bar.
    """
    bar = tqdm(*args, **options)
    bar._time = time.monotonic  # else that of the wall, which may jump by hours
    bar.start_t = bar.last_print_t = bar._time()
    return bar
