"""What a call does once, for a small model: ``python first_point.py ENGINE POINTS`` writes JSON.

For the bundled network on its 1,437 images, one thread, wall time: the first call of the process,
later calls with an Objective of their own, and each further point.
"""

from __future__ import annotations

import json
import statistics
import sys
import warnings
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # with PYTHONSAFEPATH nobody else does
import contenders
import torch
import workloads
from timing import once

import landscapex as lx

ROUNDS = 5


def small_workload() -> workloads.Workload:
    model, (inputs, labels), _ = lx.examples.digits()
    size = workloads.Size(len(labels), 2, (2, 3), (2, 3))
    return workloads.Workload("digits", "small MLP", model, inputs, labels, "digits", size)


def measure(engine: str, points: int) -> dict[str, float | str]:
    """Seconds before the first point of a plane, and for each point.

    Args:
        engine: As in `surface`.
        points: Per axis of the plane.
    """
    workload = small_workload()
    plane = workload.rectangle((points, points))
    runs = []
    for _ in range(ROUNDS + 1):
        made = contenders.Landscapex(workload, plane, engine=engine)
        runs.append(made())
    cold, *later = runs
    wall = statistics.median(r.wall / r.points for r in later)
    return {
        "cold": once(cold, wall),
        "warm": statistics.median(once(r, wall) for r in later),
        "per point": wall,
        "engine": made.used,
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    json.dump(measure(sys.argv[1], int(sys.argv[2])), sys.stdout)
