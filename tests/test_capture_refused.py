"""What must not be captured, and that trying leaves nothing behind."""

from __future__ import annotations

import random
import subprocess
import sys
import textwrap
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch
from captured import (
    captured,
    operators,
)
from torch import Tensor, nn
from torch.nn import functional as F

from landscapex.engine.capture import capture
from landscapex.engine.plan import NotCapturedError
from landscapex.losses.binding import resolve


@pytest.fixture(autouse=True)
def _quiet_models() -> Iterator[None]:
    """Models and data here come from the global generator; nothing outside sees it move."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def over(forward: Callable[[nn.Module, Tensor], Tensor], **members: Any) -> nn.Module:
    """A model with a linear layer ``linear`` from 4 to 3, and further members."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)
            for name, member in members.items():
                if isinstance(member, Tensor) and not isinstance(member, nn.Parameter):
                    self.register_buffer(name, member)
                else:
                    setattr(self, name, member)

        def forward(self, x: Tensor) -> Tensor:
            return forward(self, x)

    return models.seeded(Net)


def writes_a_buffer(m: Any, x: Tensor) -> Tensor:
    m.count += 1
    return m.linear(x)


def trains_its_norm(m: Any, x: Tensor) -> Tensor:
    m.bn.train()
    return m.bn(m.linear(x))


def recurs_over_the_batch(m: Any, x: Tensor) -> Tensor:
    h = torch.zeros(4)
    rows = []
    for i in range(x.shape[0]):
        h = (h + x[i]).tanh()
        rows.append(h)
    return m.linear(torch.stack(rows))


