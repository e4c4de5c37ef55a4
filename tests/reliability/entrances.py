"""Everything public that moves a model, ready to be called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import landscapex as lx
from landscapex.curvature.operators import Curvature
from landscapex.grids.options import Progress
from landscapex.studies.coststrip import cost_strip

Callback = Callable[[Progress], object]


@dataclass(frozen=True)
class Entrance:
    """A way to move a model; the model is `guard_cases.Kitchen`.

    Attributes:
        call: With an objective and a callback for those that take one.
        calls_back: Whether it takes one.
        derives: Whether it takes gradients, which recomputed statistics have not.
        named: Whether it must have a loss that it knows.
        moves_buffers: Whether it writes the buffers of another point.
    """

    call: Callable[[lx.Objective, Callback], object]
    calls_back: bool = False
    derives: bool = False
    named: bool = False
    moves_buffers: bool = False


def _curvature(objective: lx.Objective, **options: Any) -> Curvature:
    return lx.hessian(objective, params="first.*", **options)


def _other(objective: lx.Objective, shift: float = 0.01) -> dict[str, Tensor]:
    """Another point, with buffers of its own."""
    state = objective.model.state_dict()
    return {n: t + shift if t.is_floating_point() else t.clone() for n, t in state.items()}


def _others(objective: lx.Objective) -> list[dict[str, Tensor]]:
    return [_other(objective, shift) for shift in (0.1, 0.3, 0.4)]


QUIET: dict[str, Any] = {"progress": False}
ENTRANCES: dict[str, Entrance] = {
    "loss": Entrance(lambda o, c: o.loss()),
    "loss elsewhere": Entrance(lambda o, c: o.loss(_other(o)), moves_buffers=True),
    "line": Entrance(lambda o, c: lx.line(o, points=9, callback=c, **QUIET), calls_back=True),
    "surface": Entrance(
        lambda o, c: lx.surface(o, points=(3, 5), threads=1, callback=c, **QUIET), calls_back=True
    ),
    "surface elsewhere": Entrance(
        lambda o, c: lx.surface(o, points=3, center=_other(o), callback=c, **QUIET),
        calls_back=True,
        moves_buffers=True,
    ),
    "volume": Entrance(
        lambda o, c: lx.volume(o, points=(2, 2, 3), callback=c, **QUIET), calls_back=True
    ),
    "interpolate": Entrance(
        lambda o, c: lx.interpolate(
            _other(o), _other(o, -0.01), model=o, points=5, callback=c, **QUIET
        ),
        calls_back=True,
        moves_buffers=True,
    ),
    "trajectory": Entrance(lambda o, c: lx.trajectory(_others(o), o, **QUIET), moves_buffers=True),
    "cost strip": Entrance(
        lambda o, c: cost_strip(o, _others(o), points=3, **QUIET), moves_buffers=True
    ),
    "explain": Entrance(lambda o, c: lx.explain(o)),
    "average case": Entrance(lambda o, c: lx.sharpness.average_case(o, 0.01, 6)),
    "PAC-Bayes": Entrance(lambda o, c: lx.sharpness.pac_bayes(o, 0.1, 2)),
    "gradient": Entrance(lambda o, c: o.gradient(), derives=True),
    "direction of the gradient": Entrance(lambda o, c: lx.directions.gradient(o), derives=True),
    "directions of curvature": Entrance(
        lambda o, c: lx.directions.hessian(o, 1, tol=0.1), derives=True
    ),
    "line of curvature": Entrance(
        lambda o, c: lx.line(o, directions="hessian", points=3, callback=c, **QUIET),
        calls_back=True,
        derives=True,
    ),
    "curvature map": Entrance(
        lambda o, c: lx.curvature_map(o, points=2, tol=0.1, params="first.*", callback=c, **QUIET),
        calls_back=True,
        derives=True,
    ),
    "product": Entrance(lambda o, c: _curvature(o) @ torch.ones(42), derives=True),
    "product without memory": Entrance(
        lambda o, c: _curvature(o, memory=0) @ torch.ones(42), derives=True
    ),
    "Gauss-Newton": Entrance(
        lambda o, c: _curvature(o, kind="ggn").eigenvalues(1, tol=0.1), derives=True, named=True
    ),
    "trace": Entrance(lambda o, c: _curvature(o).trace(products=3), derives=True),
    "diagonal": Entrance(lambda o, c: _curvature(o).diagonal(products=3), derives=True),
    "density": Entrance(
        lambda o, c: _curvature(o).spectral_density(probes=1, steps=3), derives=True
    ),
    "SAM": Entrance(lambda o, c: lx.sharpness.sam(o), derives=True),
    "ASAM": Entrance(lambda o, c: lx.sharpness.asam(o), derives=True),
    "m-sharpness": Entrance(lambda o, c: lx.sharpness.m_sharpness(o, None), derives=True),
    "Keskar": Entrance(lambda o, c: lx.sharpness.keskar(o, iterations=2), derives=True),
    "Fisher-Rao": Entrance(lambda o, c: lx.sharpness.fisher_rao(o), derives=True, named=True),
    "relative flatness": Entrance(
        lambda o, c: lx.sharpness.relative_flatness(o, "first", products=3), derives=True
    ),
    "learning coefficient": Entrance(
        lambda o, c: lx.sharpness.local_learning_coefficient(o, chains=2, steps=2, warmup=1),
        derives=True,
    ),
}
