"""The loss steps of the grid program on the CPU against the literal executor and torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from program_bench import SAMPLES, Array, Bench
from program_bench import isa as isa

from landscapex.engine.steps import ELEMENT_LOSSES, CrossEntropy, ElementLoss, Hits, table

pytestmark = pytest.mark.usefixtures("isa")
INF, NAN = math.inf, math.nan


@pytest.mark.parametrize("directions", [0, 1, 2, 3])
@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("log_input", [False, True])
def test_cross_entropy_with_every_option(
    log_input: bool, probabilities: bool, directions: int
) -> None:
    for weighted in (False, True):
        for smoothing in (0.0, 0.2):
            bench = Bench(directions)
            x = bench.value(24)
            if probabilities:
                target = bench.data(
                    bench.rng.dirichlet(np.ones(5), (SAMPLES, 4)).reshape(SAMPLES, 20)
                )
                target_at = bench.permuted(4, 5)
            else:
                labels = bench.rng.integers(0, 5, (SAMPLES, 4))
                labels[::3, 1] = -7
                target, target_at = bench.data(labels), bench.permuted(4)
            weight = bench.rng.random(5).astype(np.float32) if weighted else None
            sources = table(bench.permuted(24)[:20].reshape(4, 5))
            for _ in range(2):  # a sum that another step has added to
                bench.steps.append(
                    CrossEntropy(
                        x, sources, target, target_at, 1, weight, -7, smoothing, log_input,
                        probabilities,
                    )
                )  # fmt: skip
            bench.terms = 2
            bench.check(3e-7, atol=1e-5 * log_input)


def entropy(logits: Array | Sequence[Sequence[float]], labels: Sequence[int]) -> Array:
    """The loss of each sample by itself."""
    losses = []
    for row, label in zip(logits, labels, strict=True):
        bench = Bench()
        bench.terms = 1
        x = bench.data(np.tile(row, (SAMPLES, 1)))
        y = bench.data(np.full((SAMPLES, 1), label))
        at = table(np.arange(len(row))[None])
        bench.steps.append(CrossEntropy(x, at, y, table([0]), 0))
        losses.append(bench.native()[0][0] / SAMPLES)
    return np.array(losses)


def test_tiny_cross_entropies_keep_their_digits() -> None:
    """Relative to themselves, and where the scores differ by a number with a long fraction."""
    logits = [[d, 0.1, 0.0] for d in (0.3, 3.7, 9.123, 14.777, 30.3, 77.7)]
    logits += [[1000.1, 1000.1 - d, 900.0] for d in (0.3, 11.7, 40.0)]
    rows = np.array(logits, np.float32).astype(float)
    want = [math.log1p(sum(math.exp(x - r[0]) for x in r[1:])) for r in rows]
    np.testing.assert_allclose(entropy(rows, [0] * len(rows)), want, rtol=1.1e-7)


@pytest.mark.parametrize(
    ("row", "label"),
    [
        ([NAN, 0, 1], 1), ([0, 1, NAN], 0), ([INF, 0, 1], 0), ([INF, 0, 1], 1), ([0, -INF, 1], 1),
        ([0, -INF, 1], 0), ([-INF] * 3, 0), ([INF, INF, 0], 0), ([INF, -INF, 0], 1), ([5.0], 0),
        ([3e38, -3e38, 0], 1), ([3e38, -3e38, 0], 0), ([1e5, 0, -1e5], 2),
    ],
)  # fmt: skip
def test_cross_entropy_of_special_scores_is_that_of_torch(row: list[float], label: int) -> None:
    x = torch.tensor([row], dtype=torch.float32).double()
    want = F.cross_entropy(x, torch.tensor([label])).item()
    np.testing.assert_allclose(entropy([row], [label]), [want], rtol=1e-7)


_TARGETS: dict[str, str] = dict.fromkeys(ELEMENT_LOSSES, "normal") | {
    "bce": "fraction", "bce_logits": "fraction", "soft_margin": "sign", "poisson": "positive",
    "poisson_log": "positive", "kl": "positive",
}  # fmt: skip


@pytest.mark.parametrize(
    # two of them take values of one sign, which affine ones do not have
    ("kind", "directions"),
    [
        (kind, k)
        for kind in ELEMENT_LOSSES
        for k in (0, 2)
        if kind not in {"bce", "poisson"} or not k
    ],
)
def test_element_losses(kind: str, directions: int) -> None:
    for weighted in (False, True):
        for a in (0.0, 0.6) if kind == "smooth_l1" else (0.6,):
            bench = Bench(directions)
            x = bench.value(9)
            if not directions and kind in {"bce", "poisson"}:
                bench.inputs[x][:] = bench.rng.random((SAMPLES, 9))
            t = bench.rng.normal(size=(SAMPLES, 9))
            t = {"normal": t, "fraction": t % 1, "positive": np.abs(t), "sign": np.sign(t)}[
                _TARGETS[kind]
            ]
            if kind in {"bce", "kl"}:
                t[:, 0] = 0
            target = bench.data(t) if kind != "identity" else -1
            target_at = bench.permuted(9)[:7] if kind != "identity" else table([])
            weight = bench.rng.random(7).astype(np.float32) if weighted else None
            bench.steps.append(
                ElementLoss(kind, x, bench.permuted(9)[:7], target, target_at, 0, a, weight)
            )
            bench.terms = 1
            bench.check(4e-7, atol=2e-6)


@pytest.mark.parametrize(
    ("kind", "x", "t", "loss"),
    [
        ("bce", [0.0, 1.0, 0.0, 1.0, 0.3, NAN], [0.0, 1.0, 1.0, 0.0, 0.5, 0.5],
         F.binary_cross_entropy),
        ("bce_logits", [200.0, -200.0, 200.0, -200.0, 1e-8, NAN], [1.0, 0.0, 0.0, 1.0, 0.5, 1.0],
         F.binary_cross_entropy_with_logits),
        ("kl", [1.0, -INF, 2.0, -1.0, 0.5], [0.0, 0.5, -1.0, 1.0, NAN], F.kl_div),
        ("mse", [INF, NAN, 1e20, 1.0], [0.0, 0.0, -1e20, 1.0], F.mse_loss),
        ("huber", [0.6, 0.5, -0.7, INF, NAN], [0.0] * 5,
         lambda x, t, **k: F.huber_loss(x, t, delta=0.6, **k)),
        ("smooth_l1", [0.6, 0.5, -0.7, INF, NAN], [0.0] * 5,
         lambda x, t, **k: F.smooth_l1_loss(x, t, beta=0.6, **k)),
        ("poisson", [0.0, 2.0, -1.0], [1.0, 0.0, 1.0],
         lambda x, t, **k: F.poisson_nll_loss(x, t, log_input=False, eps=0.6, **k)),
        ("soft_margin", [200.0, -200.0, 0.0, NAN], [1.0, 1.0, -1.0, 1.0], F.soft_margin_loss),
    ],
)  # fmt: skip
def test_element_losses_of_special_numbers_are_those_of_torch(
    kind: str, x: list[float], t: list[float], loss: Callable[..., torch.Tensor]
) -> None:
    for number, target in zip(x, t, strict=True):
        bench = Bench()
        bench.terms = 1
        i = bench.data(np.full((SAMPLES, 1), number))
        j = bench.data(np.full((SAMPLES, 1), target))
        a = 1.0 if kind == "bce_logits" else 0.6
        bench.steps.append(ElementLoss(kind, i, table([0]), j, table([0]), 0, a))
        got = bench.native()[0][0] / SAMPLES
        pair = torch.tensor([[number], [target]], dtype=torch.float32).double()
        if kind == "bce" and math.isnan(number):
            want = NAN  # torch refuses it
        else:
            want = loss(pair[0], pair[1], reduction="none").item()
        np.testing.assert_allclose(got, want, rtol=2e-7, atol=1e-30)


@pytest.mark.parametrize("top", [1, 2, 3])
@pytest.mark.parametrize("directions", [0, 2])
def test_hits_among_the_largest_scores(top: int, directions: int) -> None:
    """With equal scores, NaN, infinities and labels that do not count."""
    bench = Bench(directions)
    bench.terms = 1
    x = bench.value(15)
    if not directions:
        scores = bench.inputs[x]
        scores[:] = bench.rng.integers(0, 3, scores.shape)
        scores[2, ::4] = NAN
        scores[3] = INF
        scores[4] = -INF
    labels = bench.rng.integers(0, 5, (SAMPLES, 3))
    labels[::4, 0] = 2
    y = bench.data(labels)
    for ignore in (-100, 2):
        bench.steps.append(
            Hits("class", x, bench.permuted(3, 5), y, bench.permuted(3), 0, top, ignore)
        )
    bench.check(0.0)


@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("directions", [0, 2])
def test_hits_on_one_side_of_a_threshold(integer: bool, directions: int) -> None:
    bench = Bench(directions)
    bench.terms = 1
    x = bench.value(3)
    if not directions:
        bench.inputs[x][:4] = [[NAN, 0.25, 0.5], [INF, -INF, 0], [0.25, 0.25, 0.25], [NAN] * 3]
    t = bench.rng.integers(0, 2, (SAMPLES, 3))
    t[5] = -100
    y = bench.data(t if integer else t.astype(float))
    sources = bench.permuted(3).reshape(3, 1)
    bench.steps.append(
        Hits("threshold", x, sources, y, bench.permuted(3), 0, threshold=0.25, target_threshold=0.5)
    )
    bench.check(0.0)


@pytest.mark.parametrize("step", ["cross_entropy", "mse", "hits"])
def test_sums_do_not_depend_on_the_number_of_lanes(step: str) -> None:
    """Every sample is summed by itself, and samples in their order: all lanes give the same bits
    as long as they hold the samples in one tile."""
    bench = Bench()
    bench.terms = 1
    x = bench.normal(12)
    y = bench.data(bench.rng.integers(0, 4, (SAMPLES, 3)))
    at = bench.permuted(3, 4)
    made: dict[str, Any] = {
        "cross_entropy": CrossEntropy(x, at, y, table(range(3)), 0, smoothing=0.1),
        "mse": ElementLoss("mse", x, at[0], bench.normal(4), table(range(4)), 0),
        "hits": Hits("class", x, at, y, table(range(3)), 0),
    }
    bench.steps.append(made[step])
    sums = {bench.native(n)[0][0] for n in (32, 48, 64)}
    assert len(sums) == 1
