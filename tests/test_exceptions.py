"""Exceptions wherever they come from: the model comes back bit for bit, and they arrive."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

import models
import pytest
import torch
from reliability.exceptions import FAULTS, Trial, attempt, passed, strike

import landscapex as lx
from landscapex.model.guard import exclusive
from landscapex.model.parameters import ParameterSpace


@pytest.mark.parametrize("fault", FAULTS)
def test_trap_21_whatever_is_raised_the_model_comes_back(fault):
    outcome = strike(fault, 8)
    assert outcome.kept, outcome
    assert outcome.exceptions == 8
    assert outcome.own + outcome.settled == 8


@pytest.mark.parametrize("entrance", ["loss", "gradient"])
def test_trap_21_ctrl_c_between_a_with_statement_and_its_generator_is_put_off(entrance):
    """The generator would wait, and the lock with it, while a notebook keeps the exception."""
    trial = Trial("Ctrl-C", entrance, "eval", "mixed", "auto", KeyboardInterrupt)
    passed(trial)  # what is made once is made
    between = [k for k, (file, _) in enumerate(passed(trial)) if file == contextlib.__file__]
    assert len(between) > 20
    for k in between:
        outcome = attempt(trial, k + 1)
        assert not outcome.changed, (k, outcome)
        assert outcome.own == outcome.exceptions, (k, outcome)


def test_ctrl_c_ends_the_wait_for_a_model_that_another_thread_has():
    model = models.mlp(3, 4, 1)
    objective = lx.Objective(model, [torch.ones(4, 3)], lambda m, b: m(b).sum())
    value = objective.loss()
    held, done = threading.Event(), threading.Event()

    def hold():
        with exclusive(ParameterSpace(model)):
            held.set()
            done.wait(30)

    def press():
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    threads = [threading.Thread(target=hold), threading.Thread(target=press)]
    try:
        threads[0].start()
        held.wait(30)
        threads[1].start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            objective.loss()
        assert time.monotonic() - began < 20
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert objective.loss() == value
