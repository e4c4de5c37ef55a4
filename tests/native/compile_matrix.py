"""Compiles every CUDA source for every architecture that nvcc knows, and type-checks what calls it.

    python tests/native/compile_matrix.py [--jobs N] [ARCHITECTURE ...]

Architectures are numbers such as 90. Warnings are errors; so are spills of registers. Prints the
registers of each kernel, and the seconds of each source. Nothing is run: that needs a GPU.
"""

from __future__ import annotations

import argparse
import re
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cuda_compiler
from cuda_compiler import ROOT, Usage

STRICT = ("-Werror", "all-warnings", "-Xptxas", "-v,-warn-spills")


@dataclass(frozen=True)
class Compiled:
    """One source for all architectures.

    Attributes:
        source: The file.
        passed: Whether nothing was found.
        kernels: What they take.
        said: By the compiler.
        seconds: That it took.
    """

    source: Path
    passed: bool
    kernels: list[Usage]
    said: str
    seconds: float


def compile_one(nvcc: str, source: Path, wanted: Sequence[int], targets: list[str]) -> Compiled:
    """All architectures in one call: the host's part of a source is compiled once."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run(
            [
                *(nvcc, *cuda_compiler.FLAGS, *STRICT, *targets),
                *("-c", str(source), "-o", f"{folder}/out.o"),
            ],
            capture_output=True,
            text=True,
        )
    said = run.stdout + run.stderr
    kernels = list(cuda_compiler.usage(said))
    spilled = re.search(r"[1-9]\d* bytes spill", said) is not None
    complete = {k.architecture for k in kernels} == {f"sm_{number}" for number in wanted}
    passed = run.returncode == 0 and not spilled and complete
    return Compiled(source, passed, kernels, said, time.monotonic() - start)


def table(kernels: Sequence[Usage], wanted: Sequence[int]) -> str:
    """Registers of a thread, and after a plus its bytes of stack if it has any."""
    rows: dict[str, dict[str, str]] = {}
    for k in kernels:
        stack = f"+{k.stack}" if k.stack else ""
        rows.setdefault(k.kernel, {})[k.architecture] = f"{k.registers}{stack}"
    names = [f"sm_{number}" for number in wanted]
    width = max(map(len, rows), default=0) + 2
    lines = ["registers".ljust(width) + "".join(f"{n:>8}" for n in names)]
    for kernel, cells in rows.items():
        lines.append(kernel.ljust(width) + "".join(f"{cells.get(n, '-'):>8}" for n in names))
    return "\n".join(lines) + "\n"


def type_check(source: Path, cuda_include: Path) -> str:
    """Compile what calls kernels without output, against whatever torch is installed."""
    import torch

    include = Path(torch.__file__).parent / "include"
    command = [
        *("g++", "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror"),
        *("-DUSE_CUDA", "-DLX_CUDA", '-DLX_CUDA_ARCHITECTURES=""'),
        "-DTORCH_TARGET_VERSION=0x020a000000000000",
        *("-isystem", str(include), "-isystem", str(cuda_include)),
        *("-isystem", sysconfig.get_path("include"), str(source)),
    ]
    return subprocess.run(command, capture_output=True, text=True).stderr


def callers() -> list[Path]:
    """Operators, and the driver of the grid program."""
    operators = [s for s in (ROOT / "csrc" / "ops").glob("*.cpp") if s.name != "library.cpp"]
    return sorted([*operators, *(ROOT / "csrc" / "program").glob("device_*.cpp")])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("architectures", nargs="*", type=int)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    nvcc = cuda_compiler.find_nvcc()
    if nvcc is None:
        sys.stdout.write("compile_matrix: no nvcc, nothing was compiled\n")
        return 0
    known = cuda_compiler.architectures(nvcc)
    wanted = options.architectures or known
    targets = cuda_compiler.targets(wanted, [a for a in cuda_compiler.shipped() if a in known])
    sources = cuda_compiler.sources()
    start = time.monotonic()
    with ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(lambda s: compile_one(nvcc, s, wanted, targets), sources))
    sys.stdout.write(table([k for r in results for k in r.kernels], wanted))
    for r in results:
        sys.stdout.write(f"{r.source.relative_to(ROOT)!s:<40}{r.seconds:8.1f} s\n")
    failed = [f"{r.source.name}:\n{r.said}" for r in results if not r.passed]
    cuda_include = cuda_compiler.toolkit(nvcc) / "include"
    for source in callers():
        if errors := type_check(source, cuda_include):
            failed.append(f"{source.name}, type check:\n{errors}")
    sys.stdout.write("".join(failed))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    sys.stdout.write(
        f"compile_matrix: {len(sources)} sources for {len(wanted)} architectures, "
        f"{len(callers())} callers type-checked, {len(failed)} failed; "
        f"{time.monotonic() - start:.0f} s, of which {used.ru_utime + used.ru_stime:.0f} s of CPU "
        f"time by compilers\n"
    )
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
