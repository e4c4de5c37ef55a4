"""Warnings that point at the line of the user's, from however deep within the package."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

from landscapex.errors import LandscapexWarning

_HERE = str(Path(__file__).parent) + os.sep


def warn(message: str | LandscapexWarning) -> None:
    """Warn at the line that called into the package.

    Args:
        message: What to say; a warning of one of our classes, or the text of a plain one.
    """
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_HERE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, LandscapexWarning, stacklevel=level)
