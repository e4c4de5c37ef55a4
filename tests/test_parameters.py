"""A model as one flat vector: what is in it, in which order, and which filters it has."""

from __future__ import annotations

import copy
import re

import models
import pytest
import torch
from reference import LAYERS, weight_normed_transposed
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

from landscapex.errors import (
    ArgumentError,
    ArgumentTypeError,
    DeviceError,
    ParameterMismatchError,
)
from landscapex.model.parameters import ParameterSpace, unwrap


def entry(space, name):
    return space.entries[space.names[name]]


def moved(space, center, directions, coordinates):
    """The flat vector after `move`, with the model put back."""
    space.move(center, directions, coordinates)
    there = space.gather()
    space.move(center, directions[:0], [])
    return there


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


# --- Filters -------------------------------------------------------------------------------------


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


def runs_of(table):
    """Every row (offset, count, stride, inner) as the list of its entries."""
    return [
        [offset + piece * stride + i for piece in range(count) for i in range(inner)]
        for offset, count, stride, inner in table.tolist()
    ]


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


# --- Unusual tensors -----------------------------------------------------------------------------


class Complex(nn.Module):
    def __init__(self, conjugated=False):
        super().__init__()
        w = torch.complex(torch.randn(3, 2), torch.randn(3, 2))
        self.weight = nn.Parameter(w.conj() if conjugated else w)
        self.phase = nn.Parameter(torch.complex(torch.randn(()), torch.randn(())))


@pytest.mark.parametrize("conjugated", [False, True])
def test_trap_26_a_complex_parameter_is_two_real_ones(conjugated):
    model = Complex(conjugated)
    space = ParameterSpace(model)
    before = model.weight.detach().clone()
    assert space.size == 2 * (6 + 1)
    weight = space.unflatten(space.gather())["weight"]
    assert torch.equal(weight, torch.view_as_real(before.resolve_conj()))
    assert [len(run) for run in runs_of(entry(space, "weight").filter_rows())] == [4, 4, 4]
    assert entry(space, "phase").is_bias_bn
    step = torch.complex(torch.ones(3, 2), 2 * torch.ones(3, 2))
    d = space.flatten({"weight": step}, what="`d`", missing="zero")
    space.move(space.gather(), d[None], [0.5])
    torch.testing.assert_close(model.weight.detach(), before + 0.5 * step, rtol=0, atol=1e-7)


def test_trap_26_filters_of_one_complex_entry_are_biases():
    model = nn.Module()
    model.weight = nn.Parameter(torch.randn(4, 1, dtype=torch.complex64))
    assert ParameterSpace(model).entries[0].is_bias_bn


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_trap_25_half_parameters_are_formed_in_float32_and_rounded_once(dtype):
    """A step of 1e-3 in bfloat16 arithmetic is lost for most of the weights."""
    model = models.mlp().to(dtype)
    space = ParameterSpace(model)
    center = space.gather()
    assert center.dtype == torch.float32
    d = torch.randn(1, space.size)
    space.move(center, d, [0.3])
    exact = center.double() + 0.3 * d[0].double()
    assert torch.equal(space.gather().to(dtype), exact.float().to(dtype))
    assert model[0].weight.dtype == dtype


@pytest.mark.parametrize(
    ("dtypes", "flat"),
    [
        ([torch.float32, torch.bfloat16], torch.float32),
        ([torch.float32, torch.float64], torch.float64),
        ([torch.complex64], torch.float32),
        ([torch.complex128, torch.float16], torch.float64),
    ],
)
def test_fault_25_flat_vectors_are_as_wide_as_the_widest_parameter(dtypes, flat):
    model = nn.ParameterList([nn.Parameter(torch.randn(2, 3).to(t)) for t in dtypes])
    space = ParameterSpace(model)
    assert space.dtype == space.gather().dtype == flat
    center = space.gather()
    d = torch.randn(1, space.size, dtype=flat)
    there = moved(space, center, d, [0.25])
    assert not torch.equal(there, center)
    assert torch.equal(space.gather(), center)


def channels_last():
    return nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)


def transposed_view():
    model = nn.Linear(3, 4)
    model.weight = nn.Parameter(torch.randn(3, 4).t())
    return model


def negated_view():
    model = nn.Linear(3, 4)
    model.weight = nn.Parameter(torch._neg_view(torch.randn(4, 3)))
    return model


