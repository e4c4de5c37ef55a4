"""A model that somebody else changes meanwhile: an error, and what can be is put back."""

from __future__ import annotations

import re
import threading

import models
import numpy as np
import pytest
import reference
import torch
from evaluate_cases import BATCH, mse
from guard_cases import kitchen
from torch import nn

import landscapex as lx
from landscapex.errors import ModelChangedError
from landscapex.model.guard import exclusive
from landscapex.model.parameters import ParameterSpace


def step(model):
    """A training step, as an optimiser makes it."""
    with torch.no_grad():
        torch._foreach_sub_(list(model.parameters()), 0.1)


def write_data(model):
    """The old idiom, which no version counter sees."""
    next(model.parameters()).data.add_(1.0)


def assign_data(model):
    """Other memory under the same parameter: no counter moves either."""
    parameter = next(model.parameters())
    parameter.data = parameter.data + 1.0


def replace(model):
    model[0].weight = nn.Parameter(torch.zeros_like(model[0].weight))


def step_elsewhere(model):
    thread = threading.Thread(target=step, args=(model,))
    thread.start()
    thread.join()


CHANGES = [step, write_data, assign_data, replace, step_elsewhere]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("at", [1, 2, 3, 20])
def test_fault_27_a_model_changed_by_its_loss_is_an_error(change, at):
    model = models.mlp(3, 4, 1)
    before = reference.everything(model)
    calls = []

    def loss(m, batch):
        calls.append(1)
        if len(calls) == at or (len(calls) > at and change is write_data):
            change(m)
        return mse(m, batch)

    with pytest.raises(ModelChangedError, match="must not be changed while its landscape is com"):
        lx.surface(model, BATCH, loss, points=5, progress=False)
    assert reference.changes(before, reference.everything(model)) == []


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("when", [1, 20, 42])
def test_fault_27_a_model_changed_in_a_callback_is_an_error(change, when, tmp_path):
    """Also after the last chunk: its points are right, but the training step is lost."""
    model = models.mlp(3, 4, 1)
    before = reference.everything(model)
    seen = []

    def callback(progress):
        if progress.done >= when and not seen:
            seen.append(progress.done)
            change(model)

    out = tmp_path / "s.nc"
    with pytest.raises(ModelChangedError, match=r"0\.weight|Linear\.weight"):
        lx.surface(model, BATCH, mse, points=(6, 7), progress=False, callback=callback, out=out)
    assert reference.changes(before, reference.everything(model)) == []
    kept = lx.open(out)
    truth = lx.surface(model, BATCH, mse, points=(6, 7), progress=False)
    assert kept.evaluated.sum() == seen[0]
    assert np.array_equal(kept.loss[kept.evaluated], truth.loss[kept.evaluated])


def test_fault_27_parameters_that_do_not_move_must_not_change_either():
    model = models.mlp(3, 4, 1)
    objective = lx.Objective(model, BATCH, mse, params="0.*")
    before = reference.everything(model)

    def callback(progress):
        with torch.no_grad():
            model[2].weight.add_(1.0)

    with pytest.raises(ModelChangedError, match=r"2\.weight was written to .* no copy to put back"):
        lx.surface(objective, points=6, progress=False, callback=callback)
    after = reference.everything(model)
    assert reference.changes(before, after) == ["tensor 2.weight"]


def test_fault_27_memory_of_parameters_that_do_not_move_must_not_be_exchanged():
    model = models.mlp(3, 4, 1)
    objective = lx.Objective(model, BATCH, mse, params="0.*")
    before = reference.everything(model)

    def callback(progress):
        model[2].weight.data = model[2].weight.data + 1.0

    with pytest.raises(ModelChangedError, match=r"2\.weight was written to"):
        lx.surface(objective, points=6, progress=False, callback=callback)
    assert reference.changes(before, reference.everything(model)) == []


def test_fault_27_a_parameter_of_any_layout_and_dtype_that_changed_is_named():
    """Contents are compared in runs of equal dtypes; the name is that of the entry."""
    model = kitchen()
    space = ParameterSpace(model)
    names = [e.name for e in space.entries]
    directions = torch.randn(1, space.size)

    def meddle(name):
        with exclusive(space) as snapshot:
            snapshot.move(snapshot.center, directions, [0.5])
            snapshot.check_unchanged(contents=True)  # its own writes are none
            p = model.get_parameter(name)
            last = p.data[-1, -1, -1, -1:] if name == "conv.weight" else p.data.view(-1)[-1:]
            last.neg_()

    for name in names:
        with pytest.raises(ModelChangedError, match=re.escape(f"but {name} was written to")):
            meddle(name)


@pytest.mark.parametrize("transposed", [False, True])
def test_fault_27_a_parameter_that_got_another_shape_is_an_error(transposed):
    """Also one that is written by way of a copy, which has no place for the next point."""
    model = models.mlp(3, 4, 1)
    if transposed:
        model[0].weight = nn.Parameter(torch.ones(3, 4).t())
    before = reference.everything(model)

    def meddle():
        with exclusive(ParameterSpace(model)) as snapshot:
            model[0].weight.data = torch.zeros(2, 5)
            snapshot.move(snapshot.center, torch.zeros(1, snapshot.space.size), [0.5])

    with pytest.raises(ModelChangedError, match=r"0\.weight was written to"):
        meddle()
    assert reference.changes(before, reference.everything(model)) == []
