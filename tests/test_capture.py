"""Captured graphs against the models themselves."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import models
import pytest
import torch
from captured import (
    CASES,
    captured,
    case_and_plan,
    environment,
    leaves,
    move,
    operators,
    run,
    slot_named,
)
from torch import Tensor, nn
from torch.nn import functional as F

from landscapex.engine.capture import evaluate_part, form_of
from landscapex.engine.plan import NotCapturedError
from landscapex.engine.program import Grid
from landscapex.engine.sharing import operator_name
from landscapex.errors import ArgumentError
from landscapex.losses.binding import resolve


@pytest.fixture(autouse=True)
def _quiet_models() -> Iterator[None]:
    """Models and data here come from the global generator; nothing outside sees it move."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("name", CASES)
def test_the_graph_computes_what_the_model_computes_at_moved_points(name):
    """Also for batches of other sizes, one of a single sample among them."""
    case, plan = case_and_plan(name)
    measure = resolve(case.loss, model=case.model)
    original = copy.deepcopy(case.model.state_dict())
    one = torch.utils._pytree.tree_map(lambda t: t[:1], case.batches[0])
    try:
        for seed in range(2):
            move(case.model, seed=seed)
            for batch in [*case.batches, one]:
                with torch.no_grad():
                    loss, outputs, targets = measure.captured(case.model, batch)
                    assert torch.allclose(loss, measure(case.model, batch).loss)
                found = run(plan, batch)
                for expected, got in zip((loss, *outputs, *targets), found, strict=True):
                    assert torch.allclose(expected, got, rtol=1e-5, atol=1e-6)
    finally:
        case.model.load_state_dict(original)


def test_values_have_their_kind_shape_and_rows():
    _, plan = case_and_plan("transformer")
    by_kind: dict[str, set[str]] = {}
    for node in plan.graph.nodes:
        if node.op == "call_function" and node.name in plan.values:
            kind = plan.values[node.name].kind
            by_kind.setdefault(kind, set()).add(operator_name(node))
    assert {"eq.Scalar", "masked_fill.Scalar", "_to_copy"} <= by_kind["batch"]
    assert {"linear", "scaled_dot_product_attention", "cross_entropy_loss"} <= by_kind["live"]
    # 2 heads are rows of their own; the encoder works on 7 positions of each sample
    rows = {value.rows for value in plan.values.values() if value.rows}
    assert rows == {(1,), (2,), (7,)}
    loss, logits, target = (plan.values[name] for name in plan.outputs)
    assert (loss.shape, loss.rows, loss.grid) == ((), (), Grid.FULL)
    assert (logits.shape, logits.rows) == ((None, 4), (1,))
    assert (target.kind, target.dtype) == ("batch", torch.int64)


def test_what_needs_no_data_is_a_constant_or_a_weight():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(3, 3))

        def forward(self, x: Tensor) -> Tensor:
            mask = torch.ones(3, 3).tril()
            return x @ (self.w * mask).t() + torch.zeros(x.shape[0], 3)

    plan = captured(Net(), "mse_loss", (torch.randn(4, 3), torch.randn(4, 3)))
    kinds = {
        operator_name(node): plan.values[node.name].kind
        for node in plan.graph.nodes
        if node.op == "call_function" and node.name in plan.values
    }
    assert kinds["ones"] == kinds["tril"] == "constant"
    assert kinds["mul.Tensor"] == "weight"
    assert kinds["zeros"] == "batch"  # its size is that of the batch
    assert kinds["matmul"] == "live"


def test_several_tensors_of_one_node_have_values_of_their_own():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.lstm(x.transpose(0, 1))[1][0][0]

    batch = (torch.randn(4, 5, 3), torch.randint(4, (4,)))
    plan = captured(models.seeded(Net), "cross_entropy", batch)
    assert plan.values["lstm.0"].shape == (5, None, 4)
    assert plan.values["lstm.1"].shape == plan.values["lstm.2"].shape == (1, None, 4)
    taken = next(n for n in plan.graph.nodes if operator_name(n) == "getitem")
    assert plan.values[taken.name] == plan.values["lstm.1"]
    found = evaluate_part(plan, ["lstm.0", taken.name], environment(plan, batch, ()))
    assert torch.equal(found["lstm.0"][-1], found[taken.name][0])


def test_outputs_without_a_single_tensor_each_leave_the_loss_alone():
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return (model(batch[0]) - batch[1]).square().mean()

    plan = captured(models.mlp(4, 3), loss, (torch.randn(4, 4), torch.randn(4, 3)))
    assert len(plan.outputs) == 1
    assert plan.values[plan.outputs[0]].shape == ()


