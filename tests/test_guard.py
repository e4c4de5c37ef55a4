"""The user's model comes back bit for bit, whatever happened."""

from __future__ import annotations

import contextlib
import os
import random
import signal

import models
import numpy as np
import pytest
import reference
import torch
from guard_cases import kitchen
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

import landscapex as lx
from landscapex.errors import ModelChangedError
from landscapex.model.guard import exclusive
from landscapex.model.parameters import ParameterSpace


def pairs():
    rng = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 1, 5, 5, generator=rng), torch.randint(6, (n,), generator=rng))
        for n in (4, 4, 2)
    ]


class Raiser:
    """Does something at the n-th call."""

    def __init__(self, error, at):
        self.error, self.at, self.calls = error, at, 0

    def __call__(self, *_):
        self.calls += 1
        if self.calls == self.at:
            raise self.error


def loss_that(raiser):
    def loss(model, batch):
        raiser()
        # what careless user code does: all of it has to be undone
        model.bn.train()
        model(batch[0])
        torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
        model.conv.register_forward_hook(lambda m, i, o: None)
        model.bn.eval()
        return F.cross_entropy(model(batch[0]), batch[1])

    return loss


def loader_that(raiser):
    class Loader:
        def __iter__(self):
            for batch in pairs():
                raiser()
                torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
                yield batch

    return Loader()


ERRORS = [ValueError("mine"), KeyboardInterrupt(), RuntimeError("out of memory")]


@pytest.mark.parametrize("where", ["success", "loss", "loader", "metric", "callback", "hook"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("at", [1, 5, 14])
def test_trap_21_the_model_and_the_generators_come_back_bit_for_bit(where, error, at):
    """Parameters, buffers, modes per module, gradients, requires_grad, hooks, RNG, identities."""
    model = kitchen()
    raisers = {
        name: Raiser(error, at if name == where else 0)
        for name in ("loss", "loader", "metric", "callback", "hook")
    }
    metric = {"m": lambda output, batch: (raisers["metric"](), output.sum(1))[1]}
    if where == "hook":
        model.first.register_forward_hook(lambda *a: raisers["hook"]())
    torch.manual_seed(11)
    before = reference.everything(model)

    def run():
        callback = raisers["callback"]
        if where == "metric":
            data, loss = pairs(), "cross_entropy"
            return lx.surface(model, data, loss, metrics=metric, points=5, progress=False)
        objective = lx.Objective(
            model,
            loader_that(raisers["loader"]),
            loss_that(raisers["loss"]),
            check=False,
            cache="none" if where == "loader" else "auto",
        )
        return lx.surface(objective, points=5 if where != "callback" else 15, progress=False,
                          callback=callback)  # fmt: skip

    if where == "success":
        assert run().complete
    else:
        with pytest.raises(type(error)) as caught:
            run()
        assert caught.value is error
    assert reference.changes(before, reference.everything(model)) == []


@pytest.mark.parametrize(
    ("bn", "work"),
    [(bn, work) for bn in ("eval", "batch") for work in ("loss", "gradient", "surface")]
    + [("recompute", "loss"), ("recompute", "surface")],
)
def test_trap_17_batch_norm_buffers_and_modes_are_restored(bn, work):
    """Evaluating in training mode leaves other running statistics behind."""
    model = models.case("conv").model.train()
    model.drop.eval()
    objective = lx.Objective(model, models.case("conv").batches, "cross_entropy", bn=bn)
    before = reference.everything(model)
    {
        "loss": objective.loss,
        "gradient": objective.gradient,
        "surface": lambda: lx.surface(objective, points=2, progress=False),
    }[work]()
    assert reference.changes(before, reference.everything(model)) == []


def test_trap_21_a_gradient_leaves_requires_grad_and_grad_alone():
    model = kitchen().requires_grad_(False)
    before = reference.everything(model)
    gradient = lx.Objective(model, pairs(), "cross_entropy").gradient()
    assert gradient.abs().sum() > 0
    assert reference.changes(before, reference.everything(model)) == []


def test_trap_21_a_loss_that_calls_backward_does_not_fill_the_users_gradients():
    model = models.mlp(3, 2)
    model[0].weight.grad = kept = torch.ones(2, 3)

    def loss(m, batch):
        value = m(batch).square().mean()
        value.backward()
        return value.detach()

    objective = lx.Objective(model, [torch.ones(4, 3)], loss)
    lx.line(objective, points=3, progress=False)
    assert model[0].weight.grad is kept
    assert torch.equal(kept, torch.ones(2, 3))
    assert model[0].bias.grad is None


def test_trap_21_a_parameter_that_user_code_replaced_is_put_back():
    model = models.mlp(3, 2)
    original = model[0].weight

    def meddle():
        with exclusive(ParameterSpace(model)):
            model[0].weight = nn.Parameter(torch.zeros(2, 3))
            model[0].register_buffer("new", torch.zeros(1))
            model[0].register_parameter("more", nn.Parameter(torch.zeros(1)))

    with pytest.raises(ModelChangedError, match=r"Linear\.weight was replaced"):
        meddle()
    assert model[0].weight is original
    assert not hasattr(model[0], "new")
    assert not hasattr(model[0], "more")


def test_the_snapshot_restores_by_copy_after_any_number_of_steps():
    model = kitchen()
    space = ParameterSpace(model)
    before = reference.everything(model)
    with exclusive(space) as snapshot:
        for c in np.random.default_rng(0).normal(size=(50, 2)) * 1e3:
            snapshot.move(snapshot.center, torch.randn(2, space.size), c.tolist())
        assert "tensor conv.weight" in reference.changes(before, reference.everything(model))
    assert reference.changes(before, reference.everything(model)) == []


def test_nan_in_parameters_and_buffers_comes_back():
    model = models.case("conv").model
    with torch.no_grad():
        model.conv.bias[0] = torch.nan
        model.bn.running_var[0] = torch.nan
    before = reference.everything(model)
    with exclusive(ParameterSpace(model)) as snapshot:
        snapshot.move(snapshot.center, torch.zeros(0, snapshot.space.size), [])
        model.bn.running_var.zero_()
    assert reference.changes(before, reference.everything(model)) == []


def test_trap_01_a_model_that_keeps_a_state_gives_the_same_loss_in_any_order():
    """Its buffers start at every point from the same values."""

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return (self.weight * x).sum() + self.calls

    objective = lx.Objective(
        Counting(), [torch.ones(3)], lambda model, batch: model(batch).square(), check=False
    )
    forth, back = (
        lx.line(objective, directions=[{"weight": s * torch.ones(3)}], points=7, progress=False)
        for s in (1.0, -1.0)
    )
    assert np.array_equal(forth.loss, back.loss[::-1])
    assert forth.loss[3] == (3 + 1) ** 2


@pytest.mark.parametrize("repeat", range(3))
def test_trap_21_ctrl_c_at_any_moment_leaves_the_model_whole(repeat):
    """A timer strikes at many moments of `Objective.loss`, restoring included."""
    model = kitchen()
    objective = lx.Objective(model, pairs(), "cross_entropy", check=False)
    objective.loss()
    before = reference.everything(model)
    rng = random.Random(repeat)
    hits, inside = 0, False
    previous = signal.signal(
        signal.SIGALRM, lambda *a: inside and os.kill(os.getpid(), signal.SIGINT)
    )
    try:
        for _ in range(60):
            try:
                inside = True
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-4, 2e-3))
                while inside:
                    objective.loss()
                    inside = signal.getitimer(signal.ITIMER_REAL)[0] > 0
            except KeyboardInterrupt:
                hits += 1
            inside = False
            assert reference.changes(before, reference.everything(model)) == []
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert hits > 20


