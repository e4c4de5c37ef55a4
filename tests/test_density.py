"""Spectral densities: quadrature, distribution, bands, moments, outliers; and their picture."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from intervals import covered
from spectra import goe, operator_of, rotated

from landscapex._pictures.spectrum import draw_spectrum
from landscapex.curvature import draws
from landscapex.curvature import quadrature as module
from landscapex.curvature.density import spectral_density
from landscapex.curvature.linear import SymmetricOperator
from landscapex.curvature.quadrature import quadrature
from landscapex.errors import (
    ArgumentError,
    ArgumentTypeError,
    LandscapexError,
    NonFiniteProductError,
)

OUTLIERS = [*np.linspace(-1, 1, 395), 6.0, 7.0, 8.0, 9.0, 10.0]
HALVES = [1.0] * 30 + [5.0] * 30


def shares(matrix, seed, number=0):
    """Eigenvalues, and the share of a probe in each of their vectors, by dense linear algebra."""
    values, vectors = torch.linalg.eigh(matrix)
    v = draws.gaussian(operator_of(matrix), seed, "spectral density", number)
    return values.numpy(), ((vectors.T @ v) ** 2 / (v @ v)).numpy()


# --- The quadrature of one probe -----------------------------------------------------------------


@pytest.mark.parametrize("reorthogonalize", [False, True])
def test_polynomials_up_to_degree_2m_minus_1_are_integrated_exactly(reorthogonalize):
    matrix, steps = rotated(np.linspace(-1, 1, 60) ** 3, seed=3), 6
    values, weights = shares(matrix, seed=7)
    density = spectral_density(
        operator_of(matrix), probes=1, steps=steps, seed=7, reorthogonalize=reorthogonalize
    )
    errors = [
        abs(float((density.weights * density.nodes**k).sum()) - float(weights @ values**k))
        for k in range(2 * steps + 1)
    ]
    assert max(errors[: 2 * steps]) < 1e-14
    assert errors[2 * steps] > 1e-6


def test_trap_32_weights_are_the_first_row_squared():
    """PyHessian took another row of the eigenvectors, of a solver for any matrix."""
    matrix = rotated([-3.0, -1.0, 0.5, 2.0, 4.0, 4.5], seed=1)
    density = spectral_density(operator_of(matrix), probes=1, seed=4, reorthogonalize=True)
    values, weights = shares(matrix, seed=4)
    assert density.nodes[0] == pytest.approx(values, abs=1e-12)
    assert density.weights[0] == pytest.approx(weights, abs=1e-12)
    assert density.nodes.dtype == np.float64
    assert density.moment_error < 1e-14


def test_trap_32_a_quadrature_is_that_of_numpys_eigh():
    generator = np.random.default_rng(5)
    for size in (1, 2, 3, 40):
        alphas, betas = generator.normal(size=size), generator.normal(size=size - 1)
        values, vectors = np.linalg.eigh(np.diag(alphas) + np.diag(betas, 1) + np.diag(betas, -1))
        nodes, weights = quadrature(list(alphas), list(betas))
        assert nodes == pytest.approx(values, abs=1e-13)
        assert weights == pytest.approx(vectors[0] ** 2, abs=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("matrix", "distinct"),
    [
        (torch.eye(20), 1),
        (torch.zeros(20, 20), 1),
        (3 * torch.ones(20, 20), 2),
        (rotated(HALVES), 2),
        (rotated([-2.0] * 9 + [0.0] * 9 + [2.0] * 9), 3),
        (-5 * torch.ones(1, 1), 1),
    ],
    ids=["identity", "zero", "rank one", "two values", "three values", "one parameter"],
)
def test_few_distinct_eigenvalues_end_the_recurrence(matrix, distinct, dtype):
    density = spectral_density(operator_of(matrix, dtype), probes=3, steps=12)
    assert density.nodes.shape == density.weights.shape == (3, min(12, len(matrix)))
    assert density.lengths == (distinct,) * 3
    assert density.complete == (True,) * 3
    assert density.products == 3 * distinct
    assert np.abs(density.weights.sum(axis=1) - 1).max() < 1e-13
    values = torch.linalg.eigvalsh(matrix.double()).numpy()
    scale = max(np.abs(values).max(), 1e-300)
    distance = np.abs(density.nodes[..., None] - values).min(axis=-1)
    assert distance.max() <= 100 * torch.finfo(dtype).eps * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_first_two_moments_are_those_of_the_products(dtype):
    operator = operator_of(rotated(OUTLIERS, seed=2), dtype)
    density = spectral_density(operator, probes=3, steps=40, seed=9)
    for number in range(3):
        v = draws.gaussian(operator, 9, "spectral density", number).double()
        v /= v.norm()
        made = (operator @ v.to(dtype)).double()
        expected = [float(v @ made), float(made @ made)]
        assert density.by_products[number] == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert density.moment_error < (1e-5 if dtype == torch.float32 else 1e-12)


def test_twice_the_same_call_gives_the_same_bits(generators_untouched):
    matrix = rotated(np.linspace(0, 1, 50))
    one, two, other = (
        spectral_density(operator_of(matrix), probes=2, steps=10, seed=seed) for seed in (1, 1, 2)
    )
    assert np.array_equal(one.nodes, two.nodes)
    assert np.array_equal(one.weights, two.weights)
    assert not np.array_equal(one.nodes, other.nodes)
    assert not np.array_equal(one.nodes[0], one.nodes[1])
    more = spectral_density(operator_of(matrix), probes=3, steps=10, seed=1)
    assert np.array_equal(one.nodes, more.nodes[:2])


def test_products_are_counted_and_arrays_read_only():
    operator = operator_of(rotated(np.linspace(0, 1, 50)))
    density = spectral_density(operator, probes=3, steps=10)
    assert density.products == operator.products == 30
    for array in (density.nodes, density.weights, density.by_products, density.band(0.5).lower):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1.0


# --- The distribution ----------------------------------------------------------------------------


def test_half_of_the_eigenvalues_lie_below_three():
    """30 times 1 and 30 times 5: nodes only there; the share is a Beta(15, 15) variable."""
    operator = operator_of(rotated(HALVES, seed=5))
    density = spectral_density(operator, probes=200, steps=30)
    assert np.minimum(abs(density.nodes - 1), abs(density.nodes - 5)).max() < 1e-12
    below = np.where(density.nodes < 3, density.weights, 0).sum(axis=1)
    assert below.std() == pytest.approx(math.sqrt(0.5 / 62), rel=0.12)  # 0.09
    assert below.mean() == pytest.approx(0.5, abs=4 * 0.09 / math.sqrt(200))


def test_signs_are_exact_for_a_diagonal_matrix():
    d = torch.tensor(HALVES, dtype=torch.float64)
    operator = SymmetricOperator(lambda v: d * v, 60, torch.float64)
    density = spectral_density(operator, probes=1, distribution="signs")
    assert density.cdf(3.0) == pytest.approx(0.5, abs=1e-14)
    gaussian = spectral_density(operator, probes=1)
    assert abs(gaussian.cdf(3.0) - 0.5) > 1e-3


def test_outliers_appear_once_each_if_steps_are_kept_apart():
    """Five outliers over 395 values in [-1, 1], 120 steps: the top five nodes are they, exactly."""
    operator = operator_of(rotated(OUTLIERS, seed=6))
    density = spectral_density(operator, probes=2, steps=120, reorthogonalize=True)
    for nodes in density.nodes:
        assert nodes[-5:] == pytest.approx([6, 7, 8, 9, 10], abs=1e-10)
        assert nodes[-6] < 1 + 1e-10


def test_copies_of_eigenvalues_change_no_weight():
    """Without orthogonalisation converged eigenvalues come back; their weights add up."""
    operator = operator_of(rotated(OUTLIERS, seed=6))
    apart = spectral_density(operator, probes=2, steps=120, reorthogonalize=True)
    copies = spectral_density(operator, probes=2, steps=120)
    assert (copies.nodes > 5).sum() > (apart.nodes > 5).sum()
    gaps = [5.5, 6.5, 7.5, 8.5, 9.5]
    assert copies.cdf(gaps) == pytest.approx(apart.cdf(gaps), abs=1e-12)
    for k in range(1, 9):
        assert copies.moments(k).value == pytest.approx(apart.moments(k).value, rel=1e-10)


def test_the_semicircle_has_moments_1_2_5_14():
    density = spectral_density(operator_of(goe(1500)), probes=80, steps=6)
    for k, expected in ((2, 1), (4, 2), (6, 5), (8, 14)):
        assert density.moments(k).value == pytest.approx(expected, rel=0.03)


def test_the_cumulative_distribution_rises_from_0_to_1_with_half_a_jump_at_a_node():
    density = spectral_density(operator_of(rotated(OUTLIERS)), probes=2, steps=15)
    t = np.linspace(-2, 11, 501)
    values = density.cdf(t)
    assert (np.diff(values) >= 0).all()
    assert values[0] == 0
    assert values[-1] == pytest.approx(1, abs=1e-14)
    node = density.nodes[0, 7]
    jump = density.cdf(np.nextafter(node, 99)) - density.cdf(np.nextafter(node, -99))
    assert jump == pytest.approx(density.weights[0, 7] / 2)
    assert density.cdf(node) - density.cdf(np.nextafter(node, -99)) == pytest.approx(jump / 2)
    assert density.cdf(t.reshape(3, 167)).shape == (3, 167)


@pytest.mark.parametrize("reorthogonalize", [False, True])
def test_what_the_nodes_leave_open_is_bounded_without_any_chance(reorthogonalize):
    """Chebyshev, Markov, Stieltjes: the distribution that the probe sees is in the bracket."""
    matrix = rotated([*np.linspace(-1, 1, 80) ** 3, 3.0, 8.0], seed=8)
    t = np.linspace(-1.5, 9, 399)  # none is an eigenvalue, around which copies lie by rounding
    assert np.abs(t[:, None] - torch.linalg.eigvalsh(matrix).numpy()).min() > 1e-6
    for steps in (2, 5, 17, 50):
        density = spectral_density(
            operator_of(matrix), probes=1, steps=steps, seed=steps, reorthogonalize=reorthogonalize
        )
        values, weights = shares(matrix, seed=steps)
        truth = np.array([weights[values <= place].sum() for place in t])
        low, high = density._bracket(t)
        assert (low <= truth + 1e-12).all()
        assert (truth <= high + 1e-12).all()
        assert high.mean() - low.mean() < 3 / steps + 0.02


def test_bands_contain_the_distribution_as_often_as_they_promise():
    """200 seeds: of a spectrum that the steps resolve wholly, and of one that they do not."""
    resolved, t = rotated(HALVES, seed=9), np.array([0.0, 3.0, 6.0])
    bands = [
        spectral_density(operator_of(resolved), probes=2, steps=3, seed=seed).band(t, 0.9)
        for seed in range(200)
    ]
    inside = np.mean([(b.lower[1] <= 0.5) & (b.upper[1] >= 0.5) for b in bands])
    assert 0.84 <= inside <= 0.96
    within = np.mean([abs(b.value[1] - 0.5) <= b.standard_error[1] for b in bands])
    assert 0.58 <= within <= 0.78
    assert all(b.lower[0] == 0 and b.upper[2] == 1 for b in bands)
    values = np.sort(np.concatenate([np.linspace(-1, 1, 35) ** 3, [2.0, 3.0, 3.5, 6.0, 9.0]]))
    matrix, t = rotated(values, seed=10), np.array([-0.5, -0.01, 0.3, 1.5, 4.0, 7.0])
    truth = np.array([(values < place).mean() for place in t])
    bands = [
        spectral_density(operator_of(matrix), probes=2, steps=8, seed=seed).band(t)
        for seed in range(200)
    ]
    for position, share in enumerate(truth):
        hits = [b.lower[position] <= share <= b.upper[position] for b in bands]
        assert np.mean(hits) >= 0.92
    assert np.mean([b.upper - b.lower for b in bands]) < 0.5


def test_bands_state_both_errors():
    density = spectral_density(operator_of(rotated(OUTLIERS)), probes=4, steps=50)
    band = density.band(5.5, confidence=0.9)
    p = density.cdf([5.5])
    assert band.value == pytest.approx(p)
    assert band.standard_error == pytest.approx(np.sqrt(2 * p * (1 - p) / (402 * 4)))
    assert band.resolution == density.resolution
    assert density.resolution == (density.nodes.max() - density.nodes.min()) / 50
    assert band.resolution == pytest.approx(11 / 50, rel=0.01)
    assert density.band(5.5, 0.99).lower < band.lower < band.value < band.upper
    far = density.band([-50.0, 50.0])
    assert far.value == pytest.approx([0, 1], abs=1e-14)
    assert far.upper[0] > 0
    assert far.lower[1] < 1


# --- The smoothed density ------------------------------------------------------------------------


def test_trap_37_sigma_is_a_standard_deviation():
    """PyHessian's sigma is a variance."""
    operator = operator_of(2 * torch.eye(30))
    density = spectral_density(operator, probes=1, sigma=0.3)
    t = np.linspace(-1, 5, 4001)
    curve = density.density(t)
    assert density.sigma == 0.3
    assert curve.max() == pytest.approx(1 / (0.3 * math.sqrt(2 * math.pi)))
    assert np.trapezoid((t - 2) ** 2 * curve, t) == pytest.approx(0.3**2, rel=1e-6)
    assert density.density(2.0, sigma=0.1) == pytest.approx(3 * density.density(2.0))


