"""Hessians beside published tools: where all are right they agree, and where they are wrong.

curvlinops 3.0.1, hessian-eigenthings 1.0.0a5, PyHessian 0.1, as they are. Tests of traps show the
defect, with its size, and what landscapex gives on the same input.

Left out, as these versions do not have it: frozen parameters crash none of them (trap 23).
"""

from __future__ import annotations

import copy
import gc
import weakref

import models
import numpy as np
import other_curvature as other
import pytest
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn
from torch.nn import functional as F

import landscapex as lx
from landscapex.curvature.operators import Curvature


def batches(x: Tensor, y: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(size), y.split(size), strict=True))


def numbers(samples: int, *shape: int, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, *shape, generator=rng)
    return x, torch.randint(classes, (samples,), generator=rng)


def vector(size: int, dtype: torch.dtype = torch.float32, seed: int = 9) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=rng, dtype=torch.float64).to(dtype)


def error(found: Tensor, right: Tensor) -> float:
    """Relative, of a vector."""
    return float((found.double() - right.double()).norm() / right.double().norm())


def whole_hessian(model: nn.Module, x: Tensor, y: Tensor) -> Curvature:
    """All samples in one batch, in float64."""
    wide = copy.deepcopy(model).double().eval()
    return lx.hessian(wide, [(x.double(), y)], "cross_entropy")


# --- Where all are right -------------------------------------------------------------------------


def digits_network() -> tuple[nn.Module, Tensor, Tensor]:
    """14,490 parameters, trained; 400 images."""
    model, (x, y), _ = lx.examples.digits()
    return model, x[:400], y[:400]


def lenet() -> tuple[nn.Module, Tensor, Tensor]:
    """61,706 parameters, random; 40 random images."""
    return models.seeded(models.LeNet), *numbers(40, 1, 28, 28, classes=10)


NETWORKS = {"digits": (digits_network, 100), "lenet": (lenet, 8)}


@pytest.fixture(scope="module", params=NETWORKS)
def problem(request) -> tuple[nn.Module, list[tuple[Tensor, Tensor]], Curvature]:
    """In float64, with batches of equal size: the mean of batch means is right then."""
    make, size = NETWORKS[request.param]
    model, x, y = make()
    model, cut = model.double().eval(), batches(x.double(), y, size)
    return model, cut, lx.hessian(model, cut, "cross_entropy")


def test_products_are_those_of_curvlinops_hessian_eigenthings_and_pyhessian(problem):
    model, cut, ours = problem
    v = vector(ours.size, torch.float64)
    product = ours @ v
    assert error(other.curvlinops_hessian(model, cut) @ v, product) < 1e-12
    assert error(other.eigenthings_hessian(model, cut) @ v, product) < 1e-12
    narrow = copy.deepcopy(model).float()  # PyHessian adds up in float32
    theirs = other.pyhessian_hessian(narrow, [(x.float(), y) for x, y in cut])
    assert error(other.pyhessian_product(theirs, v.float()), product) < 1e-5


def test_both_ends_are_those_of_scipy_and_hessian_eigenthings(problem):
    """SciPy's eigsh with the products of curvlinops; 120 steps of hessian-eigenthings."""
    model, cut, ours = problem
    top, bottom = ours.eigenvalues(5), ours.eigenvalues(1, "SA")
    assert top.converged.all()
    assert bottom.converged.all()
    scipy = other.curvlinops_hessian(model, cut, check_deterministic=False).to_scipy(np.float64)
    reference = np.sort(eigsh(scipy, 5, which="LA", tol=1e-8, return_eigenvectors=False))[::-1]
    assert top.values == pytest.approx(reference, rel=1e-8)
    reference = eigsh(scipy, 1, which="SA", tol=1e-8, return_eigenvectors=False)
    assert bottom.values == pytest.approx(reference, rel=1e-8)

    theirs = other.hessian_eigenthings.lanczos(
        other.eigenthings_hessian(model, cut),
        k=5,
        max_iter=120,
        which="LA",
        reorthogonalize=True,
        seed=0,
    )
    assert top.values == pytest.approx(theirs.eigenvalues.numpy(), rel=1e-6)


class Products(other.PyTorchLinearOperator):
    """Our products for the algorithms of curvlinops, whose own products are compared above."""

    SELF_ADJOINT = True

    def __init__(self, operator: Curvature) -> None:
        super().__init__([(operator.size,)], [(operator.size,)])
        self.operator = operator

    @property
    def device(self) -> torch.device:
        return self.operator.device

    @property
    def dtype(self) -> torch.dtype:
        return self.operator.dtype

    def _matmat(self, columns: list[Tensor]) -> list[Tensor]:
        return [self.operator @ columns[0]]


