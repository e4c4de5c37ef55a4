"""W1-W4 on a GPU: landscapex in every arithmetic beside PyTorch in place.

Each first proves that it computes the surface that a float64 reference gives on the processor.
``make bench`` runs this where there is a GPU, and makes a table of it (report.py).
"""

from __future__ import annotations

from pathlib import Path

import contenders
import gpu_contenders
import machine
import pytest
import torch
import workloads
from timing import ROUNDS, Round, in_turn, summary

LONG = 3600  # seconds

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.timeout(LONG)
@pytest.mark.parametrize("name", gpu_contenders.NAMES)
@pytest.mark.parametrize("size", ["quick", "full"])
def test_workload_on_a_gpu(benchmark, data_folder: Path, name: str, size: str) -> None:
    workload = workloads.make(name, size, data_folder)
    device = torch.device("cuda", torch.cuda.current_device())
    times = gpu_contenders.TIMES[name] if size == "full" else 1
    case = gpu_contenders.on_device(workload, device, times)
    ready, skipped = gpu_contenders.prepare(case)
    proofs = {n: contenders.prove_equal(workload, n, c) for n, c in ready.items()}

    turns = in_turn({n: c.run for n, c in ready.items()})
    rounds: list[Round] = []
    benchmark.pedantic(lambda: rounds.append(next(turns)), rounds=ROUNDS)

    made = summary(rounds, gpu_contenders.OURS, ("device", "wall"))
    for n, row in made.items():
        row["difference"], row["about"] = proofs[n][0].asked, ready[n].about()
    benchmark.extra_info.update(
        gpu=torch.cuda.get_device_name(device),
        gpu_workload=name,
        samples=len(case.there.labels),
        size=size,
        contenders=made,
        skipped=skipped,
        machine=machine.describe(),
    )