def test_trap_37_nothing_is_renormalised():
    """Mass that is lost at the edge of a window stays lost, and weights sum to 1 by themselves."""
    density = spectral_density(operator_of(rotated(OUTLIERS)), probes=2, steps=30)
    t = np.linspace(-5, 15, 20_001)
    assert np.trapezoid(density.density(t), t) == pytest.approx(1, abs=1e-9)
    assert density.mass == pytest.approx(1, abs=1e-13)
    middle = t[t >= 2]
    lost = np.trapezoid(density.density(middle, 0.05), middle)
    assert lost == pytest.approx(1 - density.cdf(2.0), abs=1e-4)
    assert lost < 0.1


def test_trap_37_weights_that_do_not_sum_to_one_are_an_error(monkeypatch):
    def lossy(*args, **kwargs):
        return np.array([1.0, 2.0]), np.array([[0.6, 0.6], [0.8, 0.8]])

    monkeypatch.setattr(module, "eigh_tridiagonal", lossy)
    with pytest.raises(
        LandscapexError, match=r"weights of a quadrature must sum to 1, got .*0\.72"
    ):
        quadrature([1.0, 2.0], [0.5])


def test_sigma_is_the_resolution_by_default_and_has_the_scale_of_the_matrix():
    matrix = rotated(np.linspace(-3, 5, 100))
    density, scaled = (
        spectral_density(operator_of(c * matrix), probes=1, steps=20) for c in (1, 1e-6)
    )
    assert density.sigma == density.resolution
    assert scaled.sigma == pytest.approx(1e-6 * density.sigma)
    assert spectral_density(operator_of(7 * torch.eye(9))).sigma == pytest.approx(7e-3)
    assert spectral_density(operator_of(torch.zeros(9, 9))).sigma == 1


