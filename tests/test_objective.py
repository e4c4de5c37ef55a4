"""Model, data and loss bound together: the loss and its gradient at a point."""

from __future__ import annotations

import copy
import math
import re

import models
import pytest
import reference
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import landscapex as lx
from landscapex.errors import (
    ArgumentError,
    ArgumentTypeError,
    DataError,
    EmptyDataError,
    LossError,
    NondeterministicLossError,
    NonFiniteCenterError,
    ParameterMismatchError,
)


def mse_of(model, **options):
    x = torch.linspace(-1, 1, 12).view(4, 3)
    return lx.Objective(model, [(x, torch.zeros(4, 1))], "mse_loss", **options)


def flat(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


# --- The loss ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", models.CASES)
def test_center_equals_the_users_own_loop(name):
    """To 1e-6 relative; the last batch is smaller than the others."""
    case = models.case(name)
    objective = lx.Objective(case.model, case.batches, case.loss)
    assert objective.loss() == pytest.approx(case.reference(), rel=1e-6)


def test_center_equals_the_users_own_loop_on_digits():
    model, data, loss = lx.examples.digits()
    x, y = data if isinstance(data, tuple) else map(torch.cat, zip(*data, strict=True))
    with torch.no_grad():
        expected = F.cross_entropy(model.eval()(x).double(), y).item()
    assert lx.Objective(model, data, loss).loss() == pytest.approx(expected, rel=1e-6)


@pytest.mark.data
def test_center_equals_the_users_own_loop_of_lenet_on_fashion_mnist(fashion_mnist):
    x, y = fashion_mnist("t10k", 1000)
    model = models.seeded(models.LeNet)
    loader = DataLoader(TensorDataset(x, y), batch_size=128)

    def loop(m, batch):
        return F.cross_entropy(m(batch[0]), batch[1]), len(batch[1])

    objective = lx.Objective(model, loader, nn.CrossEntropyLoss(), metrics="accuracy")
    found = objective.evaluate()
    assert found["loss"] == pytest.approx(reference.mean_loss(model, loader, loop), rel=1e-6)
    with torch.no_grad():
        assert found["accuracy"] == (model(x).argmax(1) == y).double().mean().item()


@pytest.mark.data
def test_center_equals_the_published_figures_of_the_resnet20(cifar10_test):
    inputs, labels = cifar10_test
    objective = lx.Objective(
        models.resnet20().double(),
        (inputs.double(), labels),
        "cross_entropy",
        metrics="accuracy",
        batch_size=96,
    )
    found = objective.evaluate()
    assert found["loss"] == pytest.approx(0.8219947, abs=1e-7)
    assert found["accuracy"] == pytest.approx(0.804, abs=1e-12)


@pytest.mark.parametrize("split", [[10], [8, 2], [3, 3, 3, 1], [1] * 10])
@pytest.mark.parametrize("kind", ["plain", "ignored", "class weights", "sum", "none", "function"])
def test_trap_18_ragged_batches_give_the_mean_over_all_samples(split, kind):
    """An unweighted mean of batch means is off by 33-41 % on an 8 + 2 split."""
    model = models.mlp(4, 5).double()
    x, y = torch.randn(10, 4).double(), torch.arange(10) % 5
    weight = torch.tensor([1.0, 5.0, 0.1, 2.0, 0.0]).double() if kind == "class weights" else None
    if kind == "ignored":
        y[[0, 1, 2, 8]] = -100
    batches = list(zip(x.split(split), y.split(split), strict=True))
    loss = {
        "sum": nn.CrossEntropyLoss(reduction="sum"),
        "none": nn.CrossEntropyLoss(reduction="none"),
        "function": lambda m, b: F.cross_entropy(m(b[0]), b[1]),
    }.get(kind, nn.CrossEntropyLoss(weight=weight))
    objective = lx.Objective(model, batches, loss)
    with torch.no_grad():
        expected = F.cross_entropy(model(x), y, weight=weight)
    assert objective.loss() == pytest.approx(expected.item(), rel=1e-12)
    twin = copy.deepcopy(model)
    F.cross_entropy(twin(x), y, weight=weight).backward()
    own = torch.cat([p.grad.reshape(-1) for p in twin.parameters()])
    torch.testing.assert_close(objective.gradient(), own, rtol=1e-10, atol=1e-14)


def test_trap_20_every_batch_counts():
    model = models.mlp(3, 1)
    batches = [(torch.full((2, 3), float(k)), torch.zeros(2, 1)) for k in range(6)]
    full = lx.Objective(model, batches, "mse_loss").loss()
    for k in range(6):
        assert full != lx.Objective(model, batches[:k] + batches[k + 1 :], "mse_loss").loss()


def test_trap_19_a_loader_that_shuffles_and_drops_is_frozen():
    """A reshuffled loader that drops its last batch moves the loss by 2e-3 from point to point."""
    data = TensorDataset(torch.randn(25, 3), torch.randn(25, 1))
    loader = DataLoader(data, batch_size=8, shuffle=True, drop_last=True)
    objective = lx.Objective(models.mlp(3, 1), loader, "mse_loss")
    assert len({objective.loss() for _ in range(4)}) == 1
    surface = lx.surface(objective, points=3, progress=False)
    assert surface.loss[1, 1] == objective.loss()
    assert any("shuffle" in note for note in surface.provenance["notes"])


def test_trap_19_freezing_leaves_the_loaders_own_generator_alone():
    generator = torch.Generator().manual_seed(5)
    data = TensorDataset(torch.randn(25, 3), torch.randn(25, 1))
    loader = DataLoader(data, batch_size=8, shuffle=True, generator=generator)
    state = generator.get_state()
    first = lx.Objective(models.mlp(3, 1), loader, "mse_loss").loss()
    assert torch.equal(generator.get_state(), state)
    assert lx.Objective(models.mlp(3, 1), loader, "mse_loss").loss() == first


def test_trap_25_losses_are_summed_in_float64():
    """A float32 sum stops growing: 2^24 + 1 = 2^24."""
    values = torch.cat([torch.tensor([2.0**24]), torch.ones(2000)])
    model = nn.Linear(1, 1, bias=False)
    objective = lx.Objective(
        model, list(values), lambda m, v: v + 0 * m.weight.sum(), count=lambda v: 1
    )
    assert objective.loss() == (2.0**24 + 2000) / 2001


def test_trap_27_the_users_loss_is_called_untouched():
    """With the user's model and batch, whatever they are: no classes, no integers assumed."""
    model, seen = models.mlp(3, 7), []
    batch = {"x": torch.randn(4, 3), "names": ["a", "b", "c", "d"], "extra": (1.5, None)}

    def loss(m, b):
        seen.append((m, b))
        return m(b["x"]).exp().mean(), {"size": len(b["names"])}

    found = lx.Objective(nn.DataParallel(model), [batch], loss).evaluate()
    assert list(found) == ["loss", "size"]
    assert found["size"] == 4
    assert seen[0][0] is model
    assert torch.equal(seen[0][1]["x"], batch["x"])
    assert (seen[0][1]["names"], seen[0][1]["extra"]) == (batch["names"], batch["extra"])


@pytest.mark.parametrize("classes", [2, 3, 117])
def test_trap_27_metrics_work_for_any_number_of_classes(classes):
    model = models.mlp(4, classes)
    x, y = torch.randn(30, 4), torch.arange(30) % classes
    names = ["accuracy", "error"] + (["top5"] if classes >= 5 else [])
    found = lx.Objective(model, (x, y), "cross_entropy", metrics=names, batch_size=7).evaluate()
    with torch.no_grad():
        output = model(x)
    accuracy = (output.argmax(1) == y).double().mean().item()
    assert found["accuracy"] == pytest.approx(accuracy, rel=1e-12)
    assert found["error"] == pytest.approx(1 - accuracy, rel=1e-12)
    if classes >= 5:
        hits = (output.topk(5).indices == y[:, None]).any(1).double().mean().item()
        assert found["top5"] == pytest.approx(hits, rel=1e-12)


def test_further_data_sets_and_own_metrics():
    model = models.mlp(3, 2)
    train, test = ((torch.randn(n, 3), torch.arange(n) % 2) for n in (9, 5))
    found = lx.Objective(
        model,
        train,
        "cross_entropy",
        datasets={"test": test},
        metrics={"spread": lambda output, batch: output.std(1), "n": lambda o, b: (o.sum() * 0, 1)},
        batch_size=4,
    ).evaluate()
    assert list(found) == ["loss", "spread", "n", "test_loss", "test_spread", "test_n"]
    with torch.no_grad():
        for prefix, (x, y) in {"": train, "test_": test}.items():
            assert found[f"{prefix}loss"] == pytest.approx(
                F.cross_entropy(model(x), y).item(), rel=1e-6
            )
            assert found[f"{prefix}spread"] == pytest.approx(
                model(x).std(1).mean().item(), rel=1e-6
            )


def test_weight_decay_is_half_the_squared_norm_of_what_moves():
    model = models.mlp(3, 4, 1)
    plain = mse_of(model)
    decayed = mse_of(model, weight_decay=0.3, params="2.*")
    chosen = torch.cat([p.detach().double().reshape(-1) for p in model[2].parameters()])
    expected = plain.loss() + 0.15 * chosen.square().sum().item()
    assert decayed.loss() == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(
        decayed.gradient(), mse_of(model, params="2.*").gradient() + 0.3 * chosen.float()
    )


def test_a_loss_without_data():
    model = nn.Linear(2, 1, bias=False)
    objective = lx.Objective(model, None, lambda m, batch: m.weight.square().sum())
    assert objective.loss(torch.tensor([3.0, 4.0])) == 25.0


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile], ids=["DataParallel", "compile"])
def test_wrapped_models_give_the_loss_of_the_model_inside(wrap):
    model = models.mlp(3, 4, 1)
    assert mse_of(wrap(model)).loss() == mse_of(model).loss()
    assert mse_of(wrap(model)).model is model


