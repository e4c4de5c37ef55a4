"""Eigenpairs as a result: the bound, alignment, directions; and the basis they come from."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from spectra import DOUBLE, goe, operator_of, rotated
from torch import Tensor, nn

import landscapex as lx
from landscapex.curvature.basis import Basis
from landscapex.curvature.eigenpairs import Eigenpairs
from landscapex.curvature.krylov import Krylov
from landscapex.curvature.lanczos import eigenpairs
from landscapex.curvature.linear import SymmetricOperator
from landscapex.errors import ArgumentError, DirectionError, LandscapexWarning

BULK = np.random.default_rng(1).uniform(-1, 1, 100)


def test_the_bound_of_kuczynski_and_wozniakowski():
    """By hand for one case; and never below how often a random start misses."""
    operator = operator_of(torch.diag(torch.linspace(0, 1, 400, dtype=DOUBLE)))
    found = eigenpairs(operator, 1)
    bound = found.failure_probability(0.01)
    assert bound == pytest.approx(
        min(1.0, 1.648 * 20 * math.exp(-0.1 * (2 * found.steps - 1))), rel=1e-12
    )
    accuracies = np.array([0.002, 0.05, 0.1, 0.2])
    missed = np.zeros(4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LandscapexWarning)
        for seed in range(200):
            few = eigenpairs(operator, 1, max_products=13, tol=1e-13, seed=seed)
            assert few.steps == 12
            missed += (1 - few.values[0]) > accuracies
    bounds = np.array([few.failure_probability(a) for a in accuracies])
    assert (missed / 200 <= bounds).all()
    assert 0 < bounds[-1] < 0.01
    assert missed[0] > 0


def test_the_bound_needs_an_accuracy():
    found = eigenpairs(operator_of(torch.eye(3)), 1)
    for bad in (0, 1, -0.1, "much"):
        with pytest.raises(ArgumentError, match="`accuracy` must be between 0 and 1, got"):
            found.failure_probability(bad)
    assert 0 <= found.failure_probability(0.5) <= 1


def test_arrays_are_read_only_and_the_repr_is_short():
    found = eigenpairs(operator_of(rotated(np.r_[3, 2, BULK[:30]])), 2)
    for array in (found.values, found.residuals, found.converged):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    assert repr(found).startswith("Eigenpairs(LA: 3, 2; residuals <= ")
    assert f"converged, {found.products} products)" in repr(found)
    assert len(found) == 2
    assert found.seconds > 0


def test_alignment_follows_vectors_whose_values_cross():
    base = np.linalg.qr(np.random.default_rng(2).standard_normal((60, 60)))[0]

    def at(top: list[float]) -> Eigenpairs:
        values = np.r_[top, BULK[:57]]
        return eigenpairs(operator_of(torch.from_numpy(base * values @ base.T)), 3)

    before, after = at([5, 4, 3]), at([3.1, 4, 5])
    aligned = after.align(before)
    np.testing.assert_allclose(before.values, [5, 4, 3], rtol=1e-8)
    np.testing.assert_allclose(aligned.values, [3.1, 4, 5], rtol=1e-8)
    np.testing.assert_allclose(aligned.overlap(before), np.eye(3), atol=1e-6)
    np.testing.assert_allclose(aligned.residuals, after.residuals[::-1])
    flipped = Eigenpairs(**{**vars(before), "vectors": -before.vectors})
    np.testing.assert_allclose(after.align(flipped).overlap(flipped), np.eye(3), atol=1e-6)


def test_alignment_needs_as_many_pairs_over_the_same_parameters():
    found = eigenpairs(operator_of(goe(20)), 3)
    with pytest.raises(ArgumentError, match="`other` must have k = 3 pairs, got 2"):
        found.align(eigenpairs(operator_of(goe(20)), 2))
    with pytest.raises(ArgumentError, match="`other` must be over P = 20 parameters, got 21"):
        found.align(eigenpairs(operator_of(goe(21)), 3))


def test_the_share_of_a_vector_in_the_span():
    found = eigenpairs(operator_of(rotated(np.r_[3, 2, BULK[:30]])), 2)
    first, second = found.vectors
    outside = torch.linalg.qr(torch.cat([found.vectors, torch.ones(1, 32).double()]).T)[0][:, 2]
    assert found.share(3 * first - 4 * second) == pytest.approx(1, rel=1e-14)
    assert found.share(outside) < 1e-28
    assert found.share(2 * first - outside) == pytest.approx(0.8, rel=1e-12)
    assert found.share((2 * first - outside).float()) == pytest.approx(0.8, rel=1e-6)
    for vector, message in (
        (torch.ones(31), r"`vector` must have shape \(32,\), got \(31,\)"),
        (torch.zeros(32), r"`vector` must have a finite length above 0, got 0\.0"),
        (torch.full((32,), math.nan), "`vector` must have a finite length above 0, got nan"),
    ):
        with pytest.raises(ArgumentError, match=message):
            found.share(vector)


def quadratic(values: np.ndarray, floor: float) -> tuple[lx.Objective, SymmetricOperator]:
    """An objective with a known Hessian at its live parameters, which are zero."""
    hessian = rotated(values)
    model = nn.Linear(len(values), 1, bias=False).double()
    nn.init.zeros_(model.weight)

    def loss(model: nn.Module, _: object) -> Tensor:
        w = model.weight.reshape(-1)
        return floor + 0.5 * w @ hessian @ w

    return lx.Objective(model, [torch.zeros(1)], loss), operator_of(hessian)


@pytest.mark.parametrize(("floor", "rise"), [(0.8, 0.8), (0.01, 0.1)])
def test_directions_span_a_surface_to_where_the_loss_has_doubled(floor, rise):
    objective, operator = quadratic(np.array([4.0, 1.0, 0.5, -2.0]), floor)
    pairs = eigenpairs(operator, 2, "BE")
    directions = pairs.directions(objective, pick=[-1, 0])
    assert [a.source for a in directions.axes] == ["hessian", "hessian"]
    assert directions.axes[0].label == "eigenvector 2 (λ = 4)"
    surface = lx.surface(objective, directions=directions, points=5, progress=False).to_xarray()
    alpha, beta = surface["alpha"].values, surface["beta"].values
    np.testing.assert_allclose([alpha[-1], -alpha[0]], math.sqrt(2 * rise / 4), rtol=1e-6)
    np.testing.assert_allclose(beta[-1], math.sqrt(2 * rise / 2), rtol=1e-6)
    loss, bowl = surface["loss"].values, np.array([1, 0.25, 0, 0.25, 1])
    np.testing.assert_allclose(loss[:, 2], floor + rise * bowl, atol=1e-12)
    np.testing.assert_allclose(loss[2, :], floor - rise * bowl, atol=1e-12)


def test_directions_take_a_layout_and_a_module():
    _, operator = quadratic(np.array([4.0, 1.0, 0.0]), 0.0)
    pairs = eigenpairs(operator, 3)
    directions = pairs.directions((("a", (2,)), ("b", (1, 1))), pick=[0])
    assert directions[0]["b"].shape == (1, 1)
    assert directions.axes[0].default_span[1] == pytest.approx(math.sqrt(2 * 0.1 / 4))
    given = pairs.directions(nn.Linear(3, 1, bias=False), loss=2.0)
    assert given.vectors.dtype == torch.float32
    assert given.axes[1].default_span[1] == pytest.approx(math.sqrt(2 * 2.0))
    for pair in pairwise(given.vectors):
        assert abs(float(pair[0] @ pair[1])) < 1e-6
    zero = eigenpairs(SymmetricOperator(torch.zeros_like, 3, DOUBLE), 1)
    assert zero.directions(nn.Linear(3, 1, bias=False)).axes[0].default_span == (-1, 1)


def test_directions_take_the_operator_they_came_from():
    class Laid(SymmetricOperator):
        layout = (("a", (3,)),)
        loss = 3.0

    matrix = rotated(np.array([4.0, 1.0, 0.5]))
    operator = Laid(lambda v: matrix @ v, 3, DOUBLE)
    directions = eigenpairs(operator, 1).directions(operator)
    assert directions.layout == operator.layout
    assert directions.axes[0].default_span[1] == pytest.approx(math.sqrt(2 * 3 / 4))


def test_a_module_may_have_attributes_of_these_names():
    class Model(nn.Linear):
        layout, loss = "left to right", 5.0

    pairs = eigenpairs(operator_of(rotated(np.array([4.0, 1.0, 0.5]))), 1)
    directions = pairs.directions(Model(3, 1, bias=False))
    assert directions.axes[0].default_span[1] == pytest.approx(math.sqrt(2 * 0.1 / 4))


def test_the_curvature_of_an_objective_gives_directions():
    objective, operator = quadratic(np.array([4.0, 1.0, 0.5, -2.0]), 0.6)
    directions = lx.directions.hessian(objective, which="BE")
    assert [a.label for a in directions.axes] == [
        "eigenvector 1 (λ = -2)",
        "eigenvector 2 (λ = 4)",
    ]
    assert directions.axes[1].default_span[1] == pytest.approx(math.sqrt(2 * 0.6 / 4))
    want = eigenpairs(operator, 2, "BE").vectors
    torch.testing.assert_close(directions.vectors, want, atol=1e-10, rtol=0)


def test_the_curvature_may_be_that_of_another_centre():
    """Of sum w^4 / 12 it is diag(w^2)."""
    model = nn.Linear(3, 1, bias=False).double()

    def quartic(model: nn.Module, _: object) -> Tensor:
        return (model.weight**4).sum() / 12

    center = torch.tensor([1.0, 3.0, 2.0], dtype=DOUBLE)
    objective = lx.Objective(model, [torch.zeros(1)], quartic)
    directions = lx.directions.hessian(objective, 1, center=center)
    assert directions.axes[0].label == "eigenvector 1 (λ = 9)"
    torch.testing.assert_close(directions.vectors[0].abs(), torch.eye(3, dtype=DOUBLE)[1])
    rise = (1 + 81 + 16) / 12
    assert directions.axes[0].default_span[1] == pytest.approx(math.sqrt(2 * rise / 9))


def test_directions_survive_a_file(tmp_path):
    _, operator = quadratic(np.array([4.0, 1.0, 0.0]), 0.0)
    directions = eigenpairs(operator, 2).directions((("a", (3,)),), loss=1.0)
    directions.save(tmp_path / "d.safetensors")
    assert lx.Directions.load(tmp_path / "d.safetensors").axes == directions.axes


def test_directions_name_what_does_not_fit():
    pairs = eigenpairs(operator_of(goe(5)), 2)
    with pytest.raises(DirectionError, match=r"must have shape \(K, 4\), got \(2, 5\)"):
        pairs.directions(nn.Linear(4, 1, bias=False))
    with pytest.raises(DirectionError, match=r"`target` must have the P = 5 parameters .* got 4"):
        pairs.directions((("a", (4,)),))
    with pytest.raises(ArgumentError, match="`pick` must hold indices of k = 2 pairs, got 2"):
        pairs.directions((("a", (5,)),), pick=[0, 2])


# --- the basis --------------------


def test_a_basis_refuses_what_lies_in_its_span_and_keeps_the_rest():
    basis = Basis(operator_of(goe(6)), 4)
    assert basis.extend(torch.tensor([3.0, 4, 0, 0, 0, 0]))
    assert basis.extend(torch.tensor([1.0, 0, 1e-9, 0, 0, 0]))
    assert not basis.extend(7 * basis.rows[0] - 2 * basis.rows[1])
    assert not basis.extend(torch.zeros(6))
    assert basis.count == 2
    assert basis.extend(torch.tensor([1.0, 2, 1e-9, 1e-8, 0, 0]))
    rows = basis.rows
    torch.testing.assert_close(rows @ rows.T, torch.eye(3, dtype=DOUBLE), atol=1e-14, rtol=0)


def test_rotation_mixes_the_first_rows_and_moves_the_others_up():
    basis = Basis(operator_of(goe(200)), 6)
    for row in torch.linalg.qr(goe(200)).Q.T[:5]:
        basis.extend(row)
    before = basis.rows.clone()
    mixing = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0][:, :2]
    basis.rotate(mixing)
    assert basis.count == 4
    want = torch.cat((torch.from_numpy(mixing).T @ before[:3], before[3:]))
    torch.testing.assert_close(basis.rows, want, atol=1e-15, rtol=0)


def test_rotation_reaches_every_column_of_long_vectors():
    size = (1 << 16) + 3
    basis = Basis(SymmetricOperator(lambda v: v, size, torch.float32), 2)
    basis.vectors[:2] = torch.arange(2.0)[:, None] + 1
    basis.count = 2
    basis.rotate(np.array([[0.6], [0.8]]))
    torch.testing.assert_close(basis.rows, torch.full((1, size), 2.2))


def test_rayleigh_quotient_and_residual_are_exact_for_a_row():
    matrix = goe(30)
    basis = Basis(operator_of(matrix), 1)
    basis.extend(torch.ones(30, dtype=DOUBLE))
    q = basis.rows[0].numpy()
    value, left = basis.rayleigh(0, matrix @ basis.rows[0])
    a = matrix.numpy()
    assert value == pytest.approx(q @ a @ q, rel=1e-13)
    assert left == pytest.approx(np.linalg.norm(a @ q - (q @ a @ q) * q), rel=1e-13)


@pytest.mark.parametrize("block", [1, 3])
def test_residuals_of_ritz_pairs_are_true_before_and_after_the_basis_is_condensed(block):
    """And wherever the rows that wait stand."""
    matrix = goe(80)
    krylov = Krylov(operator_of(matrix), most=12, block=block, seed=0, start=[])

    def check() -> None:
        ritz, q = krylov.ritz(), krylov.basis.rows[: krylov.done]
        y = torch.from_numpy(ritz.mixing).T @ q
        true = (y @ matrix - torch.from_numpy(ritz.values)[:, None] * y).norm(dim=1)
        np.testing.assert_allclose(ritz.residuals, true.numpy(), atol=1e-13)

    for _ in range(12):
        krylov.step()
        check()
    for _ in range(3):
        krylov.restart(krylov.ritz(), np.array([11, 0, 10, 1, 9]))
        check()
        while not krylov.full:
            krylov.step()
            check()


def test_a_step_says_how_strongly_the_space_is_coupled_to_the_rest():
    matrix = torch.diag(torch.tensor([3.0, 4.0, 4.0], dtype=DOUBLE))
    matrix[0, 1] = matrix[1, 0] = 1e-3

    def coupling(*start: list[float], block: int = 1) -> float:
        rows = [torch.tensor(row, dtype=DOUBLE) for row in start]
        krylov = Krylov(operator_of(matrix), most=3, block=block, seed=0, start=rows)
        return krylov.step()

    assert coupling([1, 0, 0]) == pytest.approx(1e-3 / math.hypot(3, 1e-3))
    assert coupling([0, 0, 1]) == 0
    assert coupling([1, 0, 0], [0, 0, 1], block=2) == math.inf
    assert coupling([0, 0, 1], [1, 0, 0], block=2) == math.inf  # closed, but the other row waits
