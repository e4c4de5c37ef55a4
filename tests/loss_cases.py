"""Every loss of torch, with outputs, targets and a literal reference; two of a user's own."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import nn

from landscapex.losses.totals import Totals

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
