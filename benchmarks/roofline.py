"""The compiled engine on an H100, on paper: W1-W4, kernel by kernel. Estimated, not measured.

    python benchmarks/roofline.py [--workload W1] [--math fp32] [--page docs/gpu.md]

The driver says what it launches (roofline_launches.py), nvcc what the kernels take and which
instructions their inner loops have (roofline_code.py), and roofline_model.py makes times of that.
Nothing runs on a device, and none is needed.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))
sys.path.append(str(Path(__file__).parents[1] / "tests" / "native"))
import cuda_compiler
import roofline_code
import torch
import workloads
from roofline_launches import Chunk, Launch, chunk_of
from roofline_model import Machine, Time, time_of, traffic, work_of

from landscapex.engine.device import Device

# Multiprocessors, rates without sparsity, clocks (1,980 MHz; 1,830 MHz for tensor cores), memory,
# caches and registers: NVIDIA H100 Tensor Core GPU data sheet and architecture white paper, SXM5.
# The vendor gives no rate of the second-level cache: 5.5 TB/s is what others measured. 263 clocks
# until it answers, and mma.sync at 62 % of the peak, which only wgmma reaches: Luo et al., arXiv
# 2402.13499 and 2501.12084. The cost of launches is assumed.
H100 = Machine(
    name="H100 SXM5",
    processors=132,
    clock=1.98e9,
    tensor_clock=1.83e9,
    flops={
        "fp32": 66.9e12,
        "fp64": 33.5e12,
        "tf32": 494.7e12,
        "bf16": 989.4e12,
        "bf16x3": 989.4e12 / 3,
    },
    tensor_share=0.62,
    memory=3.35e12,
    cache=5.5e12,
    cache_bytes=50 << 20,
    latency=263,
    block_shared=227 << 10,
    shared=228 << 10,
    reserved=1 << 10,
    registers=1 << 16,
    warps=64,
    blocks=32,
    issue=4,
    moved=128,
    launch=3e-6,
    node=1e-6,
)
ASSUMED = """\
Estimated, not measured: no kernel ran on a device. Assumed:
* {name}: {processors} multiprocessors, {clock:.2f} GHz ({tensor_clock:.2f} GHz with tensor cores),
  {fp32:.1f} TFLOP/s in fp32, {tf32:.1f} in tf32, {bf16:.1f} in bf16, a third of it in bf16x3,
  {memory:.2f} TB/s of memory, {cache:.1f} TB/s of its cache of {mb} MB.
* The cache keeps what was used last, in whole pieces: a buffer of all cells of a chunk, a weight of
  all points. Data of the samples are new in every chunk; nothing else goes to memory unless the
  cache is too small for it.
* A block fetches from the cache what it needs once, and shares nothing with other blocks.
* An instruction of a warp is an issue slot, 4 per clock; a multiprocessor moves 128 bytes per clock
  between registers and shared memory or the first-level cache, even if threads read the same.
* mma.sync does {share:.0%} of the peak. A round of a loop waits {latency} clocks for its loads;
  other warps fill that time.
