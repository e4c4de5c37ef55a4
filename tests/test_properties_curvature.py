"""What holds for the curvature of all objectives, and for all symmetric matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from property_cases import SEEDS, networks, splits, vectors
from spectra import operator_of, rotated

import landscapex as lx
from landscapex.curvature.density import spectral_density
from landscapex.curvature.eigenpairs import Eigenpairs
from landscapex.curvature.lanczos import WHICH, eigenpairs
from landscapex.curvature.operators import KINDS

EVERY_KIND = st.sampled_from(KINDS)
SPECTRA = st.lists(st.floats(-100, 100), min_size=2, max_size=14).filter(
    lambda values: max(map(abs, values)) > 1e-3
)


@settings(deadline=None, max_examples=20)
@given(networks(), EVERY_KIND, SEEDS, st.floats(-3, 3))
def test_curvature_is_symmetric_and_linear(drawn, kind, seed, factor):
    """<u, H v> = <v, H u>, and H (u + c v) = H u + c H v."""
    operator = lx.hessian(drawn.objective(), kind=kind)
    u, v = vectors(operator.size, 2, seed)
    hu, hv = operator @ u, operator @ v
    scale = float(u.norm() * hv.norm() + v.norm() * hu.norm())
    assert float(u @ hv - v @ hu) == pytest.approx(0, abs=1e-11 * scale)
    combined = operator @ (u + factor * v)
    assert float((combined - hu - factor * hv).norm()) <= 1e-11 * scale


@settings(deadline=None, max_examples=15)
@given(
    st.data(), networks(samples=10), st.sampled_from(["hessian", "ggn", "empirical_fisher"]), SEEDS
)
def test_curvature_does_not_depend_on_how_samples_are_batched(data, drawn, kind, seed):
    sizes = data.draw(splits(10))
    whole, parts = (lx.hessian(drawn.objective(s), kind=kind) for s in (None, sizes))
    v = vectors(whole.size, 1, seed)[0]
    expected = whole @ v
    assert float((parts @ v - expected).norm()) <= 1e-10 * float(expected.norm())
    assert parts.loss == pytest.approx(whole.loss, rel=1e-12)


@settings(deadline=None, max_examples=10)
@given(networks(), EVERY_KIND)
def test_the_trace_is_the_sum_of_the_eigenvalues_and_of_the_diagonal(drawn, kind):
    operator = lx.hessian(drawn.objective(), kind=kind)
    size = operator.size
    values = eigenpairs(operator, size, quiet=True).values
    scale = float(np.abs(values).sum())
    assert operator.trace(products=size).value == pytest.approx(values.sum(), abs=1e-9 * scale)
    diagonal = operator.diagonal(products=size).values
    assert diagonal.sum() == pytest.approx(values.sum(), abs=1e-9 * scale)
    np.testing.assert_allclose(
        np.sort(values), np.linalg.eigvalsh(operator.dense().numpy()), atol=1e-9 * scale
    )


@settings(deadline=None, max_examples=15)
@given(networks(), st.sampled_from([k for k in KINDS if k != "hessian"]), st.integers(0, 9))
def test_sums_of_squares_have_no_negative_eigenvalue(drawn, kind, seed):
    """J^T A J with A at least 0, and outer products of gradients."""
    matrix = lx.hessian(drawn.objective(), kind=kind, seed=seed).dense()
    values = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
    assert float(values[0]) >= -1e-12 * float(values[-1])
    assert float(values[-1]) > 0 or kind == "fisher"  # drawn labels may be what the model says


@settings(deadline=None, max_examples=10)
@given(networks(), st.floats(0.1, 3))
def test_weight_decay_moves_every_eigenvalue(drawn, decay):
    plain, decayed = (lx.hessian(drawn.objective(weight_decay=d)).dense() for d in (0.0, decay))
    expected = plain + decay * torch.eye(len(plain), dtype=plain.dtype)
    torch.testing.assert_close(decayed, expected, rtol=0, atol=1e-11 * float(expected.abs().max()))


@settings(deadline=None, max_examples=10)
@given(networks(), EVERY_KIND)
def test_a_layer_has_its_block_of_the_matrix(drawn, kind):
    operator = lx.hessian(drawn.objective(), kind=kind)
    size = sum(p.numel() for p in drawn.model[0].parameters())
    whole = operator.dense()
    block = operator.restrict("0.*").dense()
    torch.testing.assert_close(
        block, whole[:size, :size], rtol=0, atol=1e-11 * float(whole.abs().max())
    )


@settings(deadline=None, max_examples=15)
@given(SPECTRA, st.data(), st.integers(0, 99))
def test_ritz_values_lie_within_the_spectrum_and_are_its_ends(values, data, seed):
    """However few steps were taken; and with enough of them they are those of a dense solver."""
    matrix = rotated(np.array(values), seed)
    true = np.linalg.eigvalsh(matrix.numpy())
    scale = np.abs(true).max()
    k = data.draw(st.integers(1, len(values)))
    for which in WHICH:
        few = eigenpairs(operator_of(matrix), k, which, max_products=2 * k, quiet=True, seed=seed)
        assert few.values.min() >= true[0] - 1e-10 * scale
        assert few.values.max() <= true[-1] + 1e-10 * scale
        found = eigenpairs(operator_of(matrix), k, which, tol=1e-10, block=len(values), seed=seed)
        assert found.converged.all()
        values_of = np.abs if which == "LM" else np.asarray  # 1 and -1 are equally large
        wanted = values_of(chosen(true, k, which))
        np.testing.assert_allclose(values_of(found.values), wanted, atol=1e-8 * scale)
        check_pairs(matrix, found, 1e-10 * scale)


def chosen(rising: np.ndarray, k: int, which: str) -> np.ndarray:
    """As SciPy's ``eigsh`` names the ends of a spectrum."""
    if which == "SA":
        return rising[:k]
    if which == "LA":
        return rising[::-1][:k]
    if which == "LM":
        return rising[np.argsort(-np.abs(rising), kind="stable")][:k]
    return np.concatenate([rising[: k // 2], rising[len(rising) - (k - k // 2) :]])


def check_pairs(matrix: torch.Tensor, found: Eigenpairs, atol: float) -> None:
    """Orthonormal rows, whose largest entry is positive, with the residuals that are told."""
    off = matrix @ found.vectors.T - found.vectors.T * torch.from_numpy(found.values.copy())
    np.testing.assert_allclose(off.norm(dim=0), found.residuals, atol=atol)
    gram = found.vectors @ found.vectors.T
    torch.testing.assert_close(gram, torch.eye(len(gram), dtype=gram.dtype), rtol=0, atol=1e-10)
    for v in found.vectors:
        assert v[v.abs().argmax()] > 0


@settings(deadline=None, max_examples=25)
@given(SPECTRA, st.integers(0, 99))
def test_nodes_of_one_more_step_lie_between_those_before(values, seed):
    """Cauchy's interlacing: the ends move outwards with every step, to those of the spectrum."""
    matrix = rotated(np.array(values), seed)
    operator, true = operator_of(matrix), np.linalg.eigvalsh(matrix.numpy())
    scale = np.abs(values).max()
    before = np.empty(0)
    for steps in range(1, len(values) + 1):
        made = spectral_density(operator, probes=1, steps=steps, seed=seed, reorthogonalize=True)
        nodes = made.nodes[0][: made.lengths[0]]
        if made.complete[0] and len(nodes) <= len(before):
            break
        assert (nodes[:-1] <= before + 1e-9 * scale).all()
        assert (before <= nodes[1:] + 1e-9 * scale).all()
        before = nodes
    np.testing.assert_allclose(before[[0, -1]], true[[0, -1]], atol=1e-6 * scale)


@settings(deadline=None, max_examples=20)
@given(SPECTRA, st.integers(1, 3), st.integers(1, 14), st.integers(0, 99))
def test_a_density_is_a_distribution_on_the_spectrum(values, probes, steps, seed):
    """It integrates to 1, rises from 0 to 1, and its moments are those of the products."""
    matrix = rotated(np.array(values), seed)
    true = np.linalg.eigvalsh(matrix.numpy())
    made = spectral_density(operator_of(matrix), probes=probes, steps=steps, seed=seed)
    scale = np.abs(true).max()
    assert (made.weights >= 0).all()
    np.testing.assert_allclose(made.weights.sum(axis=1), 1, rtol=1e-12)
    assert true[0] - 1e-9 * scale <= made.smallest <= made.largest <= true[-1] + 1e-9 * scale
    t = np.linspace(true[0] - scale, true[-1] + scale, 4001)
    assert np.trapezoid(made.density(t, sigma=scale / 20), t) == pytest.approx(1, abs=1e-9)
    shares = made.cdf(np.sort([*t[::100], *true]))
    assert (np.diff(shares) >= -1e-12).all()
    assert shares[0] == 0
    assert shares[-1] == pytest.approx(1)
    nodes, weights = made.nodes[0], made.weights[0]
    if probes == 1 and (np.diff(nodes) > 0).all():  # none is there twice
        np.testing.assert_allclose(made.cdf(nodes), weights.cumsum() - weights / 2, atol=1e-12)
    assert made.moments(1).value == pytest.approx(made.by_products[:, 0].mean(), abs=1e-9 * scale)


@settings(deadline=None, max_examples=20)
@given(SPECTRA, st.floats(-50, 50), st.integers(0, 99))
def test_the_ends_of_a_spectrum_move_with_a_shift_and_change_places_with_the_sign(
    values, shift, seed
):
    """Eigenvalues of A + c I are those of A, and c; the largest of -A is the smallest of A."""
    matrix = rotated(np.array(values), seed)
    eye = torch.eye(len(matrix), dtype=matrix.dtype)
    scale = np.abs(values).max() + abs(shift)

    def ends(a, which):
        return eigenpairs(operator_of(a), 2, which, block=2, tol=1e-10, seed=seed).values

    largest = ends(matrix, "LA")
    np.testing.assert_allclose(ends(matrix + shift * eye, "LA"), largest + shift, atol=1e-8 * scale)
    np.testing.assert_allclose(-ends(-matrix, "SA"), largest, atol=1e-8 * scale)
