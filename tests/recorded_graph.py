"""A stand-in for CUDA graphs on the processor: the operators of a piece of work, done again.

Like a graph it runs no Python of the model, reads and writes the very tensors of the recording, and
cannot hold work that waits for numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

T = TypeVar("T")


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        made = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, tree_leaves(made)))
        return made


class RecordedGraph:
    """See `landscapex.engine.cuda_graph.Graph`.

    Attributes:
        captures: Of all graphs since the list was last cleared.
        alive: Graphs that hold something.
    """

    captures: list[RecordedGraph] = []  # noqa: RUF012  (of the class, for tests to look at)
    alive: set[RecordedGraph] = set()  # noqa: RUF012

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any, list[Any]]] | None = None
        self.replays = 0

    def capture(self, work: Callable[[], T]) -> T:
        with _Recorder() as recorder:
            made = work()
        self.calls = recorder.calls
        self.captures.append(self)
        self.alive.add(self)
        return made

    @torch.no_grad()
    def replay(self) -> None:
        assert self.calls is not None, "replayed after its end"
        self.replays += 1
        for func, args, kwargs, before in self.calls:
            # a device that writes to a tensor does not count how often
            tensors = tuple(t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor))
            with torch.autograd._unsafe_preserve_version_counter(tensors):
                made = func(*args, **kwargs)
            for old, new in zip(before, tree_leaves(made), strict=True):
                # what shares memory with an argument (a view, an operation in place) is right
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.detach().copy_(new)

    def free(self) -> None:
        self.calls = None
        self.alive.discard(self)
