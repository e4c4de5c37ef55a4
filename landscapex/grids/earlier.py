"""What earlier runs, and others that go on now, left of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from landscapex.engine.layout import Layout
from landscapex.errors import ResumeMismatchError
from landscapex.grids.options import Options
from landscapex.grids.results import Surface
from landscapex.storage import opening, store
from landscapex.storage.files import check_path
from landscapex.storage.header import RunHeader, differences
from landscapex.storage.journal import journal_path
from landscapex.storage.parts import read_header


@dataclass(frozen=True)
class Earlier:
    """How the first part of a run was computed; what goes on with it should do the same.

    Attributes:
        threads: Other threads may round differently; None if there is no first part.
        layout: Batches of other sizes round differently.
        engine: "eager" if the run began there, for engines round differently; else "auto".
    """

    threads: int | None = None
    layout: Layout | None = None
    engine: str = "auto"


def read_earlier(options: Options) -> Earlier:
    """Read what is recorded in the journals of this run.

    Args:
        options: Of the run that goes on.

    Returns:
        What to take over.

    Raises:
        CorruptFileError: If a journal cannot be read.
    """
    if options.out is None or not options.resume:
        return Earlier()
    header = read_header(options.out)
    recorded: dict[str, Any] = {} if header is None else header.recorded
    threads, layout = recorded.get("threads"), recorded.get("layout")
    return Earlier(
        threads if isinstance(threads, int) else None,
        Layout(**layout) if isinstance(layout, dict) else None,
        "eager" if recorded.get("engine") == "eager" else "auto",
    )


def finished_run(options: Options, header: RunHeader, *, begun: bool) -> Surface | None:
    """The result that is already at ``out``, if it is this one.

    Args:
        options: Of the run.
        header: Of the run.
        begun: Whether others compute it, or did: then another result there is to be replaced.

    Returns:
        The result, or None if it is not there.

    Raises:
        ResumeMismatchError: If another result is there.
    """
    out = options.out
    if out is None or not out.is_file():
        return None
    if not options.resume:
        store.check_replaceable(out)
        return None
    if journal_path(check_path(out), options.shard).exists():
        return None  # it is newer than the result, whose place it will take
    there = opening.open(out)
    if found := differences(opening.header_of(there), header):
        if begun:
            return None
        raise ResumeMismatchError(
            f"{out} holds the result of another run; pass resume=False to replace it. It differs "
            "in: " + "; ".join(found)
        )
    if not there.complete:
        return None
    return opening.join(out) if begun else there  # who died deleting the journals left some
