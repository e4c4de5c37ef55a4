"""Traces: estimators against literal versions and dense matrices; what their errors promise."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from intervals import covered
from spectra import goe, operator_of, rotated
from torch.utils._python_dispatch import TorchDispatchMode

from landscapex.curvature import draws
from landscapex.curvature.estimates import Estimate, dot, quantile, skewness
from landscapex.curvature.linear import SymmetricOperator
from landscapex.curvature.sketch import leave_one_out
from landscapex.curvature.trace import trace
from landscapex.errors import (
    ArgumentError,
    ArgumentTypeError,
    LandscapexWarning,
    NonFiniteProductError,
)

HARMONIC = 4.965479278945517  # sum of 1/i, i = 1 ... 80
SPECTRA = {
    "harmonic": 1 / np.arange(1.0, 81),
    "flat": np.linspace(1, 2, 80),
    "indefinite": np.concatenate([np.linspace(-1, 1, 75), [4.0, 5.0, 6.0, 8.0, 12.0]]),
    "geometric": 0.7 ** np.arange(80.0),
    "rank one and noise": np.append(0.1 * np.random.default_rng(0).normal(size=79), 5.0),
}
METHODS = ["hutchinson", "hutch++", "xtrace"]


def orthonormal(columns):
    q, _ = np.linalg.qr(columns)
    return q


# --- Each estimator against its definition -------------------------------------------------------


def test_hutchinson_is_the_mean_of_quadratic_forms_of_signs():
    matrix = rotated(SPECTRA["indefinite"])
    found = trace(operator_of(matrix), method="hutchinson", products=7, seed=3)
    z = torch.stack([draws.signs(operator_of(matrix), 3, "trace", k) for k in range(7)])
    assert set(z.unique().tolist()) == {-1.0, 1.0}
    forms = ((z @ matrix) * z).sum(1)
    assert found.value == pytest.approx(float(forms.mean()), rel=1e-13)
    assert found.standard_error == pytest.approx(float(forms.std() / math.sqrt(7)), rel=1e-12)
    assert (found.samples, found.degrees, found.products) == (7, 6, 7)


def test_hutch_plus_plus_is_the_trace_on_a_sketch_and_hutchinson_on_the_rest():
    matrix = rotated(SPECTRA["indefinite"])
    operator = operator_of(matrix)
    found = trace(operator, method="hutch++", products=24, seed=5)
    a = matrix.numpy()
    s, g = (
        np.stack([draws.signs(operator, 5, purpose, k).numpy() for k in range(8)], axis=1)
        for purpose in ("trace sketch", "trace")
    )
    q = orthonormal(a @ s)
    left = g - q @ (q.T @ g)
    forms = np.trace(q.T @ a @ q) + np.einsum("pk,pq,qk->k", left, a, left)
    assert found.value == pytest.approx(forms.mean(), rel=1e-12)
    assert found.standard_error == pytest.approx(forms.std(ddof=1) / math.sqrt(8), rel=1e-10)
    assert found.products == operator.products == 24


@pytest.mark.parametrize("spectrum", ["harmonic", "indefinite", "geometric"])
def test_xtrace_leaves_each_vector_out_in_turn(spectrum):
    matrix = rotated(SPECTRA[spectrum], seed=2)
    operator, k = operator_of(matrix), 9
    found = trace(operator, method="xtrace", products=2 * k, seed=6)
    a, omega = matrix.numpy(), []
    for number in range(k):
        drawn = draws.gaussian(operator, 6, "trace sketch", number).numpy()
        omega.append(drawn * math.sqrt(80) / np.linalg.norm(drawn))
    traces, squares = [], []
    for i in range(k):
        q = orthonormal(a @ np.stack(omega[:i] + omega[i + 1 :], axis=1))
        left = omega[i] - q @ (q.T @ omega[i])
        scale = (80 - k + 1) / (left @ left)
        traces.append(np.trace(q.T @ a @ q) + scale * left @ a @ left)
        squares.append(np.linalg.norm(a @ q) ** 2 + scale * np.linalg.norm(a @ left) ** 2)
    assert found.value == pytest.approx(np.mean(traces), rel=1e-10)
    common = []  # of two estimates: what each loses if the vector of the other is taken away
    for i, j in itertools.combinations(range(k), 2):
        q = orthonormal(a @ np.stack([omega[n] for n in range(k) if n not in (i, j)], axis=1))
        change = []
        for n in (i, j):
            left = omega[n] - q @ (q.T @ omega[n])
            scale = (80 - k + 2) / (left @ left)
            change.append(traces[n] - np.trace(q.T @ a @ q) - scale * left @ a @ left)
        common.append(change[0] * change[1])
    variance = np.var(traces, ddof=1) / k + max(np.mean(common), 0)
    assert found.standard_error == pytest.approx(math.sqrt(variance), rel=1e-8)
    assert found.frobenius_norm.value == pytest.approx(math.sqrt(np.mean(squares)), rel=1e-10)
    assert found.products == operator.products == 2 * k


def test_leaving_a_vector_out_of_a_space_of_lower_rank_changes_nothing():
    generator = np.random.default_rng(0)
    low = generator.normal(size=(30, 3))
    a, omega = low @ np.diag([1.0, -2.0, 3.0]) @ low.T, generator.normal(size=(30, 5))
    q = orthonormal(low)
    traces, squares = leave_one_out(
        30, q.T @ omega, q.T @ a @ omega, q.T @ a @ q, (a @ q).T @ a @ q, 2**-52
    )
    assert traces == pytest.approx(np.full((5, 5), np.trace(a)), rel=1e-12)
    assert squares == pytest.approx(np.full((5, 5), np.linalg.norm(a) ** 2), rel=1e-12)


# --- What errors promise -------------------------------------------------------------------------


@functools.cache
def two_hundred(method, spectrum):
    matrix = rotated(SPECTRA[spectrum], seed=1)
    return [trace(operator_of(matrix), method=method, products=24, seed=s) for s in range(200)]


@pytest.mark.parametrize("spectrum", ["harmonic", "indefinite"])
@pytest.mark.parametrize("method", METHODS)
def test_trap_35_errors_have_the_coverage_they_promise(method, spectrum):
    """200 seeds, 24 products: Student's t contains the trace in 68 % and 95 % of them."""
    found, truth = two_hundred(method, spectrum), float(SPECTRA[spectrum].sum())
    values = np.array([f.value for f in found])
    spread = values.std(ddof=1)
    assert abs(values.mean() - truth) < 4 * spread / math.sqrt(200)
    assert 0.60 <= covered([f.interval(0.6827) for f in found], truth) <= 0.77
    assert 0.90 <= covered([f.interval(0.95) for f in found], truth) <= 0.99
    errors = np.sqrt(np.mean([f.standard_error**2 for f in found]))
    assert errors == pytest.approx(spread, rel=0.15)


