"""Lines between models: exact ends, and everything that moves along."""

from __future__ import annotations

import copy
import math

import models
import numpy as np
import pytest
import reference
import safetensors.torch
import torch
from interpolation_cases import between, two
from torch import nn

import landscapex as lx


class Product(nn.Module):
    """The product of some numbers, as a linear network with one unit per layer."""

    def __init__(self, *numbers):
        super().__init__()
        self.w = nn.ParameterList(
            nn.Parameter(torch.tensor([float(n)], dtype=torch.float64)) for n in numbers
        )


def chain(model, _):
    return 0.5 * (1 - math.prod(model.w)[0]) ** 2


def chain_line(start, end, **options):
    model = Product(*start)
    return between(lx.Objective(model, None, chain), Product(*end), None, None, **options)


def mixed(a, b, alpha):
    """A copy of ``a`` on the way to ``b``, by hand: the slow reference."""
    model = copy.deepcopy(a)
    own, other, made = model.state_dict(), b.state_dict(), {}
    for name, t in own.items():
        if t.is_floating_point():
            value = (1 - alpha) * t.double() + alpha * other[name].double()
            if name.endswith("running_var"):
                value = value.clamp(min=0)
            made[name] = value.to(t.dtype)
        else:
            made[name] = other[name] if alpha > 0.5 else t
    model.load_state_dict(made)
    return model


# --- Analytic models -----------------------------------------------------------------------------


def test_a1_the_line_across_the_saddle_of_a_product():
    line = chain_line((1, 1), (-1, -1), points=11)
    expected = [0.0648, 0.2048, 0.3528, 0.4608, 0.5]
    np.testing.assert_allclose(line.loss[1:6], expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(line.loss, line.loss[::-1], rtol=0, atol=1e-12)
    assert line.barrier == pytest.approx(0.5, abs=1e-12)
    assert not line.monotone


@pytest.mark.parametrize("depth", [2, 5, 12])
def test_the_scalar_chain_is_flat_then_falls(depth):
    """From eps (1, ..., 1) to (1, ..., 1): (1 - p^d)^2 / 2 with p = eps + (1 - eps) alpha."""
    line = chain_line([0.1] * depth, [1.0] * depth, points=101)
    p = 0.1 + 0.9 * line.coordinates[0]
    np.testing.assert_allclose(line.loss, 0.5 * (1 - p**depth) ** 2, rtol=0, atol=1e-12)
    assert line.monotone
    assert line.monotone_violation == 0 == line.bump
    bend = p[1 + np.flatnonzero(np.diff(line.loss, 2) < 0)[-1]]  # inflection
    assert bend == pytest.approx(((depth - 1) / (2 * depth - 1)) ** (1 / depth), abs=0.01)


def test_between_two_solutions_of_a_product_the_middle_is_highest():
    c = 3.0
    line = chain_line((c, 1 / c), (1 / c, c), points=21)
    middle = 0.5 * (1 - ((c + 1 / c) / 2) ** 2) ** 2
    assert line.loss.max() == line.loss[10] == pytest.approx(middle, rel=1e-12)
    assert line.barrier == pytest.approx(middle, rel=1e-12)
    assert line.bump == pytest.approx(middle, rel=1e-12)


def test_a_deep_linear_network_draws_a_polynomial_of_degree_2l():
    layers, data = 3, torch.randn(20, 6, dtype=torch.float64)
    a, b = (models.mlp(6, 5, 4, 2, act=nn.Identity, bias=False, seed=s).double() for s in (0, 1))
    line = between(a, b, (data, torch.randn(20, 2).double()), "mse_loss", points=25, span=(-1, 2))
    x, fits = line.coordinates[0], []
    for count in (2 * layers + 1, 2 * layers):
        chosen = np.round(np.linspace(0, 24, count)).astype(int)
        poly = np.polynomial.Polynomial.fit(x[chosen], line.loss[chosen], count - 1)
        fits.append(np.abs(poly(x) - line.loss).max() / line.loss.max())
    assert fits[0] < 1e-12
    assert fits[1] > 1e-4  # one point less is one too few


# --- Both ends, and everything between -----------------------------------------------------------


@pytest.mark.parametrize("name", models.CASES)
def test_the_ends_are_the_models_themselves(name):
    a, b, data, loss = two(name)
    line = between(a, b, data, loss)
    assert line.kind == "line"
    assert line.loss[0] == line.center_loss == lx.Objective(a, data, loss).loss()
    assert line.loss[-1] == lx.Objective(b, data, loss).loss()
    assert line.coordinates[0].tolist() == [0, 0.25, 0.5, 0.75, 1]


@pytest.mark.parametrize("name", models.CASES)
def test_every_point_against_a_loop_over_state_dicts(name):
    a, b, data, loss = two(name)
    line = between(a, b, data, loss, points=7, span=(-0.5, 1.5))
    for alpha, value in zip(line.coordinates[0], line.loss, strict=True):
        expected = models.Case(mixed(a, b, alpha), data, loss).reference()
        assert value == pytest.approx(expected, rel=2e-6)


class Numbers(nn.Module):
    def __init__(self, numbers, dtype=torch.float32):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(numbers).to(dtype))


