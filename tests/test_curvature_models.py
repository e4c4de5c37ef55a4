"""Curvature of networks of every kind against whole matrices in float64."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import models
import pytest
import torch
from curvature_reference import (
    dense_empirical_fisher,
    dense_ggn,
    dense_hessian,
    flat,
    flat_leaves,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import landscapex as lx
from landscapex.curvature.operators import Curvature, hessian
from landscapex.errors import LossError

SPLIT = (5, 5, 2)  # a ragged last batch


class Reshaped(nn.Module):
    """A layer between others that want another shape."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(x)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module], **options: object) -> None:
        super().__init__()
        self.layer = kind(2, 2, batch_first=True, **options)
        self.head = nn.Linear(2 * (2 if options.get("bidirectional") else 1), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


class SelfAttention(nn.Module):
    """Fused attention, called as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(2, 6)
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.head(F.scaled_dot_product_attention(q, k, v).mean(1))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.mix(self.embedding(ids).mean(1)).tanh())


class Unused(nn.Module):
    """One layer is never called, another one is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 5)
        self.never = nn.Linear(4, 5)
        self.frozen = nn.Linear(5, 3).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(self.first(x).tanh())


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(2, 2, 4, batch_first=True)
    return nn.Sequential(layer, Reshaped(lambda x: x.mean(1)), nn.Linear(2, 3))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, stride=2, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(2, 2, 3, padding=(2, 1), dilation=(2, 1), groups=2, bias=False), nn.Tanh(),
        nn.ConvTranspose2d(2, 2, 3, stride=2, padding=1, output_padding=1, groups=2),
        nn.MaxPool2d(2), nn.ReLU6(), nn.Conv2d(2, 1, 1, padding="same"), nn.Flatten(),
        nn.Linear(2 * 2, 3),
    )  # fmt: skip


def line_convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular"), nn.GELU(),
        nn.ConvTranspose1d(3, 2, 2, stride=2), nn.Softplus(), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip


def normed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.GroupNorm(2, 4),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(4), nn.Dropout(0.5), nn.Linear(4, 3),
    )  # fmt: skip


def volumes() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 2, 2), nn.ELU(), nn.AvgPool3d(2), nn.Flatten(), nn.Linear(2, 3)
    )


def bilinear() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 4), nn.PReLU(), Reshaped(lambda x: x * x.roll(1, 1)), nn.Linear(4, 3)
    )


# name -> (model, shape of one sample)
CLASSIFIERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "relu": (lambda: models.mlp(4, 6, 3), (4,)),
    "sigmoid": (lambda: models.mlp(4, 6, 3, act=nn.Sigmoid), (4,)),
    "linear": (lambda: nn.Linear(4, 3), (4,)),
    "prelu": (bilinear, (4,)),
    "conv": (convolutions, (1, 4, 4)),
    "conv1d": (line_convolutions, (2, 4)),
    "conv3d": (volumes, (1, 3, 3, 3)),
    "norms": (normed, (2, 4, 4)),
    "lstm": (lambda: Recurrent(nn.LSTM), (3, 2)),
    "lstm both ways": (lambda: Recurrent(nn.LSTM, bidirectional=True), (2, 2)),
    "gru": (lambda: Recurrent(nn.GRU), (3, 2)),
    "rnn": (lambda: Recurrent(nn.RNN, nonlinearity="relu"), (3, 2)),
    "sdpa": (SelfAttention, (3, 2)),
    "encoder": (encoder, (3, 2)),
    "unused and frozen": (Unused, (4,)),
}  # fmt: skip


def made(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor, Tensor]:
    build, shape = CLASSIFIERS[name]
    model = models.seeded(build).to(dtype).train()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean += 0.3
                module.running_var *= 1.7
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(sum(SPLIT), *shape, generator=rng, dtype=torch.float64).to(dtype)
    return model, x, torch.randint(3, (len(x),), generator=rng)


