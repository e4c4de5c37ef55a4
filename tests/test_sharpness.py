"""What all measures of sharpness have in common: invariances, the model, the data, arguments."""

from __future__ import annotations

import copy
import math
from dataclasses import FrozenInstanceError

import models
import numpy as np
import pytest
import reference
import torch
from sharpness_cases import (
    Vector,
    classification,
    quadratic,
    relu_net,
    whole,
)
from torch import nn
from torch.nn import functional as F

import landscapex as lx
from landscapex import sharpness
from landscapex.curvature.operators import hessian
from landscapex.errors import ArgumentError, ArgumentTypeError, NondeterministicLossError

MEASURES = {
    "sam": lambda o, **k: sharpness.sam(o, 0.1, **k),
    "asam": lambda o, **k: sharpness.asam(o, 0.1, **k),
    "m_sharpness": lambda o, **k: sharpness.m_sharpness(o, 5, 0.1, **k),
    "keskar": lambda o, **k: sharpness.keskar(o, 1e-2, **k),
    "average_case": lambda o, **k: sharpness.average_case(o, 0.1, 4, **k),
    "pac_bayes": lambda o, **k: sharpness.pac_bayes(o, 0.1, 4, **k),
    "relative_flatness": lambda o, **k: sharpness.relative_flatness(o, "2", **k),
    "relative_flatness, by products": lambda o, **k: sharpness.relative_flatness(o, "0", **k),
    "fisher_rao": lambda o, **k: sharpness.fisher_rao(o, **k),
    "local_learning_coefficient": lambda o, **k: sharpness.local_learning_coefficient(
        o, chains=2, steps=4, warmup=4, **k
    ),
}


# --- Invariances: CHECKS F4 ----------------------------------------------------------------------


