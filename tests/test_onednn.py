"""Linear layers by oneDNN: the same numbers, and modules that have their own methods again."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path

import models
import pytest
import reference
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import jvp, vmap
from torch.nn import functional as F

from landscapex.batches import freeze
from landscapex.engine import onednn
from landscapex.engine.eager import EagerEngine
from landscapex.engine.layout import Layout, choose_layout
from landscapex.engine.onednn import covered_linear, linear_is_faster, linear_modules
from landscapex.losses.binding import resolve
from landscapex.model.guard import exclusive
from landscapex.model.parameters import ParameterSpace

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN"
)


@pytest.fixture(autouse=True)
def counted(monkeypatch):
    """Every product is large enough; the calls of oneDNN are counted."""
    calls = []
    op = torch.ops.mkldnn._linear_pointwise

    def count(*args):
        calls.append(args[0].shape)
        return op(*args)

    monkeypatch.setattr(onednn, "_WORTH_WHILE", 0)
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", count)
    return calls


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 7), (7,), (0, 7), "transposed"])
def test_the_numbers_are_those_of_torch(counted, bias, shape):
    linear = models.seeded(lambda: nn.Linear(7, 4, bias=bias))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((7, 5) if shape == "transposed" else shape, generator=generator)
    x = x.t() if shape == "transposed" else x
    with torch.no_grad(), covered_linear(linear):
        found = linear(x)
    exact = F.linear(x.double(), linear.weight.double(), linear.bias.double() if bias else None)
    assert len(counted) == 1
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6)


def test_small_products_are_left_to_torch(counted, monkeypatch):
    monkeypatch.setattr(onednn, "_WORTH_WHILE", 6 * 7 * 4)
    linear = nn.Linear(7, 4)
    with torch.no_grad(), covered_linear(linear):
        linear(torch.ones(5, 7))
        assert len(counted) == 0
        linear(torch.ones(6, 7))
        assert len(counted) == 1


@pytest.mark.parametrize("where", ["gradient", "autocast", "double", "vmap", "jvp", "dual"])
def test_whatever_the_operator_cannot_do_is_left_to_torch(counted, where):
    linear = models.seeded(lambda: nn.Linear(3, 2))
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))

    def compute():
        if where == "gradient":
            with torch.enable_grad():
                return torch.autograd.grad(linear(x).square().sum(), linear.weight)[0]
        with torch.no_grad():
            if where == "autocast":
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    return linear(x)
            if where == "double":
                return copy.deepcopy(linear).double()(x.double())
            if where == "vmap":
                return vmap(linear)(x)
            if where == "jvp":
                return jvp(linear, (x,), (x,))[1]
            with forward_ad.dual_level():
                return forward_ad.unpack_dual(linear(forward_ad.make_dual(x, x))).tangent

    expected = compute()
    with covered_linear(linear):
        found = compute()
    assert torch.equal(found, expected)
    assert counted == []


def test_numbers_of_two_kinds_are_torchs_error(counted):
    linear = nn.Linear(3, 2)
    with torch.no_grad(), covered_linear(linear), pytest.raises(RuntimeError, match="same dtype"):
        linear(torch.ones(4, 3).double())
    assert counted == []


def test_only_plain_layers_are_covered():
    class Quantised(torch.Tensor):
        pass

    class Own(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    covered = nn.Linear(3, 3)
    covered.forward = lambda x: x
    compiled = nn.Linear(3, 3)
    compiled._compiled_call_impl = lambda x: x
    parametrized = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    quantised = nn.Linear(3, 3)
    quantised.weight = nn.Parameter(torch.ones(3, 3).as_subclass(Quantised))
    double = nn.Linear(3, 3).double()
    others = [Own(3, 3), covered, compiled, parametrized, quantised, double, nn.ReLU()]
    plain = nn.Linear(3, 3)
    model = nn.Sequential(*others, plain)
    assert linear_modules(model) == [plain]
    with covered_linear(model):
        assert "forward" in vars(plain)
        assert "forward" not in vars(others[0])
    assert "forward" not in vars(plain)
    assert vars(covered)["forward"] is covered.forward


@contextlib.contextmanager
def engine(model, loss):
    space = ParameterSpace(model)
    batch = (torch.ones(4, 3), torch.zeros(4, 1))
    data = {"data": freeze([batch], device=torch.device("cpu"))}
    with exclusive(space) as snapshot:
        made = EagerEngine(space, resolve(loss, model=model), data)
        made.arrange(Layout(onednn_linear=True))
        yield made, snapshot


@pytest.mark.parametrize("error", [None, ValueError("mine"), KeyboardInterrupt()], ids=repr)
def test_trap_21_modules_have_their_own_methods_after_every_end(counted, error):
    model = models.mlp(3, 4, 1)
    before = reference.everything(model)
    seen = []

    def loss(model, batch):
        seen.append([name for name, m in model.named_modules() if "forward" in vars(m)])
        value = F.mse_loss(model(batch[0]), batch[1])
        if error is not None and len(seen) == 3:
            raise error
        return value

    def run():
        with engine(model, loss) as (made, snapshot):
            made.here()
            assert not any("forward" in vars(m) for m in model.modules())
            points = torch.zeros(3, 1).numpy()
            made.losses(snapshot, snapshot.center, torch.ones(1, made.space.size), points)

    if error is None:
        run()
    else:
        with pytest.raises(type(error)):
            run()
    assert set(map(tuple, seen)) == {("0", "2")}
    assert len(counted) == 2 * len(seen)
    assert not any("forward" in vars(m) for m in model.modules())
    assert reference.changes(before, reference.everything(model)) == []


def test_trap_21_what_ctrl_c_left_covered_is_put_back_with_the_model():
    model = models.mlp(3, 4, 1)
    own = nn.Linear(1, 1)
    own.forward = kept = lambda x: x
    model.append(own)
    with exclusive(ParameterSpace(model)):
        vars(model[0])["forward"] = lambda x: x
    assert "forward" not in vars(model[0])
    assert vars(own)["forward"] is kept


def test_it_is_chosen_on_processors_by_amd_only(monkeypatch):
    frozen = freeze((torch.ones(64, 3), torch.zeros(64, 1)), device=torch.device("cpu"))
    measure = resolve("mse_loss", model=nn.Linear(3, 1))
    text = "vendor_id\t: {}\n"
    for vendor, expected in (("AuthenticAMD", True), ("GenuineIntel", False)):
        monkeypatch.setattr(Path, "read_text", lambda self, v=vendor: text.format(v))
        linear_is_faster.cache_clear()
        for loss in (measure, resolve(lambda m, b: m(b[0]).sum(), model=nn.Linear(3, 1))):
            layout = choose_layout(nn.Linear(3, 1), loss, {"data": frozen})
            assert layout.onednn_linear is expected
        assert not choose_layout(nn.ReLU(), measure, {"data": frozen}).onednn_linear

    def missing(self):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    linear_is_faster.cache_clear()
    assert linear_is_faster() is False
    linear_is_faster.cache_clear()