def test_trace_is_that_of_curvlinops_and_hessian_eigenthings(problem):
    """Within the errors that ours and hessian-eigenthings state and several runs of XTrace show."""
    model, cut, operator = problem
    ours = operator.trace(products=60)
    theirs = other.hessian_eigenthings.trace(
        other.eigenthings_hessian(model, cut), num_matvecs=60, seed=0
    )
    both = float(np.hypot(ours.standard_error, theirs.stderr))
    assert abs(ours.value - theirs.estimate) < 4 * both
    assert both < 0.5 * ours.frobenius_norm.value
    runs = [
        float(
            other.seeded(seed, lambda: other.curvlinops.xtrace(Products(operator), num_matvecs=20))
        )
        for seed in range(4)
    ]
    both = float(np.hypot(ours.standard_error, np.std(runs, ddof=1) / 2))
    assert abs(ours.value - np.mean(runs)) < 4 * both


def test_density_is_that_of_curvlinops_and_hessian_eigenthings(problem):
    """Equal width of the kernel: the area between the curves, of which each has 1."""
    model, cut, operator = problem
    ours = operator.spectral_density(probes=2, steps=50)
    theirs = other.hessian_eigenthings.spectral_density(
        other.eigenthings_hessian(model, cut), num_runs=2, lanczos_steps=50, seed=0
    )
    grid = theirs.grid.numpy()
    between = np.trapezoid(np.abs(ours.density(grid, theirs.sigma) - theirs.density.numpy()), grid)
    assert between < 0.05
    nodes, weights = theirs.raw_eigenvalues.numpy(), theirs.raw_weights.numpy()
    for power in (1, 2):
        moment = ours.moments(power)
        difference = moment.value - (weights * nodes**power).sum(1).mean()
        assert abs(difference) < 4 * np.sqrt(2) * moment.standard_error

    ends = (ours.smallest, ours.largest)
    grid, density = other.seeded(
        0,
        lambda: other.curvlinops.lanczos_approximate_spectrum(
            Products(operator), ncv=50, num_repeats=2, boundaries=ends, num_points=10_000
        ),
    )
    half = 1.1 * (ends[1] - ends[0]) / 2  # it pads each end by 5 % and works on [-1, 1]
    sigma = half * 2 / 49 / np.sqrt(8 * np.log(3))
    between = np.trapezoid(np.abs(ours.density(grid.numpy(), sigma) - density.numpy()), grid)
    assert between < 0.05


# --- Batches, modes and layers -------------------------------------------------------------------


def test_trap_17_training_mode_moves_buffers_and_draws_masks():
    """hessian-eigenthings: another matrix at each product, and moved running means.

    curvlinops refuses such a model; PyHessian leaves it in evaluation mode.
    """
    x, y = numbers(12, 1, 6, 6)
    model = models.seeded(models.ConvNet).train()
    start = copy.deepcopy(model.state_dict())
    ours = lx.hessian(model, [(x, y)], "cross_entropy")
    right, v = whole_hessian(model, x, y), vector(ours.size)
    assert error(ours @ v, right @ v.double()) < 1e-5
    assert model.training
    assert all(torch.equal(start[k], t) for k, t in model.state_dict().items())

    theirs = other.eigenthings_hessian(model, [(x, y)])
    products = [other.seeded(seed, lambda: theirs @ v) for seed in (0, 1)]
    assert error(products[0], right @ v.double()) > 0.1
    assert error(products[0], products[1]) > 0.05
    assert not torch.equal(start["bn.running_mean"], model.bn.running_mean)
    with other.silence(), pytest.raises(RuntimeError, match="deterministic total loss failed"):
        other.curvlinops_hessian(models.seeded(models.ConvNet).train(), [(x, y)])
    other.pyhessian_hessian(model, [(x, y)])
    assert not model.training


@pytest.mark.parametrize("seed", range(4))
def test_trap_18_ragged_batches_weigh_as_much_as_full_ones_in_hessian_eigenthings(seed):
    """8 + 2 samples: its products are off by 69 to 93 %."""
    x, y = numbers(10, 10, seed=seed)
    model = models.mlp(10, 16, 3)
    right = whole_hessian(model, x, y)
    v = vector(right.size)
    product = right @ v.double()
    cut = batches(x, y, 8)
    assert error(other.eigenthings_hessian(model, cut) @ v, product) > 0.6
    assert error(lx.hessian(model, cut, "cross_entropy") @ v, product) < 1e-6


def test_trap_18_nobody_else_counts_the_labels_that_count():
    """One of five labels and five of five: batches weigh 1 and 5, not alike. They are 72 % off."""
    x, y = numbers(10, 10, seed=1)
    y[:4] = -100
    model = models.mlp(10, 16, 3)
    right = whole_hessian(model, x, y)
    v = vector(right.size)
    product = right @ v.double()
    cut = batches(x, y, 5)
    assert error(lx.hessian(model, cut, "cross_entropy") @ v, product) < 1e-6
    theirs = {
        "curvlinops": other.curvlinops_hessian(model, cut) @ v,
        "hessian-eigenthings": other.eigenthings_hessian(model, cut) @ v,
        "PyHessian": other.pyhessian_product(other.pyhessian_hessian(model, cut), v),
    }
    for name, found in theirs.items():
        assert error(found, product) > 0.5, name


