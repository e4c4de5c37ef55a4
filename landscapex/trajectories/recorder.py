"""Recording a training run: checkpoints that are whole, in order, and never overwritten."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
import weakref
from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from landscapex.errors import (
    ArgumentError,
    ArgumentTypeError,
    OutputError,
    ParameterMismatchError,
    ResumeMismatchError,
)
from landscapex.model.parameters import unwrap
from landscapex.storage import checkpoints
from landscapex.storage.files import (
    check_output,
    check_path,
    fail,
    replace_file,
    sync_data,
    sync_folder,
    write_all,
)
from landscapex.storage.lock import FileLock
from landscapex.trajectories import callbacks, runs

_Marks = tuple[list[int | None], list[Tensor]]
Every = int | Literal["log"] | Collection[int] | Callable[[int], bool]

_PER_DECADE = 20  # steps that "log" keeps between 1000 and 10000, for example
_LISTED = 10
_SAMPLED_TENSORS, _SAMPLED_ENTRIES = 8, 32  # about; what tells that a model has changed
_LAZY = (nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer)


class Recorder:
    """Writes the states of a model during training to a folder.

    Each state goes into ``step-%09d.safetensors``: parameters and buffers under the names of the
    state_dict, in their own dtype, tied ones once. One line of ``index.jsonl`` then says that it is
    there: step, epoch, learning rate, loss, whatever else was given, and the SHA-256 of the file.
    Both are on the disk before a call returns, and a process that is killed leaves a run that can
    be read. The model, its gradients and the random generators are left alone.

    In a distributed run, only rank 0 writes; the other ranks may call it all the same.

    Args:
        folder: Made if it is not there.
        model: What is trained; wrappers (DataParallel, DistributedDataParallel, torch.compile) are
            looked through.
        every: Which of the steps that it is told of are kept: every n-th (those divisible by n),
            ``"log"`` (0, 1, 2, ... and then 20 per decade), the steps listed, or ``f(step) ->
            bool``. The last one is kept too if the recorder is closed, or used in a ``with`` block,
            before the model changes again. Changes are noticed by torch's version counters; those
            by code that writes past them (``p.data``, CUDA graphs, kernels of other libraries) by
            some entries of some weights, so that a write to a few others alone is not seen.
        resume: What to do with a run that is there already. False refuses to touch it. True goes
            on with it: steps that are there must be the same bit by bit, and are not written
            again. A step number drops all that came after it, and goes on.
        optimizer: Gives the learning rates, unless a call does.

    Raises:
        ArgumentError: If ``every`` is below 1 or unknown.
        ArgumentTypeError: If ``model`` is not a module.
        OutputError: If the folder cannot be written, or holds a run and ``resume`` is False.

    Example:
        >>> import tempfile, torch, landscapex as lx
        >>> from landscapex.trajectories.recorder import Recorder
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> folder = tempfile.TemporaryDirectory()
        >>> with Recorder(folder.name, model, every=2, optimizer=optimizer) as recorder:
        ...     for step in range(4):
        ...         loss = model(torch.ones(3, 2)).square().mean()
        ...         recorder(step, loss=loss)  # before the update: the state that has this loss
        ...         optimizer.zero_grad(); loss.backward(); optimizer.step()
        True
        False
        True
        False
        >>> runs.open_run(recorder).steps.tolist()
        [0, 2]
        >>> folder.cleanup()
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        model: nn.Module,
        *,
        every: Every = 1,
        resume: bool | int = False,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        unwrap(model)  # refuses what is no module
        self._model, self._optimizer = model, optimizer
        self._wanted = _rule(every)
        if not isinstance(resume, bool) and (not isinstance(resume, int) or resume < 0):
            raise ArgumentError(f"`resume` must be False, True or a step, got {resume!r}.")
        self._resume: bool | int = resume
        self.folder = check_path(folder)
        self._index = self.folder / runs.INDEX
        self._records: list[dict[str, Any]] = []
        self._unlock: weakref.finalize[[], Recorder] | None = None
        # a step that the rule left out, and what the model was then
        self._pending: tuple[int, dict[str, Any], _Marks] | None = None
        self._layout: dict[str, tuple[Any, ...]] | None = None
        if _writes():
            self._prepare()

    def __fspath__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        return f"Recorder({str(self.folder)!r}, {len(self._records)} checkpoints)"

    def step(
        self,
        step: int,
        *,
        epoch: float | None = None,
        lr: Any = None,
        loss: Any = None,
        **values: Any,
    ) -> bool:
        """Keep the model as it is now, if the step is one of those wanted.

        Args:
            step: Number of updates so far, in increasing order.
            epoch: How often the data have been seen, whole or not.
            lr: The learning rate, or one per parameter group; by default the optimizer's.
            loss: What the training loop measured.
            **values: Other numbers to be kept in the index.

        Returns:
            Whether it was written.

        Raises:
            ArgumentError: If a step was recorded before and another one is not later.
            ArgumentTypeError: If a value is not a number.
            OutputError: If it cannot be written; what was written before is whole.
            ParameterMismatchError: If a tensor of the model cannot be stored.
            ResumeMismatchError: If the step is there with other weights, or the run that is there
                is of another model.
        """
        step = _whole(step)
        fields = {"epoch": epoch, "lr": self._rates(lr), "loss": loss, **values}
        fields = {name: _held(name, value) for name, value in fields.items()}
        if not _writes():
            return False
        self._pending = None
        if not self._wanted(step):
            self._pending = (step, fields, self._marks())
            return False
        return self._record(step, fields)

    __call__ = step

    def close(self) -> None:
        """Keep the last step too, if the model has not changed since; give the folder free."""
        pending, self._pending = self._pending, None
        try:
            if pending is not None and self._unchanged(pending[2]):
                self._record(pending[0], pending[1])
        finally:
            self.release()

    def release(self) -> None:
        """Give the folder free, and record nothing; the next step takes it again."""
        if self._unlock is not None:
            self._unlock()
            self._unlock = None

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:  # the model may be in the middle of an update
            self.release()

    def _continue_own(self) -> None:
        """Let training start over or go on from an earlier step, if that is the run of this object.

        Steps that it has recorded may come again: they must be the same bit by bit.
        """
        if self._resume is False and self._records:
            self._resume = True

    def lightning(self) -> Any:
        """A callback for the Trainer of Lightning, which is not imported here.

        Make it after ``import lightning``: it becomes one of its callbacks, which the Trainer
        insists on.

        Returns:
            For ``Trainer(callbacks=[...])``. It records the state before training, after every
            update that `every` wants, and at the end.
        """
        return callbacks.lightning(self)

    def transformers(self) -> Any:
        """A callback for the Trainer of Hugging Face, which is not imported here.

        Returns:
            For ``Trainer(callbacks=[...])``. It records the state before training, after every
            update that `every` wants, and at the end. That Trainer does not tell callbacks the
            loss of a step, nor that training has failed: the folder is held only while it is
            written to.
        """
        return callbacks.transformers(self)

    def _prepare(self) -> None:
        """Find out now, not after an epoch, whether the folder can be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            fail(f"{self.folder} cannot be made: {error.strerror}.", error.errno)
        check_output(self._index)
        if self._index.is_file():
            self._records, _ = runs.read_index(self.folder)
        if self._resume is False:
            self._refuse_more(self._records, than=0)

    def _refuse_more(self, records: list[dict[str, Any]], *, than: int) -> None:
        """Leave a run alone that holds checkpoints of others."""
        if len(records) > than:
            raise OutputError(
                f"{self.folder} holds a run of {len(records)} checkpoints, the last of step "
                f"{records[-1]['step']}: pass resume=True to go on with it, resume=STEP to "
                "drop what came after that step, or take another folder."
            )

    def _open(self) -> None:
        """Take the folder for ourselves, and clear away what a killed process left."""
        if self._unlock is not None:
            return
        lock = FileLock(self._index.with_name(f"{runs.INDEX}.lock"), self.folder)
        self._unlock = weakref.finalize(self, lock.release)
        try:
            self._tidy()
        except BaseException:
            self.release()  # so that the next call looks again
            raise

    def _tidy(self) -> None:
        if not self._index.is_file():
            return
        records, size = runs.read_index(self.folder)
        if self._resume is False:  # somebody may have come before us since we looked
            self._refuse_more(records, than=len(self._records))
        self._records = records
        if not isinstance(self._resume, bool):
            self._drop_after(self._resume)
            self._resume = True
        elif size < self._index.stat().st_size:
            os.truncate(self._index, size)
        for pattern in ("step-*.safetensors.*.tmp", f"{runs.INDEX}.*.tmp"):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)

    def _drop_after(self, step: int) -> None:
        kept = [r for r in self._records if r["step"] <= step]
        lines = self._index.read_bytes().splitlines(keepends=True)[: len(kept)]
        replace_file(self._index, b"".join(lines))  # first: no line without its file
        for record in self._records[len(kept) :]:
            (self.folder / runs.file_name(record["step"])).unlink(missing_ok=True)
        self._records = kept

    def _record(self, step: int, fields: dict[str, Any]) -> bool:
        fields = {name: _plain(name, value) for name, value in fields.items()}
        self._open()
        state = _state_of(self._model)
        self._check_layout(state)
        if self._records and step <= self._records[-1]["step"]:
            self._check_same(step, state)
            return False
        path = self.folder / runs.file_name(step)
        data = checkpoints.to_safetensors(state, {"landscapex.step": str(step)})
        replace_file(path, data)
        record = {"step": step, **fields, "sha256": hashlib.sha256(data).hexdigest()}
        line = runs.index_line(record, self._records)
        self._append(line)
        self._records.append(json.loads(line))
        return True

    def _append(self, line: bytes) -> None:
        """One line that is there whole, or not at all."""
        descriptor = os.open(self._index, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            size = os.fstat(descriptor).st_size
            try:
                write_all(descriptor, line)
                sync_data(descriptor)
            except OSError as error:
                os.ftruncate(descriptor, size)
                fail(f"{self._index} could not be written: {error.strerror}.", error.errno)
            except BaseException:
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)
        if size == 0:
            sync_folder(self.folder)

    def _check_layout(self, state: Mapping[str, Tensor]) -> None:
        """Refuse to go on with the run of another model."""
        layout = {n: (tuple(t.shape), t.dtype) for n, t in state.items()}
        if self._layout is None and self._records:
            last = runs.open_run(self.folder)[-1].read()
            assert isinstance(last, Mapping)
            self._layout = {n: (tuple(t.shape), t.dtype) for n, t in last.items()}
        if self._layout is not None and layout != self._layout:
            names = sorted({*layout, *self._layout})
            differ = [n for n in names if layout.get(n) != self._layout.get(n)]
            more = f" and {len(differ) - _LISTED} more" if len(differ) > _LISTED else ""
            raise ResumeMismatchError(
                f"{self.folder} holds the run of another model; it differs in "
                f"{', '.join(differ[:_LISTED])}{more}."
            )
        self._layout = layout

    def _check_same(self, step: int, state: Mapping[str, Tensor]) -> None:
        """A step that is there is not written again; it must be the same step."""
        last = self._records[-1]["step"]
        found = [c for c in runs.open_run(self.folder) if c.step == step]
        if not found or self._resume is False:
            raise ArgumentError(f"`step` must be above {last}, the last recorded, got {step}.")
        stored = found[0].read()
        assert isinstance(stored, Mapping)
        differ = [n for n, t in state.items() if not _same_bits(t, stored[n])]
        if differ:
            drop = f"Pass resume={step - 1} to drop what is there from this step on, or take"
            raise ResumeMismatchError(
                f"step {step} is in {self.folder} with other weights ({differ[0]}, ...): the "
                f"training did not go on where that run was. {drop if step else 'Take'} another "
                "folder."
            )

    def _rates(self, lr: Any) -> Any:
        if lr is None and self._optimizer is not None:
            lr = [group["lr"] for group in self._optimizer.param_groups]
        if isinstance(lr, list | tuple):
            return lr[0] if len(lr) == 1 else list(lr)
        return lr

    def _marks(self) -> _Marks:
        """What tells whether the model has been written to: version counters, and some weights."""
        # who writes past the counters writes to all weights as a rule, and so to the sampled ones
        parameters = list(self._model.parameters())
        tensors = itertools.chain(parameters, self._model.buffers())
        versions = [None if _has_no_counter(t) else t._version for t in tensors]
        trained = [p for p in parameters if p.requires_grad]
        chosen = trained[:: -max(len(trained) // _SAMPLED_TENSORS, 1)]
        return versions, [_sample(p) for p in chosen]

    def _unchanged(self, since: _Marks) -> bool:
        (versions, samples), (then, before) = self._marks(), since
        return (
            versions == then
            and len(samples) == len(before)
            and all(_same_bits(a, b.cpu()) for a, b in zip(samples, before, strict=True))
        )


def _rule(every: Every) -> Callable[[int], bool]:
    """Which steps are kept."""
    if isinstance(every, str):
        if every != "log":
            raise ArgumentError(f"`every` must be a number, 'log' or steps, got {every!r}.")
        return _log_spaced
    if isinstance(every, bool) or (isinstance(every, int) and every < 1):
        raise ArgumentError(f"`every` must be at least 1, got {every!r}.")
    if isinstance(every, int):
        return lambda step: step % every == 0
    if callable(every):
        return every
    if not isinstance(every, Collection):
        raise ArgumentTypeError(
            f"`every` must be a number, 'log' or steps, got {type(every).__name__}."
        )
    steps = frozenset(_whole(step) for step in every)
    return lambda step: step in steps


def _log_spaced(step: int) -> bool:
    if step < 1:
        return step == 0
    near = round(_PER_DECADE * math.log10(step))
    return any(round(10 ** (k / _PER_DECADE)) == step for k in (near - 1, near, near + 1))


def _writes() -> bool:
    """Whether this process is the one that writes: rank 0 of a distributed run."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return True
    return distributed.get_rank() == 0


