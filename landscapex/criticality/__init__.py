"""Near critical points: small-step gradient descent in closed form, and what kind of point it is.

Exposed as ``landscapex.criticality``. Everything here is about the quadratic model of a loss around
one point, ``J + <g, e> + <e, H e> / 2``; how far it holds for the loss itself is for the loss to
say. H is a matrix, or a `SymmetricOperator` such as ``lx.hessian(objective)``.
"""

from landscapex.criticality.flow import EscapeTimes, GradientFlow, NewtonStep, gradient_flow
from landscapex.criticality.history import GradientHistory, gradient_history
from landscapex.criticality.points import (
    CriticalPoint,
    GradientCurvature,
    classify_critical_point,
    gradient_curvature,
)

__all__ = [
    "CriticalPoint",
    "EscapeTimes",
    "GradientCurvature",
    "GradientFlow",
    "GradientHistory",
    "NewtonStep",
    "classify_critical_point",
    "gradient_curvature",
    "gradient_flow",
    "gradient_history",
]
