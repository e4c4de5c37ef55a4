"""What nvcc makes of the kernels for one architecture: registers, and the loops they spend time in.

Objects are kept in ``benchmarks/out/roofline`` until a source changes.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests" / "native"))
import cuda_compiler
from cuda_compiler import ROOT, Usage

OUT = ROOT / "benchmarks" / "out" / "roofline"
PROGRAM = ROOT / "csrc" / "program"


@dataclass(frozen=True)
class Loop:
    """Instructions of a warp in one round of a loop that holds no other.

    Attributes:
        all: Every one takes an issue slot.
        fma: ``FFMA``: 32 multiply-adds each.
        mma: ``HMMA``: of one kind in a loop.
        mma_macs: Multiply-adds of one of these.
        bytes: That loads and stores of shared and global memory move to or from registers.
        fetched: Bytes of these that come from global memory.
        seldom: Instructions of what the loop does once in a stretch of taps: it puts sums away.
        seldom_bytes: That these move.
    """

    all: int
    fma: int
    mma: int
    mma_macs: int
    bytes: int
    fetched: int
    seldom: int
    seldom_bytes: int


@dataclass(frozen=True)
class Code:
    """A kernel for one architecture.

    Attributes:
        usage: Registers and static shared memory.
        loops: Innermost ones with multiply-adds.
    """

    usage: Usage
    loops: tuple[Loop, ...]


def key_of(*parts: str) -> str:
    """A name for what depends on all sources, and on what is given."""
    files = sorted(f for d in (PROGRAM, ROOT / "csrc" / "kernels") for f in d.glob("*.*h"))
    digest = hashlib.sha256("\0".join(parts).encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def find_nvdisasm() -> str | None:
    """The disassembler: of a toolkit, or of the package ``nvidia-cuda-nvdisasm``."""
    packages = Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin/nvdisasm")
    return shutil.which("nvdisasm") or next(map(str, packages), None)


def kernels(nvcc: str, nvdisasm: str, architecture: int, jobs: int) -> dict[str, Code]:
    """All kernels of the grid program, by name.

    Args:
        nvcc: Compiles them.
        nvdisasm: Lists them.
        architecture: Such as 90.
        jobs: How many sources at once.
    """
    OUT.mkdir(parents=True, exist_ok=True)
    sources = [s for s in cuda_compiler.sources() if s.parent == PROGRAM]
    with ThreadPoolExecutor(jobs) as pool:
        found = pool.map(lambda s: _kernels_of(s, nvcc, nvdisasm, architecture), sources)
    return {name: code for of_source in found for name, code in of_source.items()}


def _kernels_of(source: Path, nvcc: str, nvdisasm: str, architecture: int) -> dict[str, Code]:
    key = key_of(source.read_text(), str(architecture), *cuda_compiler.FLAGS)
    cubin, said = OUT / f"{source.stem}-{key}.cubin", OUT / f"{source.stem}-{key}.txt"
    if not said.exists():
        options = ["-cubin", f"-arch=sm_{architecture}", "-Xptxas", "-v"]
        command = [nvcc, *cuda_compiler.FLAGS, *options, str(source), "-o", str(cubin)]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode != 0:
            raise RuntimeError(run.stderr)
        said.write_text(run.stderr)
        for old in set(OUT.glob(f"{source.stem}-*")) - {cubin, said}:
            old.unlink()
    listing = subprocess.run([nvdisasm, "-c", str(cubin)], capture_output=True, text=True)
    if listing.returncode != 0:
        raise RuntimeError(listing.stderr)
    loops = loops_of(listing.stdout)
    return {
        u.kernel: Code(u, tuple(loops.get(u.kernel, ())))
        for u in cuda_compiler.usage(said.read_text())
    }


_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)(.*)$")
_LABEL = re.compile(r"^(\.L_x_\d+):")
_SUMS = 32  # additions in a row, without a multiplication: no other part of a loop has as many
_FUNCTION = re.compile(r"^\.text\.(\S+):")
_WIDTHS = {"32": 4, "64": 8, "128": 16, "U8": 1, "S8": 1, "U16": 2, "S16": 2}
# m16n8k8 and m16n8k16
_MMA_MACS = {"1684": 16 * 8 * 4, "1688": 16 * 8 * 8, "16816": 16 * 8 * 16}


def loops_of(listing: str) -> dict[str, list[Loop]]:
    """Innermost loops with multiply-adds, by the name of the kernel.

    Args:
        listing: Of nvdisasm.
    """
    names: dict[str, list[Loop]] = {}
    functions = re.split(r"(?m)^(?=\.text\.\S+:$)", listing)[1:]
    mangled = [_FUNCTION.match(f)[1] for f in functions]
    short = cuda_compiler.short_names(mangled)
    for name, text in zip(mangled, functions, strict=True):
        names[short[name]] = [p for p in _loops(text) if p.fma or p.mma]
    return names


def _loops(text: str) -> list[Loop]:
    labels: dict[str, int] = {}
    names: list[str] = []
    branches: list[tuple[int, str]] = []
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(names)
        elif found := _INSTRUCTION.match(line):
            if found[2].startswith("BRA") and (to := re.search(r"\.L_x_\d+", found[3])):
                branches.append((len(names), to[0]))
            names.append(found[2])
    jumps = [(at, labels[to]) for at, to in branches]
    back = [(to, at + 1) for at, to in jumps if to <= at]
    inner = [
        (b, e) for b, e in back
        if not any((o, p) != (b, e) and b <= o and p <= e for o, p in back)
    ]  # fmt: skip
    return [_counted(names, b, e, jumps) for b, e in inner]


def _counted(names: list[str], begin: int, end: int, jumps: list[tuple[int, int]]) -> Loop:
    seldom: set[int] = set()
    for at, to in jumps:
        if begin <= at < to <= end:
            part = [n.partition(".")[0] for n in names[at + 1 : to]]
            if part.count("FADD") >= _SUMS and "FFMA" not in part:
                seldom |= set(range(at + 1, to))
    often = [names[i] for i in range(begin, end) if i not in seldom]
    rest = [names[i] for i in sorted(seldom)]
    tensor = [n.split(".") for n in often if n.startswith("HMMA.")]
    return Loop(
        all=len(often),
        fma=sum(n.partition(".")[0] == "FFMA" for n in often),
        mma=len(tensor),
        mma_macs=_MMA_MACS[tensor[0][1]] if tensor else 0,
        bytes=sum(map(_bytes, often)),
        fetched=sum(_bytes(n) for n in often if n.startswith(("LDG", "LD."))),
        seldom=len(rest),
        seldom_bytes=sum(map(_bytes, rest)),
    )


def _bytes(name: str) -> int:
    """That an instruction of a warp moves to or from registers, or to shared memory."""
    kind, *parts = name.split(".")
    if kind in ("LDS", "LDG", "LD", "STS", "STG", "ST"):
        return 32 * next((_WIDTHS[p] for p in parts if p in _WIDTHS), 4)
    if kind == "LDSM":
        return 32 * 4 * int(parts[-1])
    return 32 * 16 if kind == "LDGSTS" else 0
