"""The labels of captured values: what they claim is checked in float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import models
import pytest
import torch
from captured import CASES, captured, case_and_plan, check_labels
from torch import Tensor, nn
from torch.nn import functional as F

from landscapex.engine.plan import Plan
from landscapex.engine.program import Grid
from landscapex.engine.sharing import RULES, label


@pytest.fixture(autouse=True)
def _quiet_models() -> Iterator[None]:
    """Models and data here come from the global generator; nothing outside sees it move."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("name", CASES)
def test_labels_hold_in_float64(name):
    """CAPTURE 5: NONE is constant, AFFINE is linear in the coordinates; FULL is neither."""
    case, plan = case_and_plan(name)
    assert check_labels(plan, case.batches[0]) >= {Grid.AFFINE, Grid.FULL}


# What each operator makes of x (fixed data), a = x * w (affine), f = tanh(a) (full), weights w
# that move and weights c that do not.
SHARED: list[tuple[str, Callable[[Any], Tensor], str]] = [
    ("linear", lambda v: F.linear(v.x, v.w, v.b), "AFFINE"),
    ("linear of affine, fixed weight", lambda v: F.linear(v.a, v.c, v.b), "AFFINE"),
    ("linear of affine", lambda v: F.linear(v.a, v.w), "FULL"),
    ("linear of full", lambda v: F.linear(v.f, v.c), "FULL"),
    ("linear of nothing that moves", lambda v: F.linear(v.x, v.c), "NONE"),
    ("conv", lambda v: F.conv2d(v.image, v.kernel), "AFFINE"),
    ("conv of affine", lambda v: F.conv2d(v.image * v.b[0], v.kernel), "FULL"),
    ("conv transpose", lambda v: F.conv_transpose2d(v.image, v.kernel), "AFFINE"),
    ("conv, padding by name", lambda v: F.conv2d(v.image, v.kernel, padding="same"), "AFFINE"),
    ("conv1d", lambda v: F.conv1d(v.image[:, :, 0], v.kernel[:, :, 0]), "AFFINE"),
    ("add", lambda v: v.a + v.b, "AFFINE"),
    ("sub", lambda v: v.x - v.a, "AFFINE"),
    ("rsub", lambda v: 1 - v.a, "AFFINE"),
    ("add full", lambda v: v.a + v.f, "FULL"),
    ("mul", lambda v: v.x * v.a, "AFFINE"),
    ("mul by a number", lambda v: v.a * 3.0, "AFFINE"),
    ("mul of two affine ones", lambda v: v.a * v.b, "FULL"),
    ("square", lambda v: v.a * v.a, "FULL"),
    ("div", lambda v: v.a / (v.x.abs() + 1), "AFFINE"),
    ("div by affine", lambda v: v.x / (v.a + 9), "FULL"),
    ("div by a moving weight", lambda v: v.x / v.b, "FULL"),
    ("neg", lambda v: -v.a, "AFFINE"),
    ("matmul", lambda v: v.a @ v.c, "AFFINE"),
    ("matmul of two affine ones", lambda v: v.a @ v.w, "FULL"),
    ("bmm", lambda v: torch.bmm(v.a[:, None], v.x[:, :, None]), "AFFINE"),
    ("addmm", lambda v: torch.addmm(v.b, v.x, v.w), "AFFINE"),
    ("addmm of two affine ones", lambda v: torch.addmm(v.b, v.a, v.w), "FULL"),
    ("bilinear", lambda v: F.bilinear(v.x, v.x, v.cube), "AFFINE"),
    ("bilinear of affine", lambda v: F.bilinear(v.a, v.x, v.cube), "FULL"),
    ("embedding", lambda v: F.embedding(v.ids, v.w), "AFFINE"),
    ("mean", lambda v: v.a.mean(1), "AFFINE"),
    ("sum", lambda v: v.a.sum(1, keepdim=True), "AFFINE"),
    ("cat", lambda v: torch.cat([v.a, v.x], 1), "AFFINE"),
    ("stack", lambda v: torch.stack([v.a, v.x], 1), "AFFINE"),
    ("cat with full", lambda v: torch.cat([v.a, v.f], 1), "FULL"),
    ("split", lambda v: v.a.split(2, 1)[1], "AFFINE"),
    ("chunk", lambda v: v.a.chunk(2, 1)[0], "AFFINE"),
    ("pad", lambda v: F.pad(v.a, (1, 1), value=2.0), "AFFINE"),
    ("reflect", lambda v: F.pad(v.a, (1, 1), mode="reflect"), "AFFINE"),
    ("moves", lambda v: v.a[:, None].transpose(1, 2).squeeze(2)[:, 1:].flip(1), "AFFINE"),
    ("view", lambda v: v.a.view(-1, 2, 2).permute(0, 2, 1).flatten(1), "AFFINE"),
    ("expand", lambda v: v.b.expand(v.x.shape[0], 4), "AFFINE"),
    ("average pool", lambda v: F.avg_pool2d(F.conv2d(v.image, v.kernel), 2), "AFFINE"),
    ("mean pool", lambda v: F.adaptive_avg_pool2d(F.conv2d(v.image, v.kernel), 2), "AFFINE"),
    ("max pool", lambda v: F.max_pool2d(F.conv2d(v.image, v.kernel), 2), "FULL"),
    ("upsample", lambda v: F.interpolate(v.image * v.b[0], scale_factor=2.0), "AFFINE"),
    (
        "bilinear upsample",
        lambda v: F.interpolate(v.image * v.b[0], scale_factor=2.0, mode="bilinear"),
        "AFFINE",
    ),
    ("mask", lambda v: v.a.masked_fill(v.x > 0, 0.0), "AFFINE"),
    ("moving mask", lambda v: v.x.masked_fill(v.a > 0, 0.0), "FULL"),
    ("where", lambda v: torch.where(v.x > 0, v.a, v.b), "AFFINE"),
    ("index", lambda v: v.w[v.ids], "AFFINE"),
    ("batch norm of data", lambda v: F.batch_norm(v.x, v.mean, v.var, v.b, v.b), "AFFINE"),
    ("batch norm, fixed", lambda v: F.batch_norm(v.a, v.mean, v.var, v.one, v.b), "AFFINE"),
    ("batch norm", lambda v: F.batch_norm(v.a, v.mean, v.var, v.b, v.b), "FULL"),
    ("batch norm, moving mean", lambda v: F.batch_norm(v.x, v.b, v.var, v.one), "FULL"),
    ("relu", lambda v: v.a.relu(), "FULL"),
    ("layer norm", lambda v: F.layer_norm(v.a, (4,)), "FULL"),
    ("softmax", lambda v: v.a.softmax(1), "FULL"),
    ("maximum", lambda v: v.a.max(1).values, "FULL"),
    ("attention", lambda v: F.scaled_dot_product_attention(v.q, v.q, v.q), "FULL"),
    ("weight norm", lambda v: F.linear(v.x, v.w / v.w.norm()), "FULL"),
    ("transposed weight", lambda v: v.x @ v.w.t(), "AFFINE"),
]


