"""R9: of small changes to directions, grids and storage, how many make a test fail.

    python tests/reliability/mutants.py grids --count 50

says which of 50 changes no test finds. Each change is tried in a copy of the repository with the
tests that enter its block of statements, the quickest first, for up to 8 s of tests. A change that
these do not find counts as not found, though slower tests might find it.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import os
import random
import sys
import tempfile
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from planted.runner import ROOT, Workspace
from reliability import mutator
from reliability.figure import Figure
from reliability.mutator import Change

COUNT = 300  # of each package
SEED = 1  # of the sample; another one after tests were written for what a sample left
PROMISED = 0.85
SECONDS = 8.0  # of tests, for one change
TOUR = 900.0  # for all tests
PATIENCE = 20.0  # beyond five times what the tests take
ENDLESS = "no end"
NOTHING_FAILED = (0, 5)  # pytest's exit status: all passed, or there were none
SAME = Path(__file__).with_name("mutants.toml")  # changes that change nothing, and why


@dataclass(frozen=True)
class Package:
    """Files that are changed, and the files of tests that are there for them."""

    files: tuple[str, ...]
    tests: tuple[str, ...]


PACKAGES = {
    "directions": Package(
        (
            "axes.py", "_directions.py", "model/drawn.py", "model/parameters.py",
            "model/entries.py",
        ),
        (
            "axes*", "parameters*", "drawn_directions", "run_directions", "filter_normalize",
            "perturb", "projections", "models", "objective_refused", "objective", "devices",
        ),
    ),
    "grids": Package(
        ("grids/*.py",),
        (
            "grid", "results*", "line_measures", "evaluate*", "run_directions", "resume", "shards",
            "ranks", "time_limit", "clocks", "interrupts", "full_disk", "own_measures", "metrics",
            "store", "plot_manners", "header", "drawn_directions", "export_tables", "dataset",
        ),
    ),
    "storage": Package(
        ("storage/*.py",),
        (
            "store", "header", "journal*", "lock", "checkpoints", "tensor_file*", "axes_files",
            "resume", "shards", "full_disk", "results*", "grid", "trajectory_results", "files*",
            "recorder*", "evaluate", "trajector*", "runs", "axes", "drawn_directions", "dataset",
            "damaged_files", "devices", "export_formats",
        ),
    ),
}  # fmt: skip

# In the copy: says which test enters which block. Children of tests know the test, too.
TOUCHED = """\
import json, os
from contextlib import suppress

seen, untold = set(), []
write, environment = os.write, os.environ
path = os.path.join(os.path.dirname(__file__), "touched")
out = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY)


def enter(file, block):
    test = environment.get("PYTEST_CURRENT_TEST")
    if test is not None and (test, file, block) not in seen:
        seen.add((test, file, block))
        untold.append(json.dumps([test, file, block]).encode() + b"\\n")
        with suppress(OSError):  # tests limit the size of files: then it is told later
            while untold:
                write(out, untold[-1])
                untold.pop()
"""
# In the copy: runs the chosen tests in the order given, and says how long tests take.
CONFTEST = """\
import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def pytest_configure(config):
    if json.loads((FOLDER / "chosen").read_text()) is None:
        config.option.maxfail = 0


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    chosen = json.loads((FOLDER / "chosen").read_text())
    if chosen is None:
        items[:] = [i for i in items if i.get_closest_marker("slow") is None]
        return
    order = {name: k for k, name in enumerate(chosen)}
    items[:] = sorted((i for i in items if i.nodeid in order), key=lambda i: order[i.nodeid])


def pytest_runtest_logreport(report):
    with (FOLDER / "told").open("a") as file:
        file.write(json.dumps([report.nodeid, report.duration, report.outcome]) + "\\n")
