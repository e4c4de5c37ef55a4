"""Cases for the steps that add to sums: losses and metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from step_builder import Array, Builder, StepCase, case, rows, steps_from
from torch import Tensor
from torch.nn import functional as F

from landscapex.engine.program import Grid
from landscapex.engine.steps import Contract, CrossEntropy, ElementLoss, Hits, Step, table

ENTROPIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "weighted": {"weight": True},
    "ignored": {"ignore_index": 2},
    "smoothed": {"smoothing": 0.25},
    "everything": {"weight": True, "ignore_index": -100, "smoothing": 0.125},
    "wild": {"wild": True},
    "tiny": {"scale": 40.0},
    "probabilities": {"probabilities": True},
    "probabilities_smoothed": {"probabilities": True, "smoothing": 0.125, "weight": True},
    "log_input": {"log_input": True, "weight": True, "ignore_index": 0},
}


@case(*ENTROPIES.items())
def cross_entropy(b: Builder, _: str, options: dict[str, Any]) -> StepCase:
    """Three positions of four classes; classes lie `positions` elements apart."""
    positions, classes = 3, 4
    values = b.normal(b.samples, classes, positions, scale=options.get("scale", 1.0))
    if options.get("wild"):
        values[:, 0, 0], values[:, 1, 1], values[:, :, 2] = np.nan, -np.inf, np.inf
    weight = None
    if options.get("weight"):
        weight = torch.from_numpy(b.rng.uniform(0.5, 2, classes).astype(np.float32))
    ignored = options.get("ignore_index", -100)
    if options.get("probabilities"):
        q = b.rng.dirichlet(np.ones(classes), (b.samples, positions)).astype(np.float32)
        target = b.input(q.astype(np.float64))
        wanted = torch.from_numpy(q.astype(np.float64)).mT
        target_at = steps_from(positions * classes).reshape(positions, classes)
    else:
        labels = b.rng.integers(0, classes, (b.samples, positions))
        if ignored < 0:
            labels[:, 0] = ignored
        target, wanted = b.input(labels), torch.from_numpy(labels)
        target_at = steps_from(positions)
    x = b.input(values)
    logits = rows(b, x).view(b.samples, classes, positions)
    sources = table(np.arange(classes * positions).reshape(classes, positions).T)
    smoothing = options.get("smoothing", 0.0)
    if options.get("log_input"):
        function: Callable[..., Tensor] = F.nll_loss
        rest: dict[str, Any] = {}
    else:
        function, rest = F.cross_entropy, {"label_smoothing": smoothing}
    # position by position: one that is NaN must not hide the others
    terms, steps = [], []
    for p in range(positions):
        terms.append(
            function(
                logits[..., p], wanted[..., p], None if weight is None else weight.double(),
                ignore_index=ignored, reduction="sum", **rest,
            )
        )  # fmt: skip
        steps.append(
            CrossEntropy(
                x, sources[p : p + 1], target, target_at[p : p + 1], p,
                None if weight is None else weight.numpy(), ignored, smoothing,
                options.get("log_input", False), options.get("probabilities", False),
            )
        )  # fmt: skip
    # and all of them at once, unless it would say nothing
    if not options.get("wild"):
        whole = CrossEntropy(**{**vars(steps[0]), "sources": sources, "target_at": target_at})
        steps[0], terms[0] = whole, sum(terms)
    return b.done(*steps, terms=terms)


@case()
def cross_entropy_of_shared_products(b: Builder) -> StepCase:
    b.directions = 2
    x = b.input(b.normal(b.samples, 6))
    w, weight = b.filters(1, 4, 6)
    labels = b.input(b.rng.integers(0, 4, (b.samples, 1)))
    logits = F.linear(rows(b, x), weight)
    affine = b.live(4, Grid.AFFINE)
    steps: list[Step] = [
        Contract(
            x, steps_from(6), table([0]), table([0]), affine, table([0]), steps_from(4)[None], w
        ),
        CrossEntropy(affine, steps_from(4)[None], labels, table([0]), 0),
        ElementLoss("identity", affine, steps_from(4), -1, table([]), 1),
        Hits("class", affine, steps_from(4)[None], labels, table([0]), 2),
    ]
    wanted = torch.from_numpy(b.inputs[labels][:, 0])
    right = (logits.argmax(1) == wanted).sum()
    terms = [F.cross_entropy(logits, wanted, reduction="sum"), logits.sum(), right]
    return b.done(*steps, terms=terms)


def _uniform(b: Builder, count: int) -> Array:
    x = b.rng.uniform(0.01, 0.99, (b.samples, count)).astype(np.float32).astype(np.float64)
    x[:, :2] = [0.0, 1.0]
    return x


def _signs(b: Builder, count: int) -> Array:
    return np.sign(b.normal(b.samples, count))


def _normals(b: Builder, count: int) -> Array:
    return b.normal(b.samples, count)


Values = Callable[[Builder, int], Array]
ELEMENTS: dict[str, tuple[str, float, Values, Values, Callable[[Tensor, Tensor], Tensor]]] = {
    "mse": ("mse", 0.0, _normals, _normals, lambda x, t: F.mse_loss(x, t, reduction="none")),
    "l1": ("l1", 0.0, _normals, _normals, lambda x, t: F.l1_loss(x, t, reduction="none")),
    "smooth_l1": ("smooth_l1", 0.5, _normals, _normals, lambda x, t: F.smooth_l1_loss(
        x, t, reduction="none", beta=0.5)),
    "smooth_l1_zero": ("smooth_l1", 0.0, _normals, _normals, lambda x, t: F.smooth_l1_loss(
        x, t, reduction="none", beta=0.0)),
    "huber": ("huber", 0.75, _normals, _normals, lambda x, t: F.huber_loss(
        x, t, reduction="none", delta=0.75)),
    "bce": ("bce", 0.0, _uniform, _uniform, lambda x, t: F.binary_cross_entropy(
        x, t, reduction="none")),
    "bce_logits": ("bce_logits", 1.0, _normals, _uniform,
        lambda x, t: F.binary_cross_entropy_with_logits(x, t, reduction="none")),
    "bce_logits_weighted": ("bce_logits", 2.5, _normals, _uniform,
        lambda x, t: F.binary_cross_entropy_with_logits(
            x, t, reduction="none", pos_weight=torch.tensor(2.5))),
    "poisson": ("poisson", 0.125, _uniform, _uniform, lambda x, t: F.poisson_nll_loss(
        x, t, log_input=False, eps=0.125, reduction="none")),
    "poisson_log": ("poisson_log", 0.0, _normals, _uniform, lambda x, t: F.poisson_nll_loss(
        x, t, reduction="none")),
    "soft_margin": ("soft_margin", 0.0, _normals, _signs, lambda x, t: F.soft_margin_loss(
        x, t, reduction="none")),
    "kl": ("kl", 0.0, _normals, _uniform, lambda x, t: F.kl_div(x, t, reduction="none")),
    "kl_log": ("kl_log", 0.0, _normals, _normals, lambda x, t: F.kl_div(
        x, t, reduction="none", log_target=True)),
    "identity": ("identity", 0.0, _normals, _normals, lambda x, t: x),
}  # fmt: skip


@case(*ELEMENTS.items())
def element_loss(b: Builder, _: str, row: tuple[Any, ...]) -> StepCase:
    """With a weight by element, read backwards, as one sum; and without, as another."""
    kind, a, make_x, make_t, function = row
    x, t = b.input(make_x(b, 9)), b.input(make_t(b, 9))
    loss = function(rows(b, x), rows(b, t))
    weight = b.rng.uniform(0.5, 2, 9).astype(np.float32)
    back = table(np.arange(9)[::-1])
    target = (-1, table([])) if kind == "identity" else (t, back)
    steps = [
        ElementLoss(kind, x, back, *target, 1, a, weight),
        ElementLoss(kind, x, back, *target, 0, a),
    ]
    weighted = (loss.flip(1) * torch.from_numpy(weight.astype(np.float64))).sum()
    return b.done(*steps, terms=[loss.sum(), weighted])


@case(*((k, v) for k, v in ELEMENTS.items() if v[2] is _normals), name="element_loss_of_wild")
def element_loss_of_wild_numbers(b: Builder, _: str, row: tuple[Any, ...]) -> StepCase:
    """One sum for each of zero, NaN, infinities, large and small numbers."""
    kind, a, _, make_t, function = row
    x, t = b.input(b.wild(11)), b.input(make_t(b, 11))
    loss = function(rows(b, x), rows(b, t)).sum(0)
    steps = []
    for i in range(11):
        at = table([i])
        steps.append(ElementLoss(kind, x, at, t, at, i, a))
    return b.done(*steps, terms=list(loss))


@case()
def element_loss_of_shared_products(b: Builder) -> StepCase:
    b.directions = 1
    x = b.input(b.normal(b.samples, 3))
    w, weight = b.filters(1, 2, 3)
    t = b.input(b.normal(b.samples, 2))
    affine = b.live(2, Grid.AFFINE)
    product = Contract(
        x, steps_from(3), table([0]), table([0]), affine, table([0]), steps_from(2)[None], w
    )
    loss = ElementLoss("mse", affine, steps_from(2), t, steps_from(2), 0)
    wanted = F.mse_loss(F.linear(rows(b, x), weight), rows(b, t), reduction="sum")
    return b.done(product, loss, terms=[wanted])


@case(("top1", 1), ("top3", 3), ("top9", 9))
def hits(b: Builder, _: str, top: int) -> StepCase:
    """Scores with ties, NaN and infinities; some labels do not count."""
    positions, classes = 6, 5
    values = np.round(b.normal(b.samples, positions, classes))
    values[:, 0, 1], values[:, 1, 2], values[:, 2, :] = np.nan, np.inf, -np.inf
    labels = b.rng.integers(0, classes, (b.samples, positions))
    labels[:, 3] = -1
    x, y = b.input(values), b.input(labels)
    scores, wanted = rows(b, x).view(-1, positions, classes), torch.from_numpy(labels)
    # torch sorts NaN first
    order = scores.sort(dim=-1, descending=True, stable=True)
    chosen = (order.indices == wanted[..., None]) & ~order.values.isnan()
    right = chosen[..., :top].any(-1)
    steps = [
        Hits(
            "class", x, steps_from(classes, p * classes)[None], y, table([p]), p, top,
            ignore_index=-1,
        )
        for p in range(positions)
    ]  # fmt: skip
    return b.done(*steps, terms=list(right.sum(0)))


@case(("float", 0.0, 0.5), ("sign", 0.0, 0.0), ("label", 0.5, 0.5))
def hits_by_threshold(b: Builder, kind: str, threshold: float, middle: float) -> StepCase:
    values = b.wild(12)
    if kind == "label":
        targets = b.rng.integers(0, 2, (b.samples, 12))
        targets[:, 7] = 3
    elif kind == "sign":
        targets = _signs(b, 12)
    else:
        targets = _uniform(b, 12)
    x, y = b.input(values), b.input(targets)
    scores, wanted = rows(b, x), torch.from_numpy(targets)
    right = ((scores > threshold) == (wanted > middle)) & ~scores.isnan()
    if kind == "label":
        right &= wanted != 3
    step = Hits(
        "threshold", x, steps_from(12)[:, None], y, steps_from(12), 0, ignore_index=3,
        threshold=threshold, target_threshold=middle,
    )  # fmt: skip
    return b.done(step, terms=[right.sum()])
