"""Pictures as files that depend on nothing but the picture: no date, no random names."""

from __future__ import annotations

import io
import re
from typing import Any

from matplotlib.figure import Figure

# What says when a file was written; matplotlib leaves out what is None.
_DATES: dict[str, dict[str, str | None]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
# Names, and what refers to them, end in a hash of a shape and of a salt, which is random unless it
# is set for everybody.
_SALTED = re.compile(rb'((?:id="|href="#|url\(#)[\w.-]*?)([0-9a-f]{10})(?=["\)])')


def picture_bytes(figure: Figure, format: str, *, dpi: float) -> bytes:
    """A figure as the bytes of a file; the same figure gives the same bytes in png, svg and pdf.

    Args:
        figure: Any matplotlib figure.
        format: Of those that matplotlib writes.
        dpi: Pixels per inch of pictures made of pixels.

    Returns:
        The contents of the file.
    """
    buffer = io.BytesIO()
    dated: dict[str, Any] = {"metadata": _DATES[format]} if format in _DATES else {}
    figure.savefig(buffer, format=format, dpi=dpi, bbox_inches="tight", **dated)
    data = buffer.getvalue()
    return _numbered(data) if format == "svg" else data


def _numbered(svg: bytes) -> bytes:
    """Salted names, each by its place among them."""
    numbers: dict[bytes, int] = {}

    def numbered(name: re.Match[bytes]) -> bytes:
        return name[1] + b"%010d" % numbers.setdefault(name[2], len(numbers))

    return _SALTED.sub(numbered, svg)
