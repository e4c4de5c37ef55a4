"""The user's model comes back bit for bit, whatever happened; and nobody else may use it."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import sys
import threading
import time

import models
import numpy as np
import pytest
import reference
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

import landscapex as lx
from landscapex.errors import ModelChangedError, ReentrancyError
from landscapex.model.guard import exclusive
from landscapex.model.parameters import ParameterSpace


class Kitchen(nn.Module):
    """Batch norm, dropout, a tie, a frozen layer, a mask as buffer, weights in any layout."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3).to(memory_format=torch.channels_last)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.frozen = nn.Linear(4, 6).requires_grad_(False)
        self.first = nn.Linear(6, 6)
        self.tied = nn.Linear(6, 6)
        self.tied.weight = self.first.weight
        self.scale = nn.Parameter(torch.randn(6, dtype=torch.bfloat16))
        self.register_buffer("mask", torch.ones(6).expand(2, 6))

    def forward(self, x):
        x = self.drop(self.bn(self.conv(x)).relu()).mean((2, 3))
        x = self.tied(self.first(self.frozen(x)).tanh())
        return x * self.mask[0] * self.scale.float()


def kitchen():
    """In the middle of somebody's training: odd modes, gradients, hooks."""
    model = models.seeded(Kitchen).train()
    model.bn.eval()
    for p in model.parameters():
        if p.requires_grad and p.ndim > 1:
            p.grad = torch.randn_like(p)
    model.conv.register_forward_hook(lambda m, i, o: o + 0)
    model.bn.register_forward_pre_hook(lambda m, i: None)
    model.first.register_full_backward_hook(lambda m, i, o: None)
    model.register_state_dict_post_hook(lambda *a: None)
    return model


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


# --- Changes by somebody else --------------------------------------------------------------------


def step(model):
    """A training step, as an optimiser makes it."""
    with torch.no_grad():
        torch._foreach_sub_(list(model.parameters()), 0.1)


def write_data(model):
    """The old idiom, which no version counter sees."""
    next(model.parameters()).data.add_(1.0)


def assign_data(model):
    """Other memory under the same parameter: no counter moves either."""
    parameter = next(model.parameters())
    parameter.data = parameter.data + 1.0


def replace(model):
    model[0].weight = nn.Parameter(torch.zeros_like(model[0].weight))


def step_elsewhere(model):
    thread = threading.Thread(target=step, args=(model,))
    thread.start()
    thread.join()


CHANGES = [step, write_data, assign_data, replace, step_elsewhere]


