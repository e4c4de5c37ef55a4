"""Means over batches: exact sums in float64, in any order."""

from __future__ import annotations

import math
import weakref

import pytest
import torch
from loss_cases import Pass, draw, integers

from landscapex.errors import EmptyDataError, LossError
from landscapex.losses.binding import resolve
from landscapex.losses.totals import Terms, Totals


def test_batches_of_weight_zero_have_no_part_even_if_nan():
    totals = Totals()
    totals.add(Terms(torch.tensor(math.nan), 0, {"m": (torch.tensor(math.nan), 0)}))
    totals.add(Terms(torch.tensor(math.inf), torch.tensor(0), {"m": (torch.tensor(3.0), 0)}))
    totals.add(Terms(torch.tensor(2.0), torch.tensor(4), {"m": (torch.tensor(6), 4.0)}))
    assert totals.values() == [2.0, 1.5]
    assert totals.columns == ("loss", "m")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_losses_stay_what_they_are(value):
    totals = Totals()
    totals.add(Terms(torch.tensor(1.0), 2))
    totals.add(Terms(torch.tensor(value), 2))
    assert repr(totals.values()[0]) == repr(value)


def test_infinities_of_both_signs_are_nan_and_overflow_is_infinite():
    totals = Totals()
    totals.add(Terms(torch.tensor(math.inf), 2))
    totals.add(Terms(torch.tensor(-math.inf), 2))
    assert math.isnan(totals.values()[0])
    totals = Totals()
    for _ in range(2):
        totals.add(Terms(torch.tensor(1.7e308, dtype=torch.float64), 1.0))
    assert totals.values() == [math.inf]


def test_trap_25_a_million_float32_samples_sum_in_float64():
    values = torch.rand(1_000_000, generator=torch.Generator().manual_seed(0)) + 1000
    totals = Totals()
    naive = torch.tensor(0.0)
    for part in values.split(500):
        totals.add(Terms(part.double().mean().float(), len(part)))
        naive += part.double().mean().float() * len(part)
    exact = values.double().mean().item()
    assert abs(totals.values()[0] / exact - 1) < 2e-9  # what rounding the batch means leaves
    assert abs(naive.item() / 1_000_000 / exact - 1) > 1e-7


def test_totals_do_not_depend_on_the_order_of_batches():
    losses = draw(200, seed=9).float() * 10.0 ** integers(12, 200)
    terms = [Terms(loss, int(n) + 1) for loss, n in zip(losses, integers(9, 200), strict=True)]
    found = set()
    for seed in range(4):
        totals = Totals()
        for i in torch.randperm(200, generator=torch.Generator().manual_seed(seed)).tolist():
            totals.add(terms[i])
        found.add(totals.values()[0].hex())
    assert len(found) == 1


def test_fault_14_all_labels_ignored_is_no_data():
    measure = resolve("cross_entropy", model=Pass())
    totals = Totals()
    totals.add(measure(Pass(), (draw(3, 4), torch.full((3,), -100))))
    with pytest.raises(EmptyDataError, match=r"total weight of 0.*every label is ignored"):
        totals.values()
    with pytest.raises(EmptyDataError, match="at least one batch"):
        Totals().values()


def test_a_metric_that_counted_nothing_is_nan():
    totals = Totals()
    totals.add(Terms(torch.tensor(1.0), 2, {"m": (torch.tensor(0.0), 0)}))
    assert totals.values()[0] == 1.0
    assert math.isnan(totals.values()[1])


@pytest.mark.parametrize("weight", [-1.0, torch.tensor(math.nan)])
def test_bad_weights_are_refused(weight):
    totals = Totals()
    totals.add(Terms(torch.tensor(1.0), weight))
    with pytest.raises(LossError, match="weight of a batch must be at least 0, got"):
        totals.values()


def test_metrics_that_change_between_batches_are_refused():
    totals = Totals()
    totals.add(Terms(torch.tensor(1.0), 1, {"a": (torch.tensor(1.0), 1)}))
    with pytest.raises(LossError, match=r"same metrics for every batch, got \['b'\] after \['a'\]"):
        totals.add(Terms(torch.tensor(1.0), 1, {"b": (torch.tensor(1.0), 1)}))


def test_totals_hold_no_memory_between_batches():
    """It would lie between activations that are freed, and keep others from their place."""
    totals, held = Totals(), []
    for value in (1.0, 5.0):
        loss, metric, count = torch.tensor(value), torch.tensor(2.0), torch.tensor(3)
        totals.add(Terms(loss, count, {"m": (metric, count)}))
        held += [weakref.ref(t) for t in (loss, metric, count)]
    del loss, metric, count
    assert [tensor() for tensor in held] == 6 * [None]
    assert totals.values() == [3.0, 4 / 6]


def test_totals_that_are_replayed_read_tensors_anew():
    totals, loss = Totals(replayed=True), torch.tensor(1.0)
    totals.add(Terms(loss, 2))
    loss.fill_(4.0)
    assert totals.values() == [4.0]
