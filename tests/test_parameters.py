"""A model as one flat vector: what is in it, and in which order."""

from __future__ import annotations

import re

import models
import pytest
import torch
from parameter_cases import entry
from torch import nn

from landscapex.errors import ArgumentTypeError, ParameterMismatchError
from landscapex.model.parameters import ParameterSpace, unwrap

# --- Flat vectors --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", models.CASES)
def test_the_flat_vector_holds_every_parameter_in_order(name):
    model = models.case(name).model
    space = ParameterSpace(model)
    expected = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    assert torch.equal(space.gather(), expected)
    assert [e.name for e in space.entries] == [n for n, _ in model.named_parameters()]
    assert [e.offset for e in space.entries] == [0, *(e.end for e in space.entries[:-1])]
    assert space.size == space.entries[-1].end == len(expected)
    for n, part in space.unflatten(space.gather()).items():
        assert torch.equal(part, model.get_parameter(n))


@pytest.mark.parametrize("name", models.CASES)
def test_move_writes_center_plus_steps_into_the_live_parameters(name):
    model = models.case(name).model
    space = ParameterSpace(model)
    center = space.gather()
    d = torch.randn(2, space.size)
    space.move(center, d, [0.25, -1.5])
    exact = center.double() + 0.25 * d[0].double() - 1.5 * d[1].double()
    assert torch.equal(
        torch.cat([p.detach().reshape(-1) for p in model.parameters()]), exact.float()
    )
    space.move(center, d, [0.0, 0.0])
    assert torch.equal(space.gather(), center)


def test_trap_02_a_grid_of_moves_and_the_way_back_leave_no_trace():
    """Walking with += and going back with -= changes 47 % of float32 parameters."""
    model = models.mlp(20, 40, 10)
    space = ParameterSpace(model)
    center = space.gather()
    kept = center.clone()
    d = torch.randn(2, space.size)
    for a in (-0.7, 0.1, 0.3):
        for b in (-0.2, 0.6):
            space.move(center, d, [a, b])
    space.move(center, d, [0.0, 0.0])
    assert torch.equal(space.gather(), kept)
    assert torch.equal(center, kept)


def test_gather_is_a_copy():
    model = models.mlp()
    space = ParameterSpace(model)
    center = space.gather()
    kept = center.clone()
    with torch.no_grad():
        model[0].weight.add_(1)
    assert torch.equal(center, kept)
    assert not torch.equal(space.gather(), kept)


def test_flatten_is_the_inverse_of_unflatten():
    space = ParameterSpace(models.case("conv").model)
    vector = torch.randn(space.size)
    named = space.unflatten(vector)
    assert torch.equal(space.flatten(named, what="`x`", missing="error"), vector)


def test_absent_parameters_are_zero_where_that_is_allowed():
    space = ParameterSpace(models.mlp(2, 3, 1))
    flat = space.flatten({"2.bias": torch.ones(1)}, what="`x`", missing="zero")
    assert flat.tolist() == [0.0] * 12 + [1.0]


@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [
        ({"0.weight": 1.0}, ArgumentTypeError, "`x` must map names to tensors, got float for"),
        ({"nope": torch.ones(1)}, ParameterMismatchError, "nope: no such parameter among those"),
        (
            {"0.weight": torch.ones(2, 3)},
            ParameterMismatchError,
            "0.weight: shape (2, 3) instead of (3, 2)",
        ),
        ({"0.weight": torch.ones(3, 2)}, ParameterMismatchError, "0.bias: missing"),
    ],
)
def test_flatten_names_what_does_not_fit(tensors, error, message):
    space = ParameterSpace(models.mlp(2, 3, 1))
    with pytest.raises(error, match=re.escape(message)):
        space.flatten(tensors, what="`x`", missing="error")


def test_an_error_shows_ten_names_and_counts_the_rest():
    space = ParameterSpace(models.mlp(2, 3, 1))
    wrong = {f"w{i:02}": torch.ones(1) for i in range(13)}
    with pytest.raises(ParameterMismatchError, match=r"w09: no such .*; and 3 more\.") as caught:
        space.flatten(wrong, what="`x`", missing="zero")
    assert "w10" not in str(caught.value)


def test_a_point_may_be_a_vector_a_state_dict_or_a_module():
    model, other = models.case("conv").model, models.case("conv").model
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(2)
    space = ParameterSpace(model)
    expected = ParameterSpace(other).gather()
    for point in (expected, other.state_dict(), other, nn.DataParallel(other), expected.double()):
        vector = space.vector(point, what="`center`")
        assert torch.equal(vector, expected)
        assert vector.data_ptr() != expected.data_ptr()


@pytest.mark.parametrize(
    ("point", "error", "message"),
    [
        ([1.0], ArgumentTypeError, "`center` must be a flat tensor, a state_dict or a module, got"),
        (torch.ones(3), ParameterMismatchError, "`center` must have shape (13,), got (3,)."),
        (torch.ones(13, 1), ParameterMismatchError, "`center` must have shape (13,), got (13, 1)."),
        ({"0.weight": torch.ones(3, 2)}, ParameterMismatchError, "0.bias: missing"),
    ],
)
def test_a_point_that_does_not_fit_is_refused(point, error, message):
    space = ParameterSpace(models.mlp(2, 3, 1))
    with pytest.raises(error, match=re.escape(message)):
        space.vector(point, what="`center`")


