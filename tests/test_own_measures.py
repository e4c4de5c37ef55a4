"""Losses that are not torch's own: what a batch weighs, and what is not a loss."""

from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from loss_cases import (
    LABELS,
    SOME_IGNORED,
    Focal,
    N,
    Pass,
    Squares,
    cross_entropy,
    cut,
    draw,
    integers,
    literal,
    total,
)
from torch import nn

from landscapex.errors import ArgumentError, DataError, LossError
from landscapex.losses.binding import resolve

# --- The model's own loss -------------------------------------------------------------------------


class ModelOutput(OrderedDict):
    """Like Hugging Face's: attributes and items."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


class TinyCausalLM(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 7)

    def forward(self, input_ids, labels=None, attention_mask=None):
        logits = self.embedding(input_ids)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return ModelOutput(loss=loss, logits=logits)


def language_batches():
    ids = integers(7, N, 5)
    labels = torch.where(integers(4, N, 5, seed=3) == 0, -100, ids)
    return [{"input_ids": a, "labels": b} for a, b in cut((ids, labels))], ids, labels


def test_model_loss_of_a_causal_model_counts_shifted_labels():
    batches, ids, labels = language_batches()
    model = TinyCausalLM()
    measure = resolve(None, model=model)
    counted = labels[:, 1:] != -100
    assert int(measure(model, batches[0]).weight) == int(counted[:4].sum())
    expected = F.cross_entropy(
        model.embedding.weight.double()[ids][:, :-1][counted], labels[:, 1:][counted]
    )
    assert total(measure, model, batches) == pytest.approx(expected.item(), rel=1e-6)
    assert "second position" in measure.rule


@pytest.mark.parametrize(
    ("make", "shifted"),
    [
        (TinyCausalLM, True),
        (lambda: type("GPT2LMHeadModel", (TinyCausalLM,), {})(), True),
        (lambda: type("RobertaForMaskedLM", (nn.Module,), {})(), False),
        (lambda: nn.Sequential(type("RobertaLMHead", (nn.Linear,), {})(1, 1)), False),
        (lambda: nn.DataParallel(TinyCausalLM()), True),
    ],
)
def test_only_causal_models_shift_labels(make, shifted):
    model = make()
    batch = {"input_ids": integers(7, 2, 5), "labels": integers(7, 2, 5)}
    measure = resolve(lambda model, batch: torch.tensor(1.0), model=model)
    assert int(measure(model, batch).weight) == (8 if shifted else 10)


def test_decoder_configuration_shifts_labels_but_not_one_label_per_sample():
    model = nn.Linear(1, 1)
    model.config = SimpleNamespace(is_decoder=True)
    measure = resolve(lambda model, batch: torch.tensor(1.0), model=model)
    assert int(measure(model, {"labels": integers(7, 3, 5)}).weight) == 12
    assert int(measure(model, {"labels": integers(7, 3)}).weight) == 3


def test_model_loss_with_tuple_batches_and_samples_as_weights():
    class Carries(nn.Module):
        def forward(self, x, y):
            return SimpleNamespace(loss=((x - y) ** 2).mean())

    x, y = draw(N, 2), draw(N, 2, seed=1)
    found = total(resolve(None, model=Carries()), Carries(), cut((x, y)))
    assert found == pytest.approx(float(((x - y) ** 2).mean()), rel=1e-12)


def test_mapping_batches_name_inputs_and_unwrap_logits():
    batches, ids, labels = language_batches()
    model = TinyCausalLM()

    class PerToken(nn.Module):
        def forward(self, input_ids):
            return ModelOutput(logits=model(input_ids).logits.transpose(1, 2))

    found = total(resolve("cross_entropy", model=PerToken()), PerToken(), batches)
    scores = model.embedding.weight.detach().double()[ids]
    expected = F.cross_entropy(scores.flatten(0, 1), labels.flatten()).item()
    assert found == pytest.approx(expected, rel=1e-6)


# --- f(model, batch) ----------------------------------------------------------------------------


def test_function_weighs_by_labels_else_by_samples():
    def loss(model, batch):
        return torch.tensor(1.0)

    measure = resolve(loss, model=Pass())
    x = torch.zeros(4, 2)
    assert measure(Pass(), (x, torch.zeros(4))).weight == 4
    assert int(measure(Pass(), (x, torch.tensor([0, -100, 2, -100]))).weight) == 2
    assert int(measure(Pass(), {"x": x, "labels": torch.tensor([[0, 1], [-100, 2]])}).weight) == 3
    assert measure(Pass(), {"x": x, "labels": torch.zeros(4, 3)}).weight == 4
    assert measure(Pass(), (torch.ones(4, dtype=torch.int64),)).weight == 4
    assert measure(Pass(), None).weight == 1


@pytest.mark.parametrize(
    "count", [lambda batch: batch["mask"].sum(), "mask", "tokens", lambda batch: 3.0]
)
def test_count_overrides_labels(count):
    batch = {"labels": torch.zeros(4, dtype=torch.int64), "mask": torch.tensor([1, 1, 1, 0])}
    batch["tokens"] = 3
    measure = resolve(lambda model, batch: torch.tensor(1.0), model=Pass(), count=count)
    assert float(measure(Pass(), batch).weight) == 3


def test_function_with_sum_is_divided_by_the_weight():
    x, y = draw(N, 3), LABELS
    model = nn.Linear(3, 4).double()
    expected = F.cross_entropy(model(x), y).item()

    def summed(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1], reduction="sum")

    found = total(resolve(summed, model=model, reduction="sum"), model, cut((x, y)))
    assert found == pytest.approx(expected, rel=1e-12)


def test_function_with_losses_per_label_leaves_out_ignored_labels():
    x = draw(N, 4)

    def per_label(model, batch):
        return F.cross_entropy(batch[0], batch[1], reduction="none")

    measure = resolve(per_label, model=Pass(), reduction="none")
    expected = literal(x, SOME_IGNORED, cross_entropy, {})
    assert total(measure, Pass(), cut((x, SOME_IGNORED))) == pytest.approx(expected, rel=1e-12)


def test_function_with_losses_per_sample_averages_them():
    def per_sample(model, batch):
        return (batch[0] ** 2).sum(1)

    x, many = draw(N, 3), integers(3, N, 7)
    measure = resolve(per_sample, model=Pass(), reduction="none")
    found = total(measure, Pass(), cut((x, many)))
    assert found == pytest.approx(float((x**2).sum(1).mean()), rel=1e-12)


def test_function_returns_metrics_weighted_like_the_loss():
    def loss(model, batch):
        scores, y = batch
        hits = (scores.argmax(1) == y).double().mean()
        return F.cross_entropy(scores, y), {"hits": hits, "half": 0.5, "ones": torch.tensor(1)}

    x = draw(N, 4)
    values = total(resolve(loss, model=Pass()), Pass(), cut((x, LABELS)), columns=True)
    assert list(values) == ["loss", "hits", "half", "ones"]
    hits = float((x.argmax(1) == LABELS).double().mean())
    assert values["hits"] == pytest.approx(hits, rel=1e-12)
    assert (values["half"], values["ones"]) == (0.5, 1.0)


def test_half_precision_metrics_do_not_overflow():
    measure = resolve(
        lambda model, batch: (torch.tensor(1.0), {"big": torch.tensor(60000.0).half()}),
        model=Pass(),
    )
    batch = (torch.zeros(100, 1), torch.zeros(100))
    assert total(measure, Pass(), [batch], columns=True)["big"] == pytest.approx(60000, rel=1e-3)


BAD_RETURNS = [
    (1, "must return a floating-point tensor, got int"),
    (0.5, "must return a floating-point tensor, got float"),
    (None, "must return a floating-point tensor, got NoneType"),
    (torch.tensor(3), r"must return a floating-point tensor, got int64 \[\]"),
    (torch.tensor(1j), r"must return a floating-point tensor, got complex64 \[\]"),
    (torch.zeros(4), r'must return a 0-d tensor, got float32 \[4\].*reduction="none"'),
    ((torch.tensor(1.0), 2), r"floating-point tensor, got tuple \(float32 \[\], int\)"),
    ((torch.tensor(1.0), torch.tensor(1.0)), "floating-point tensor, got tuple"),
    ((torch.tensor(1.0), {}, {}), "floating-point tensor, got tuple"),
    ({"loss": torch.tensor(1.0)}, "floating-point tensor, got dict"),
    ((torch.tensor(1.0), {"hits": torch.zeros(4)}), "Metric 'hits' of .* must be a number"),
    ((torch.tensor(1.0), {"hits": "many"}), "Metric 'hits' of .* must be a number"),
]


@pytest.mark.parametrize(("value", "message"), BAD_RETURNS)
def test_fault_18_what_is_not_a_loss_is_refused(value, message):
    measure = resolve(lambda model, batch: value, model=Pass())
    with pytest.raises(LossError, match=message) as caught:
        measure(Pass(), (torch.zeros(4), torch.zeros(4)))
    assert isinstance(caught.value, TypeError)


def test_fault_18_none_reduction_needs_losses_per_sample():
    measure = resolve(lambda model, batch: torch.tensor(1.0), model=Pass(), reduction="none")
    with pytest.raises(LossError, match=r"must return one loss per sample"):
        measure(Pass(), (torch.zeros(4), torch.zeros(4)))


@pytest.mark.parametrize("name", ["loss", "evaluated", "alpha", "", 3])
def test_metric_names_that_a_result_needs_are_refused(name):
    measure = resolve(lambda model, batch: (torch.tensor(1.0), {name: 1.0}), model=Pass())
    with pytest.raises(ArgumentError, match="name of a metric must be a string other than"):
        measure(Pass(), None)


def test_model_without_loss_is_refused():
    with pytest.raises(LossError, match=r"must return an object with `\.loss`.*are labels missing"):
        resolve(None, model=TinyCausalLM())(TinyCausalLM(), {"input_ids": integers(7, 2, 5)})


@pytest.mark.parametrize("bad", [lambda b: "many", lambda b: torch.ones(2), lambda b: True])
def test_bad_counts_are_refused(bad):
    measure = resolve(lambda model, batch: torch.tensor(1.0), model=Pass(), count=bad)
    with pytest.raises(LossError, match="`count` must give a number or a 0-d tensor"):
        measure(Pass(), None)


def test_missing_count_key_is_refused():
    measure = resolve(lambda model, batch: torch.tensor(1.0), model=Pass(), count="tokens")
    with pytest.raises(DataError, match=r"got 'tokens' for keys \['x'\]"):
        measure(Pass(), {"x": torch.zeros(1)})


# --- Criteria of the user's own -------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_own_criteria_weigh_samples(reduction):
    x, y = draw(N, 3), draw(N, 3, seed=1)
    expected = float(2 * ((x - y) ** 2).sum(1).mean())
    found = total(resolve(Squares(reduction), model=Pass()), Pass(), cut((x, y)))
    assert found == pytest.approx(expected, rel=1e-12)


def test_subclass_with_its_own_forward_is_not_torchs_loss():
    measure = resolve(Focal(), model=Pass())
    assert measure.functional is None
    assert not measure.regroupable
    inherited = type("Plain", (nn.CrossEntropyLoss,), {})()
    assert resolve(inherited, model=Pass()).functional == "cross_entropy"