"""


@dataclass
class Tests:
    """What is known of the tests.

    Attributes:
        seconds: That each takes.
        of_block: Tests that enter a block of a file.
        of_file: Tests that enter any block of a file.
    """

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    of_block: dict[tuple[str, int], set[str]] = field(default_factory=lambda: defaultdict(set))
    of_file: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def choose(self, file: str, source: str, change: Change) -> list[str]:
        """The tests for a change, the quickest first, as many as there is time for."""
        if change.block is not None:
            found = self.of_block[file, change.block]
        else:
            blocks = mutator.users(source, change.names)
            found = set().union(*(self.of_block[file, b] for b in blocks)) or self.of_file[file]
        return self.quickest(found)

    def quickest(self, tests: Iterable[str]) -> list[str]:
        """As many of some tests as there is time for: half of it for the quickest of all.

        The other half is for one case of each test, then for a second case, and so on.
        """
        quick = sorted(tests, key=lambda t: (self.seconds[t], t))
        turns: Counter[str] = Counter()
        turn = {}
        for test in quick:
            name = test.partition("[")[0]
            turn[test] = turns[name] = turns[name] + 1
        chosen: set[str] = set()
        total = 0.0
        for queue, limit in (quick, SECONDS / 2), (sorted(quick, key=turn.get), SECONDS):
            for test in queue:
                if test not in chosen and total + self.seconds[test] <= limit:
                    chosen.add(test)
                    total += self.seconds[test]
        return [test for test in quick if test in chosen]


@dataclass(frozen=True)
class Tried:
    """A change that was tried; ``said`` is None if no test failed."""

    file: str
    change: Change
    tests: int
    said: str | None

    def __str__(self) -> str:
        c = self.change
        return f"{self.file}:{c.line} {c.function}: {c.old} -> {c.new or 'nothing'}"


def measure(share: float) -> Iterator[Figure]:
    """The score of every package, by a sample of its changes."""
    count = max(5, round(COUNT * share))
    with Trial(PACKAGES, max(1, len(os.sched_getaffinity(0)))) as trial:
        for name in PACKAGES:
            yield _figure(name, trial, count)


def _figure(name: str, trial: Trial, count: int) -> Figure:
    all_of_it = trial.changes(name)
    tried = trial.try_out(trial.sample(all_of_it, count), name)
    unfounded = trial.unfounded(name)
    found = sum(t.said is not None for t in tried)
    endless = sum(t.said == ENDLESS for t in tried)
    low, high = interval(found, len(tried))
    for t in tried:
        if t.said is None:
            tqdm.write(f"NOT FOUND  {t}", file=sys.stderr)
    return Figure(
        f"small changes to {name}",
        f"sample of {len(tried)} of {len(all_of_it)}",
        f"{found / len(tried):.1%} make a test fail ({low:.0%} to {high:.0%} with 95 % "
        f"confidence), {endless} of them because it never ends; of {len(trial.files(name))} files "
        f"{len(unfounded)} fail unchanged",
        kept=found / len(tried) >= PROMISED and not unfounded,
    )


def interval(found: int, tried: int) -> tuple[float, float]:
    """Wilson's interval of 95 % confidence for a share."""
    z, p = 1.96, found / tried
    middle = (p + z * z / (2 * tried)) / (1 + z * z / tried)
    half = z / (1 + z * z / tried) * math.sqrt(p * (1 - p) / tried + (z / (2 * tried)) ** 2)
    return max(0.0, middle - half), min(1.0, middle + half)


def harmless() -> list[dict[str, str]]:
    """The changes that change nothing: file, function, old, new, and why."""
    return tomllib.loads(SAME.read_text())["same"]


def stale() -> list[dict[str, str]]:
    """Those of them that the sources do not know any more."""
    return [
        entry
        for entry in harmless()
        if not any(
            _is(change, f"landscapex/{entry['file']}", entry)
            for change in mutator.changes(
                ast.parse((ROOT / "landscapex" / entry["file"]).read_text())
            )
        )
    ]


def _is(change: Change, file: str, entry: dict[str, str]) -> bool:
    """Whether a change is the one that an entry names."""
    return file == f"landscapex/{entry['file']}" and all(
        getattr(change, key) == entry[key] for key in ("function", "old", "new")
    )


