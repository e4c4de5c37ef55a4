"""What curvature operators say: of themselves and their results, in warnings and refusals."""

from __future__ import annotations

import inspect
import sys
import time

import pytest
import torch
from curvature_cases import classifier, probe, split
from torch import nn
from torch.nn import functional as F

import landscapex as lx
from landscapex.curvature import operators
from landscapex.curvature.density import spectral_density
from landscapex.curvature.diagonal import diagonal
from landscapex.curvature.lanczos import eigenpairs
from landscapex.curvature.linear import SymmetricOperator
from landscapex.curvature.operators import KINDS, Curvature, hessian
from landscapex.curvature.trace import trace
from landscapex.errors import (
    ArgumentError,
    ArgumentTypeError,
    LandscapexWarning,
    LossError,
    ParameterMismatchError,
)

# --- Names and methods ---------------------------------------------------------------------------

METHODS = {
    "eigenvalues": eigenpairs,
    "spectral_density": spectral_density,
    "trace": trace,
    "diagonal": diagonal,
}


@pytest.mark.parametrize("name", METHODS)
def test_methods_show_and_pass_on_all_options(name, monkeypatch):
    """What `help` and Tab show; only the bar, which others do without, is there by default."""
    options = dict(inspect.signature(METHODS[name]).parameters)
    del options["operator"]
    options["progress"] = options["progress"].replace(default=True)
    method = getattr(Curvature, name)
    assert dict(list(inspect.signature(method).parameters.items())[1:]) == options
    for option in options:
        assert f"        {option}: " in method.__doc__
    told = []
    monkeypatch.setattr(operators, METHODS[name].__name__, lambda *a, **k: told.append((a, k)))
    model, x, y = classifier()
    operator = hessian(model, [(x, y)], "cross_entropy")
    given = {option: object() for option in options}
    getattr(operator, name)(**given)
    ((first, *positional), named) = told[0]
    assert first is operator
    assert {**dict(zip(options, positional, strict=False)), **named} == given


@pytest.mark.parametrize("name", METHODS)
def test_a_misspelt_option_names_the_method_that_was_called(name):
    model, x, y = classifier()
    operator = hessian(model, [(x, y)], "cross_entropy")
    with pytest.raises(TypeError, match=rf"{name}\(\) got an unexpected keyword argument 'probs'"):
        getattr(operator, name)(probs=3)


def test_long_work_shows_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    model, x, y = classifier()
    operator = hessian(model, [(x, y)], "cross_entropy")
    apply = operator._product
    monkeypatch.setattr(operator, "_product", lambda v: time.sleep(0.2) or apply(v))
    operator.trace(products=5)
    assert "trace" in capsys.readouterr().err
    operator.trace(products=5, progress=False)
    assert capsys.readouterr().err == ""


def test_provenance_and_repr():
    model, x, y = classifier()
    operator = hessian(model, split(x, y, [8, 2]), "cross_entropy", params="2.*")
    assert repr(operator).startswith("Curvature(hessian, P=18 in 2 tensors, float64, cpu, loss ")
    found = operator.provenance
    assert found["kind"] == "hessian"
    assert found["parameters"] == ["2.weight", "2.bias"]
    assert found["batch_norm"] == "no batch norm"
    assert found["seed"] is None
    assert found["asymmetry"] < 1e-14
    assert found["data"]["data"]["samples"] == 10
    assert len(found["fingerprint"]["parameters"]) == 64
    assert isinstance(operator, SymmetricOperator)