@pytest.mark.parametrize("spectrum", ["flat", "harmonic", "rank one and noise"])
@pytest.mark.parametrize("method", METHODS)
def test_trap_35_norm_and_rank_have_the_coverage_they_promise(method, spectrum):
    """400 seeds, 12 products: squares are skewed, so that symmetric intervals of few of them lie
    too low: 86 to 90 % for the last two spectra."""
    values = SPECTRA[spectrum]
    matrix, square = rotated(values, seed=1), float((values**2).sum())
    found = [trace(operator_of(matrix), method=method, products=12, seed=s) for s in range(400)]
    norms = [f.frobenius_norm.interval(0.95) for f in found]
    assert 0.92 <= covered(norms, math.sqrt(square)) <= 0.98
    ranks = [f.effective_rank.interval(0.95) for f in found]
    assert 0.9 <= covered(ranks, values.sum() ** 2 / square) <= 0.985


def test_few_samples_need_students_distribution():
    """Four samples: +-1.96 standard errors contain the trace far less often than in 95 %."""
    matrix = rotated(SPECTRA["indefinite"], seed=7)
    truth = float(SPECTRA["indefinite"].sum())
    found = [
        trace(operator_of(matrix), method="hutchinson", products=4, seed=s) for s in range(400)
    ]
    assert 0.91 <= covered([f.interval(0.95) for f in found], truth) <= 0.98
    normal = [(f.value - 1.96 * f.standard_error, f.value + 1.96 * f.standard_error) for f in found]
    assert covered(normal, truth) < 0.87


