"""A copy of the repository in which defects are planted, one at a time."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIBRARIES = ("*.so", "*.dylib", "*.pyd", "*.dll")
SECONDS = 300  # a defect that makes its test hang is found too


@dataclass(frozen=True)
class Planted:
    """One defect: ``old`` becomes ``new`` in ``file``, and ``test`` has to fail.

    ``native=False``: the copy has no compiled libraries, for defects in what replaces them.
    """

    trap: str
    what: str
    file: str
    old: str
    new: str
    test: str
    native: bool = True


class Workspace:
    """Package, tests and settings, copied to a folder; the originals are never touched."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        unwanted = shutil.ignore_patterns("__pycache__", "emulation")
        for name in ("landscapex", "tests"):
            shutil.copytree(ROOT / name, folder / name, ignore=unwanted)
        shutil.copy(ROOT / "pyproject.toml", folder)
        self.libraries = self._compiled()
        for library in self.libraries:
            shutil.copy(library, folder / "landscapex")

    @staticmethod
    def _compiled() -> list[Path]:
        """The libraries of the package that is installed, or of the source tree."""
        import landscapex

        home = Path(landscapex.__file__).parent
        return [path for pattern in LIBRARIES for path in home.glob(pattern)]

    def run(self, tests: Sequence[str]) -> str | None:
        """Run tests against the copy.

        Args:
            tests: pytest's names for them.

        Returns:
            None if they passed, else what pytest said.
        """
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-P", "-m", "pytest", "-x", "-q", "--no-header", "--tb=short"]
        command += ["-p", "no:cacheprovider", "--rootdir", str(self.folder), "-W", "ignore"]
        command += ["--data", str(ROOT.parent / "shared" / "data")]
        try:
            done = subprocess.run(
                [*command, "--", *tests],
                cwd=self.folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=SECONDS * (len(tests) if len(tests) > 1 else 1),
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"no end within {SECONDS} s"
        if done.returncode == 0:
            return None
        if done.returncode != 1:  # not "tests failed": nothing ran, or pytest itself broke
            raise RuntimeError(f"pytest could not run {tests}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def plant(self, planted: Planted) -> bool:
        """Plant a defect, run its test, take the defect out again.

        Args:
            planted: The defect.

        Returns:
            Whether the test failed.

        Raises:
            ValueError: If ``old`` is not in the file exactly once.
        """
        path = self.folder / planted.file
        text = path.read_text()
        if text.count(planted.old) != 1:
            raise ValueError(
                f"{planted.trap}: `old` must occur once in {planted.file}, got "
                f"{text.count(planted.old)} times: {planted.old!r}"
            )
        libraries = [self.folder / "landscapex" / path.name for path in self.libraries]
        hidden = [] if planted.native else libraries
        try:
            path.write_text(text.replace(planted.old, planted.new))
            for library in hidden:
                library.rename(library.with_suffix(".hidden"))
            return self.run([planted.test]) is not None
        finally:
            path.write_text(text)
            for library in hidden:
                library.with_suffix(".hidden").rename(library)
