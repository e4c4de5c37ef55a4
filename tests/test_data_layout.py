"""How the eager engine lays out data: other batches, the same numbers, and never a wrong one."""

from __future__ import annotations

import contextlib
import dataclasses

import models
import pytest
import reference
import torch
from torch import nn
from torch.nn import functional as F

from landscapex._batch import to_channels_last
from landscapex.batches import freeze
from landscapex.engine.eager import EagerEngine
from landscapex.engine.layout import Layout, batch_size, choose_layout
from landscapex.losses.binding import resolve
from landscapex.model.guard import exclusive
from landscapex.model.parameters import ParameterSpace

CPU = torch.device("cpu")


def pairs(*shape, classes=3, batch=None):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, generator=generator)
    y = torch.randint(classes, shape[:1], generator=generator)
    frozen = freeze((x, y), device=CPU, batch_size=batch or shape[0])
    return dataclasses.replace(frozen, ours=True)  # as if nobody had asked for these sizes


@contextlib.contextmanager
def engine(model, frozen, loss="cross_entropy", **options):
    """An engine that has the model to itself."""
    space = ParameterSpace(model.eval())
    measure = resolve(loss, model=model)
    with exclusive(space):
        yield EagerEngine(space, measure, {"data": frozen}, **options)


def chosen(model, frozen, loss="cross_entropy"):
    with torch.no_grad():
        return choose_layout(model.eval(), resolve(loss, model=model), {"data": frozen})


def images(*layers, pool=True):
    """A network for 3 x 8 x 8 images."""
    return models.seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), *layers,
            *([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)] if pool else []),
        )
    )  # fmt: skip


# --- The rule -----------------------------------------------------------------------------------


def test_the_largest_activation_of_a_batch_takes_four_megabytes():
    assert batch_size(512 * 4, 2_670_000) == 2048
    assert batch_size(4 << 20, 0) == 1
    assert batch_size((4 << 20) + 1, 0) == 1  # never none
    assert batch_size((2 << 20) - 1, 0) == 2  # down to a power of two


def test_networks_of_many_parameters_take_as_many_samples_as_their_weights_are_worth():
    assert batch_size(64 * 1024 * 4, 37_000_000) == 64
    assert batch_size(64 * 1024 * 4, 1_000_000) == 16


@pytest.mark.parametrize(
    ("build", "shape", "largest"),
    [
        (lambda: models.mlp(10, 300, 3), (64, 10), 300),
        (lambda: models.mlp(10, 20, 3), (64, 10), 20),  # the weights are larger than that
        (models.LeNet, (64, 1, 28, 28), 6 * 28 * 28),
        (lambda: images(), (64, 3, 8, 8), 8 * 8 * 8),
    ],
)
def test_the_largest_activation_is_seen_whatever_computes_it(build, shape, largest):
    model = build()
    parameters = sum(p.nbytes for p in model.parameters())
    assert chosen(model, pairs(*shape)).batch == batch_size(largest * 4, parameters)


def test_several_small_convolutions_take_images_with_their_channels_together():
    frozen = pairs(64, 3, 8, 8)
    assert chosen(images(), frozen).channels_last
    one = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(), nn.Linear(32, 3))
    assert not chosen(one, frozen).channels_last
    assert not chosen(images().double(), freeze(
        (torch.randn(64, 3, 8, 8).double(), torch.zeros(64).long()), device=CPU
    )).channels_last  # fmt: skip
    large = images(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 400, 3), nn.Conv2d(400, 8, 19, padding=9))
    assert not chosen(large, frozen).channels_last


