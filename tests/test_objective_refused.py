"""What an objective refuses, with what arrived, and what it lets pass."""

from __future__ import annotations

import math
import re

import models
import pytest
import reference
import torch
from objective_cases import mse_of
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


PLANES = [lx.line, lx.surface, lx.volume, lx.curvature_map, lx.hessian]


@pytest.mark.parametrize("function", PLANES, ids=lambda f: f.__name__)
def test_options_of_an_objective_are_named_as_such(function):
    data = torch.ones(4, 3), torch.zeros(4, 1)
    name, model = function.__name__, models.mlp(3, 4, 1)
    message = re.escape(
        f"`datasets`, `bn` must be given to an Objective, got as an option of {name}: write "
        f"lx.{name}(lx.Objective(model, data, loss, datasets=..., bn=...), ...)."
    )
    with pytest.raises(ArgumentTypeError, match=message):
        function(model, data, "mse_loss", datasets={"test": data}, bn="eval")
    with pytest.raises(TypeError, match=f"{name}.*unexpected keyword argument 'pints'"):
        function(model, data, "mse_loss", pints=3)


def test_precision_other_than_the_models_needs_float32():
    with pytest.raises(
        ArgumentError, match="unless all parameters are float32, got 'bf16' for tor"
    ):
        mse_of(models.mlp(3, 4, 1).double(), precision="bf16")


def test_what_is_no_model_is_refused():
    with pytest.raises(ArgumentTypeError, match=r"`model` must be a torch.nn.Module, got int\."):
        lx.Objective(3, [], "mse_loss")


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


def test_a_class_in_place_of_a_criterion_is_named():
    with pytest.raises(ArgumentTypeError, match=r"write CrossEntropyLoss\(\)"):
        lx.Objective(models.mlp(3, 2), (torch.ones(2, 3), torch.ones(2)), nn.CrossEntropyLoss)


def test_sparse_buffers_are_refused_by_name():
    model = nn.Linear(2, 3)
    model.register_buffer("adjacency", torch.eye(3).to_sparse())
    message = r"buffers must be dense.*got adjacency \(torch.sparse_coo\)"
    with pytest.raises(ParameterMismatchError, match=message):
        lx.Objective(model, (torch.randn(4, 2), torch.zeros(4, dtype=int)), "cross_entropy")