def test_a_broadcast_that_changes_nothing_is_left_out():
    _, plan = case_and_plan("autoencoder")
    assert operators(plan) == ["linear", "tanh", "linear", "mse_loss"]
    assert plan.outputs[2] == plan.inputs[1]


def test_a_summed_torch_loss_is_captured_as_its_mean():
    batch = (torch.randn(4, 4), torch.randint(3, (4,)))
    model = models.mlp(4, 3)
    for criterion in (nn.CrossEntropyLoss(reduction="sum"), nn.CrossEntropyLoss(reduction="none")):
        plan = captured(model, criterion, batch)
        assert torch.allclose(run(plan, batch)[0], F.cross_entropy(model(batch[0]), batch[1]))


def test_the_criterion_keeps_its_options():
    weight = torch.tensor([1.0, 2.0, 0.5])
    options = {"weight": weight, "label_smoothing": 0.1, "ignore_index": 1}
    batch = (torch.randn(8, 4), torch.arange(8) % 3)
    model = models.mlp(4, 3)
    plan = captured(model, nn.CrossEntropyLoss(**options), batch)
    constant = next(slot for slot in plan.slots if slot.role == "constant")
    assert torch.equal(constant.tensor, weight)
    assert not constant.moves
    expected = F.cross_entropy(model(batch[0]), batch[1], **options)
    assert torch.allclose(run(plan, batch)[0], expected)


def test_a_criterion_of_the_users_own_shows_output_and_target():
    class Scaled(nn.Module):
        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            return 2 * F.mse_loss(output, target)

    batch = (torch.randn(4, 4), torch.randn(4, 3))
    model = models.mlp(4, 3)
    plan = captured(model, Scaled(), batch)
    loss, output, target = run(plan, batch)
    assert torch.allclose(loss, 2 * F.mse_loss(model(batch[0]), batch[1]))
    assert torch.allclose(output, model(batch[0]))
    assert torch.equal(target, batch[1])


