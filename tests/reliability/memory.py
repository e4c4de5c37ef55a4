"""Memory of a run: with half of what it wants, and over many evaluations.

Every run has a process of its own, because few processes ever get smaller again. For Linux: address
space is limited, and `/proc` read.
"""

from __future__ import annotations

import gc
import json
import os
import re
import resource
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import landscapex as lx

TOLERANCE = 1e-6  # relative, of losses
GROWTH = 0.01  # of resident memory
# By the engine that is asked for. A run of few points is not worth compiling; with "compiled", a
# compilation that fails for want of memory is an error, as it was asked for.
POINTS = {"eager": 3, "auto": 301}
WAYS = ("loss", "eager", "compiled")
SAMPLES = 512
SIDE = 50  # points of a surface along each axis
CHOSE = re.compile(r"memory is short: (\d+) samples go through the model at a time")


@dataclass(frozen=True)
class Halved:
    """A run with half of the memory that it wants.

    Attributes:
        wanted: Bytes of address space that it takes where it may.
        batch: Samples that went through the model at a time; None if it did not say.
        noted: Whether the result says so too.
        difference: From the losses of the unlimited run, relative, at most.
        engine: That computed the points.
    """

    wanted: int
    batch: int | None
    noted: bool
    difference: float
    engine: str


# --- in a process of its own


def wide(samples: int) -> lx.Objective:
    """A network with 16 MB of activations per layer for one batch, as the user made it."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 32, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(32, 4, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(4 * 16 * 16, 10),
    )
    images, labels = torch.randn(samples, 1, 16, 16), torch.randint(10, (samples,))
    return lx.Objective(model, [(images, labels)], "cross_entropy")


def tiny() -> lx.Objective:
    """A network whose evaluation takes next to no time."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    data = [(torch.randn(8, 4), torch.randint(2, (8,))) for _ in range(2)]
    return lx.Objective(model, data, "cross_entropy")


def run_within(room: int, engine: str, samples: int) -> dict[str, Any]:
    """A line with `room` bytes of address space beyond those of its process; 0 for no limit."""
    objective = wide(samples)
    for late in {engine, "compiled"} if engine == "auto" else {engine}:
        lx.line(tiny(), points=2, engine=late, progress=False)  # what is imported late
    before = status("VmSize")
    if room:
        resource.setrlimit(resource.RLIMIT_AS, (before + room, before + room))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = lx.line(objective, points=POINTS[engine], engine=engine, progress=False)
    (data,) = result.provenance["data"].values()
    return {
        "losses": result.to_xarray()["loss"].values.tolist(),
        "said": [str(w.message) for w in caught],
        "notes": data["notes"],
        "engine": result.provenance["engine"]["name"],
        "wanted": status("VmPeak") - before,
    }


def evaluate_often(evaluations: int, way: str) -> dict[str, Any]:
    """Resident memory before and after many evaluations, and a tenth as many before them.

    `way` is "loss" for `Objective.loss`, or the engine of surfaces.
    """
    objective, done, before, counted_from = tiny(), 0, 0, 0
    center = {n: t.detach().clone() for n, t in objective.model.state_dict().items()}
    while done < counted_from + evaluations or not before:
        if not before and done >= evaluations // 10:
            gc.collect()
            before, counted_from = status("VmRSS"), done
        if way == "loss":
            objective.loss(center)
            done += 1
        else:
            lx.surface(objective, points=SIDE, engine=way, seed=done, progress=False)
            done += SIDE**2
    gc.collect()
    return {"before": before, "after": status("VmRSS"), "evaluations": done - counted_from}


def status(field: str) -> int:
    """Bytes that `/proc/self/status` tells."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


# --- and who asks for it


def ask(function: Callable[..., dict[str, Any]], *arguments: object) -> dict[str, Any]:
    """What a function of this file returns in a fresh process.

    Raises:
        RuntimeError: If it raised there.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    line = [sys.executable, "-P", __file__, function.__name__, json.dumps(arguments)]
    run = subprocess.run(line, capture_output=True, text=True, env=environment)
    if run.returncode != 0:
        raise RuntimeError(
            f"{function.__name__}{arguments} must end well, got exit status {run.returncode}:\n"
            f"{run.stderr[-3000:]}"
        )
    return json.loads(run.stdout)


def halved(engine: str, samples: int = SAMPLES) -> Halved:
    """Let a run have half of the memory that it wants."""
    free = ask(run_within, 0, engine, samples)
    short = ask(run_within, free["wanted"] // 2, engine, samples)
    pairs = zip(free["losses"], short["losses"], strict=True)
    chosen = [int(found[1]) for said in short["said"] if (found := CHOSE.search(said))]
    noted = any("memory was short" in note for note in short["notes"])
    difference = max(abs(a - b) / abs(a) for a, b in pairs)
    batch = min(chosen, default=None)
    return Halved(free["wanted"], batch, noted, difference, short["engine"])


def growth(evaluations: int, way: str) -> tuple[int, float]:
    """How many evaluations there were, and what resident memory grew by, relative."""
    found = ask(evaluate_often, evaluations, way)
    return found["evaluations"], found["after"] / found["before"] - 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    asked, given = sys.argv[1:]
    sys.stdout.write(json.dumps(globals()[asked](*json.loads(given))))
