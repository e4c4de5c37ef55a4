"""W1-W4 and W6 beside other tools and what people write in plain PyTorch.

Each contender first proves that it computes the surface that a float64 reference gives; then all
run in turn, round by round, in one process. ``make bench`` runs this with one thread and with all,
and makes a page and a figure of it (report.py). ``-k quick`` takes some seconds per workload:

    python -m pytest benchmarks/bench_workloads.py --benchmark-only -k "quick and W1 and one_thread"
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import contenders
import machine
import pytest
import timing
import workloads
from timing import ROUNDS, Round, in_turn, summary

LONG = 3600  # seconds
SIZES = ["quick", "full"]


@pytest.mark.timeout(LONG)
@pytest.mark.parametrize("name", workloads.NAMES)
@pytest.mark.parametrize("size", SIZES)
def test_workload(benchmark, data_folder: Path, name: str, size: str, threads: int) -> None:
    workload = workloads.make(name, size, data_folder)
    ready, skipped = contenders.prepare(workload)
    proofs = {n: contenders.prove_equal(workload, n, c) for n, c in ready.items()}

    turns = in_turn({n: c.run for n, c in ready.items()})
    rounds: list[Round] = []
    benchmark.pedantic(lambda: rounds.append(next(turns)), rounds=ROUNDS)

    made = summary(rounds, contenders.OURS)
    for n, row in made.items():
        found, once = proofs[n]
        row["difference"], row["unexplained"] = found.asked, found.unexplained
        row["about"] = ready[n].about()
        row["once seconds"] = timing.once(once, row["wall ms"] / 1e3)
    benchmark.extra_info.update(
        workload=name,
        title=workload.title,
        data=workload.data,
        size=size,
        threads=threads,
        contenders=made,
        skipped=skipped,
        machine=machine.describe(),
    )


FIRST_POINT = Path(__file__).parent / "first_point.py"


@pytest.mark.timeout(LONG)
@pytest.mark.parametrize("size", SIZES)
def test_time_to_first_point(benchmark, size: str) -> None:
    """The bundled network, new to the process or not, with a plan and without."""
    points = {"quick": 5, "full": 51}[size]

    def measure() -> dict[str, Any]:
        found = {}
        for engine in ("auto", "eager"):
            command = [sys.executable, str(FIRST_POINT), engine, str(points)]
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            assert run.returncode == 0, run.stderr
            found[engine] = json.loads(run.stdout)
        return found

    found = benchmark.pedantic(measure, rounds=1)
    benchmark.extra_info.update(first_point=found, size=size, threads=1)