def _whole(step: Any) -> int:
    if isinstance(step, Tensor) and step.numel() == 1 and not step.is_floating_point():
        step = step.item()
    if isinstance(step, bool) or not isinstance(step, int | np.integer):
        raise ArgumentTypeError(f"`step` must be a whole number, got {step!r}.")
    if step < 0:
        raise ArgumentError(f"`step` must be at least 0, got {step}.")
    return int(step)


def _held(name: str, value: Any) -> Any:
    """What `_plain` makes a number of, later: to ask a device for it makes the training wait."""
    if isinstance(value, list):
        return [_held(name, v) for v in value]
    if isinstance(value, Tensor) and value.device.type != "cpu" and value.numel() == 1:
        return value.detach().clone()
    return _plain(name, value)


def _plain(name: str, value: Any) -> Any:
    """A number, or a list of them, as JSON knows it; what is not finite becomes its name."""
    if value is None:
        return None
    if name in ("step", "sha256", "crc32") or not re.fullmatch(r"\w+", name):
        raise ArgumentError(f"a value must have another name than {name!r}.")
    if isinstance(value, list):
        return [_plain(name, v) for v in value]
    if isinstance(value, Tensor):
        value = value.detach()
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise ArgumentTypeError(f"`{name}` must be a number, got {type(value).__name__}.") from None
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return number if math.isfinite(number) else str(number)


