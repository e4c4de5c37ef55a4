"""Exclusive use of a user's model, which comes back bit for bit.

`exclusive` takes the model's lock, notes everything that an evaluation might change, and puts all
of it back by copy: after success, after an exception and after Ctrl-C.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from landscapex import _ops
from landscapex.errors import ModelChangedError, ReentrancyError
from landscapex.interrupts import put_off
from landscapex.model import generators
from landscapex.model.entries import Entry
from landscapex.model.parameters import ParameterSpace, Steps

_LOOK = 0.1  # seconds after which who waits for a model looks whether Ctrl-C was pressed
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of a number
_HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
    "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called",
    "_non_full_backward_hooks", "_state_dict_hooks", "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip


class _ModelLock:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.owner: int | None = None

    @contextlib.contextmanager
    def held(self, model: nn.Module, shield: _Shield) -> Iterator[None]:
        if self.owner == threading.get_ident():
            raise ReentrancyError(
                "a loss, metric, hook or callback must not evaluate the model whose landscape is "
                f"being computed, got a nested call for {type(model).__name__}."
            )
        while not self.lock.acquire(timeout=_LOOK):
            shield.let_through()
        try:
            self.owner = threading.get_ident()
            yield
        finally:
            self.owner = None
            self.lock.release()


_locks: weakref.WeakKeyDictionary[nn.Module, _ModelLock] = weakref.WeakKeyDictionary()
_registry = threading.Lock()


def _forget_locks() -> None:
    # the forked child has none of the threads that may have held a lock
    global _registry, _locks
    _registry, _locks = threading.Lock(), weakref.WeakKeyDictionary()


os.register_at_fork(after_in_child=_forget_locks)


def _lock_of(model: nn.Module) -> _ModelLock:
    with _registry:
        return _locks.setdefault(model, _ModelLock())


def is_held(model: nn.Module) -> bool:
    """Whether this thread holds the model's lock.

    Args:
        model: Without wrappers.

    Returns:
        False too if another thread holds it.
    """
    return _lock_of(model).owner == threading.get_ident()


@contextlib.contextmanager
def exclusive(space: ParameterSpace) -> Iterator[Snapshot]:
    """Hold the model's lock; restore the model at the end, whatever happens.

    Args:
        space: The chosen parameters of the model.

    Yields:
        The snapshot that will be restored.

    Raises:
        ModelChangedError: If somebody else wrote to the parameters meanwhile.
        ReentrancyError: If this thread holds the lock already.
    """
    with _Shield() as shield, _lock_of(space.model).held(space.model, shield):
        snapshot = Snapshot(space)
        try:
            try:
                shield.lower()
                snapshot.lend()
                yield snapshot
                snapshot.check_unchanged(contents=True)
            finally:
                shield.up = True
                snapshot.restore()
        finally:
            # reached with work left only if Ctrl-C struck between the two lines above
            shield.up = True
            snapshot.restore()


class _Shield:
    """Puts Ctrl-C off while it is up, so that a restore is never cut short (main thread only).

    It is up from the beginning, so that Ctrl-C cannot strike before there is something to restore.
    """

    def __init__(self) -> None:
        self.up = True
        self._pending: FrameType | bool | None = False
        self._previous: Any = None

    def __enter__(self) -> _Shield:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.getsignal(signal.SIGINT)
            if callable(self._previous):
                signal.signal(signal.SIGINT, self._handle)
        return self

    def lower(self) -> None:
        """Let Ctrl-C through, also one that came before."""
        self.up = False
        self.let_through()

    def let_through(self) -> None:
        """Let a Ctrl-C through that came before."""
        if self._pending is not False:
            pending, self._pending = self._pending, False
            self._previous(signal.SIGINT, pending)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.up:
            self._pending = frame
        elif not put_off(signum, frame):
            self._previous(signum, frame)

    def __exit__(self, *_: object) -> None:
        if callable(self._previous):
            signal.signal(signal.SIGINT, self._previous)
            if self._pending is not False:
                self._previous(signal.SIGINT, self._pending)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Put Ctrl-C off until the end: for work that must not be left half done."""
    with _Shield():
        yield


