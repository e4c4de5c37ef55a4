"""Callbacks for the Trainers of Lightning and Hugging Face, neither of which is imported.

Lightning accepts nothing but subclasses of its own ``Callback``; who has a Trainer has imported
that class, so it can be found among the modules that are there.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from landscapex.trajectories.recorder import Recorder

_LIGHTNING = (("lightning.pytorch", "Callback"), ("pytorch_lightning", "Callback"))
_TRANSFORMERS = (("transformers", "TrainerCallback"),)


def lightning(recorder: Recorder) -> Any:
    """A callback for ``lightning.Trainer`` or ``pytorch_lightning.Trainer``.

    Args:
        recorder: What writes.

    Returns:
        An object with the hooks that they call.
    """
    return _of_their_kind(_Lightning, _LIGHTNING)(recorder)


def transformers(recorder: Recorder) -> Any:
    """A callback for ``transformers.Trainer``.

    Args:
        recorder: What writes.

    Returns:
        An object with the events that it calls.
    """
    return _of_their_kind(_Transformers, _TRANSFORMERS)(recorder)


def _of_their_kind(own: type, candidates: tuple[tuple[str, str], ...]) -> type:
    """Our class, also derived from theirs, as far as they are imported."""
    bases = [
        getattr(sys.modules[module], name)
        for module, name in candidates
        if module in sys.modules and isinstance(getattr(sys.modules[module], name, None), type)
    ]
    return type(own.__name__.lstrip("_") + "Recorder", (own, *dict.fromkeys(bases)), {})


class _Hooks:
    """Every hook that is not written out does nothing, whatever new versions call."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._last = -1  # a step is told of several times while gradients accumulate

    def __getattr__(self, name: str) -> Any:
        if name.startswith("on_") or name in ("setup", "teardown"):
            return _nothing
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def _begin(self) -> None:
        """Training starts, perhaps not for the first time: what comes again must be the same."""
        if self._last >= 0:
            self._last = -1
            self.recorder._continue_own()

    def _tell(self, writes: bool, step: int, **fields: Any) -> None:
        if writes and step > self._last:
            self._last = step
            self.recorder.step(step, **fields)


class _Lightning(_Hooks):
    @property
    def state_key(self) -> str:
        return f"landscapex.Recorder({self.recorder.folder})"

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        pass

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._begin()
        self._record(trainer, None)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, *batch: Any, **named: Any
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        self._record(trainer, loss)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if getattr(trainer, "is_global_zero", True):
            self.recorder.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        # gives the folder free: a notebook goes on after Ctrl-C, and may record there again
        self.recorder.__exit__(type(exception), exception, None)

    def _record(self, trainer: Any, loss: Any) -> None:
        optimizers = getattr(trainer, "optimizers", None) or []
        rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
        self._tell(
            getattr(trainer, "is_global_zero", True), trainer.global_step,
            epoch=trainer.current_epoch, lr=rates or None, loss=loss,
        )  # fmt: skip


class _Transformers(_Hooks):
    def on_train_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        self._begin()
        self._record(state, named)

    def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        self._record(state, named)

    def on_train_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        if getattr(state, "is_world_process_zero", True):
            self.recorder.close()

    def _record(self, state: Any, named: Mapping[str, Any]) -> None:
        optimizer = named.get("optimizer")
        rates = [group["lr"] for group in optimizer.param_groups] if optimizer is not None else None
        try:
            self._tell(
                getattr(state, "is_world_process_zero", True), state.global_step,
                epoch=state.epoch, lr=rates, loss=None,
            )  # fmt: skip
        finally:  # that Trainer tells nobody if training fails: the folder is taken step by step
            self.recorder.release()


def _nothing(*_: Any, **__: Any) -> None:
    return None
