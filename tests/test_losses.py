"""Weights of batches: the total is the mean over samples, however they are cut into batches."""

from __future__ import annotations

import functools
import itertools
import math
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from landscapex.errors import (
    ArgumentError,
    ArgumentTypeError,
    DataError,
    EmptyDataError,
    LossError,
)
from landscapex.losses import Terms, Totals, resolve
from landscapex.reductions import TORCH_LOSSES, scores_in_columns

# torch announces that its "mean" of kl_div will change; the literal reference will tell.
pytestmark = pytest.mark.filterwarnings("ignore:reduction. 'mean' divides the total loss")

RAGGED = (4, 1, 4, 2)  # batches of eleven samples
N = sum(RAGGED)


class Pass(nn.Module):
    """Returns its inputs: the data hold the outputs."""

    def forward(self, *inputs):
        return inputs[0] if len(inputs) == 1 else inputs


class TimeFirst(nn.Module):
    """(N, T, C) scores to (T, N, C) log-probabilities, as CTC wants them."""

    def forward(self, scores):
        return scores.transpose(0, 1).log_softmax(-1)


def total(measure, model, batches, columns=False):
    totals = Totals()
    for batch in batches:
        totals.add(measure(model, batch))
    values = totals.values()
    return dict(zip(totals.columns, values, strict=True)) if columns else values[0]


def cut(item, sizes=RAGGED):
    """Cut tensors (nested in tuples) into batches along their first dimension."""
    ends = list(itertools.accumulate(sizes))

    def part(value, start, end):
        if isinstance(value, tuple):
            return tuple(part(v, start, end) for v in value)
        return value[start:end]

    return [part(item, end - size, end) for size, end in zip(sizes, ends, strict=True)]


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def integers(high, *shape, seed=1):
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


# --- Literal references: for one sample, the list of (numerator, denominator) it adds -------------


def log_softmax(scores):
    top = max(scores)
    norm = top + math.log(sum(math.exp(s - top) for s in scores))
    return [s - norm for s in scores]


def class_terms(log_probs, label, weight=None, ignore=-100, smoothing=0.0):
    if label == ignore:
        return []
    weight = [1.0] * len(log_probs) if weight is None else weight
    hard = -weight[label] * log_probs[label]
    soft = -sum(w * p for w, p in zip(weight, log_probs, strict=True)) / len(log_probs)
    return [((1 - smoothing) * hard + smoothing * soft, weight[label])]


def cross_entropy(z, t, weight=None, ignore_index=-100, label_smoothing=0.0):
    if isinstance(t, list) and isinstance(t[0], float):  # class probabilities
        lp = log_softmax(z)
        weight = [1.0] * len(z) if weight is None else weight
        t = [(1 - label_smoothing) * p + label_smoothing / len(z) for p in t]
        return [(-sum(w * p * q for w, p, q in zip(weight, t, lp, strict=True)), 1)]
    if isinstance(t, list):  # (C, positions)
        columns = zip(*z, strict=True)
        options = (weight, ignore_index, label_smoothing)
        return [e for c, y in zip(columns, t, strict=True) for e in cross_entropy(c, y, *options)]
    return class_terms(log_softmax(z), t, weight, ignore_index, label_smoothing)


def nll(lp, t, weight=None, ignore_index=-100):
    return class_terms(lp, t, weight, ignore_index)


def each(formula):
    """One loss per element, each of weight one."""

    def terms(z, t, **options):
        if isinstance(z, list):
            return [e for a, b in zip(z, t, strict=True) for e in terms(a, b, **options)]
        return [(formula(z, t, **options), 1)]

    return terms


def huber(z, t, delta=1.0):
    d = abs(z - t)
    return 0.5 * d * d if d <= delta else delta * (d - 0.5 * delta)


def smooth_l1(z, t, beta=1.0):
    d = abs(z - t)
    return 0.5 * d * d / beta if d < beta else d - 0.5 * beta


def bce(p, t):
    return -(t * math.log(p) + (1 - t) * math.log(1 - p))


def bce_logits(z, t, pos_weight=1.0):
    p = 1 / (1 + math.exp(-z))
    return -(pos_weight * t * math.log(p) + (1 - t) * math.log(1 - p))


