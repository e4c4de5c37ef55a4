"""Directions of one's own: taken as they are; refused if they do not fit, or span nothing."""

from __future__ import annotations

import math
import re

import models
import pytest
import torch
from axes_cases import named
from torch import nn

import landscapex as lx
from landscapex import _directions, axes
from landscapex.errors import (
    ArgumentError,
    ArgumentTypeError,
    DirectionError,
    LandscapexWarning,
    ParameterMismatchError,
)
from landscapex.model.parameters import ParameterSpace


def test_between_leads_to_the_other_models():
    a, b, c = (models.mlp(seed=s) for s in range(3))
    for ends in ([b], [b.state_dict(), c], [ParameterSpace(b).gather()]):
        d = axes.between(a, *ends)
        assert d.axes[0].default_span == (-0.5, 1.5)
        space = ParameterSpace(a)
        center = space.gather()
        space.move(center, d.vectors, [1.0] + [0.0] * (len(d) - 1))
        torch.testing.assert_close(space.gather(), ParameterSpace(b).gather(), rtol=0, atol=1e-7)
        space.move(center, d.vectors[:0], [])
    labels = [axis.label for axis in axes.between(a, b, c).axes]
    assert labels == ["towards the other model 1", "towards the other model 2"]


@pytest.mark.parametrize(
    "end", [lambda m: m, nn.Module.state_dict, lambda m: ParameterSpace(m).gather()]
)
def test_between_says_nothing_of_a_model_that_is_met(end):
    axis, *_ = axes.between(models.mlp(seed=0), end(models.mlp(seed=1))).axes
    assert axis.note == ""


@pytest.mark.parametrize(
    ("layers", "shown"), [(2, "(1.w)"), (4, "(1.w, 2.w, 3.w)"), (5, "(1.w, 2.w, 3.w, ...)")]
)
def test_between_names_up_to_three_tensors_that_it_leaves_behind(layers, shown):
    first, second = (
        nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(layers))) for _ in range(2)
    )
    objective = lx.Objective(first, [0], lambda m, b: 0, params=["0.weight"])
    message = f"differs in {layers - 1} tensors that do not move {shown}:".replace(".w", ".weight")
    with pytest.warns(LandscapexWarning, match=re.escape(message)):
        axes.between(objective, second)


def test_between_from_another_centre():
    a, b = models.mlp(seed=0), models.mlp(seed=1)
    center = torch.zeros(ParameterSpace(a).size)
    assert torch.equal(axes.between(a, b, center=center).vectors[0], ParameterSpace(b).gather())


def test_between_needs_a_model_that_fits():
    with pytest.raises(ArgumentError, match="`models` must hold at least one model, got none"):
        axes.between(models.mlp())
    with pytest.raises(ParameterMismatchError, match=r"model 1 must fit.*0.weight: shape \(5, 4\)"):
        axes.between(models.mlp(), models.mlp(4, 5, 3))


def test_given_directions_are_taken_as_they_are():
    model = models.mlp(2, 3, 1)
    tensors = [torch.randn(3, 2), torch.randn(3)]
    some = {"0.weight": tensors[0], "0.bias": tensors[1]}
    d = axes.given(model, [some, named(model)])
    assert torch.equal(d[0]["0.weight"], tensors[0])
    assert torch.equal(d[0]["0.bias"], tensors[1])
    assert not d[0]["2.weight"].any()
    assert torch.equal(d.vectors[1], ParameterSpace(model).gather())
    assert [a.note for a in d.axes] == ["parameters not given do not move", ""]
    assert d.axes[0].normalize is None


def test_a_given_direction_may_use_any_name_of_a_tied_weight():
    d = axes.given(models.TiedLMHeadModel(), {"head.weight": torch.ones(20, 12)})
    assert d[0]["embedding.weight"].sum() == 240


def test_a_tensor_of_directions_is_copied():
    vectors = torch.randn(2, 13)
    d = axes.given(models.mlp(2, 3, 1), vectors)
    kept = vectors.clone()
    vectors.zero_()
    assert torch.equal(d.vectors, kept)


@pytest.mark.parametrize(
    ("directions", "error", "message"),
    [
        (torch.ones(2, 4), DirectionError, "`directions` must have shape (K, 13), got (2, 4)."),
        (torch.ones(13), DirectionError, "`directions` must have shape (K, 13), got (13,)."),
        ([torch.ones(13)], ArgumentTypeError, "must hold mappings {parameter name: tensor}, got"),
        ([], ArgumentTypeError, "`directions` must be Directions, a tensor (K, P) or a"),
        (3.0, ArgumentTypeError, "or a sequence of mappings, got float."),
        (
            [{"x": torch.ones(1)}],
            ParameterMismatchError,
            "direction 1 must fit the parameters, got",
        ),
    ],
)
def test_given_directions_that_do_not_fit_are_refused(directions, error, message):
    with pytest.raises(error, match=re.escape(message)):
        axes.given(models.mlp(2, 3, 1), directions)


def test_the_gradient_is_a_direction():
    case = models.case("mlp")
    objective = lx.Objective(case.model, case.batches, case.loss)
    d = axes.gradient(objective)
    assert torch.equal(d.vectors[0], objective.gradient())
    assert (d.axes[0].source, d.axes[0].normalize) == ("gradient", None)


def test_directions_of_another_model_are_refused():
    space = ParameterSpace(models.mlp(10, 16, 3))
    with pytest.raises(DirectionError, match=r"the objective's 4 .*got \('0.weight', \(16, 9\)\)"):
        _directions.check_layout(axes.random(models.mlp(9, 16, 3)), space)
    with pytest.raises(DirectionError, match="got 2 parameters"):
        _directions.check_layout(axes.random(models.mlp(10, 16)), space)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([[0.0, 0.0]], "given direction 1 must not be zero everywhere, got length 0."),
        ([[1.0, 0.0], [0.0, 0.0]], "given direction 2 must not be zero everywhere"),
        ([[1.0, math.nan]], "given direction 1 must be finite, got a length of nan."),
        ([[math.inf, 1.0]], "given direction 1 must be finite, got a length of inf."),
        ([[1.0, 0.0], [-2.0, 1e-3]], "given direction 1 and given direction 2 must not be"),
    ],
)
def test_fault_13_directions_that_span_nothing_are_refused(vectors, message):
    d = axes.given(models.mlp(1, 1), torch.tensor(vectors))
    with pytest.raises(DirectionError, match=re.escape(message)):
        _directions.check_usable(d)


def test_fault_13_nearly_parallel_is_still_usable():
    d = axes.given(models.mlp(1, 1), torch.tensor([[1.0, 0.0], [1.0, 0.05]]))
    assert 0.998 < d.cosine()[0, 1] < _directions.PARALLEL
    _directions.check_usable(d)