class Operands(nn.Module):
    """Data and weights under the names that SHARED uses."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 4))
        self.b = nn.Parameter(torch.rand(4) + 1)
        self.kernel = nn.Parameter(torch.randn(2, 2, 3, 3))
        self.cube = nn.Parameter(torch.randn(3, 4, 4))
        self.register_buffer("c", torch.randn(4, 4))
        self.register_buffer("one", torch.rand(4))
        self.register_buffer("mean", torch.randn(4))
        self.register_buffer("var", torch.rand(4) + 1)

    def forward(self, x: Tensor, image: Tensor, ids: Tensor) -> Tensor:
        self.x, self.image, self.ids = x, image, ids
        self.a = x * self.w[0]
        self.f = self.a.tanh()
        self.q = self.a[:, None, None]
        # an operator of its own marks each row in the graph
        return torch.stack([torch.sigmoid(row[1](self)).mean() for row in SHARED]).mean()


@pytest.fixture(scope="module")
def shared() -> tuple[Plan, Any, dict[str, Any]]:
    """One graph of all rows; the value of each row by its name."""
    model = models.seeded(Operands).eval()
    rng = torch.Generator().manual_seed(1)
    batch = (
        torch.randn(6, 4, generator=rng),
        torch.randn(6, 2, 6, 6, generator=rng),
        torch.randint(4, (6,), generator=rng),
    )
    plan = captured(model, lambda m, batch: m(*batch), batch)
    marks = [n for n in plan.graph.nodes if getattr(n.target, "__name__", "") == "sigmoid.default"]
    named = zip(SHARED, marks, strict=True)
    return plan, batch, {row[0]: plan.values[mark.args[0].name] for row, mark in named}


@pytest.mark.parametrize(("row", "grid"), [(row, grid) for row, _, grid in SHARED])
def test_operators_share_what_they_can(shared, row, grid):
    assert shared[2][row].grid.name == grid


def test_all_rows_of_the_table_hold_in_float64(shared):
    plan, batch, _ = shared
    assert Grid.AFFINE in check_labels(plan, batch)


@pytest.mark.parametrize("name", RULES)
def test_rules_name_operators_and_their_arguments(name):
    operator, _, overload = name.partition(".")
    schema = getattr(getattr(torch.ops.aten, operator), overload or "default")._schema
    rule = RULES[name]
    assert rule.factors | rule.addends <= {argument.name for argument in schema.arguments}


@pytest.mark.parametrize(
    ("wrong", "like"), [("relu", "view"), ("softmax.int", "view"), ("layer_norm", "dropout")]
)
def test_a_wrong_rule_would_be_noticed(shared, monkeypatch, wrong, like):
    monkeypatch.setitem(RULES, wrong, RULES[like])
    plan, batch, _ = shared
    moves = {name: plan.slots[i].moves for name, i in plan.slot_of.items()}
    planted = dataclasses.replace(plan, values=label(plan.graph, moves, plan.inputs))
    assert planted.values != plan.values
    with pytest.raises(AssertionError):
        check_labels(planted, batch)


def test_batch_norm_is_affine_in_a_moving_shift_only():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3, bias=False)
            self.bn = nn.BatchNorm2d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.conv(x)).relu().mean((2, 3))

    model, batch = models.seeded(Net), (torch.randn(4, 1, 5, 5), torch.randint(2, (4,)))
    for moving, grid in [
        (["conv.weight"], Grid.AFFINE),
        (["conv.weight", "bn.bias"], Grid.AFFINE),
        (["bn.weight"], Grid.AFFINE),
        (["conv.weight", "bn.weight"], Grid.FULL),
        ([], Grid.NONE),
    ]:
        plan = captured(model, "cross_entropy", batch, moving=moving)
        norm = next(n for n in plan.graph.nodes if "batch_norm" in str(n.target))
        assert plan.values[f"{norm.name}.0"].grid == grid, moving
        assert check_labels(plan, batch) >= {grid}
