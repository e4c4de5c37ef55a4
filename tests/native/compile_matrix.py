"""Compiles every CUDA source for every architecture that nvcc knows, and type-checks its binding.

    python tests/native/compile_matrix.py [--jobs N] [ARCHITECTURE ...]

Warnings are errors; so are spills of registers. Prints what each kernel takes. Nothing is run: that
needs a GPU.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "csrc" / "kernels"
FLAGS = [
    *("-DLX_CUDA", "-std=c++17", "--fmad=false"),
    *("-Werror", "all-warnings", "-Xptxas", "-v,-warn-spills"),
]


def architectures(nvcc: str) -> list[str]:
    """All real ones, such as sm_90, and the last virtual one, such as compute_121."""
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True)
    real = re.findall(r"sm_\d+", listed.stdout)
    return [*real, real[-1].replace("sm_", "compute_")]


def toolkit(nvcc: str) -> Path:
    """Where the toolkit is; nvcc itself may be a link or a script elsewhere."""
    command = [nvcc, "--dryrun", "-c", "-x", "cu", "/dev/null", "-o", "/dev/null"]
    said = subprocess.run(command, capture_output=True, text=True).stderr
    return Path(re.search(r"TOP=(\S+)", said)[1])


def compile_one(nvcc: str, source: Path, architecture: str) -> tuple[bool, list[list[str]], str]:
    """Whether it passed, a row for each kernel, and what the compiler said."""
    number = architecture.split("_")[1]
    code = f"arch=compute_{number},code={architecture}"
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, *FLAGS, "-gencode", code, "-c", str(source), "-o", f"{folder}/out.o"]
        run = subprocess.run(command, capture_output=True, text=True)
    rows, spilled = [], False
    said = run.stdout + run.stderr
    pattern = (
        r"Function properties for (\S+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads\s+ptxas info\s*: Used (\d+) registers"
    )
    for name, stack, stores, loads, registers in re.findall(pattern, said):
        spilled |= stores != "0" or loads != "0"
        rows.append([architecture, kernel_name(name), registers, stack, stores, loads])
    # a virtual architecture is not assembled, so that nothing is known about its registers
    complete = bool(rows) or architecture.startswith("compute_")
    return run.returncode == 0 and not spilled and complete, rows, said


def kernel_name(mangled: str) -> str:
    """The kernel and its template arguments, shorter than c++filt has it."""
    match = re.search(r"\d+([a-z_]+_kernel)(I?\S*?)E?v", mangled)
    return f"{match[1]} {match[2]}".strip() if match else mangled


def type_check(source: Path, cuda_include: Path) -> str:
    """Compile the binding of CUDA without output, against whatever torch is installed."""
    import torch

    include = Path(torch.__file__).parent / "include"
    command = [
        *("g++", "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror"),
        *("-DUSE_CUDA", "-DLX_CUDA", '-DLX_CUDA_ARCHITECTURES=""'),
        "-DTORCH_TARGET_VERSION=0x020a000000000000",
        *("-isystem", str(include), "-isystem", str(cuda_include), str(source)),
    ]
    return subprocess.run(command, capture_output=True, text=True).stderr


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("architectures", nargs="*")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        sys.stdout.write("compile_matrix: no nvcc, nothing was compiled\n")
        return 0
    sources = sorted(KERNELS.glob("*.cu"))
    jobs = [(s, a) for s in sources for a in options.architectures or architectures(nvcc)]
    failed = []
    with ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(lambda job: compile_one(nvcc, *job), jobs))
    table = [["architecture", "kernel", "registers", "stack", "spill stores", "spill loads"]]
    for (source, architecture), (passed, rows, said) in zip(jobs, results, strict=True):
        table += rows
        if not passed:
            failed.append(f"{source.name} for {architecture}:\n{said}")
    for row in table:
        sys.stdout.write(f"{row[0]:<13}{row[1]:<60}" + "".join(f"{c:>14}" for c in row[2:]) + "\n")
    cuda_include = toolkit(nvcc) / "include"
    glue = sorted((ROOT / "csrc" / "ops").glob("*.cpp"))
    for source in [s for s in glue if s.name != "library.cpp"]:
        if errors := type_check(source, cuda_include):
            failed.append(f"{source.name}, type check:\n{errors}")
    sys.stdout.write("".join(failed))
    sys.stdout.write(
        f"compile_matrix: {len(jobs)} compilations of {len(sources)} sources, "
        f"{len(glue) - 1} bindings type-checked, {len(failed)} failed\n"
    )
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
