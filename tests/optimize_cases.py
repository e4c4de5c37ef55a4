"""An optimised program beside what it was, and what to look for in it."""

from __future__ import annotations

from collections import Counter

import numpy as np
from random_programs import Builder, Image, evaluate

from landscapex.engine.lowering.lanes import Lowered
from landscapex.engine.lowering.optimize import optimize
from landscapex.engine.program import Program

EVERY = slice(None)
MIDDLE = slice(1, -1)


def same(lowered: Lowered) -> Program:
    """Assert that the optimised program computes the same; return it."""
    before = evaluate(lowered)
    better = optimize(lowered)
    for shared in (False, True):
        after = evaluate(better, shared=shared)
        np.testing.assert_allclose(after[0], before[0], rtol=1e-9, atol=1e-9)
        for x, y in zip(before[1], after[1], strict=True):
            np.testing.assert_allclose(y, x, rtol=1e-9, atol=1e-9)
    return better.program


def kinds(program: Program) -> Counter[str]:
    """How many steps of each kind there are, beside the loss."""
    found = Counter(type(s).__name__ for s in program.steps)
    del found["ElementLoss"]
    return found


def only(program: Program, kind: type) -> list:
    """The steps of one kind."""
    return [s for s in program.steps if isinstance(s, kind)]


def start(channels: int = 4, size: int = 6, *, seed: int = 0) -> tuple[Builder, Image]:
    """A builder and a FULL image that a first convolution computed."""
    b = Builder(seed)
    return b, b.conv(b.input(2, size, size), channels, 1)
