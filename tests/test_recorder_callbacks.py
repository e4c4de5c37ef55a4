"""Callbacks for Lightning and Transformers: the same run as by hand, and no lock is left."""

from __future__ import annotations

import copy
import sys
import types

import numpy as np
import pytest
import torch
from recorder_cases import bits, network, steps_in, train

from landscapex.errors import OutputError, ResumeMismatchError
from landscapex.trajectories import runs
from landscapex.trajectories.recorder import Recorder


class LightningCallback:
    """What lightning.pytorch.Callback is to its Trainer: a base class with empty hooks."""

    def setup(self, trainer, pl_module, stage):
        pass

    def on_train_start(self, trainer, pl_module):
        pass

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        pass

    def on_train_end(self, trainer, pl_module):
        pass

    def state_dict(self):
        return {}


class LightningTrainer:
    """Calls hooks in the order and with the arguments of lightning.pytorch.Trainer.fit."""

    def __init__(self, model, callback, *, accumulate=1, is_global_zero=True):
        self.model, self.callback, self.accumulate = model, callback, accumulate
        self.is_global_zero, self.global_step, self.current_epoch = is_global_zero, 0, 0
        self.optimizers = [torch.optim.SGD(model.parameters(), lr=0.1)]

    def call(self, hook, *arguments):
        getattr(self.callback, hook)(self, self.model, *arguments)

    def fit(self, epochs, batches):
        self.call("setup", "fit")
        self.call("on_fit_start")
        self.call("on_train_start")
        for self.current_epoch in range(epochs):
            self.call("on_train_epoch_start")
            for k in range(batches):
                self.call("on_train_batch_start", None, k)
                loss = self.model(torch.randn(4, 3)).square().mean()
                self.call("on_before_backward", loss)
                loss.backward()
                if (k + 1) % self.accumulate == 0:
                    self.optimizers[0].step()
                    self.optimizers[0].zero_grad()
                    self.global_step += 1
                self.call("on_train_batch_end", {"loss": loss.detach()}, None, k)
            self.call("on_train_epoch_end")
        self.call("on_train_end")
        self.call("on_fit_end")
        self.call("teardown", "fit")


@pytest.mark.parametrize("imported", [[], ["lightning.pytorch"], ["pytorch_lightning"]])
def test_lightning_callback_records_the_start_every_update_and_the_end(
    tmp_path, monkeypatch, imported
):
    for name in imported:
        module = types.ModuleType(name)
        module.Callback = LightningCallback
        monkeypatch.setitem(sys.modules, name, module)
    model = network()
    record = Recorder(tmp_path, model, every=4)
    callback = record.lightning()
    # their Trainer refuses what is not derived from their class
    assert isinstance(callback, LightningCallback) == bool(imported)
    assert callback.state_dict() == {}
    assert str(tmp_path) in callback.state_key
    LightningTrainer(model, callback, accumulate=2).fit(3, 6)
    found = runs.open_run(tmp_path)
    assert found.steps.tolist() == [0, 4, 8, 9]
    assert [c.epoch for c in found] == [0, 1, 2, 2]
    assert [c.lr for c in found] == [0.1] * 4
    assert np.isnan(found[0].loss)
    assert found[1].loss > 0
    assert bits(found[-1].read()) == bits(model.state_dict())


def test_lightning_callback_writes_on_the_first_process_only(tmp_path):
    model = network()
    record = Recorder(tmp_path, model)
    LightningTrainer(model, record.lightning(), is_global_zero=False).fit(1, 2)
    assert not list(tmp_path.iterdir())


def test_lightning_callback_gives_the_folder_free_when_training_fails(tmp_path):
    model = network()
    record = Recorder(tmp_path, model, every=4)
    trainer = LightningTrainer(model, record.lightning())
    trainer.call("on_train_start")
    assert list(tmp_path.glob("*.lock"))
    trainer.call("on_exception", KeyboardInterrupt())
    assert not list(tmp_path.glob("*.lock"))
    assert steps_in(tmp_path) == [0]