def test_xtrace_errs_by_less_than_two_standard_errors():
    """CHECKS F2: 86 to 100 % of the seeds."""
    matrix = rotated(1 / np.arange(1.0, 101) ** 1.5, seed=3)
    truth = float(matrix.trace())
    found = [trace(operator_of(matrix), method="xtrace", products=24, seed=s) for s in range(200)]
    hits = np.mean([abs(f.value - truth) < 2 * f.standard_error for f in found])
    assert 0.86 <= hits <= 1


def test_sketches_pay_where_few_eigenvalues_dominate():
    matrix = rotated(SPECTRA["geometric"], seed=5)
    truth = float(SPECTRA["geometric"].sum())
    error = {
        m: np.sqrt(np.mean([
            (trace(operator_of(matrix), method=m, products=24, seed=s).value - truth) ** 2
            for s in range(30)
        ]))
        for m in METHODS
    }  # fmt: skip
    assert error["hutch++"] < 0.2 * error["hutchinson"]
    assert error["xtrace"] < 0.5 * error["hutch++"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
def test_errors_include_rounding_where_nothing_else_is_left(method, dtype):
    """A sketch that holds the whole range leaves no scatter; the products are rounded still."""
    values = np.concatenate([[5.0, -3.0, 2.0, 1.0], np.zeros(96)])
    found = [
        trace(operator_of(rotated(values, seed=s), dtype), method=method, products=18, seed=s)
        for s in range(60)
    ]
    assert max(f.standard_error for f in found) < 1000 * torch.finfo(dtype).eps
    assert all(abs(f.value - 5) < 4 * f.standard_error for f in found)
    assert all(abs(f.frobenius_norm.value - math.sqrt(39)) < 1e-4 for f in found)


# --- Exact, and until it is good enough ----------------------------------------------------------


@pytest.mark.parametrize("method", ["auto", *METHODS])
def test_a_budget_of_p_products_gives_the_trace_itself(method):
    operator = operator_of(rotated(SPECTRA["harmonic"], seed=8))
    found = trace(operator, method=method, products=80)
    assert found.value == pytest.approx(HARMONIC, rel=1e-14)
    assert (found.exact, found.converged, found.standard_error) == (True, True, 0)
    assert found.products == operator.products == 80
    assert found.frobenius_norm.value == pytest.approx(np.linalg.norm(SPECTRA["harmonic"]))
    assert found.frobenius_norm.exact
    expected = HARMONIC**2 / float((SPECTRA["harmonic"] ** 2).sum())
    assert found.effective_rank.value == pytest.approx(expected)
    assert found.interval() == (found.value, found.value)
    assert not trace(operator, method=method, products=79).exact


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("matrix", "value", "norm", "rank"),
    [
        (torch.eye(50), 50, math.sqrt(50), 50),
        (torch.zeros(50, 50), 0, 0, 0),
        (-torch.ones(50, 50), -50, 50, 1),
    ],
    ids=["identity", "zero", "rank one"],
)
def test_degenerate_matrices(matrix, value, norm, rank, method):
    found = trace(operator_of(matrix), method=method, products=20, seed=2)
    assert abs(found.value - value) <= max(4 * found.standard_error, 1e-12)
    if method == "xtrace" or value == 0 or (method == "hutchinson") == (value == 50):
        assert found.value == pytest.approx(value, abs=1e-10)
        assert found.frobenius_norm.value == pytest.approx(norm, abs=1e-10)
        assert found.effective_rank.value == pytest.approx(rank, abs=1e-10)


