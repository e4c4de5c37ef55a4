"""Parameters of unusual dtypes and memory layouts: moved entry by entry, or refused by name."""

from __future__ import annotations

import copy
import re

import models
import pytest
import torch
from parameter_cases import entry, runs_of
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

from landscapex.errors import DeviceError, ParameterMismatchError
from landscapex.model.parameters import ParameterSpace

# --- Moved ---------------------------------------------------------------------------------------


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


def moved(space, center, directions, coordinates):
    """The flat vector after `move`, with the model put back."""
    space.move(center, directions, coordinates)
    there = space.gather()
    space.move(center, directions[:0], [])
    return there


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


# --- Refused -------------------------------------------------------------------------------------


def lazy():
    return nn.LazyLinear(3)


def on_meta():
    return nn.Linear(2, 3, device="meta")


def quantised():
    return torch.ao.nn.quantized.Linear(2, 3)


def dynamically_quantised():
    return nn.Sequential(nn.Linear(2, 2), torch.ao.nn.quantized.dynamic.Linear(2, 3))


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


def whole_numbers():
    model = nn.Linear(2, 3)
    model.steps = nn.Parameter(torch.zeros(3, dtype=torch.int64), requires_grad=False)
    return model.requires_grad_(False)


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