# --- Batch norm ----------------------------------------------------------------------------------


def batch_norm_model():
    model = models.case("conv").model
    with torch.no_grad():
        model.bn.running_mean.normal_()
        model.bn.running_var.uniform_(0.5, 2)
    return model.double()


def own_loss(model, batches):
    return reference.mean_loss(
        model, batches, lambda m, b: (F.cross_entropy(m(b[0]), b[1]), len(b[1]))
    )


def conv_batches():
    return [(x.double(), y) for x, y in models.case("conv").batches]


@pytest.mark.parametrize("training", [False, True])
def test_trap_17_batch_norm_uses_running_statistics_by_default(training):
    model = batch_norm_model()
    expected = own_loss(model, conv_batches())
    model.train(training)
    assert lx.Objective(model, conv_batches(), "cross_entropy").loss() == pytest.approx(
        expected, rel=1e-12
    )


def test_batch_norm_recomputed_at_each_point():
    """Plain averages over the batches of their means and unbiased variances."""
    model = batch_norm_model()
    objective = lx.Objective(model, conv_batches(), "cross_entropy", bn="recompute")
    twin = copy.deepcopy(model).eval()
    point = 1.3 * flat(model)
    nn.utils.vector_to_parameters(point, twin.parameters())
    with torch.no_grad():
        activations = [twin.conv(x) for x, _ in conv_batches()]
    mean, variance = reference.running_statistics(activations)
    twin.bn.running_mean.copy_(mean)
    twin.bn.running_var.copy_(variance)
    assert objective.loss(point) == pytest.approx(own_loss(twin, conv_batches()), rel=1e-10)
    assert objective.loss() != objective.loss(point)


