"""Batch norm where there is nothing to normalise by: one sample, no variance, no number."""

from __future__ import annotations

import math

import models
import numpy as np
import pytest
import reference
import torch
from torch import nn
from torch.nn import functional as F

import landscapex as lx
from landscapex.errors import DataError, NonFiniteCenterError

QUIET = {"points": 3, "progress": False}


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))


def samples(*sizes):
    rng = torch.Generator().manual_seed(0)
    return [
        (torch.randn(n, 3, generator=rng), torch.randint(2, (n,), generator=rng)) for n in sizes
    ]


def refused(objective, error, message):
    """Whether a surface is refused so, with the model as it was; the error."""
    before = reference.everything(objective.model)
    with pytest.raises(error, match=message) as caught:
        lx.surface(objective, **QUIET)
    assert reference.changes(before, reference.everything(objective.model)) == []
    return caught.value


@pytest.mark.parametrize("bn", ["batch", "recompute"])
def test_fault_23_a_batch_of_one_sample_has_no_variance(bn):
    """The last batch of a loader, as often as not; torch names neither batch nor way out."""
    objective = lx.Objective(models.seeded(network), samples(5, 5, 1), "cross_entropy", bn=bn)
    message = rf"with bn='{bn}', .* more than one value per channel, got input size .*\[1, 4\]"
    error = refused(objective, DataError, message)
    assert "drop_last=True" in str(error)
    assert "bn='eval'" in str(error)
    assert any("in batch 2 of data" in note for note in error.__notes__)
    assert isinstance(error, ValueError)


def test_fault_23_an_error_of_the_users_own_is_not_explained_away():
    """With running statistics the words of torch can only come from the loss."""

    def loss(model, batch):
        return F.cross_entropy(F.batch_norm(model(batch[0]), None, None, training=True), batch[1])

    objective = lx.Objective(models.seeded(network), samples(5, 1), loss)
    error = refused(objective, ValueError, r"^Expected more than 1 value per channel")
    assert not isinstance(error, DataError)


def own_words(model, batch):
    if len(batch[0]) == 1:
        raise ValueError("Expected more than 1 label, got 1.")
    return F.cross_entropy(model(batch[0]), batch[1])


def own_norm(model, batch):
    with torch.no_grad():
        F.batch_norm(batch[0], None, None, training=True)
    return F.cross_entropy(model(batch[0]), batch[1])


@pytest.mark.parametrize("bn", ["batch", "recompute"])
@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (own_words, "^Expected more than 1 label, got 1"),
        (own_norm, "^Expected more than 1 value"),
    ],
)
def test_fault_23_an_error_outside_of_batch_norm_keeps_its_words(bn, loss, message):
    """Neither `bn` nor the batches are what is to be changed."""
    objective = lx.Objective(models.seeded(network), samples(5, 1), loss, bn=bn)
    assert type(refused(objective, ValueError, message)) is ValueError


def test_fault_23_one_image_has_many_values_per_channel():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    batches = [(torch.randn(1, 1, 4, 4), torch.tensor([k])) for k in (0, 1)]
    found = lx.Objective(model, batches, "cross_entropy", bn="batch").loss()
    with torch.no_grad():
        model.train()
        expected = np.mean([F.cross_entropy(model(x), y).item() for x, y in batches])
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("sizes", [(1,), (1, 0)])
def test_fault_23_statistics_are_not_recomputed_from_one_sample(sizes):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    data = [(torch.randn(n, 1, 4, 4), torch.zeros(n, dtype=torch.long)) for n in sizes]
    objective = lx.Objective(model, data, "cross_entropy", bn="recompute")
    refused(objective, DataError, r"`data` must hold at least 2 samples with bn='recompute', got 1")


@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_fault_23_a_running_variance_of_zero_is_safe(engine):
    """By the epsilon of the layer: a unit that never fired, in a network that was cut down."""
    if engine == "compiled":
        pytest.importorskip("landscapex._program")
    model = models.seeded(network)
    with torch.no_grad():
        model[1].running_var[1] = 0.0
    (x, y), *_ = data = samples(40)
    found = lx.surface(
        model, data, "cross_entropy", directions=list(UNIT), engine=engine, span=0.5, **QUIET
    )
    double = models.seeded(network).double().eval()
    for i, a in enumerate((-0.5, 0.0, 0.5)):
        for j, b in enumerate((-0.5, 0.0, 0.5)):
            state = {n: t.double() for n, t in model.state_dict().items()}
            state["0.weight"] = state["0.weight"] + a * UNIT[0]["0.weight"]
            state["3.bias"] = state["3.bias"] + b * UNIT[1]["3.bias"]
            double.load_state_dict(state)
            with torch.no_grad():
                expected = float(F.cross_entropy(double(x.double()), y))
            assert found.loss[i, j] == pytest.approx(expected, rel=2e-5)
    assert found.nonfinite == 0


UNIT = ({"0.weight": torch.ones(4, 3)}, {"3.bias": torch.tensor([1.0, -1.0])})


@pytest.mark.parametrize("bn", ["eval", "batch"])
def test_fault_23_a_running_variance_that_is_no_number_is_named(bn):
    model = models.seeded(network)
    with torch.no_grad():
        model[1].running_var[1:3] = math.nan
    objective = lx.Objective(model, samples(5), "cross_entropy", bn=bn)
    refused(objective, NonFiniteCenterError, r"got NaN or infinity in 1\.running_var \(2 of 4\)")