def test_one_parameter():
    found = trace(SymmetricOperator(lambda v: -3 * v, 1, torch.float32), products=1)
    assert (found.value, found.exact, found.products) == (-3.0, True, 1)


@pytest.mark.parametrize("method", ["hutchinson", "xtrace"])
def test_trap_35_a_tolerance_is_one_of_the_standard_error(method):
    """PyHessian stops when two means agree: median error 5.6 %, up to 18 %."""
    values = np.linspace(0.5, 1.5, 400)
    values[-12:] = 10.0
    matrix, truth = rotated(values, seed=6), float(values.sum())
    found = [
        trace(operator_of(matrix), method=method, products=390, tol=0.02, seed=s)
        for s in range(200)
    ]
    assert all(f.converged for f in found)
    assert all(f.standard_error <= 0.02 * abs(f.value) for f in found)
    assert np.mean([f.products for f in found]) < 60
    errors = np.array([abs(f.value / truth - 1) for f in found])
    assert np.median(errors) < 0.02
    assert errors.max() < 0.08
    assert covered([f.interval(0.95) for f in found], truth) >= 0.89


@pytest.mark.parametrize("method", METHODS)
def test_a_tolerance_beyond_the_budget_is_reported(method):
    operator = operator_of(goe(200))
    with pytest.warns(
        LandscapexWarning, match=r"The trace is known to .* not to 1e-06, after 24 prod"
    ):
        found = trace(operator, method=method, products=24, tol=1e-6)
    assert not found.converged
    assert found.products == operator.products == 24


def test_stopping_early_takes_the_same_vectors_as_a_smaller_budget():
    matrix = rotated(np.linspace(1, 2, 300))
    early = trace(operator_of(matrix), method="hutchinson", products=299, tol=0.05, seed=4)
    assert early.products == 10
    small = trace(operator_of(matrix), method="hutchinson", products=10, seed=4)
    assert early.value == small.value
    with pytest.warns(LandscapexWarning, match="not to 1e-12"):  # after 10, 15, 23 and 30 vectors
        grown = trace(operator_of(matrix), method="xtrace", products=60, tol=1e-12, seed=4)
    at_once = trace(operator_of(matrix), method="xtrace", products=60, seed=4)
    assert grown.value == pytest.approx(at_once.value, rel=1e-13)
    assert grown.products == at_once.products


# --- Rules ---------------------------------------------------------------------------------------


def test_auto_takes_the_best_that_is_affordable():
    small = operator_of(rotated(SPECTRA["harmonic"]))
    assert trace(small, products=24).method == "xtrace"
    assert trace(small, products=6).method == "hutchinson"

    def never(v):
        raise AssertionError

    from landscapex.curvature import trace as module

    large = SymmetricOperator(never, 2 * 10**8, torch.float32)
    assert module._chosen(large, 90) == "hutchinson"
    assert module._chosen(SymmetricOperator(never, 10**6, torch.float32), 90) == "xtrace"


def test_the_same_seed_gives_the_same_bits(generators_untouched):
    matrix = rotated(SPECTRA["harmonic"])
    for method in METHODS:
        one, two, other = (
            trace(operator_of(matrix), method=method, products=12, seed=s) for s in (1, 1, 2)
        )
        assert one == two
        assert one.value != other.value


def test_float32_operators_lose_no_more_than_their_products():
    matrix = rotated(SPECTRA["harmonic"])
    for method in METHODS:
        one, two = (
            trace(operator_of(matrix, dtype), method=method, products=30)
            for dtype in (torch.float32, torch.float64)
        )
        assert one.value == pytest.approx(two.value, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"method": "hutch"},
            ArgumentError,
            "one of auto, hutchinson, hutch.., xtrace, got 'hutch'",
        ),
        ({"products": 1}, ArgumentError, r"`products` must be at least 2, got 1\."),
        (
            {"products": 3, "method": "xtrace"},
            ArgumentError,
            r"`products` must be at least 4, got 3\.",
        ),
        (
            {"products": 3, "method": "hutch++"},
            ArgumentError,
            "`products` must be at least 4, got 3",
        ),
        ({"products": 2.5}, ArgumentTypeError, r"`products` must be a whole number, got 2\.5\."),
        ({"tol": 0.0}, ArgumentError, r"`tol` must be a finite number above 0, got 0\.0\."),
        ({"tol": math.nan}, ArgumentError, r"`tol` must be a finite number above 0, got nan\."),
        ({"seed": None}, ArgumentTypeError, r"`seed` must be a whole number, got None\."),
    ],
)
def test_bad_arguments_are_refused_before_any_product(arguments, error, message):
    operator = operator_of(torch.eye(100))
    with pytest.raises(error, match=message):
        trace(operator, **arguments)
    assert operator.products == 0