def mse(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


BATCH = [(torch.linspace(-1, 1, 12).view(4, 3), torch.zeros(4, 1))]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("at", [1, 2, 3, 20])
def test_fault_27_a_model_changed_by_its_loss_is_an_error(change, at):
    model = models.mlp(3, 4, 1)
    before = reference.everything(model)
    calls = []

    def loss(m, batch):
        calls.append(1)
        if len(calls) == at or (len(calls) > at and change is write_data):
            change(m)
        return mse(m, batch)

    with pytest.raises(ModelChangedError, match="must not be changed while its landscape is com"):
        lx.surface(model, BATCH, loss, points=5, progress=False)
    assert reference.changes(before, reference.everything(model)) == []


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("when", [1, 20, 42])
def test_fault_27_a_model_changed_in_a_callback_is_an_error(change, when, tmp_path):
    """Also after the last chunk: its points are right, but the training step is lost."""
    model = models.mlp(3, 4, 1)
    before = reference.everything(model)
    seen = []

    def callback(progress):
        if progress.done >= when and not seen:
            seen.append(progress.done)
            change(model)

    out = tmp_path / "s.nc"
    with pytest.raises(ModelChangedError, match=r"0\.weight|Linear\.weight"):
        lx.surface(model, BATCH, mse, points=(6, 7), progress=False, callback=callback, out=out)
    assert reference.changes(before, reference.everything(model)) == []
    kept = lx.open(out)
    truth = lx.surface(model, BATCH, mse, points=(6, 7), progress=False)
    assert kept.evaluated.sum() == seen[0]
    assert np.array_equal(kept.loss[kept.evaluated], truth.loss[kept.evaluated])


def test_fault_27_parameters_that_do_not_move_must_not_change_either():
    model = models.mlp(3, 4, 1)
    objective = lx.Objective(model, BATCH, mse, params="0.*")
    before = reference.everything(model)

    def callback(progress):
        with torch.no_grad():
            model[2].weight.add_(1.0)

    with pytest.raises(ModelChangedError, match=r"2\.weight was written to .* no copy to put back"):
        lx.surface(objective, points=6, progress=False, callback=callback)
    after = reference.everything(model)
    assert reference.changes(before, after) == ["tensor 2.weight"]


def test_fault_27_memory_of_parameters_that_do_not_move_must_not_be_exchanged():
    model = models.mlp(3, 4, 1)
    objective = lx.Objective(model, BATCH, mse, params="0.*")
    before = reference.everything(model)

    def callback(progress):
        model[2].weight.data = model[2].weight.data + 1.0

    with pytest.raises(ModelChangedError, match=r"2\.weight was written to"):
        lx.surface(objective, points=6, progress=False, callback=callback)
    assert reference.changes(before, reference.everything(model)) == []


def test_fault_27_a_parameter_of_any_layout_and_dtype_that_changed_is_named():
    """Contents are compared in runs of equal dtypes; the name is that of the entry."""
    model = kitchen()
    space = ParameterSpace(model)
    names = [e.name for e in space.entries]
    directions = torch.randn(1, space.size)

    def meddle(name):
        with exclusive(space) as snapshot:
            snapshot.move(snapshot.center, directions, [0.5])
            snapshot.check_unchanged(contents=True)  # its own writes are none
            p = model.get_parameter(name)
            last = p.data[-1, -1, -1, -1:] if name == "conv.weight" else p.data.view(-1)[-1:]
            last.neg_()

    for name in names:
        with pytest.raises(ModelChangedError, match=re.escape(f"but {name} was written to")):
            meddle(name)


@pytest.mark.parametrize("transposed", [False, True])
def test_fault_27_a_parameter_that_got_another_shape_is_an_error(transposed):
    """Also one that is written by way of a copy, which has no place for the next point."""
    model = models.mlp(3, 4, 1)
    if transposed:
        model[0].weight = nn.Parameter(torch.ones(3, 4).t())
    before = reference.everything(model)

    def meddle():
        with exclusive(ParameterSpace(model)) as snapshot:
            model[0].weight.data = torch.zeros(2, 5)
            snapshot.move(snapshot.center, torch.zeros(1, snapshot.space.size), [0.5])

    with pytest.raises(ModelChangedError, match=r"0\.weight was written to"):
        meddle()
    assert reference.changes(before, reference.everything(model)) == []


# --- One user at a time --------------------------------------------------------------------------


@pytest.mark.parametrize("inner", ["loss", "gradient", "surface", "other objective"])
@pytest.mark.parametrize("where", ["loss", "callback"])
def test_fault_26_a_nested_evaluation_is_an_error(inner, where):
    model = models.mlp(3, 4, 1)
    objective = lx.Objective(model, BATCH, mse)
    nested = {
        "loss": objective.loss,
        "gradient": objective.gradient,
        "surface": lambda: lx.surface(objective, points=2, progress=False),
        "other objective": lambda: lx.Objective(model, BATCH, mse).loss(),
    }[inner]
    before = reference.everything(model)

    def loss(m, batch):
        if where == "loss":
            nested()
        return mse(m, batch)

    with pytest.raises(ReentrancyError, match="must not evaluate the model whose landscape is"):
        lx.surface(
            model, BATCH, loss, points=2, progress=False,
            callback=lambda progress: nested() if where == "callback" else None,
        )  # fmt: skip
    assert reference.changes(before, reference.everything(model)) == []


@pytest.mark.parametrize("where", ["loss", "callback"])
def test_fault_26_a_nested_evaluation_of_a_part_is_noticed(where):
    """The part has a lock of its own, but its parameters are watched."""
    model = models.mlp(3, 4, 1)
    part = lx.Objective(model[0], BATCH, lambda m, b: m(b[0]).mean())
    before = reference.everything(model)

    def loss(m, batch):
        return mse(m, batch) + (part.loss() if where == "loss" else 0)

    def callback(progress):
        if where == "callback":
            part.loss()

    with pytest.raises(ModelChangedError):
        lx.surface(model, BATCH, loss, points=2, progress=False, callback=callback)
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


def test_another_model_may_be_evaluated_in_the_loss():
    teacher = lx.Objective(models.mlp(3, 4, 1, seed=1), BATCH, mse)
    model = models.mlp(3, 4, 1)
    surface = lx.line(
        model, BATCH, lambda m, b: mse(m, b) * teacher.loss(), points=3, progress=False
    )
    plain = lx.line(model, BATCH, mse, points=3, progress=False)
    np.testing.assert_allclose(surface.loss, plain.loss * teacher.loss(), rtol=1e-6)


def test_trap_24_eight_threads_on_one_objective_get_10000_right_losses():
    """Through a shared module, 5,540 of 6,000 losses were wrong, and the parameters destroyed."""
    model = models.mlp(2, 2, bias=False)
    objective = lx.Objective(model, [(torch.eye(2), torch.zeros(2, 2))], "mse_loss", check=False)
    points = torch.randn(10, 4, generator=torch.Generator().manual_seed(3))
    truth = [objective.loss(p) for p in points]
    assert len(set(truth)) == 10
    options = {"points": 49, "progress": False, "normalize": None}
    lines = [lx.line(objective, directions=p[None], **options).loss for p in points]
    before = reference.everything(model)

    def work(k):
        """200 single losses, and 200 lines of 49."""
        if k % 2:
            return objective.loss(points[k % 10]) == truth[k % 10]
        line = lx.line(objective, directions=points[k % 10][None], **options)
        return 49 * np.array_equal(line.loss, lines[k % 10])

    assert in_threads(work, 400) == 10_000
    assert reference.changes(before, reference.everything(model)) == []


def test_trap_24_two_objectives_of_one_model_share_its_lock():
    model = models.mlp(2, 2, bias=False)
    objectives = [
        lx.Objective(m, [(torch.eye(2) * s, torch.zeros(2, 2))], "mse_loss", check=False)
        for s, m in [(1.0, model), (2.0, nn.DataParallel(model))]
    ]
    points = torch.randn(5, 4, generator=torch.Generator().manual_seed(3))
    truth = [[o.loss(p) for p in points] for o in objectives]
    right = in_threads(lambda k: objectives[k % 2].loss(points[k % 5]) == truth[k % 2][k % 5], 800)
    assert right == 800


def test_trap_24_surfaces_and_gradients_in_threads():
    model = models.mlp(3, 4, 1)
    objective = lx.Objective(model, BATCH, mse)
    surface = lx.surface(objective, points=4, progress=False)
    gradient = objective.gradient()

    def work(k):
        if k % 2:
            return torch.equal(objective.gradient(), gradient)
        return lx.surface(objective, points=4, progress=False).equals(surface)

    assert in_threads(work, 32) == 32


def in_threads(work, count, threads=8):
    """How many of ``work(0 .. count - 1)`` were right, done by several threads."""
    right = [0] * threads

    def run(t):
        for k in range(t, count, threads):
            right[t] += int(work(k))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        workers = [threading.Thread(target=run, args=(t,)) for t in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        sys.setswitchinterval(interval)
    return sum(right)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fault_26_a_child_forked_during_an_evaluation_does_not_wait_for_ever():
    """The thread that holds the lock does not exist in the child."""
    model = models.mlp(3, 4, 1)
    objective = lx.Objective(model, BATCH, mse)
    value = objective.loss()
    held, done = threading.Event(), threading.Event()

    def hold():
        with exclusive(ParameterSpace(model)):
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if objective.loss() == value else 2
        finally:
            os._exit(code)
    try:
        assert wait_for(pid, 20) == 0
    finally:
        done.set()
        thread.join()


def wait_for(pid, seconds):
    """The exit status of a child; it is killed if it takes longer."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "never ended"


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


def test_threads_with_different_models_see_the_same_common_draws():
    def noisy(m, batch):
        return m(nn.functional.dropout(batch, 0.5)).square().mean()

    made = [models.mlp(3, 4, 2, seed=seed) for seed in range(4)]  # this draws from the generators

    def run(k):
        objective = lx.Objective(made[k], [torch.ones(8, 3)], noisy, check=False)
        return lx.line(objective, points=21, progress=False).loss

    alone = [run(k) for k in range(4)]
    together = [None] * 4

    def work(k):
        together[k] = run(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(map(np.array_equal, alone, together))


def test_trap_21_a_loss_that_draws_leaves_the_generators_alone(generators_untouched):
    def loss(m, batch):
        torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002  (a user's)
        return m(batch).square().mean()

    lx.line(models.mlp(3, 2), [torch.ones(4, 3)], loss, points=3, progress=False)