class TransformersTrainer:
    """Calls events in the order and with the arguments of transformers.Trainer.train."""

    def __init__(self, model, callback, *, zero=True):
        self.model, self.callback = model, callback
        self.state = types.SimpleNamespace(global_step=0, epoch=0.0, is_world_process_zero=zero)
        self.control = types.SimpleNamespace(should_training_stop=False)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.5)

    def call(self, event):
        result = getattr(self.callback, event)(
            types.SimpleNamespace(), self.state, self.control, model=self.model,
            processing_class=None, optimizer=self.optimizer, lr_scheduler=None,
            train_dataloader=None, eval_dataloader=None,
        )  # fmt: skip
        assert result is None  # the control is left alone

    def train(self, steps):
        self.call("on_init_end")
        self.call("on_train_begin")
        self.call("on_epoch_begin")
        for _ in range(steps):
            self.call("on_step_begin")
            self.model(torch.randn(4, 3)).square().mean().backward()
            self.call("on_pre_optimizer_step")
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.state.global_step += 1
            self.state.epoch = self.state.global_step / steps
            self.call("on_step_end")
            self.call("on_log")
        self.call("on_epoch_end")
        self.call("on_train_end")


@pytest.mark.parametrize("zero", [True, False])
def test_transformers_callback_records_the_start_every_update_and_the_end(tmp_path, zero):
    model = network()
    record = Recorder(tmp_path, model, every=3)
    TransformersTrainer(model, record.transformers(), zero=zero).train(5)
    if not zero:
        assert not list(tmp_path.iterdir())
        return
    found = runs.open_run(tmp_path)
    assert found.steps.tolist() == [0, 3, 5]
    assert [c.epoch for c in found] == [0.0, 0.6, 1.0]
    assert [c.lr for c in found] == [0.5] * 3
    assert bits(found[-1].read()) == bits(model.state_dict())


def test_transformers_callback_leaves_no_lock_when_training_fails(tmp_path):
    """That Trainer tells no callback that training has failed, and a notebook goes on."""
    model = network()
    callback = Recorder(tmp_path, model, every=2).transformers()
    trainer = TransformersTrainer(model, callback)
    trainer.call("on_train_begin")
    train(model, 1)
    trainer.state.global_step = 2
    trainer.call("on_step_end")  # and now an exception in the next step
    assert not list(tmp_path.glob("*.lock"))
    with Recorder(tmp_path, model, resume=True) as record:
        assert record(3)
    assert steps_in(tmp_path) == [0, 2, 3]
    del callback


def test_fault_06_transformers_callbacks_do_not_share_a_folder(tmp_path):
    one, other = (Recorder(tmp_path, network()).transformers() for _ in range(2))
    TransformersTrainer(network(), one).train(1)
    with pytest.raises(OutputError, match="holds a run of 2 checkpoints"):
        TransformersTrainer(network(), other).train(1)
    assert steps_in(tmp_path) == [0, 1]


@pytest.mark.parametrize("kind", ["lightning", "transformers"])
def test_training_that_starts_again_is_never_mixed_with_the_first(tmp_path, kind):
    """Steps that come again are not skipped: they must be the same bit by bit."""
    model = network()
    start = copy.deepcopy(model.state_dict())
    if kind == "lightning":
        callback = Recorder(tmp_path, model).lightning()
        begin, step = "on_train_start", ("on_train_batch_end", {"loss": torch.ones(())}, None, 0)
        trainer = LightningTrainer(model, callback)
        place = trainer
    else:
        callback = Recorder(tmp_path, model).transformers()
        begin, step = "on_train_begin", ("on_step_end",)
        trainer = TransformersTrainer(model, callback)
        place = trainer.state

    def advance(last):
        trainer.call(begin)
        while place.global_step < last:
            torch.manual_seed(place.global_step)
            train(model, 1)
            place.global_step += 1
            trainer.call(*step)

    advance(3)  # and fails
    if kind == "lightning":
        trainer.call("on_exception", RuntimeError())
    advance(4)  # goes on where it was
    assert steps_in(tmp_path) == [0, 1, 2, 3, 4]
    trainer.call("on_train_end")
    advance(5)
    assert steps_in(tmp_path) == [0, 1, 2, 3, 4, 5]
    model.load_state_dict(start)
    place.global_step = 0
    advance(6)  # the same training once more
    assert steps_in(tmp_path) == [0, 1, 2, 3, 4, 5, 6]
    place.global_step = 0
    with pytest.raises(ResumeMismatchError, match=r"step 0 is in .* with other weights"):
        advance(1)


def test_a_callback_has_no_other_attributes_than_hooks(tmp_path):
    callback = Recorder(tmp_path, network()).transformers()
    assert callback.on_whatever_comes_next(1, 2, named=3) is None
    with pytest.raises(AttributeError, match="has no attribute 'monitor'"):
        _ = callback.monitor