# --- Numbers with errors -------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 3])
def test_moments_have_the_coverage_that_their_errors_promise(k):
    values = np.concatenate([np.linspace(-1, 1, 46), [1.5, 2.0, 2.5, 3.0]])
    matrix = rotated(values, seed=11)
    found = [
        spectral_density(operator_of(matrix), probes=4, steps=6, seed=s).moments(k)
        for s in range(200)
    ]
    truth = float((values**k).mean())
    assert 0.60 <= covered([m.interval(0.6827) for m in found], truth) <= 0.76
    assert 0.90 <= covered([m.interval(0.95) for m in found], truth) <= 0.99
    spread = np.std([m.value for m in found])
    assert np.mean([m.standard_error for m in found]) == pytest.approx(spread, rel=0.15)


def test_outliers_are_counted_with_an_error_of_the_promised_coverage():
    values = np.concatenate([np.linspace(-1, 1, 150), np.linspace(6, 9, 10), [-4.0] * 5])
    matrix = rotated(values, seed=12)
    densities = [
        spectral_density(operator_of(matrix), probes=4, steps=20, seed=s) for s in range(200)
    ]
    for counts, truth in (
        ([d.outliers(3.0) for d in densities], 10),
        ([d.outliers(-2.0, side="below") for d in densities], 5),
    ):
        assert np.mean([c.value for c in counts]) == pytest.approx(truth, rel=0.1)
        assert 0.60 <= covered([c.interval(0.6827) for c in counts], truth) <= 0.76
        assert 0.89 <= covered([c.interval(0.95) for c in counts], truth) <= 0.99


