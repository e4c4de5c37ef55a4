"""Products with a weight, convolutions, and what of them is shared, as grid programs."""

from __future__ import annotations

from functools import partial
from typing import Any

import lowered
import pytest
import torch
from lowering_cases import SAMPLES, Case, batch_of, check, check_all, live, randn, steps
from torch import nn
from torch.nn import functional as F

from landscapex.engine.lowering.contractions import pays
from landscapex.engine.lowering.lanes import FromBatch, Lanes
from landscapex.engine.lowering.walk import Lowering
from landscapex.engine.program import Grid
from landscapex.engine.steps import Contract, Map

# --- products with a weight -----------------------------------------------------------------------


MATRIX = randn(4, 4, seed=5)
PRODUCTS = {
    "linear": Case(F.linear, (7,), ((3, 7), (3,))),
    "linear of rows": Case(F.linear, (4, 7), ((9, 7),)),
    "addmm": Case(lambda x, w, b: torch.addmm(b, x, w), (6,), ((6, 4), (4,))),
    "addmm, beta": Case(
        lambda x, w, b: torch.addmm(b, x, w, beta=0.5, alpha=2.0), (6,), ((6, 4), (4,))
    ),
    "addmm, row": Case(lambda x, w, b: torch.addmm(b, x, w, alpha=2.0), (6,), ((6, 4), (1, 4))),
    "matrix": Case(lambda x, w: x @ w, (4, 6), ((6, 3),)),
    "vector": Case(lambda x, w: x @ w, (4, 6), ((6,),)),
    "from left": Case(lambda x, w: w @ x, (4, 6), ((5, 4),)),
    "vector from left": Case(lambda x, w: w @ x, (4, 6), ((4,),)),
    "a matrix for each head": Case(torch.matmul, (2, 4, 6), ((2, 6, 3),)),
    "one input for all heads": Case(torch.matmul, (1, 4, 6), ((3, 6, 2),)),
    "heads from left": Case(lambda x, w: torch.matmul(w, x), (2, 4, 6), ((2, 3, 4),)),
    "samples are rows": Case(
        lambda x, w: (x.transpose(0, 1) @ w).transpose(0, 1), (3, 6), ((3, 6, 2),)
    ),
    "bilinear": Case(lambda x, w, b: F.bilinear(x[:, :4], x[:, 4:], w, b), (7,), ((5, 4, 3), (5,))),
    "bilinear, live": Case(
        lambda x, v, w: F.bilinear(F.linear(x, v), x, w), (2, 7), ((4, 7), (5, 4, 7))
    ),
    "constant from left": live(lambda x: MATRIX @ x, (4, 6)),
    "constant": live(lambda x: x @ MATRIX, (4,)),
    "both reordered": Case(
        lambda x, w: x.flip(-1)[..., [3, 0, 1]].unsqueeze(1) @ w.t()[[4, 2, 1]], (6,), ((4, 5),)
    ),
    "weight norm": Case(
        lambda x, v, g: F.linear(x, torch._weight_norm(v, g, 0)), (6,), ((4, 6), (4, 1))
    ),
}


def test_products_with_a_weight_equal_torch() -> None:
    check_all(PRODUCTS)


def test_a_linear_layer_reads_slices_and_transposes_in_place() -> None:
    program = check(lambda x, v, w: F.linear(F.linear(x, v)[:, ::2].transpose(1, 2), w), (6, 4),
                    (5, 4), (2, 3))  # fmt: skip
    assert not steps(program, Map)


def test_weights_computed_from_parameters_are_slots_of_their_own() -> None:
    program = check(lambda x, w: F.linear(x, w / w.norm()), (6,), (4, 6))
    assert list(program.derived.values()) == ["div"]


# --- convolutions ---------------------------------------------------------------------------------


CONVOLUTIONS = [
    (F.conv1d, (3, 9), (4, 3, 3), {}),
    (F.conv1d, (3, 9), (4, 3, 3), {"stride": 2, "padding": 1, "dilation": 2}),
    (F.conv1d, (3, 9), (4, 3, 4), {"padding": "same"}),
    (F.conv2d, (3, 6, 7), (4, 3, 3, 3), {}),
    (F.conv2d, (3, 6, 7), (4, 3, 3, 2), {"stride": (2, 1), "padding": (1, 2)}),
    (F.conv2d, (4, 6, 7), (6, 2, 3, 3), {"groups": 2, "dilation": (1, 2), "padding": 2}),
    (F.conv2d, (4, 6, 6), (4, 1, 3, 3), {"groups": 4, "padding": "same"}),
    (F.conv2d, (3, 6, 6), (4, 3, 1, 1), {"stride": 2}),
    (F.conv2d, (3, 5, 5), (4, 3, 3, 5), {"padding": "same", "dilation": (2, 1)}),
    (F.conv2d, (3, 6, 6), (4, 3, 3, 3), {"padding": "valid"}),
    (F.conv3d, (2, 4, 5, 3), (3, 2, 2, 3, 3), {"padding": 1, "stride": (1, 2, 1)}),
]
TRANSPOSED = [
    (F.conv_transpose1d, (4, 5), (4, 3, 4), {"stride": 3, "padding": 2, "output_padding": 1}),
    (F.conv_transpose2d, (4, 3, 4), (4, 2, 3, 3), {}),
    (F.conv_transpose2d, (4, 3, 4), (4, 2, 4, 3), {"stride": 2, "padding": 1}),
    (F.conv_transpose2d, (4, 3, 4), (4, 2, 3, 3), {"stride": 2, "output_padding": 1}),
    (F.conv_transpose2d, (4, 3, 4), (4, 2, 3, 3), {"groups": 2, "dilation": (2, 3)}),
    (F.conv_transpose2d, (4, 3, 4), (4, 2, 1, 2), {"stride": (3, 2)}),  # smaller than the stride
    (F.conv_transpose2d, (2, 3, 3), (2, 2, 3, 3), {"stride": 2, "dilation": 2, "padding": 2}),
    (F.conv_transpose3d, (2, 2, 3, 2), (2, 3, 2, 3, 2), {"stride": 2, "padding": (0, 1, 1)}),
]