class Trial:
    """Copies of the repository in which changes are tried.

    Args:
        packages: Names of `PACKAGES`.
        copies: That work at the same time.
    """

    def __init__(self, packages: Sequence[str], copies: int) -> None:
        self._packages = packages
        self._copies = copies
        self._stack = ExitStack()
        self._free: SimpleQueue[Workspace] = SimpleQueue()
        self._same = harmless()

    def __enter__(self) -> Trial:
        for _ in range(self._copies):
            folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
            copy = self._stack.enter_context(Workspace(folder))
            (folder / "touched.py").write_text(TOUCHED)
            (folder / "conftest.py").write_text(CONFTEST)
            self._free.put(copy)
        self._first = copy.folder
        self.sources = {
            file: (self._first / file).read_text()
            for package in self._packages
            for file in self.files(package)
        }
        self.known = self._look()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def files(self, package: str) -> list[str]:
        """The files of a package, as paths within the repository."""
        return _glob(self._first, "landscapex/{}", PACKAGES[package].files)

    def changes(self, package: str) -> list[tuple[str, int, Change]]:
        """All changes to a package that change something: file, number, change."""
        return [
            (file, number, change)
            for file in self.files(package)
            for number, change in enumerate(mutator.changes(ast.parse(self.sources[file])))
            if not any(_is(change, file, entry) for entry in self._same)
        ]

    @staticmethod
    def sample(changes: list[tuple[str, int, Change]], count: int) -> list[tuple[str, int, Change]]:
        """So many of them, of every file in proportion, the same each time."""
        by_file = defaultdict(list)
        for change in changes:
            by_file[change[0]].append(change)
        queue = []
        for number, part in enumerate(by_file.values()):
            random.Random(f"{SEED} {number}").shuffle(part)
            queue += [((i + 0.5) / len(part), number, c) for i, c in enumerate(part)]
        queue.sort(key=lambda entry: entry[:2])
        return [change for _, _, change in queue[:count]]

    def try_out(self, changes: Sequence[tuple[str, int, Change]], title: str) -> list[Tried]:
        """Try changes, one at a time in each copy."""
        return self._in_copies(self._try, changes, title)

    def unfounded(self, package: str) -> list[str]:
        """What pytest says where tests of a file fail although nothing is changed."""

        def fails(copy: Workspace, file: str) -> str | None:
            text = ast.unparse(ast.parse(self.sources[file]))
            return self._run(copy, file, text, self.known.quickest(self.known.of_file[file]))

        said = self._in_copies(fails, self.files(package), f"{package}, unchanged")
        return [s for s in said if s is not None]

    def _try(self, copy: Workspace, given: tuple[str, int, Change]) -> Tried:
        file, number, change = given
        source = self.sources[file]
        tests = self.known.choose(file, source, change)
        said = self._run(copy, file, mutator.changed(source, number), tests)
        return Tried(file, change, len(tests), said)

    def _run(self, copy: Workspace, file: str, text: str, tests: list[str]) -> str | None:
        """What pytest says if a test fails with another text in a file."""
        if not tests:
            return None
        (copy.folder / "chosen").write_text(json.dumps(tests))
        where = sorted({test.partition("::")[0] for test in tests})
        limit = PATIENCE + 5 * sum(self.known.seconds[t] for t in tests)
        with copy.changed(file, text):
            status, said = copy.outcome(where, limit)
        if status is None:
            return ENDLESS
        return None if status in NOTHING_FAILED else said

    def _in_copies(self, work: Callable, tasks: Sequence, title: str) -> list:
        def in_one(task: object) -> object:
            copy = self._free.get()
            try:
                return work(copy, task)
            finally:
                self._free.put(copy)

        with ThreadPoolExecutor(self._copies) as pool:
            done = tqdm(pool.map(in_one, tasks), title, len(tasks), leave=False, smoothing=0)
            return list(done)

    def _look(self) -> Tests:
        """Run all tests once, with sources that say which of them enters which block."""
        wanted = [t for p in self._packages for t in PACKAGES[p].tests]
        files = _glob(self._first, "tests/test_{}.py", wanted)
        known = Tests()
        for entered, told in self._in_copies(self._listen, files, "tests"):
            for test, seconds, outcome in told:
                known.seconds[test] += seconds if outcome == "passed" else math.inf
            # What is set up for one test may serve all others of its file.
            everyone = {test for test, *_ in told}
            for current, file, block in entered:
                test, _, phase = current.rpartition(" ")
                tests = everyone if phase == "(setup)" else {test}
                known.of_block[file, block] |= tests
                known.of_file[file] |= tests
        return known

    def _listen(self, copy: Workspace, test_file: str) -> tuple[list, list]:
        """What one file of tests enters, and how its tests end."""
        (copy.folder / "chosen").write_text("null")
        out = copy.folder / "touched", copy.folder / "told"
        with ExitStack() as stack:
            for file, source in self.sources.items():
                stack.enter_context(copy.changed(file, mutator.marked(source, file)))
            for path in out:
                path.write_text("")
            copy.outcome([test_file], TOUR)
        return tuple([json.loads(line) for line in path.open() if _is_whole(line)] for path in out)


def _is_whole(line: str) -> bool:
    """Whether a line was not cut off by a limit on the size of files."""
    try:
        return isinstance(json.loads(line), list)
    except ValueError:
        return False


def _glob(folder: Path, path: str, names: Sequence[str]) -> list[str]:
    """Files of a folder, once each, as paths within it."""
    found = {p for name in names for p in folder.glob(path.format(name))}
    return [str(p.relative_to(folder)) for p in sorted(found)]


def main() -> int:
    """Try changes to one package and say which are not found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", choices=PACKAGES)
    parser.add_argument("--count", type=int, default=COUNT)
    asked = parser.parse_args()
    with Trial([asked.package], 1) as trial:
        print(_figure(asked.package, trial, asked.count))
    return 0


if __name__ == "__main__":
    sys.exit(main())