def test_moments_beyond_the_quadrature_are_refused():
    density = spectral_density(operator_of(goe(50)), probes=1, steps=4)
    values, weights = shares(goe(50), seed=0)
    assert density.moments(7).value == pytest.approx(float(weights @ values**7), abs=1e-10)
    with pytest.raises(ArgumentError, match=r"`k` must be at most 2 \* steps - 1 = 7, got 8\."):
        density.moments(8)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"probes": 0}, ArgumentError, r"`probes` must be at least 1, got 0\."),
        ({"probes": 2.0}, ArgumentTypeError, r"`probes` must be a whole number, got 2\.0\."),
        ({"steps": 0}, ArgumentError, r"`steps` must be at least 1, got 0\."),
        ({"seed": "x"}, ArgumentTypeError, r"`seed` must be a whole number, got 'x'\."),
        (
            {"sigma": 0.0},
            ArgumentError,
            r"`sigma` must be a standard deviation above 0 .* got 0\.0",
        ),
        ({"sigma": math.nan}, ArgumentError, r"`sigma` must be a standard deviation .* got nan"),
        ({"distribution": "normal"}, ArgumentError, "must be one of gaussian, signs, got 'normal'"),
    ],
)
def test_bad_arguments_are_refused_before_any_product(arguments, error, message):
    operator = operator_of(torch.eye(4))
    with pytest.raises(error, match=message):
        spectral_density(operator, **arguments)
    assert operator.products == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: d.band(0.0, confidence=1.0), r"`confidence` must be between 0 and 1, got 1\.0"),
        (lambda d: d.density(0.0, sigma=-1.0), r"`sigma` must be .* got -1\.0"),
        (lambda d: d.moments(0), r"`k` must be at least 1, got 0\."),
        (
            lambda d: d.outliers(1.0, side="left"),
            r"`side` must be \"above\" or \"below\", got 'left'",
        ),
        (
            lambda d: draw_spectrum(d, axis="symlog", sigma=0.1),
            "must be None on a symlog axis, got",
        ),
        (lambda d: draw_spectrum(d, axis="log"), "must be one of auto, linear, symlog, got 'log'"),
    ],
)
def test_bad_questions_are_refused(call, message):
    density = spectral_density(operator_of(torch.eye(4)), probes=1)
    with pytest.raises(ArgumentError, match=message):
        call(density)


