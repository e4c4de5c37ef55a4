"""What is taken for a point: modules, state_dicts, files and vectors, under any prefix."""

from __future__ import annotations

import copy

import models
import pytest
import safetensors.torch
import torch
from torch import nn

import landscapex as lx
from landscapex.errors import ArgumentTypeError, ParameterMismatchError

QUIET = {"points": 3, "progress": False}
DATA = torch.linspace(-1, 1, 12).view(4, 3), torch.zeros(4, 1)


def batch_normed(seed):
    """A network whose buffers matter."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    with torch.no_grad():
        for t in (*model.parameters(), model[1].running_mean):
            t.copy_(torch.randn(t.shape, generator=generator))
    return model.eval()


def objective():
    return lx.Objective(batch_normed(0), DATA, "mse_loss")


def prefixed(model):
    return {f"module.{name}": t for name, t in model.state_dict().items()}


def as_file(state, path):
    torch.save(state, path)
    return path


def as_safetensors(state, path):
    safetensors.torch.save_file(state, path)
    return str(path)


FORMS = {
    "module": lambda model, folder: model,
    "wrapped": lambda model, folder: nn.DataParallel(model),
    "state_dict": lambda model, folder: model.state_dict(),
    "prefixed": lambda model, folder: prefixed(model),
    "path": lambda model, folder: as_file(model.state_dict(), folder / "m.pt"),
    "prefixed path": lambda model, folder: as_file(prefixed(model), folder / "m.pt"),
    "safetensors": lambda model, folder: as_safetensors(prefixed(model), folder / "m.safetensors"),
}


@pytest.fixture(params=FORMS)
def given(request, tmp_path):
    """Another model, and the same in one of its forms."""
    other = batch_normed(1)
    return other, FORMS[request.param](other, tmp_path)


def test_a_centre_may_be_given_in_any_form(given):
    other, form = given
    o = objective()
    expected = lx.Objective(other, DATA, "mse_loss").loss()
    assert o.loss(form) == expected != o.loss()
    assert lx.line(o, center=form, **QUIET).center_loss == expected
    assert torch.equal(o.gradient(form), o.gradient(other.state_dict()))


def test_directions_take_other_models_and_centres_in_any_form(given):
    other, form = given
    o = objective()
    flat = o.space.vector(other, what="other")
    with pytest.warns(lx.errors.LandscapexWarning, match="running_mean"):
        towards = lx.directions.between(o, form)
    assert torch.equal(towards.vectors[0], flat - o.space.gather())
    for directions in (
        lambda center: lx.directions.random(o, center=center),
        lambda center: lx.directions.gradient(o, center=center),
        lambda center: lx.directions.between(o, flat * 2, center=center),
    ):
        # a vector has no buffers, which gradients depend on
        at = other.state_dict()
        assert torch.equal(directions(form).vectors, directions(at).vectors)
    pieces = lx.directions.random_in_pieces(o, center=form)
    assert pieces.fingerprint() == lx.directions.random_in_pieces(o, center=flat).fingerprint()


def test_a_point_is_projected_in_any_form(given):
    other, form = given
    o = objective()
    start = o.space.gather()
    run = lx.trajectory([start, start + 1, start + torch.arange(len(start))], o, progress=False)
    expected = run.project(o.space.vector(other, what="other"))
    found = run.project(form)
    assert found.coordinates.tolist() == expected.coordinates.tolist()
    assert found.residual == expected.residual


def test_a_checkpoint_with_one_prefix_is_a_centre_of_chosen_parameters():
    o = objective()
    chosen = lx.Objective(o.model, DATA, "mse_loss", params="2.*")
    other = batch_normed(1)
    assert chosen.loss(prefixed(other)) == lx.Objective(other, DATA, "mse_loss").loss()


@pytest.mark.parametrize(
    ("use", "name"),
    [
        (lambda o: o.loss([1.0]), "`center`"),
        (lambda o: lx.directions.random(o, center=[1.0]), "`center`"),
        (lambda o: lx.directions.between(o, [1.0]), "model 1"),
    ],
)
def test_what_is_no_state_is_refused(use, name):
    message = f"{name} must be a module, a state_dict, a flat vector or a path, got list"
    with pytest.raises(ArgumentTypeError, match=message):
        use(objective())


def test_names_that_are_not_text_are_left_out():
    o = objective()
    state = {**o.model.state_dict(), 7: torch.ones(1)}
    assert o.loss(state) == o.loss()


def expanded():
    model = models.mlp(3, 4, 1)
    model.register_buffer("scale", torch.full((1,), 2.0).expand(4))
    return model


def test_a_centre_may_hold_an_expanded_buffer_as_it_is():
    model = expanded()
    state = copy.deepcopy(model.state_dict())
    state["0.bias"] += 1
    o = lx.Objective(model, DATA, "mse_loss")
    assert o.loss(state) != o.loss()
    assert torch.equal(model.scale, torch.full((4,), 2.0))
    state["scale"] = torch.arange(4.0)
    with pytest.raises(ParameterMismatchError, match=r"`center` must have .* for scale, whose ent"):
        o.loss(state)
