"""What tells two losses apart, and what must not."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from loss_cases import Pass, Squares
from torch import nn

from landscapex.losses.binding import resolve


def scaled(factor, tensor=None):
    def loss(model, batch):
        return factor * batch.sum() + (0 if tensor is None else tensor.sum())

    return loss


def own_squares(x):
    return (x**2).mean()


class Stateful:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, model, batch):
        return self.factor * batch.sum()


TWINS = (lambda model, batch: batch.sum(), lambda model, batch: batch.mean())

DIFFERENT = [
    TWINS,
    ("mse_loss", "l1_loss"),
    (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1)),
    (nn.CrossEntropyLoss(torch.ones(3)), nn.CrossEntropyLoss(torch.tensor([1.0, 1.0, 1.5]))),
    (functools.partial(F.huber_loss, delta=1.0), functools.partial(F.huber_loss, delta=2.0)),
    (scaled(1.0), scaled(2.0)),
    (scaled(1.0, torch.ones(2)), scaled(1.0, torch.zeros(2))),
    (Stateful(1), Stateful(2)),
    (scaled(1.0), own_squares),
    (Squares("mean"), Squares("sum")),
    (lambda model, batch, a=1: a, lambda model, batch, a=2: a),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_identity_tells_losses_apart(one, other):
    first, second = (resolve(loss, model=Pass()).identity for loss in (one, other))
    assert first != second
    assert resolve(one, model=Pass()).identity == first


def test_identity_is_json_and_holds_source_count_reduction_and_metrics():
    import json

    def tokens(batch):
        return 17

    measure = resolve(scaled(2.0), model=Pass(), count=tokens, reduction="sum")
    text = json.dumps(measure.identity)
    assert "factor * batch.sum()" in text
    assert "return 17" in text
    assert '"sum"' in text
    measure = resolve("mse_loss", model=Pass(), metrics={"own": lambda output, batch: output})
    assert "lambda output, batch" in json.dumps(measure.identity)


def test_identity_of_code_without_source_is_its_bytecode():
    spaces = [{}, {}, {}]
    for space, factor in zip(spaces, (2, 3, 2), strict=True):
        exec(f"def f(model, batch): return {factor} * batch.sum()", space)
    a, b, c = (resolve(space["f"], model=Pass()).identity for space in spaces)
    assert a == c != b
    assert "bytecode" in str(a)


def test_identity_sees_global_constants():
    spaces = [{"SCALE": 2.0}, {"SCALE": 3.0}]
    for space in spaces:
        exec("def f(model, batch): return SCALE * batch.sum()", space)
    a, b = (resolve(space["f"], model=Pass()).identity for space in spaces)
    assert a != b


def test_identity_does_not_follow_the_weights_of_the_model():
    model = nn.Linear(2, 1)

    class Holds(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, output, target):
            return output.sum()

    weight = model.weight
    closed = resolve(lambda m, batch: model(batch).sum() + weight.sum(), model=model)
    held = resolve(Holds(), model=model)
    before = closed.identity, held.identity
    with torch.no_grad():
        model.weight.add_(1)
    assert (closed.identity, held.identity) == before
