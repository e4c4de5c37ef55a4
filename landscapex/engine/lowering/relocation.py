"""Copies that nobody needs: values are written where, or read whence, the copy was made."""

from __future__ import annotations

import numpy as np

from landscapex.engine.lowering.editor import OUTSIDE, Editor
from landscapex.engine.program import Grid
from landscapex.engine.steps import NONE, GruCell, LstmCell, Map


def remove_copies(editor: Editor) -> bool:
    """Remove every copy whose source or target can do without it.

    Args:
        editor: Of the program.

    Returns:
        Whether anything changed.
    """
    changed = False
    for i, step in enumerate(editor.steps):
        if isinstance(step, Map) and _is_copy(step):
            changed |= _read_source(editor, i, step) or _write_target(editor, i, step)
    return changed


def _is_copy(step: Map) -> bool:
    return step.op == "copy" and step.activation == NONE and step.operands[0].kind == "buffer"


def _read_source(editor: Editor, i: int, copy: Map) -> bool:
    """Let those who read the target of a copy read its source, halo included."""
    source, target, at = copy.operands[0].id, copy.out, copy.operands[0].at
    assert at is not None
    a, b = editor.buffers[source], editor.buffers[target]
    if source == target or editor.writers(target) != [i] or not _may_read(editor, source, target):
        return False
    where = np.full(b.elements, -1, np.int32)
    where[copy.to] = at
    free = ~editor.written(source) if a.fill == b.fill else np.zeros(a.elements, bool)
    return editor.move(target, source, where, free, but=i, written=False)


def _may_read(editor: Editor, source: int, target: int) -> bool:
    """Whether the readers of a target also take the kind of buffer that the source is."""
    a, b = editor.buffers[source], editor.buffers[target]
    if a.grid is b.grid:
        return True
    if a.grid is not Grid.NONE:  # sets would be combined once more for every reader
        return False
    readers = [editor.at(r) for r in editor.readers(target) if r != OUTSIDE]
    return OUTSIDE not in editor.readers(target) and not any(
        isinstance(r, LstmCell | GruCell) for r in readers
    )


def _write_target(editor: Editor, i: int, copy: Map) -> bool:
    """Let those who write the source of a copy write its target, and all others read it there."""
    source, target, at = copy.operands[0].id, copy.out, copy.operands[0].at
    assert at is not None
    a, b = editor.buffers[source], editor.buffers[target]
    if source == target or a.kind != "live" or a.grid is not b.grid:
        return False
    where = np.full(a.elements, -1, np.int32)
    where[at] = copy.to
    if (where >= 0).sum() != len(at):  # an element lies at several places of the target
        return False
    written = editor.written(source)
    alike = a.fill == b.fill
    if not alike and (~written & (where >= 0)).any():
        return False
    free = ~editor.written(target) if alike else np.zeros(b.elements, bool)
    return editor.move(source, target, where, free, but=i, written=True)
