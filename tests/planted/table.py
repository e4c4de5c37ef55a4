"""The defects: mistakes of published tools, and of tools that lose or falsify points."""

from __future__ import annotations

from .curvature import CURVATURE
from .engine import ENGINE
from .exports import EXPORTS
from .faults import FAULTS
from .studies import STUDIES
from .traps import TRAPS

TABLE = TRAPS + FAULTS + ENGINE + CURVATURE + STUDIES + EXPORTS