def test_batch_norm_by_batch():
    model = batch_norm_model()
    objective = lx.Objective(model, conv_batches(), "cross_entropy", bn="batch")
    twin = copy.deepcopy(model).eval()

    def normalised(m, batch):
        x = m.conv(batch[0])
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
        x = (x - mean) / (var + m.bn.eps).sqrt()
        x = x * m.bn.weight[:, None, None] + m.bn.bias[:, None, None]
        out = m.head(m.up(x.relu()).relu().mean((2, 3)))
        return F.cross_entropy(out, batch[1]), len(batch[1])

    expected = reference.mean_loss(twin, conv_batches(), normalised)
    assert objective.loss() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("bn", ["recompute", "batch"])
def test_dropout_stays_off_whatever_batch_norm_does(bn):
    model = batch_norm_model().train()
    objective = lx.Objective(model, conv_batches(), "cross_entropy", bn=bn, check=False)
    assert len({objective.loss() for _ in range(3)}) == 1
    model.drop.p = 0.0
    without = lx.Objective(model, conv_batches(), "cross_entropy", bn=bn)
    assert objective.loss() == without.loss()


# --- Gradients -----------------------------------------------------------------------------------


def widened(t):
    return t.double() if t.is_floating_point() else t


@pytest.mark.parametrize("name", models.CASES)
def test_the_gradient_is_that_of_the_mean_over_all_samples(name):
    case = models.case(name)
    case.model.double()
    batches = [b if isinstance(b, dict) else tuple(map(widened, b)) for b in case.batches]
    objective = lx.Objective(case.model, batches, case.loss)
    gradient, point = objective.gradient(), flat(case.model)
    d = torch.randn(len(point), dtype=torch.float64)
    h = 1e-8
    slope = (objective.loss(point + h * d) - objective.loss(point - h * d)) / (2 * h)
    assert (gradient @ d).item() == pytest.approx(slope, rel=2e-5, abs=1e-7)


