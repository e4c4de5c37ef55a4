"""Times of everyone who computes the same: per point of a plane, and per Hessian product."""

from __future__ import annotations

import copy
import functools
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from compare_adapters import PLANES, Plane
from compare_cases import OURS
from timing import CLOSE, ROUNDS, Timed, difference, in_turn, stopwatch, summary
from torch import nn

sys.path.append(str(Path(__file__).parents[1] / "tests"))

SIZES = {11: 5, 51: 3}  # points along an axis -> rounds
SAMPLES, BATCH = 512, 128
CONTENDERS = (OURS, "double backward", "curvlinops", "hessian-eigenthings", "PyHessian")

Rows = dict[str, dict[str, float]]


def points(size: int, rounds: int) -> Rows:
    """CPU milliseconds per point, of planes that are equal.

    All samples are in one batch. losscape computes without its picture.
    """
    import bench_tools
    from losscape import create_landscape

    task = bench_tools.make_task(size)
    plane = Plane(
        task.model, [(task.inputs, task.labels)], nn.CrossEntropyLoss(), task.directions, task.axis
    )
    right = {"losscape": "", "loss-landscape-3d": "with a copied state"}
    added = {c.tool: c.run for c in PLANES if right.get(c.tool) == c.option}
    contenders: dict[str, Callable[[], np.ndarray]] = {
        name: functools.partial(compute, task) for name, compute in bench_tools.CONTENDERS.items()
    }
    contenders |= {name: functools.partial(compute, plane) for name, compute in added.items()}
    with mock.patch.object(create_landscape, "plt"):
        _prove_equal(contenders, task)
        return _measured({name: stopwatch(c) for name, c in contenders.items()}, rounds)


def _prove_equal(contenders: dict[str, Callable[[], np.ndarray]], task: Any) -> None:
    """With a plane in float64, but for the known defects of other tools."""
    import reference

    axis = task.axis
    extended = np.concatenate([[2 * axis[0] - axis[1]], axis])
    model = copy.deepcopy(task.model).double()
    wide = type(task)(model, task.inputs.double(), task.labels, [], task.points)
    exact = reference.surface(wide.model, task.directions, (axis, extended), wide.loss)
    for name, compute in contenders.items():
        found = difference(name, compute(), exact[:, 1:], exact[:, :-1])
        assert found.unexplained < CLOSE, f"{name} computes another surface"


def products() -> Rows:
    """CPU milliseconds per product with the Hessian of the same batches."""
    import bench_curvature
    import curvature_contenders as contenders

    import landscapex as lx

    model, (x, y), _ = lx.examples.digits()
    batches = list(zip(x[:SAMPLES].split(BATCH), y[:SAMPLES].split(BATCH), strict=True))
    task = contenders.Task(model, batches)
    contenders.prove_equal(task)
    made, _ = contenders.build(task, CONTENDERS)
    v = task.probe()
    runs = {
        name: functools.partial(bench_curvature.timed, product, v) for name, product in made.items()
    }
    next(in_turn(runs))  # warm-up
    return _measured(runs, ROUNDS)


def _measured(runs: dict[str, Callable[[], Timed]], rounds: int) -> Rows:
    """Of runs that have been warmed up."""
    return summary(list(itertools.islice(in_turn(runs), rounds)), OURS, ("cpu",))


def times() -> dict[str, Rows]:
    torch.set_num_threads(1)
    made = {
        f"per point, {size} x {size} points": points(size, rounds) for size, rounds in SIZES.items()
    }
    return {**made, "per product": products()}
