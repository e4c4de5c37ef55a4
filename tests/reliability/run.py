"""Shows what landscapex promises in figures, and writes them into a page.

    python tests/reliability/run.py                     # all at full count, an hour and a half
    python tests/reliability/run.py R1 R3 --share 0.01  # two promises, a hundredth of the counts

Every measurement has a process of its own. Figures at full count are kept beside this file, in
``out/``, so that one promise can be measured again; with ``--page FILE`` all that are kept become
a page. It ends with 1 if a promise is not kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))

# Found beside this file, however it is run.
from reliability.figure import Figure  # noqa: E402
from reliability.page import PROMISES, Measured, page  # noqa: E402

OUT = Path(__file__).parent / "out"


def main() -> int:
    """Measure, tell, keep, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("promises", nargs="*", metavar="R1", help="all without one")
    parser.add_argument("--share", type=float, default=1.0, help="of the full counts")
    parser.add_argument("--page", type=Path, help="where the page is written")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # a module, in its own process
    asked = parser.parse_args()
    if asked.measure:
        return _measure(asked.measure, asked.share)
    if unknown := set(asked.promises) - PROMISES.keys():
        parser.error(f"promises are {', '.join(PROMISES)}, got {', '.join(sorted(unknown))}")
    if not 0 < asked.share <= 1:
        parser.error(f"--share must be in (0, 1], got {asked.share}")
    kept = True
    for promise in asked.promises or PROMISES:
        measured = _in_processes(promise, asked.share)
        kept &= all(f.kept for f in measured.figures)
        if asked.share == 1:
            OUT.mkdir(exist_ok=True)
            (OUT / f"{promise}.json").write_text(json.dumps(dataclasses.asdict(measured), indent=1))
    if asked.page:
        asked.page.write_text(page(_kept()))
    return 0 if kept else 1


def _measure(module: str, share: float) -> int:
    """The figures of one module, a line of JSON each, as soon as they are there."""
    for figure in importlib.import_module(f"reliability.{module}").measure(share):
        print(json.dumps(dataclasses.asdict(figure)), flush=True)
    return 0


def _in_processes(promise: str, share: float) -> Measured:
    """Measure what a promise asks for; a measurement that fails is a figure too."""
    figures, began = [], time.monotonic()
    print(f"{promise}: {PROMISES[promise].text}", flush=True)
    for module in PROMISES[promise].modules:
        line = [sys.executable, __file__, "--measure", module, "--share", str(share)]
        with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for told in process.stdout:
                if told.startswith("{"):
                    figures.append(_told(Figure(**json.loads(told))))
        if process.returncode:
            what = f"the measurement `{module}`"
            said = f"ended with exit status {process.returncode}"
            figures.append(_told(Figure(what, "-", said, kept=False)))
    seconds = time.monotonic() - began
    return Measured(promise, tuple(figures), seconds, datetime.date.today().isoformat())


def _told(figure: Figure) -> Figure:
    word = "kept    " if figure.kept else "NOT KEPT"
    print(f"  {word}  {figure.what}: {figure.count}: {figure.found}", flush=True)
    return figure


def _kept() -> list[Measured]:
    """What was measured at full count, in the order of the promises."""
    found = []
    for promise in PROMISES:
        if (path := OUT / f"{promise}.json").exists():
            data = json.loads(path.read_text())
            figures = tuple(Figure(**f) for f in data.pop("figures"))
            found.append(Measured(figures=figures, **data))
    return found


if __name__ == "__main__":
    sys.exit(main())