def test_the_end_is_exact_where_the_difference_is_rounded():
    """``a + 1 (b - a)`` is 1 ulp off for many numbers, and far off for small ones after large."""
    a, b = Numbers([1.0, 3e7, 0.1]), Numbers([1e-9, 0.3, -7e6])
    read = lx.Objective(a, None, lambda m, _: (m.w.double() * 1e9).abs().sum())
    line = between(read, b, None, None, points=3)
    assert line.loss[-1] == float((b.w.detach().double() * 1e9).abs().sum())
    assert line.loss[0] == float((a.w.detach().double() * 1e9).abs().sum())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_ends_of_other_dtypes_are_exact(dtype):
    a, b = Numbers([1.0, 300.0, 0.1], dtype), Numbers([1e-4, 0.3, -70.0], dtype)
    read = lx.Objective(a, None, lambda m, _: (m.w.double() ** 2).sum())
    line = between(read, b, None, None, points=3)
    expected = [float((m.w.detach().double() ** 2).sum()) for m in (a, b)]
    assert line.loss[[0, -1]].tolist() == expected


def test_trap_16_variances_stop_at_zero_beyond_the_ends():
    a, b, data, loss = two("conv")
    with torch.no_grad():
        a.bn.running_var.fill_(0.5)
        b.bn.running_var.fill_(4.0)
    line = between(a, b, data, loss, points=7, span=(-1, 2))
    assert np.isfinite(line.loss).all()
    expected = models.Case(mixed(a, b, -1.0), data, loss).reference()
    assert line.loss[0] == pytest.approx(expected, rel=2e-6)
    assert "variances not below 0" in line.provenance["interpolation"]["beside the parameters"]


def test_trap_16_buffers_follow_and_counters_are_those_of_the_nearer_end():
    class Net(nn.Module):
        def __init__(self, weight, shift, count):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([weight]))
            self.register_buffer("shift", torch.tensor([shift]))
            self.register_buffer("count", torch.tensor(count))
            self.register_buffer("mask", torch.tensor([-shift, -torch.inf]))
            self.register_buffer("hidden", torch.tensor([shift]), persistent=False)

    a, b = Net(0.0, 10.0, 3), Net(0.0625, 20.0, 5)

    def read(m, _):
        assert torch.equal(m.mask, torch.tensor([-m.shift[0], -torch.inf]))
        return m.w[0] + m.shift[0] + 1000 * m.hidden[0] + 100000 * m.count

    line = between(lx.Objective(a, None, read), b, None, None, span=(0, 2), points=9)
    follow = [(10 + 10 * t) * 1001 + 0.0625 * t for t in line.coordinates[0]]
    counts = np.array([3, 3, 3, 5, 5, 5, 5, 5, 5]) * 1e5  # at 0.5 that of the first model
    np.testing.assert_allclose(line.loss, follow + counts, rtol=1e-7)
    assert "1 further tensor (count) copied" in str(line.provenance["interpolation"])