def test_scalars_after_the_loss_are_not_mixed_samples():
    """A penalty on the weights is added to the mean over the batch."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        penalty = sum(p.square().sum() for p in model.parameters())
        return 2 * F.mse_loss(model(batch[0]), batch[1]) + 1e-3 * penalty

    batch = (torch.randn(4, 4), torch.randn(4, 3))
    model = models.mlp(4, 3)
    plan = captured(model, loss, batch)
    move(model, seed=1)
    assert torch.allclose(run(plan, batch)[0], loss(model, batch))


def test_mappings_lists_and_fixed_values_are_batches_too():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, parts: list[Tensor], *, scale: float, note: None, **other: Any) -> Tensor:
            return self.linear(parts[0] + parts[1]) * scale

    def make(n: int) -> dict[str, Any]:
        parts = [torch.randn(n, 4), torch.randn(n, 4)]
        return {"parts": parts, "scale": 2.5, "note": None, "y": torch.randn(n, 3)}

    model = models.seeded(Net)
    plan = captured(model, "mse_loss", make(8))
    assert len(plan.inputs) == 3
    batch = make(5)
    assert torch.allclose(run(plan, batch)[0], resolve("mse_loss", model=model)(model, batch).loss)


def test_a_mapping_of_another_class_stays_one():
    class Encoding(dict[str, Tensor]):
        @property
        def input_ids(self) -> Tensor:
            return self["input_ids"]

    def loss(model: nn.Module, batch: Encoding) -> Tensor:
        return F.cross_entropy(model(batch.input_ids).logits.mean(1), batch["labels"])

    model = models.seeded(models.TiedLMHeadModel)
    batch = Encoding(input_ids=torch.randint(20, (4, 5)), labels=torch.randint(20, (4,)))
    plan = captured(model, loss, batch)
    assert torch.allclose(run(plan, batch)[0], loss(model, batch))


@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_a_batch_of_any_size_serves_as_example(n):
    """Sizes that a layer has as well: 5 classes, 7 inputs."""
    model = models.mlp(7, 5)
    plan = captured(model, "cross_entropy", (torch.randn(n, 7), torch.randint(5, (n,))))
    assert plan.values[plan.inputs[0]].shape == (None, 7)
    batch = (torch.randn(9, 7), torch.randint(5, (9,)))
    assert torch.allclose(run(plan, batch)[0], F.cross_entropy(model(batch[0]), batch[1]))


def test_tensors_of_a_batch_need_not_have_samples():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor, sizes: Tensor) -> Tensor:
            return self.linear(x)

    batch = (torch.randn(6, 4), torch.randn(2), torch.randint(3, (6,)))
    plan = captured(models.seeded(Net), "cross_entropy", batch)
    assert [plan.values[name].shape for name in plan.inputs] == [(None, 4), (2,), (None,)]


def test_the_size_of_the_example_is_no_other_size_of_the_batch():
    """Export decides by it; the example must not make an accident the rule."""
    batch = (torch.randn(6, 5), torch.rand(6, 7))
    plan = captured(models.mlp(5, 7), "mse_loss", batch)
    placeholders = {node.name: node for node in plan.graph.nodes if node.op == "placeholder"}
    sizes = [placeholders[name].meta["val"].shape[0].node.hint for name in plan.inputs]
    assert sizes == [11, 11]


def test_batches_with_other_strides_fit_the_plan():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(24, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.flatten(1))

    model = models.seeded(Net)
    batch = (torch.randn(4, 2, 3, 4), torch.randint(3, (4,)))
    plan = captured(model, "cross_entropy", batch)
    last = (batch[0].contiguous(memory_format=torch.channels_last), batch[1])
    assert torch.equal(run(plan, last)[0], run(plan, batch)[0])


def test_batches_of_one_form_differ_in_their_samples_only():
    x, y = torch.zeros(8, 3), torch.zeros(8, dtype=torch.long)
    form = form_of({"x": x, "y": y, "scale": 1.0})
    assert form_of({"x": x[:2] + 1, "y": y[:2], "scale": 1.0}) == form
    for other in (
        {"x": x, "y": y, "scale": 2.0},
        {"x": x, "z": y, "scale": 1.0},
        {"x": x[:, :2], "y": y, "scale": 1.0},
        {"x": x.double(), "y": y, "scale": 1.0},
        {"x": x, "y": y[:3], "scale": 1.0},
        {"x": x, "y": [y], "scale": 1.0},
    ):
        assert form_of(other) != form


def test_trap_22_tied_weights_are_one_slot_under_their_first_name():
    """The graph reads the last name of a tied parameter; directions go by the first."""
    case, plan = case_and_plan("tied language model")
    slot = slot_named(plan, "embedding.weight")
    assert slot.aliases == ("head.weight",)
    assert slot.moves
    assert [s.name for s in plan.slots].count("head.weight") == 0
    readers = [name for name, i in plan.slot_of.items() if plan.slots[i] is slot]
    assert all(plan.values[name].grid == Grid.AFFINE for name in readers)
    assert "embedding.weight is also head.weight" in plan.notes
    frozen = captured(case.model, None, case.batches[0], moving=["mix.weight", "mix.bias"])
    assert not slot_named(frozen, "embedding.weight").moves


class TwoOverOneStorage(nn.Module):
    """Two Parameters that are not one object, over the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.b.weight = nn.Parameter(self.a.weight.data)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).tanh())


class InAList(nn.Module):
    """A parameter that is read through a Python list."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.kept = [self.linear.weight]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.linear(x).tanh(), self.kept[0])


class AsBuffer(nn.Module):
    """A buffer over the memory of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("seen", self.linear.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.linear(x).tanh(), self.seen)


@pytest.mark.parametrize(
    ("build", "name", "aliases"),
    [
        (TwoOverOneStorage, "a.weight", ("b.weight",)),
        (InAList, "linear.weight", ()),
        (AsBuffer, "linear.weight", ("seen",)),
    ],
)
def test_slots_go_by_memory(build, name, aliases):
    """Names would hide that both readers move; at the centre nobody would notice."""
    model = models.seeded(build)
    batch = (torch.randn(4, 4), torch.randint(4, (4,)))
    plan = captured(model, "cross_entropy", batch)
    slot = slot_named(plan, name)
    assert (slot.aliases, slot.role, slot.moves) == (aliases, "parameter", True)
    assert sorted(s.name for s in plan.slots if len(s.shape) > 1) == [name]
    moved = {s.name: s.tensor + 0.5 * torch.randn(s.shape) for s in plan.slots}
    env = {node: moved[plan.slots[i].name] for node, i in plan.slot_of.items()}
    env |= dict(zip(plan.inputs, batch, strict=True))
    got = evaluate_part(plan, plan.outputs[:1], env)[plan.outputs[0]]
    with torch.no_grad():
        for s in plan.slots:
            s.tensor.copy_(moved[s.name])  # the model's own memory
        assert torch.allclose(F.cross_entropy(model(batch[0]), batch[1]), got)


