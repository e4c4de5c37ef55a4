"""Builds the torch-free driver of the kernels, plain and under sanitizers, and runs it.

Every source is an object of its own, so that a planted bug costs the compilation of one file.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "csrc" / "kernels"
HERE = Path(__file__).parent
OPERATORS = ("perturb", "filter_normalize", "gaussian", "orthogonalize")
ORDERS = ("forward", "reverse", "random", "warps")

COMPILER = shutil.which(os.environ.get("CXX", "g++"))
_COMMON = (
    "-std=c++17",
    "-g1",
    "-O1",
    "-ffp-contract=off",
    "-fno-omit-frame-pointer",
    "-DLX_EMULATE_CUDA",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
    "-Wno-psabi",
    "-pthread",
)
ISAS = {  # as in CMakeLists.txt
    "baseline": (),
    "avx2": ("-mavx2",),
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
}
SANITIZERS = {
    "plain": (),
    "address": (
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=undefined",
        "-fsanitize-sections=lx_shared",
    ),
    "thread": ("-fsanitize=thread", "-Wno-tsan"),
}


@dataclass(frozen=True)
class Outcome:
    """What a run said."""

    caught: bool
    output: str


class Harness:
    """Objects and programs in one folder, built when first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def compile(self, source: Path, kind: str, *flags: str, include: Path = KERNELS) -> Path:
        """One object file; `include` is where the headers of the kernels are."""
        key = hashlib.sha256(repr((str(source), kind, flags, str(include))).encode()).hexdigest()
        out = self.folder / f"{source.stem}-{kind}-{key[:12]}.o"
        if out.exists():
            return out
        run = subprocess.run(
            [
                *(COMPILER, *_COMMON, *SANITIZERS[kind], *flags),
                *(f"-I{include}", f"-I{ROOT / 'tests' / 'emulation'}"),
                *("-x", "c++", "-c", str(source), "-o", str(out)),
            ],
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr
        return out

    def link(self, kind: str, objects: list[Path]) -> Path:
        key = hashlib.sha256(repr((kind, sorted(map(str, objects)))).encode()).hexdigest()
        out = self.folder / f"program-{kind}-{key[:12]}"
        if not out.exists():
            command = [COMPILER, *SANITIZERS[kind], *map(str, objects), "-pthread", "-o", str(out)]
            subprocess.run(command, check=True, capture_output=True)
        return out

    def driver(self, kind: str, mutated: Path | None = None) -> Path:
        """The driver, with one source of the kernels replaced by `mutated`.

        A mutated header is one that lies, with copies of all the others, in `mutated.parent`.
        """
        folder = mutated.parent if mutated else KERNELS
        jobs = [(KERNELS / "isa.cpp", (), KERNELS), (HERE / "driver.cpp", (), KERNELS)]
        for name in [f"{op}.{ending}" for op in OPERATORS for ending in ("cpp", "cu")]:
            changed = mutated is not None and mutated.name in (name, name.split(".")[0] + ".h")
            source = folder if changed else KERNELS
            variants = ISAS.items() if name.endswith(".cpp") else [("cuda", ())]
            for isa, flags in variants:
                jobs.append((source / name, (f"-DLX_ISA={isa}", *flags), source))
        with ThreadPoolExecutor(2) as pool:
            objects = list(
                pool.map(lambda job: self.compile(job[0], kind, *job[1], include=job[2]), jobs)
            )
        return self.link(kind, objects)

    def run(self, program: Path, *arguments: str) -> Outcome:
        """Run a program; a failed check, a report, a crash and a hang count as caught."""
        command = [str(program), *arguments]
        if setarch := shutil.which("setarch"):
            command = [setarch, "-R", *command]  # the race detector dislikes random addresses
        environment = {
            "PATH": os.environ["PATH"],
            "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
            "UBSAN_OPTIONS": "print_stacktrace=0",
            "TSAN_OPTIONS": "halt_on_error=1:report_thread_leaks=0",
        }
        try:
            run = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=60,
                env=environment,
            )
        except subprocess.TimeoutExpired:
            return Outcome(caught=True, output="still running after a minute")
        output = run.stdout + run.stderr
        return Outcome(caught=run.returncode != 0, output=output[-4000:])
