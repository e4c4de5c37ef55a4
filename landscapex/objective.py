"""Model, data and loss bound together: the loss and its gradient at any point."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from landscapex import batches
from landscapex.batches import FrozenBatches
from landscapex.engine.batch_norm import BN_MODES, batch_norms
from landscapex.engine.eager import EagerEngine
from landscapex.engine.layout import Layout
from landscapex.engine.precision import check_precision
from landscapex.engine.preparation import PlanCache
from landscapex.errors import ArgumentError, ArgumentTypeError
from landscapex.losses import binding
from landscapex.model.generators import common_draws
from landscapex.model.guard import exclusive
from landscapex.model.parameters import ParameterSpace
from landscapex.model.selection import Selection, refuse_sparse_buffers
from landscapex.session import Point, Session

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

_FREEZE_SEED = 0  # shuffling and augmentation are the same in every process that resumes


class Objective:
    """The loss of a model on data, as a function of its parameters.

    Everything in landscapex that needs a loss takes an `Objective`; `surface` and its like make
    one from the same arguments. The model is used in place, under a lock, and comes back bit for
    bit: parameters, buffers, modes, gradients, hooks and the state of the random generators.

    Args:
        model: Any module with its parameters on one device.
        data: A DataLoader, an iterable of batches, a map-style Dataset, a tuple or mapping of
            tensors with one common first dimension, or None for losses that need no data. Batches
            are read once and frozen, shuffling and augmentation included.
        loss: A name in ``torch.nn.functional`` (``"cross_entropy"``), a criterion module,
            ``f(model, batch)``, or None for models whose output carries ``.loss``.
        params: Which parameters: None for those with ``requires_grad`` (all if none has), names
            or shell patterns, or ``f(name, parameter) -> bool``.
        weight_decay: Adds ``weight_decay / 2 * ||theta||^2`` over these parameters to the loss.
        bn: Batch norm: ``"eval"`` (running statistics as they are), ``"recompute"`` (anew at each
            point, from the data), ``"batch"`` (each batch by itself).
        precision: ``"model"`` (the dtype of the parameters), ``"fp32"`` or ``"bf16"``; on CUDA
            devices also ``"tf32"``, and ``"bf16x3"``, which the eager engine runs in float32.
        datasets: Further data by name: ``{"test": loader}`` adds ``test_loss`` and its metrics.
        metrics: ``"accuracy"``, ``"error"``, ``"top5"``, or ``{name: f(output, batch)}`` that
            returns per-sample values or (sum, count).
        count: For ``f(model, batch)`` and models with ``.loss``: how much a batch weighs, as
            ``count(batch)`` or a key of the batch.
        reduction: ``"none"`` if ``f`` returns per-sample losses.
        cache: Where frozen batches stay: ``"auto"``, ``"device"``, ``"host"``, or ``"none"`` to
            read the data again for every point.
        batch_size: For data given as tensors.
        check: Evaluate the centre of every surface twice and refuse a loss that differs.
        allow_nonfinite: Go on although the parameters hold NaN or infinity.

    Raises:
        ArgumentError: If an option has an unknown value.
        ArgumentTypeError: If ``model`` is not a module.
        ParameterMismatchError: If the parameters cannot be moved.

    Example:
        >>> import torch, landscapex as lx
        >>> x, y = torch.randn(8, 3), torch.randint(0, 2, (8,))
        >>> objective = lx.Objective(torch.nn.Linear(3, 2), (x, y), "cross_entropy")
        >>> objective.gradient().shape
        torch.Size([8])
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        loss: str | nn.Module | Callable[..., Any] | None = None,
        *,
        params: Selection = None,
        weight_decay: float = 0.0,
        bn: str = "eval",
        precision: str = "model",
        datasets: Mapping[str, Any] | None = None,
        metrics: Any = (),
        count: Callable[..., Any] | str | None = None,
        reduction: str | None = None,
        cache: str = "auto",
        batch_size: int | None = None,
        check: bool = True,
        allow_nonfinite: bool = False,
    ) -> None:
        if bn not in BN_MODES:
            raise ArgumentError(f"`bn` must be one of {', '.join(BN_MODES)}, got {bn!r}.")
        if not (isinstance(weight_decay, int | float) and 0 <= weight_decay < math.inf):
            raise ArgumentError(
                f"`weight_decay` must be a finite number of at least 0, got {weight_decay!r}."
            )
        if datasets is not None and not isinstance(datasets, Mapping):
            raise ArgumentTypeError(
                f"`datasets` must be a mapping {{name: data}}, got {type(datasets).__name__}."
            )
        for name in datasets or {}:
            if not isinstance(name, str) or not name.isidentifier() or name == "data":
                raise ArgumentError(
                    f"`datasets` must have identifiers other than 'data' as names, got {name!r}."
                )
        self._params = params
        self._space = ParameterSpace(model, params)
        refuse_sparse_buffers(self._space.model)
        check_precision(precision, self._space)
        self.measure = binding.resolve(
            loss, model=self._space.model, metrics=metrics, count=count, reduction=reduction
        )
        self._data = {"data": data, **(datasets or {})}
        self._frozen: dict[str, FrozenBatches] | None = None
        self._plans = PlanCache()
        # a layer that is exchanged gives another space
        self._layouts: weakref.WeakKeyDictionary[ParameterSpace, Layout] = (
            weakref.WeakKeyDictionary()
        )
        self._cache, self._batch_size = cache, batch_size
        self.weight_decay, self.bn, self.precision = float(weight_decay), bn, precision
        self.check, self.allow_nonfinite = check, allow_nonfinite

    @property
    def model(self) -> nn.Module:
        """The user's module, without wrappers."""
        return self._space.model

    @property
    def space(self) -> ParameterSpace:
        """The chosen parameters as they are now (a layer may have been exchanged since)."""
        known = [(e.dtype, e.shape) for e in self._space.entries]
        live = dict(self.model.named_parameters(remove_duplicate=False))
        same = len(live) == sum(len(names) for names in self._space.everything)
        same = same and all(
            live.get(n) is p for names, p in self._space.everything.items() for n in names[:1]
        )
        if not same or known != [(p.dtype, tuple(p.shape)) for p in self._space.parameters]:
            self._space = ParameterSpace(self.model, self._params)
        return self._space

    def __repr__(self) -> str:
        return (
            f"Objective({type(self.model).__name__}, {self._space.size:,} parameters in "
            f"{len(self._space.entries)} tensors, loss: {self.measure.rule})"
        )

    def loss(self, point: Point = None) -> float:
        """The loss at a point.

        Args:
            point: None for the live parameters, a flat vector ``(P,)``, a state_dict, the path of a
                checkpoint, or a module.

        Returns:
            The mean over all samples, summed in float64.

        Example:
            >>> import torch, landscapex as lx
            >>> model = torch.nn.Linear(1, 1, bias=False)
            >>> x = torch.ones(4, 1)
            >>> lx.Objective(model, (x, x), "mse_loss").loss(torch.tensor([3.0]))
            4.0
        """
        return self.evaluate(point)["loss"]

    def evaluate(self, point: Point = None) -> dict[str, float]:
        """Loss, metrics and further data sets at a point, by column name.

        Args:
            point: As in `loss`.

        Returns:
            ``"loss"`` first.
        """
        with self.session(point) as session:
            values = session.values()
        return dict(zip(session.columns, values, strict=True))

    def gradient(self, point: Point = None) -> Tensor:
        """The gradient of the loss over the chosen parameters.

        Args:
            point: As in `loss`.

        Returns:
            Flat ``(P,)``, summed in float64 and rounded to the dtype of flat vectors; zero for
            parameters the loss does not use. A complex parameter gives the derivatives by its
            real and its imaginary parts.

        Raises:
            ArgumentError: With ``bn="recompute"``, whose statistics depend on the parameters, and
                inside ``torch.inference_mode()``.
        """
        self.check_differentiable("a gradient")
        with self.session(point) as session:
            return session.gradient()

    def check_differentiable(self, what: str) -> None:
        """Refuse derivatives where they would be those of another function than the loss.

        Args:
            what: Is taken, for the error.

        Raises:
            ArgumentError: With ``bn="recompute"`` if there is batch norm: a derivative would hold
                the statistics, which change with the parameters along any line. And inside
                ``torch.inference_mode()``.
        """
        if torch.is_inference_mode_enabled():
            raise ArgumentError(f"{what} must be taken outside torch.inference_mode().")
        if self.bn == "recompute" and batch_norms(self.model):
            raise ArgumentError(
                f"`bn` must be 'eval' or 'batch' for {what}, got 'recompute', whose statistics "
                "change with the parameters: that change is not differentiated."
            )

    @contextlib.contextmanager
    def session(self, center: Point = None, *, layout: Layout | None = None) -> Iterator[Session]:
        """Exclusive use of the model around a centre; restored at the end.

        Args:
            center: The point that coordinates 0 stand for; None for the live parameters.
            layout: Of data for the eager engine, as an earlier run had it; None finds one.

        Yields:
            What evaluates points.
        """
        with exclusive(self.space) as snapshot:
            frozen = self._freeze()
            engine = EagerEngine(
                self._space,
                self.measure.to(self._space.device),
                frozen,
                bn=self.bn,
                precision=self.precision,
                weight_decay=self.weight_decay,
                common_seed=not self.check,
            )
            engine.arrange(layout or self._layouts.get(self._space))
            session = Session(self, snapshot, engine, center)
            try:
                yield session
            finally:
                session.closed = True
                self._layouts[engine.space] = engine.layout
                engine.release()

    def _freeze(self) -> dict[str, FrozenBatches]:
        """The frozen batches; read on first use, under the lock, with generators of our own."""
        device = self._space.device
        if self._frozen is None:
            generators = [g for d in self._data.values() for g in _generators(d)]
            with common_draws(_FREEZE_SEED, generators):
                self._frozen = {
                    name: batches.freeze(
                        d, device=device, cache=self._cache, batch_size=self._batch_size, name=name
                    )
                    for name, d in self._data.items()
                }
        elif any(f.device != device for f in self._frozen.values()):
            self._frozen = {name: f.to(device) for name, f in self._frozen.items()}
        return self._frozen


