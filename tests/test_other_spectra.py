"""Known matrices: where published tools are wrong on an input on which landscapex is right.

curvlinops 3.0.1, hessian-eigenthings 1.0.0a5, PyHessian 0.1, the density of landscaper 1.3.1, as
they are. Each test shows the defect, with its size, and what landscapex gives on the same input.

Left out, as these versions do not have it: the densities of hessian-eigenthings and curvlinops have
the mass and the width that they state (trap 37).
"""

from __future__ import annotations

import numpy as np
import other_curvature as other
import other_tools
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from spectra import operator_of, rotated

from landscapex.curvature.density import spectral_density
from landscapex.curvature.lanczos import eigenpairs
from landscapex.curvature.trace import trace

OUTLIERS = np.concatenate([[10, 9, 8, 7, 6], np.linspace(-1, 1, 395)])
HARMONIC = 1 / np.arange(1, 81)


def test_trap_30_ghosts_of_an_eigenvalue_above_50_steps():
    """The ten largest of 10, 9, 8, 7, 6 and 395 others: 10 seven times, 9 three times."""
    matrix = rotated(OUTLIERS)
    theirs = [
        other.hessian_eigenthings.lanczos(
            other.eigenthings_matrix(matrix), k=10, max_iter=steps, which="LA", seed=0
        )
        for steps in (50, 120)
    ]
    copies = [int((t.eigenvalues - 10).abs().lt(1e-3).sum()) for t in theirs]
    assert copies[0] == 1
    assert copies[1] >= 4
    assert theirs[1].converged.sum() >= 9  # it does not know
    nodes, _ = other.seeded(0, lambda: other.fast_lanczos(other.curvlinops_matrix(matrix), 120))
    assert int((nodes - 10).abs().lt(1e-3).sum()) >= 2

    ours = eigenpairs(operator_of(matrix), 10)
    assert ours.values == pytest.approx(np.sort(OUTLIERS)[::-1][:10], rel=1e-8)
    assert ours.converged.all()
    count = spectral_density(operator_of(matrix), steps=120).outliers(3.0)
    assert abs(count.value - 5) < 4 * count.standard_error


IDENTITY = torch.eye(50)


def test_trap_31_the_identity_breaks_curvlinops():
    """float32: beta becomes 0, and it divides by it; float64: ten copies of the single value."""
    with pytest.raises(torch.linalg.LinAlgError, match="failed to converge"):
        other.seeded(0, lambda: other.fast_lanczos(other.curvlinops_matrix(IDENTITY), 10))
    ours = eigenpairs(operator_of(IDENTITY, torch.float32), 3)
    assert ours.values == pytest.approx([1, 1, 1], rel=1e-6)
    assert ours.converged.all()


def test_trap_31_hessian_eigenthings_returns_fewer_values_than_asked_for():
    for dtype in (torch.float32, torch.float64):
        theirs = other.hessian_eigenthings.lanczos(
            other.eigenthings_matrix(torch.zeros(50, 50, dtype=dtype)), k=3, max_iter=10, seed=0
        )
        assert len(theirs.eigenvalues) == 1
        ours = eigenpairs(operator_of(torch.zeros(50, 50), dtype), 3)
        assert ours.values.tolist() == [0, 0, 0]
        assert ours.converged.all()


def test_trap_31_an_absolute_breakdown_test_makes_a_rank_of_three_out_of_one():
    """In float32 rounding is above 1e-12: hessian-eigenthings invents 43.6 and 8.8."""
    u = torch.randn(50, generator=torch.Generator().manual_seed(3))
    matrix = torch.outer(u, u)
    theirs = other.hessian_eigenthings.lanczos(
        other.eigenthings_matrix(matrix), k=3, max_iter=10, which="LA", seed=0
    )
    ours = eigenpairs(operator_of(matrix, torch.float32), 3)
    right = float(u.double() @ u.double())
    assert theirs.eigenvalues[1] > 1e-3 * right
    assert theirs.converged.all()
    assert ours.values == pytest.approx([right, 0, 0], rel=1e-5, abs=1e-5 * right)


def test_trap_31_an_absolute_breakdown_test_stops_at_the_first_step_of_a_small_matrix():
    """The same matrix as above in units of 1e13: 0.06 for 10, and one value for three."""
    matrix = rotated(OUTLIERS) * 1e-13
    theirs = other.hessian_eigenthings.lanczos(
        other.eigenthings_matrix(matrix), k=3, max_iter=50, which="LA", seed=0
    )
    assert len(theirs.eigenvalues) == 1
    assert theirs.eigenvalues[0] < 1e-13
    ours = eigenpairs(operator_of(matrix), 3)
    assert ours.values == pytest.approx([10e-13, 9e-13, 8e-13], rel=1e-8)


