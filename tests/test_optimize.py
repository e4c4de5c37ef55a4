"""Optimised programs compute what they did, in less memory: random programs and networks."""

from __future__ import annotations

from collections import Counter

import lowered as lowering_checks
import models
import pytest
import torch
from optimize_cases import kinds, same, start
from random_programs import RELU, Builder, random_program
from torch import nn
from torch.nn import functional as F

from landscapex.engine.lowering import fusion
from landscapex.engine.lowering.optimize import optimize
from landscapex.engine.program import Grid

# --- any program ----------------------------------------------------------------------------------


@pytest.mark.parametrize("block", range(10))
@pytest.mark.filterwarnings("ignore")
def test_random_programs_compute_the_same(block):
    for seed in range(30 * block, 30 * block + 30):
        same(random_program(seed))


def test_random_programs_get_smaller():
    before, after = Counter(), Counter()
    for seed in range(40):
        lowered = random_program(seed)
        before += kinds(lowered.program)
        after += kinds(optimize(lowered).program)
    assert after["Map"] < 0.6 * before["Map"]


def test_a_wrong_fusion_is_noticed(monkeypatch):
    monkeypatch.setattr(fusion, "_plus", lambda editor, step, shift: step)
    b, x = start()
    with pytest.raises(AssertionError, match="Not equal"):
        same(b.lowered(b.norm(x)))


def test_optimising_is_deterministic_and_leaves_its_argument_alone():
    lowered = random_program(3)
    before = repr(lowered)
    assert repr(optimize(lowered)) == repr(optimize(lowered))
    assert repr(lowered) == before


def test_what_nobody_reads_goes():
    b, x = start()
    unread = b.input(3, 2, 2)
    b.pool(b.softmax(x))
    b.norm(unread)
    better = optimize(b.lowered(x))
    assert kinds(better.program) == {"Contract": 1}
    assert len(better.program.buffers) == 2
    assert len(better.program.weights) == 2
    assert [i.node for i in better.inputs] == ["x0"]


# --- memory ---------------------------------------------------------------------------------------


def test_a_chain_of_equal_layers_needs_two_places():
    b, x = start()
    for _ in range(6):
        x = b.softmax(x)
    storage = same(b.lowered(b.conv(x, 2, 1))).storage
    assert len(set(storage)) == 4  # the input, two in turn, and the output


def test_halos_of_one_kind_share_and_keep_their_fill():
    b, x = start()
    for _ in range(5):
        x = b.conv(b.padded(x, 1), 4)
    program = same(b.lowered(b.conv(b.padded(x, 1, 1.0), 4)))
    wide = [i for i, buffer in enumerate(program.buffers) if buffer.elements == 256]
    assert len(wide) == 6
    assert len({program.storage[i] for i in wide}) == 3  # two in turn; the other fill has its own


def test_inputs_shared_values_and_outputs_lie_alone():
    b = Builder()
    x = b.conv(b.input(2, 4, 4), 3, 1, grid=Grid.AFFINE)
    y = b.softmax(b.map("copy", x, act=RELU))
    z = b.softmax(b.softmax(b.conv(y, 3, 1)))
    program = same(b.lowered(y, z))
    alone = [i for i, buffer in enumerate(program.buffers) if buffer.grid is not Grid.FULL]
    alone += [buffer for buffer, _ in program.outputs]
    for i in alone:
        assert program.storage.count(program.storage[i]) == 1
    assert len(alone) == 4


# --- whole networks -------------------------------------------------------------------------------


class Block(nn.Module):
    """A residual block that subsamples, with a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.short = nn.Conv2d(3, 8, 1, 2)
        self.linear = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return self.linear((y + self.short(x)).relu().mean((2, 3)))


class Joined(nn.Module):
    """An encoder, a transposed convolution and a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(2, 4, 3, 1, 1)
        self.low = nn.Conv2d(4, 6, 3, 1, 1)
        self.up = nn.ConvTranspose2d(6, 4, 2, 2)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Conv2d(8, 3, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.down(x).relu()
        b = self.low(F.max_pool2d(a, 2)).relu()
        joined = torch.cat([self.norm(self.up(b)).relu(), a], 1)
        return self.last(joined).mean((2, 3))


def _rested(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.weight.data, module.bias.data):
                assert tensor is not None
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
            assert module.running_var is not None
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    return model.eval()


NETWORKS = {
    "block": (Block, (3, 8, 8), {"Contract": 4, "Reduce": 1, "CrossEntropy": 1}),
    "joined": (Joined, (2, 8, 8), {"Contract": 7, "Reduce": 2, "CrossEntropy": 1}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_contractions_and_pools(name):
    build, shape, expected = NETWORKS[name]
    model = _rested(models.seeded(build))
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(5, *shape, generator=generator)
    y = torch.randint(0, 3, (5,), generator=generator)
    moving = [n for n, p in model.named_parameters() if p.ndim > 1]
    done = lowering_checks.check(model, (x, y), moving=moving, share=False, simplify=True)
    assert Counter(type(s).__name__ for s in done.program.steps) == expected


@pytest.mark.parametrize("name", models.CASES)
def test_models_of_the_other_tests_compute_what_torch_does(name):
    case = models.case(name)
    lowering_checks.check(case.model, case.batches[0], case.loss, simplify=True)