def test_every_point_starts_from_the_buffers_of_the_line_whatever_an_evaluation_did():
    class Counting(nn.Module):
        def __init__(self, shift):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([shift]))
            self.register_buffer("shift", torch.tensor([shift]))
            self.register_buffer("calls", torch.zeros(()))

    def read(m, _):
        m.calls += 1
        return m.w[0] + m.shift[0] + 100 * m.calls

    a, b = Counting(1.0), Counting(2.0)
    line = between(lx.Objective(a, None, read, check=False), b, None, None)
    assert line.loss[0] == line.center_loss
    assert a.calls == 0


@pytest.mark.parametrize("bn", ["recompute", "batch"])
def test_trap_38_statistics_are_recomputed_at_every_point(bn):
    a, b, data, loss = two("conv")
    line = between(a, b, data, loss, bn=bn, metrics=["accuracy"])
    for alpha, value in zip(line.coordinates[0], line.loss, strict=True):
        expected = lx.Objective(mixed(a, b, alpha), data, loss, bn=bn).loss()
        assert value == pytest.approx(expected, rel=2e-6)
    plain = between(a, b, data, loss)
    assert not np.allclose(plain.loss, line.loss, rtol=1e-3)
    assert line.provenance["interpolation"]["beside the parameters"] == "nothing moves"


def test_trap_22_tied_weights_move_once(tmp_path):
    a, b = (models.seeded(models.TiedLMHeadModel, s) for s in (0, 1))
    ids = torch.randint(0, 20, (6, 5))
    data = [{"input_ids": ids, "labels": ids}]
    line = between(a, b, data, None)
    half = mixed(a, b, 0.5)
    assert line.loss[2] == pytest.approx(half(ids, ids).loss.item(), rel=1e-6)
    # a file with one of the two names is the whole model
    state = {n: t for n, t in b.state_dict().items() if n != "embedding.weight"}
    safetensors.torch.save_file(state, tmp_path / "b.safetensors")
    assert between(a, tmp_path / "b.safetensors", data, None).equals(line)


def test_frozen_parameters_follow():
    a, b, data, loss = two("mlp")
    expected = between(a, b, data, loss)
    for p in a[0].parameters():
        p.requires_grad_(False)
    by_module = between(a, b, data, loss)
    objective = lx.Objective(a, data, loss)
    by_objective = between(objective, b, None, None)
    assert np.array_equal(by_module.loss, expected.loss)
    np.testing.assert_allclose(by_objective.loss, expected.loss, rtol=1e-6)
    assert by_objective.loss[-1] == expected.loss[-1]
    assert "2 further tensors" in str(by_objective.provenance["interpolation"])
    assert objective.space.size < expected.provenance["model"]["entries"]


def test_a_choice_of_parameters_moves_alone():
    """Single layers: what is not chosen stays at the first model, buffers included."""
    a, b, data, loss = two("conv")
    line = between(lx.Objective(a, data, loss, params=["head.*"]), b, None, None)
    expected = copy.deepcopy(a)
    expected.head = b.head
    assert line.loss[0] == lx.Objective(a, data, loss).loss()
    assert line.loss[-1] == lx.Objective(expected, data, loss).loss()


def test_trap_17_the_models_come_back_bit_for_bit(generators_untouched):
    a, b, data, _ = two("conv")
    for p in a.conv.parameters():
        p.requires_grad_(False)
    a.train()
    before = [reference.everything(m) for m in (a, b)]
    seen = []

    def read(model, batch):
        seen.append(model.bn.running_mean[0].item())
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    between(lx.Objective(a, data, read), b, None, None)
    assert len(set(seen)) == 5  # the buffers did move
    for kept, model in zip(before, (a, b), strict=True):
        assert reference.changes(kept, reference.everything(model)) == []


def test_the_models_come_back_when_the_loss_raises():
    a, b, data, _ = two("conv")
    start = a.state_dict()["bn.running_mean"].clone()
    before = reference.everything(a)

    def fails_on_the_way(model, batch):
        if not torch.equal(model.bn.running_mean, start):
            raise RuntimeError("on the way")
        return model(batch[0]).square().mean()

    with pytest.raises(RuntimeError, match="on the way"):
        between(lx.Objective(a, data, fails_on_the_way), b, None, None)
    assert reference.changes(before, reference.everything(a)) == []