def test_trap_32_the_density_of_pyhessian_needs_a_function_that_torch_has_removed():
    with pytest.raises(RuntimeError, match=r"torch\.linalg\.eig"):
        other.pyhessian_matrix(rotated(OUTLIERS)).density(iter=20)


def test_trap_32_the_density_of_landscaper_has_complex_weights_that_sum_to_the_steps():
    """It squares the whole matrix of eigenvectors of T, not its first row: a mass of 20 for 1."""
    matrix = rotated(OUTLIERS)
    model = other.Quadratic(matrix.float()).eval()
    batch = (torch.zeros(1), torch.zeros(1))
    theirs = other_tools.landscaper.PyHessian(model, lambda output, _: output, [batch], "cpu")
    nodes, weights = other.seeded(0, lambda: theirs.density(iter=20))
    assert np.iscomplexobj(nodes)
    assert np.shape(weights) == (1, 20, 20)
    assert np.sum(weights).real == pytest.approx(20, rel=1e-4)

    ours = spectral_density(operator_of(matrix), probes=1, steps=20)
    assert ours.weights.shape == ours.nodes.shape == (1, 20)
    assert ours.nodes.dtype == ours.weights.dtype == np.float64
    assert ours.weights.sum() == pytest.approx(1, rel=1e-12)


def test_trap_33_power_iteration_does_not_converge_on_a_pair_of_opposite_sign():
    """-5 and 5: after 1,000 products the results for four starts are off by 3 to 73 %."""
    matrix = rotated(np.concatenate([[5, -5], np.linspace(-4, 4, 98)]))
    pyhessian, eigenthings = [], []
    for seed in range(4):
        values, _ = other.seeded(
            seed, lambda: other.pyhessian_matrix(matrix).eigenvalues(maxIter=1000)
        )
        pyhessian.append(abs(values[0]))
        found = other.hessian_eigenthings.deflated_power_iteration(
            other.eigenthings_matrix(matrix), k=1, seed=seed, max_iter=1000
        )
        eigenthings.append(float(found.residuals[0]))
        assert not found.converged.any()  # it says so
    assert max(pyhessian) < 4.9
    assert min(pyhessian) < 2
    assert min(eigenthings) > 0.1
    ours = eigenpairs(operator_of(matrix), 2, "BE")
    assert ours.values == pytest.approx([-5, 5], rel=1e-12)
    assert ours.products < 100


def test_trap_34_a_shift_makes_the_largest_eigenvalue_the_smallest_of_a_positive_matrix():
    """1 to 10: tomgoldstein/loss-landscape says 10. It is no package, so its rule is written here.

    It shifts by 0.51 of the largest eigenvalue and takes the value of largest size that is left.
    """
    matrix = rotated(np.linspace(1, 10, 60)).numpy()

    def largest(a: np.ndarray) -> float:
        product = LinearOperator(a.shape, matvec=lambda v: a @ v, dtype=a.dtype)
        return float(eigsh(product, 1, which="LM", return_eigenvectors=False)[0])

    top = largest(matrix)
    shift = 0.51 * top
    theirs = largest(matrix - shift * np.eye(60)) + shift
    assert theirs == pytest.approx(10, rel=1e-10)
    ours = eigenpairs(operator_of(torch.from_numpy(matrix)), 2, "BE")
    assert ours.values == pytest.approx([1, 10], rel=1e-8)


def test_trap_35_a_trace_that_stops_when_two_means_agree():
    """1/i, i = 1..80: PyHessian is off by 5 % in the median, by more than 15 % at worst.

    Its error is not told. Of a negative trace it always takes two products.
    """
    matrix = rotated(HARMONIC)
    right = HARMONIC.sum()
    assert right == pytest.approx(4.965479278945517, rel=1e-14)
    errors, counts = [], []
    for seed in range(40):
        samples = other.seeded(seed, lambda: other.pyhessian_matrix(matrix).trace())
        errors.append(abs(np.mean(samples) / right - 1))
        samples = other.seeded(seed, lambda: other.pyhessian_matrix(-matrix).trace())
        counts.append(len(samples))
    assert np.median(errors) > 0.03
    assert max(errors) > 0.15
    assert set(counts) == {2}

    found = [trace(operator_of(matrix), products=60, seed=seed) for seed in range(40)]
    off = [abs(f.value / right - 1) for f in found]
    assert np.median(off) < 0.01
    inside = [low <= right <= high for low, high in (f.interval() for f in found)]
    assert sum(inside) >= 34  # of 40, at 95 %
    assert trace(operator_of(-matrix), products=60).value == pytest.approx(-right, rel=0.05)
