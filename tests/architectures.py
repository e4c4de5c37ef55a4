"""Small networks of many kinds: ``ARCHITECTURES[name]``.

Importing the modules registers theirs.
"""

from __future__ import annotations

import architectures_eager
import architectures_images
import architectures_sequences
import architectures_vectors
from architecture_case import ARCHITECTURES as ARCHITECTURES
from architecture_case import CAPTURED as CAPTURED
from architecture_case import Architecture as Architecture

MODULES = (
    architectures_eager,
    architectures_images,
    architectures_sequences,
    architectures_vectors,
)
