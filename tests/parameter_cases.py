"""What the tests read in a parameter space."""

from __future__ import annotations


def entry(space, name):
    return space.entries[space.names[name]]


def runs_of(table):
    """Every row (offset, count, stride, inner) as the list of its entries."""
    return [
        [offset + piece * stride + i for piece in range(count) for i in range(inner)]
        for offset, count, stride, inner in table.tolist()
    ]
