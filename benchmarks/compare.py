"""Compares landscapex with other tools, on cases whose answers are known, and writes a page.

    python benchmarks/compare.py docs/compared.md

The other tools are fetched from the package index, in the versions of .ci/oracles.txt, into a
folder that is thrown away. It takes a few minutes on one core.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import compare_curvature
import compare_surfaces
import machine
import torch
from compare_cases import OURS, TOOLS, Case, Raised
from compare_page import Results, page
from compare_run import Stopped, answers, ask, install

import landscapex as lx

CASES = [*compare_surfaces.CASES, *compare_curvature.CASES]
SECONDS = 1800.0  # for the times


def compare(cases: Sequence[Case], folder: Path) -> Results:
    """Ask everyone everything."""
    torch.set_num_threads(1)
    _import_once()
    missing = install(folder)
    given = {}
    for case in cases:
        sys.stdout.write(f"{case.title}\n")
        sys.stdout.flush()
        given[case.name] = answers(case, missing)
    sys.stdout.write("Times\n")
    return Results(
        answers=given,
        missing=missing,
        versions=_versions(missing),
        kernels=ask(_kernels, SECONDS),
        times=_times(),
        processor=ask(machine.describe, SECONDS)["processor"],
    )


def _import_once() -> None:
    """What many processes would import again: modules, of which none computes anything yet."""
    for name in ("matplotlib.pyplot", "pytest", "scipy.sparse.linalg", "xarray"):
        importlib.import_module(name)
    for name in lx.__all__:
        getattr(lx, name)


def _versions(missing: dict[str, str]) -> dict[str, str]:
    found = {OURS: lx.__version__}
    for tool, distribution in TOOLS.items():
        if tool not in missing:
            found[tool] = importlib.metadata.version(distribution)
    return {**found, "torch": torch.__version__, "Python": platform.python_version()}


def _kernels() -> str:
    chosen = lx.doctor().cpu_chosen
    return f"its {chosen} kernels" if chosen else "plain PyTorch"


def _times() -> dict | Raised:
    import compare_times

    try:
        return ask(compare_times.times, SECONDS)
    except Stopped as reason:
        return Raised(str(reason))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path, help="where the Markdown goes")
    parser.add_argument("--tools", type=Path, help="folder to keep the tools in, and find them")
    parser.add_argument(
        "--case", action="append", choices=[c.name for c in CASES], help="only this, several times"
    )
    options = parser.parse_args(arguments)
    cases = [c for c in CASES if c.name in (options.case or [c.name])]
    with tempfile.TemporaryDirectory() as folder:
        made = page(cases, compare(cases, options.tools or Path(folder)))
    options.page.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