def _generators(data: Any) -> list[torch.Generator]:
    """The torch generators of a DataLoader, which freezing must leave as they were."""
    owners = (data, getattr(data, "sampler", None), getattr(data, "batch_sampler", None))
    found = {
        id(g): g for o in owners if isinstance(g := getattr(o, "generator", None), torch.Generator)
    }
    return list(found.values())


def names_objective_options(
    function: Callable[_Arguments, _Result],
) -> Callable[_Arguments, _Result]:
    """Let a function say of options that it does not have that they are those of an `Objective`.

    Args:
        function: Takes a module or an `Objective` first.

    Returns:
        The same function, with that error in place of Python's own.
    """
    own = inspect.signature(function).parameters
    theirs = inspect.signature(Objective).parameters

    @functools.wraps(function)
    def called(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        if names := [name for name in kwargs if name in theirs and name not in own]:
            options = ", ".join(f"{name}=..." for name in names)
            raise ArgumentTypeError(
                f"`{'`, `'.join(names)}` must be given to an Objective, got as an option of "
                f"{function.__name__}: write lx.{function.__name__}(lx.Objective(model, data, "
                f"loss, {options}), ...)."
            )
        return function(*args, **kwargs)

    return called


def bind(
    model: nn.Module | Objective,
    data: Any,
    loss: Any,
    *,
    metrics: Any,
    precision: str,
    bn: str = "eval",
    datasets: Mapping[str, Any] | None = None,
    params: Selection = None,
) -> Objective:
    """An `Objective` from the leading arguments of `surface` and its like.

    Args:
        model: A module, or an `Objective` alone.
        data: As in `Objective`; None with an `Objective`.
        loss: As in `Objective`; None with an `Objective`.
        metrics: As in `Objective`; empty with an `Objective`.
        precision: As in `Objective`; ``"model"`` with an `Objective`.
        bn: As in `Objective`; ``"eval"`` with an `Objective`.
        datasets: As in `Objective`; none with an `Objective`.
        params: As in `Objective`; an `Objective` keeps its own.

    Returns:
        The objective.

    Raises:
        ArgumentError: If an `Objective` comes with something that it already holds.
        ArgumentTypeError: If ``model`` is neither, or there are no data.
    """
    if isinstance(model, Objective):
        given = {"data": data is not None, "loss": loss is not None, "metrics": bool(metrics)}
        given |= {"precision": precision != "model", "bn": bn != "eval", "datasets": bool(datasets)}
        if names := [n for n, is_given in given.items() if is_given]:
            raise ArgumentError(
                f"with an Objective, {', '.join(names)} must be given to the Objective itself."
            )
        return model
    if isinstance(model, nn.Module) and data is None and loss is None:
        raise ArgumentTypeError("`data` must be given with a module, got None.")
    return Objective(
        model, data, loss, metrics=metrics, precision=precision, bn=bn, datasets=datasets,
        params=params,
    )  # fmt: skip


__all__: Sequence[str] = ["Objective", "Point", "Session", "bind"]
