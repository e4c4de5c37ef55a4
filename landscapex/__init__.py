"""Loss landscapes of PyTorch models: the table of contents.

Names are imported when they are first used, so that ``import landscapex`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from landscapex import axes as directions
    from landscapex import controls as controls
    from landscapex import criticality as criticality
    from landscapex import errors as errors
    from landscapex import examples as examples
    from landscapex import plot as plot
    from landscapex import projections as projections
    from landscapex import sharpness as sharpness
    from landscapex._doctor import doctor as doctor
    from landscapex.axes import Directions as Directions
    from landscapex.curvature.maps import curvature_map as curvature_map
    from landscapex.curvature.operators import hessian as hessian
    from landscapex.explanation import explain as explain
    from landscapex.grids.evaluate import line as line
    from landscapex.grids.evaluate import surface as surface
    from landscapex.grids.evaluate import volume as volume
    from landscapex.grids.results import Surface as Surface
    from landscapex.objective import Objective as Objective
    from landscapex.storage.opening import merge as merge
    from landscapex.storage.opening import open as open
    from landscapex.studies.histograms import weight_histograms as weight_histograms
    from landscapex.studies.interpolation import interpolate as interpolate
    from landscapex.trajectories.plane import trajectory as trajectory
    from landscapex.trajectories.recorder import Recorder as Recorder
    from landscapex.trajectories.trajectory import Trajectory as Trajectory

    __version__: str

# Public name -> where it lives: "module", or "module:attribute".
_TABLE = {
    "Directions": "axes:Directions",
    "Objective": "objective:Objective",
    "Recorder": "trajectories.recorder:Recorder",
    "Surface": "grids.results:Surface",
    "Trajectory": "trajectories.trajectory:Trajectory",
    "controls": "controls",
    "criticality": "criticality",
    "curvature_map": "curvature.maps:curvature_map",
    "directions": "axes",
    "doctor": "_doctor:doctor",
    "errors": "errors",
    "examples": "examples",
    "explain": "explanation:explain",
    "hessian": "curvature.operators:hessian",
    "weight_histograms": "studies.histograms:weight_histograms",
    "interpolate": "studies.interpolation:interpolate",
    "line": "grids.evaluate:line",
    "merge": "storage.opening:merge",
    "open": "storage.opening:open",
    "plot": "plot",
    "projections": "projections",
    "sharpness": "sharpness",
    "surface": "grids.evaluate:surface",
    "trajectory": "trajectories.plane:trajectory",
    "volume": "grids.evaluate:volume",
}

__all__ = [
    "Directions",
    "Objective",
    "Recorder",
    "Surface",
    "Trajectory",
    "__version__",
    "controls",
    "criticality",
    "curvature_map",
    "directions",
    "doctor",
    "errors",
    "examples",
    "explain",
    "hessian",
    "interpolate",
    "line",
    "merge",
    "open",
    "plot",
    "projections",
    "sharpness",
    "surface",
    "trajectory",
    "volume",
    "weight_histograms",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _version()
    elif name in _TABLE:
        module, _, attribute = _TABLE[name].partition(":")
        value = import_module(f"{__name__}.{module}")
        value = getattr(value, attribute) if attribute else value
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value  # the next look-up does not come here
    return value


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(__name__)
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0+uninstalled"


def __dir__() -> list[str]:
    return sorted(__all__)