def test_trap_23_parameters_that_the_loss_does_not_use_have_gradient_zero():
    """Unused and frozen parameters crash other tools."""
    model = models.mlp(3, 4, 1)
    model.unused = nn.Linear(5, 2)
    model[0].weight.requires_grad_(False)
    x = torch.linspace(-1, 1, 12).view(4, 3)

    def loss(m, batch):
        return m[2](m[1](m[0](batch))).square().mean()

    objective = lx.Objective(model, [x], loss, params="*")
    parts = objective.space.unflatten(objective.gradient())
    assert not parts["unused.weight"].any()
    assert not parts["unused.bias"].any()
    assert parts["0.weight"].any()
    frozen = lx.Objective(model, [x], loss, params="0.weight")
    assert torch.equal(frozen.gradient(), parts["0.weight"].flatten())


def test_trap_26_the_gradient_of_a_complex_parameter():
    model = nn.Module()
    model.z = nn.Parameter(torch.tensor([1 + 2j, -3j], dtype=torch.complex128))
    objective = lx.Objective(model, None, lambda m, b: m.z.abs().square().sum(), weight_decay=0.5)
    assert objective.loss() == pytest.approx(1.25 * (1 + 4 + 9))
    expected = torch.tensor([1.0, 2.0, 0.0, -3.0], dtype=torch.float64)
    torch.testing.assert_close(objective.gradient(), 2.5 * expected)


# --- Points --------------------------------------------------------------------------------------


def test_a_point_is_a_vector_a_state_dict_or_a_model():
    model, other = models.mlp(3, 4, 1), models.mlp(3, 4, 1, seed=1)
    objective = mse_of(model)
    expected = mse_of(other).loss()
    for point in (flat(other), other.state_dict(), other):
        assert objective.loss(point) == expected
        assert torch.equal(objective.gradient(point), mse_of(other).gradient())
    assert objective.loss() == mse_of(model).loss() != expected


def test_a_state_dict_brings_its_buffers_and_frozen_parameters():
    case, other = models.case("conv"), models.case("conv").model
    with torch.no_grad():
        for t in [*other.parameters(), *other.buffers()]:
            if t.is_floating_point():
                t.mul_(1.5).add_(0.1)
    case.model.head.requires_grad_(False)
    objective = lx.Objective(case.model, case.batches, case.loss)
    before = reference.everything(case.model)
    expected = lx.Objective(other, case.batches, case.loss).loss()
    assert objective.loss(other.state_dict()) == expected
    assert reference.changes(before, reference.everything(case.model)) == []
    surface = lx.line(objective, points=3, center=other.state_dict(), progress=False)
    assert surface.loss[1] == expected


