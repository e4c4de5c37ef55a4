"""The random number generators of the process: read, put back, and the same draws for everyone."""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

States = list[tuple[Callable[[Any], object], Any]]  # what puts a state back, and the state

_drawing = threading.RLock()  # who reads, seeds or puts back the generators


def _forget_lock() -> None:
    # the forked child has none of the threads that may have held it
    global _drawing
    _drawing = threading.RLock()


os.register_at_fork(after_in_child=_forget_lock)


def read_states() -> States:
    """Read the states of torch, NumPy and Python.

    Returns:
        What `put_back` takes.
    """
    with _drawing:
        states: States = [
            (torch.set_rng_state, torch.get_rng_state()),
            (np.random.set_state, np.random.get_state()),  # noqa: NPY002  (the user's)
            (random.setstate, random.getstate()),
        ]
        if torch.cuda.is_initialized():
            states.append((torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all()))
        return states


def put_back(states: States) -> None:
    """Put generators into the states that they had.

    Args:
        states: Of `read_states`.
    """
    with _drawing:
        for put, state in states:
            put(state)


@contextlib.contextmanager
def common_draws(seed: int, generators: Sequence[torch.Generator] = ()) -> Iterator[None]:
    """The same random numbers every time, from the global generators, which are then put back.

    One thread at a time: the generators belong to the whole process.

    Args:
        seed: Of torch, NumPy and Python.
        generators: Further generators to seed and put back.

    Yields:
        Nothing.
    """
    with _drawing:
        before = read_states()
        states = [g.get_state() for g in generators]
        try:
            for g in generators:
                g.manual_seed(seed)
            _seed_everything(seed)
            yield
        finally:
            for g, state in zip(generators, states, strict=True):
                g.set_state(state)
            put_back(before)


def _seed_everything(seed: int) -> None:
    """Seed torch, NumPy and Python.

    Not `torch.manual_seed`: it also seeds devices that were never used, and takes 2 ms for that.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (user code draws from the global generator)
    random.seed(seed)