def gaussian(z, t):
    mean, var = z
    return [
        (0.5 * (math.log(v) + (m - y) ** 2 / v), 1) for m, v, y in zip(mean, var, t, strict=True)
    ]


def multi_margin(z, t, weight=None):
    others = [max(0.0, 1 - z[t] + z[j]) for j in range(len(z)) if j != t]
    return [((1 if weight is None else weight[t]) * sum(others) / len(z), 1)]


def multilabel_margin(z, t):
    labels = list(itertools.takewhile(lambda y: y >= 0, t))
    rest = [j for j in range(len(z)) if j not in labels]
    return [(sum(max(0.0, 1 - z[y] + z[j]) for y in labels for j in rest) / len(z), 1)]


def multilabel_soft_margin(z, t):
    return [(sum(bce_logits(a, b) for a, b in zip(z, t, strict=True)) / len(z), 1)]


def margin_ranking(z, t, margin=0.0):
    return [(max(0.0, -t * (z[0] - z[1]) + margin), 1)]


def cosine_embedding(z, t, margin=0.0):
    a, b = z
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    cosine = dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
    return [(1 - cosine if t == 1 else max(0.0, cosine - margin), 1)]


def ctc(z, t):
    """Sum over all alignments; z (T, C) scores, t (labels, input length, target length)."""
    labels, steps, length = t
    labels = labels[:length]
    lp = [log_softmax(row) for row in z[:steps]]
    likelihood = 0.0
    for path in itertools.product(range(len(z[0])), repeat=steps):
        if [c for c, _ in itertools.groupby(path) if c != 0] == labels:
            likelihood += math.exp(sum(lp[i][c] for i, c in enumerate(path)))
    return [(-math.log(likelihood) / max(1, length), 1)]


CLASS_WEIGHT = torch.tensor([0.3, 2.0, 0.0, 1.7], dtype=torch.float64)
LABELS = integers(4, N)
SOME_IGNORED = torch.where(torch.arange(N) % 3 == 0, -100, LABELS)
ONE_BATCH_IGNORED = torch.where(torch.arange(N) < RAGGED[0], -100, LABELS)
PROBABILITIES = draw(N, 4, seed=2).softmax(1)
IMAGE_LABELS = torch.where(integers(5, N, 3) == 4, -100, integers(4, N, 3))
UNIT = draw(N, 3, seed=3).sigmoid()
BITS = integers(2, N, 3).double()
SIGNS = integers(2, N).double() * 2 - 1
LABEL_LISTS = torch.tensor([[2, 0, -1], [1, -1, -1], [0, 1, 2]])[integers(3, N)]
CTC_TARGET = (
    integers(2, N, 2) + 1,
    torch.full((N,), 4),
    torch.tensor([2, 1, 2, 1, 1, 2, 2, 1, 2, 1, 2]),
)

