"""Lines between models: exact ends, everything that moves along, and what the curves say."""

from __future__ import annotations

import copy
import math
import warnings

import models
import numpy as np
import pytest
import reference
import safetensors.torch
import torch
from torch import nn

import landscapex as lx
from landscapex._pictures.interpolation import interpolation
from landscapex.engine.native import unavailable
from landscapex.errors import (
    ArgumentError,
    ArgumentTypeError,
    CaptureError,
    DirectionError,
    LandscapexWarning,
    ParameterMismatchError,
    ResumeMismatchError,
)
from landscapex.grids import line_measures
from landscapex.storage import opening
from landscapex.storage.header import AxisInfo, RunHeader
from landscapex.studies.interpolation import interpolate

QUIET = {"progress": False}


def between(a, b, data, loss, **options):
    """A line that warns of nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return interpolate(a, b, data, loss, **{"points": 5, **QUIET, **options})


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


def two(name):
    """Two models of one kind with different buffers, and data that fit them."""
    first = models.case(name)
    other = copy.deepcopy(first.model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for k, model in enumerate((first.model, other)):
            for p in model.parameters():
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
            for n, b in model.named_buffers():
                if n.endswith("running_var"):
                    b.copy_(torch.rand(b.shape, generator=generator) * 4 + 0.1)
                elif b.is_floating_point():
                    b.copy_(torch.randn(b.shape, generator=generator))
                else:
                    b.fill_(7 + k)
    return first.model, other, first.batches, first.loss


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


# --- Where the ends come from --------------------------------------------------------------------


def test_ends_may_be_states_files_and_objectives(tmp_path):
    a, b, data, loss = two("conv")
    expected = between(a, b, data, loss)
    torch.save(
        {"state_dict": {f"module.{n}": t for n, t in b.state_dict().items()}}, tmp_path / "b.pt"
    )
    safetensors.torch.save_file(a.state_dict(), tmp_path / "a.safetensors")
    carrier = models.case("conv").model
    untouched = reference.everything(carrier)
    for line in (
        between(lx.Objective(a, data, loss), b, None, None),
        between(a.state_dict(), b, data, loss),
        between(a, tmp_path / "b.pt", data, loss),
        between(tmp_path / "a.safetensors", str(tmp_path / "b.pt"), data, loss, model=carrier),
        between(a, lx.Objective(b, data, loss), None, None),
        between(nn.DataParallel(a), b, data, loss),
    ):
        assert np.array_equal(line.loss, expected.loss)
    assert reference.changes(untouched, reference.everything(carrier)) == []


def test_the_other_end_may_be_what_evaluates():
    """Its buffers must not be taken for those of the end once the start has been adopted."""
    a, b, data, loss = two("conv")
    line = between({n: t.clone() for n, t in a.state_dict().items()}, b, data, loss)
    assert line.loss[0] == lx.Objective(a, data, loss).loss()
    assert line.loss[-1] == lx.Objective(b, data, loss).loss()


@pytest.mark.parametrize("which", ["model_a", "model_b"])
def test_an_end_without_buffers_says_whose_are_used(which):
    a, b, data, loss = two("conv")
    flat = torch.cat([p.detach().reshape(-1) for p in b.parameters()])
    ends = (flat, a) if which == "model_a" else (a, flat)
    with pytest.warns(LandscapexWarning, match=f"`{which}` should have all buffers"):
        line = interpolate(*ends, data, loss, points=3, **QUIET)
    expected = copy.deepcopy(a)
    with torch.no_grad():
        for p, q in zip(expected.parameters(), b.parameters(), strict=True):
            p.copy_(q)
    end = 0 if which == "model_a" else -1
    assert line.loss[end] == lx.Objective(expected, data, loss).loss()


def test_no_warning_where_there_are_no_buffers_to_miss():
    a, b, data, loss = two("mlp")
    flat = torch.cat([p.detach().reshape(-1) for p in b.parameters()])
    assert np.array_equal(between(a, flat, data, loss).loss, between(a, b, data, loss).loss)


def test_counters_that_a_checkpoint_lacks_do_not_matter():
    """Files of old versions of torch have none, and evaluation mode does not read them."""
    a, b, data, loss = two("conv")
    state = {n: t for n, t in b.state_dict().items() if not n.endswith("num_batches_tracked")}
    assert np.array_equal(between(a, state, data, loss).loss, between(a, b, data, loss).loss)


def test_metrics_and_further_data_are_computed_too():
    a, b, data, loss = two("mlp")
    line = between(a, b, data, loss, metrics=["accuracy"], datasets={"test": data[:1]})
    assert line.columns == ("loss", "accuracy", "test_loss", "test_accuracy")
    end = lx.Objective(b, data[:1], loss, metrics=["accuracy"]).evaluate()
    assert line["test_accuracy"][-1] == end["accuracy"]
    assert line.measures("test_loss").barrier >= 0


def test_the_axis_says_what_the_coordinate_is():
    a, b, data, loss = two("mlp")
    (axis,) = between(a, b, data, loss).axes
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    distance = math.sqrt(sum(float((p - q).detach().double().square().sum()) for p, q in pairs))
    assert axis.label == "from one model to the other"
    assert axis.unit == f"1 = at the other model, ‖d‖ = {distance:.4g}"


# --- Files, shards, engines ----------------------------------------------------------------------


def test_a_finished_line_is_returned_and_another_end_refused(tmp_path):
    a, b, data, loss = two("conv")
    out = tmp_path / "line.nc"
    line = between(a, b, data, loss, out=out)
    assert between(a, b, data, loss, out=out).equals(line)
    other = copy.deepcopy(b)
    other.bn.running_var[0] += 1e-3  # the parameters are the same
    with pytest.raises(ResumeMismatchError, match="end:"):
        between(a, other, data, loss, out=out)
    with pytest.raises(ResumeMismatchError, match="computes: interpolation -> loss"):
        lx.line(
            a, data, loss, directions=lx.directions.between(a, dict(b.named_parameters())),
            span=(0, 1), points=5, out=out, **QUIET,
        )  # fmt: skip


def test_shards_give_the_same_bits(tmp_path):
    a, b, data, loss = two("conv")
    whole = between(a, b, data, loss, points=37)
    out = tmp_path / "line.nc"
    for k in (1, 0):
        between(a, b, data, loss, points=37, out=out, shard=(k, 2))
    assert opening.merge(out).equals(whole)


@pytest.mark.skipif(unavailable() is not None, reason="the compiled engine is not built")
def test_the_compiled_engine_meets_the_ends_exactly():
    a, b, data, loss = two("lenet")
    line = between(a, b, data, loss, engine="compiled")
    assert line.provenance["engine"]["name"] == "compiled"
    assert line.loss[0] == lx.Objective(a, data, loss).loss()
    assert line.loss[-1] == lx.Objective(b, data, loss).loss()
    np.testing.assert_allclose(line.loss, between(a, b, data, loss, engine="eager").loss, rtol=1e-5)


def test_buffers_that_follow_need_the_eager_engine():
    a, b, data, loss = two("conv")
    assert "follow the line" in between(a, b, data, loss).provenance["engine"]["why"]
    with pytest.raises(CaptureError, match="buffers and frozen parameters follow the line"):
        between(a, b, data, loss, engine="compiled")


# --- Errors --------------------------------------------------------------------------------------


def test_nothing_to_evaluate_with_is_refused():
    a, b, data, loss = two("mlp")
    with pytest.raises(ArgumentTypeError, match=r"`model` must be a module or an Objective if"):
        between(a.state_dict(), b.state_dict(), data, loss)
    with pytest.raises(ArgumentTypeError, match=r"a state must be a module.*got int"):
        between(a, 3, data, loss)


@pytest.mark.parametrize("option", [{"bn": "recompute"}, {"datasets": {"test": []}}])
def test_an_objective_keeps_its_own_options(option):
    a, b, data, loss = two("mlp")
    if "datasets" in option:
        option = {"datasets": {"test": data}}
    with pytest.raises(ArgumentError, match=f"with an Objective, {next(iter(option))} must be"):
        between(lx.Objective(a, data, loss), b, None, None, **option)


def test_models_that_do_not_fit_are_refused():
    a, b, data, loss = two("conv")
    other = models.mlp(10, 16, 3)
    with pytest.raises(ParameterMismatchError, match="`model_b` must fit the parameters"):
        between(a, other, data, loss)
    wide = {**b.state_dict(), "bn.running_mean": torch.zeros(9)}
    with pytest.raises(ParameterMismatchError, match=r"got shape \(9,\) instead of \(4,\) for bn"):
        between(a, wide, data, loss)


def test_an_end_that_is_not_finite_is_refused():
    a, b, data, loss = two("mlp")
    with torch.no_grad():
        b[0].bias[0] = torch.nan
    with pytest.raises(DirectionError, match="from one model to the other must be finite"):
        between(a, b, data, loss)


def test_equal_models_have_no_line():
    a, _, data, loss = two("mlp")
    with pytest.raises(DirectionError, match="from one model to the other must not be zero"):
        between(a, copy.deepcopy(a), data, loss)


# --- What a curve says ---------------------------------------------------------------------------


def curve(values, alpha=None, evaluated=None, column="loss"):
    values = np.asarray(values, dtype=np.float64)
    alpha = np.linspace(0, 1, values.size) if alpha is None else alpha
    axis = AxisInfo("alpha", tuple(alpha), "a line", "1 = there")
    columns = ("loss",) if column == "loss" else ("loss", column)
    done = np.ones(values.size, bool) if evaluated is None else np.array(evaluated)
    rows = np.stack([values] * len(columns), axis=1)
    return lx.Surface.from_run(RunHeader("line", (axis,), columns, {}), done, rows)


def slow_measures(a, j):
    """The definitions, literally."""
    n, pairs = len(j), range(len(j))
    barrier = max(j[k] - ((1 - a[k]) * j[0] + a[k] * j[-1]) for k in pairs)
    violation = sum(max(0.0, j[k + 1] - j[k]) for k in range(n - 1))
    bump = max((max(0.0, j[k] - j[i]) for k in pairs for i in range(k)), default=0.0)
    over = [0.0]
    for k in range(1, n - 1):
        t = (a[k] - a[k - 1]) / (a[k + 1] - a[k - 1])
        over.append(j[k] - ((1 - t) * j[k - 1] + t * j[k + 1]))
    return barrier, violation, max(over) / abs(j[0] - j[-1]), bump


@pytest.mark.parametrize("seed", range(5))
def test_measures_against_their_definitions(seed):
    rng = np.random.default_rng(seed)
    a = np.concatenate([[0.0], np.sort(rng.uniform(0.01, 0.99, 8)), [1.0]])
    j = rng.normal(size=10)
    line = curve(j, alpha=a)
    found = (line.barrier, line.monotone_violation, line.convexity_defect, line.bump)
    np.testing.assert_allclose(found, slow_measures(a, j), rtol=1e-12)
    assert not line.monotone


def test_only_the_way_between_the_models_counts():
    beyond = curve([9.0, 3.0, 2.0, 1.0, 8.0], alpha=[-0.5, 0.0, 0.5, 1.0, 1.5])
    assert beyond.monotone
    assert beyond.barrier == 0
    assert beyond.bump == 0


def test_a_convex_curve_has_no_defect_and_no_barrier():
    line = curve((np.linspace(0, 1, 11) - 0.8) ** 2)
    assert line.barrier == 0
    assert line.convexity_defect == 0
    assert line.bump == pytest.approx(0.04)
    assert not line.monotone


@pytest.mark.parametrize(("rise", "expected"), [(5e-7, True), (5e-6, False)])
def test_monotone_allows_for_the_noise_of_a_float32_mean(rise, expected):
    assert curve([1.0, 0.5, 0.5 + rise, 0.4]).monotone is expected


def test_a_slow_creep_upwards_is_not_monotone():
    """Every step is below the noise, the climb is not."""
    assert not curve(1 + np.linspace(0, 1e-5, 101)).monotone


@pytest.mark.parametrize(
    ("values", "evaluated"),
    [([1, np.nan, 0], [True] * 3), ([1, 2, 0], [True, False, True]), ([np.nan, 1, 2], [True] * 3)],
)
def test_what_is_not_known_is_not_hidden(values, evaluated):
    line = curve(values, evaluated=evaluated)
    for value in (line.barrier, line.monotone_violation, line.convexity_defect, line.bump):
        assert math.isnan(value)
    assert line.monotone is False


def test_a_nan_beyond_the_models_does_not_matter():
    assert curve([2, 1, np.nan], alpha=[0, 1, 2]).barrier == 0


def test_infinite_losses_make_infinite_barriers():
    line = curve([1, np.inf, 0.5])
    assert line.barrier == line.bump == line.monotone_violation == np.inf
    assert not line.monotone
    assert math.isnan(curve([np.inf, 1, 0]).barrier)
    assert curve([np.inf, 1, 0.5]).monotone


def test_defect_of_equal_ends_is_infinite_unless_convex():
    assert curve([1, 2, 1]).convexity_defect == np.inf
    assert curve([1, 0, 1]).convexity_defect == 0


def test_measures_of_another_column():
    line = curve([0, 3, 0], column="error")
    assert line.measures("error").barrier == 3
    with pytest.raises(ArgumentError, match="`column` must be one of"):
        line.measures("accuracy")


@pytest.mark.parametrize("name", ["barrier", "monotone", "monotone_violation", "bump"])
def test_measures_are_refused_for_planes(name):
    case = models.case("mlp")
    plane = lx.surface(case.model, case.batches, case.loss, points=2, **QUIET)
    with pytest.raises(ArgumentError, match="must be asked of a line, got a surface"):
        getattr(plane, name)
    with pytest.raises(ArgumentError, match="must be asked of a line, got a surface"):
        _ = plane.convexity_defect


def test_measures_need_both_models_among_the_points():
    with pytest.raises(ArgumentError, match=r"coordinates 0 and 1 among.* from 0 to 1\.2"):
        _ = curve([1, 2, 3], alpha=[0, 0.6, 1.2]).barrier
    inexact = curve([1, 2, 3], alpha=[0, 0.5, np.nextafter(1.0, 2)])
    assert inexact.barrier == 0
    assert isinstance(inexact.measures(), line_measures.LineMeasures)


# --- A real network, and its picture -------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    model, data, loss = lx.examples.digits()
    start = lx.examples.train_digits(epochs=0)
    return interpolate(
        start, model, data, loss, points=41, datasets={"test": lx.examples.digits_test()}, **QUIET
    )


def test_training_meets_no_obstacle_on_the_straight_line(trained):
    """Goodfellow, Vinyals, Saxe 2015: from the initialisation to the solution the loss falls."""
    assert trained.monotone
    assert trained.loss[0] > 2
    assert trained.loss[-1] < 0.05
    assert trained.measures("test_loss").bump < 1e-3 * trained["test_loss"][0]


def test_the_picture_shows_the_way_and_both_ends(trained):
    figure = interpolation(trained, column=["loss", "test_loss"], title="there")
    whole, start, end = figure.axes
    texts = [t.get_text() for t in whole.get_legend().get_texts()]
    assert texts[:2] == ["loss", "test loss"]
    assert texts[2].startswith("chord; barrier ")
    assert (start.get_xlim(), end.get_xlim()) == ((0, 0.1), (0.9, 1))
    low, high = end.get_ylim()
    near = np.stack([trained["loss"], trained["test_loss"]])[:, trained.coordinates[0] >= 0.9]
    assert low < near.min() < near.max() < high < 1
    (loss_curve, *_) = [x for x in whole.lines if len(x.get_xdata()) == 41]
    assert np.array_equal(loss_curve.get_ydata(), trained.loss)


def test_marks_outside_a_close_up_are_not_drawn_beside_it():
    """The grid minimum, at 0.5, is in neither of them."""
    figure = interpolation(curve([3.0, 2.0, 1.0, 2.0, 3.0]), zoom=(0.3, 0.7))
    close = figure.axes[1:]
    assert len(close) == 2
    assert all(line.get_clip_on() for ax in close for line in ax.lines)


def test_the_picture_of_several_lines_names_them(trained):
    figure = interpolation(trained, trained, labels=["one", "two"], zoom=None)
    assert len(figure.axes) == 1
    texts = [t.get_text() for t in figure.axes[0].get_legend().get_texts()]
    assert texts[:2] == ["one", "two"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"zoom": (0.9, 0.1)}, "`zoom` must be two increasing numbers or None"),
        ({"labels": ["a", "b"]}, "`labels` must be one name per result"),
        ({"column": "accuracy"}, "`column` must be one of loss"),
        ({"scale": "cubic"}, "`scale` must be one of"),
    ],
)
def test_pictures_that_cannot_be_drawn_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        interpolation(curve([1, 2, 3]), **options)
