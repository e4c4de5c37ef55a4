"""Work that has been enqueued on a CUDA device once, and can be again with one launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch

T = TypeVar("T")


class Graph(Protocol):
    """Work of a device that can be done again."""

    def capture(self, work: Callable[[], T]) -> T:
        """Record what `work` does; the tensors it returns are those that `replay` writes."""

    def replay(self) -> None:
        """Enqueue the work again: on the same memory, with the numbers it holds now."""

    def free(self) -> None:
        """Give memory back; what `capture` returned holds nothing any more."""


class CudaGraph:
    """A `Graph` of CUDA.

    Args:
        stream: On which it is recorded; replays go to the current one.
        pool: Memory that it shares with graphs that are replayed one after the other.
    """

    def __init__(self, stream: torch.cuda.Stream, pool: Any) -> None:
        self._stream, self._pool = stream, pool
        self._graph = torch.cuda.CUDAGraph()

    def capture(self, work: Callable[[], T]) -> T:
        """See `Graph.capture`."""
        with torch.cuda.device(self._stream.device):
            current = torch.cuda.current_stream()
            # should recording fail, `torch.cuda.graph` leaves its own stream the current one
            with torch.cuda.stream(current):
                self._stream.wait_stream(current)
                with torch.cuda.stream(self._stream):
                    work()  # libraries allocate and choose at their first call on a stream
                current.wait_stream(self._stream)
                # calls of other threads, which know nothing of this, are their own affair
                with torch.cuda.graph(
                    self._graph, self._pool, self._stream, capture_error_mode="thread_local"
                ):
                    return work()

    def replay(self) -> None:
        """See `Graph.replay`."""
        with torch.cuda.device(self._stream.device):
            self._graph.replay()

    def free(self) -> None:
        """See `Graph.free`."""
        self._graph.reset()


def graphs_on(device: torch.device) -> Callable[[], Graph] | None:
    """What makes graphs on a device.

    Args:
        device: Of a model.

    Returns:
        None if there are none, as on a processor.
    """
    if device.type != "cuda":
        return None
    pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)
    return lambda: CudaGraph(stream, pool)
