"""Builds the torch-free driver of the kernels, plain and under sanitizers, and runs it.

Every source is an object of its own, so that a planted bug costs the compilation of one file. The
objects of the sources as they are belong to all processes of a run of the tests.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

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
# Each finds its part of what "address" finds, and takes a quarter of the time to compile: for the
# source that has a planted bug.
PARTS = {
    "memory": ("-fsanitize=address", "-fsanitize-sections=lx_shared", "-O0"),
    "undefined": ("-fsanitize=undefined", "-fno-sanitize-recover=undefined", "-O0"),
}


@dataclass(frozen=True)
class Outcome:
    """What a run said."""

    caught: bool
    output: str


def planted(
    bugs: Sequence[Any], sort: Callable[[Any], object], everyday: Collection[str] = ()
) -> list[object]:
    """pytest's parameters: the first bug of each sort is for `make check`, the others are thorough.

    Args:
        bugs: All of a file of tests.
        sort: Of a bug.
        everyday: Names of those that are for `make test`.
    """
    rest = [b for b in bugs if b.name not in everyday]
    first = {sort(b): b for b in reversed(rest)}
    return [
        *(pytest.param(b, id=b.name) for b in bugs if b.name in everyday),
        *(pytest.param(b, id=b.name, marks=marks(b is first[sort(b)])) for b in rest),
    ]


def marks(check: bool) -> Sequence[pytest.MarkDecorator]:
    """Of slow tests: for `make check`, or for `make reliability` only."""
    return [pytest.mark.slow] if check else [pytest.mark.slow, pytest.mark.thorough]


def whole(kind: str) -> str:
    """The kind of all the other sources, where `kind` is that of one."""
    return "address" if kind in PARTS else kind


class Harness:
    """Objects and programs in one folder, built when first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def shared(cls, factory: pytest.TempPathFactory) -> Harness:
        """In the folder of all processes of this run of the tests."""
        base = factory.getbasetemp()
        folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "objects"
        folder.mkdir(exist_ok=True)
        return cls(folder)

    def compile(self, source: Path, kind: str, *flags: str, include: Path = KERNELS) -> Path:
        """One object file; `include` is where the headers of the kernels are."""
        key = hashlib.sha256(repr((str(source), kind, flags, str(include))).encode()).hexdigest()
        out = self.folder / f"{source.stem}-{kind}-{key[:12]}.o"
        flags = (*SANITIZERS.get(kind, ()), *PARTS.get(kind, ()), *flags)
        command = [COMPILER, *_COMMON, *flags, f"-I{include}", f"-I{ROOT / 'tests' / 'emulation'}"]
        return self._made(out, [*command, "-x", "c++", "-c", str(source)])

    def link(self, kind: str, objects: list[Path]) -> Path:
        key = hashlib.sha256(repr((kind, sorted(map(str, objects)))).encode()).hexdigest()
        out = self.folder / f"program-{kind}-{key[:12]}"
        return self._made(out, [COMPILER, *SANITIZERS[kind], *map(str, objects), "-pthread"])

    @staticmethod
    def _made(out: Path, command: Sequence[str]) -> Path:
        """`out`, by a compiler; whoever else asks for it meanwhile waits."""
        with open(out.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not out.exists():
                part = out.with_suffix(".part")
                run = subprocess.run([*command, "-o", str(part)], capture_output=True, text=True)
                assert run.returncode == 0, run.stderr
                part.rename(out)
        return out

    def driver(self, kind: str, mutated: Path | None = None) -> Path:
        """The driver, with one source of the kernels replaced by `mutated`.

        If `kind` is one of `PARTS`, that source alone is of it. A mutated header is one that lies,
        with copies of all the others, in `mutated.parent`.
        """
        rest = whole(kind)
        jobs = [(s, rest, (), KERNELS) for s in (KERNELS / "isa.cpp", HERE / "driver.cpp")]
        for name in [f"{op}.{ending}" for op in OPERATORS for ending in ("cpp", "cu")]:
            changed = mutated is not None and mutated.name in (name, name.split(".")[0] + ".h")
            folder, of = (mutated.parent, kind) if changed else (KERNELS, rest)
            variants = ISAS.items() if name.endswith(".cpp") else [("cuda", ())]
            for isa, flags in variants:
                jobs.append((folder / name, of, (f"-DLX_ISA={isa}", *flags), folder))
        with ThreadPoolExecutor(2) as pool:
            objects = list(
                pool.map(lambda job: self.compile(job[0], job[1], *job[2], include=job[3]), jobs)
            )
        return self.link(rest, objects)

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