def test_trap_21_what_a_hook_or_forward_derives_comes_back():
    """Pruning, old weight norm and recurrent layers keep weights as plain attributes."""

    class Derived(nn.Module):
        def __init__(self):
            super().__init__()
            self.pruned = nn.Linear(3, 4)
            prune.l1_unstructured(self.pruned, "weight", 0.5)
            self.lstm = nn.utils.weight_norm(nn.LSTM(4, 4, batch_first=True), "weight_hh_l0")
            self.last = None

        def forward(self, x):
            self.last = self.lstm(self.pruned(x))[0]
            self.extra = self.last * 2
            return self.last.mean(1)

    model = Derived()
    x, y = torch.randn(6, 5, 3), torch.arange(6) % 4
    with torch.no_grad():
        model(x)
    del model.extra
    model.last = None
    kept = model.pruned.weight, model.lstm.weight_hh_l0, *model.lstm._flat_weights
    values = [t.clone() for t in kept]
    lx.line(model, (x, y), "cross_entropy", points=3, progress=False)
    now = model.pruned.weight, model.lstm.weight_hh_l0, *model.lstm._flat_weights
    assert all(a is b for a, b in zip(kept, now, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(values, now, strict=True))
    assert model.last is None
    assert not hasattr(model, "extra")


@pytest.mark.parametrize("change", ["double", "half", "cut", "child", "negative zero"])
def test_trap_21_a_loss_that_rebuilds_the_model_is_undone(change):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    before = reference.everything(model)
    layers = list(model.children())
    signs = [torch.signbit(b).clone() for b in model.buffers()]

    def loss(m, batch):
        if change == "cut":
            m[0].weight.data = m[0].weight.data[:, :2]
        elif change == "child":
            m.append(nn.Linear(2, 2))
        elif change == "negative zero":
            for b in m.buffers():
                b.neg_()
        else:
            getattr(m, change)()
        return next(m.parameters()).sum().float()

    with contextlib.suppress(ModelChangedError):
        lx.line(lx.Objective(model, None, loss, check=False), points=3, progress=False)
    assert reference.changes(before, reference.everything(model)) == []
    assert list(model.children()) == layers
    assert all(map(torch.equal, signs, [torch.signbit(b) for b in model.buffers()]))


def test_trap_21_a_loss_that_draws_leaves_the_generators_alone(generators_untouched):
    def loss(m, batch):
        torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002  (a user's)
        return m(batch).square().mean()

    lx.line(models.mlp(3, 2), [torch.ones(4, 3)], loss, points=3, progress=False)