def test_products_that_are_not_finite_are_an_error():
    def product(v):
        return v * (math.nan if operator.products == 3 else 1 + torch.arange(5.0))

    operator = SymmetricOperator(product, 5, torch.float32)
    with pytest.raises(NonFiniteProductError, match=r"got NaN or infinity in product 3\."):
        spectral_density(operator)


# --- The picture ---------------------------------------------------------------------------------


def density_with_outliers():
    return spectral_density(operator_of(rotated(OUTLIERS, seed=6)), probes=4, steps=60)


def test_the_picture_has_the_density_its_band_and_states_its_mass():
    density = density_with_outliers()
    figure = density.plot()
    top, bottom = figure.axes
    assert top.get_yscale() == "log"
    (curve, *_) = top.lines
    x, y = curve.get_xdata(), curve.get_ydata()
    drawn = np.isfinite(y)
    assert y[drawn] == pytest.approx(density.density(x[drawn]))
    assert (density.density(x[~drawn]) <= top.get_ylim()[0]).all()
    assert "resolution 0.18" in bottom.get_xlabel()
    assert "mass of the drawn curve 1.0000" in bottom.get_xlabel().replace("\n", " ")
    assert "95 % band" in bottom.get_legend().get_texts()[1].get_text()
    assert "400 eigenvalues" in top.get_title(loc="left")
    (line,) = bottom.lines
    assert line.get_ydata() == pytest.approx(density.cdf(line.get_xdata()))


