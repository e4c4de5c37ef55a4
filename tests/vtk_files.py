"""VTK's XML files, read by hand: the head as XML, the arrays from the raw bytes behind it."""

from __future__ import annotations

import struct
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np

TYPES = {"Float64": "<f8", "UInt8": "u1", "Int64": "<i8"}
_DATA = b'<AppendedData encoding="raw">'


def read(path: Path) -> tuple[ET.Element, dict[str, np.ndarray]]:
    """The head, and every array by its name, those of cells by "cells/" and it.

    Components are a last axis if there are three.
    """
    data = path.read_bytes()
    head, _, rest = data.partition(_DATA)
    root = ET.fromstring(head + b"</VTKFile>")
    assert root.get("byte_order") == "LittleEndian"
    assert root.get("header_type") == "UInt64"
    block = rest[rest.index(b"_") + 1 :]
    arrays = {}
    cells = {id(item) for data in root.iter("CellData") for item in data}
    for item in root.iter("DataArray"):
        name = f"{'cells/' * (id(item) in cells)}{item.get('Name')}"
        start = int(item.get("offset"))
        (size,) = struct.unpack_from("<Q", block, start)
        array = np.frombuffer(block[start + 8 : start + 8 + size], TYPES[item.get("type")])
        components = int(item.get("NumberOfComponents"))
        arrays[name] = array.reshape(-1, components) if components > 1 else array
    return root, arrays


def extent(root: ET.Element) -> tuple[int, ...]:
    """Points along x, y and z."""
    (grid,) = root.iter("StructuredGrid")
    ends = [int(n) for n in grid.get("WholeExtent").split()]
    return tuple(b - a + 1 for a, b in zip(ends[::2], ends[1::2], strict=True))
