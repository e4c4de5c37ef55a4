"""Builds the Python module of the emulated device: as it is, under a sanitizer, with a bug planted.

Objects of sources that are as they were are kept, for all processes of a run of the tests.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from native.harness import COMPILER, ROOT, SANITIZERS, Harness, whole

NAME = f"_program_emulated{sysconfig.get_config_var('EXT_SUFFIX')}"
PROGRAM = ROOT / "csrc" / "program"


def sources() -> list[str]:
    """As CMakeLists.txt lists them, the driver first."""
    text = (ROOT / "CMakeLists.txt").read_text()
    listed = {
        name: re.search(rf"set\({name}\s([^)]*)\)", text)[1].split()
        for name in ("LX_DEVICE_DRIVER", "LX_DEVICE_STEPS")
    }
    return listed["LX_DEVICE_DRIVER"] + [f"{s}.cu" for s in listed["LX_DEVICE_STEPS"]]


class DeviceModule:
    """Modules in a folder of their own, built when first asked for."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        import pybind11

        self.folder, self._harness = factory.mktemp("modules"), Harness.shared(factory)
        headers = sysconfig.get_path("include"), pybind11.get_include()
        self._flags = ["-fPIC", "-fvisibility=hidden", *(f"-isystem{h}" for h in headers)]

    def build(self, kind: str = "plain") -> Path:
        """The module as the sources are."""
        return self._link(kind, self._objects(kind))

    def plant(self, file: str, old: str, new: str, unit: str = "", kind: str = "plain") -> Path:
        """The module with a bug: ``old`` becomes ``new`` in a file of csrc.

        Args:
            file: Below csrc.
            old: Occurs once.
            new: Instead of it.
            unit: Which source is compiled again if `file` is a header. Its functions are those that
                the linker keeps where other sources have the same.
            kind: Of the build; one of `PARTS` is that of this source alone.
        """
        text = (ROOT / "csrc" / file).read_text()
        assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times in {file}"
        planted = self.folder / hashlib.sha256(repr((file, old, new)).encode()).hexdigest()[:12]
        if not planted.exists():
            for name in ("program", "kernels"):
                shutil.copytree(ROOT / "csrc" / name, planted / name)
            (planted / file).write_text(text.replace(old, new))
        unit = unit or Path(file).name
        source = planted / "program" / unit
        changed = self._harness.compile(source, kind, *self._flags, include=source.parent)
        kind = whole(kind)
        kept = [o for s, o in zip(sources(), self._objects(kind), strict=True) if s != unit]
        return self._link(kind, [changed, *kept])

    def _objects(self, kind: str) -> list[Path]:
        def compiled(name: str) -> Path:
            return self._harness.compile(PROGRAM / name, kind, *self._flags, include=PROGRAM)

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(compiled, sources()))

    def _link(self, kind: str, objects: list[Path]) -> Path:
        """In a folder of its own: an import goes by the file's name."""
        key = hashlib.sha256(repr((kind, objects)).encode()).hexdigest()
        out = self.folder / f"module-{key[:12]}" / NAME
        if not out.exists():
            out.parent.mkdir(exist_ok=True)
            command = [COMPILER, "-shared", *SANITIZERS[kind], *objects, "-pthread", "-o", out]
            subprocess.run(list(map(str, command)), check=True, capture_output=True)
        return out
