"""Which entries of the flat vector form a filter, and what counts as a bias."""

from __future__ import annotations

import models
import pytest
import torch
from parameter_cases import entry, runs_of
from reference import LAYERS, weight_normed_transposed
from torch import nn

from landscapex.errors import ArgumentError
from landscapex.model.parameters import ParameterSpace


@pytest.mark.parametrize("size", [2, 4, 6])
def test_the_three_projections_of_attention_are_tensors_of_their_own(size):
    e = entry(ParameterSpace(nn.MultiheadAttention(size, 1)), "in_proj_weight")
    assert e.blocks == 3
    block = size * size
    assert e.tensor_rows().tolist() == [[e.offset + k * block, 1, block, block] for k in range(3)]


@pytest.mark.parametrize("layer", LAYERS)
def test_trap_08_filters_are_the_weights_of_one_output_unit(layer):
    """Per tensor, or only for 2-D and 4-D tensors, or the wrong axis: none of these is a filter."""
    build, filters_of = LAYERS[layer]
    space = ParameterSpace(build())
    for name, filters in filters_of.items():
        e = entry(space, name)
        numbers = torch.arange(e.offset, e.end).view(e.shape)
        expected = [f.flatten().tolist() for f in filters(numbers)]
        assert not e.is_bias_bn
        assert runs_of(e.filter_rows()) == expected
        assert e.num_filters == len(expected)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("rule", ["filter", "layer", "model"])
@pytest.mark.parametrize("skip", [True, False])
def test_trap_08_groups_cover_each_weight_exactly_once(layer, rule, skip):
    """A bias or an entry that counts twice is a defect of its own."""
    space = ParameterSpace(LAYERS[layer][0]())
    runs, groups = space.normalization_table(rule, skip_bias_bn=skip)
    covered = sorted(i for run in runs_of(runs) for i in run)
    wanted = [
        i for e in space.entries if not (skip and e.is_bias_bn) for i in range(e.offset, e.end)
    ]
    assert covered == wanted
    assert groups[0] == 0
    assert groups[-1] == len(runs)
    if rule == "model":
        assert len(groups) == 2


def test_trap_08_layers_of_attention_are_its_three_projections():
    space = ParameterSpace(nn.MultiheadAttention(4, 2, bias=False))
    runs, groups = space.normalization_table("layer", skip_bias_bn=True)
    assert runs_of(runs) == [list(range(16 * k, 16 * k + 16)) for k in range(4)]
    assert groups.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Linear(3, 2), {"bias"}),
        (nn.BatchNorm2d(3), {"weight", "bias"}),
        (nn.LayerNorm((2, 3)), set()),
        (nn.Linear(1, 4), {"weight", "bias"}),
        (nn.Embedding(4, 1), {"weight"}),
        (nn.Conv2d(4, 4, 1, groups=4), {"weight", "bias"}),
        (nn.ConvTranspose2d(4, 4, 1, groups=4), {"weight", "bias"}),
        (nn.ConvTranspose2d(4, 1, 1), {"bias"}),
        (nn.PReLU(3), {"weight"}),
        (weight_normed_transposed(), {"bias", "parametrizations.weight.original0"}),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, nn.Module) else "",
)
def test_trap_09_biases_are_what_has_one_dimension_or_filters_of_one_entry(module, expected):
    """Whatever their names are."""
    assert {e.name for e in ParameterSpace(module).entries if e.is_bias_bn} == expected


def test_an_unknown_rule_is_refused():
    with pytest.raises(ArgumentError, match="`normalize` must be 'filter', 'layer', 'model', "):
        ParameterSpace(models.mlp()).normalization_table("channel", skip_bias_bn=True)
