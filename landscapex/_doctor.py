"""What was built, what is missing, and the command that would bring it."""

from __future__ import annotations

import json
import platform
import shlex
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from landscapex import _lib
from landscapex.engine.native import bf16_kernel, device_unavailable, native_module, unavailable

_EXTRAS = {"interactive": ("plotly",), "paraview": ("pyevtk",)}


@dataclass(frozen=True)
class Missing:
    """Something that is not there.

    Attributes:
        what: Its name.
        why: Why it is not there.
        command: What to run to get it, or an empty string where nothing would help.
    """

    what: str
    why: str
    command: str


@dataclass(frozen=True, repr=False)
class Report:
    """What `doctor` found; ``print(report)`` shows it as text.

    Attributes:
        version: Of landscapex.
        python: Version and implementation.
        torch: Version of torch.
        torch_cuda: The CUDA version of torch, or None.
        numpy: Version of NumPy.
        platform: Operating system and processor.
        native: Whether the compiled CPU operators are in use.
        built_with: Compiler and torch of the build; empty without compiled operators.
        cpu_built: Instruction sets that the CPU operators were compiled for.
        cpu_chosen: The one in use; empty without compiled operators.
        engine: Instruction set of the compiled engine's kernels; empty where it is not there.
        engine_bf16: What multiplies numbers of bf16 there.
        cuda: Whether the compiled CUDA operators are in use.
        engine_cuda: Whether there is a compiled engine for CUDA devices.
        cuda_architectures: Those that the CUDA operators were compiled for, as CMake names them.
        devices: Names of the CUDA devices that torch sees.
        threads: Number of threads that torch and the CPU operators use.
        missing: What is not there.
    """

    version: str
    python: str
    torch: str
    torch_cuda: str | None
    numpy: str
    platform: str
    native: bool
    built_with: tuple[str, ...]
    cpu_built: tuple[str, ...]
    cpu_chosen: str
    engine: str
    engine_bf16: str
    cuda: bool
    engine_cuda: bool
    cuda_architectures: tuple[str, ...]
    devices: tuple[str, ...]
    threads: int
    missing: tuple[Missing, ...]

    def __str__(self) -> str:
        """The report as text, one fact to a line."""
        cpu = (
            f"compiled for {', '.join(self.cpu_built)}; in use: {self.cpu_chosen}"
            if self.native
            else "plain PyTorch"
        )
        cuda = (
            f"compiled for {', '.join(self.cuda_architectures)}; "
            + ("with" if self.engine_cuda else "without")
            + " grid programs"
            if self.cuda
            else "plain PyTorch"
            if self.torch_cuda
            else "none: torch is a build without CUDA"
        )
        engine = (
            f"grid programs in {self.engine}; bf16: {self.engine_bf16}"
            if self.engine
            else "plain PyTorch, one point at a time"
        )
        facts = [
            ("landscapex", self.version),
            ("Python", self.python),
            ("torch", f"{self.torch} (CUDA: {self.torch_cuda or 'none'})"),
            ("NumPy", self.numpy),
            ("platform", self.platform),
            ("CPU kernels", cpu),
            ("engine", engine),
            ("CUDA kernels", cuda),
            ("built with", ", ".join(self.built_with) or "nothing"),
            ("devices", ", ".join(self.devices) or "CPU only"),
            ("threads", str(self.threads)),
        ]
        lines = [f"{name:<13} {value}" for name, value in facts]
        for item in self.missing:
            lines += ["", f"missing: {item.what}", f"  why: {item.why}"]
            lines += [f"  get it: {item.command}"] if item.command else []
        return "\n".join(lines if self.missing else [*lines, "", "Nothing is missing."])

    __repr__ = __str__


def doctor() -> Report:
    """Say what was built and what is missing.

    Returns:
        The report; its text is what a notebook or ``print`` shows.

    Example:
        >>> import landscapex as lx
        >>> lx.doctor().torch_cuda is None or lx.doctor().devices is not None
        True
    """
    native = _lib.native
    ops = torch.ops.landscapex
    built_with = tuple(ops.build_info().split("|")) if native else ()
    program = None if unavailable() else native_module()
    return Report(
        version=_version("landscapex"),
        python=f"{platform.python_version()} ({platform.python_implementation()})",
        torch=torch.__version__,
        torch_cuda=torch.version.cuda,
        numpy=np.__version__,
        platform=f"{platform.system()} {platform.machine()}",
        native=native,
        built_with=built_with[:2],
        cpu_built=tuple(ops.isa_names().split(",")) if native else (),
        cpu_chosen=ops.isa() if native else "",
        engine=str(program.isa()) if program else "",
        engine_bf16=bf16_kernel() if program else "",
        cuda=_lib.cuda,
        engine_cuda=_lib.cuda and device_unavailable() is None,
        cuda_architectures=tuple(ops.cuda_architectures().split()) if _lib.cuda else (),
        devices=tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())),
        threads=torch.get_num_threads(),
        missing=(*_missing_kernels(built_with), *_missing_engine(), *_missing_extras()),
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed: running from a source folder"


def _install(what: str) -> str:
    return f"{sys.executable} -m pip install {what}"


def _reinstall() -> str:
    """The command that builds landscapex again, from where it came."""
    try:
        origin = metadata.distribution("landscapex").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        source = str(Path(__file__).parents[1])  # running from a source folder
    else:
        source = json.loads(origin)["url"].removeprefix("file://") if origin else "landscapex"
    return _install(f"--force-reinstall --no-deps --no-cache-dir {shlex.quote(source)}")


def _missing_kernels(built_with: tuple[str, ...]) -> list[Missing]:
    """Compiled operators that are not there."""
    if not _lib.native:
        has_compiler = any(map(shutil.which, ("c++", "g++", "clang++")))
        first = "" if has_compiler else "apt-get install g++ && "
        return [Missing("compiled kernels", _lib.missing or "", first + _reinstall())]
    if _lib.cuda:
        return []
    if torch.version.cuda is None:
        command = f"{_install('--upgrade torch')} && {_reinstall()}"
        hint = "torch is a build without CUDA; its default build for Linux has it"
        if platform.system() != "Linux":
            return []
        return [
            Missing("CUDA kernels", hint, f"{command}  (only for a machine with an NVIDIA GPU)")
        ]
    at_build = built_with[2] if len(built_with) > 2 and built_with[2] else ""
    why = f"when landscapex was built, {at_build}" if at_build else (_lib.cuda_missing or "")
    major = torch.version.cuda.split(".")[0]
    command = f"install the CUDA {major} toolkit (nvcc), then: {_reinstall()}"
    return [Missing("CUDA kernels", why, command)]


def _missing_engine() -> list[Missing]:
    """The compiled engine, where the other kernels could be built and it was not."""
    if not _lib.native:
        return []
    what, why = "compiled engine", unavailable()
    if why is None and _lib.cuda:
        what, why = "compiled engine for CUDA", device_unavailable()
    if why is None:
        return []
    headers = Path(sysconfig.get_path("include"), "Python.h").is_file()
    if not headers:
        why += "; the headers of Python are not there to build it with"
    major, minor = sys.version_info[:2]
    first = "" if headers else f"apt-get install python{major}.{minor}-dev && "
    return [Missing(what, why, first + _reinstall())]


def _missing_extras() -> list[Missing]:
    """Optional packages that are not there."""
    missing = []
    for extra, modules in _EXTRAS.items():
        absent = [m for m in modules if find_spec(m) is None]
        if absent:
            why = f"not installed: {', '.join(absent)}"
            missing.append(Missing(f"extra [{extra}]", why, _install(f"'landscapex[{extra}]'")))
    return missing
