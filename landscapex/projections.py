"""Training runs in one dimension and a bit: projections, residuals, cost strips.

Exposed as ``landscapex.projections``.
"""

from __future__ import annotations

from landscapex.studies.coststrip import CostStrip, cost_strip
from landscapex.studies.residuals import ResidualCoordinates, residual_coordinates

__all__ = ["CostStrip", "ResidualCoordinates", "cost_strip", "residual_coordinates"]
