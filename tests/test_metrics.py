"""Metrics: right sums and counts for every shape of output and target."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from landscapex.errors import ArgumentTypeError, LossError
from landscapex.losses.binding import resolve
from landscapex.losses.metrics import resolve_metrics
from landscapex.losses.totals import Totals


class Pass(nn.Module):
    def forward(self, x):
        return x


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def integers(high, *shape, seed=1):
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


def measured(loss, metrics, scores, target, sizes=(4, 1, 4, 2), **kwargs):
    """Values of the metrics over ragged batches."""
    model = kwargs.pop("model", Pass())
    measure = resolve(loss, model=model, metrics=metrics, **kwargs)
    totals = Totals()
    for s, t in zip(scores.split(sizes), target.split(sizes), strict=True):
        totals.add(measure(model, (s, t)))
    return dict(zip(totals.columns, totals.values(), strict=True))


def literal_top(scores, target, k):
    """Share of rows (list of scores, class) among whose k largest scores the class is."""
    hits = [
        y in sorted(range(len(row)), key=lambda j: -row[j])[:k]
        for row, y in zip(scores, target, strict=True)
        if y != -100
    ]
    return sum(hits) / len(hits)


@pytest.mark.parametrize("num_classes", [2, 3, 7, 12])
def test_trap_27_metrics_take_any_number_of_classes(num_classes):
    scores, target = draw(11, num_classes), integers(num_classes, 11)
    found = measured("cross_entropy", ["accuracy", "error", "top5"], scores, target)
    rows, labels = scores.tolist(), target.tolist()
    assert found["accuracy"] == pytest.approx(literal_top(rows, labels, 1), rel=1e-12)
    assert found["error"] == pytest.approx(1 - literal_top(rows, labels, 1), rel=1e-12)
    assert found["top5"] == pytest.approx(literal_top(rows, labels, 5), rel=1e-12)


def test_ignored_targets_do_not_count():
    scores, target = draw(11, 4), torch.where(torch.arange(11) < 5, -100, integers(4, 11))
    found = measured("cross_entropy", ["accuracy", "error"], scores, target)
    accuracy = literal_top(scores.tolist(), target.tolist(), 1)
    assert found["accuracy"] == pytest.approx(accuracy, rel=1e-12)
    assert found["error"] == pytest.approx(1 - accuracy, rel=1e-12)
    two = torch.where(target == -100, 2, target)
    found = measured(nn.CrossEntropyLoss(ignore_index=2), "accuracy", scores, two)
    kept = [(-100 if y == 2 else y) for y in two.tolist()]
    assert found["accuracy"] == pytest.approx(literal_top(scores.tolist(), kept, 1), rel=1e-12)


@pytest.mark.parametrize("metric", ["accuracy", "top5"])
def test_class_axis_is_1_or_the_last(metric):
    target = torch.where(integers(4, 11, 3) == 0, -100, integers(9, 11, 3))
    scores = draw(11, 3, 9)
    rows, labels = scores.flatten(0, 1).tolist(), target.flatten().tolist()
    expected = literal_top(rows, labels, 1 if metric == "accuracy" else 5)
    found = measured("cross_entropy", metric, scores.transpose(1, 2).contiguous(), target)
    assert found[metric] == pytest.approx(expected, rel=1e-12)

    class Flat(nn.Module):
        def forward(self, output, target):
            return output.sum()

    assert measured(Flat(), metric, scores, target)[metric] == pytest.approx(expected, rel=1e-12)


def test_class_axis_1_wins_where_both_fit():
    (metric,) = resolve_metrics("accuracy", decision="class")
    scores = torch.zeros(1, 2, 2)
    scores[0, 1, 0] = 1.0  # axis 1: classes (1, 0); last axis: classes (0, 0)
    hits, count = metric.compute(scores, torch.tensor([[1, 0]]), None)
    assert (int(hits), int(count)) == (2, 2)


def test_class_probabilities_are_compared_by_their_largest():
    scores, target = draw(11, 4), draw(11, 4, seed=3).softmax(1)
    labels = target.argmax(1).tolist()
    found = measured("cross_entropy", ["accuracy", "error"], scores, target)
    assert found["accuracy"] == pytest.approx(literal_top(scores.tolist(), labels, 1), rel=1e-12)
    assert found["accuracy"] + found["error"] == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize(
    ("loss", "change", "signs"),
    [
        ("binary_cross_entropy_with_logits", lambda z: z, False),
        ("binary_cross_entropy", torch.sigmoid, False),
        ("soft_margin_loss", lambda z: z, True),
        ("multilabel_soft_margin_loss", lambda z: z, False),
    ],
)
def test_binary_outputs_are_cut_at_their_threshold(loss, change, signs):
    logits = draw(11, 3)
    bits = integers(2, 11, 3).float()
    target = bits * 2 - 1 if signs else bits
    pairs = zip(logits.flatten().tolist(), bits.flatten().tolist(), strict=True)
    expected = sum((z > 0) == (t == 1) for z, t in pairs) / 33
    assert measured(loss, "accuracy", change(logits), target)["accuracy"] == pytest.approx(expected)


def test_one_column_of_logits_is_binary_and_not_one_class():
    class Own(nn.Module):
        def forward(self, output, target):
            return output.mean()

    logits, target = draw(11, 1), integers(2, 11)
    expected = ((logits[:, 0] > 0) == (target == 1)).double().mean().item()
    assert measured(Own(), "accuracy", logits, target)["accuracy"] == pytest.approx(expected)
    found = measured(Own(), "accuracy", logits[:, 0], target)
    assert found["accuracy"] == pytest.approx(expected)
    some = torch.where(torch.arange(11) % 3 == 0, -100, target)
    found = measured(Own(), ["accuracy", "error"], -logits.abs(), some)
    kept = (target[torch.arange(11) % 3 != 0] == 0).double().mean().item()
    assert (found["accuracy"], found["error"]) == (pytest.approx(kept), pytest.approx(1 - kept))


def test_nan_outputs_are_never_right():
    scores, target = draw(11, 7), torch.zeros(11, dtype=torch.int64)
    scores[3:] = math.nan
    found = measured("cross_entropy", ["accuracy", "error", "top5"], scores, target)
    right = sum(int(row.argmax()) == 0 for row in scores[:3]) / 11
    assert found["accuracy"] == pytest.approx(right)
    assert found["error"] == pytest.approx(1 - right)
    assert found["top5"] <= 3 / 11
    logits = torch.full((11, 1), math.nan)
    found = measured("binary_cross_entropy_with_logits", "accuracy", logits, torch.zeros(11, 1))
    assert found["accuracy"] == 0.0


def test_own_metrics_return_values_per_sample_or_sums():
    scores, target = draw(11, 3), draw(11, 3, seed=2)
    metrics = {
        "per_sample": lambda output, batch: (output - batch[1]).abs().amax(1),
        "pair": lambda output, batch: ((output > batch[1]).sum(), output.numel()),
        "numbers": lambda output, batch: (float(len(output)) * 2, 1.0 * len(output)),
    }
    found = measured("mse_loss", ["accuracy", metrics][1:], scores, target)
    expected = (scores - target).abs().amax(1).double().mean().item()
    assert found["per_sample"] == pytest.approx(expected, rel=1e-9)
    assert found["pair"] == pytest.approx((scores > target).double().mean().item(), rel=1e-12)
    assert found["numbers"] == 2.0
    assert list(found) == ["loss", "per_sample", "pair", "numbers"]


def test_causal_accuracy_compares_the_next_token():
    class TinyCausalLM(nn.Module):
        def forward(self, logits, labels):
            return SimpleNamespace(loss=logits.mean(), logits=logits)

    labels = torch.where(integers(4, 11, 5) == 0, -100, integers(7, 11, 5, seed=2))
    logits = draw(11, 5, 7)
    logits[:9, :-1] += 9 * nn.functional.one_hot(labels[:9, 1:].clamp(min=0), 7)
    rows = logits[:, :-1].flatten(0, 1).tolist()
    expected = literal_top(rows, labels[:, 1:].flatten().tolist(), 1)
    assert 0.7 < expected < 1
    found = measured(None, "accuracy", logits, labels, model=TinyCausalLM())
    assert found["accuracy"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.tensor(0.5), r"got float32 \[\]"),
        (0.5, "got float"),
        ((torch.zeros(2), 2), r"got \(float32 \[2\], int\)"),
        (None, "got None"),
        ((1, 2, 3), r"got \(int, int, int\)"),
    ],
)
def test_own_metrics_that_cannot_be_added_up_are_refused(value, message):
    metrics = {"mine": lambda output, batch: value}
    with pytest.raises(LossError, match=rf"Metric 'mine' must return one value per .*{message}"):
        measured("mse_loss", metrics, draw(11, 3), draw(11, 3))


def test_shapes_without_classes_are_refused():
    (metric,) = resolve_metrics("accuracy", decision="any")
    with pytest.raises(LossError, match=r"must compare scores .* got float32 \[3, 4\] and int64"):
        metric.compute(draw(3, 4), integers(4, 5), None)
    with pytest.raises(LossError, match="needs a tensor of targets, got None"):
        metric.compute(draw(3, 4), None, None)


def test_sequences_must_hold_names_or_mappings():
    with pytest.raises(ArgumentTypeError, match="got int"):
        resolve_metrics(["accuracy", 3], decision="class")
