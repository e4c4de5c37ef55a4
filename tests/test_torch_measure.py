"""torch's own losses: the total is the mean over samples, however they are cut into batches."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from loss_cases import (
    CASES,
    CLASS_WEIGHT,
    IDS,
    LABELS,
    ONE_BATCH_IGNORED,
    SOME_IGNORED,
    UNIT,
    N,
    Pass,
    TimeFirst,
    batches_of,
    cross_entropy,
    cut,
    draw,
    literal,
    total,
)
from torch import nn

from landscapex.errors import ArgumentError
from landscapex.losses.binding import resolve
from landscapex.losses.reductions import TORCH_LOSSES, scores_in_columns

# torch announces that its "mean" of kl_div will change; the literal reference will tell.
pytestmark = pytest.mark.filterwarnings("ignore:reduction. 'mean' divides the total loss")


@pytest.mark.parametrize(("name", "options", "outputs", "target", "reference"), CASES, ids=IDS)
def test_trap_18_total_of_ragged_batches_is_the_mean_over_samples(
    name, options, outputs, target, reference
):
    loss = functools.partial(getattr(F, name), **options) if options else name
    model = TimeFirst() if name == "ctc_loss" else Pass()
    measure = resolve(loss, model=model)
    expected = literal(outputs, target, reference, options)
    batches = batches_of(outputs, target)
    assert total(measure, model, batches) == pytest.approx(expected, rel=1e-12)
    unweighted = [measure(model, batch).loss.item() for batch in batches]
    assert sum(unweighted) / len(unweighted) != pytest.approx(expected, rel=1e-3)


# The mean of CTC and of "batchmean" is not the sum divided by a count.
SUMMED = [case for case in CASES if case[0] != "ctc_loss" and "reduction" not in case[1]]


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize(("name", "options", "outputs", "target", "reference"), SUMMED)
def test_sum_and_none_reductions_become_the_mean(
    name, options, outputs, target, reference, reduction
):
    options = {**options, "reduction": reduction}
    measure = resolve(functools.partial(getattr(F, name), **options), model=Pass())
    expected = literal(outputs, target, reference, options)
    found = total(measure, Pass(), batches_of(outputs, target))
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("name", "options", "outputs", "target", "reference"), CASES, ids=IDS)
def test_criteria_weigh_like_their_functions(name, options, outputs, target, reference):
    criterion = getattr(nn, TORCH_LOSSES[name].criterion)(**options)
    model = TimeFirst() if name == "ctc_loss" else Pass()
    measure = resolve(criterion, model=model)
    assert measure.functional == name
    expected = literal(outputs, target, reference, options)
    found = total(measure, model, batches_of(outputs, target))
    assert found == pytest.approx(expected, rel=1e-12)


def test_every_loss_of_torch_is_supported_or_refused_in_words():
    tested = {case[0] for case in CASES}
    names = [n for n in dir(F) if n.endswith("_loss") or "cross_entropy" in n or n == "kl_div"]
    assert len(names) >= 20
    for name in names:
        if name in TORCH_LOSSES:
            assert name in tested or name == "linear_cross_entropy"
        else:
            assert name in ("triplet_margin_loss", "triplet_margin_with_distance_loss")
            with pytest.raises(ArgumentError, match="Any other loss is a function f"):
                resolve(name, model=Pass())


@pytest.mark.skipif(not hasattr(nn, "LinearCrossEntropyLoss"), reason="torch has none yet")
def test_linear_cross_entropy_as_criterion_and_function():
    hidden, weight = draw(N, 5), draw(4, 5, seed=8)
    criterion = nn.LinearCrossEntropyLoss(5, 4, dtype=torch.float64)
    with torch.no_grad():
        criterion.linear.weight.copy_(weight)
    expected = literal(hidden @ weight.T, SOME_IGNORED, cross_entropy, {})
    batches = cut((hidden, SOME_IGNORED))
    measure = resolve(criterion, model=Pass())
    assert total(measure, Pass(), batches) == pytest.approx(expected, rel=1e-12)

    class Head(nn.Module):
        def forward(self, x):
            return x, weight

    measure = resolve("linear_cross_entropy", model=Head())
    assert total(measure, Head(), batches) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["mse_loss", "l1_loss"])
def test_elementwise_weights_are_what_torch_divides_by(name):
    weight = draw(2, 3, seed=4).abs()
    z, t = draw(4, 3), draw(4, 3, seed=5)
    measure = resolve(functools.partial(getattr(F, name), weight=weight), model=Pass())
    assert not measure.regroupable
    power = 2 if name == "mse_loss" else 1
    expected = ((z - t).abs() ** power * weight.repeat(2, 1)).sum() / (2 * weight.sum())
    found = total(measure, Pass(), [(z[:2], t[:2]), (z[2:], t[2:])])
    assert found == pytest.approx(float(expected), rel=1e-12)
    assert float(measure(Pass(), (z[:2], t[:2])).weight) == pytest.approx(float(weight.sum()))


def test_broadcast_targets_count_the_elements_torch_divides_by():
    z, t = draw(5, 3), draw(5, 1, seed=5)
    measure = resolve("mse_loss", model=Pass())
    with pytest.warns(UserWarning, match="target size"):
        assert measure(Pass(), (z, t)).weight == 15


def test_byte_labels_are_classes_and_not_a_mask():
    measure = resolve(nn.CrossEntropyLoss(CLASS_WEIGHT), model=Pass())
    terms = measure(Pass(), (draw(3, 4), torch.tensor([1, 3, 1], dtype=torch.uint8)))
    assert float(terms.weight) == pytest.approx(5.7)


def test_counts_are_kept_per_target_and_follow_changes_in_place():
    measure = resolve("cross_entropy", model=Pass())
    target = LABELS.clone()
    batch = (draw(N, 4), target)
    first = measure(Pass(), batch).weight
    assert measure(Pass(), batch).weight is first
    target[:3] = -100
    assert int(measure(Pass(), batch).weight) == N - 3
    assert int(measure(Pass(), (draw(N, 4), LABELS.clone())).weight) == N
    criterion = nn.CrossEntropyLoss(torch.ones(4, dtype=torch.float64))
    weighted = resolve(criterion, model=Pass())
    assert float(weighted(Pass(), batch).weight) == N - 3
    criterion.weight.mul_(2)
    assert float(weighted(Pass(), batch).weight) == 2 * (N - 3)
    del batch, target
    assert len(measure._counts._entries) == 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ignore_index": 1},
        {"weight": torch.tensor([0.5, 2.0, 0.25])},
        {"label_smoothing": 0.1, "weight": torch.tensor([0.5, 2.0, 0.25])},
        {"reduction": "sum"},
        {"reduction": "none"},
    ],
    ids=repr,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [127, 128, 500])
def test_cross_entropy_of_short_rows_is_computed_over_columns(options, dtype, rows):
    """Against torch row by row in float64, also where the loss is infinite or NaN."""
    generator = torch.Generator().manual_seed(rows)
    scores = torch.randn(rows, 3, generator=generator, dtype=dtype) * 5
    labels = torch.randint(3, (rows,), generator=generator)
    if "weight" in options:
        options = {**options, "weight": options["weight"].to(dtype)}
    exact = {key: v.double() if isinstance(v, torch.Tensor) else v for key, v in options.items()}
    loss = functools.partial(F.cross_entropy, **options)
    for bad in (0.0, 1e30, math.inf, -math.inf, math.nan):
        scores[7, 1], labels[7] = bad, 0
        exact["reduction"] = options.get("reduction", "mean")
        expected = F.cross_entropy(scores.double(), labels, **exact)
        terms = resolve(loss, model=Pass())(Pass(), (scores, labels))
        if exact["reduction"] != "mean":
            expected = expected.sum() / rows
        tolerance = 1e-6 if dtype == torch.float32 else 1e-14
        assert terms.loss.item() == pytest.approx(expected.item(), rel=tolerance, nan_ok=True)


def test_scores_are_turned_only_where_that_is_faster_and_nobody_sees_it():
    table, labels = torch.zeros(200, 3), torch.zeros(200).long()
    turned, flat = scores_in_columns(table, labels)
    assert (turned.shape, flat.shape) == ((1, 3, 200), (1, 200))
    assert turned.data_ptr() == table.data_ptr()  # a view, no copy
    for same in (
        table[:127],
        table[:, :1].expand(-1, 16),
        table.half(),
        table.clone().requires_grad_(),
        table[:, :, None],
    ):
        assert scores_in_columns(same, labels[: len(same)])[0] is same
    assert scores_in_columns(table, labels[:199])[0] is table  # torch says what is wrong
    seen = []
    criterion = nn.CrossEntropyLoss()
    criterion.register_forward_pre_hook(lambda module, given: seen.append(given[0].shape))
    resolve(criterion, model=Pass())(Pass(), (table, labels))
    assert seen == [table.shape]


def test_gradient_flows_through_the_loss_and_survives_an_ignored_batch():
    model = nn.Linear(3, 4).double()
    measure = resolve("cross_entropy", model=model)
    x = draw(N, 3)
    whole = F.cross_entropy(model(x), ONE_BATCH_IGNORED)
    expected = torch.autograd.grad(whole, list(model.parameters()))
    terms = [measure(model, batch) for batch in cut((x, ONE_BATCH_IGNORED))]
    assert terms[0].loss.isnan()
    assert all(t.loss.requires_grad and t.loss.ndim == 0 for t in terms)
    summed = sum(t.weight * t.loss for t in terms[1:]) / sum(t.weight for t in terms)
    found = torch.autograd.grad(summed, list(model.parameters()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_functions_of_torch_are_recognised_with_and_without_options():
    assert resolve(F.cross_entropy, model=Pass()).functional == "cross_entropy"
    measure = resolve(functools.partial(F.cross_entropy, ignore_index=2), model=Pass())
    assert measure.options == {"ignore_index": 2}
    measure = resolve("kl_div", model=Pass(), reduction="batchmean")
    assert measure(Pass(), (UNIT.log(), UNIT)).weight == N


@pytest.mark.parametrize(
    ("loss", "metrics", "expected"),
    [
        ("cross_entropy", "accuracy", True),
        (nn.CrossEntropyLoss(CLASS_WEIGHT), (), True),
        ("mse_loss", (), True),
        ("mse_loss", {"own": lambda output, batch: output}, False),
        ("ctc_loss", (), False),
        (nn.BCEWithLogitsLoss(pos_weight=torch.tensor(2.0)), (), True),
        (nn.BCEWithLogitsLoss(pos_weight=torch.ones(3)), (), False),
        (nn.BCELoss(weight=torch.ones(3)), (), False),
        (lambda model, batch: None, (), False),
        (None, (), False),
    ],
)
def test_only_torchs_per_sample_losses_may_be_regrouped(loss, metrics, expected):
    assert resolve(loss, model=Pass(), metrics=metrics).regroupable is expected