class Unused(nn.Module):
    """A linear layer, and one that the forward pass leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(10, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def test_trap_23_an_unused_parameter_crashes_all_three():
    x, y = numbers(10, 10)
    model = models.seeded(Unused)
    ours = lx.hessian(model, [(x, y)], "cross_entropy")
    v = vector(ours.size)
    assert float((ours @ v)[:33].norm()) > 0
    assert not (ours @ v)[33:].any()
    with pytest.raises(RuntimeError, match="Set allow_unused=True"):
        other.curvlinops_hessian(model, [(x, y)])
    with pytest.raises(RuntimeError, match="Set allow_unused=True"):
        other.eigenthings_hessian(model, [(x, y)]) @ v
    theirs = other.pyhessian_hessian(model, [(x, y)])
    with pytest.raises(AssertionError, match=r"Expected output to be a torch\.Tensor"):
        other.pyhessian_product(theirs, v)


class Attention(nn.Module):
    """One layer of torch's transformer encoder and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).mean(1))


def test_trap_28_attention_has_no_second_derivative_anywhere_else():
    x, y = numbers(8, 5, 16)
    model = models.seeded(Attention).eval()
    ours = lx.hessian(model, [(x, y)], "cross_entropy")
    v, step = vector(ours.size, torch.float64), 1e-5
    ends = []
    for sign in (1, -1):  # of the gradient in float64, without second derivatives
        moved = copy.deepcopy(model).double()
        for p, change in zip(
            moved.parameters(), other.like(v, list(moved.parameters())), strict=True
        ):
            p.data.add_(change, alpha=sign * step)
        F.cross_entropy(moved(x.double()), y).backward()
        ends.append(other.flat([p.grad for p in moved.parameters()]))
    assert error(ours @ v.float(), (ends[0] - ends[1]) / (2 * step)) < 1e-4

    message = "_scaled_dot_product_flash_attention_for_cpu"
    with pytest.raises(NotImplementedError, match=message):
        other.curvlinops_hessian(model, [(x, y)], check_deterministic=False) @ v.float()
    with pytest.raises(RuntimeError, match=message):
        other.eigenthings_hessian(model, [(x, y)]) @ v.float()
    with pytest.raises(RuntimeError, match=message):
        other.pyhessian_product(other.pyhessian_hessian(model, [(x, y)]), v.float())


def test_trap_28_curvlinops_does_not_differentiate_recurrent_layers():
    x, y = numbers(8, 6, 5)
    model = models.seeded(models.LSTMClassifier).eval()
    ours = lx.hessian(model, [(x, y)], "cross_entropy")
    v = vector(ours.size)
    with pytest.raises(NotImplementedError, match="mkldnn_rnn_layer"):
        other.curvlinops_hessian(model, [(x, y)], check_deterministic=False) @ v
    theirs = other.eigenthings_hessian(model, [(x, y)]) @ v  # which is right here
    assert error(ours @ v, theirs) < 1e-5


def test_trap_29_pyhessian_keeps_the_model_alive_and_fills_its_gradients():
    """``backward(create_graph=True)``: parameter -> gradient -> graph -> parameter."""
    x, y = numbers(10, 10)

    def weight_after(make) -> tuple[weakref.ref, bool]:
        model = models.mlp(10, 16, 3)
        make(model)
        return weakref.ref(model[0].weight), model[0].weight.grad is None

    gc.collect()
    gc.disable()
    try:
        theirs, clean = weight_after(lambda m: other.pyhessian_hessian(m, [(x, y)]))
        assert theirs() is not None
        assert not clean
        ours, clean = weight_after(
            lambda m: lx.hessian(m, [(x, y)], "cross_entropy") @ torch.ones(227)
        )
        assert ours() is None
        assert clean
    finally:
        gc.enable()
    gc.collect()


def test_trap_36_finite_differences_of_a_relu_network_are_wrong_at_every_step():
    """``method="finite_difference"`` of hessian-eigenthings: 13 % off at its own step.

    1 % at the best of others, ten thousand times our error.
    """
    model, x, y = digits_network()
    right = whole_hessian(model, x, y)
    v = vector(right.size)
    v /= v.norm()
    product = right @ v.double()
    errors = [
        error(
            other.eigenthings_hessian(model, [(x, y)], method="finite_difference", fd_eps=step) @ v,
            product,
        )
        for step in (None, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
    ]
    assert errors[0] > 0.1
    assert min(errors) > 0.01
    ours = error(lx.hessian(model, [(x, y)], "cross_entropy") @ v, product)
    assert ours < 1e-4 * min(errors)
