"""What may be given as a loss, and which batches it takes."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from loss_cases import LABELS, Focal, Pass, Squares, draw
from torch import nn

from landscapex.errors import ArgumentError, ArgumentTypeError, DataError, LossError
from landscapex.losses.binding import resolve
from landscapex.losses.reductions import TORCH_LOSSES


@pytest.mark.parametrize("key", ["labels", "label", "targets", "target", "y"])
def test_target_keys(key):
    model = nn.Linear(3, 4)
    batch = {"input": torch.ones(2, 3), key: torch.tensor([0, 1])}
    terms = resolve("cross_entropy", model=model)(model, batch)
    torch.testing.assert_close(terms.loss, F.cross_entropy(model(batch["input"]), batch[key]))


def test_nested_inputs_are_unpacked():
    model = nn.Bilinear(2, 3, 1)
    a, b, y = torch.ones(4, 2), torch.ones(4, 3), torch.zeros(4, 1)
    measure = resolve("mse_loss", model=model)
    expected = F.mse_loss(model(a, b), y)
    for batch in [(a, b, y), ((a, b), y), [[a, b], y], ({"input1": a, "input2": b}, y)]:
        assert torch.equal(measure(model, batch).loss, expected)


@pytest.mark.parametrize("batch", [torch.zeros(3), (torch.zeros(3),), None, {"x": torch.zeros(3)}])
def test_batches_without_target_are_refused(batch):
    with pytest.raises(DataError, match=r"mse_loss must get batches \(inputs, target\)"):
        resolve("mse_loss", model=Pass())(Pass(), batch)


def test_two_targets_are_refused():
    batch = {"x": torch.zeros(2), "y": torch.zeros(2), "labels": torch.zeros(2)}
    with pytest.raises(DataError, match=r"got keys \['x', 'y', 'labels'\]"):
        resolve("mse_loss", model=Pass())(Pass(), batch)


def test_a_second_output_is_not_taken_for_the_target():
    with pytest.raises(LossError, match=r"cross_entropy must get 1 tensor\(s\) from the model"):
        resolve("cross_entropy", model=Pass())(Pass(), (draw(2, 4), draw(2, 4), LABELS[:2]))


def test_errors_of_torch_carry_the_structure_of_the_batch():
    batch = (draw(3, 4), draw(3, 5))
    with pytest.raises((RuntimeError, ValueError)) as caught:
        resolve("cross_entropy", model=Pass())(Pass(), batch)
    notes = " ".join(caught.value.__notes__)
    assert "float64 [3, 4], float64 [3, 5]" in notes
    assert "The model returned float64 [3, 4]" in notes
    with pytest.raises(ZeroDivisionError) as caught:
        resolve(lambda model, batch: 1 / 0, model=Pass())(Pass(), batch)
    assert "In the loss <lambda>" in caught.value.__notes__[0]


def test_models_that_return_something_else_are_refused():
    class Boxes(nn.Module):
        def forward(self, x):
            return {"boxes": x}

    with pytest.raises(LossError, match=r"got \{'boxes': float64 \[2, 3\]\}; pass `f\(model"):
        resolve("mse_loss", model=Boxes())(Boxes(), (draw(2, 3), draw(2, 3)))


def test_moving_a_measure_copies_its_tensors_and_keeps_the_model():
    class Holds(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model
            self.register_buffer("scale", torch.ones(1))

        def forward(self, output, target):
            return output.sum() * self.scale.sum()

    model = nn.Linear(2, 1)
    criterion = Holds(model)
    moved = resolve(criterion, model=model).to(torch.device("meta"))
    assert moved._criterion.scale.device.type == "meta"
    assert moved._criterion.model is model
    assert criterion.scale.device.type == "cpu"
    weighted = nn.CrossEntropyLoss(torch.ones(3))
    moved = resolve(weighted, model=model).to(torch.device("meta"))
    assert moved._criterion.weight.device.type == moved.options["weight"].device.type == "meta"
    assert weighted.weight.device.type == "cpu"
    same = resolve("cross_entropy", model=model)
    assert same.to(torch.device("cpu")) is same


BAD_ARGUMENTS = [
    ({"loss": "relu"}, ArgumentError, r"`loss` must be one of cross_entropy, .*got 'relu'"),
    ({"loss": 3}, ArgumentTypeError, "`loss` must be a name .*got int"),
    ({"loss": "mse_loss", "reduction": "median"}, ArgumentError, "`reduction` must be"),
    ({"loss": "mse_loss", "reduction": "batchmean"}, ArgumentError, "`reduction` must be"),
    ({"loss": "mse_loss", "count": len}, ArgumentError, "`count` must be None for mse_loss"),
    ({"loss": None, "count": 3}, ArgumentTypeError, "`count` must be a function .*got int"),
    (
        {"loss": nn.MSELoss(), "reduction": "sum"},
        ArgumentError,
        "`reduction` must be that of the criterion, 'mean', or None, got 'sum'",
    ),
    (
        {"loss": functools.partial(F.mse_loss, size_average=False)},
        ArgumentError,
        "`size_average` and `reduce` must be replaced",
    ),
    (
        {"loss": lambda model, batch: 0, "metrics": "accuracy"},
        ArgumentError,
        r"`metrics` must be empty .* return \(loss, \{name: value\}\)",
    ),
    ({"loss": "cross_entropy", "metrics": "auc"}, ArgumentError, "must be one of 'accuracy'"),
    ({"loss": "mse_loss", "metrics": "accuracy"}, ArgumentError, "'accuracy' must go with a loss"),
    ({"loss": "soft_margin_loss", "metrics": "top5"}, ArgumentError, "'top5' must go with a loss"),
    ({"loss": "cross_entropy", "metrics": 5}, ArgumentTypeError, "`metrics` must be a name.*int"),
    ({"loss": "mse_loss", "metrics": {"a": 5}}, ArgumentTypeError, "Metric 'a' must be a function"),
    ({"loss": "mse_loss", "metrics": {"loss": len}}, ArgumentError, "other than 'loss'"),
    ({"loss": "cross_entropy", "metrics": ["error", "error"]}, ArgumentError, "distinct names"),
]


@pytest.mark.parametrize(("arguments", "kind", "message"), BAD_ARGUMENTS)
def test_bad_arguments_are_refused(arguments, kind, message):
    with pytest.raises(kind, match=message):
        resolve(arguments.pop("loss"), model=Pass(), **arguments)


@pytest.mark.parametrize("loss", ["cross_entropy", None, lambda model, batch: 0, Focal()])
def test_rules_are_words(loss):
    rule = resolve(loss, model=Pass()).rule
    assert "weighted by" in rule
    assert len(rule) > 30


@pytest.mark.parametrize(
    ("loss", "count"),
    [
        (nn.CrossEntropyLoss(reduction="sum"), "the number of targets that are not ignored"),
        (nn.MSELoss(reduction="none"), "the number of elements of the output"),
        (Squares("sum"), "the number of labels other than -100"),
    ],
)
def test_rules_say_what_a_sum_is_divided_by(loss, count):
    rule = resolve(loss, model=Pass()).rule
    assert f"its sum over all data divided by {count}" in rule
    assert "weighted by" not in rule


def test_the_guide_lists_the_names_of_losses():
    text = (Path(__file__).parents[1] / "docs/guide.md").read_text(encoding="utf-8")
    listed = text.partition("The names that are known:")[2].partition("(")[0]
    newer = {"linear_cross_entropy"}  # than the oldest torch
    assert set(re.findall("`(.*?)`", listed)) == {*TORCH_LOSSES, *newer}


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        ({"loss": "CrossEntropy"}, "cross_entropy"),
        ({"loss": "mse"}, "mse_loss"),
        ({"loss": "cross_entropy", "metrics": "acuracy"}, "accuracy"),
    ],
)
def test_an_unknown_name_is_told_the_nearest(arguments, near):
    with pytest.raises(ArgumentError, match=f"; did you mean '{near}'"):
        resolve(arguments.pop("loss"), model=Pass(), **arguments)
