"""Other platforms: the sources compile for them, and what the processor alone decides is the same.

The compiler for other systems is Clang as the package ziglang has it, with the headers of Linux and
macOS. Kernels for aarch64 run where there are a GCC for it and an emulator (`apt-get install
g++-aarch64-linux-gnu qemu-user`).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from native.harness import COMPILER, KERNELS, OPERATORS, ROOT

TARGETS = {  # of the compiler; what its objects begin with
    "Linux on aarch64": ("aarch64-linux-gnu.2.28", rb"\x7fELF\x02.{13}\xb7\x00"),
    "macOS on arm64": ("aarch64-macos.11.0", rb"\xcf\xfa\xed\xfe\x0c\x00\x00\x01"),
}
# As in CMakeLists.txt, without optimisation. A schema is one string on several lines on purpose.
FLAGS = ["-std=c++17", "-O0", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
FLAGS += ["-Wno-string-concatenation"]
CROSS = shutil.which("aarch64-linux-gnu-g++")
EMULATOR = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")


def sources() -> list[Path]:
    """What CMakeLists.txt compiles for a processor, without kernels of other instruction sets."""
    cmake = (ROOT / "CMakeLists.txt").read_text()
    steps = re.search(r"set\(LX_STEPS ([^)]*)\)", cmake)
    named = re.search(r"lx_module\(_C_cpu ([^)]*?)\$", cmake)
    program = re.search(r"pybind11_add_module\(_program MODULE NO_EXTRAS ([^)]*?)\$", cmake)
    assert steps is not None
    assert named is not None
    assert program is not None
    names = [f"csrc/program/{step}.cpp" for step in steps[1].split()]
    names += [f"csrc/{folder}/{op}.cpp" for op in OPERATORS for folder in ("kernels", "ops")]
    names += [n for n in f"{named[1]} {program[1]}".split() if n.endswith(".cpp")]
    return sorted({ROOT / name for name in names})


def headers(folder: Path) -> list[Path]:
    """Of torch, pybind11 and Python; Debian's own Python has another pyconfig.h per processor."""
    pybind11 = pytest.importorskip("pybind11")
    include = Path(sysconfig.get_path("include"))
    if not include.is_dir():
        pytest.skip("needs the headers of Python")
    shutil.copytree(include, folder / "python")
    shutil.copy(sysconfig.get_config_h_filename(), folder / "python" / "pyconfig.h")
    return [
        Path(torch.__file__).parent / "include",
        Path(pybind11.get_include()),
        folder / "python",
    ]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("platform", TARGETS)
def test_every_source_for_processors_compiles_without_a_warning(platform, tmp_path):
    found = find_spec("ziglang")
    if found is None or found.origin is None:
        pytest.skip("needs ziglang (pip install ziglang)")
    target, begin = TARGETS[platform]
    caches = {f"ZIG_{kind}_CACHE_DIR": str(tmp_path / "cache") for kind in ("GLOBAL", "LOCAL")}
    command = [Path(found.origin).with_name("zig"), "c++", "-target", target, *FLAGS]
    command += ["-fno-sanitize=undefined", "-DLX_ISA=baseline", "-DLX_BASELINE_ONLY"]
    command += ['-DLX_BUILD_INFO="x|y|z"', "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    command += [flag for folder in headers(tmp_path) for flag in ("-isystem", folder)]

    def compile_one(source: Path) -> str:
        out = tmp_path / f"{source.parent.name}-{source.stem}.o"
        line = [*command, "-c", source, "-o", out]
        run = subprocess.run(line, capture_output=True, text=True, env=os.environ | caches)
        if run.returncode != 0:
            return f"{source.relative_to(ROOT)}:\n{run.stderr}"
        right = re.match(begin, out.read_bytes(), re.DOTALL)
        return "" if right else f"{source.relative_to(ROOT)}: not an object for {platform}"

    with ThreadPoolExecutor(2) as pool:
        wrong = [said for said in pool.map(compile_one, sources()) if said]
    assert wrong == [], "\n".join(wrong)


def test_the_sources_that_are_tried_are_those_of_the_build():
    """Everything in these folders but what needs other instructions or a device."""
    tried = {source.relative_to(ROOT).as_posix() for source in sources()}
    assert all((ROOT / name).is_file() for name in tried)
    there = {p.relative_to(ROOT).as_posix() for p in (ROOT / "csrc").glob("*/*.cpp")}
    others = {name for name in there - tried if not re.search(r"_avx512|_amx|device|cuda", name)}
    assert others == set()


def bits(folder: Path, compiler: str, *flags: str) -> Path:
    """The program that prints the bits of the baseline kernels."""
    program = folder / f"bits{len(flags)}"
    own = [KERNELS / name for name in ("isa.cpp", *(f"{op}.cpp" for op in OPERATORS))]
    line = [compiler, "-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno"]
    line += ["-fno-trapping-math", "-Wno-psabi", "-DLX_ISA=baseline", "-DLX_BASELINE_ONLY", *flags]
    line += [f"-I{KERNELS}", ROOT / "tests" / "native" / "bits.cpp", *own, "-o", program]
    subprocess.run(line, check=True)
    return program


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_baseline_kernels_give_the_bits_of_x86_on_aarch64(tmp_path):
    """Emulated: vectors of NEON, its conversions and square roots, the order of sums."""
    if CROSS is None or EMULATOR is None:
        pytest.skip("needs aarch64-linux-gnu-g++ and qemu-aarch64")
    here = subprocess.run([bits(tmp_path, COMPILER)], check=True, capture_output=True, text=True)
    there = subprocess.run(
        [EMULATOR, bits(tmp_path, CROSS, "-static")], check=True, capture_output=True, text=True
    )
    assert here.stdout.count("\n") == 18
    assert there.stdout == here.stdout