@pytest.mark.parametrize("build", [channels_last, transposed_view, negated_view])
def test_fault_25_parameters_in_any_memory_layout_move_entry_by_entry(build):
    model = build()
    space = ParameterSpace(model)
    before, strides = copy.deepcopy(model.weight.detach()), model.weight.stride()
    d = torch.randn(1, space.size)
    space.move(space.gather(), d, [0.5])
    step = space.unflatten(d[0])["weight"]
    assert torch.equal(model.weight, (before.double() + 0.5 * step.double()).float())
    assert model.weight.stride() == strides


def test_fault_25_empty_and_scalar_parameters():
    model = nn.Module()
    model.empty, model.none = nn.Parameter(torch.randn(0, 3)), nn.Parameter(torch.randn(2, 0))
    model.scalar = nn.Parameter(torch.tensor(2.0))
    space = ParameterSpace(model)
    assert [e.size for e in space.entries] == [0, 0, 1]
    assert all(e.is_bias_bn for e in space.entries)
    space.move(space.gather(), torch.ones(1, 1), [0.5])
    assert model.scalar.item() == 2.5
    runs, groups = space.normalization_table("filter", skip_bias_bn=False)
    assert (runs_of(runs), groups.tolist()) == ([[0]], [0, 1])


def lazy():
    return nn.LazyLinear(3)


def on_meta():
    return nn.Linear(2, 3, device="meta")


def quantised():
    return torch.ao.nn.quantized.Linear(2, 3)


def dynamically_quantised():
    return nn.Sequential(nn.Linear(2, 2), torch.ao.nn.quantized.dynamic.Linear(2, 3))


def whole_numbers():
    model = nn.Linear(2, 3)
    model.steps = nn.Parameter(torch.zeros(3, dtype=torch.int64), requires_grad=False)
    return model.requires_grad_(False)


def inference():
    with torch.inference_mode():
        return nn.Linear(2, 3)


def sparse():
    model = nn.Module()
    model.weight = nn.Parameter(torch.eye(3).to_sparse())
    return model


def expanded():
    model = nn.Linear(2, 3)
    model.weight = nn.Parameter(torch.randn(1, 2).expand(3, 2))
    return model


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lazy, "weight (lazy, not initialised yet"),
        (on_meta, "weight (on the meta device"),
        (quantised, "model (quantised module Linear)"),
        (dynamically_quantised, "1 (quantised module Linear)"),
        (inference, "weight (an inference tensor"),
        (sparse, "weight (torch.sparse_coo)"),
        (expanded, "weight must own each of its entries, got an expanded tensor"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_fault_24_parameters_that_cannot_be_moved_are_refused_by_name(build, message):
    with pytest.raises(ParameterMismatchError, match=re.escape(message)):
        ParameterSpace(build())


def test_whole_numbers_are_never_moved():
    model = whole_numbers()
    assert [e.name for e in ParameterSpace(model).entries] == ["weight", "bias"]
    model.weight.requires_grad_(True)
    assert [e.name for e in ParameterSpace(model).entries] == ["weight"]
    with pytest.raises(
        ParameterMismatchError, match=r"must choose floating.*got steps \(torch.int"
    ):
        ParameterSpace(model, "*")


def test_fault_24_sharded_parameters_are_refused():
    from torch import distributed
    from torch.distributed.tensor import Replicate, distribute_tensor

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = distributed.init_device_mesh("cpu", (1,))
        model = nn.Linear(2, 3)
        model.weight = nn.Parameter(distribute_tensor(torch.ones(3, 2), mesh, [Replicate()]))
        with pytest.raises(ParameterMismatchError, match=r"weight \(DTensor\)"):
            ParameterSpace(model)
    finally:
        distributed.destroy_process_group()


def test_fault_19_a_model_on_two_devices_is_refused():
    class Elsewhere(torch.Tensor):
        device = torch.device("cuda:0")

    model = models.mlp()
    model[2].weight = nn.Parameter(torch.randn(3, 16).as_subclass(Elsewhere))
    with pytest.raises(DeviceError, match=r"one device, got 0\.weight on cpu, 2\.weight on cuda"):
        ParameterSpace(model)


class Twice(nn.Module):
    def forward(self, w):
        return 2 * w


def test_a_parametrised_weight_moves_through_its_original():
    model = nn.Linear(2, 3)
    register_parametrization(model, "weight", Twice())
    space = ParameterSpace(model)
    name = "parametrizations.weight.original"
    before = model.weight.detach().clone()
    d = space.flatten({name: torch.ones(3, 2)}, what="`d`", missing="zero")
    space.move(space.gather(), d[None], [1.0])
    torch.testing.assert_close(model.weight.detach(), before + 2)
