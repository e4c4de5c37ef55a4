"""The line between two models: parameters, buffers and all."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscapex._directions import Axis, Directions, layout_of
from landscapex._warnings import warn
from landscapex.engine.batch_norm import batch_norms
from landscapex.engine.choice import Choice, Region
from landscapex.engine.eager import Stop
from landscapex.errors import ArgumentTypeError, CaptureError
from landscapex.grids.filling import fill_grid
from landscapex.grids.grid import Span
from landscapex.grids.options import Progress, Shard, checked_options
from landscapex.grids.quantities import Losses
from landscapex.grids.results import Surface
from landscapex.grids.time_limit import TimeLimit
from landscapex.model.parameters import Steps, unwrap
from landscapex.model.states import Tensors, tensors_of
from landscapex.objective import Objective, bind
from landscapex.session import Session, digest_of
from landscapex.studies.segment import Companions, absent

State = nn.Module | Objective | Mapping[str, Tensor] | Tensor | str | os.PathLike[str]

_FOLLOW = "buffers and frozen parameters follow the line"


def interpolate(
    model_a: State,
    model_b: State,
    data: Any = None,
    loss: Any = None,
    *,
    model: nn.Module | Objective | None = None,
    span: Span = (0.0, 1.0),
    points: int = 51,
    bn: str = "eval",
    metrics: Any = (),
    datasets: Mapping[str, Any] | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = True,
    shard: Shard = None,
    time_limit: TimeLimit = None,
    engine: str = "auto",
    precision: str = "model",
    threads: int | None = None,
    progress: bool = True,
    callback: Callable[[Progress], object] | None = None,
    confirm: bool = False,
) -> Surface:
    r"""The loss on the line between two models, at :math:`(1 - \alpha) a + \alpha b`.

    All parameters move, also frozen ones; tied ones once. Floating-point buffers are interpolated
    with them (running variances are not extrapolated below 0), others are copied from the nearer
    end, at 0.5 from ``model_a``. Both ends are met exactly: the loss at 0 is that of ``model_a``,
    the loss at 1 that of ``model_b``. The models come back bit for bit.

    A state that has no buffers (a flat vector, a mapping of parameters) leaves those of the
    evaluated module where they are; a warning says so. An `Objective` made with ``params`` moves
    these parameters alone, and nothing follows them: a study of single layers.

    Args:
        model_a: Where the line is at 0: a module, an `Objective` (its model), a state_dict, a
            flat vector ``(P,)``, or the path of a checkpoint; of a step of training, say.
        model_b: Where it is at 1, likewise.
        data: See `Objective`; None with an `Objective`.
        loss: See `Objective`; None with an `Objective`.
        model: What evaluates the points, if neither end is a module or an `Objective`.
        span: From where to where; ``(0, 2)`` shows what lies beyond ``model_b``.
        points: How many, evenly spaced. Barriers need 0 and 1 among them: 41 from 0 to 2, say.
        bn: Batch norm: ``"eval"`` (running statistics are interpolated), ``"recompute"`` (anew at
            each point, from the data), ``"batch"``.
        metrics: See `Objective`.
        datasets: See `Objective`: ``{"test": loader}`` adds ``test_loss``.
        out: See `surface`.
        resume: See `surface`.
        shard: See `surface`.
        time_limit: See `surface`.
        engine: See `surface`. Where buffers or frozen parameters differ, the eager engine runs.
        precision: See `Objective`.
        threads: See `surface`.
        progress: See `surface`.
        callback: See `surface`.
        confirm: See `surface`.

    Returns:
        A result of kind "line", with ``.barrier``, ``.monotone``, ``.bump`` and their like.

    Raises:
        ArgumentTypeError: If nothing can evaluate the points, or an end is no state.
        ParameterMismatchError: If an end does not fit the model.
        DirectionError: If the parameters of the ends are the same, or not finite.

    References:
        Goodfellow, Vinyals, Saxe, "Qualitatively characterizing neural network optimization
        problems", ICLR 2015, section 3. Garipov, Izmailov, Podoprikhin, Vetrov, Wilson, "Loss
        Surfaces, Mode Connectivity, and Fast Ensembling of DNNs", NeurIPS 2018 (statistics of
        batch norm on the way).

    Example:
        >>> import landscapex as lx
        >>> trained, data, loss = lx.examples.digits()
        >>> untrained = lx.examples.train_digits(epochs=0)
        >>> line = lx.interpolate(untrained, trained, data, loss, points=5, progress=False)
        >>> line.monotone, bool(line.loss[0] > line.loss[-1])
        (True, True)
    """
    carrier = _carrier(model, model_a, model_b)
    objective = bind(
        carrier, data, loss, metrics=metrics, precision=precision, bn=bn, datasets=datasets,
        params=_is_movable,
    )  # fmt: skip
    here = objective.model
    start = None if _is(model_a, here) else tensors_of(_state(model_a), here)
    end = tensors_of(_state(model_b), here)
    line = _Line(objective, start, end)
    for name, state in (("model_a", start), ("model_b", end)):
        if state is not None and (names := line.left_open(state)):
            warn(
                f"`{name}` should have all buffers of the model, got none of {len(names)} "
                f"({', '.join(names[:3])}): those of the evaluated module are used.",
            )
    options = checked_options(
        {
            **locals(), "center": start, "directions": line.direction(), "seed": 0,
            "normalize": None, "ignore": None,
        }
    )  # fmt: skip
    return fill_grid(1, objective, options, lambda session: _Between(session, line))


class _Line:
    """Both ends, and what follows the chosen parameters between them.

    Args:
        objective: What is evaluated.
        start: The state at 0; None for the live one.
        end: The state at 1.

    Attributes:
        end: The chosen parameters at 1, ``(P,)``.
    """

    def __init__(self, objective: Objective, start: Tensors | None, end: Tensors) -> None:
        self.space = space = objective.space
        self._start = space.gather() if start is None else space.vector(start, what="`model_a`")
        self.end = space.vector(end, what="`model_b`")
        # copies: they may be the live tensors of the module that is evaluated
        named = end if isinstance(end, Mapping) else {}
        self._others = {n: t.detach().clone() for n, t in named.items() if n not in space.names}
        # of a choice of parameters, only these are studied
        self._alone = objective._params not in (None, _is_movable)
        self._exempt: set[str] = set()
        if objective.bn != "eval":  # running statistics are not read
            norms = {id(b) for m in batch_norms(space.model) for b in m.buffers(recurse=False)}
            buffers = space.model.named_buffers(remove_duplicate=False)
            self._exempt = {name for name, b in buffers if id(b) in norms}

    def direction(self) -> Directions:
        """From one end to the other: what a step of the coordinate is."""
        # in float64, rounded once
        vector = (self.end.double() - self._start.double()).to(self.space.dtype)
        axis = Axis("from one model to the other", "between")
        return Directions(vector[None], (axis,), layout_of(self.space))

    def left_open(self, state: Tensors) -> list[str]:
        """Tensors that should follow, but that the state does not have."""
        given = state if isinstance(state, Mapping) else {}
        return [] if self._alone else absent(self.space, given, self._exempt)

    def companions(self) -> Companions:
        """What follows the chosen parameters from where the model stands now."""
        return Companions(self.space, {} if self._alone else self._others, self._exempt)


class _Between(Losses):
    """Losses on the line to another model, in the frame of both ends.

    The point is ``a - alpha a + alpha b``, formed in float64: exactly ``b`` at 1, where ``a +
    alpha (b - a)`` is off by what rounding took from ``b - a``.
    """

    def __init__(self, session: Session, line: _Line) -> None:
        super().__init__(session)
        self._frame = torch.stack([session.center, line.end])
        self._companions = line.companions()
        if len(self._companions):
            session.snapshot.also(self._companions.targets)
            session.snapshot.accompany(self._companions.follow)
            # now, before an evaluation changes the buffers that every point starts from
            session.snapshot.move(session.center, session.center[None][:0], [])

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """The other end too: the direction to it is rounded."""
        tensors = {"": self._frame[1], **self._companions.tensors}
        return {"computes": "interpolation", "end": digest_of(tensors)}

    def prepare(self, directions: Steps, region: Region, center: list[float], engine: str) -> None:
        """Choose the engine; the compiled one knows no tensors that follow."""
        if not len(self._companions):
            super().prepare(directions, region, center, engine)
        elif engine == "compiled":
            raise CaptureError(
                f"`engine='compiled'` must have ends that differ in the chosen parameters only, "
                f"got: {_FOLLOW}.",
                _FOLLOW,
            )
        else:
            self.session.choice = Choice("eager", _FOLLOW)

    def values(self, points: np.ndarray, stop: Stop | None) -> np.ndarray:
        """By the engine that was chosen; at the ends by the model itself."""
        in_frame = np.concatenate([-points, points], axis=1)
        if self.session.choice.compiled is None:
            return self.session.losses(self._frame, in_frame, stop)
        values = super().values(points, stop)
        ends = np.isin(points[: len(values), 0], (0.0, 1.0))
        if ends.any():
            values[ends] = self.session.losses(self._frame, in_frame[: len(values)][ends])
        return values

    def describe(self) -> dict[str, Any]:
        """What follows the parameters."""
        return {
            "interpolation": {
                "point": "(1 - alpha) a + alpha b",
                "beside the parameters": self._companions.describe() or "nothing moves",
            }
        }


def _carrier(*candidates: Any) -> nn.Module | Objective:
    """What evaluates the points: an `Objective` before a module."""
    for kind in (Objective, nn.Module):
        for candidate in candidates:
            if isinstance(candidate, kind):
                return candidate
    kinds = " and ".join(type(c).__name__ for c in candidates[1:])
    raise ArgumentTypeError(
        f"`model` must be a module or an Objective if the ends are none, got ends {kinds}."
    )


def _state(state: Any) -> Any:
    return state.model if isinstance(state, Objective) else state


def _is(state: Any, model: nn.Module) -> bool:
    state = _state(state)
    return isinstance(state, nn.Module) and unwrap(state) is model


def _is_movable(_: str, parameter: nn.Parameter) -> bool:
    return parameter.is_floating_point() or parameter.is_complex()