class Snapshot:
    """All that an evaluation may change in a model and in the random number generators.

    Attributes:
        center: The chosen parameters as they were, ``(P,)``; not to be written.
    """

    def __init__(self, space: ParameterSpace) -> None:
        self.space = space
        self.center = space.gather()
        self._parameters = [
            (p, self._original(space, i, p)) for i, p in enumerate(space.parameters)
        ]
        self._tables = [
            (m, m.training, _copied(m._parameters), _copied(m._buffers), _hooks_of(m))
            for m in space.model.modules()
        ]
        self._leaves = [(p, p.requires_grad, p.grad) for p in space.model.parameters()]
        self._buffers = [(b, b.detach().clone()) for b in space.model.buffers()]
        self._starts = [(b, copy, _version(b)) for b, copy in self._buffers]
        self._rng = generators.read_states()
        self._grad_enabled = torch.is_grad_enabled()
        # a hook (pruning, weight norm) or forward keeps what it derives as a plain attribute
        self._attributes = [
            (m, dict(m.__dict__), list(m.__dict__.get("_flat_weights", ())))
            for m in space.model.modules()
        ]
        self._children = [(m, _copied(m._modules)) for m in space.model.modules()]
        # the very memory, should a loss give a parameter another dtype, shape or place
        self._memory = [(p, p.data) for p in space.model.parameters()]
        moving = {id(p) for p in space.parameters}
        self._watched = [
            (name, p, id(p) in moving)
            for name, p in space.model.named_parameters(remove_duplicate=False)
        ]
        self._slots = [(m, name, p) for m, _, own, _, _ in self._tables for name, p in own.items()]
        self._buffer_tables = [(m, own) for m, _, _, own, _ in self._tables if own]
        self._writer = space.writer()
        self._counting = [p for _, p, _ in self._watched if not p.is_inference()]
        self._places = self._read_places()
        # how often each parameter had been written to after our last write, and, should somebody
        # else have written between two of ours, what was found then
        self._written: list[int] | None = self._versions()
        self._foreign: list[int] | None = None
        nowhere = self.center[None][:0]
        self._point: tuple[Tensor, Steps, Sequence[float]] = (self.center, nowhere, ())
        self._follow: Callable[[Sequence[float]], None] | None = None
        self._restored = False

    def lend(self) -> None:
        """Take the user's gradients off, so that nobody adds to them meanwhile."""
        for p, _, grad in self._leaves:
            if grad is not None:
                p.grad = None

    @staticmethod
    def _original(space: ParameterSpace, i: int, p: Tensor) -> Tensor:
        e = space.entries[i]
        if p.dtype == space.dtype:  # the centre already is an exact copy
            return torch.empty(0, dtype=p.dtype)
        return p.detach().clone() if e.size else p.detach()

    def also(self, tensors: list[Tensor]) -> None:
        """Note further tensors that are about to be written: those of a checkpoint.

        The next `move` takes frozen parameters and buffers as they are then.
        """
        self._buffers += [(t, t.detach().clone()) for t in tensors]
        self._written = None

    def accompany(self, follow: Callable[[Sequence[float]], None]) -> None:
        """Have further tensors follow every point: buffers, or parameters given to `also`.

        Args:
            follow: Writes them, given the coordinates of a point; none for the centre.
        """
        self._follow = follow

    def move(self, center: Tensor, directions: Steps, coordinates: Sequence[float]) -> None:
        """Write a point into the live parameters, and note that it was us.

        Buffers start at every point from the same values, whatever an evaluation did to them.
        Whether somebody else wrote to the parameters is for `check_unchanged` to say, after some
        points: to look at each parameter at every point would take as long as a small network.

        Raises:
            ModelChangedError: If a parameter has got another shape.
        """
        if self._written is None:
            self._starts = [
                (b, b.detach().clone(), _version(b)) for b in self.space.model.buffers()
            ]
            self._places = self._read_places()
        else:
            self._rewind_buffers()
        self._write(center, directions, coordinates)

    def _write(self, center: Tensor, directions: Steps, coordinates: Sequence[float]) -> None:
        before = self._versions()
        if before != self._written and self._written is not None and self._foreign is None:
            self._foreign = [a - b for a, b in zip(before, self._written, strict=True)]
        try:
            self._writer.write(center, directions, coordinates)
        except RuntimeError:
            self._check_places()  # a parameter of another shape takes no copy
            raise
        if self._follow is not None:
            self._follow(coordinates)
        self._point = (center, directions, coordinates)
        self._written = self._versions()

    def check_unchanged(self, *, contents: bool = False) -> None:
        """Refuse to go on when somebody else wrote to the parameters.

        Args:
            contents: Compare every entry too, for those who write to ``parameter.data``, of which
                nothing else tells.

        Raises:
            ModelChangedError: If parameters were written to, or replaced, since the last point.
        """
        if self._written is None:
            return
        self._check_versions()
        self._check_places()
        if contents:
            self._check_contents()

    def _check_versions(self) -> None:
        """Compare slots, and counters with what they were after our own writes."""
        for m, name, p in self._slots:
            if m._parameters.get(name) is not p:
                raise ModelChangedError(_changed(f"{type(m).__name__}.{name} was replaced"))
        now = [a - b for a, b in zip(self._versions(), self._written or (), strict=True)]
        for p, *writes in zip(self._counting, now, self._foreign or now, strict=True):
            if any(writes):
                name, moves = next((name, moves) for name, q, moves in self._watched if q is p)
                raise ModelChangedError(_changed(f"{name} was written to", moves))

    def _check_places(self) -> None:
        for (name, _, moves), mine, now in zip(
            self._watched, self._places, self._read_places(), strict=True
        ):
            if mine != now:
                raise ModelChangedError(_changed(f"{name} was written to", moves))

    def _formed_again(self) -> Iterator[tuple[list[tuple[Entry, nn.Parameter]], Tensor, Tensor]]:
        """Parameters, their bits, and what they were set to: one tensor per run of equal dtypes."""
        center, directions, coordinates = self._point
        live = zip(self.space.entries, self.space.parameters, strict=True)
        if not isinstance(directions, Tensor) or not len(directions):  # there may be no room
            for i, (e, p) in enumerate(live):
                bits = _flat_bits(p)
                number = torch.empty(len(bits), dtype=e.dtype.to_real(), device=bits.device)
                part = _within(directions, i, e)
                _ops.perturb_([number], center[e.offset : e.end], part, coordinates)
                yield [(e, p)], bits, number
            return
        runs, found, expected = [], [], []
        for dtype, group in groupby(live, lambda pair: pair[0].dtype.to_real()):
            run = list(group)
            runs.append(run)
            found.append(torch.cat([_flat_bits(p) for _, p in run]))
            expected.append(torch.empty(len(found[-1]), dtype=dtype, device=found[-1].device))
        _ops.perturb_(expected, center, directions, coordinates)
        yield from zip(runs, found, expected, strict=True)

    def _check_contents(self) -> None:
        """Form the point again, elsewhere, and compare."""
        for run, bits, numbers in self._formed_again():
            right = numbers.view(bits.dtype)
            if not torch.equal(bits, right):
                at = int((bits != right).nonzero()[0]) + run[0][0].offset
                name = next(e.name for e, _ in run if at < e.end)
                raise ModelChangedError(_changed(f"{name} was written to"))

    def _versions(self) -> list[int]:
        return [p._version for p in self._counting]

    def _read_places(self) -> list[tuple[object, ...]]:
        return [(p.data_ptr(), p.shape, p.dtype) for _, p, _ in self._watched]

    def _rewind_buffers(self) -> None:
        for m, buffers in self._buffer_tables:
            _put_back(m._buffers, buffers)
        for k, (b, start, version) in enumerate(self._starts):
            if _version(b) != version:
                b.copy_(start)
                self._starts[k] = (b, start, _version(b))

    def restore(self) -> None:
        """Put everything back, by copy; does nothing the second time."""
        if self._restored:
            return
        for m, training, parameters, buffers, hooks in self._tables:
            m.training = training
            _put_back(m._parameters, parameters)
            _put_back(m._buffers, buffers)
            for name, hook in hooks.items():
                _put_back(getattr(m, name), hook)
        for m, children in self._children:
            _put_back(m._modules, children)
        for m, attributes, flat_weights in self._attributes:
            _put_attributes_back(m, attributes)
            if flat_weights:  # of recurrent layers
                m.__dict__["_flat_weights"][:] = flat_weights
        for p, data in self._memory:
            if (p.data_ptr(), p.shape, p.dtype) != (data.data_ptr(), data.shape, data.dtype):
                p.data = data
        with torch.no_grad():
            for i, (p, original) in enumerate(self._parameters):
                e = self.space.entries[i]
                if e.dtype == self.space.dtype:
                    original = self.center[e.offset : e.end].view(e.shape)
                p.copy_(original)
            for b, original in reversed(self._buffers):  # what was noted first is the original
                if not _same_bits(b, original):  # an expanded buffer cannot be written
                    b.copy_(original)
        for p, requires_grad, grad in self._leaves:
            p.requires_grad_(requires_grad)
            p.grad = grad
        generators.put_back(self._rng)
        torch.set_grad_enabled(self._grad_enabled)  # Ctrl-C may strike while `no_grad` is entered
        self._restored = True


