"""Model, data and loss bound together: the loss at a point."""

from __future__ import annotations

import copy

import models
import pytest
import reference
import torch
from objective_cases import flat, mse_of
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import landscapex as lx
from landscapex.errors import ParameterMismatchError

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


# --- Precision, autocast, wrappers, devices -------------------------------------------------------


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


def test_an_objective_says_what_it_is():
    text = repr(mse_of(models.mlp(3, 4, 1)))
    assert text.startswith("Objective(Sequential, 21 parameters in 4 tensors, loss: mse_loss")


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
