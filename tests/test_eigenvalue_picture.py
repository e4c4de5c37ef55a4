"""The picture of eigenvalues with their residuals."""

from __future__ import annotations

import warnings

import numpy as np
import torch

from landscapex import plot
from landscapex.curvature.lanczos import eigenpairs
from landscapex.curvature.linear import SymmetricOperator


def found(max_products: int | None = None):
    values = torch.linspace(-1, 5, 60, dtype=torch.float64)
    operator = SymmetricOperator(lambda v: values * v, 60, values.dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return eigenpairs(operator, 4, "BE", max_products=max_products)


def test_values_fall_and_those_that_did_not_converge_are_told_apart():
    pairs = found(max_products=24)
    assert not pairs.converged.all()
    figure = pairs.plot(title="ends")
    ax = figure.axes[0]
    drawn = np.concatenate([line.get_ydata() for line in ax.lines if line.get_marker() == "o"])
    assert sorted(drawn) == sorted(pairs.values)
    words = {t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text"))}
    assert "not converged" in words
    assert "ends" in words


def test_converged_values_need_no_second_entry():
    figure = plot.eigenvalues(found())
    words = {t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text"))}
    assert "not converged" not in words
    assert "converged" in words
    ax = figure.axes[0]
    places = next(line.get_ydata() for line in ax.lines if line.get_marker() == "o")
    assert (np.diff(places) < 0).all()