def _convolutions(table: list[Any], axis: int, *, of_live: bool) -> dict[str, Case]:
    cases = {}
    for function, x, weight, options in table:
        outputs = weight[axis] * (options.get("groups", 1) if axis else 1)
        call = partial(function, **options)
        name = f"{function.__name__} {weight} {options}"
        case = live(call, x, weight) if of_live else Case(call, x, (weight, (outputs,)))
        cases[name] = case
    return cases


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("of_live", [False, True])
def test_convolutions_equal_torch(of_live: bool) -> None:
    check_all(_convolutions(CONVOLUTIONS, 0, of_live=of_live))


@pytest.mark.parametrize("of_live", [False, True])
def test_transposed_convolutions_equal_torch(of_live: bool) -> None:
    check_all(_convolutions(TRANSPOSED, 1, of_live=of_live))


def test_a_convolution_reads_any_arrangement() -> None:
    """Steps that differ along an axis, and images whose axes are turned, merged or repeated."""
    check_all(
        {
            "turned": live(
                lambda x, w: F.conv2d(x.permute(0, 3, 1, 2), w), (4, 5, 2), (3, 2, 2, 3)
            ),
            "shuffled": live(lambda x, w: F.conv1d(x[:, :, [0, 3, 1, 2]], w), (2, 4), (3, 2, 2)),
            "pixels": live(
                lambda x, w: F.conv2d(F.pixel_shuffle(x, 2), w, padding=1), (8, 3, 3), (3, 2, 3, 3)
            ),
            "merged": live(
                lambda x, w: F.conv1d(x.flatten(0, 1), w).view(-1, 3, 3, 4), (3, 2, 5), (3, 2, 2)
            ),
            "repeated": live(
                lambda x, w: F.conv1d(x[:, :1].expand(-1, 2, -1), w), (3, 5), (3, 2, 2)
            ),
        }
    )


def test_the_halo_of_an_input_is_packed_with_it() -> None:
    program = check(lambda x, w: F.conv2d(x, w, padding=1), (1, 4, 4), (2, 1, 3, 3))
    assert not steps(program, Map)
    read = program.program.buffers[steps(program, Contract)[0].input]
    assert (read.grid, read.elements, read.fill) == (Grid.NONE, 36, 0.0)


def test_an_input_can_be_arranged_again() -> None:
    model = nn.Linear(3, 2)
    plan = lowered.plan_of(model, batch_of(model, randn(SAMPLES, 3)), "mse_loss")
    low = Lowering(plan)
    x = low.lanes(FromBatch(plan.inputs[0]))
    turned = low.contiguous(low.moved(x, x.index.flip(-1)))
    padded = low.contiguous(
        Lanes(turned.buffer, F.pad(turned.index, (1, 0), value=-1), x.grid, 7.0)
    )
    at = [given.at for given in low.inputs]
    assert at[0] is None
    assert [a.tolist() for a in at[1:]] == [[2, 1, 0], [-1, 2, 1, 0]]
    assert low.buffers[padded.buffer].fill == 7.0
    assert not low.steps


def test_batch_norm_equals_torch_with_fixed_and_moving_scale() -> None:
    norm = nn.BatchNorm2d(3).eval()
    norm.running_mean, norm.running_var = randn(3), randn(3).exp()
    nn.init.normal_(norm.weight, 1, 0.3)
    model = nn.Sequential(nn.Conv2d(2, 3, 2), norm, nn.ReLU())
    batch = batch_of(model.eval(), randn(SAMPLES, 2, 4, 5))
    lowered.check(model, batch, "mse_loss")
    lowered.check(model, batch, "mse_loss", moving=["0.weight"])
    lowered.check(model, batch, "mse_loss", moving=["0.weight", "1.bias"], simplify=True)
    plain = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, affine=False)).eval()
    plain[1].running_var = randn(3).exp()
    lowered.check(plain, batch_of(plain, randn(SAMPLES, 4)), "mse_loss")


# --- sharing --------------------------------------------------------------------------------------


def test_products_of_inputs_are_shared_where_that_pays() -> None:
    def grid(x: int, outputs: int, **options: Any) -> Grid:
        program = check(F.linear, (x,), (outputs, x), **options)
        return program.program.buffers[steps(program, Contract)[0].out].grid

    assert grid(16, 4) is Grid.AFFINE
    assert grid(15, 4) is Grid.FULL
    assert grid(16, 4, share=False) is Grid.FULL
    assert pays(16, outputs=6250)
    assert not pays(16, outputs=6251)
    assert pays(128, outputs=10**6)


def test_only_products_of_inputs_are_shared() -> None:
    program = check(lambda x, v, w: F.linear(F.linear(x, v), w), (20,), (30, 20), (4, 30))
    grids = [program.program.buffers[s.out].grid for s in steps(program, Contract)]
    assert grids == [Grid.AFFINE, Grid.FULL]


def test_shared_products_stay_shared_through_moves_and_joins() -> None:
    program = check(
        lambda x, v, w: torch.cat([F.pad(F.linear(x, v), (1, 1)), F.linear(x, w)], 1).relu(),
        (20,), (3, 20), (5, 20),
    )  # fmt: skip
    copies = [s for s in steps(program, Map) if s.activation.name == "none"]
    assert {program.program.buffers[s.out].grid for s in copies} == {Grid.AFFINE}