* All blocks of a launch take equally long, and share out as evenly as their number allows.
* Arithmetic, cache and memory overlap within a launch; launches do not overlap.
* A launch costs {node:.0f} us in a graph; by itself it takes {launch:.0f} us of the host's time.
* Biases and batch norm do not move; 51 x 51 points, all samples of the training set.
"""
SAMPLES = {"W1": 60_000, "W2": 60_000, "W3": 50_000, "W4": 50_000}
POINTS = 51 * 51
MATH = ("fp32", "tf32", "bf16x3", "bf16")
# Seconds: floors at 60, 400, 800 / 3 and 800 TFLOP/s
PAPER = {
    "W1": (3.5, 0.52, 0.78, 0.26),
    "W2": (2.2, 0.33, 0.49, 0.16),
    "W3": (177, 27, 40, 13),
    "W4": (545, 82, 123, 41),
}
BEGIN, END = "<!-- roofline: begin -->", "<!-- roofline: end -->"


@dataclass(frozen=True)
class Result:
    """A workload in one arithmetic.

    Attributes:
        name: Of the workload.
        math: Of its contractions.
        chunk: What is launched.
        times: Of each launch.
    """

    name: str
    math: str
    chunk: Chunk
    times: tuple[Time, ...]

    @property
    def calls(self) -> int:
        """Chunks of all points and all samples."""
        return math.ceil(self.chunk.all_tiles / self.chunk.tiles) * self._of_points

    @property
    def _of_points(self) -> int:
        return math.ceil(POINTS / self.chunk.points)

    def _total(self, of_launch: Sequence[float]) -> float:
        """Weights are formed once for all samples, everything else in each chunk."""
        pairs = zip(self.chunk.launches, of_launch, strict=True)
        return sum(t * (self._of_points if "form" in a.kernel else self.calls) for a, t in pairs)

    def seconds(self, m: Machine) -> tuple[float, float, float]:
        """All points and all samples: the floor, in graphs, and with single launches."""
        own = [t.estimate + m.node for t in self.times]
        single = [max(t, m.launch) for t in own]
        floor = [t.floor for t in self.times]
        return self._total(floor), self._total(own), self._total(single)


def device_of(m: Machine) -> Device:
    """As the engine sees it; its memory is that of the host, where nothing is ever written."""
    return Device(torch.device("cpu"), m.cache_bytes, m.block_shared, (9, 0))


def evaluate(m: Machine, name: str, math_of: str, codes: dict[str, roofline_code.Code]) -> Result:
    """Record a workload and time its launches on paper."""
    chunk = chunk_of(workloads.make(name, "quick"), SAMPLES[name], math_of, device_of(m))
    works = [work_of(chunk, launch, math_of) for launch in chunk.launches]
    moved = traffic([w.touches for w in works], m.cache_bytes)
    times = [
        time_of(m, launch, work, bytes_moved, codes[launch.kernel] if launch.kernel else None)
        for launch, work, bytes_moved in zip(chunk.launches, works, moved, strict=True)
    ]
    return Result(name, math_of, chunk, tuple(times))


def explain(launch: Launch) -> str:
    """What a launch is for."""
    if launch.step is None:
        return "sums = 0" if not launch.kernel else launch.kernel.removesuffix("_kernel")
    step = launch.step
    if hasattr(step, "taps"):
        groups, outputs = step.channels.shape
        several = f"{groups} x " if groups > 1 else ""
        return f"{several}{outputs} x {len(step.at)}, {len(step.taps)} taps"
    return type(step).__name__


HEAD = (
    f"{'what':<24}{'n':>4}{'kernel':<42}{'blocks':>8}{'x':>4}{'regs':>5}{'shared':>8}{'occ':>5}"
    f"{'MFLOP':>9}{'MB':>7}{'L2 MB':>7}{'HBM MB':>7}{'floor':>8}{'est. us':>8}  bound by"
)


def listing(result: Result, codes: dict[str, roofline_code.Code]) -> str:
    """The launches of one chunk; equal ones in one line."""
    rows: dict[str, list[tuple[int, Launch, Time]]] = {}
    for i, (launch, time) in enumerate(zip(result.chunk.launches, result.times, strict=True)):
        key = f"{explain(launch)} {launch.kernel} {launch.grid} {time.bound}"
        rows.setdefault(key, []).append((i, launch, time))
    lines = [HEAD]
    for same in rows.values():
        _, launch, time = same[0]
        usage = codes[launch.kernel].usage if launch.kernel else None
        shared = launch.shared + (usage.shared if usage else 0)
        mean = [
            sum(f(t) for _, _, t in same) / len(same) for f in (
                lambda t: t.work.flops / 1e6, lambda t: sum(x.bytes for x in t.work.touches) / 1e6,
                lambda t: t.work.loads / 1e6, lambda t: t.memory / 1e6,
                lambda t: t.floor * 1e6, lambda t: t.estimate * 1e6)
        ]  # fmt: skip
        lines.append(
            f"{explain(launch):<24}{len(same):>4} {launch.kernel or '(memset)':<41}"
            f"{launch.blocks:>8}{launch.threads:>4}{usage.registers if usage else 0:>5}{shared:>8}"
            f"{time.occupancy:>5.0%}{mean[0]:>9.1f}{mean[1]:>7.1f}{mean[2]:>7.1f}{mean[3]:>7.1f}"
            f"{mean[4]:>8.1f}{mean[5]:>8.1f}  {time.bound}"
        )
    return "\n".join(lines) + "\n"


def describe(result: Result, m: Machine) -> str:
    """One chunk, and how many there are."""
    c = result.chunk
    arena = c.cell_bytes * c.tiles * c.points / 1e6
    floor, graphs, single = result.seconds(m)
    return (
        f"{result.name}, {result.math}: {SAMPLES[result.name]:,} samples in {c.all_tiles} tiles of "
        f"{c.lanes}; a chunk is {c.tiles} tiles x {c.points} points, {arena:.1f} MB of buffers and "
        f"{4 * c.floats * c.points / 1e6:.1f} MB of weights; {result.calls:,} chunks, "
        f"{len(c.launches)} launches each\n"
        f"total: floor {floor:.3g} s, estimate {graphs:.3g} s in graphs, {single:.3g} s without; "
        f"paper floor {PAPER[result.name][MATH.index(result.math)]} s\n"
    )


def summary(results: Sequence[Result], m: Machine) -> str:
    """A table in Markdown: seconds for all points and all samples."""
    lines = ["| seconds | | fp32 | tf32 | bf16x3 | bf16 |", "|---|---|---:|---:|---:|---:|"]
    by = {(r.name, r.math): r for r in results}
    for name in dict.fromkeys(r.name for r in results):
        rows: dict[str, list[str]] = {
            "peak arithmetic alone": [], "floor of these launches": [], "estimate, graphs": [],
            "estimate, single launches": [],
        }  # fmt: skip
        for i, math_of in enumerate(MATH):
            found = by.get((name, math_of))
            times = found.seconds(m) if found else (math.nan,) * 3
            values = (PAPER[name][i], *times)
            for cells, value in zip(rows.values(), values, strict=True):
                cells.append("-" if math.isnan(value) else f"{value:.3g}")
        for i, (title, cells) in enumerate(rows.items()):
            lines.append(f"| {name if i == 0 else ''} | {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", action="append", choices=list(SAMPLES))
    parser.add_argument("--math", action="append", choices=MATH)
    parser.add_argument("--nvdisasm", default=roofline_code.find_nvdisasm())
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--page", type=Path, help="whose table is to be replaced")
    options = parser.parse_args()
    nvcc = cuda_compiler.find_nvcc()
    if nvcc is None or options.nvdisasm is None:
        missing = "nvcc" if nvcc is None else "nvdisasm (pip install nvidia-cuda-nvdisasm)"
        sys.stdout.write(f"roofline: there is no {missing}, nothing was estimated\n")
        return 1
    codes = roofline_code.kernels(nvcc, options.nvdisasm, 90, options.jobs)
    m = H100
    sys.stdout.write(
        ASSUMED.format(
            name=m.name, processors=m.processors, clock=m.clock / 1e9,
            tensor_clock=m.tensor_clock / 1e9, fp32=m.flops["fp32"] / 1e12,
            tf32=m.flops["tf32"] / 1e12, bf16=m.flops["bf16"] / 1e12, memory=m.memory / 1e12,
            cache=m.cache / 1e12, mb=m.cache_bytes >> 20, share=m.tensor_share,
            latency=m.latency, node=m.node * 1e6, launch=m.launch * 1e6,
        )
    )  # fmt: skip
    results = []
    for name in options.workload or SAMPLES:
        for math_of in options.math or MATH:
            result = evaluate(m, name, math_of, codes)
            results.append(result)
            sys.stdout.write(f"\n{describe(result, m)}{listing(result, codes)}")
    table = summary(results, m)
    sys.stdout.write(f"\nEstimated, not measured: 51 x 51 points, all samples\n\n{table}")
    if options.page:
        text = options.page.read_text()
        made = re.sub(f"{BEGIN}.*{END}", f"{BEGIN}\n{table}{END}", text, flags=re.DOTALL)
        options.page.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