# --- Which parameters ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "chosen"),
    [
        (None, ["0.weight", "0.bias", "2.weight", "2.bias"]),
        ("2.*", ["2.weight", "2.bias"]),
        (["2.weight", "0.bias"], ["0.bias", "2.weight"]),
        (["*.weight", "0.*"], ["0.weight", "0.bias", "2.weight"]),
        (lambda name, p: p.ndim == 2, ["0.weight", "2.weight"]),
    ],
    ids=["all", "pattern", "names", "patterns", "function"],
)
def test_parameters_are_chosen_by_name_pattern_or_function(params, chosen):
    space = ParameterSpace(models.mlp(), params)
    assert [e.name for e in space.entries] == chosen


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        (
            "3.*",
            ParameterMismatchError,
            "`params` must name parameters of the model, got '3.*'; it",
        ),
        ([], ParameterMismatchError, "`params` must choose at least one parameter, got none."),
        (
            lambda n, p: False,
            ParameterMismatchError,
            "must choose at least one parameter, got none",
        ),
        ([3], ArgumentTypeError, "`params` must hold names, got int."),
    ],
)
def test_a_choice_without_parameters_is_refused(params, error, message):
    with pytest.raises(error, match=re.escape(message)):
        ParameterSpace(models.mlp(), params)


def test_a_model_without_parameters_is_refused():
    with pytest.raises(ParameterMismatchError, match="`model` must have parameters, got none"):
        ParameterSpace(nn.ReLU())


def test_what_is_no_module_is_refused():
    with pytest.raises(ArgumentTypeError, match=r"`model` must be a torch.nn.Module, got dict\."):
        ParameterSpace({})


def test_fault_24_frozen_parameters_stay_out_unless_all_are_frozen():
    model = models.mlp()
    model[0].requires_grad_(False)
    assert [e.name for e in ParameterSpace(model).entries] == ["2.weight", "2.bias"]
    model.requires_grad_(False)
    assert len(ParameterSpace(model).entries) == 4


class _DDP(nn.parallel.DistributedDataParallel):
    """The real class without its process group: what `unwrap` looks at is its type."""

    def __init__(self, module):
        nn.Module.__init__(self)
        self.module = module


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        torch.compile,
        _DDP,
        lambda m: torch.compile(nn.DataParallel(m)),
    ],
    ids=["DataParallel", "compile", "DDP", "both"],
)
def test_wrappers_are_looked_through(wrap):
    model = models.mlp()
    wrapped = wrap(model)
    assert unwrap(wrapped) is model
    assert [e.name for e in ParameterSpace(wrapped).entries] == [
        n for n, _ in model.named_parameters()
    ]


def test_what_is_called_like_a_wrapper_of_torch_is_none():
    class OptimizedModule(nn.Module):
        def __init__(self):
            super().__init__()
            self._orig_mod = nn.Linear(2, 1)

    model = OptimizedModule()
    assert unwrap(model) is model
    compiled = torch.compile(model, backend="eager")
    assert unwrap(compiled) is model


# --- Ties ----------------------------------------------------------------------------------------


def tied_by_memory():
    model = models.TiedLMHeadModel()
    model.head.weight = nn.Parameter(model.embedding.weight.detach())
    assert model.head.weight is not model.embedding.weight
    return model


@pytest.mark.parametrize(
    "build", [models.TiedLMHeadModel, tied_by_memory], ids=["one Parameter", "shared memory"]
)
def test_trap_22_tied_weights_are_one_parameter_and_move_once(build):
    """GPT ties its head to its embedding: stepping through both names moves the weight twice."""
    model = build()
    space = ParameterSpace(model)
    tied = entry(space, "head.weight")
    assert tied is entry(space, "embedding.weight")
    assert (tied.name, tied.aliases) == ("embedding.weight", ("head.weight",))
    assert space.size == 20 * 12 + 12 * 12 + 12
    center, d = space.gather(), torch.ones(1, space.size)
    before = model.embedding.weight.detach().clone()
    space.move(center, d, [0.5])
    assert torch.equal(model.head.weight, before + 0.5)
    assert torch.equal(model.embedding.weight, before + 0.5)


@pytest.mark.parametrize("params", ["embedding.weight", "head.weight", "head.*"])
def test_trap_22_a_tied_weight_is_chosen_under_any_of_its_names(params):
    space = ParameterSpace(models.TiedLMHeadModel(), params)
    assert [e.name for e in space.entries] == ["embedding.weight"]


def test_trap_22_ties_that_share_only_part_of_their_memory_are_refused():
    model = nn.Module()
    storage = torch.randn(10)
    model.a = nn.Parameter(storage[:6])
    model.b = nn.Parameter(storage[4:])
    with pytest.raises(
        ParameterMismatchError, match=r"must not share part of its memory.*got a; b"
    ):
        ParameterSpace(model)


def test_a_transposed_tie_is_refused():
    model = nn.Module()
    model.a = nn.Parameter(torch.randn(3, 4))
    model.b = nn.Parameter(model.a.detach().t())
    with pytest.raises(ParameterMismatchError, match="must not share part of its memory"):
        ParameterSpace(model)


def test_parameters_that_lie_in_one_storage_without_overlap_are_fine():
    """Flat buffers, also interleaved ones, are common in optimisers."""
    model = nn.Module()
    storage = torch.arange(12.0)
    model.even, model.odd = nn.Parameter(storage[::2]), nn.Parameter(storage[1::2])
    space = ParameterSpace(model)
    space.move(space.gather(), torch.ones(1, 12), [1.0])
    assert storage.tolist() == [i + 1.0 for i in range(12)]
