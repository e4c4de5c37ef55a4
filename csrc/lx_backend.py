"""PEP 517 backend: scikit-build-core, with two decisions that it cannot take.

* torch is a build requirement only where none is installed. An isolated build hides the target's
  site-packages, but they can be found; CMake reads the headers of torch from there. Should it be
  another environment's torch, no harm is done: one stable-ABI binary serves every torch from 2.10.
* Where no C++ compiler works, the wheel is built without compiled libraries: the package then runs
  on plain PyTorch. `-C wheel.cmake=false` asks for the same.
"""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

from scikit_build_core import build as _scikit
from scikit_build_core.build import *  # noqa: F403  (prepare_metadata_*, build_sdist, ...)

_PROGRAM = """
#include <vector>
#if !defined(__GNUC__)
#error "GCC or Clang is needed: the kernels use their vector extensions"
#endif
int main() {
  const std::vector<int> v = {1, 2};
  if constexpr (sizeof(void*) == 8) return static_cast<int>(v.size()) - 2;
}
"""


def _site_packages() -> Iterator[Path]:
    """Where the target's torch may lie, likeliest first.

    pip runs the target's own interpreter. uv does not, and does not say which the target is: there
    an activated environment is on the search path, and its default one beside the sources.
    """
    for kind in ("purelib", "platlib"):
        yield Path(sysconfig.get_path(kind))
    folders = [Path(p).parent for p in os.environ.get("PATH", "").split(os.pathsep) if p]
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for folder in [*folders, Path.cwd() / ".venv"]:
        yield folder / "lib" / version / "site-packages"


def _torch_folder() -> Path | None:
    """An installed torch that the libraries can be built against."""
    spec = importlib.util.find_spec("torch")
    here = [Path(spec.origin).parent] if spec and spec.origin else []
    for folder in [*here, *(p / "torch" for p in _site_packages())]:
        version = folder / "version.py"
        if not version.is_file():
            continue
        numbers = re.findall(r"\d+", runpy.run_path(str(version))["__version__"])[:2]
        if tuple(map(int, numbers)) >= (2, 10):
            return folder
    return None


def _compiler() -> list[str] | None:
    """The C++ compiler that CMake would take first."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    found = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    return [found] if found else None


def _why_not_native() -> str | None:
    """Why nothing can be compiled here; None if it can."""
    if not sys.platform.startswith(("linux", "darwin")):
        return f"the platform {sys.platform} is not supported"
    command = _compiler()
    if command is None:
        return "no C++ compiler was found"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text(_PROGRAM)
        line = [*command, "-std=c++17", str(source), "-o", str(Path(folder, "probe"))]
        try:
            subprocess.run(line, check=True, capture_output=True, text=True, timeout=120)
        except subprocess.CalledProcessError as error:
            said = error.stderr.strip()[-300:]
            return f"{shlex.join(command)} cannot compile C++17" + (f": {said}" if said else "")
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{shlex.join(command)} does not run: {error}"
    return None


def _asked_for_pure(settings: dict | None) -> bool:
    value = str((settings or {}).get("wheel.cmake", "true")).lower()
    return value in ("0", "false", "no", "off")


def _decided(settings: dict | None) -> dict:
    """The settings, with `wheel.cmake=false` where nothing can be compiled."""
    settings = dict(settings or {})
    if _asked_for_pure(settings):
        return settings
    why = _why_not_native()
    if why is None:
        torch = _torch_folder()
        return settings | ({"cmake.define.LANDSCAPEX_TORCH": str(torch)} if torch else {})
    print(
        f"*** landscapex: building without compiled kernels, because {why}.\n"
        "*** The package will run on plain PyTorch, more slowly. Install a C++17 compiler\n"
        "*** (for example: apt-get install g++) and install landscapex again to get them.",
        file=sys.stderr,
        flush=True,
    )
    settings["wheel.cmake"] = "false"
    return settings


def _requires(names: list[str], settings: dict) -> list[str]:
    return names if _asked_for_pure(settings) or _torch_folder() else [*names, "torch>=2.10"]


def get_requires_for_build_wheel(config_settings=None):
    settings = _decided(config_settings)
    return _requires(_scikit.get_requires_for_build_wheel(settings), settings)


def get_requires_for_build_editable(config_settings=None):
    settings = _decided(config_settings)
    return _requires(_scikit.get_requires_for_build_editable(settings), settings)


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    return _scikit.prepare_metadata_for_build_wheel(metadata_directory, _decided(config_settings))


def prepare_metadata_for_build_editable(metadata_directory, config_settings=None):
    return _scikit.prepare_metadata_for_build_editable(
        metadata_directory, _decided(config_settings)
    )


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    return _scikit.build_wheel(wheel_directory, _decided(config_settings), metadata_directory)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    return _scikit.build_editable(wheel_directory, _decided(config_settings), metadata_directory)
