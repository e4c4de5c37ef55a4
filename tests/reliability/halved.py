"""R8: runs with half of the address space that they want."""

from __future__ import annotations

from collections.abc import Iterator

from reliability.figure import Figure
from reliability.memory import POINTS, TOLERANCE, halved

# Of the one batch that the user made: activations are most of what is wanted. Half as many are not:
# the kernels that oneDNN makes take 8 MB whatever the batch.
SAMPLES = (512, 1024, 2048)


def measure(share: float) -> Iterator[Figure]:
    """The figures of runs that are short of memory.

    Args:
        share: Of `SAMPLES`.

    Yields:
        One for each engine that is asked for, and each size of a batch.
    """
    for samples in SAMPLES[: max(1, round(share * len(SAMPLES)))]:
        for engine in POINTS:
            what = f"half of the memory, engine={engine!r}, batches of {samples}"
            try:
                run = halved(engine, samples)
            except RuntimeError as error:
                yield Figure(what, "1 run", str(error).splitlines()[-1], False)
                continue
            said = f"it said {run.batch}" if run.batch else "it did not say"
            found = (
                f"wanted {run.wanted / 2**20:.0f} MiB; with half of it the {run.engine} engine "
                f"ran, {said}, losses differ by {run.difference:.1e} at most"
            )
            # the compiled engine takes tiles of samples anyway, and has nothing to tell
            told = run.engine != "eager" or (run.noted and run.batch is not None)
            yield Figure(what, "1 run", found, told and run.difference <= TOLERANCE)
