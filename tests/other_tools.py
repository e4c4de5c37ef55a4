"""Published tools for loss landscapes, as they are, called on the plane that landscapex is given.

A file that imports this one is skipped where they are not installed.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pinned import skip_unless_installed, stand_ins
from torch import Tensor, nn

# landscaper imports these for its pictures and merge trees; nothing here calls them.
_PICTURES = ("coloraide", "drawsvg", "gudhi", "nglpy", "topopy")

skip_unless_installed("loss-landscapes", "landscaper")

with stand_ins(*_PICTURES):
    import landscaper
    import loss_landscapes
    from landscaper import compute as landscaper_compute
    from landscaper import utils as landscaper_utils
    from loss_landscapes.metrics import metric as loss_landscapes_metric
    from loss_landscapes.metrics import sl_metrics as loss_landscapes_metrics
    from loss_landscapes.model_interface import model_parameters as loss_landscapes_parameters

__all__ = [
    "Function",
    "landscaper",
    "landscaper_compute",
    "landscaper_directions",
    "landscaper_steps",
    "landscaper_surface",
    "landscaper_utils",
    "loss_landscapes",
    "loss_landscapes_metrics",
    "loss_landscapes_parameters",
    "loss_landscapes_surface",
]

Named = Mapping[str, Tensor]


class Function(loss_landscapes_metric.Metric):
    """A function of the module as a metric of loss-landscapes."""

    def __init__(self, function: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.function = function

    def __call__(self, model_wrapper: Any) -> Any:
        return self.function(model_wrapper.modules[0])


def loss_landscapes_surface(
    model: nn.Module,
    directions: Sequence[Named],
    coordinates: Sequence[np.ndarray],
    loss: Callable[[nn.Module], float],
) -> np.ndarray:
    """`planar_interpolation` over a square grid of even spacing; the model is left as it was.

    Its own random planes do not take directions. It takes three models and the number of steps, and
    evaluates the first row one step away from its start: so its start lies one step before ours.
    """
    alpha, beta = coordinates
    assert len(alpha) == len(beta), "there is one number of steps for both axes"
    steps = len(alpha)
    h = [float(axis[1] - axis[0]) for axis in coordinates]
    start = [float(alpha[0]), float(beta[0]) - h[1]]
    corner = _moved(model, directions, start)
    ends = [
        _moved(model, directions, [start[0] + steps * h[0], start[1]]),
        _moved(model, directions, [start[0], start[1] + steps * h[1]]),
    ]
    return loss_landscapes.planar_interpolation(corner, *ends, Function(loss), steps=steps)


def landscaper_surface(
    model: nn.Module,
    directions: Sequence[Named],
    points: int,
    distance: float,
    loss: Callable[[nn.Module], float],
) -> tuple[np.ndarray, list[np.ndarray]]:
    """`compute_loss_landscape` in as many dimensions as directions: losses, axes as it labels them.

    It always scales directions itself (`landscaper_directions`) and chooses the coordinates.
    """
    with _silence():
        return landscaper_compute.compute_loss_landscape(
            model,
            None,
            [list(d.values()) for d in directions],
            lambda module, _: loss(module),
            steps=points,
            distance=distance,
            dim=len(directions),
            device="cpu",
        )


def landscaper_directions(model: nn.Module, directions: Sequence[Named]) -> list[dict[str, Tensor]]:
    """What it makes of directions: each tensor as long as the root of its size, all as the model.

    Its step along them is in `landscaper_steps`.
    """
    weights = landscaper_compute.get_model_parameters(model, as_complex=False)
    made = []
    for d in directions:
        tensors = landscaper_compute.normalize_direction([t.clone() for t in d.values()], weights)
        norms = [landscaper_compute.get_model_norm(t) for t in (weights, tensors)]
        made.append(dict(zip(d, [t * (norms[0] / norms[1]) for t in tensors], strict=True)))
    return made


def landscaper_steps(points: int, distance: float) -> np.ndarray:
    """Where its points really are, in units of `landscaper_directions`."""
    return (np.arange(points) - points // 2) * distance / (points / 2)


def _moved(model: nn.Module, directions: Sequence[Named], by: Sequence[float]) -> nn.Module:
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in moved.named_parameters():
            offset = sum(a * d[name].double() for a, d in zip(by, directions, strict=True))
            p.copy_(p.double() + offset)
    return moved


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """landscaper prints, and draws a bar."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
