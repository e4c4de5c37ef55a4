"""R4: kernels under sanitizers of addresses, undefined behaviour and races, CPU and emulated CUDA.

Silence means something only if what is planted is found: bugs are planted into the kernels, and
every one has to be reported.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from reliability.figure import Figure
from reliability.suites import ROOT, Suite, run_tests

# What is in each file of tests; a file that is added has only its name.
TITLES = {
    "test_planted_bugs.py": "operators, CPU and emulated CUDA kernels",
    "test_program_sanitized.py": "grid program, CPU kernels",
    "test_device_sanitized.py": "grid program, emulated CUDA kernels",
    "test_device_contraction.py": "contraction, emulated CUDA kernel",
    "test_device_tensor_cores.py": "contraction, emulated tensor cores",
    "test_device_planted.py": "grid program, what its own tests find",
}
PLANTED = ("planted", "caught", "catches")  # words of tests that plant a bug
EVERYDAY = 0.5  # shares below take the tests of every day, which are not those of most sanitizers


def measure(share: float) -> Iterator[Figure]:
    """The figures of all tests under sanitizers.

    Args:
        share: Below `EVERYDAY` the tests that are not slow; those take seconds.

    Yields:
        Two for each file: kernels as they are, and bugs.
    """
    everyday = share < EVERYDAY
    cores = str(len(os.sched_getaffinity(0)))
    chosen = ("-m", "not slow") if everyday else ("-n", cores, "--dist", "worksteal")
    files = [ROOT / "tests/native/test_planted_bugs.py", *ROOT.glob("tests/test_*sanitized*.py")]
    files += [ROOT / "tests" / name for name in TITLES if not any(f.name == name for f in files)]
    for path in files[:1] if everyday else files:
        found = run_tests(str(path), "-o", "timeout=3600", *chosen)
        yield from _figures(TITLES.get(path.name, path.name), found)


def _figures(title: str, found: Suite) -> Iterator[Figure]:
    clean, failed = _right(found.passed), _right(found.failed)
    caught, missed = _planted(found.passed), _planted(found.failed)
    skipped = f", {len(found.skipped)} skipped" if found.skipped else ""
    yield Figure(
        f"{title}, as they are",
        f"{len(clean) + len(failed)} runs",
        _listed(failed, "with a report") + skipped,
        bool(clean) and not failed and not found.skipped,
    )
    if caught or missed:
        yield Figure(
            f"{title}, with a bug planted",
            f"{len(caught) + len(missed)} bugs",
            f"{len(caught)} caught, {_listed(missed, 'missed')}{skipped}",
            not missed and not found.skipped,
        )


def _planted(names: Iterable[str]) -> list[str]:
    return [name for name in names if any(word in name.split("[")[0] for word in PLANTED)]


def _right(names: Iterable[str]) -> list[str]:
    planted = _planted(names := list(names))
    return [name for name in names if name not in planted]


def _listed(names: list[str], what: str) -> str:
    return f"{len(names)} {what}" + "".join(f", {name}" for name in names)