def routes(m: Any, x: Tensor) -> Tensor:
    chosen = x[:, 0] > 0
    out = torch.zeros(x.shape[0], 3)
    out[chosen] = m.linear(x[chosen])
    return out


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "branch on data": (lambda: over(lambda m, x: m.linear(x) if x.sum() > 0 else x), "DataDepend"),
    "float of a parameter": (
        lambda: over(lambda m, x: m.linear(x) * float(m.linear.bias[0])),
        "torch.export|reads a value",
    ),
    "numpy": (
        lambda: over(lambda m, x: m.linear(x) + torch.tensor(m.linear.bias.detach().numpy())),
        "torch.export: ",
    ),
    "item kept": (lambda: over(lambda m, x: m.linear(x) * x.sum().item()), "reads a value"),
    "hard-coded batch": (lambda: over(lambda m, x: m.linear(x.view(6, 4))), "torch.export: "),
    "branch on the batch's size": (
        lambda: over(lambda m, x: m.linear(x) if x.shape[0] > 100 else -m.linear(x)),
        "torch.export: ",
    ),
    "recurrence over the batch": (lambda: over(recurs_over_the_batch), "torch.export: "),
    "boolean routing": (lambda: over(routes), "depends on the values|torch.export"),
    "cond": (
        lambda: over(
            lambda m, x: torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (m.linear(x),))
        ),
        "parts of its own",
    ),
    "dropout in forward": (lambda: over(lambda m, x: F.dropout(m.linear(x))), "random numbers"),
    "noise": (lambda: over(lambda m, x: m.linear(x + torch.randn_like(x))), "random numbers"),
    "recurrent dropout": (
        lambda: over(
            lambda m, x: m.linear(m.rnn.train()(x[None])[0][0]),
            rnn=nn.LSTM(4, 4, 2, dropout=0.5),
        ),
        "random numbers",
    ),
    "attention dropout": (
        lambda: over(
            lambda m, x: F.scaled_dot_product_attention(*[m.linear(x)[:, None]] * 3, dropout_p=0.5)[
                :, 0
            ]
        ),
        "random numbers",
    ),
    "buffer written": (lambda: over(writes_a_buffer, count=torch.zeros(())), "forward writes"),
    "batch norm in training": (
        lambda: over(trains_its_norm, bn=nn.BatchNorm1d(3)),
        "statistics from the batch|forward writes",
    ),
    "batch norm without statistics": (
        lambda: over(
            lambda m, x: m.bn(m.linear(x)), bn=nn.BatchNorm1d(3, track_running_stats=False)
        ),
        "statistics from the batch",
    ),
    "complex parameter": (
        lambda: over(
            lambda m, x: (m.linear(x) * m.phase).real,
            phase=nn.Parameter(torch.randn(3, dtype=torch.complex64)),
        ),
        "is complex64",
    ),
    "spectrum": (lambda: over(lambda m, x: torch.fft.fft(m.linear(x)).abs()), "is complex64"),
    "float64 inside": (
        lambda: over(lambda m, x: m.linear(x).double().tanh().float()),
        "is float64",
    ),
    "bfloat16 inside": (lambda: over(lambda m, x: m.linear(x).bfloat16().float()), "is bfloat16"),
    "centred by the batch": (
        lambda: over(lambda m, x: m.linear(x) - m.linear(x).mean(0)),
        "mixes samples: .* no axis of samples",
    ),
    "centred data": (lambda: over(lambda m, x: m.linear(x - x.mean(0))), "mixes samples"),
    "Gram matrix": (
        lambda: over(lambda m, x: m.linear(x @ x.t() @ x)),
        "mixes samples: 2 of its sizes",
    ),
    "divided by the batch's size": (
        lambda: over(lambda m, x: m.linear(x) / x.shape[0]),
        "counts with the batch's size",
    ),
    "one row more": (
        lambda: over(lambda m, x: m.linear(torch.cat([x, torch.ones(1, 4)])).cumsum(0)[:-1]),
        "a size is .* of a batch",
    ),
    "TorchScript": (lambda: torch.jit.script(nn.Linear(4, 3)), "is TorchScript"),
    "TorchScript inside": (
        lambda: over(lambda m, x: m.part(m.linear(x)), part=torch.jit.script(nn.ReLU())),
        "part is TorchScript",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_captured_is_refused_with_a_reason(name):
    build, reason = REFUSED[name]
    batch = (torch.randn(6, 4), torch.randint(3, (6,)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = build()
    with pytest.raises(NotCapturedError, match=reason):
        captured(model, "cross_entropy", batch)


def gradient_penalty(model: nn.Module, batch: Any) -> Tensor:
    slope = torch.func.grad(lambda x: model(x).sum())(batch[0])
    return F.cross_entropy(model(batch[0]), batch[1]) + slope.square().mean()


def physics(model: nn.Module, batch: Any) -> Tensor:
    return torch.func.vmap(torch.func.grad(lambda x: model(x)[0]))(batch[0]).square().mean()


class Own(nn.Module):
    reduction = "sum"

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target, reduction="sum")


def hooked() -> nn.Module:
    criterion = nn.CrossEntropyLoss()
    criterion.register_forward_hook(lambda module, inputs, loss: 2 * loss)
    return criterion


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (gradient_penalty, "torch.export: "),
        (physics, "torch.export: "),
        (lambda m, b: (m(b[0]).mean(), {"spread": m(b[0]).std()}), "nothing but a 0-d tensor"),
        (lambda m, b: m(b[0]).mean().item(), "nothing but a 0-d tensor"),
        (lambda m, b: m(b[0]).mean(1), "nothing but a 0-d tensor"),
        (lambda m, b: m(b[0]).argmax(), "the loss has shape"),
        (lambda m, b: m(b[1]).mean(), "torch.export: RuntimeError"),
        (Own(), 'must have reduction="mean"'),
        (None, "torch.export: "),
        (hooked(), "must have no hooks"),
    ],
)
def test_losses_that_cannot_be_captured_are_refused(loss, reason):
    batch = (torch.randn(6, 4), torch.randint(3, (6,)))
    with pytest.raises(NotCapturedError, match=reason):
        captured(models.mlp(4, 3), loss, batch)


def test_batches_that_cannot_be_captured_are_refused():
    model, labels = models.mlp(4, 3), torch.randint(3, (6,))
    packed = nn.utils.rnn.pack_sequence([torch.randn(2, 4), torch.randn(1, 4)])
    for batch, reason in [
        ((packed, labels), "a packed sequence"),
        ((np.zeros((6, 4)), labels), "holds a ndarray"),
        ((torch.eye(4).to_sparse(), labels), "layout torch.sparse_coo"),
        ((torch.zeros(()), labels), "no samples along its first axis"),
        ((torch.zeros(0, 4), labels[:0]), "no samples along its first axis"),
        ((), "no samples along its first axis"),
    ]:
        with pytest.raises(NotCapturedError, match=reason):
            captured(model, lambda m, b: m(b[0]).mean(), batch)


