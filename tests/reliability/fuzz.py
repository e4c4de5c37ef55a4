"""A coverage-guided fuzzer on the readers (R3): no input makes one of them fail in a way not ours.

    python tests/reliability/fuzz.py "sealed journal" --seconds 60

What it finds is mended, and kept in ``tests/data/damaged``, a folder per target, for the everyday
tests. It needs atheris: https://github.com/google/atheris.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import math
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))

from reliability.figure import Figure  # noqa: E402 - found above this file, however it is run
from reliability.scratch import scratch  # noqa: E402

SECONDS = 60.0  # per target
KEPT = TESTS / "data" / "damaged"
FOUND = Path(__file__).parent / "out"  # where a measurement leaves input that is a defect
_FEWEST = 20  # runs per second, less is no fuzzing
_LONGEST = 4096  # bytes of an input
_PARTS = ("storage", "grids.options", "grids.time_limit", "trajectories.runs", "_directions")
# What a fuzzer would be long to come by.
_WORDS = ["null", "1e999", "-1", "NaN", "Infinity", "[[", '":', '",', "{}", "1" + "0" * 400]
_WORDS += ["crc32", "start", "values", "0x1p0", "nan:", "shard", "axes", "alpha", "loss", "center"]
_WORDS += ["notes", "step", "sha256", "weight_map", "log_history", "__metadata__", "data_offsets"]

_VALUES = [None, True, 0, -1, 1.5, 2**63, 10**400, math.inf, math.nan, [], {}, [[]], [1, 2]]
_VALUES += ["", "nan:", "0x1p9999", "\ud800", "a/b", "..", "loss", "beta", [["0x1p0"]]]
_VALUES += ["F8_E4M3", "F8_E8M0", "F4", "BOOL", "C64", "BF16", "U64", [0, 2**62], [2**40, 2**40]]


def measure(share: float) -> Iterator[Figure]:
    """Let the fuzzer loose on every target, one after the other."""
    if importlib.util.find_spec("atheris") is None:
        yield Figure("fuzzer on the readers", "0 inputs", "atheris is not installed", kept=False)
        return
    from reliability.fuzz_targets import TARGETS

    for target in TARGETS:
        yield _figure(target, max(2.0, SECONDS * share))


def _figure(target: str, seconds: float) -> Figure:
    FOUND.mkdir(exist_ok=True)
    line = [sys.executable, __file__, target, "--seconds", str(seconds), "--found", str(FOUND)]
    with scratch() as folder:
        environment = {**os.environ, "TMPDIR": str(folder)}  # it ends without clearing away
        done = subprocess.run(line, capture_output=True, check=False, env=environment)
    said = done.stderr.decode(errors="replace")
    runs, seed, reached = (
        int(found[-1]) if (found := re.findall(pattern, said)) else 0
        for pattern in (r"number_of_executed_units: (\d+)", r"INITED cov: (\d+)", r" cov: (\d+)")
    )
    if done.returncode:
        print(said[-5000:], file=sys.stderr)
    status = f"; it ended with exit status {done.returncode}" if done.returncode else ""
    return Figure(
        f"fuzzer on {target}",
        f"{runs:,} inputs",
        f"{int(bool(done.returncode))} defects{status}; {reached} places of the code reached, "
        f"{seed} of them by valid input",
        kept=not done.returncode and runs > _FEWEST * seconds and reached > 0,
    )


def fuzz(target: str, seconds: float, found: Path) -> None:
    """Run one target; does not return.

    Args:
        target: Its name.
        seconds: How long.
        found: Where an input that is a defect is written.
    """
    import atheris

    # Not before: it sees no more of a module that is there already.
    with atheris.instrument_imports(include=[f"landscapex.{part}" for part in _PARTS]):
        from reliability import fuzz_targets
    folder = Path(tempfile.mkdtemp())  # libFuzzer ends the process: nobody here could remove it
    words, corpus = folder / "words", folder / "corpus"
    quoted = (w.replace("\\", "\\\\").replace('"', '\\"') for w in _WORDS)
    words.write_text("".join(f'"{w}"\n' for w in quoted))
    corpus.mkdir()
    inputs = fuzz_targets.SEEDS()[target] + [p.read_bytes() for p in kept(target)]
    for k, data in enumerate(inputs):
        (corpus / f"{k}").write_bytes(data)
    options = [
        "-seed=1", f"-max_total_time={round(seconds)}", f"-max_len={_LONGEST}", f"-dict={words}",
        "-timeout=5", "-rss_limit_mb=6000", f"-artifact_prefix={found}/", "-print_final_stats=1",
        str(corpus),
    ]  # fmt: skip

    def mutate(data: bytes, size: int, seed: int) -> bytes:
        """Every other time as JSON, which bytes at random seldom stay."""
        change = change_header if target in ("tensor file", "safetensors") else change_json
        changed = change(data, random.Random(seed))
        return atheris.Mutate(data, size) if changed is None or len(changed) > size else changed

    atheris.Setup([sys.argv[0], *options], fuzz_targets.TARGETS[target], custom_mutator=mutate)
    atheris.Fuzz()


def change_json(data: bytes, rng: random.Random) -> bytes | None:
    """Replace a value in one of some lines of JSON; a first brace may be missing.

    Args:
        data: Lines.
        rng: For all that is drawn.

    Returns:
        Other lines; None if the line that was drawn is not JSON, and every other time.
    """
    lines = data.split(b"\n")
    k = rng.randrange(len(lines))
    brace = b"" if lines[k][:1] in (b"{", b"[") else b"{"
    try:
        whole = [json.loads(brace + lines[k])]
    except (ValueError, RecursionError):
        return None
    if rng.randrange(2) or whole == [{}]:
        return None
    places = list(_places(whole))[bool(brace) :]  # what has lost its brace stays an object
    container, key = rng.choice(places)
    other, from_key = rng.choice(places)
    match rng.randrange(5):
        case 0 | 1:
            container[key] = rng.choice(_VALUES)
        case 2:
            container[key] = copy.deepcopy(other[from_key])
        case 3:
            container[key] = [container[key], container[key]]
        case 4 if container is not whole:
            del container[key]
    lines[k] = json.dumps(whole[0], separators=(",", ":")).encode()[len(brace) :]
    return b"\n".join(lines)


def change_header(data: bytes, rng: random.Random) -> bytes | None:
    """The same for the header of a safetensors file, which its length comes before."""
    end = 8 + int.from_bytes(data[:8], "little")
    changed = change_json(data[8:end], rng) if end <= len(data) else None
    return changed and len(changed).to_bytes(8, "little") + changed + data[end:]


def _places(container: Any) -> Iterator[tuple[Any, Any]]:
    """All values in a value, as what holds them and where."""
    for key in list(container) if isinstance(container, dict) else range(len(container)):
        yield container, key
        if isinstance(container[key], dict | list):
            yield from _places(container[key])


def kept(target: str) -> list[Path]:
    """Inputs that were defects once."""
    return sorted((KEPT / target.replace(" ", "_")).glob("*"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--found", type=Path, default=Path(tempfile.gettempdir()))
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    fuzz(asked.target, asked.seconds, asked.found)


if __name__ == "__main__":
    main()
