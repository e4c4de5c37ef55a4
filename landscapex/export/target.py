"""What all exports share: where they may go, and the line that says how numbers were made."""

from __future__ import annotations

import os
from pathlib import Path

from landscapex.errors import ArgumentError, ArgumentTypeError
from landscapex.grids.results import Surface
from landscapex.storage.files import (
    check_output,
    check_replaceable,
    check_space,
    replace_file,
)

_SEPARATOR = " \N{MIDDLE DOT} "


def check_result(surface: object) -> None:
    """Refuse what is not a result.

    Args:
        surface: What shall be exported.

    Raises:
        ArgumentTypeError: If it is not a result.
    """
    if not isinstance(surface, Surface):
        raise ArgumentTypeError(
            f"`surface` must be a result of line, surface or volume, got {type(surface).__name__}."
        )


def check_target(
    path: str | os.PathLike[str], suffixes: tuple[str, ...], marks: tuple[bytes, ...] = ()
) -> Path:
    """Find out, before anything is made, whether it can be written there.

    Args:
        path: Where to.
        suffixes: How the name may end.
        marks: What the exports of this format begin with. An existing file that begins otherwise
            was made by somebody else, perhaps in hours, and is not replaced. None: it is.

    Returns:
        The absolute path, links followed.

    Raises:
        ArgumentError: If the name ends otherwise.
        OutputError: If it cannot be written, or somebody else's file is there.
    """
    target = check_output(path, "path")
    if target.suffix.lower() not in suffixes:
        choice = f"one of {', '.join(suffixes)}" if len(suffixes) > 1 else suffixes[0]
        raise ArgumentError(f"`path` must end in {choice}, got {os.fspath(path)!r}.")
    if marks:
        check_replaceable(target, marks, "landscapex did not write it")
    return target


def write(target: Path, data: bytes) -> Path:
    """Write a file that is there whole, or not at all.

    Args:
        target: What `check_target` returned.
        data: Its new contents.

    Returns:
        The target.

    Raises:
        OutputError: If it cannot be written.
    """
    check_space(target, len(data))
    replace_file(target, data)
    return target


def provenance_line(surface: Surface) -> str:
    """How a result was made, in one line.

    Args:
        surface: Any result.

    Returns:
        What its provenance says of version, date, seed and weights, and how much of it there is.
    """
    about = surface.provenance
    size = " \N{MULTIPLICATION SIGN} ".join(map(str, surface.shape))
    count = int(surface.evaluated.sum())
    state = "complete" if surface.complete else f"{count:,} of {surface.loss.size:,} evaluated"
    torch_version = (about.get("versions") or {}).get("torch")
    weights = (about.get("fingerprint") or {}).get("parameters")
    parts = [
        f"landscapex {about.get('landscapex', '')}".rstrip(),
        about.get("created"),
        f"{size} points, {state}",
        None if about.get("seed") is None else f"seed {about['seed']}",
        torch_version and f"torch {torch_version}",
        weights and f"weights {str(weights)[:16]}",
    ]
    return _SEPARATOR.join(str(part) for part in parts if part)


def description(surface: Surface) -> list[str]:
    """What a reader of the numbers has to know, for the head of a file.

    Args:
        surface: Any result.

    Returns:
        The provenance, then what each axis is. One line each, whatever the texts hold.
    """
    lines = [provenance_line(surface)]
    for axis in surface.axes:
        about = ", ".join(text for text in (axis.label, axis.unit) if text)
        lines.append(f"{axis.name}: {about}" if about else axis.name)
    return ["".join(c if c.isprintable() else " " for c in line) for line in lines]
