"""Second derivatives through functions and modules of others, at kinks, and where none exist."""

from __future__ import annotations

import copy
import warnings

import models
import pytest
import torch
from curvature_cases import cross_entropy
from curvature_networks import Reshaped, batches_of, compare, made
from curvature_reference import dense_ggn, dense_hessian, flat
from torch import Tensor, nn
from torch.nn import functional as F

import landscapex as lx
from landscapex.curvature.operators import hessian
from landscapex.curvature.replacements import Replacements
from landscapex.errors import LossError

# --- What has no second derivatives --------------------------------------------------------------


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad


def test_functions_of_ones_own_that_torch_can_differentiate_twice():
    """Tools that trace need more of such a function than a backward pass."""
    model = nn.Sequential(nn.Linear(4, 5), Reshaped(Twice.apply), nn.Linear(5, 3)).double()
    plain = nn.Sequential(model[0], Reshaped(torch.square), model[2])
    x, y = torch.randn(6, 4).double(), torch.randint(3, (6,))
    compare(
        hessian(model, [(x, y)], "cross_entropy"), dense_hessian(plain, [(x, y)], cross_entropy)
    )


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_a_function_that_is_differentiable_once_is_named(kind):
    model = nn.Sequential(nn.Linear(4, 5), Reshaped(Once.apply), nn.Linear(5, 3))
    x, y = torch.randn(6, 4), torch.randint(3, (6,))
    with pytest.raises(LossError, match=r"twice differentiable .*once_differentiable: one of Once"):
        _ = hessian(model, [(x, y)], "cross_entropy", kind=kind) @ torch.ones(43)


def test_a_loss_without_second_derivatives_is_named():
    model = nn.Linear(4, 5)

    def loss(m, batch):
        scores = m(batch).view(2, 3, 5).log_softmax(2).transpose(0, 1)
        sizes = torch.tensor([3, 3]), torch.tensor([1, 1])
        return F.ctc_loss(scores, torch.ones(2, 1).long(), *sizes)

    with pytest.raises(LossError, match=r"the loss must be twice differentiable .*ctc_loss"):
        _ = hessian(model, [torch.randn(6, 4)], loss) @ torch.ones(25)


def test_a_piecewise_linear_loss_has_no_curvature():
    model = nn.Linear(4, 1)
    x, y = torch.randn(6, 4), torch.randn(6, 1)
    operator = hessian(model, [(x, y)], "l1_loss")
    assert not (operator @ torch.ones(5)).any()
    assert operator.gradient.any()


def test_the_output_of_a_batch_norm_has_the_bits_of_the_model():
    """A unit next to its kink would switch: another matrix than that of the loss."""
    norm = models.seeded(lambda: nn.BatchNorm2d(8)).eval()
    rng = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for values in (norm.weight, norm.bias, norm.running_mean):
            values.copy_(3 + torch.randn(8, generator=rng))
    x = torch.randn(4, 8, 9, 9, generator=rng)
    with Replacements(fixed=False):
        found = norm(x)
    assert "_Affine" in type(found.grad_fn).__name__
    assert torch.equal(found, norm(x))


def test_trap_36_products_are_exact_near_the_kinks_of_relu():
    """Differences of gradients over a step jump where a unit switches: wrong by 0.1 and more."""
    model, x, y = made("relu")
    with torch.no_grad():  # many units are about to switch
        model[0].bias.copy_(-(model[0].weight @ x[0]) + 1e-9)
    batches = [(x[:1], y[:1])]
    expected = dense_hessian(model, batches, cross_entropy)
    compare(hessian(model, batches, "cross_entropy"), expected)
    v = torch.randn(len(expected), dtype=torch.float64)
    objective, here = lx.Objective(model, batches, "cross_entropy"), flat(list(model.parameters()))
    steps = [10.0**-k for k in range(2, 8)]
    differences = [
        (objective.gradient(here + h * v) - objective.gradient(here - h * v)) / (2 * h)
        for h in steps
    ]
    wrong = min(float((d - expected @ v).norm() / (expected @ v).norm()) for d in differences)
    assert wrong > 0.05