def test_a_listed_parameter_is_noted():
    plan = captured(models.seeded(InAList), "cross_entropy", (torch.randn(4, 4), torch.arange(4)))
    assert any(note.endswith("is linear.weight") for note in plan.notes)


def test_a_view_of_a_moving_parameter_is_refused():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.register_buffer("row", self.linear.weight.detach()[1])

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) + self.row

    batch = (torch.randn(4, 4), torch.randint(4, (4,)))
    model = models.seeded(Net)
    with pytest.raises(NotCapturedError, match="row shares part of its memory with a parameter"):
        captured(model, "cross_entropy", batch)
    plan = captured(model, "cross_entropy", batch, moving=["linear.bias"])
    assert slot_named(plan, "row").role == "buffer"


def test_flattened_weights_share_a_storage_without_overlap():
    flat = nn.Parameter(torch.randn(20))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(flat.data[:16].view(4, 4))
            self.b = nn.Parameter(flat.data[16:])

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.w, self.b)

    plan = captured(Net(), "cross_entropy", (torch.randn(4, 4), torch.randint(4, (4,))))
    assert [(slot.name, slot.shape) for slot in plan.slots] == [("w", (4, 4)), ("b", (4,))]


def test_slots_without_users_are_dropped():
    _, plan = case_and_plan("conv")
    assert "bn.num_batches_tracked" not in [slot.name for slot in plan.slots]
    assert slot_named(plan, "bn.running_var").role == "buffer"
    placeholders = {node.name for node in plan.graph.nodes if node.op == "placeholder"}
    assert placeholders == {*plan.slot_of, *plan.inputs}


def test_a_criterion_that_closes_over_the_model_reads_its_live_parameters():
    model = models.mlp(4, 3)

    def loss(_: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(F.linear(batch[0], model[0].weight, model[0].bias), batch[1])

    plan = captured(model, loss, (torch.randn(4, 4), torch.randint(3, (4,))))
    assert [(slot.name, slot.moves) for slot in plan.slots] == [
        ("0.weight", True),
        ("0.bias", True),
    ]


def test_wrappers_are_looked_through():
    model = models.mlp(4, 3)
    plan = captured(
        nn.DataParallel(model), "cross_entropy", (torch.randn(4, 4), torch.arange(4) % 3)
    )
    assert plan.slots[0].name == "0.weight"
    assert "DataParallel unwrapped" in plan.notes


def test_only_what_is_needed_runs():
    case, plan = case_and_plan("mlp")
    nodes = {operator_name(n): n.name for n in plan.graph.nodes if n.op == "call_function"}
    given = {nodes["relu"]: torch.ones(2, 16)}
    needed = {name: slot.tensor for name, i in plan.slot_of.items() if (slot := plan.slots[i])}
    found = evaluate_part(plan, [plan.outputs[1]], given | needed)
    assert torch.allclose(found[plan.outputs[1]], case.model[2](torch.ones(2, 16)))
    with pytest.raises(ArgumentError, match=r"`env` must hold a value for tensors_0, got none\."):
        evaluate_part(plan, [nodes["relu"]], needed)
    with pytest.raises(ArgumentError, match="must hold a value for p_model_0_weight"):
        evaluate_part(plan, plan.outputs, dict(zip(plan.inputs, case.batches[0], strict=True)))


def test_batch_only_values_need_the_batch_alone():
    case, plan = case_and_plan("transformer")
    batch = case.batches[0]
    names = [n for n, v in plan.values.items() if v.kind == "batch" and n not in plan.inputs]
    env = dict(zip(plan.inputs, leaves(batch), strict=True))
    found = evaluate_part(plan, names, env)
    masks = [t for t in found.values() if t.dtype == torch.bool]
    assert any(torch.equal(mask, batch["attention_mask"] == 0) for mask in masks)


def test_float64_in_means_float64_out():
    case, plan = case_and_plan("lstm")  # its zero states are float32 in the graph
    env = environment(plan, case.batches[0], ())
    found = evaluate_part(plan, plan.outputs, env)
    x, y = case.batches[0]
    expected = F.cross_entropy(copy.deepcopy(case.model).double()(x.double()), y)
    assert found[plan.outputs[0]].dtype == torch.float64
    assert abs(found[plan.outputs[0]] - expected) < 1e-12