def test_products_that_are_not_finite_are_an_error():
    operator = SymmetricOperator(lambda v: v * math.inf, 100, torch.float32)
    for method in METHODS:
        with pytest.raises(NonFiniteProductError, match="must give finite products, got NaN"):
            trace(operator, method=method)


def test_intervals_are_students():
    from scipy import stats

    found = Estimate(
        value=2.0, standard_error=0.5, degrees=3, samples=4, products=4, method="hutchinson"
    )
    assert found.interval(0.9) == pytest.approx(stats.t.interval(0.9, 3, 2.0, 0.5))
    assert quantile(0.95) == pytest.approx(stats.norm.ppf(0.975))
    assert float(found) == 2.0
    assert repr(found) == "Estimate(2 ± 0.5, hutchinson, 4 products)"
    with pytest.raises(ArgumentError, match=r"`confidence` must be between 0 and 1, got 95\."):
        found.interval(95)


@pytest.mark.parametrize("skew", [-2.0, -0.3, 0.0, 1e-7, 1e-5, 0.8, 2.0])
def test_intervals_reach_further_to_the_side_of_the_tail(skew):
    """Hall's polynomial of the studentised truth has the quantiles of Student's t at both ends."""
    found = Estimate(
        value=2.0, standard_error=0.5, degrees=7, samples=8, products=8, method="x",
        skewness=skew,
    )  # fmt: skip
    low, high = found.interval(0.95)
    t, k = quantile(0.95, 7), skew
    for end, wanted in ((low, t), (high, -t)):
        x = (2.0 - end) / 0.5
        assert x + k * x**2 / 3 + k**2 * x**3 / 27 + k / 6 == pytest.approx(wanted, abs=1e-6)
    assert (high - 2 > 2 - low) == (k > 1e-6)


def test_the_skewness_of_a_mean():
    from scipy import stats

    values = np.random.default_rng(0).exponential(size=9)
    expected = stats.skew(values, bias=False) / 3
    assert skewness(values) == pytest.approx(expected, rel=1e-12)
    assert skewness(5 - 2 * values) == pytest.approx(-expected, rel=1e-12)
    assert skewness(values[:2]) == skewness(np.ones(5)) == 0


# --- Inner products ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 2, 3, 1000, (1 << 16) - 1, 1 << 16, (1 << 16) + 1, 200_000])
def test_inner_products_are_sums_in_float64_in_a_fixed_order(size, dtype):
    rng = torch.Generator().manual_seed(size)
    a, b = (torch.randn(size, generator=rng, dtype=dtype) for _ in range(2))
    terms = [x * y for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    found = dot(a, b)
    assert found == pytest.approx(math.fsum(terms), abs=1e-14 * math.fsum(map(abs, terms)))
    width = 1
    while width < min(size, 1 << 16):
        width *= 2
    sums = [0.0] * width
    for i, term in enumerate(terms):
        sums[i % width] += term
    while len(sums) > 128:
        half = len(sums) // 2
        sums = [sums[i] + sums[half + i] for i in range(half)]
    assert found == functools.reduce(float.__add__, sums)


def test_inner_products_widen_a_block_at_a_time():
    made = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
                made.append(result.numel())
            return result

    with Watching():
        assert dot(torch.ones(300_000), torch.ones(300_000)) == 300_000
    assert max(made) == 1 << 16
