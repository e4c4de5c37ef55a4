"""R10: every block of code in the documentation runs, and the demo asks nothing of the network."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from reliability.figure import Figure
from reliability.suites import ROOT, run_tests
from test_readme import EVERY_PAGE, WITHOUT_CODE, blocks

# Imported by every Python of a process whose path has its folder. It notes whoever turns to the
# network, and stops them; a child process may talk to its parent.
GUARD = """
import os, socket, sys

def guard(event, args):
    asks = event in ("socket.getaddrinfo", "socket.gethostbyname")
    if event in ("socket.connect", "socket.sendto"):
        asks = args[0].family != socket.AF_UNIX
    if asks:
        with open({log!r}, "a") as log:
            log.write(f"{{event}} {{args[-1]}}\\n")
        raise OSError(101, "there is no network")

sys.addaudithook(guard)
"""
ASK = "import urllib.request as r; r.urlopen('http://127.0.0.1:9/')"
EVERY_POINT = 0.5  # shares below take a demo of few points, and the fastest of the gallery
FAST = ("02_interpolation", "10_weights")


def measure(share: float) -> Iterator[Figure]:
    """The figures of everything in the documentation that can be executed.

    Args:
        share: Below `EVERY_POINT` blocks and gallery are those that take seconds.

    Yields:
        Blocks, the notebook, examples of docstrings, the reference, the gallery, the demo.
    """
    whole = share >= EVERY_POINT
    pages = [page for page in EVERY_PAGE if page not in WITHOUT_CODE]
    yield _blocks(pages if whole else pages[:1])
    notebook = run_tests("tests/test_notebook.py", "-o", "timeout=900")
    yield Figure("notebook", "1 notebook", str(notebook), notebook.clean)
    examples = run_tests("tests/test_readme.py", "-k", "docstrings")
    count = f"{len(examples.passed) + len(examples.failed)} modules"
    yield Figure("examples of docstrings", count, str(examples), examples.clean)
    names = run_tests(
        "tests/test_docs.py", "tests/test_readme.py", "-k", "not every_block and not docstrings"
    )
    count = f"{len(names.passed) + len(names.failed)} checks"
    yield Figure("links, and public names in the reference", count, str(names), names.clean)
    yield _gallery(whole)
    yield _demo(() if whole else ("--points", "11"))


def _blocks(pages: list[str]) -> Figure:
    """All blocks of code of some pages; that no page is forgotten is tested with the links."""
    tests = [f"tests/test_readme.py::test_every_block_runs[{page}]" for page in pages]
    found = run_tests("-o", "timeout=900", *tests)
    count = f"{sum(len(blocks(page)) for page in pages)} blocks on {len(pages)} pages"
    return Figure("blocks of code", count, str(found), found.clean)


def _gallery(whole: bool) -> Figure:
    """Every page of the gallery from top to bottom, by itself."""
    pages = sorted(ROOT.glob("docs/gallery/*.py"))
    pages = [page for page in pages if whole or page.stem in FAST]
    failed, asked, began = [], [], time.monotonic()
    for page in pages:
        status, _, wanted = offline(str(page))
        asked += wanted
        if status:
            failed.append(page.stem)
    found = f"{len(failed)} failed" + "".join(f", {page}" for page in failed)
    found += f"; asked the network {len(asked)} times, {time.monotonic() - began:.0f} s"
    return Figure("gallery", f"{len(pages)} pages", found, bool(pages) and not failed and not asked)


def _demo(options: tuple[str, ...]) -> Figure:
    """The demo where there is no network; that there is none is tried first."""
    refused, _, noted = offline("-c", ASK)
    status, left, asked = offline("-m", "landscapex", "demo", *options)
    pictures = [name for name in left if name.endswith(".png")]
    well = status == 0 and not asked and "landscapex-demo/surface.nc" in left and bool(pictures)
    found = f"exit status {status}, {len(pictures)} pictures; asked the network {len(asked)} times"
    if not (refused and noted):
        found += "; but the network was not cut off"
    return Figure("`landscapex demo` without a network", "1 run", found, well and bool(noted))


def offline(*arguments: str) -> tuple[int, list[str], list[str]]:
    """Run Python in an empty folder without a network.

    Args:
        arguments: Of Python.

    Returns:
        Exit status, the files that it left, and what it asked of the network.
    """
    with tempfile.TemporaryDirectory() as folder:
        guard, log, work = (Path(folder, name) for name in ("guard", "log", "work"))
        guard.mkdir()
        work.mkdir()
        (guard / "sitecustomize.py").write_text(GUARD.format(log=str(log)))
        path = os.pathsep.join(filter(None, [str(guard), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": path, "MPLBACKEND": "agg"}
        command = [sys.executable, "-P", *arguments]
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
        left = [p.relative_to(work).as_posix() for p in work.rglob("*") if p.is_file()]
        asked = log.read_text().splitlines() if log.exists() else []
        return done.returncode, sorted(left), asked
