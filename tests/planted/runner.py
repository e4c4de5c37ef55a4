"""A copy of the repository in which defects are planted, one at a time."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIBRARIES = ("*.so", "*.dylib", "*.pyd", "*.dll")
SECONDS = 300  # a defect that makes its test hang is found too
# A process that forks has to be alone: no library may start threads in it.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


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

    @property
    def name(self) -> str:
        return f"{self.trap}-{self.what}".replace(" ", "_")


class Workspace:
    """Package, tests and settings, copied to a folder; the originals are never touched."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        unwanted = shutil.ignore_patterns("__pycache__", "emulation")
        for name in ("landscapex", "tests"):
            shutil.copytree(ROOT / name, folder / name, ignore=unwanted)
        shutil.copy(ROOT / "pyproject.toml", folder)
        self.libraries = [
            Path(shutil.copy(library, folder / "landscapex")) for library in self._compiled()
        ]
        self._server: subprocess.Popen[str] | None = None
        self._plantings = itertools.count(1)

    @staticmethod
    def _compiled() -> list[Path]:
        """The libraries of the package that is installed, or of the source tree."""
        import landscapex

        home = Path(landscapex.__file__).parent
        return [path for pattern in LIBRARIES for path in home.glob(pattern)]

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *_: object) -> None:
        """End the process that runs the tests."""
        if self._server is not None:
            self._server.communicate()
            self._server = None

    def run(
        self, tests: Sequence[str], *, native: bool = True, seconds: float = SECONDS
    ) -> str | None:
        """Run tests against the copy, up to the first that fails.

        Args:
            tests: pytest's names for them.
            native: Whether there are compiled libraries.
            seconds: Time limit of them all.

        Returns:
            None if they passed, else what pytest said.

        Raises:
            RuntimeError: If pytest could not run them.
        """
        with nullcontext() if native else self._without_libraries():
            status, said = self.outcome(tests, seconds)
        if status is None:
            return f"no end within {seconds} s\n{said}"
        if status not in (0, 1):  # not "tests failed": nothing ran, or pytest itself broke
            raise RuntimeError(f"pytest could not run {tests}, status {status}:\n{said}")
        return said if status else None

    def outcome(self, tests: Sequence[str], seconds: float) -> tuple[int | None, str]:
        """pytest's exit status, None if the time was not enough, and what it said."""
        arguments = ["-x", "-q", "--no-header", "--tb=short", "-p", "no:cacheprovider"]
        arguments += ["--rootdir", str(self.folder), "-W", "ignore"]
        arguments += ["--data", str(ROOT.parent / "shared" / "data"), "--", *tests]
        return self._ask(arguments, seconds)

    def plant(self, planted: Planted) -> bool:
        """Plant a defect, run its test, take the defect out again.

        Args:
            planted: The defect.

        Returns:
            Whether the test failed.

        Raises:
            ValueError: If ``old`` is not in the file exactly once.
        """
        text = (self.folder / planted.file).read_text()
        if text.count(planted.old) != 1:
            raise ValueError(
                f"{planted.trap}: `old` must occur once in {planted.file}, got "
                f"{text.count(planted.old)} times: {planted.old!r}"
            )
        with self.changed(planted.file, text.replace(planted.old, planted.new)):
            return self.run([planted.test], native=planted.native) is not None

    @contextmanager
    def changed(self, file: str, text: str) -> Iterator[None]:
        """Another text in a file, for a while."""
        path = self.folder / file
        before = path.read_text()
        try:
            path.write_text(text)
            # Compiled code is known by size and time of its source: each change has its own second.
            second = next(self._plantings)
            os.utime(path, (second, second))
            yield
        finally:
            path.write_text(before)

    def _ask(self, arguments: list[str], seconds: float) -> tuple[int | None, str]:
        """How pytest ended, and what it said."""
        if self._server is None:
            self._server = self._start()
        with suppress(BrokenPipeError):
            print(json.dumps([arguments, seconds]), file=self._server.stdin, flush=True)
        answer = self._server.stdout.readline()
        if not answer:
            raise RuntimeError(f"server.py ended with status {self._server.wait()}")
        status, said = json.loads(answer)
        return status, said

    def _start(self) -> subprocess.Popen[str]:
        """A process that runs pytest in its children, and imports the package from the copy."""
        script = Path(__file__).with_name("server.py")
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.folder),
            "PYTHONDONTWRITEBYTECODE": "",
            **dict.fromkeys(THREADS, "1"),
        }
        return subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", script],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @contextmanager
    def _without_libraries(self) -> Iterator[None]:
        for library in self.libraries:
            library.rename(library.with_suffix(".hidden"))
        try:
            yield
        finally:
            for library in self.libraries:
                library.with_suffix(".hidden").rename(library)
