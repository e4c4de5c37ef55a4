"""How a line may be asked for: ends of every kind, files, shards, engines; and what is refused."""

from __future__ import annotations

import copy
import math

import models
import numpy as np
import pytest
import reference
import safetensors.torch
import torch
from interpolation_cases import QUIET, between, two
from torch import nn

import landscapex as lx
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
from landscapex.storage import opening
from landscapex.studies.interpolation import interpolate

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
