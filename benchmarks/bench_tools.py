"""A surface of the bundled network, beside other tools and plain PyTorch, on equal settings.

Every contender gets the same model, all samples in one batch, the same two directions and the same
square of coordinates. First each surface is compared with one in float64; then the contenders run
in turn, round by round, and a table is printed:

    pip install --no-deps -r .ci/oracles.txt
    python -m pytest benchmarks/bench_tools.py --benchmark-only -k full-one_thread

``-k quick`` takes 11 x 11 instead of 51 x 51 points.
"""

from __future__ import annotations

import copy
import functools
import itertools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from timing import CLOSE, ROUNDS, Round, difference, in_turn, stopwatch, summary
from torch import Tensor, nn
from torch.nn import functional as F

import landscapex as lx
from landscapex import _lib

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import other_tools
import reference

DISTANCE = 0.5  # landscaper's unit: half of the length of the weights, at a corner nearly


@dataclass(frozen=True)
class Task:
    """What is asked of every contender: the loss at ``axis x axis`` around the model."""

    model: nn.Module
    inputs: Tensor
    labels: Tensor
    directions: list[dict[str, Tensor]]
    points: int

    @property
    def axis(self) -> np.ndarray:
        return other_tools.landscaper_steps(self.points, DISTANCE)

    def loss(self, module: nn.Module) -> float:
        return F.cross_entropy(module(self.inputs), self.labels).item()


def make_task(points: int) -> Task:
    """Random filter-normalised directions, as landscaper makes them its own.

    It cannot be given others: it makes each tensor of a direction as long as the root of its size,
    and the whole as long as the weights. So these are the directions of all contenders.
    """
    model, (inputs, labels), _ = lx.examples.digits()
    drawn = lx.directions.random(model)
    directions = other_tools.landscaper_directions(model, [drawn[0], drawn[1]])
    return Task(model, inputs, labels, directions, points)


def landscapex(task: Task) -> np.ndarray:
    return lx.surface(
        task.model,
        [(task.inputs, task.labels)],
        "cross_entropy",
        directions=task.directions,
        span=(task.axis[0], task.axis[-1]),
        points=task.points,
        progress=False,
    ).loss


def loss_landscapes(task: Task) -> np.ndarray:
    return other_tools.loss_landscapes_surface(
        task.model, task.directions, (task.axis, task.axis), task.loss
    )


def landscaper(task: Task) -> np.ndarray:
    losses, _ = other_tools.landscaper_surface(
        task.model, task.directions, task.points, DISTANCE, task.loss
    )
    return losses


@torch.no_grad()
def load_state_dict(task: Task) -> np.ndarray:
    """The loop that most people write."""
    model = copy.deepcopy(task.model)
    start = {name: t.clone() for name, t in model.state_dict().items()}
    losses = np.empty((task.points, task.points))
    for (i, a), (j, b) in itertools.product(enumerate(task.axis), repeat=2):
        d1, d2 = task.directions
        model.load_state_dict({n: t + a * d1[n] + b * d2[n] for n, t in start.items()})
        losses[i, j] = task.loss(model)
    return losses


@torch.no_grad()
def in_place(task: Task) -> np.ndarray:
    """The loop of those who measure: weights written in place, the row's part computed once."""
    model = copy.deepcopy(task.model)
    weights = list(model.parameters())
    start = [p.clone() for p in weights]
    d1, d2 = (list(d.values()) for d in task.directions)
    losses = np.empty((task.points, task.points))
    for i, a in enumerate(task.axis):
        row = torch._foreach_add(start, d1, alpha=a)
        for j, b in enumerate(task.axis):
            torch._foreach_copy_(weights, torch._foreach_add(row, d2, alpha=b))
            losses[i, j] = task.loss(model)
    return losses


CONTENDERS: dict[str, Callable[[Task], np.ndarray]] = {
    "landscapex": landscapex,
    "PyTorch, load_state_dict": load_state_dict,
    "PyTorch, in place": in_place,
    "loss-landscapes": loss_landscapes,
    "landscaper": landscaper,
}


def prove_equal(task: Task) -> dict[str, float]:
    """Compare every surface with one in float64; return the largest relative differences."""
    axis = task.axis
    extended = np.concatenate([[2 * axis[0] - axis[1]], axis])
    wide = Task(
        copy.deepcopy(task.model).double(), task.inputs.double(), task.labels, [], task.points
    )
    exact = reference.surface(wide.model, task.directions, (axis, extended), wide.loss)
    differences = {}
    for name, contender in CONTENDERS.items():
        found = difference(name, contender(task), exact[:, 1:], exact[:, :-1])
        assert found.unexplained < CLOSE, f"{name} computes another surface"
        differences[name] = found.asked
    return differences


def table(made: Mapping[str, Mapping[str, float]], title: str) -> str:
    def cell(row: Mapping[str, float], what: str) -> str:
        return f"{row[what]:6.2f} ({row[f'{what} min']:.2f}-{row[f'{what} max']:.2f})".rjust(20)

    columns = ("cpu ms", "cpu ratio", "wall ms", "wall ratio")
    head = " " * 26 + "".join(c.rjust(20) for c in columns) + "  largest difference"
    rows = [
        name.ljust(26) + "".join(cell(row, c) for c in columns) + f"  {row['difference']:.1e}"
        for name, row in made.items()
    ]
    return "\n".join(["", title, head, *rows])


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("points", [pytest.param(11, id="quick"), pytest.param(51, id="full")])
def test_surface_beside_other_tools(benchmark, capsys, points: int, threads: int) -> None:
    task = make_task(points)
    differences = prove_equal(task)
    turns = in_turn({n: stopwatch(functools.partial(c, task)) for n, c in CONTENDERS.items()})
    next(turns)  # warm-up
    rounds: list[Round] = []
    benchmark.pedantic(lambda: rounds.append(next(turns)), rounds=ROUNDS)

    made = summary(rounds, "landscapex")
    for name, row in made.items():
        row["difference"] = differences[name]
    benchmark.extra_info.update(
        points=points,
        samples=len(task.labels),
        parameters=sum(p.numel() for p in task.model.parameters()),
        threads=threads,
        device="cpu",
        kernels=_lib.native,
        contenders=made,
    )
    kernels = "with" if _lib.native else "without"
    title = (
        f"{points} x {points} points, {len(task.labels)} samples in one batch, {threads} threads, "
        f"landscapex {kernels} compiled kernels; per point, median of {ROUNDS} (extremes)"
    )
    with capsys.disabled():
        print(table(made, title))