def test_lazy_parameters_are_refused():
    model = nn.LazyLinear(3)
    batch = (torch.randn(6, 4), torch.randint(3, (6,)))
    with pytest.raises(NotCapturedError, match="weight is lazy"):
        capture(model, resolve("cross_entropy", model=model), batch, moving=[])


def test_models_in_float64_are_refused():
    model = models.mlp(4, 3).double()
    batch = (torch.randn(6, 4, dtype=torch.float64), torch.randint(3, (6,)))
    with pytest.raises(NotCapturedError, match="is float64: what moves with the grid must be"):
        captured(model, "cross_entropy", batch)


def test_dropout_that_is_switched_off_is_no_randomness():
    net = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.RReLU(), nn.AlphaDropout(0.5))
    plan = captured(net, "cross_entropy", (torch.randn(6, 4), torch.randint(3, (6,))))
    assert "linear" in operators(plan)


ROOT = Path(__file__).parents[1]


class Remembers(nn.Module):
    """Keeps things between calls, as caches do."""

    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.cache: dict[str, Tensor] = {}
        self.history: list[Tensor] = []
        self.helper = types.SimpleNamespace(seen=None, parts=[])
        self.calls, self.last, self.fails = 0, None, fails

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.cache["positions"] = torch.arange(3.0)
        self.history.append(x)
        self.helper.seen = x
        self.helper.parts.append(x)
        self.last = self.linear(x)
        self.new = x
        if self.fails and self.last.sum() > 0:
            return x
        return self.last + self.cache["positions"]


@pytest.mark.parametrize("fails", [False, True])
def test_trap_21_capture_leaves_model_and_generators_as_they_were(fails):
    model = models.seeded(lambda: Remembers(fails)).eval()
    model.linear.bias.requires_grad_(False)
    model.linear.weight.grad = torch.ones(3, 4)
    parameters = [(p, p.detach().clone(), p.requires_grad, p.grad) for p in model.parameters()]
    attributes = {k: v for k, v in vars(model).items() if not k.startswith("_")}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    batch = (torch.randn(6, 4, generator=torch.Generator()), torch.arange(6) % 3)
    kept = [t.clone() for t in batch]
    if fails:
        with pytest.raises(NotCapturedError):
            captured(model, "cross_entropy", batch)
    else:
        captured(model, "cross_entropy", batch)
    assert {k: v for k, v in vars(model).items() if not k.startswith("_")} == attributes
    assert model.cache == {}
    assert model.history == []
    assert vars(model.helper) == {"seen": None, "parts": []}
    for (p, value, needed, grad), now in zip(parameters, model.parameters(), strict=True):
        assert now is p
        assert torch.equal(p, value)
        assert p.requires_grad == needed
        assert p.grad is grad
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert all(
        np.array_equal(a, b)
        for a, b in zip(np.random.get_state(), states[2], strict=True)  # noqa: NPY002
    )
    assert all(torch.equal(a, b) for a, b in zip(batch, kept, strict=True))
    assert torch.is_grad_enabled()


def test_capture_is_silent_also_when_it_fails_first_thing_in_a_process():
    script = """
        import torch
        from torch import nn
        from landscapex.engine.capture import capture
        from landscapex.engine.plan import NotCapturedError
        from landscapex.losses.binding import resolve

        class Net(nn.Linear):
            def forward(self, x):
                return super().forward(x) if x.sum() > 0 else x

        model = Net(4, 3)
        batch = torch.randn(6, 4), torch.randint(3, (6,))
        try:
            capture(model, resolve("cross_entropy", model=model), batch, moving=["weight"])
        except NotCapturedError as error:
            print("refused:", type(error).__name__)
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert done.stdout == "refused: NotCapturedError\n"
    assert done.stderr == ""