def test_a_buffer_of_another_shape_is_refused():
    case = models.case("conv")
    point = {**case.model.state_dict(), "bn.running_mean": torch.zeros(5)}
    objective = lx.Objective(case.model, case.batches, case.loss)
    before = reference.everything(case.model)
    with pytest.raises(ParameterMismatchError, match=r"got shape \(5,\) instead of \(4,\) for bn"):
        objective.loss(point)
    assert reference.changes(before, reference.everything(case.model)) == []


def test_the_live_parameters_count_at_each_call():
    """A loop may train in between, and exchange layers."""
    model = models.mlp(3, 4, 1)
    objective = mse_of(model)
    first = objective.loss()
    with torch.no_grad():
        model[0].weight.add_(1.0)
    assert objective.loss() == mse_of(model).loss() != first
    model[0] = nn.Linear(3, 9)
    model[2] = nn.Linear(9, 1)
    assert objective.loss() == mse_of(model).loss()
    assert len(objective.gradient()) == 3 * 9 + 9 + 9 + 1


# --- Refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_fault_10_a_centre_that_is_not_finite_is_refused_by_name(bad):
    model = models.case("conv").model
    objective = lx.Objective(model, models.case("conv").batches, "cross_entropy")
    with torch.no_grad():
        model.conv.weight[0, 0, 0, :2] = bad
    before = reference.everything(model)
    message = r"got NaN or infinity in conv.weight \(2 of 36\)\. Pass allow_nonfinite=True"
    with pytest.raises(NonFiniteCenterError, match=message):
        lx.surface(objective, points=3, progress=False)
    assert reference.changes(before, reference.everything(model)) == []


def test_fault_10_nan_in_buffers_and_frozen_parameters_counts_too():
    model = models.case("conv").model
    model.head.requires_grad_(False)
    with torch.no_grad():
        model.bn.running_var[1] = math.nan
        model.head.bias[0] = math.nan
    objective = lx.Objective(model, models.case("conv").batches, "cross_entropy")
    with pytest.raises(
        NonFiniteCenterError, match=r"head.bias \(1 of 3\); bn.running_var \(1 of 4"
    ):
        objective.loss()


def test_fault_10_allow_nonfinite_goes_on():
    model = models.mlp(3, 4, 1)
    with torch.no_grad():
        model[2].bias[0] = math.inf
    assert mse_of(model, allow_nonfinite=True).loss() == math.inf


def test_fault_10_a_mask_may_hold_minus_infinity():
    model = models.mlp(3, 4, 1)
    model.register_buffer("mask", torch.full((2, 2), -math.inf).triu(1))
    assert math.isfinite(mse_of(model).loss())


@pytest.mark.parametrize(
    "data",
    [
        [],
        iter([]),
        (torch.empty(0, 3), torch.empty(0, 1)),
        DataLoader(TensorDataset(torch.empty(0))),
    ],
    ids=["list", "iterator", "tensors", "loader"],
)
def test_fault_14_no_data_is_an_error(data):
    objective = lx.Objective(models.mlp(3, 4, 1), data, "mse_loss")
    with pytest.raises(EmptyDataError):
        objective.loss()


def test_fault_14_only_ignored_labels_are_no_data():
    labels = torch.full((4,), -100)
    objective = lx.Objective(models.mlp(3, 2), (torch.randn(4, 3), labels), "cross_entropy")
    with pytest.raises(EmptyDataError):
        lx.surface(objective, points=3, progress=False)


def test_fault_15_a_generator_is_consumed_once():
    x = torch.linspace(-1, 1, 12).view(4, 3)
    batches = [(x, torch.zeros(4, 1)), (2 * x, torch.ones(4, 1))]
    objective = lx.Objective(models.mlp(3, 4, 1), (b for b in batches), "mse_loss")
    expected = lx.Objective(models.mlp(3, 4, 1), batches, "mse_loss").loss()
    assert objective.loss() == objective.loss() == expected


def test_fault_15_a_generator_cannot_be_read_again():
    objective = lx.Objective(models.mlp(3, 1), iter([]), "mse_loss", cache="none")
    with pytest.raises(DataError, match="pass a re-iterable"):
        objective.loss()