def _state_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by the names of the state_dict; not copied."""
    state = unwrap(model).state_dict(keep_vars=True)
    tensors = {name: t for name, t in state.items() if isinstance(t, Tensor)}
    bad = []
    for name, t in tensors.items():
        if isinstance(t, _LAZY):
            bad.append(f"{name} (lazy, not initialised yet: run one forward pass first)")
        elif type(t).__name__ == "DTensor":
            bad.append(f"{name} (DTensor)")
        elif t.is_meta:
            bad.append(f"{name} (on the meta device: it has no values)")
        elif t.layout != torch.strided or t.is_quantized:
            bad.append(f"{name} ({t.layout}, {t.dtype})")
    if bad:
        raise ParameterMismatchError(
            f"tensors must be plain and dense to be recorded, got {'; '.join(bad[:_LISTED])}."
        )
    return tensors


def _has_no_counter(tensor: Tensor) -> bool:
    return isinstance(tensor, _LAZY) or tensor.is_inference()


def _sample(tensor: Tensor) -> Tensor:
    """Entries along a diagonal of a tensor, where it lies; none if there is no diagonal."""
    plain = type(tensor) is nn.Parameter and tensor.layout == torch.strided
    if not plain or tensor.is_meta or tensor.is_quantized or not tensor.numel():
        return torch.empty(0, device="cpu")
    count = min(_SAMPLED_ENTRIES, max(tensor.shape, default=1))
    steps = [(size - 1) // max(count - 1, 1) for size in tensor.shape]
    stride = sum(n * s for n, s in zip(steps, tensor.stride(), strict=True))
    # strides instead of indices: nothing but the sample is copied, and no device is waited for
    seen = tensor.detach().as_strided((count,), (stride,))
    return seen.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)


def _same_bits(live: Tensor, stored: Tensor) -> bool:
    a, b = live.detach().resolve_conj().resolve_neg().cpu(), stored
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    bits = [t.reshape(-1).contiguous().view(torch.uint8) for t in (a, b) if t.numel()]
    return not bits or torch.equal(*bits)
