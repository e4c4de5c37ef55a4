"""Exceptions at random points of everything that moves a model: all comes back bit for bit.

The model is in the middle of somebody's training: batch norm, dropout, tied and frozen parameters,
gradients, hooks, a buffer without memory of its own, layers in training mode beside others that are
not. Exceptions come from the loss, the data and the callback; from any operator that needs memory;
and, as Ctrl-C, anywhere in the package and in the ``with`` statements that it uses.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import random
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import reference
import torch
from guard_cases import Kitchen, kitchen
from reliability.entrances import ENTRANCES, Entrance
from reliability.figure import Figure
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import landscapex as lx
from landscapex.model.guard import is_held

# What strikes, and how often.
FAULTS = {"loss": 75, "loader": 75, "callback": 75, "out of memory": 75, "Ctrl-C": 200}
ERRORS = (ValueError, RuntimeError, KeyboardInterrupt, MemoryError, torch.OutOfMemoryError)
SOON = 5.0  # seconds in which a Ctrl-C that was put off must come, also on a busy machine
_TRACED = (str(Path(lx.__file__).parent), contextlib.__file__)
# Instructions at whose end the interpreter looks for signals.
_LOOKING = {
    code for name, code in dis.opmap.items() if name.startswith("CALL") or "BACKWARD" in name
}
_BATCHES = ((4, 4, 2), 5)  # samples, and their height and width


@dataclass(frozen=True)
class Trial:
    """Where an exception comes from, and in what.

    Attributes:
        fault: One of `FAULTS`.
        entrance: One of `ENTRANCES`.
        bn: Of the objective.
        mode: ``"train"``, ``"eval"``, or ``"mixed"``, as `guard_cases.kitchen` is.
        cache: Of the objective.
        error: What is raised.
    """

    fault: str
    entrance: str
    bn: str
    mode: str
    cache: str
    error: type[BaseException]


@dataclass
class Outcome:
    """What became of one or many trials.

    Attributes:
        exceptions: That were raised.
        changed: What of the model was different afterwards.
        own: Exceptions that reached the caller as they were.
        settled: Those after which the call went on to its end, as it had memory enough.
        others: What reached the caller instead.
    """

    exceptions: int = 0
    changed: Counter[str] = field(default_factory=Counter)
    own: int = 0
    settled: int = 0
    others: Counter[str] = field(default_factory=Counter)

    @property
    def kept(self) -> bool:
        """Whether the model came back, and the exception arrived."""
        return self.exceptions > 0 and not self.changed and not self.others

    def add(self, other: Outcome) -> None:
        """Count another one."""
        self.exceptions += other.exceptions
        self.changed.update(other.changed)
        self.own += other.own
        self.settled += other.settled
        self.others.update(other.others)

    def __str__(self) -> str:
        """In numbers, and by name where something is wrong."""
        text = (
            f"{self.changed.total()} parts of the model were different{_list(self.changed)}, "
            f"{self.others.total()} exceptions were lost or replaced{_list(self.others)}; "
            f"{self.own} reached the caller as they were"
        )
        return text + (f", {self.settled} were dealt with" if self.settled else "")


def _list(named: Counter[str]) -> str:
    return f" ({', '.join(f'{n} {name}' for name, n in named.most_common(5))})" if named else ""


def measure(share: float) -> Iterator[Figure]:
    """R2: a figure for each fault."""
    torch.set_num_threads(1)
    for fault, full in FAULTS.items():
        count = max(5, round(full * share))
        outcome = strike(fault, count)
        what = fault if fault in ("out of memory", "Ctrl-C") else f"an exception in the {fault}"
        kept = outcome.kept and outcome.exceptions == count
        yield Figure(what, f"{outcome.exceptions} times", str(outcome), kept)


def strike(fault: str, count: int) -> Outcome:
    """Let a fault happen ``count`` times, at random points of random calls."""
    rng, outcome = random.Random(fault), Outcome()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for trial in _trials(fault, 10 * count, rng):
            points = passed(trial)
            if points:
                outcome.add(attempt(trial, _pick(points, rng)))
            if outcome.exceptions == count:
                break
    return outcome


def _trials(fault: str, most: int, rng: random.Random) -> Iterator[Trial]:
    names = [n for n, e in ENTRANCES.items() if e.calls_back or fault != "callback"]
    rng.shuffle(names)
    for k in range(most):
        name = names[k % len(names)]
        entrance = ENTRANCES[name]
        bn = rng.choice(["eval", "batch"] if entrance.derives else ["eval", "batch", "recompute"])
        mode, cache = rng.choice(["train", "eval", "mixed"]), rng.choice(["auto", "none"])
        error = rng.choice(ERRORS)
        if fault in ("out of memory", "Ctrl-C"):
            error = {"Ctrl-C": KeyboardInterrupt}.get(fault, torch.OutOfMemoryError)
        yield Trial(fault, name, bn, mode, cache, error)


def _pick(points: list[Any], rng: random.Random) -> int:
    """One of the points, from 1; in half of the cases each place has the same chance.

    Most lines that run are those of few loops.
    """
    if rng.random() < 0.5:
        return rng.randint(1, len(points))
    place = rng.choice(sorted(set(points), key=str))
    return 1 + rng.choice([k for k, p in enumerate(points) if p == place])


def passed(trial: Trial) -> list[Any]:
    """Where the exception of a trial could come, in order: how the call goes without it."""
    fault = _fault(trial, 0)
    outcome = _call(trial, fault)
    assert not outcome.changed, (trial, outcome)
    assert not outcome.others, (trial, outcome)
    return fault._points


def attempt(trial: Trial, at: int) -> Outcome:
    """Raise the exception of a trial at one of its points."""
    return _call(trial, _fault(trial, at))


def _call(trial: Trial, fault: Fault) -> Outcome:
    """Make a call in which something may go wrong, and look at the model and the exception."""
    entrance = ENTRANCES[trial.entrance]
    model = _model(trial, entrance)
    objective = _objective(model, trial, entrance, fault)
    raised: BaseException | None = None  # it keeps everything that its frames hold
    with fault.armed():
        before = _state(model)
        try:
            with fault.striking():
                entrance.call(objective, lambda _: fault("callback"))
            if fault._struck and fault.name == "Ctrl-C":
                time.sleep(SOON)  # until it comes
        except BaseException as error:
            raised = error
        changed = reference.changes(before, _state(model))
    if not fault._struck:
        others = [] if raised is None else [f"{type(raised).__name__} of its own"]
        return Outcome(0, Counter(changed), 0, 0, Counter(others))
    outcome = Outcome(1, Counter(changed))
    if raised is fault._error or (
        fault.name == "Ctrl-C" and type(raised) is KeyboardInterrupt and hasattr(raised, "surface")
    ):
        outcome.own = 1
    elif raised is None and issubclass(trial.error, MemoryError | torch.OutOfMemoryError):
        outcome.settled = 1
    else:
        outcome.others[f"{trial.entrance}: {raised!r}"] = 1
    return outcome


# --- The model and its data ----------------------------------------------------------------------


def _model(trial: Trial, entrance: Entrance) -> Kitchen:
    model = kitchen()
    if trial.mode != "mixed":
        model.train(trial.mode == "train")
    if entrance.moves_buffers:  # an expanded one cannot be written
        model.mask = model.mask.clone()
    return model


def _objective(model: Kitchen, trial: Trial, entrance: Entrance, fault: Fault) -> lx.Objective:
    """Of user code that draws random numbers, changes modes, and may fail."""

    def loss(m: Kitchen, batch: tuple[Tensor, Tensor]) -> Tensor:
        fault("loss")
        _draw()
        return F.cross_entropy(m(batch[0]), batch[1])

    class Loader:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            for pair in _pairs():
                fault("loader")
                _draw()
                yield pair

    if entrance.named:
        model.first.register_forward_hook(lambda *_: fault("loss"))
    return lx.Objective(
        model, Loader(), "cross_entropy" if entrance.named else loss, bn=trial.bn,
        cache=trial.cache, check=False,
    )  # fmt: skip


def _pairs() -> list[tuple[Tensor, Tensor]]:
    rng, (sizes, side) = torch.Generator().manual_seed(1), _BATCHES
    return [
        (torch.randn(n, 1, side, side, generator=rng), torch.randint(6, (n,), generator=rng))
        for n in sizes
    ]


def _draw() -> None:
    torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002  (as user code does)


def _state(model: Kitchen) -> dict[str, object]:
    """All that must be as it was, also of the settings of the process."""
    state = reference.everything(model)
    state["lock"] = is_held(model)
    state["more settings"] = (
        torch.get_default_dtype(),
        torch.is_autocast_enabled("cpu"),
        torch.is_inference_mode_enabled(),
        torch.backends.mkldnn.enabled,
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch._C._len_torch_function_stack(),
        torch._C._len_torch_dispatch_stack(),
    )
    return state


# --- What goes wrong -----------------------------------------------------------------------------


class Fault:
    """Raises an exception at one of the points where it could come.

    Attributes:
        name: Of the fault.
    """

    def __init__(self, name: str, error: BaseException, at: int) -> None:
        # names that begin with an underscore, as the fingerprint of a loss holds all others
        self.name, self._error, self._at = name, error, at
        self._points: list[Any] = []
        self._struck = False

    def __call__(self, name: str, place: object = None) -> None:
        """Pass a point where a fault of this name could come."""
        if name != self.name or self._struck:
            return
        self._points.append(place)
        if len(self._points) == self._at:
            self._struck = True
            self.strike()

    def strike(self) -> None:
        """Raise."""
        raise self._error

    @contextlib.contextmanager
    def armed(self) -> Iterator[None]:
        """What must last until the state of everything has been compared."""
        yield

    @contextlib.contextmanager
    def striking(self) -> Iterator[None]:
        """What must last during the call."""
        yield


class OutOfMemory(Fault):
    """Comes from an operator that makes a new tensor."""

    @contextlib.contextmanager
    def striking(self) -> Iterator[None]:
        """See every operator."""
        fault = self

        class Operators(TorchDispatchMode):
            def __torch_dispatch__(
                self, function: Any, types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                if not function.is_view and not function._schema.is_mutable:
                    fault(fault.name, function.name())
                return function(*args, **(kwargs or {}))

        with Operators():
            yield


class CtrlC(Fault):
    """Comes wherever the interpreter looks for signals.

    That is when a function is called or a generator goes on, after a call, and in a loop; it calls
    the handler with the frame that it is in, and so does this.
    """

    @contextlib.contextmanager
    def armed(self) -> Iterator[None]:
        """The user's handler raises the user's exception."""
        previous = signal.signal(signal.SIGINT, self._raise)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    def _raise(self, signum: int, frame: FrameType | None) -> None:
        raise self._error

    @contextlib.contextmanager
    def striking(self) -> Iterator[None]:
        """Follow every instruction."""
        sys.settrace(self._trace)
        try:
            yield
        finally:
            sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, arg: object) -> Callable[..., Any] | None:
        if self._struck or not frame.f_code.co_filename.startswith(_TRACED):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        instructions, looks = _instructions(frame.f_code), True

        def follow(frame: FrameType, event: str, arg: object) -> Callable[..., Any]:
            nonlocal looks
            if event == "opcode":
                if looks:
                    self._pass(frame)
                looks = instructions[frame.f_lasti] in _LOOKING
            return follow

        return follow

    def _pass(self, frame: FrameType) -> None:
        self._frame = frame
        self(self.name, (frame.f_code.co_filename, frame.f_lineno))

    def strike(self) -> None:
        """As the interpreter would."""
        handler = signal.getsignal(signal.SIGINT)
        assert callable(handler)
        handler(signal.SIGINT, self._frame)


@functools.cache
def _instructions(code: CodeType) -> bytes:
    return code.co_code  # made anew each time


def _fault(trial: Trial, at: int) -> Fault:
    kinds: dict[str, type[Fault]] = {"out of memory": OutOfMemory, "Ctrl-C": CtrlC}
    return kinds.get(trial.fault, Fault)(trial.fault, trial.error("mine"), at)