def batches_of(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    return list(zip(*(t.split(SPLIT) for t in tensors), strict=True))


def cross_entropy(call, batch):
    return F.cross_entropy(call(batch[0]), batch[1]), len(batch[1])


def compare(operator: Curvature, expected: Tensor, rtol: float = 1e-10) -> None:
    """Entries agree relative to the largest, and products are those of a symmetric matrix."""
    found = operator.dense().double()
    scale = expected.abs().max()
    assert scale > 0
    assert float((found - expected).abs().max()) <= rtol * float(scale)
    assert float((found - found.T).abs().max()) <= rtol * float(scale)


# --- Every kind of network -----------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_hessian_equals_the_matrix_of_second_derivatives(name):
    model, x, y = made(name)
    batches = batches_of(x, y)
    expected = dense_hessian(copy.deepcopy(model).eval(), batches, cross_entropy)
    compare(hessian(model, batches, "cross_entropy"), expected)


@pytest.mark.parametrize("name", [n for n in CLASSIFIERS if n != "lstm both ways"])
def test_gauss_newton_equals_jacobians_around_the_hessian_of_the_loss(name):
    model, x, y = made(name)
    expected = dense_ggn(copy.deepcopy(model).eval(), x, "cross_entropy", y)
    operator = hessian(model, batches_of(x, y), "cross_entropy", kind="ggn")
    compare(operator, expected)
    v = torch.randn(operator.size, dtype=torch.float64)
    assert float(v @ (operator @ v)) >= 0


@pytest.mark.parametrize("name", [n for n in CLASSIFIERS if n != "lstm both ways"])
def test_empirical_fisher_equals_outer_products_of_gradients(name):
    model, x, y = made(name)
    expected = dense_empirical_fisher(copy.deepcopy(model).eval(), x, "cross_entropy", y)
    compare(hessian(model, batches_of(x, y), "cross_entropy", kind="empirical_fisher"), expected)


@pytest.mark.parametrize("name", ["relu", "conv", "lstm", "encoder"])
def test_fisher_tends_to_gauss_newton_with_the_number_of_drawn_labels(name):
    """The average over seeds lies where its own scatter says."""
    model, x, y = made(name)
    batches = batches_of(x, y)
    expected = dense_ggn(copy.deepcopy(model).eval(), x, "cross_entropy", y)
    v = torch.randn(len(expected), dtype=torch.float64)
    v = v / v.norm()
    quadratic = torch.tensor(
        [
            float(
                v
                @ (hessian(model, batches, "cross_entropy", kind="fisher", seed=s, samples=40) @ v)
            )
            for s in range(8)
        ]
    )
    error = quadratic.std() / len(quadratic) ** 0.5
    assert 0 < error < 0.2 * float(v @ expected @ v)
    assert abs(float(quadratic.mean()) - float(v @ expected @ v)) < 4 * error


@pytest.mark.parametrize("name", ["relu", "conv", "norms", "lstm", "gru", "sdpa", "encoder"])
@pytest.mark.parametrize("kind", ["hessian", "ggn", "empirical_fisher"])
def test_float32_agrees_with_float64(name, kind):
    """Also where float32 has fused kernels of its own: recurrent layers, attention."""
    model, x, y = made(name)
    operator = hessian(
        copy.deepcopy(model).float(), batches_of(x.float(), y), "cross_entropy", kind=kind
    )
    assert operator.dtype == torch.float32
    exact = hessian(model, batches_of(x, y), "cross_entropy", kind=kind)
    v = torch.randn(exact.size)
    expected = exact @ v.double()
    assert float(((operator @ v).double() - expected).norm()) <= 2e-5 * float(expected.norm())


@pytest.mark.parametrize("name", ["encoder", "sdpa"])
def test_trap_28_attention_has_second_derivatives(name):
    """Its fast paths have none, and every published tool fails on a stock encoder layer."""
    model, x, y = made(name, torch.float32)
    fast = torch.backends.mha.get_fastpath_enabled()
    flash = torch.backends.cuda.flash_sdp_enabled()
    operator = hessian(model, batches_of(x, y), "cross_entropy")
    assert bool(torch.isfinite(operator @ torch.ones(operator.size)).all())
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert torch.backends.cuda.flash_sdp_enabled() == flash


class ExplicitlyNormed(nn.Module):
    """Weight norm by its formula, with parameters in the order of torch's."""

    def __init__(self, normed: nn.Sequential) -> None:
        super().__init__()
        for name, p in normed.named_parameters():
            self.register_parameter(name.replace(".", "_"), nn.Parameter(p.detach().clone()))

    def forward(self, x: Tensor) -> Tensor:
        bias, g, v, weight, out = self.parameters()
        return F.linear(F.silu(F.linear(x, g * v / v.norm(dim=1, keepdim=True), bias)), weight, out)


@pytest.mark.parametrize("form", ["parametrization", "hooks"])
@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_weight_norm_is_differentiated_through_its_norm(form, kind):
    """Torch's own backward pass takes the norm for a constant when differentiated again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        norm = parametrizations.weight_norm if form == "parametrization" else nn.utils.weight_norm
        model = nn.Sequential(norm(nn.Linear(4, 5)), nn.SiLU(), nn.Linear(5, 3)).double()
    x, y = torch.randn(12, 4).double(), torch.randint(3, (12,))
    plain = ExplicitlyNormed(model)
    expected = (
        dense_hessian(plain, [(x, y)], cross_entropy)
        if kind == "hessian"
        else dense_ggn(plain, x, "cross_entropy", y)
    )
    compare(hessian(model, batches_of(x, y), "cross_entropy", kind=kind), expected)


def test_trap_22_tied_weights_count_once():
    model = models.seeded(Tied).double()
    ids, y = torch.randint(7, (12, 3)), torch.randint(7, (12,))
    batches = batches_of(ids, y)
    operator = hessian(model, batches, "cross_entropy")
    assert operator.size == 7 * 4 + 20
    assert "kept for 3 of 3" in operator.provenance["method"]  # by copies, tied like the model
    compare(operator, dense_hessian(model, batches, cross_entropy))
    compare(
        hessian(model, batches, "cross_entropy", kind="ggn"),
        dense_ggn(model, ids, "cross_entropy", y),
    )


def test_two_parameters_that_view_the_same_memory_are_one():
    model = models.mlp(3, 3, 3).double()
    model[2].weight = nn.Parameter(model[0].weight.data)
    x, y = torch.randn(12, 3, dtype=torch.float64), torch.randint(3, (12,))
    tied = copy.deepcopy(model)
    tied[2].weight = tied[0].weight
    expected = dense_hessian(tied, [(x, y)], cross_entropy)
    compare(hessian(model, [(x, y)], "cross_entropy"), expected)


def test_trap_23_unused_parameters_are_zero_and_frozen_ones_left_out():
    model, x, y = made("unused and frozen")
    operator = hessian(model, batches_of(x, y), "cross_entropy")
    assert [name for name, _ in operator.layout] == [
        "first.weight", "first.bias", "never.weight", "never.bias",
    ]  # fmt: skip
    v = torch.randn(operator.size, dtype=torch.float64)
    product = operator @ v
    assert not product[25:].any()
    assert product[:25].all()


# --- Batch norm ----------------------------------------------------------------------------------


def test_batch_norm_by_running_statistics_also_in_training_mode():
    """Dropout is off, and the statistics are those that the model has."""
    model, x, y = made("norms")
    before = copy.deepcopy(model.state_dict())
    operator = hessian(model, batches_of(x, y), "cross_entropy")
    compare(operator, dense_hessian(copy.deepcopy(model).eval(), [(x, y)], cross_entropy))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert operator.provenance["batch_norm"] == "running statistics, as constants"


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_batch_norm_by_statistics_recomputed_at_the_point(kind):
    model, x, y = made("norms")
    plain = copy.deepcopy(model).eval()
    features = plain[0](x)
    means = [f.mean((0, 2, 3)) for f in features.split(SPLIT)]
    variances = [f.var((0, 2, 3)) for f in features.split(SPLIT)]
    plain[1].running_mean = torch.stack(means).mean(0).detach()
    plain[1].running_var = torch.stack(variances).mean(0).detach()
    expected = (
        dense_hessian(plain, [(x, y)], cross_entropy)
        if kind == "hessian"
        else dense_ggn(plain, x, "cross_entropy", y)
    )
    objective = lx.Objective(model, batches_of(x, y), "cross_entropy", bn="recompute")
    operator = hessian(objective, kind=kind)
    compare(operator, expected)
    assert "recomputed" not in operator.provenance["batch_norm"]
    assert "then constants" in operator.provenance["batch_norm"]


def test_batch_norm_by_each_batch_is_differentiated():
    model, x, y = made("norms")
    batches = batches_of(x, y)
    objective = lx.Objective(model, batches, "cross_entropy", bn="batch")
    trained = copy.deepcopy(model).eval()
    trained[1].train()
    before = copy.deepcopy(model.state_dict())
    operator = hessian(objective)
    compare(operator, dense_hessian(trained, batches, cross_entropy))
    operator_anew = hessian(objective, memory=0)
    v = torch.randn(operator.size, dtype=torch.float64)
    assert torch.equal(operator @ v, operator_anew @ v)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


# --- Losses --------------------------------------------------------------------------------------


def regression(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    model = models.mlp(4, 5, 2, act=nn.Tanh).double()
    rng = torch.Generator().manual_seed(2)
    x = torch.randn(12, 4, generator=rng, dtype=torch.float64)
    y = torch.rand(12, 2, generator=rng, dtype=torch.float64)
    return model, x, y.round() if "binary" in name else y


@pytest.mark.parametrize("loss", ["mse_loss", "binary_cross_entropy_with_logits"])
@pytest.mark.parametrize("kind", ["hessian", "ggn", "empirical_fisher"])
def test_losses_of_several_numbers_per_sample(loss, kind):
    model, x, y = regression(loss)

    def term(call, batch):
        return getattr(F, loss)(call(batch[0]), batch[1]), batch[1].numel()

    expected = {
        "hessian": lambda: dense_hessian(model, batches_of(x, y), term),
        "ggn": lambda: dense_ggn(model, x, loss, y),
        "empirical_fisher": lambda: dense_empirical_fisher(model, x, loss, y),
    }[kind]()
    compare(hessian(model, batches_of(x, y), loss, kind=kind), expected)


@pytest.mark.parametrize(
    "loss",
    [
        nn.MSELoss(),
        nn.BCEWithLogitsLoss(),
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor([3.0, 0.5]).double()),
        nn.BCEWithLogitsLoss(weight=torch.tensor([3.0, 0.5]).double()),
    ],
    ids=["mse", "bce", "bce with pos_weight", "bce with weight"],
)
def test_fisher_of_regression_and_binary_labels_tends_to_gauss_newton(loss):
    """The squared error of torch is the negative logarithm of a normal density, variance 1/2."""
    model, x, y = regression("binary")
    ggn = hessian(model, [(x, y)], loss, kind="ggn")
    v = torch.randn(ggn.size, dtype=torch.float64)
    expected = float(v @ (ggn @ v))
    fishers = [hessian(model, [(x, y)], loss, kind="fisher", samples=40, seed=s) for s in range(8)]
    found = torch.tensor([float(v @ (f @ v)) for f in fishers])
    error = float(found.std()) / len(found) ** 0.5
    assert 0 < error < 0.1 * expected
    assert abs(float(found.mean()) - expected) < 4 * error


CRITERIA = {
    "plain": nn.CrossEntropyLoss(),
    "class weights": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 4.0, 0.2]).double()),
    "ignored": nn.CrossEntropyLoss(ignore_index=1),
    "smoothed": nn.CrossEntropyLoss(label_smoothing=0.3),
    "weights and smoothing": nn.CrossEntropyLoss(
        weight=torch.tensor([1.0, 4.0, 0.2]).double(), label_smoothing=0.3
    ),
    "sum": nn.CrossEntropyLoss(reduction="sum"),
}


@pytest.mark.parametrize("name", CRITERIA)
def test_gauss_newton_of_a_linear_model_is_its_hessian(name):
    """Outputs linear in the parameters have no second derivatives of their own."""
    model, x, y = made("linear")
    batches = batches_of(x, y)
    h = hessian(model, batches, CRITERIA[name])
    compare(hessian(model, batches, CRITERIA[name], kind="ggn"), h.dense())


@pytest.mark.parametrize("name", ["class weights", "ignored", "weights and smoothing"])
def test_fisher_has_gauss_newton_as_expectation_for_every_weighting(name):
    """Over all labels instead of drawn ones: sum_c p_c (p - e_c) (p - e_c)^T = diag(p) - p p^T."""
    model, x, y = made("linear")
    batches = batches_of(x, y)
    ggn = hessian(model, batches, CRITERIA[name], kind="ggn")
    v = torch.randn(ggn.size, dtype=torch.float64)
    fishers = [
        hessian(model, batches, CRITERIA[name], kind="fisher", samples=40, seed=s) for s in range(8)
    ]
    found = torch.tensor([float(v @ (f @ v)) for f in fishers])
    error = float(found.std()) / len(found) ** 0.5
    assert 0 < error < 0.1 * float(v @ (ggn @ v))
    assert abs(float(found.mean()) - float(v @ (ggn @ v))) < 4 * error


@pytest.mark.parametrize("kind", ["ggn", "fisher", "empirical_fisher"])
def test_nll_loss_of_log_probabilities_is_cross_entropy(kind):
    model, x, y = made("relu")
    with_softmax = nn.Sequential(model, nn.LogSoftmax(1))
    a = hessian(model, batches_of(x, y), "cross_entropy", kind=kind)
    b = hessian(with_softmax, batches_of(x, y), "nll_loss", kind=kind)
    compare(b, a.dense())
    assert torch.allclose(a.gradient, b.gradient, rtol=1e-12)


def test_probabilities_as_targets():
    model, x, _ = made("relu")
    target = torch.rand(len(x), 3, dtype=torch.float64).softmax(1)
    expected = dense_ggn(model, x, "cross_entropy", target)
    compare(hessian(model, batches_of(x, target), "cross_entropy", kind="ggn"), expected)


def test_labels_at_many_positions():
    """An image of labels: the mean is over positions, a sample is an image."""
    model = models.seeded(lambda: nn.Conv2d(1, 3, 3, padding=1)).double()
    x, y = torch.randn(6, 1, 2, 2, dtype=torch.float64), torch.randint(3, (6, 2, 2))
    compare(hessian(model, [(x, y)], "cross_entropy", kind="ggn"), hessian(
        model, [(x, y)], "cross_entropy").dense())  # fmt: skip
    expected = dense_empirical_fisher(model, x, "cross_entropy", y)
    compare(hessian(model, [(x, y)], "cross_entropy", kind="empirical_fisher"), expected)


def test_models_with_a_loss_of_their_own():
    case = models.case("transformer")
    model = copy.deepcopy(case.model).double()
    small = copy.deepcopy(case.batches[-1])

    def term(call, batch):
        return call(**batch).loss, len(batch["labels"])

    names = ("head.weight", "head.bias", "encoder.layers.1.norm2.weight")
    expected = dense_hessian(model.eval(), [small, small], term, names)
    compare(hessian(model, [small, small], None, params=names), expected)


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


# --- Numbers of other kinds ----------------------------------------------------------------------


def test_trap_26_complex_parameters_count_by_real_and_imaginary_parts():
    class Wave(nn.Module):
        def __init__(self):
            super().__init__()
            self.c = nn.Parameter(torch.randn(3, 2, dtype=torch.complex128))
            self.scale = nn.Parameter(torch.ones(2).double())

        def forward(self, x):
            return (x.to(torch.complex128) @ self.c).abs().square() * self.scale

    class Real(nn.Module):
        def __init__(self, wave):
            super().__init__()
            self.c = nn.Parameter(torch.view_as_real(wave.c.detach()).clone())
            self.scale = nn.Parameter(wave.scale.detach().clone())

        def forward(self, x):
            real, imaginary = x @ self.c[..., 0], x @ self.c[..., 1]
            return (real**2 + imaginary**2) * self.scale

    model = models.seeded(Wave)
    x, y = torch.randn(12, 3).double(), torch.randn(12, 2).double()

    def term(call, batch):
        return F.mse_loss(call(batch[0]), batch[1]), batch[1].numel()

    batches = batches_of(x, y)
    compare(hessian(model, batches, "mse_loss"), dense_hessian(Real(model), batches, term))
    compare(
        hessian(model, batches, "mse_loss", kind="ggn"), dense_ggn(Real(model), x, "mse_loss", y)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_parameters_of_16_bits_are_widened(dtype, kind):
    model, x, y = made("norms", dtype)
    before = copy.deepcopy(model.state_dict())
    operator = hessian(model, batches_of(x, y), "cross_entropy", kind=kind)
    assert operator.dtype == torch.float32
    wide = copy.deepcopy(model).double()
    exact = hessian(wide, batches_of(x.double(), y), "cross_entropy", kind=kind)
    v = torch.randn(operator.size)
    expected = exact @ v.double()
    assert float(((operator @ v).double() - expected).norm()) <= 1e-4 * float(expected.norm())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_autocast_is_off():
    model, x, y = made("relu", torch.float32)
    plain = hessian(model, [(x, y)], "cross_entropy")
    v = torch.randn(plain.size)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = hessian(model, [(x, y)], "cross_entropy", memory=0)
        products = inside @ v, plain @ v  # formed anew, and by a graph that is kept
    for product in products:
        assert torch.equal(product, plain @ v)


def test_parameters_of_different_precision():
    model = nn.Sequential(
        nn.Linear(4, 3), Reshaped(lambda x: x.double().tanh()), nn.Linear(3, 3).double()
    )
    wide = copy.deepcopy(model)
    wide[0].double()
    x, y = torch.randn(6, 4), torch.randint(3, (6,))
    found = hessian(model, [(x, y)], "cross_entropy").dense()
    assert found.dtype == torch.float64
    expected = dense_hessian(wide, [(x.double(), y)], cross_entropy)
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())


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
def test_networks_in_other_hands(wrap, kind):
    """A compiled module keeps its tensors where nobody can exchange them."""
    model, x, y = made("conv")
    model.eval()
    expected = hessian(model, batches_of(x, y), "cross_entropy", kind=kind).dense()
    operator = hessian(wrap(model), batches_of(x, y), "cross_entropy", kind=kind)
    assert ("the model's own tensors" in operator.provenance["method"]) == (wrap is scripted)
    compare(operator, expected)


def test_a_piecewise_linear_loss_has_no_curvature():
    model = nn.Linear(4, 1)
    x, y = torch.randn(6, 4), torch.randn(6, 1)
    operator = hessian(model, [(x, y)], "l1_loss")
    assert not (operator @ torch.ones(5)).any()
    assert operator.gradient.any()


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


def test_reference_differentiates_what_requires_gradients():
    assert list(flat_leaves(Unused())) == [
        "first.weight", "first.bias", "never.weight", "never.bias",
    ]  # fmt: skip