NAMES = {
    "hessian": "Hessian",
    "ggn": "Gauss-Newton matrix",
    "fisher": "Fisher matrix",
    "empirical_fisher": "empirical Fisher matrix",
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_result_says_of_what_matrix_it_is(kind):
    model, x, y = classifier()
    operator = hessian(model, split(x, y, [8, 2]), "cross_entropy", kind=kind)
    name = NAMES[kind]
    assert operator.name == operator.provenance["matrix"] == name
    graph = "the gradient" if kind == "hessian" else "the output and its Jacobian"
    words = f"{name}: the graph of {graph}, kept for 2 of 2 batches"
    assert operator.provenance["method"].startswith(words)
    pairs, density = operator.eigenvalues(2), operator.spectral_density(probes=1, steps=5)
    results = {
        "Eigenpairs": pairs,
        "SpectralDensity": density,
        "TraceEstimate": operator.trace(products=12),
        "DiagonalEstimate": operator.diagonal(products=12),
        "Estimate": density.outliers(0.1),
    }
    for start, found in results.items():
        assert found.matrix == name
        assert repr(found).startswith(f"{start}({name}, ")
    assert operator.trace(products=99).effective_rank.matrix == name
    assert operator.diagonal(products=99).trace.matrix == name
    of = "" if kind == "hessian" else f" of the {name}"
    assert pairs.directions(operator).axes[1].label.startswith(f"eigenvector 2{of} (")
    block = operator.restrict("0.*")
    assert block.eigenvalues(1).matrix == block.name == name
    titles = [figure.axes[0].get_title("left") for figure in (pairs.plot(), density.plot())]
    assert titles[0].split() == f"2 eigenvalues of the {name} (LA)".split()
    assert titles[1].split() == f"Spectral density of 43 eigenvalues of the {name}".split()


def test_parts_of_a_matrix_say_which():
    model, x, y = classifier()
    found = hessian(model, [(x, y)], "cross_entropy", kind="ggn").class_decomposition()
    for part, operator in found.parts.items():
        assert operator.name == f"part {part!r} of the Gauss-Newton matrix"
    assert found.traces(products=12)["cross"].matrix == found.parts["cross"].name
    assert found.directions(1).axes[0].label.startswith("between classes 1 of the Gauss-Newton m")


def test_products_by_the_models_own_tensors_say_so():
    model, x, y = classifier()
    held = model[0].weight
    objective = lx.Objective(
        model, [(x, y)], lambda m, b: F.cross_entropy(m(b[0]), b[1]) + held.square().sum()
    )
    method = hessian(objective).provenance["method"]
    assert method.startswith("Hessian: the gradient of every batch anew at each product, by the mo")


def test_warnings_point_at_the_line_that_asked():
    model, x, y = classifier()
    operator = hessian(model, [(x, y)], "cross_entropy")
    asked = [
        lambda: operator.eigenvalues(3, max_products=8),
        lambda: eigenpairs(operator, 3, max_products=8),
        lambda: operator.trace(products=12, tol=1e-9),
        lambda: trace(operator, products=12, tol=1e-9),
    ]
    for ask in asked:
        with pytest.warns(LandscapexWarning, match="products") as caught:
            ask()
        assert [w.filename for w in caught] == [__file__]
        assert caught[0].lineno == ask.__code__.co_firstlineno


# --- What is refused, and what is not ------------------------------------------------------------


class Half(torch.autograd.Function):
    """Its backward pass computes where torch does not see it."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, grad):
        return torch.from_numpy(2 * ctx.saved_tensors[0].numpy(force=True) * grad.numpy(force=True))


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_a_backward_pass_that_hides_from_torch_is_refused(kind):
    """Everything below it is a constant to torch: part of the matrix, and not symmetric."""

    class Squared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.b(Half.apply(self.a(x)))

    _, x, y = classifier()
    with pytest.raises(LossError, match=r"must be symmetric, got a relative difference .*Half"):
        hessian(Squared(), [(x.float(), y)], "cross_entropy", kind=kind)


def test_inference_mode_is_refused():
    model, x, y = classifier()
    with (
        torch.inference_mode(),
        pytest.raises(ArgumentError, match=r"outside torch.inference_mode"),
    ):
        hessian(model, [(x, y)], "cross_entropy")


def test_no_grad_around_it_does_not_matter():
    model, x, y = classifier()
    with torch.no_grad():
        operator = hessian(model, [(x, y)], "cross_entropy", memory=0)
        inside = operator @ probe(operator)
    assert torch.equal(inside, hessian(model, [(x, y)], "cross_entropy") @ probe(operator))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"kind": "gauss"}, ArgumentError, "`kind` must be one of hessian, ggn, fisher, empirical"),
        ({"kind": "fisher", "samples": 0}, ArgumentError, "`samples` must be at least 1, got 0"),
        ({"memory": -1}, ArgumentError, "`memory` must be at least 0, got -1"),
        ({"memory": 0.5}, ArgumentTypeError, "`memory` must be a whole number, got 0.5"),
        ({"seed": 1.5}, ArgumentTypeError, "`seed` must be a whole number, got 1.5"),
        ({"params": "9.*"}, ParameterMismatchError, r"`params` must name parameters .* '9\.\*'"),
        (
            {"kind": "ggn", "loss": lambda m, b: m(b[0]).sum()},
            LossError,
            "kind='ggn' must see the output of the model and the loss apart: `loss` must be a name",
        ),
        (
            {"kind": "ggn", "loss": "kl_div"},
            LossError,
            "the loss must be convex in the output of the model for kind='ggn': one of .* kl_div",
        ),
        (
            {"kind": "fisher", "loss": "smooth_l1_loss"},
            LossError,
            "the negative logarithm of a probability of labels for kind='fisher'",
        ),
        (
            {"kind": "ggn", "loss": "nll_loss"},
            LossError,
            "`nll_loss` must get logarithms of probabilities, which sum to 1, got a sum of",
        ),
    ],
)
def test_errors_say_what_must_hold(options, error, match):
    model, x, y = classifier()
    options = {"loss": "cross_entropy", **options}
    loss = options.pop("loss")
    with pytest.raises(error, match=match):
        hessian(model, [(x, y)], loss, **options)


def test_parameters_outside_the_objective_are_refused():
    model, x, y = classifier()
    objective = lx.Objective(model, [(x, y)], "cross_entropy", params="2.*")
    with pytest.raises(ParameterMismatchError, match=r"`params` must choose among the 2 .*0\.bias"):
        hessian(objective, params="*.bias")


def test_targets_of_another_shape_are_refused():
    model = nn.Linear(4, 1)
    with pytest.raises(
        LossError, match="the target must have the shape of the output for mse_loss"
    ):
        hessian(model, [(torch.randn(5, 4), torch.randn(5))], "mse_loss", kind="empirical_fisher")
