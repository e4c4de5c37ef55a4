"""What nvcc makes of the kernels for one architecture: registers, and the loops they spend time in.

Objects and listings are kept in ``benchmarks/out/roofline`` until a source changes.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests" / "native"))
import cuda_compiler
from cuda_compiler import Usage

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
        waits: Whether there are loads from global memory.
    """

    all: int
    fma: int
    mma: int
    mma_macs: int
    bytes: int
    waits: bool


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
    kept = OUT / f"{source.stem}-{key}.json"
    if not kept.exists():
        cubin = OUT / f"{source.stem}-{key}.cubin"
        command = [nvcc, *cuda_compiler.FLAGS, "-cubin", f"-arch=sm_{architecture}", "-Xptxas", "-v"]
        run = subprocess.run(
            [*command, str(source), "-o", str(cubin)], capture_output=True, text=True
        )
        if run.returncode != 0:
            raise RuntimeError(run.stderr)
        listing = subprocess.run(
            [nvdisasm, "-c", str(cubin)], capture_output=True, text=True, check=True
        ).stdout
        loops = loops_of(listing)
        usages = list(cuda_compiler.usage(run.stderr))
        content = [[asdict(u), [asdict(p) for p in loops.get(u.kernel, [])]] for u in usages]
        kept.write_text(json.dumps(content))
        cubin.unlink()
    return {
        usage["kernel"]: Code(Usage(**usage), tuple(Loop(**p) for p in loops))
        for usage, loops in json.loads(kept.read_text())
    }


_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)(.*)$")
_LABEL = re.compile(r"^(\.L_x_\d+):")
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
    code: list[tuple[str, str]] = []
    back: list[tuple[int, int]] = []
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(code)
        elif found := _INSTRUCTION.match(line):
            code.append((found[2], found[3]))
            if found[2].startswith("BRA") and (to := re.search(r"\.L_x_\d+", found[3])):
                begin = labels.get(to[0])
                if begin is not None:
                    back.append((begin, len(code)))
    inner = [
        (b, e) for b, e in back
        if not any((o, p) != (b, e) and b <= o and p <= e for o, p in back)
    ]  # fmt: skip
    return [_counted(code[b:e]) for b, e in inner]


def _counted(code: list[tuple[str, str]]) -> Loop:
    fma = mma = macs = moved = 0
    waits = False
    for name, _ in code:
        parts = name.split(".")
        if parts[0] == "FFMA":
            fma += 1
        elif parts[0] == "HMMA":
            mma += 1
            macs = _MMA_MACS[parts[1]]
        elif parts[0] in ("LDS", "LDG", "LD", "STS", "STG", "ST"):
            moved += 32 * next((_WIDTHS[p] for p in parts if p in _WIDTHS), 4)
            waits |= parts[0] in ("LDG", "LD")
        elif parts[0] == "LDSM":
            moved += 32 * 4 * int(parts[-1]) if parts[-1].isdigit() else 32 * 16
        elif parts[0] == "LDGSTS":
            moved += 32 * 16
            waits = True
    return Loop(len(code), fma, mma, macs, moved, waits)