def test_a_model_that_views_images_as_rows_keeps_their_order():
    class Viewed(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolutions, self.linear = images(pool=False), nn.Linear(512, 3)

        def forward(self, x):
            return self.linear(self.convolutions(x).view(len(x), -1))

    assert chosen(models.seeded(Viewed), pairs(64, 3, 8, 8)) == Layout(2048)


def test_a_model_that_depends_on_the_order_in_memory_keeps_it():
    """`as_strided` would give other numbers, without an error."""

    class Strided(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = images()

        def forward(self, x):
            return self.net(x.as_strided(x.shape, (x[0].numel(), 64, 8, 1)))

    assert not chosen(models.seeded(Strided), pairs(64, 3, 8, 8)).channels_last
    assert chosen(models.seeded(Strided), pairs(64, 3, 8, 8)).batch is not None


# --- Where samples may not be regrouped ---------------------------------------------------------


class Centred(nn.Module):
    """Samples meet: each is compared with the mean of its batch."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return self.linear(x - x.mean(0))


class FirstOnly(Centred):
    def forward(self, x):
        return self.linear(x)[:1].expand(len(x), -1).contiguous()


class LastOnly(Centred):
    def forward(self, x):
        return self.linear(x)[-1:].expand(len(x), -1).contiguous()


class Dropping(Centred):
    def forward(self, x):
        return F.dropout(self.linear(x), 0.5, training=True)


class InFours(Centred):
    """Standard deviations over groups of four, as discriminators have them."""

    def forward(self, x):
        groups = x.view(min(4, len(x)), -1, 4)
        return self.linear(x + groups.std(0, correction=0).mean())


class Rows(Centred):
    def forward(self, x):
        return self.linear(x)


MEETING = [
    Centred,
    FirstOnly,
    LastOnly,
    Dropping,
    InFours,
    lambda: nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3)),
]


@pytest.mark.parametrize("build", MEETING)
def test_batches_in_which_samples_meet_stay_as_they_are(build):
    frozen = pairs(64, 4, batch=8)
    assert chosen(models.seeded(build), frozen) == Layout()
    assert chosen(nn.Linear(4, 3), frozen).batch > 64  # these samples may be regrouped


def own(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


@pytest.mark.parametrize(
    ("loss", "frozen"),
    [
        (own, pairs(64, 4, batch=8)),
        ("cross_entropy", freeze([*pairs(8, 4), *pairs(8, 4, 1)], device=CPU)),
        ("cross_entropy", freeze([*pairs(64, 4)], device=CPU, cache="none")),
        ("cross_entropy", pairs(7, 4)),
    ],
    ids=["own loss", "other shapes", "read again", "few samples"],
)
def test_only_samples_of_torchs_losses_in_memory_are_regrouped(loss, frozen):
    assert chosen(nn.Linear(4, 3), frozen, loss) == Layout()


def test_a_compiled_part_is_not_compiled_again_for_other_shapes():
    model = Rows()
    model.linear.compile()
    calls = []
    model.linear._compiled_call_impl = lambda x: calls.append(x.shape)
    assert chosen(model, pairs(64, 4, batch=8)) == Layout()
    assert calls == []


@pytest.mark.parametrize("bn", ["batch", "recompute"])
def test_statistics_of_batches_need_the_users_batches(bn):
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))
    with engine(model, pairs(64, 4, batch=8), bn=bn) as own_batches:
        assert own_batches.arrange() == Layout()
    with engine(model, pairs(64, 4, batch=8), bn="eval") as running:
        assert running.arrange().batch == batch_size(4 * 4, 0)
    with engine(nn.Linear(4, 3), pairs(64, 4, batch=8), bn=bn) as none:
        assert none.arrange().batch == batch_size(4 * 4, 0)


def test_choosing_leaves_no_trace_in_the_model():
    """Buffers that count calls, and one that is replaced at each call."""

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("last", torch.zeros(3))

        def forward(self, x):
            self.calls += 1
            self.last = self.linear(x)[0].detach()
            return self.linear(x)

    model = models.seeded(Counting).eval()
    before = reference.everything(model)
    assert chosen(model, pairs(64, 4, batch=8)).batch is not None
    assert reference.changes(before, reference.everything(model)) == []


# --- What comes of it ---------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 7, 64])
@pytest.mark.parametrize("build", [models.LeNet, models.ResNet20])
def test_losses_are_those_of_one_batch_of_all_samples(build, batch):
    model = models.seeded(build).eval()
    shape = (40, 1, 28, 28) if build is models.LeNet else (40, 3, 32, 32)
    frozen = pairs(*shape, classes=10, batch=batch)
    with torch.no_grad():
        x, y = next(iter(pairs(*shape, classes=10)))
        exact = F.cross_entropy(model.double()(x.double()), y).item()
    model.float()
    with engine(model, frozen) as plain:
        assert plain.here()[0] == pytest.approx(exact, rel=1e-6)
    with engine(model, frozen) as arranged:
        layout = arranged.arrange()
        assert layout.batch >= 64
        assert layout.channels_last
        seen = []
        model.conv1.register_forward_pre_hook(lambda m, given: seen.append(given[0]))
        assert arranged.here()[0] == pytest.approx(exact, rel=1e-6)
    assert [len(x) for x in seen] == [40]
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_gradients_see_the_users_batches():
    """A gradient keeps all activations of a batch: who chose small ones may need them."""
    model = models.mlp(4, 8, 3)
    seen = []
    with engine(model, pairs(64, 4, batch=8)) as arranged:
        arranged.arrange()
        model[0].register_forward_pre_hook(lambda m, given: seen.append(len(given[0])))
        arranged.gradient()
        assert seen == [8] * 8
        arranged.here()
        assert seen[8:] == [64]


def test_another_engine_with_the_same_layout_has_the_same_bits_and_asks_nobody():
    model = models.mlp(4, 8, 3)
    frozen = pairs(300, 4, batch=7)
    with engine(model, frozen) as one:
        layout, value = one.arrange(), one.here()
    calls = []
    with engine(model, frozen) as other:
        model[0].register_forward_pre_hook(lambda m, given: calls.append(1))
        assert other.arrange(Layout(**layout.recorded())) == layout == other.layout
        assert calls == []
        assert other.here() == value


def test_batches_of_at_least_three_quarters_of_the_size_are_good_enough():
    frozen = pairs(640, 4, batch=64)
    assert Layout(86).apply(frozen).sizes == (86,) * 6 + (124,)
    for size in (64, 85):
        assert Layout(size).apply(frozen) is frozen
    assert Layout(32).apply(frozen).sizes == (32,) * 20
    assert Layout(16).apply(frozen).sizes == (16,) * 40
    assert Layout(256).apply(frozen).sizes == (256, 256, 128)
    assert Layout(4096).apply(frozen).sizes == (640,)
    whole = pairs(640, 4)
    assert Layout(4096).apply(whole) is whole  # there are no more samples


def test_large_data_are_not_copied(monkeypatch):
    frozen = pairs(64, 4, batch=8)
    monkeypatch.setattr("landscapex.engine.layout._COPIED_BYTES", frozen.num_bytes - 1)
    assert Layout(64).apply(frozen) is frozen
    monkeypatch.setattr("landscapex.engine.layout._COPIED_BYTES", frozen.num_bytes)
    assert Layout(64).apply(frozen).sizes == (64,)


def test_the_first_data_set_decides_for_all():
    model = models.mlp(4, 8, 3)
    space = ParameterSpace(model.eval())
    data = {"data": pairs(64, 4, batch=8), "test": pairs(30, 4, batch=5)}
    with exclusive(space):
        engine = EagerEngine(space, resolve("cross_entropy", model=model), data)
        before = engine.here()
        engine.arrange()
        assert engine.here() == pytest.approx(before, rel=1e-6)
        assert [len(b) for b in engine.laid_out.values()] == [1, 1]
        assert [len(b) for b in engine.data.values()] == [8, 6]


def test_batches_that_the_user_formed_keep_their_size():
    """A model that is not captured may branch on a batch: who gave batches gets these very ones."""
    x, y = torch.zeros(64, 4), torch.zeros(64, dtype=torch.long)
    layout = Layout(batch=16)
    assert layout.apply(freeze((x, y), device=CPU)).sizes == (16,) * 4
    assert layout.apply(freeze((x, y), device=CPU, batch_size=8)).sizes == (8,) * 8
    loader = [(x[i : i + 8], y[i : i + 8]) for i in range(0, 64, 8)]
    assert layout.apply(freeze(loader, device=CPU)).sizes == (8,) * 8


def test_images_of_one_channel_are_laid_out_by_their_strides():
    """Torch chooses kernels by strides, which `contiguous` leaves as they are for one channel."""
    images = torch.rand(2, 1, 4, 6)
    assert to_channels_last(images).stride() == (24, 1, 6, 1)
    assert torch.equal(to_channels_last(images), images)
    already = torch.rand(2, 3, 4, 6).contiguous(memory_format=torch.channels_last)
    assert to_channels_last(already) is already