# name of the loss, options, output(s), target, literal reference
CASES = [
    ("cross_entropy", {}, draw(N, 4), LABELS, cross_entropy),
    ("cross_entropy", {}, draw(N, 4), SOME_IGNORED, cross_entropy),
    ("cross_entropy", {}, draw(N, 4), ONE_BATCH_IGNORED, cross_entropy),
    ("cross_entropy", {"ignore_index": 2}, draw(N, 4), LABELS, cross_entropy),
    ("cross_entropy", {"weight": CLASS_WEIGHT}, draw(N, 4), SOME_IGNORED, cross_entropy),
    ("cross_entropy", {"label_smoothing": 0.2}, draw(N, 4), SOME_IGNORED, cross_entropy),
    (
        "cross_entropy",
        {"label_smoothing": 0.2, "weight": CLASS_WEIGHT, "ignore_index": 1},
        draw(N, 4),
        LABELS,
        cross_entropy,
    ),
    ("cross_entropy", {}, draw(N, 4), PROBABILITIES, cross_entropy),
    (
        "cross_entropy",
        {"weight": CLASS_WEIGHT, "label_smoothing": 0.1},
        draw(N, 4),
        PROBABILITIES,
        cross_entropy,
    ),
    ("cross_entropy", {"weight": CLASS_WEIGHT}, draw(N, 4, 3), IMAGE_LABELS, cross_entropy),
    ("nll_loss", {"weight": CLASS_WEIGHT}, draw(N, 4).log_softmax(1), SOME_IGNORED, nll),
    ("multi_margin_loss", {"weight": CLASS_WEIGHT}, draw(N, 4), LABELS, multi_margin),
    ("multilabel_margin_loss", {}, draw(N, 3), LABEL_LISTS, multilabel_margin),
    ("multilabel_soft_margin_loss", {}, draw(N, 3), BITS, multilabel_soft_margin),
    ("binary_cross_entropy", {}, UNIT, BITS, each(bce)),
    ("binary_cross_entropy_with_logits", {}, draw(N, 3), BITS, each(bce_logits)),
    (
        "binary_cross_entropy_with_logits",
        {"pos_weight": torch.tensor(3.0, dtype=torch.float64)},
        draw(N, 3),
        BITS,
        each(bce_logits),
    ),
    ("soft_margin_loss", {}, draw(N), SIGNS, each(lambda z, t: math.log1p(math.exp(-t * z)))),
    (
        "hinge_embedding_loss",
        {},
        draw(N),
        SIGNS,
        each(lambda z, t: z if t == 1 else max(0.0, 1 - z)),
    ),
    ("mse_loss", {}, draw(N, 3), UNIT, each(lambda z, t: (z - t) ** 2)),
    ("l1_loss", {}, draw(N, 3), UNIT, each(lambda z, t: abs(z - t))),
    ("smooth_l1_loss", {"beta": 0.4}, draw(N, 3), UNIT, each(smooth_l1)),
    ("huber_loss", {"delta": 0.4}, draw(N, 3), UNIT, each(huber)),
    ("poisson_nll_loss", {}, draw(N, 3), UNIT, each(lambda z, t: math.exp(z) - t * z)),
    ("gaussian_nll_loss", {}, (draw(N, 3), UNIT + 0.1), draw(N, 3, seed=5), gaussian),
    (
        "kl_div",
        {},
        draw(N, 3).log_softmax(1),
        UNIT,
        each(lambda z, t: t * (math.log(t) - z)),
    ),
    (
        "kl_div",
        {"reduction": "batchmean"},
        draw(N, 3).log_softmax(1),
        UNIT,
        lambda z, t: [(sum(b * (math.log(b) - a) for a, b in zip(z, t, strict=True)), 1)],
    ),
    ("margin_ranking_loss", {"margin": 0.3}, (draw(N), draw(N, seed=6)), SIGNS, margin_ranking),
    (
        "cosine_embedding_loss",
        {"margin": 0.1},
        (draw(N, 3), draw(N, 3, seed=6)),
        SIGNS,
        cosine_embedding,
    ),
    ("ctc_loss", {}, draw(N, 4, 3), CTC_TARGET, ctc),
]
IDS = [f"{i}-{case[0]}" for i, case in enumerate(CASES)]