def test_eigenvalues_are_lines_with_their_values():
    figure = draw_spectrum(density_with_outliers(), [10.0, 9.0, 8.999, -1.0])
    top = figure.axes[0]
    places = [line.get_xdata()[0] for line in top.lines if len(set(line.get_xdata())) == 1]
    assert {10.0, 9.0, 8.999, -1.0} <= {float(place) for place in places}
    texts = [text.get_text() for text in top.texts]
    assert texts == ["10", "9", "\N{MINUS SIGN}1"]  # no text over its neighbour
    with pytest.raises(ArgumentTypeError, match="`eigenpairs` must have values or be numbers"):
        draw_spectrum(density_with_outliers(), "x")


def test_a_wide_spectrum_is_drawn_on_a_symmetric_logarithmic_axis():
    values = np.concatenate(
        [np.geomspace(1e-5, 1e-2, 150), -np.geomspace(1e-5, 1e-3, 45), [3.0, 50.0]]
    )
    density = spectral_density(operator_of(rotated(values)), probes=2, steps=40)
    figure = draw_spectrum(density, [50.0])
    top, bottom = figure.axes
    assert "symlog scale, linear within" in bottom.get_xlabel()
    assert "mass of the drawn curve 1.0000" in bottom.get_xlabel().replace("\n", " ")
    assert "density per decade" in top.get_ylabel()
    curve, _, mark = top.lines
    x, y = (np.nan_to_num(values) for values in curve.get_data())
    assert np.trapezoid(y, x) == pytest.approx(1, abs=2e-3)  # but for what is too low to be drawn
    (place,) = set(mark.get_xdata())
    ticks = {
        t.get_text(): x for t, x in zip(bottom.get_xticklabels(), bottom.get_xticks(), strict=True)
    }
    assert ticks["10"] + math.log10(5) == pytest.approx(place)
    assert "linear scale" in draw_spectrum(density, axis="linear").axes[1].get_xlabel()
    assert "linear scale" in draw_spectrum(density, sigma=0.1).axes[1].get_xlabel()
    assert "linear scale" in density_with_outliers().plot().axes[1].get_xlabel()


@pytest.mark.parametrize("axis", ["linear", "symlog", "auto"])
@pytest.mark.parametrize("matrix", [torch.eye(5), torch.zeros(5, 5), -torch.ones(5, 5)])
def test_degenerate_spectra_are_drawn(matrix, axis):
    density = spectral_density(operator_of(matrix), probes=1)
    figure = draw_spectrum(density, axis=axis)
    assert "mass of the drawn curve 1.0000" in figure.axes[1].get_xlabel().replace("\n", " ")
    figure.canvas.draw()
