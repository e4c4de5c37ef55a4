"""The same program in fewer steps and less memory."""

from __future__ import annotations

from dataclasses import replace

from landscapex.engine.lowering.editor import Editor
from landscapex.engine.lowering.fusion import delay_activations, fuse_maps
from landscapex.engine.lowering.lanes import Lowered
from landscapex.engine.lowering.relocation import remove_copies
from landscapex.engine.lowering.storage import assign_storage
from landscapex.engine.lowering.winograd import use_winograd


def optimize(lowered: Lowered, *, winograd: bool = True) -> Lowered:
    """Rewrite a program: same sums, same outputs.

    Elementwise steps join the step before them, values are written where they are needed (with a
    halo, or beside others), fixed scales go into weights, 3 x 3 convolutions use Winograd's
    algorithm, and buffers that are never needed at the same time share memory.

    Args:
        lowered: As the handlers made it.
        winograd: Whether 3 x 3 convolutions may use it; its transforms need the digits of fp32.

    Returns:
        With a new program; buffers and weights are numbered anew.
    """
    editor = Editor(lowered)
    editor.prune()
    changed = True
    while changed:
        changed = delay_activations(editor)
        changed |= fuse_maps(editor)
        changed |= remove_copies(editor)
    editor.prune()
    if winograd:
        use_winograd(editor)
    result = editor.result()
    return replace(result, program=assign_storage(result.program))
