"""Threads that share an objective: every loss is the right one, and the model comes back."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator

import models
import numpy as np
import reference
import torch
from reliability.figure import Figure

import landscapex as lx

THREADS = 8
LOSSES = 10_000
POINTS = {"eager": 49, "compiled": 199}  # of a line
_TURN = 1e-5  # seconds that a thread has before another may go on


def measure(share: float) -> Iterator[Figure]:
    """R7: a figure for each engine."""
    torch.set_num_threads(1)
    for engine, points in POINTS.items():
        tasks = max(2 * THREADS, round(2 * LOSSES * share / (points + 1)))
        right, asked, same = share_objective(engine, tasks)
        what = f"{THREADS} threads, single losses and lines at once, {engine} engine"
        came = "came back" if same else "is not what it was"
        found = f"{asked - right:,} wrong; the model {came}"
        yield Figure(what, f"{asked:,} losses", found, same and right == asked)


def share_objective(engine: str, tasks: int) -> tuple[int, int, bool]:
    """Let threads do single losses and whole lines by turns, all with one objective.

    Args:
        engine: Of the lines.
        tasks: Losses and lines.

    Returns:
        How many losses were right, of how many, and whether the model came back.
    """
    model = models.mlp(2, 2, bias=False)
    # the compiled engine refuses what may draw random numbers
    check = engine == "compiled"
    objective = lx.Objective(model, [(torch.eye(2), torch.zeros(2, 2))], "mse_loss", check=check)
    places = torch.randn(10, 4, generator=torch.Generator().manual_seed(3))

    def line(k: int) -> np.ndarray:
        made = lx.line(
            objective, directions=places[k % 10][None], points=POINTS[engine], engine=engine,
            normalize=None, progress=False,
        )  # fmt: skip
        assert made.provenance["engine"]["name"] == engine
        return made.loss

    losses, lines = [objective.loss(p) for p in places], [line(k) for k in range(10)]
    assert len(set(losses)) == 10
    before = reference.everything(model)

    def work(k: int) -> int:
        if k % 2:
            return int(objective.loss(places[k % 10]) == losses[k % 10])
        return int((line(k) == lines[k % 10]).sum())

    right = in_threads(work, tasks)
    asked = tasks // 2 + (tasks - tasks // 2) * POINTS[engine]
    return right, asked, not reference.changes(before, reference.everything(model))


def in_threads(work: Callable[[int], int], count: int, threads: int = THREADS) -> int:
    """The sum of ``work(0) .. work(count - 1)``, done by several threads."""
    sums = [0] * threads

    def run(t: int) -> None:
        for k in range(t, count, threads):
            sums[t] += int(work(k))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(_TURN)
    try:
        workers = [threading.Thread(target=run, args=(t,)) for t in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        sys.setswitchinterval(interval)
    return sum(sums)
