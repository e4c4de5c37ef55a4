"""What the eager engine enters once for many points must hold at each of them."""

from __future__ import annotations

import contextlib

import models
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from landscapex.batches import freeze
from landscapex.engine.eager import EagerEngine
from landscapex.errors import LossError
from landscapex.losses.binding import resolve
from landscapex.model.guard import exclusive
from landscapex.model.parameters import ParameterSpace

POINTS = np.linspace(-1.0, 1.0, 4)[:, None]


def mse(model, batch):
    return F.mse_loss(model(batch[0]), batch[1])


@contextlib.contextmanager
def running(loss, **options):
    """The losses at `POINTS`, computed in one call, as a function."""
    model = models.mlp(3, 4, 1)
    space = ParameterSpace(model)
    batches = [(torch.linspace(-1, 1, 12).view(4, 3), torch.ones(4, 1))] * 2
    frozen = freeze(batches, device=torch.device("cpu"))
    directions = torch.linspace(-1, 1, space.size)[None]
    with exclusive(space) as snapshot:
        engine = EagerEngine(space, resolve(loss, model=model), {"data": frozen}, **options)
        yield lambda: engine.losses(snapshot, snapshot.center, directions, POINTS)[:, 0]


@pytest.mark.parametrize("options", [{}, {"common_seed": True}, {"precision": "fp32"}], ids=repr)
def test_modes_that_a_loss_leaves_switched_are_put_back_for_the_next_point(options):
    seen = []

    def careless(model, batch):
        seen.append((torch.is_grad_enabled(), model.training, model[0].training))
        torch.set_grad_enabled(True)
        model.train()
        return mse(model, batch)

    with running(careless, **options) as losses:
        found = losses()
    with running(mse) as losses:
        assert np.array_equal(found, losses())
    assert seen[::2] == [(False, False, False)] * len(POINTS)
    assert torch.is_grad_enabled()


def test_a_loss_that_differentiates_finds_gradients_on_from_the_first_point_of_a_call():
    batches = []

    def penalty(model, batch):
        batches.append(1)
        x = batch[0].clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(x).sum(), x)
        torch.set_grad_enabled(len(batches) % 2 == 0)  # off at the end of a point
        return slope.square().mean()

    with torch.no_grad(), running(penalty) as losses:
        found = losses()
        assert not torch.is_grad_enabled()
    assert np.isfinite(found).all()
    assert len(set(found)) == len(POINTS)


def test_a_users_autocast_does_not_keep_the_weights_of_the_first_point():
    with torch.autocast("cpu", dtype=torch.bfloat16), running(mse) as losses:
        found = losses()
    with running(mse, precision="bf16") as losses:
        assert np.array_equal(found, losses())
    assert len(set(found)) == len(POINTS)


def test_the_modes_of_the_caller_are_back_after_an_error():
    def wrong(model, batch):
        raise ValueError("mine")

    with running(wrong) as losses:
        with pytest.raises(ValueError, match="mine") as caught:
            losses()
        assert torch.is_grad_enabled()
    assert caught.value.__notes__[-1].startswith("landscapex: at alpha=-1")
    assert "in batch 0 of data" in caught.value.__notes__[-2]


def test_columns_must_stay_the_same_within_one_call():
    calls = []

    def changing(model, batch):
        calls.append(1)
        return mse(model, batch), {"a" if len(calls) < 5 else "b": 1.0}

    with (
        running(changing) as losses,
        pytest.raises(LossError, match=r"same metrics at every point, got \['loss', 'b'\] after"),
    ):
        losses()