def literal(outputs, target, reference, options):
    """Loop over samples; no batches, no reductions, no tensors."""
    plain = {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    plain.pop("reduction", None)

    def row(item, i):
        return tuple(row(v, i) for v in item) if isinstance(item, tuple) else item[i].tolist()

    terms = [e for i in range(N) for e in reference(row(outputs, i), row(target, i), **plain)]
    return math.fsum(a for a, _ in terms) / math.fsum(b for _, b in terms)


def batches_of(outputs, target):
    inputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return cut((*inputs, target))


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
            with pytest.raises(ArgumentError, match="any other loss is a function f"):
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


# --- Batches and outputs ------------------------------------------------------------------------


class ModelOutput(OrderedDict):
    """Like Hugging Face's: attributes and items."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


class TinyCausalLM(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 7)

    def forward(self, input_ids, labels=None, attention_mask=None):
        logits = self.embedding(input_ids)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return ModelOutput(loss=loss, logits=logits)


def language_batches():
    ids = integers(7, N, 5)
    labels = torch.where(integers(4, N, 5, seed=3) == 0, -100, ids)
    return [{"input_ids": a, "labels": b} for a, b in cut((ids, labels))], ids, labels


def test_model_loss_of_a_causal_model_counts_shifted_labels():
    batches, ids, labels = language_batches()
    model = TinyCausalLM()
    measure = resolve(None, model=model)
    counted = labels[:, 1:] != -100
    assert int(measure(model, batches[0]).weight) == int(counted[:4].sum())
    expected = F.cross_entropy(
        model.embedding.weight.double()[ids][:, :-1][counted], labels[:, 1:][counted]
    )
    assert total(measure, model, batches) == pytest.approx(expected.item(), rel=1e-6)
    assert "second position" in measure.rule


@pytest.mark.parametrize(
    ("make", "shifted"),
    [
        (TinyCausalLM, True),
        (lambda: type("GPT2LMHeadModel", (TinyCausalLM,), {})(), True),
        (lambda: type("RobertaForMaskedLM", (nn.Module,), {})(), False),
        (lambda: nn.Sequential(type("RobertaLMHead", (nn.Linear,), {})(1, 1)), False),
        (lambda: nn.DataParallel(TinyCausalLM()), True),
    ],
)
def test_only_causal_models_shift_labels(make, shifted):
    model = make()
    batch = {"input_ids": integers(7, 2, 5), "labels": integers(7, 2, 5)}
    measure = resolve(lambda model, batch: torch.tensor(1.0), model=model)
    assert int(measure(model, batch).weight) == (8 if shifted else 10)


def test_decoder_configuration_shifts_labels_but_not_one_label_per_sample():
    model = nn.Linear(1, 1)
    model.config = SimpleNamespace(is_decoder=True)
    measure = resolve(lambda model, batch: torch.tensor(1.0), model=model)
    assert int(measure(model, {"labels": integers(7, 3, 5)}).weight) == 12
    assert int(measure(model, {"labels": integers(7, 3)}).weight) == 3


def test_model_loss_with_tuple_batches_and_samples_as_weights():
    class Carries(nn.Module):
        def forward(self, x, y):
            return SimpleNamespace(loss=((x - y) ** 2).mean())

    x, y = draw(N, 2), draw(N, 2, seed=1)
    found = total(resolve(None, model=Carries()), Carries(), cut((x, y)))
    assert found == pytest.approx(float(((x - y) ** 2).mean()), rel=1e-12)


def test_mapping_batches_name_inputs_and_unwrap_logits():
    batches, ids, labels = language_batches()
    model = TinyCausalLM()

    class PerToken(nn.Module):
        def forward(self, input_ids):
            return ModelOutput(logits=model(input_ids).logits.transpose(1, 2))

    found = total(resolve("cross_entropy", model=PerToken()), PerToken(), batches)
    scores = model.embedding.weight.detach().double()[ids]
    expected = F.cross_entropy(scores.flatten(0, 1), labels.flatten()).item()
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("key", ["labels", "label", "targets", "target", "y"])
def test_target_keys(key):
    model = nn.Linear(3, 4)
    batch = {"input": torch.ones(2, 3), key: torch.tensor([0, 1])}
    terms = resolve("cross_entropy", model=model)(model, batch)
    torch.testing.assert_close(terms.loss, F.cross_entropy(model(batch["input"]), batch[key]))


def test_nested_inputs_are_unpacked():
    model = nn.Bilinear(2, 3, 1)
    a, b, y = torch.ones(4, 2), torch.ones(4, 3), torch.zeros(4, 1)
    measure = resolve("mse_loss", model=model)
    expected = F.mse_loss(model(a, b), y)
    for batch in [(a, b, y), ((a, b), y), [[a, b], y], ({"input1": a, "input2": b}, y)]:
        assert torch.equal(measure(model, batch).loss, expected)


@pytest.mark.parametrize("batch", [torch.zeros(3), (torch.zeros(3),), None, {"x": torch.zeros(3)}])
def test_batches_without_target_are_refused(batch):
    with pytest.raises(DataError, match=r"mse_loss must get batches \(inputs, target\)"):
        resolve("mse_loss", model=Pass())(Pass(), batch)


def test_two_targets_are_refused():
    batch = {"x": torch.zeros(2), "y": torch.zeros(2), "labels": torch.zeros(2)}
    with pytest.raises(DataError, match=r"got keys \['x', 'y', 'labels'\]"):
        resolve("mse_loss", model=Pass())(Pass(), batch)


def test_a_second_output_is_not_taken_for_the_target():
    with pytest.raises(LossError, match=r"cross_entropy must get 1 tensor\(s\) from the model"):
        resolve("cross_entropy", model=Pass())(Pass(), (draw(2, 4), draw(2, 4), LABELS[:2]))


def test_errors_of_torch_carry_the_structure_of_the_batch():
    batch = (draw(3, 4), draw(3, 5))
    with pytest.raises((RuntimeError, ValueError)) as caught:
        resolve("cross_entropy", model=Pass())(Pass(), batch)
    notes = " ".join(caught.value.__notes__)
    assert "float64 [3, 4], float64 [3, 5]" in notes
    assert "The model returned float64 [3, 4]" in notes
    with pytest.raises(ZeroDivisionError) as caught:
        resolve(lambda model, batch: 1 / 0, model=Pass())(Pass(), batch)
    assert "In the loss <lambda>" in caught.value.__notes__[0]


def test_models_that_return_something_else_are_refused():
    class Boxes(nn.Module):
        def forward(self, x):
            return {"boxes": x}

    with pytest.raises(LossError, match=r"got \{'boxes': float64 \[2, 3\]\}; pass `f\(model"):
        resolve("mse_loss", model=Boxes())(Boxes(), (draw(2, 3), draw(2, 3)))


# --- f(model, batch) ----------------------------------------------------------------------------


def test_function_weighs_by_labels_else_by_samples():
    def loss(model, batch):
        return torch.tensor(1.0)

    measure = resolve(loss, model=Pass())
    x = torch.zeros(4, 2)
    assert measure(Pass(), (x, torch.zeros(4))).weight == 4
    assert int(measure(Pass(), (x, torch.tensor([0, -100, 2, -100]))).weight) == 2
    assert int(measure(Pass(), {"x": x, "labels": torch.tensor([[0, 1], [-100, 2]])}).weight) == 3
    assert measure(Pass(), {"x": x, "labels": torch.zeros(4, 3)}).weight == 4
    assert measure(Pass(), (torch.ones(4, dtype=torch.int64),)).weight == 4
    assert measure(Pass(), None).weight == 1


@pytest.mark.parametrize(
    "count", [lambda batch: batch["mask"].sum(), "mask", "tokens", lambda batch: 3.0]
)
def test_count_overrides_labels(count):
    batch = {"labels": torch.zeros(4, dtype=torch.int64), "mask": torch.tensor([1, 1, 1, 0])}
    batch["tokens"] = 3
    measure = resolve(lambda model, batch: torch.tensor(1.0), model=Pass(), count=count)
    assert float(measure(Pass(), batch).weight) == 3


def test_function_with_sum_is_divided_by_the_weight():
    x, y = draw(N, 3), LABELS
    model = nn.Linear(3, 4).double()
    expected = F.cross_entropy(model(x), y).item()

    def summed(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1], reduction="sum")

    found = total(resolve(summed, model=model, reduction="sum"), model, cut((x, y)))
    assert found == pytest.approx(expected, rel=1e-12)


def test_function_with_losses_per_label_leaves_out_ignored_labels():
    x = draw(N, 4)

    def per_label(model, batch):
        return F.cross_entropy(batch[0], batch[1], reduction="none")

    measure = resolve(per_label, model=Pass(), reduction="none")
    expected = literal(x, SOME_IGNORED, cross_entropy, {})
    assert total(measure, Pass(), cut((x, SOME_IGNORED))) == pytest.approx(expected, rel=1e-12)


def test_function_with_losses_per_sample_averages_them():
    def per_sample(model, batch):
        return (batch[0] ** 2).sum(1)

    x, many = draw(N, 3), integers(3, N, 7)
    measure = resolve(per_sample, model=Pass(), reduction="none")
    found = total(measure, Pass(), cut((x, many)))
    assert found == pytest.approx(float((x**2).sum(1).mean()), rel=1e-12)


def test_function_returns_metrics_weighted_like_the_loss():
    def loss(model, batch):
        scores, y = batch
        hits = (scores.argmax(1) == y).double().mean()
        return F.cross_entropy(scores, y), {"hits": hits, "half": 0.5, "ones": torch.tensor(1)}

    x = draw(N, 4)
    values = total(resolve(loss, model=Pass()), Pass(), cut((x, LABELS)), columns=True)
    assert list(values) == ["loss", "hits", "half", "ones"]
    hits = float((x.argmax(1) == LABELS).double().mean())
    assert values["hits"] == pytest.approx(hits, rel=1e-12)
    assert (values["half"], values["ones"]) == (0.5, 1.0)


def test_half_precision_metrics_do_not_overflow():
    measure = resolve(
        lambda model, batch: (torch.tensor(1.0), {"big": torch.tensor(60000.0).half()}),
        model=Pass(),
    )
    batch = (torch.zeros(100, 1), torch.zeros(100))
    assert total(measure, Pass(), [batch], columns=True)["big"] == pytest.approx(60000, rel=1e-3)


BAD_RETURNS = [
    (1, "must return a floating-point tensor, got int"),
    (0.5, "must return a floating-point tensor, got float"),
    (None, "must return a floating-point tensor, got NoneType"),
    (torch.tensor(3), r"must return a floating-point tensor, got int64 \[\]"),
    (torch.tensor(1j), r"must return a floating-point tensor, got complex64 \[\]"),
    (torch.zeros(4), r'must return a 0-d tensor, got float32 \[4\].*reduction="none"'),
    ((torch.tensor(1.0), 2), r"floating-point tensor, got tuple \(float32 \[\], int\)"),
    ((torch.tensor(1.0), torch.tensor(1.0)), "floating-point tensor, got tuple"),
    ((torch.tensor(1.0), {}, {}), "floating-point tensor, got tuple"),
    ({"loss": torch.tensor(1.0)}, "floating-point tensor, got dict"),
    ((torch.tensor(1.0), {"hits": torch.zeros(4)}), "Metric 'hits' of .* must be a number"),
    ((torch.tensor(1.0), {"hits": "many"}), "Metric 'hits' of .* must be a number"),
]


@pytest.mark.parametrize(("value", "message"), BAD_RETURNS)
def test_fault_18_what_is_not_a_loss_is_refused(value, message):
    measure = resolve(lambda model, batch: value, model=Pass())
    with pytest.raises(LossError, match=message) as caught:
        measure(Pass(), (torch.zeros(4), torch.zeros(4)))
    assert isinstance(caught.value, TypeError)


def test_fault_18_none_reduction_needs_losses_per_sample():
    measure = resolve(lambda model, batch: torch.tensor(1.0), model=Pass(), reduction="none")
    with pytest.raises(LossError, match=r"must return one loss per sample"):
        measure(Pass(), (torch.zeros(4), torch.zeros(4)))


@pytest.mark.parametrize("name", ["loss", "evaluated", "alpha", "", 3])
def test_metric_names_that_a_result_needs_are_refused(name):
    measure = resolve(lambda model, batch: (torch.tensor(1.0), {name: 1.0}), model=Pass())
    with pytest.raises(ArgumentError, match="name of a metric must be a string other than"):
        measure(Pass(), None)


def test_model_without_loss_is_refused():
    with pytest.raises(LossError, match=r"must return an object with `\.loss`.*are labels missing"):
        resolve(None, model=TinyCausalLM())(TinyCausalLM(), {"input_ids": integers(7, 2, 5)})


@pytest.mark.parametrize("bad", [lambda b: "many", lambda b: torch.ones(2), lambda b: True])
def test_bad_counts_are_refused(bad):
    measure = resolve(lambda model, batch: torch.tensor(1.0), model=Pass(), count=bad)
    with pytest.raises(LossError, match="`count` must give a number or a 0-d tensor"):
        measure(Pass(), None)


def test_missing_count_key_is_refused():
    measure = resolve(lambda model, batch: torch.tensor(1.0), model=Pass(), count="tokens")
    with pytest.raises(DataError, match=r"got 'tokens' for keys \['x'\]"):
        measure(Pass(), {"x": torch.zeros(1)})


# --- Criteria of the user's own -----------------------------------------------------------------


class Focal(nn.CrossEntropyLoss):
    def forward(self, scores, target):
        loss = F.cross_entropy(scores, target, reduction="none")
        return ((1 - (-loss).exp()) ** 2 * loss).mean()


class Squares(nn.Module):
    def __init__(self, reduction="mean"):
        super().__init__()
        self.reduction = reduction
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, output, target):
        per_sample = self.scale * ((output - target) ** 2).sum(1)
        return {"mean": torch.mean, "sum": torch.sum, "none": lambda x: x}[self.reduction](
            per_sample
        )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_own_criteria_weigh_samples(reduction):
    x, y = draw(N, 3), draw(N, 3, seed=1)
    expected = float(2 * ((x - y) ** 2).sum(1).mean())
    found = total(resolve(Squares(reduction), model=Pass()), Pass(), cut((x, y)))
    assert found == pytest.approx(expected, rel=1e-12)


def test_subclass_with_its_own_forward_is_not_torchs_loss():
    measure = resolve(Focal(), model=Pass())
    assert measure.functional is None
    assert not measure.regroupable
    inherited = type("Plain", (nn.CrossEntropyLoss,), {})()
    assert resolve(inherited, model=Pass()).functional == "cross_entropy"


def test_moving_a_measure_copies_its_tensors_and_keeps_the_model():
    class Holds(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model
            self.register_buffer("scale", torch.ones(1))

        def forward(self, output, target):
            return output.sum() * self.scale.sum()

    model = nn.Linear(2, 1)
    criterion = Holds(model)
    moved = resolve(criterion, model=model).to(torch.device("meta"))
    assert moved._criterion.scale.device.type == "meta"
    assert moved._criterion.model is model
    assert criterion.scale.device.type == "cpu"
    weighted = nn.CrossEntropyLoss(torch.ones(3))
    moved = resolve(weighted, model=model).to(torch.device("meta"))
    assert moved._criterion.weight.device.type == moved.options["weight"].device.type == "meta"
    assert weighted.weight.device.type == "cpu"
    same = resolve("cross_entropy", model=model)
    assert same.to(torch.device("cpu")) is same


# --- resolve ------------------------------------------------------------------------------------

BAD_ARGUMENTS = [
    ({"loss": "relu"}, ArgumentError, r"`loss` must be one of cross_entropy, .*got 'relu'"),
    ({"loss": 3}, ArgumentTypeError, "`loss` must be a name .*got int"),
    ({"loss": "mse_loss", "reduction": "median"}, ArgumentError, "`reduction` must be"),
    ({"loss": "mse_loss", "reduction": "batchmean"}, ArgumentError, "`reduction` must be"),
    ({"loss": "mse_loss", "count": len}, ArgumentError, "`count` must be None for mse_loss"),
    ({"loss": None, "count": 3}, ArgumentTypeError, "`count` must be a function .*got int"),
    (
        {"loss": nn.MSELoss(), "reduction": "sum"},
        ArgumentError,
        "`reduction` must be that of the criterion, 'mean', or None, got 'sum'",
    ),
    (
        {"loss": functools.partial(F.mse_loss, size_average=False)},
        ArgumentError,
        "`size_average` and `reduce` must be replaced",
    ),
    (
        {"loss": lambda model, batch: 0, "metrics": "accuracy"},
        ArgumentError,
        r"`metrics` must be empty .* return \(loss, \{name: value\}\)",
    ),
    ({"loss": "cross_entropy", "metrics": "auc"}, ArgumentError, "must be one of 'accuracy'"),
    ({"loss": "mse_loss", "metrics": "accuracy"}, ArgumentError, "'accuracy' must go with a loss"),
    ({"loss": "soft_margin_loss", "metrics": "top5"}, ArgumentError, "'top5' must go with a loss"),
    ({"loss": "cross_entropy", "metrics": 5}, ArgumentTypeError, "`metrics` must be a name.*int"),
    ({"loss": "mse_loss", "metrics": {"a": 5}}, ArgumentTypeError, "Metric 'a' must be a function"),
    ({"loss": "mse_loss", "metrics": {"loss": len}}, ArgumentError, "other than 'loss'"),
    ({"loss": "cross_entropy", "metrics": ["error", "error"]}, ArgumentError, "distinct names"),
]


@pytest.mark.parametrize(("arguments", "kind", "message"), BAD_ARGUMENTS)
def test_bad_arguments_are_refused(arguments, kind, message):
    with pytest.raises(kind, match=message):
        resolve(arguments.pop("loss"), model=Pass(), **arguments)


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


@pytest.mark.parametrize("loss", ["cross_entropy", None, lambda model, batch: 0, Focal()])
def test_rules_are_words(loss):
    rule = resolve(loss, model=Pass()).rule
    assert "weighted by" in rule
    assert len(rule) > 30


# --- Totals -------------------------------------------------------------------------------------


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


# --- Identity -----------------------------------------------------------------------------------


def scaled(factor, tensor=None):
    def loss(model, batch):
        return factor * batch.sum() + (0 if tensor is None else tensor.sum())

    return loss


def own_squares(x):
    return (x**2).mean()


class Stateful:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, model, batch):
        return self.factor * batch.sum()


TWINS = (lambda model, batch: batch.sum(), lambda model, batch: batch.mean())

DIFFERENT = [
    TWINS,
    ("mse_loss", "l1_loss"),
    (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1)),
    (nn.CrossEntropyLoss(torch.ones(3)), nn.CrossEntropyLoss(torch.tensor([1.0, 1.0, 1.5]))),
    (functools.partial(F.huber_loss, delta=1.0), functools.partial(F.huber_loss, delta=2.0)),
    (scaled(1.0), scaled(2.0)),
    (scaled(1.0, torch.ones(2)), scaled(1.0, torch.zeros(2))),
    (Stateful(1), Stateful(2)),
    (scaled(1.0), own_squares),
    (Squares("mean"), Squares("sum")),
    (lambda model, batch, a=1: a, lambda model, batch, a=2: a),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_identity_tells_losses_apart(one, other):
    first, second = (resolve(loss, model=Pass()).identity for loss in (one, other))
    assert first != second
    assert resolve(one, model=Pass()).identity == first


def test_identity_is_json_and_holds_source_count_reduction_and_metrics():
    import json

    def tokens(batch):
        return 17

    measure = resolve(scaled(2.0), model=Pass(), count=tokens, reduction="sum")
    text = json.dumps(measure.identity)
    assert "factor * batch.sum()" in text
    assert "return 17" in text
    assert '"sum"' in text
    measure = resolve("mse_loss", model=Pass(), metrics={"own": lambda output, batch: output})
    assert "lambda output, batch" in json.dumps(measure.identity)


def test_identity_of_code_without_source_is_its_bytecode():
    spaces = [{}, {}, {}]
    for space, factor in zip(spaces, (2, 3, 2), strict=True):
        exec(f"def f(model, batch): return {factor} * batch.sum()", space)
    a, b, c = (resolve(space["f"], model=Pass()).identity for space in spaces)
    assert a == c != b
    assert "bytecode" in str(a)


def test_identity_sees_global_constants():
    spaces = [{"SCALE": 2.0}, {"SCALE": 3.0}]
    for space in spaces:
        exec("def f(model, batch): return SCALE * batch.sum()", space)
    a, b = (resolve(space["f"], model=Pass()).identity for space in spaces)
    assert a != b


def test_identity_does_not_follow_the_weights_of_the_model():
    model = nn.Linear(2, 1)

    class Holds(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, output, target):
            return output.sum()

    weight = model.weight
    closed = resolve(lambda m, batch: model(batch).sum() + weight.sum(), model=model)
    held = resolve(Holds(), model=model)
    before = closed.identity, held.identity
    with torch.no_grad():
        model.weight.add_(1)
    assert (closed.identity, held.identity) == before