def normalised(dims: int, affine: str) -> nn.Sequential:
    """A convolution between two batch norms with statistics of their own."""
    conv, norm = getattr(nn, f"Conv{dims}d"), getattr(nn, f"BatchNorm{dims}d")

    def build() -> nn.Sequential:
        first, second = norm(2, affine=affine != "none"), norm(3, eps=0.1)
        for layer in (first, second):
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2)
            for parameter in layer.parameters():
                nn.init.normal_(parameter).requires_grad_(affine != "frozen")
        last = nn.Linear(3 * 2**dims, 3)
        return nn.Sequential(first, nn.Tanh(), conv(2, 3, 2), second, nn.Tanh(), nn.Flatten(), last)

    return models.seeded(build).double().eval()


@pytest.mark.parametrize("affine", ["moving", "frozen", "none"])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_batch_norm_by_running_statistics(kind, dims, affine):
    model = normalised(dims, affine)
    rng = torch.Generator().manual_seed(5)
    x = torch.randn(5, 2, *[3] * dims, generator=rng, dtype=torch.float64)
    y = torch.randint(3, (5,), generator=rng)
    operator = hessian(model, [(x, y)], "cross_entropy", kind=kind)
    expected = (
        dense_hessian(model, [(x, y)], cross_entropy)
        if kind == "hessian"
        else dense_ggn(model, x, "cross_entropy", y)
    )
    compare(operator, expected)


# --- Networks and parameters in other hands ------------------------------------------------------


def test_losses_that_close_over_the_model():
    """They ignore the model that they are called with and use the one they know."""
    model, x, y = made("relu")

    def loss(_, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    operator = hessian(model, batches_of(x, y), loss)
    compare(operator, dense_hessian(model, batches_of(x, y), cross_entropy))
    assert "kept for 3 of 3 batches" in operator.provenance["method"]


class Scaled(nn.Module):
    """A network times the squared norm of its first weight, as its own parameter or held apart."""

    def __init__(self, model: nn.Module, weight: Tensor | None = None) -> None:
        super().__init__()
        self.model = model
        self.held = [weight]  # no module knows what is in a list

    def forward(self, x: Tensor) -> Tensor:
        weight = self.model[0].weight if self.held[0] is None else self.held[0]
        return self.model(x) * weight.square().sum()


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_what_holds_a_parameter_itself_is_differentiated_too(kind):
    """Copies of the parameters would miss it; the model's own tensors then move."""
    model, x, y = made("relu")
    batches = batches_of(x, y)
    expected = (
        dense_hessian(Scaled(copy.deepcopy(model)), batches, cross_entropy)
        if kind == "hessian"
        else dense_ggn(Scaled(copy.deepcopy(model)), x, "cross_entropy", y)
    )
    nothing_counts = x[:2], torch.full((2,), -100)  # a first batch that cannot tell
    held = Scaled(model, model[0].weight)
    operator = hessian(held, [nothing_counts, *batches], "cross_entropy", kind=kind)
    assert "the model's own tensors" in operator.provenance["method"]
    with torch.no_grad():
        model[0].weight.mul_(3)  # the operator stands where it was made
    trained = flat(list(model.parameters())).clone()
    compare(operator, expected)
    assert torch.equal(flat(list(model.parameters())), trained)


def test_compiled_layers_are_called_as_they_were_written():
    """What torch compiles cannot be differentiated twice."""
    model = models.mlp(4, 5, 3, act=nn.Tanh).double()
    x, y = torch.randn(6, 4).double(), torch.randint(3, (6,))
    expected = dense_hessian(model, [(x, y)], cross_entropy)
    outer = nn.Sequential(torch.compile(model, backend="aot_eager"))
    outer(x).sum().backward()
    compare(hessian(outer, [(x, y)], "cross_entropy"), expected)


class Mapped(nn.Module):
    """Calls a network for one sample at a time, by torch.vmap."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(lambda one: self.model(one[None])[0])(x)


def scripted(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(model)


@pytest.mark.parametrize("wrap", [scripted, Mapped, nn.DataParallel])
@pytest.mark.parametrize("kind", ["hessian", "ggn"])
@pytest.mark.parametrize("name", ["conv", "norms"])
def test_networks_in_other_hands(wrap, kind, name):
    """A compiled module keeps its tensors where nobody can exchange them."""
    model, x, y = made(name)
    model.eval()
    expected = hessian(model, batches_of(x, y), "cross_entropy", kind=kind).dense()
    operator = hessian(wrap(model), batches_of(x, y), "cross_entropy", kind=kind)
    assert ("the model's own tensors" in operator.provenance["method"]) == (wrap is scripted)
    compare(operator, expected)