class Noisy(nn.Module):
    """Dropout that is on in evaluation mode too."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 8), AlwaysDropout(), nn.Linear(8, 1))

    def forward(self, x):
        return self.inner(x)


class AlwaysDropout(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, training=True)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 3))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return F.linear(x, self.weight) + self.calls


def noisy_loss(model, batch):
    return F.mse_loss(model(batch[0]), batch[1]) * (1 + 0.01 * torch.rand(()))


@pytest.mark.parametrize(
    ("model", "loss", "culprit"),
    [
        (Noisy(), "mse_loss", r"module `inner.1` \(AlwaysDropout\) gives different outputs"),
        (models.mlp(3, 1), noisy_loss, "the loss function itself differs on batch 0"),
        (Counting(), "mse_loss", "module `model` .Counting. gives different outputs"),
    ],
    ids=["dropout", "loss", "state"],
)
def test_fault_16_a_loss_that_differs_from_itself_is_refused_with_its_culprit(model, loss, culprit):
    x = torch.linspace(-1, 1, 12).view(4, 3)
    objective = lx.Objective(model, [(x, torch.zeros(4, 1))], loss)
    before = reference.everything(model)
    with pytest.raises(NondeterministicLossError, match=culprit) as caught:
        lx.surface(objective, points=3, progress=False)
    a, b = map(float, re.search(r"got (\S+) and (\S+):", str(caught.value)).groups())
    assert a != b
    assert reference.changes(before, reference.everything(model)) == []


@pytest.mark.parametrize(("model", "loss"), [(Noisy(), "mse_loss"), (models.mlp(3, 1), noisy_loss)])
def test_fault_16_without_the_check_every_point_sees_the_same_draws(model, loss):
    x = torch.linspace(-1, 1, 12).view(4, 3)
    objective = lx.Objective(model, [(x, torch.zeros(4, 1))], loss, check=False)
    torch.manual_seed(1)
    first, slope = lx.surface(objective, points=3, progress=False), objective.gradient()
    torch.manual_seed(2)
    assert lx.surface(objective, points=3, progress=False).equals(first)
    assert torch.equal(objective.gradient(), slope)
    assert first.loss[1, 1] == objective.loss()


def test_fault_16_differences_of_rounding_are_no_error():
    scale = iter([1.0, 1.0 + 1e-8] * 50)
    x = torch.linspace(-1, 1, 12).view(4, 3)
    objective = lx.Objective(
        models.mlp(3, 1).double(), [x.double()], lambda m, b: m(b).square().mean() * next(scale)
    )
    assert lx.line(objective, points=3, progress=False).complete


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "got int"),
        (1.5, "got float"),
        (None, "got None"),
        (torch.ones(4), "must return a 0-d tensor"),
        (torch.tensor(3), "floating-point tensor"),
        ((torch.tensor(1.0), 2.0), "floating-point tensor, got"),
        ("loss", "got str"),
    ],
)
def test_fault_18_what_is_not_a_loss_is_refused(value, message):
    model = models.mlp(3, 1)
    before = reference.everything(model)
    with pytest.raises(LossError, match=message):
        lx.surface(model, [torch.ones(4, 3)], lambda m, b: value, points=3, progress=False)
    assert reference.changes(before, reference.everything(model)) == []


def test_fault_18_losses_per_sample_with_reduction_none():
    x = torch.randn(5, 3)
    objective = lx.Objective(
        models.mlp(3, 1), [x[:4], x[4:]], lambda m, b: m(b)[:, 0], reduction="none"
    )
    with torch.no_grad():
        assert objective.loss() == pytest.approx(objective.model(x).mean().item(), rel=1e-6)


def test_metrics_must_be_the_same_at_every_point():
    calls = []

    def loss(m, batch):
        calls.append(1)
        return m(batch).mean(), {f"m{len(calls) // 3}": 1.0}

    with pytest.raises(LossError, match=r"must return the same metrics at every point"):
        lx.surface(models.mlp(3, 1), [torch.ones(4, 3)], loss, points=3, progress=False)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"bn": "train"},
            ArgumentError,
            "`bn` must be one of eval, recompute, batch, got 'train'.",
        ),
        (
            {"weight_decay": -1},
            ArgumentError,
            "`weight_decay` must be a finite number of at least 0",
        ),
        ({"weight_decay": math.nan}, ArgumentError, "`weight_decay` must be a finite number"),
        (
            {"datasets": {"a b": []}},
            ArgumentError,
            "`datasets` must have identifiers other than 'data' as names, got",
        ),
        (
            {"precision": "fp64"},
            ArgumentError,
            "`precision` must be one of model, fp32, tf32, bf16",
        ),
        ({"precision": "tf32"}, ArgumentError, "`precision='tf32'` needs a CUDA device, got cpu."),
        ({"params": "nope"}, ParameterMismatchError, "`params` must name parameters of the model"),
        ({"cache": "disk"}, ArgumentError, "`cache` must be one of"),
    ],
)
def test_unknown_options_are_refused(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        mse_of(models.mlp(3, 4, 1), **options).loss()


def test_precision_other_than_the_models_needs_float32():
    with pytest.raises(
        ArgumentError, match="unless all parameters are float32, got 'bf16' for tor"
    ):
        mse_of(models.mlp(3, 4, 1).double(), precision="bf16")


def test_precision_is_used_and_put_back():
    model = models.mlp(30, 40, 10)
    x, y = torch.randn(9, 30), torch.arange(9)
    before = torch.get_float32_matmul_precision()
    losses = {
        p: lx.Objective(model, (x, y), "cross_entropy", precision=p).loss()
        for p in ("model", "fp32", "bf16")
    }
    assert losses["fp32"] == losses["model"]
    assert losses["bf16"] != losses["model"]
    assert losses["bf16"] == pytest.approx(losses["model"], rel=0.02)
    assert torch.get_float32_matmul_precision() == before
    assert not torch.is_autocast_enabled("cpu")


def test_what_is_no_model_is_refused():
    with pytest.raises(ArgumentTypeError, match=r"`model` must be a torch.nn.Module, got int\."):
        lx.Objective(3, [], "mse_loss")


def test_an_objective_says_what_it_is():
    text = repr(mse_of(models.mlp(3, 4, 1)))
    assert text.startswith("Objective(Sequential, 21 parameters in 4 tensors, loss: mse_loss")


def test_fault_17_an_error_of_the_loss_says_in_which_batch():
    def loss(m, batch):
        if batch[0, 0] == 2:
            raise ZeroDivisionError("mine")
        return m(batch).mean()

    batches = [torch.full((2, 3), float(k)) for k in range(4)]
    objective = lx.Objective(models.mlp(3, 1), batches, loss)
    with pytest.raises(ZeroDivisionError, match="mine") as caught:
        objective.loss()
    assert any("in batch 2 of data" in note for note in caught.value.__notes__)


def test_a_loss_that_differentiates_gets_gradients():
    """Gradient penalties and physics-informed losses."""
    model = models.mlp(3, 4, 1, act=nn.Tanh).double()
    x = torch.linspace(-1, 1, 12).view(4, 3).double()

    def loss(m, batch):
        batch = batch.clone().requires_grad_()
        (slope,) = torch.autograd.grad(m(batch).sum(), batch, create_graph=True)
        return slope.square().mean()

    objective = lx.Objective(model, [x], loss)
    assert objective.loss() == pytest.approx(loss(model, x).item(), rel=1e-12)
    assert lx.line(objective, points=3, progress=False).loss[1] == objective.loss()


def test_a_data_set_cannot_take_the_place_of_the_data():
    x, y = torch.randn(6, 3), torch.arange(6) % 2
    with pytest.raises(ArgumentError, match="other than 'data'"):
        lx.Objective(models.mlp(3, 2), (x, y), "cross_entropy", datasets={"data": (x, y)})
    with pytest.raises(ArgumentTypeError, match=r"must be a mapping .*got tuple"):
        lx.Objective(models.mlp(3, 2), (x, y), "cross_entropy", datasets=(x, y))


def test_columns_must_differ():
    x, y = torch.randn(6, 3), torch.arange(6) % 2
    objective = lx.Objective(
        models.mlp(3, 2),
        (x, y),
        "cross_entropy",
        metrics={"test_loss": lambda output, batch: output.sum(1)},
        datasets={"test": (x, y)},
    )
    with pytest.raises(LossError, match="different columns"):
        objective.evaluate()


def test_instance_norms_are_recomputed_too():
    """To them, unlike to batch norms, a momentum of None is 0."""
    torch.manual_seed(0)
    norm = nn.InstanceNorm1d(2, track_running_stats=True)
    model = nn.Sequential(norm, nn.Flatten(), nn.Linear(10, 2)).eval()
    batches = [(3 * torch.randn(4, 2, 5) + 1, torch.arange(4) % 2) for _ in range(3)]
    found = lx.Objective(model, batches, "cross_entropy", bn="recompute").loss()
    means = torch.stack([x.mean((0, 2)) for x, _ in batches]).mean(0)
    variances = torch.stack([x.var(2).mean(0) for x, _ in batches]).mean(0)
    norm.running_mean.copy_(means)
    norm.running_var.copy_(variances)
    assert found == pytest.approx(lx.Objective(model, batches, "cross_entropy").loss(), rel=1e-6)


def test_a_gradient_needs_statistics_that_stay():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    objective = lx.Objective(
        model, (torch.randn(6, 3), torch.arange(6) % 2), "cross_entropy", bn="recompute"
    )
    with pytest.raises(ArgumentError, match="`bn` must be 'eval' or 'batch' for a gradient"):
        objective.gradient()
    with torch.inference_mode(), pytest.raises(ArgumentError, match="inference_mode"):
        objective.gradient()


def test_a_gradient_of_nothing_is_an_error_and_of_a_constant_zero():
    model, x = models.mlp(3, 2), torch.randn(6, 3)
    nothing = lx.Objective(model, (x, torch.full((6,), -100)), "cross_entropy")
    with pytest.raises(EmptyDataError, match="must count"):
        nothing.gradient()
    constant = lx.Objective(model, [x], lambda m, batch: batch.square().mean())
    assert constant.gradient().abs().max() == 0


@pytest.mark.parametrize("precision", ["model", "bf16"])
def test_the_users_autocast_sees_every_point(precision):
    """Autocast keeps cast weights while its context lasts; ours move under it."""
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    x, y = torch.randn(37, 6), torch.arange(37) % 3
    objective = lx.Objective(model, (x, y), "cross_entropy", precision=precision)
    point = 3 * objective.space.gather()
    moved = copy.deepcopy(model)
    nn.utils.vector_to_parameters(point, moved.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        expected = nn.functional.cross_entropy(moved(x), y).item()
        before = model(x)
        assert objective.loss(point) == pytest.approx(expected, rel=1e-6)
        assert torch.equal(model(x), before)


def test_only_the_wrappers_of_torch_are_looked_through():
    """A wrapper of the user's may hand attributes of a compiled module on."""

    class Wrapper(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.head = inner, nn.Linear(2, 2)

        def __getattr__(self, name):
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(self.inner, name)

        def forward(self, x):
            return self.head(self.inner(x))

    model = Wrapper(torch.compile(models.mlp(3, 2), backend="eager")).eval()
    x, y = torch.randn(6, 3), torch.arange(6) % 2
    expected = nn.functional.cross_entropy(model(x), y).item()
    assert lx.Objective(model, (x, y), "cross_entropy").loss() == pytest.approx(expected, rel=1e-6)


def test_a_default_device_is_not_ours():
    model, data = models.mlp(3, 4, 2), (torch.randn(6, 3), torch.arange(6) % 2)
    expected = lx.surface(model, data, "cross_entropy", points=3, progress=False).loss
    with torch.device("meta"):
        found = lx.surface(model, data, "cross_entropy", points=3, progress=False).loss
    assert (found == expected).all()


def test_a_class_in_place_of_a_criterion_is_named():
    with pytest.raises(ArgumentTypeError, match=r"write CrossEntropyLoss\(\)"):
        lx.Objective(models.mlp(3, 2), (torch.ones(2, 3), torch.ones(2)), nn.CrossEntropyLoss)
