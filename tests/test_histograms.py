"""Histograms of weights: shared bins, the right parameters, norms."""

from __future__ import annotations

import copy

import models
import numpy as np
import pytest
import torch
from torch import nn

import landscapex as lx
from landscapex.errors import ArgumentError
from landscapex.studies.histograms import weight_histograms


def shrinking(count=3):
    """States of a network with batch norm whose numbers all shrink."""
    model = models.case("conv").model
    states = [copy.deepcopy(model.state_dict())]
    for _ in range(count - 1):
        states.append({n: t * 0.5 if t.is_floating_point() else t for n, t in states[-1].items()})
    return model, states


def weights_of(state):
    """What a person would call its weights."""
    return np.concatenate(
        [state[n].numpy().ravel() for n in ("conv.weight", "up.weight", "head.weight")]
    ).astype(np.float64)


def test_counts_and_norms_by_hand():
    model, states = shrinking()
    found = weight_histograms(states, model, bins=7)
    assert found.edges[0] == weights_of(states[0]).min()
    assert found.edges[-1] == weights_of(states[0]).max()
    for t, state in enumerate(states):
        expected = np.histogram(weights_of(state), found.edges)[0]
        assert found.counts[t].tolist() == expected.tolist()
        assert found.weight_norms[t] == pytest.approx(np.linalg.norm(weights_of(state)), rel=1e-12)
        everything = [state[n].double().norm() for n, _ in model.named_parameters()]
        assert found.norms[t] == pytest.approx(float(torch.stack(everything).norm()), rel=1e-12)
        each = [state[n].double().norm().item() for n in found.layers]
        assert found.layer_norms[t].tolist() == pytest.approx(each, rel=1e-12)
    assert found.layers == ("conv.weight", "up.weight", "head.weight")
    assert found.outside.tolist() == [0, 0, 0]
    assert found.steps.tolist() == [0, 1, 2]


def test_bins_are_those_of_all_checkpoints():
    """The widest comes last here: bins of the first would leave its tails out."""
    model, states = shrinking()
    found = weight_histograms(states[::-1], model, bins=9)
    assert found.edges[-1] == weights_of(states[0]).max()
    assert found.counts.sum(axis=1).tolist() == [weights_of(states[0]).size] * 3
    assert (found.counts[0] > 0).sum() < (found.counts[2] > 0).sum()


def test_densities_integrate_to_one():
    model, states = shrinking()
    found = weight_histograms(states, model)
    assert found.counts.shape == (3, 100)
    np.testing.assert_allclose((found.density * np.diff(found.edges)).sum(axis=1), 1, rtol=1e-12)


def test_given_edges_and_numbers_that_are_not_finite():
    model, states = shrinking(2)
    states[1]["conv.weight"][0, 0, 0] = torch.tensor([torch.nan, torch.inf, 0.0])
    found = weight_histograms(states, model, bins=[-0.1, 0.0, 0.1])
    for t, state in enumerate(states):
        w = weights_of(state)
        inside = int(((w >= -0.1) & (w <= 0.1)).sum())
        assert found.counts[t].sum() == inside
        assert found.outside[t] == w.size - inside
    automatic = weight_histograms(states, model, bins=5)
    assert automatic.outside.tolist() == [0, 2]
    share = (automatic.density * np.diff(automatic.edges)).sum(axis=1)
    assert share[1] == pytest.approx(1 - 2 / weights_of(states[1]).size, rel=1e-12)


def test_tied_weights_and_objectives_count_once():
    model = models.seeded(models.TiedLMHeadModel)
    objective = lx.Objective(model, [{"input_ids": torch.zeros(2, 3, dtype=torch.long)}])
    found = weight_histograms([model], objective)
    assert found.layers == ("embedding.weight", "mix.weight")
    assert found.counts.sum() == 20 * 12 + 12 * 12
    some = weight_histograms([model], lx.Objective(model, None, lambda m, b: 0, params="mix.*"))
    assert some.counts.sum() == 12 * 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bins": 0}, "`bins` must be at least 1, got 0"),
        ({"bins": [1.0, 1.0]}, "`bins` must be finite increasing edges"),
        ({"bins": [1.0]}, "`bins` must be finite increasing edges"),
        ({"labels": ["a"]}, r"`labels` must be one name per checkpoint \(3\)"),
        ({"labels": "abc"}, r"`labels` must be one name per checkpoint \(3\)"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options, message):
    model, states = shrinking()
    with pytest.raises(ArgumentError, match=message):
        weight_histograms(states, model, **options)


def test_models_without_weights_are_refused():
    with pytest.raises(ArgumentError, match="`model` must have weights of two or more dimensions"):
        weight_histograms([nn.BatchNorm1d(3)], nn.BatchNorm1d(3))
    model = nn.Linear(2, 1)
    state = {"weight": torch.full((1, 2), torch.nan), "bias": torch.zeros(1)}
    with pytest.raises(ArgumentError, match="the weights must be finite in some checkpoint"):
        weight_histograms([state], model)


def test_the_picture_shows_every_checkpoint_and_the_norms():
    model, states = shrinking()
    found = weight_histograms(states, model, bins=20, labels=["a", "b", "c"])
    assert "norm" in repr(found)
    left, right = found.plot(title="there").axes
    assert [t.get_text() for t in left.get_legend().get_texts()] == ["a", "b", "c"]
    steps = [p.get_data() for p in left.patches]
    assert np.array_equal(steps[0].values, found.density[0])
    assert np.array_equal(steps[0].edges, found.edges)
    assert np.array_equal(right.lines[0].get_ydata(), found.weight_norms)
    assert [t.get_text() for t in right.get_xticklabels()] == ["a", "b", "c"]
    # named models have no order that a line could follow
    assert {line.get_linestyle() for line in right.lines} == {"None"}


def test_the_picture_of_many_checkpoints_is_coloured_by_step():
    model, states = shrinking(8)
    found = weight_histograms(states, model, bins=[-0.01, 0.0, 0.01])
    left, right, bar = found.plot(log=True).axes
    assert bar.get_ylabel() == "step"
    assert left.get_yscale() == "log"
    assert right.get_xlabel() == "step"
    assert {line.get_linestyle() for line in right.lines} == {"-"}
    (text,) = [t.get_text() for t in left.get_legend().get_texts()]
    assert text.startswith(f"up to {found.outside.max()} weights lie outside")
