"""Embeddings of tokens."""

from __future__ import annotations

import math
from typing import Any

from torch import fx

from landscapex.engine.lowering.lanes import Lanes, flat
from landscapex.engine.lowering.registry import handles
from landscapex.engine.lowering.walk import Lowering
from landscapex.engine.plan import NotCapturedError
from landscapex.engine.steps import Embedding, table


@handles("embedding")
def _embedding(
    low: Lowering,
    node: fx.Node,
    weight: Any,
    indices: Any,
    padding_idx: int,
    scale_grad_by_freq: bool,
    sparse: bool,
) -> Lanes:
    matrix, index = low.entries(weight), low.index(indices)
    if len(matrix.shape) != 2:
        raise NotCapturedError("an embedding that is no matrix")
    out = low.new(low.shape(node), name=node.name)
    step = Embedding(
        index=index.buffer,
        at=flat(index.index),
        weight=low.weight(math.prod(matrix.shape), low.term_of(matrix)),
        out=out.buffer,
        to=table(out.index.reshape(-1, matrix.shape[1]).numpy()),
    )
    low.emit(step)
    return out
