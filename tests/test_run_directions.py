"""Directions that a run makes itself, or that come with the point they start from."""

from __future__ import annotations

from dataclasses import dataclass

import models
import numpy as np
import pytest
import reference
import torch

import landscapex as lx
from landscapex.curvature import lanczos
from landscapex.errors import DirectionError, ResumeMismatchError

QUIET = {"progress": False}
CENTER = torch.tensor([0.5, -1.0], dtype=torch.float64)


class Quadratic(torch.nn.Module):
    """Two numbers at (1, 2); the loss is ``w^T A w / 2`` with eigenvalues 2 and 12."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))

    def forward(self):
        a = torch.tensor([[4.0, 4.0], [4.0, 10.0]], dtype=torch.float64)
        return self.w @ a @ self.w / 2


def quadratic():
    return lx.Objective(Quadratic(), None, lambda model, batch: model())


def test_eigenvectors_of_the_centre_span_a_surface():
    """The loss falls apart into one parabola per axis: eigenvalues 12 and 2, in this order."""
    objective = quadratic()
    before = reference.everything(objective.model)
    result = lx.surface(objective, directions="hessian", points=(5, 7), **QUIET)
    assert reference.changes(before, reference.everything(objective.model)) == []
    first = np.array([1.0, 2.0]) / np.sqrt(5)  # A (1, 2) = 12 (1, 2)
    start = np.array([1.0, 2.0])
    slopes = 12 * start @ first, 2 * start @ np.array([-2.0, 1.0]) / np.sqrt(5)
    a, b = result.coordinates
    expected = 30 + slopes[0] * a[:, None] + 6 * a[:, None] ** 2 + slopes[1] * b + b**2
    np.testing.assert_allclose(result.loss, expected, rtol=1e-10, atol=1e-12)
    assert [axis.label for axis in result.axes] == [
        "eigenvector 1 (λ = 12)",
        "eigenvector 2 (λ = 2)",
    ]


def test_an_axis_reaches_where_its_curvature_doubles_the_loss():
    result = lx.surface(quadratic(), directions="hessian", points=3, **QUIET)
    for axis, value in zip(result.axes, (12.0, 2.0), strict=True):
        assert axis.values == pytest.approx([-np.sqrt(60 / value), 0.0, np.sqrt(60 / value)])


def test_the_search_for_eigenvectors_starts_from_the_seed_of_the_run(monkeypatch):
    seeds, search = [], lanczos.eigenpairs

    def watched(*arguments, **options):
        seeds.append(options["seed"])
        return search(*arguments, **options)

    monkeypatch.setattr(lanczos, "eigenpairs", watched)
    lx.line(quadratic(), directions="hessian", points=2, seed=7, **QUIET)
    assert seeds == [7]


def test_eigenvectors_are_those_of_the_given_centre():
    """Of ``(w1 + w2^2)^2`` the top eigenvector turns with the point."""
    objective = lx.Objective(
        Quadratic(), None, lambda model, batch: (model.w[0] + model.w[1] ** 2) ** 2
    )
    at = torch.tensor([0.25, 0.5], dtype=torch.float64)
    result = lx.line(objective, directions="hessian", center=at, points=3, span=1e-3, **QUIET)
    low, high = np.linalg.eigh([[2.0, 4 * 0.5], [4 * 0.5, 4 * 0.25 + 12 * 0.25]])
    step = 1e-3 * high[:, -1] * np.sign(high[:, -1][np.abs(high[:, -1]).argmax()])
    expected = [objective.loss(at + s * torch.from_numpy(step)) for s in (-1, 0, 1)]
    np.testing.assert_allclose(result.loss, expected, rtol=1e-12)
    assert result.axes[0].label == f"eigenvector 1 (λ = {low[-1]:.4g})"


def test_a_run_along_eigenvectors_goes_on_to_the_same_bits(tmp_path):
    model, out = models.mlp(4, 5, 3), tmp_path / "s.nc"
    batch = torch.linspace(-1, 1, 24).view(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])

    def run(**options):
        options = {"directions": "hessian", "points": 5, **QUIET, **options}
        return lx.surface(model, [batch], "cross_entropy", **options)

    def stop(progress):
        raise StopIteration

    with pytest.raises(StopIteration):
        run(out=out, callback=stop)
    assert 0 < lx.open(out).evaluated.sum() < 25
    with pytest.raises(ResumeMismatchError, match="directions"):
        run(out=out, directions="random", span=[a.values[:: len(a.values) - 1] for a in run().axes])
    assert run(out=out).equals(run())


def test_more_axes_than_parameters_are_refused():
    with pytest.raises(DirectionError, match=r"a volume needs 3 direction\(s\), got 2"):
        lx.volume(quadratic(), directions="hessian", points=2, **QUIET)


@dataclass
class Path:
    """What a trajectory is to a run."""

    directions: lx.Directions
    center: torch.Tensor | None
    span: tuple[tuple[float, float], ...] = ((-1.0, 2.0), (0.0, 4.0))


@pytest.mark.parametrize(("asked", "used"), [(None, CENTER), (torch.zeros(2), torch.zeros(2))])
def test_a_plane_brings_its_centre_unless_another_is_asked_for(asked, used):
    objective = quadratic()
    plane = Path(lx.directions.given(objective, torch.eye(2)), CENTER)
    result = lx.surface(objective, directions=plane, center=asked, points=3, **QUIET)
    assert result.center_loss == objective.loss(used)
    options = {"directions": plane.directions, "span": plane.span, "points": 3, **QUIET}
    assert result.equals(lx.surface(objective, center=used, **options))


def test_a_plane_brings_its_span_unless_another_is_asked_for():
    objective = quadratic()
    plane = Path(lx.directions.given(objective, torch.eye(2)), CENTER)
    drawn = lx.surface(objective, directions=plane, points=4, **QUIET)
    assert [axis.values for axis in drawn.axes] == [(-1.0, 0.0, 1.0, 2.0), (0.0, 4 / 3, 8 / 3, 4.0)]
    asked = lx.surface(objective, directions=plane, points=2, span=0.5, **QUIET)
    assert [axis.values for axis in asked.axes] == [(-0.5, 0.5)] * 2


def test_a_plane_without_a_centre_starts_at_the_model():
    objective = quadratic()
    plane = Path(lx.directions.given(objective, torch.eye(2)), None)
    assert lx.surface(objective, directions=plane, points=3, **QUIET).center_loss == 30.0


def test_eigenvectors_by_name_are_those_that_can_be_made_before():
    objective = quadratic()
    made = lx.directions.hessian(objective, n=2)
    options = {"points": 3, **QUIET}
    named = lx.surface(objective, directions="hessian", **options)
    assert named.equals(lx.surface(objective, directions=made, **options))