def rescaled(model, factors):
    """Rows of the first layer times factors, columns of the second divided: the same function."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin[0].weight *= factors[:, None]
        twin[2].weight /= factors
    return twin


def pair_of(factors):
    model = relu_net()
    pair = classification(model), classification(rescaled(model, factors))
    assert pair[0].loss() == pytest.approx(pair[1].loss(), rel=1e-13)
    return pair


SINGLE = torch.linspace(0.3, 4.0, 12).double()
COMMON = torch.full((12,), 3.0).double()

UNCHANGED = {
    "asam": lambda o: sharpness.asam(o, 0.3).value,
    "asam, ten steps": lambda o: sharpness.asam(o, 0.3, steps=10).value,
    "m-sharpness, adaptive": lambda o: sharpness.m_sharpness(o, 5, 0.3, adaptive=True).value,
    "average case, adaptive": lambda o: sharpness.average_case(o, 0.3, 5, adaptive=True).value,
    "pac bayes, adaptive": lambda o: sharpness.pac_bayes(o, 0.1, 4, adaptive=True).value,
    "fisher-rao": lambda o: sharpness.fisher_rao(o).value,
    "fisher-rao, definition": lambda o: sharpness.fisher_rao(o, method="definition").value,
    "relative flatness, rows": lambda o: sharpness.relative_flatness(o, "0", products=200).value,
}
CHANGED = {
    "sam": lambda o: sharpness.sam(o, 0.1).value,
    "asam, eta": lambda o: sharpness.asam(o, 0.3, eta=0.05).value,
    "m-sharpness": lambda o: sharpness.m_sharpness(o, 5, 0.1).value,
    "average case": lambda o: sharpness.average_case(o, 0.1, 5).value,
    "pac bayes": lambda o: sharpness.pac_bayes(o, 0.1, 4).value,
    "keskar": lambda o: sharpness.keskar(o, 0.01).value,
    "trace": lambda o: float(hessian(o).trace(products=200)),
    "largest eigenvalue": lambda o: float(hessian(o).eigenvalues(1).values[0]),
    "relative flatness, inputs": lambda o: sharpness.relative_flatness(o, "2").value,
}


@pytest.mark.parametrize("name", UNCHANGED)
def test_check_f4_unchanged_when_nodes_are_rescaled(name):
    before, after = map(UNCHANGED[name], pair_of(SINGLE))
    assert after == pytest.approx(before, rel=1e-10)


@pytest.mark.parametrize("name", CHANGED)
def test_check_f4_changed_when_nodes_are_rescaled(name):
    before, after = map(CHANGED[name], pair_of(SINGLE))
    assert abs(after / before - 1) > 0.05


@pytest.mark.parametrize("layer", ["0", "2"])
def test_check_f4_relative_flatness_is_unchanged_under_a_common_factor(layer):
    before, after = (
        sharpness.relative_flatness(o, layer, products=200).value for o in pair_of(COMMON)
    )
    assert after == pytest.approx(before, rel=1e-10)


# --- The model, the data, the random numbers -----------------------------------------------------


@pytest.mark.parametrize("name", MEASURES)
def test_the_model_and_the_generators_come_back(name, generators_untouched):
    model = models.mlp(10, 6, 3).train()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    objective = classification(model.double())
    objective.loss()
    before = reference.everything(model)
    first = MEASURES[name](objective)
    assert not reference.changes(before, reference.everything(model))
    again = MEASURES[name](objective)
    assert again.value == first.value
    assert again.standard_error == first.standard_error


@pytest.mark.parametrize("name", MEASURES)
def test_a_centre_stands_for_a_model_that_is_there(name):
    model, other = relu_net(bias=True), relu_net(bias=True, seed=5)
    there = MEASURES[name](classification(other))
    objective = classification(model)
    found = MEASURES[name](objective, center=classification(other).space.gather())
    assert found.value == pytest.approx(there.value, rel=1e-12)
    assert found.loss == there.loss
    assert found.value != MEASURES[name](objective).value


@pytest.mark.parametrize(
    "name", sorted(set(MEASURES) - {"m_sharpness", "local_learning_coefficient"})
)
def test_trap_20_every_batch_counts(name):
    """Batches of 10, 10 and 5 give what one batch of all gives, and the first alone does not."""
    model = relu_net()
    split = classification(model)
    x, y, _ = whole(split)
    joined = lx.Objective(model, [(x, y)], "cross_entropy")
    first = lx.Objective(model, [(x[:10], y[:10])], "cross_entropy")
    found = [MEASURES[name](o).value for o in (split, joined, first)]
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert abs(found[2] / found[1] - 1) > 1e-3


def test_a_loss_that_differs_from_time_to_time_is_refused_or_gets_the_same_draws(
    generators_untouched,
):
    """Differences of losses would be differences of dropout."""

    def loss(model, batch):
        return F.cross_entropy(F.dropout(model(batch[0]), 0.5), batch[1])

    x, y, _ = whole(classification(relu_net()))
    for measure in (sharpness.sam, lambda o: sharpness.average_case(o, 1e-9, 4)):
        with pytest.raises(NondeterministicLossError, match="loss at the centre must be the same"):
            measure(lx.Objective(relu_net(), (x, y), loss))
    steady = lx.Objective(relu_net(), (x, y), loss, check=False)
    assert abs(sharpness.average_case(steady, 1e-9, 4).value) < 1e-9


@pytest.mark.parametrize("name", models.CASES)
def test_every_kind_of_model_is_served(name):
    """Convolutions, batch norm, recurrent layers, attention, losses of the model itself."""
    case = models.case(name)
    objective = lx.Objective(case.model, case.batches, case.loss)
    before = reference.everything(case.model)
    found = sharpness.sam(objective, 0.01)
    slope = float(objective.gradient().norm())
    assert found.value == pytest.approx(0.01 * slope, rel=0.2)
    assert sharpness.m_sharpness(objective, None, 0.01).value >= 0.9 * found.value
    assert sharpness.average_case(objective, 1e-3, 2).losses == 6
    assert sharpness.keskar(objective, 1e-4, iterations=2).value > 0
    assert not reference.changes(before, reference.everything(case.model))
    if case.loss == "cross_entropy":
        head = [n for n, p in case.model.named_parameters() if p.ndim == 2][-1]
        exact = sharpness.relative_flatness(objective, head)
        assert exact.settings["method"] == "closed form"
        by_products = sharpness.relative_flatness(objective, head, method="trace", products=40)
        low, high = by_products.interval(0.9999)
        slack = 1e-4 * exact.value
        assert low - slack <= exact.value <= high + slack
        assert sharpness.fisher_rao(objective).value > 0


@pytest.mark.parametrize("name", ["sam", "average_case", "keskar"])
def test_float32_models_agree_with_float64(name):
    wide = relu_net(bias=True)
    narrow = copy.deepcopy(wide).float()
    objective = classification(wide)
    x, y, _ = whole(objective)
    found = MEASURES[name](lx.Objective(narrow, (x.float(), y), "cross_entropy"))
    tolerance = 0.05 if name == "average_case" else 2e-3  # draws of float64 are not rounded
    assert found.value == pytest.approx(MEASURES[name](objective).value, rel=tolerance)


@pytest.mark.parametrize("name", MEASURES)
def test_a_result_says_what_it_was_taken_of(name):
    found = MEASURES[name](classification(relu_net()))
    measure = name.partition(",")[0]
    assert found.measure == measure
    assert float(found) == found.value
    assert found.provenance["data"]["data"]["samples"] == 25
    assert found.provenance["options"]["bn"] == "no batch norm"
    assert found.provenance["versions"]["torch"] == torch.__version__
    other = MEASURES[name](classification(relu_net(seed=1))).provenance["fingerprint"]
    mine = found.provenance["fingerprint"]
    assert [key for key in mine if mine[key] != other[key]] == ["parameters"]
    assert repr(found).startswith(f"Sharpness({measure} = ")
    assert ("±" in repr(found)) is (found.standard_error is not None)
    assert found.losses >= 1
    with pytest.raises(FrozenInstanceError):
        found.value = 0.0
    if len(found.increases):
        with pytest.raises(ValueError, match="read-only"):
            found.increases[0] = 0.0
    low, high = found.interval()
    assert (low == high == found.value) is (found.standard_error is None)


def test_batch_norm_with_batch_statistics_has_a_gradient_and_recomputed_ones_have_none():
    model = nn.Sequential(nn.Linear(10, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).double()
    values = {
        bn: sharpness.sam(classification(model, bn=bn), 0.1).value for bn in ("eval", "batch")
    }
    assert values["eval"] != values["batch"]
    recomputed = classification(model, bn="recompute")
    with pytest.raises(ArgumentError, match="`bn` must be 'eval' or 'batch' for a gradient"):
        sharpness.sam(recomputed)
    assert sharpness.average_case(recomputed, 0.05, 3).provenance["options"]["bn"] == "recompute"


# --- Arguments -----------------------------------------------------------------------------------


def infinite(model, batch):
    return model.w.sum() / 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda o: sharpness.sam(o.model), ArgumentTypeError,
         "`objective` must be an Objective, got Sequential"),
        (lambda o: sharpness.fisher_rao(o.model), ArgumentTypeError, "must be an Objective"),
        (lambda o: sharpness.relative_flatness(o.model, "0"), ArgumentTypeError,
         "must be an Objective"),
        (lambda o: sharpness.sam(o, 0.0), ArgumentError,
         "`rho` must be a finite number above 0, got 0.0"),
        (lambda o: sharpness.sam(o, math.nan), ArgumentError, "`rho` must be .* got nan"),
        (lambda o: sharpness.sam(o, True), ArgumentError, "`rho` must be .* got True"),
        (lambda o: sharpness.sam(o, steps=0), ArgumentError, "`steps` must be at least 1, got 0"),
        (lambda o: sharpness.sam(o, steps=1.5), ArgumentTypeError,
         "`steps` must be a whole number, got 1.5"),
        (lambda o: sharpness.asam(o, -1), ArgumentError, "`rho` must be .* got -1"),
        (lambda o: sharpness.asam(o, eta=-0.1), ArgumentError,
         "`eta` must be a finite number of at least 0, got -0.1"),
        (lambda o: sharpness.sam(quadratic(np.eye(2), [0.0, 0.0])), ArgumentError,
         "gradient at the point must not be zero"),
        (lambda o: sharpness.sam(lx.Objective(Vector([1.0]), None, infinite)), ArgumentError,
         "loss at the point must be finite, got inf"),
        (lambda o: sharpness.m_sharpness(o, 0), ArgumentError, "`m` must be at least 1, got 0"),
        (lambda o: sharpness.m_sharpness(o, 26), ArgumentError,
         "`m` must be at most 25, the number of samples, got 26"),
        (lambda o: sharpness.m_sharpness(o, 5, groups=1), ArgumentError,
         "`groups` must be at least 2, got 1"),
        (lambda o: sharpness.m_sharpness(o, 5, groups=6), ArgumentError,
         "`groups` must be at most 5, got 6"),
        (lambda o: sharpness.m_sharpness(o, 5, seed=0.5), ArgumentTypeError,
         "`seed` must be a whole number, got 0.5"),
        (lambda o: sharpness.m_sharpness(quadratic(np.eye(2), [1.0, 0.0]), 1), ArgumentError,
         "`m` must be None, for the objective's own batches"),
        (lambda o: sharpness.keskar(o, 0), ArgumentError, "`epsilon` must be .* got 0"),
        (lambda o: sharpness.keskar(o, subspace=0), ArgumentError,
         "`subspace` must be at least 1, got 0"),
        (lambda o: sharpness.keskar(o, subspace=1000), ArgumentError,
         "`subspace` must be at most 156, the number of parameters, got 1000"),
        (lambda o: sharpness.keskar(o, iterations=0), ArgumentError,
         "`iterations` must be at least 1, got 0"),
        (lambda o: sharpness.keskar(quadratic(np.eye(1), [1.0], constant=-1.5)), ArgumentError,
         "loss must be above -1 for this measure, got -1.0"),
        (lambda o: sharpness.keskar(
            lx.Objective(Vector([1.0]), None, lambda m, b: -(1.001 - m.w).log().sum()), 0.1),
         ArgumentError, "`epsilon` must keep the loss finite in its box, got"),
        (lambda o: sharpness.average_case(o, 0.0), ArgumentError, "`sigma` must be .* got 0.0"),
        (lambda o: sharpness.average_case(o, 0.1, 1), ArgumentError,
         "`samples` must be at least 2, got 1"),
        (lambda o: sharpness.average_case(o, 0.1, seed="a"), ArgumentTypeError,
         "`seed` must be a whole number, got 'a'"),
        (lambda o: sharpness.pac_bayes(o, -0.1), ArgumentError, "`increase` must be .* got -0.1"),
        (lambda o: sharpness.pac_bayes(o, samples=1), ArgumentError,
         "`samples` must be at least 2, got 1"),
        (lambda o: sharpness.pac_bayes(o, tolerance=1.0), ArgumentError,
         "`tolerance` must lie between 0 and 1, got 1.0"),
        (lambda o: sharpness.relative_flatness(o, "fc3"), ArgumentError,
         "`layer` must name a layer with a weight .* got 'fc3'; there are 0.weight, 2.weight"),
        (lambda o: sharpness.relative_flatness(o, "2.wieght"), ArgumentError,
         "got '2.wieght'; did you mean '2.weight'?"),
        (lambda o: sharpness.relative_flatness(o, ""), ArgumentError, "`layer` must name a layer"),
        (lambda o: sharpness.relative_flatness(o, 2), ArgumentTypeError,
         "`layer` must be a name, got int"),
        (lambda o: sharpness.relative_flatness(classification(relu_net(bias=True)), "0.bias"),
         ArgumentError, "`layer` must have a weight with one row per output unit .* shape"),
        (lambda o: sharpness.relative_flatness(lx.Objective(nn.ConvTranspose1d(1, 2, 2), None,
                                                            infinite), "weight"),
         ArgumentError, "one row per output unit along axis 0, got a transposed convolution"),
        (lambda o: sharpness.relative_flatness(o, "0", method="exact"), ArgumentError,
         "`method` must be one of auto, closed form, trace, got 'exact'"),
        (lambda o: sharpness.relative_flatness(o, "0", products=1), ArgumentError,
         "`products` must be at least 2, got 1"),
        (lambda o: sharpness.local_learning_coefficient(o, localization=0), ArgumentError,
         "`localization` must be a finite number above 0, got 0"),
        (lambda o: sharpness.local_learning_coefficient(o, chains=1), ArgumentError,
         "`chains` must be at least 2, got 1"),
        (lambda o: sharpness.local_learning_coefficient(o, steps=0), ArgumentError,
         "`steps` must be at least 1, got 0"),
        (lambda o: sharpness.local_learning_coefficient(o, warmup=-1), ArgumentError,
         "`warmup` must be at least 0, got -1"),
        (lambda o: sharpness.local_learning_coefficient(o, beta=-1.0), ArgumentError,
         "`beta` must be a finite number above 0, got -1.0"),
        (lambda o: sharpness.local_learning_coefficient(quadratic(np.eye(1), [1.0])),
         ArgumentError, "`beta` must be given for fewer than 2 samples, got 1"),
        (lambda o: sharpness.fisher_rao(o, method="exact"), ArgumentError,
         "`method` must be one of auto, closed form, definition, got 'exact'"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(call, error, message):
    objective = classification(relu_net())
    with pytest.raises(error, match=message):
        call(objective)


def test_gradients_are_refused_in_inference_mode():
    objective = classification(relu_net())
    with (
        torch.inference_mode(),
        pytest.raises(ArgumentError, match=r"outside torch\.inference_mode"),
    ):
        sharpness.sam(objective)
