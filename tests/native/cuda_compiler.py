"""What nvcc makes of the kernels: for which architectures, and what it says of each of them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = (ROOT / "csrc" / "kernels", ROOT / "csrc" / "program")
FLAGS = ("-DLX_CUDA", "-std=c++17", "--fmad=false")


@dataclass(frozen=True)
class Usage:
    """What a kernel takes on one architecture.

    Attributes:
        kernel: Its name with template arguments.
        architecture: Such as ``"sm_90"``.
        registers: Of a thread.
        stack: Bytes of a thread.
        shared: Bytes of static shared memory of a block.
    """

    kernel: str
    architecture: str
    registers: int
    stack: int
    shared: int


def find_nvcc() -> str | None:
    """nvcc, if there is one."""
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def toolkit(nvcc: str) -> Path:
    """Where the toolkit is; nvcc itself may be a link or a script elsewhere."""
    command = [nvcc, "--dryrun", "-c", "-x", "cu", "/dev/null", "-o", "/dev/null"]
    said = subprocess.run(command, capture_output=True, text=True).stderr
    return Path(re.search(r"TOP=(\S+)", said)[1])


def sources() -> list[Path]:
    """All CUDA sources, those that take longest to compile first."""
    return sorted((s for f in FOLDERS for s in f.glob("*.cu")), key=_size, reverse=True)


def _size(source: Path) -> int:
    """Bytes, with the headers of its own folder that it includes."""
    text = source.read_text()
    headers = re.findall(r'#include "(\w+\.cuh)"', text)
    return len(text) + sum(len((source.parent / h).read_text()) for h in headers)


def architectures(nvcc: str) -> list[int]:
    """All that nvcc can compile for: 75 and so on."""
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True)
    return sorted(int(number) for number in re.findall(r"sm_(\d+)", listed.stdout))


def shipped() -> list[int]:
    """Those that the package has code for; the last one as PTX too."""
    found = re.search(r"foreach\(_arch ([\d ]+)\)", (ROOT / "CMakeLists.txt").read_text())
    return [int(number) for number in found[1].split()]


def targets(wanted: Sequence[int], have: Sequence[int]) -> list[str]:
    """Options of one call of nvcc, which compiles a source for all architectures that are wanted.

    What the package ships is compiled as it is for the package. The rest is assembled from the PTX
    of the last shipped one before it, as a driver would do it: that takes half the time.

    Args:
        wanted: Such as 90.
        have: The shipped ones that nvcc knows.
    """
    assembled: dict[int, list[str]] = {}
    for real in wanted:
        virtual = max((v for v in have if v <= real), default=real)
        assembled.setdefault(virtual, []).append(f"sm_{real}")
    if have and have[-1] in wanted:
        assembled[have[-1]].append(f"compute_{have[-1]}")
    options = []
    for virtual, codes in assembled.items():
        options += ["-gencode", f"arch=compute_{virtual},code=[{','.join(codes)}]"]
    return options


_SAID = re.compile(
    r"Compiling entry function '(\S+)' for '(\w+)'"
    r"|Function properties for (\S+)\s+(\d+) bytes stack frame"
    r"|Used (\d+) registers(.*)"
)


def usage(said: str) -> Iterator[Usage]:
    """Reads what ``ptxas -v`` says.

    Args:
        said: Of one or more architectures.

    Yields:
        One for each kernel and architecture.
    """
    found: list[tuple[str, str, int, int, int]] = []
    kernel = architecture = ""
    stack = 0
    for match in _SAID.finditer(said):
        entry, of, function, frame, registers, rest = match.groups()
        if entry:
            kernel, architecture, stack = entry, of, 0
        elif function:  # of the kernel, or of one that it calls
            stack = int(frame) if function == kernel else stack
        else:
            shared = re.search(r"(\d+) bytes smem", rest)
            size = int(shared[1]) if shared else 0
            found.append((kernel, architecture, int(registers), stack, size))
    names = short_names({f[0] for f in found})
    for mangled, *numbers in found:
        yield Usage(names[mangled], *numbers)


def short_names(mangled: Iterable[str]) -> dict[str, str]:
    """Of functions: without namespaces, parameters and result.

    Args:
        mangled: As compilers write them.
    """
    names = sorted(mangled)
    if not names:
        return {}
    run = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    )
    return dict(zip(names, map(_short, run.stdout.splitlines()), strict=True))


def _short(name: str) -> str:
    """``void a::(anonymous namespace)::k<(a::E)1, a::T<2> >(a::B)`` is ``k<1, T<2>>``."""
    name = name.replace("(anonymous namespace)::", "")
    name = re.sub(r"\([\w:]+\)(?=-?\d)", "", name)
    name = re.sub(r"\b\w+::", "", name).removeprefix("void ").split("(")[0]
    return name.replace("> >", ">>").replace("true", "1").replace("false", "0")