def _within(directions: Steps, i: int, entry: Entry) -> Tensor:
    if isinstance(directions, Tensor):
        return directions[:, entry.offset : entry.end]
    return directions.of(i)


def _changed(what: str, moves: bool = True) -> str:
    """What is wrong with a model that somebody else changed, in words."""
    copies = (
        "The model was put back as it was at the start."
        if moves
        else "It is not among the parameters that move, so there is no copy to put back."
    )
    return (
        f"the model must not be changed while its landscape is computed, but {what} (a training "
        f"step, load_state_dict, or the loss itself?). {copies}"
    )


def _version(t: Tensor) -> int | None:
    return None if t.is_inference() else t._version


def _flat_bits(p: Tensor) -> Tensor:
    """The bits of a parameter as integers, complex numbers as two."""
    t = p.detach().resolve_neg()
    t = torch.view_as_real(t.resolve_conj()) if t.is_complex() else t
    return t.reshape(-1).view(_BITS[t.itemsize])


def _same_bits(a: Tensor, b: Tensor) -> bool:
    flat = [t.detach().resolve_conj().resolve_neg().reshape(-1).contiguous() for t in (a, b)]
    return a.shape == b.shape and torch.equal(*(t.view(torch.uint8) for t in flat))


def _put_attributes_back(module: nn.Module, original: dict[str, Any]) -> None:
    """Plain attributes that hold, or held, a tensor or nothing; and a method that was covered."""
    for name, value in list(module.__dict__.items()):
        if name not in original:
            if isinstance(value, Tensor) or name == "forward":
                del module.__dict__[name]
        elif value is not original[name] and any(
            v is None or isinstance(v, Tensor) for v in (value, original[name])
        ):
            module.__dict__[name] = original[name]


def _copied(table: Any) -> dict[Any, Any]:
    # a TorchScript module keeps its tables in C++, where nobody replaces an entry
    return dict(table) if isinstance(table, dict) else {}


def _hooks_of(module: nn.Module) -> dict[str, dict[Any, Any]]:
    return {
        name: dict(table)
        for name in _HOOKS
        if isinstance(table := module.__dict__.get(name), OrderedDict | dict)
    }


def _put_back(table: Any, original: dict[Any, Any]) -> None:
    if not isinstance(table, dict):
        return
    if list(table) != list(original) or any(table[k] is not v for k, v in original.items()):
        table.clear()
        table.update(original)
