"""Model, data and loss bound together: the loss and its gradient at any point."""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscapex import batches, losses
from landscapex.batches import FrozenBatches
from landscapex.determinism import name_culprit
from landscapex.engine.choice import Choice, Region, choose
from landscapex.engine.compiled import PlanCache
from landscapex.engine.eager import BN_MODES, EagerEngine, Stop, batch_norms, check_precision
from landscapex.engine.layout import Layout
from landscapex.errors import (
    ArgumentError,
    ArgumentTypeError,
    NondeterministicLossError,
    NonFiniteCenterError,
    ParameterMismatchError,
    ReentrancyError,
)
from landscapex.guard import Snapshot, common_draws, exclusive
from landscapex.parameters import ParameterSpace, Selection, unwrap

Point = None | Tensor | Mapping[str, Tensor] | nn.Module

REPEAT_TOLERANCE = 1e-6  # relative difference of two evaluations of the centre
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
        precision: ``"model"`` (the dtype of the parameters), ``"fp32"``, ``"tf32"``, ``"bf16"``.
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
        check_precision(precision, self._space)
        self.measure = losses.resolve(
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
            point: None for the live parameters, a flat vector ``(P,)``, or a state_dict.

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
        if torch.is_inference_mode_enabled():
            raise ArgumentError("a gradient must be taken outside torch.inference_mode().")
        if self.bn == "recompute" and batch_norms(self.model):
            raise ArgumentError("`bn` must be 'eval' or 'batch' for a gradient, got 'recompute'.")
        with self.session(point) as session:
            return session.gradient()

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
            self._layouts[self._space] = engine.layout
            session = Session(self, snapshot, engine, center)
            try:
                yield session
            finally:
                session.closed = True

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


class Session:
    """The model in our hands: evaluates points around a centre until the session closes.

    Attributes:
        center: Flat ``(P,)``; not to be written.
        engine: What evaluates the model where it stands.
        choice: What evaluates grid points, and why.
    """

    def __init__(
        self, objective: Objective, snapshot: Snapshot, engine: EagerEngine, center: Point
    ) -> None:
        self.objective = objective
        self.snapshot = snapshot
        self.engine = engine
        self.space = engine.space
        self.choice = Choice("eager", "it serves every model")
        self.closed = False
        self.center = snapshot.center
        if center is not None:
            self.center = self.space.vector(center, what="`center`")
            self._adopt(center)
            self.snapshot.move(self.center, self.center[None][:0], [])
        if not objective.allow_nonfinite:
            self._refuse_nonfinite()

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the values; known after the first evaluation."""
        if self.engine.columns is None:
            self.values()
        assert self.engine.columns is not None
        return self.engine.columns

    def values(self, stop: Stop | None = None) -> list[float]:
        """Loss and metrics of the model as it stands (at the centre, if nothing moved it)."""
        self._require_open()
        values = self.engine.here(stop)
        self.snapshot.check_unchanged(contents=True)
        return values

    def gradient(self) -> Tensor:
        """Gradient where the model stands, flat ``(P,)``."""
        self._require_open()
        return self.engine.gradient()

    def losses(
        self, directions: Tensor, points: np.ndarray, stop: Stop | None = None
    ) -> np.ndarray:
        """Values ``(G, M)`` at coordinates ``(G, K)`` along ``(K, P)`` directions."""
        self._require_open()
        compiled = self.choice.compiled
        if compiled is None or not compiled.serves(directions):
            return self.engine.losses(self.snapshot, self.center, directions, points, stop)
        values = compiled.losses(points, stop)
        # sums of transformed tiles (Winograd) may be NaN where the model overflows to infinity
        for i in np.flatnonzero(~np.isfinite(values).all(axis=1)):
            values[i] = self.engine.losses(
                self.snapshot, self.center, directions, points[i : i + 1], None
            )[0]
        return values

    def choose_engine(
        self,
        directions: Tensor,
        region: Region,
        center: list[float],
        *,
        wanted: str = "auto",
    ) -> None:
        """Decide what evaluates the points of a run; the model stands at the centre.

        Args:
            directions: ``(K, P)``.
            region: Where the points lie.
            center: `values` there.
            wanted: ``"auto"``, ``"eager"`` or ``"compiled"``.

        Raises:
            CaptureError: If ``"compiled"`` is wanted and cannot be had.
        """
        self._require_open()
        self.choice = choose(
            wanted, self.engine, self.snapshot, self.center, directions, region, center,
            self.objective._plans,
        )  # fmt: skip

    def checked_center(self, stop: Stop | None = None) -> list[float]:
        """Values at the centre, evaluated twice unless the objective says ``check=False``.

        Args:
            stop: Asked between batches.

        Returns:
            In the order of `columns`.

        Raises:
            NondeterministicLossError: If they differ by more than 1e-6; names the culprit.
        """
        first = self.values(stop)
        if not self.objective.check:
            return first
        second = self.values(stop)
        for name, a, b in zip(self.columns, first, second, strict=True):
            if a == b or (a != a and b != b):
                continue
            if not abs(a - b) <= REPEAT_TOLERANCE * max(abs(a), abs(b)):
                engine = self.engine
                with engine._mode():
                    culprit = name_culprit(
                        self.space.model, engine.measure, next(iter(engine.data.values()))
                    )
                raise NondeterministicLossError(
                    f"the {name} at the centre must be the same every time, got {a!r} and {b!r}: "
                    f"{culprit}. Make it deterministic, or pass check=False to an Objective to "
                    "use the same random draws at every point."
                )
        return first

    def _require_open(self) -> None:
        if self.closed:
            raise ReentrancyError(
                "a session must be used inside its `with` block, got a call after its end."
            )

    def _adopt(self, center: Point) -> None:
        """Buffers and parameters outside the choice, from a state_dict or module."""
        if isinstance(center, nn.Module):
            center = unwrap(center).state_dict(keep_vars=True)
        if not isinstance(center, Mapping):
            return
        model = self.space.model
        others = {n: b for n, b in model.named_buffers() if n in center}
        frozen = {
            n: p for n, p in model.named_parameters() if n in center and n not in self.space.names
        }
        self.snapshot.also([p.detach() for p in frozen.values()])
        with torch.no_grad():
            for name, target in {**others, **frozen}.items():
                if center[name].shape != target.shape:
                    raise ParameterMismatchError(
                        f"`center` must fit the model, got shape {tuple(center[name].shape)} "
                        f"instead of {tuple(target.shape)} for {name}."
                    )
                target.detach().copy_(center[name])

    def _refuse_nonfinite(self) -> None:
        model = self.space.model
        bad = [
            f"{e.name} ({int((~torch.isfinite(t)).sum())} of {t.numel()})"
            for e, t in zip(
                self.space.entries, self.space.unflatten(self.center).values(), strict=True
            )
            if not bool(torch.isfinite(t).all())
        ]
        for name, t in [*model.named_parameters(), *model.named_buffers()]:
            if name in self.space.names or not (t.is_floating_point() or t.is_complex()):
                continue
            # a mask may hold -inf on purpose; NaN is never on purpose
            if n := int(torch.isnan(t).sum()):
                bad.append(f"{name} ({n} of {t.numel()})")
        if bad:
            raise NonFiniteCenterError(
                f"the parameters must be finite, got NaN or infinity in {'; '.join(bad[:10])}. "
                "Pass allow_nonfinite=True to an Objective to go on."
            )

    def fingerprint(self) -> dict[str, str]:
        """SHA-256 of all that decides the numbers, apart from directions and grid."""
        model, measure = self.space.model, self.engine.measure
        chosen = {p.data_ptr() for p in self.space.parameters}
        others = {n: p for n, p in model.named_parameters() if p.data_ptr() not in chosen}
        options = {
            "bn": self.objective.bn if batch_norms(model) else "none",
            "precision": self.engine.precision,
            "weight_decay": self.engine.weight_decay.hex(),
            "autocast": _autocast(self.space.device),
            "parameters": [(e.name, e.shape, str(e.dtype)) for e in self.space.entries],
        }
        structure = re.sub(r"0x[0-9a-fA-F]+", "0x", repr(model))
        return {
            "model": _sha256(type(model).__qualname__, structure),
            "parameters": _sha256(*_tensor_parts({"": self.center, **others})),
            "buffers": _sha256(*_tensor_parts(dict(model.named_buffers()))),
            "data": _sha256(*(f"{n}:{f.fingerprint}" for n, f in self.engine.data.items())),
            "loss": _sha256(repr(measure.identity)),
            "options": repr(options),
        }

    def describe(self) -> dict[str, Any]:
        """Model, data and loss in words and numbers, for the provenance."""
        space, model = self.space, self.space.model
        return {
            "model": {
                "class": type(model).__qualname__,
                "parameters": len(space.entries),
                "entries": space.size,
                "dtype": ", ".join(
                    sorted({str(e.dtype).removeprefix("torch.") for e in space.entries})
                ),
                "device": str(space.device),
                "tied": [[e.name, *e.aliases] for e in space.entries if e.aliases],
                "not_moved": sum(
                    p.numel() for n, p in model.named_parameters() if n not in space.names
                ),
            },
            "data": {
                name: {
                    "batches": len(f),
                    "samples": f.num_samples,
                    "fingerprint": f.fingerprint,
                    "cache": f.cache,
                    "notes": list(f.notes),
                }
                for name, f in self.engine.data.items()
            },
            "loss": {"rule": self.engine.measure.rule, **self.engine.measure.identity},
            "options": {
                "bn": self.objective.bn if batch_norms(model) else "no batch norm",
                "precision": self.engine.precision,
                "weight_decay": self.engine.weight_decay,
                "check": self.objective.check,
            },
        }


def bind(
    model: nn.Module | Objective, data: Any, loss: Any, *, metrics: Any, precision: str
) -> Objective:
    """An `Objective` from the leading arguments of `surface` and its like.

    Args:
        model: A module, or an `Objective` alone.
        data: As in `Objective`; None with an `Objective`.
        loss: As in `Objective`; None with an `Objective`.
        metrics: As in `Objective`; empty with an `Objective`.
        precision: As in `Objective`; ``"model"`` with an `Objective`.

    Returns:
        The objective.

    Raises:
        ArgumentError: If an `Objective` comes with something that it already holds.
        ArgumentTypeError: If ``model`` is neither, or there are no data.
    """
    if isinstance(model, Objective):
        given = {"data": data is not None, "loss": loss is not None, "metrics": bool(metrics)}
        given["precision"] = precision != "model"
        if names := [n for n, is_given in given.items() if is_given]:
            raise ArgumentError(
                f"with an Objective, {', '.join(names)} must be given to the Objective itself."
            )
        return model
    if isinstance(model, nn.Module) and data is None and loss is None:
        raise ArgumentTypeError("`data` must be given with a module, got None.")
    return Objective(model, data, loss, metrics=metrics, precision=precision)


def _autocast(device: torch.device) -> str:
    """The autocast dtype that the caller has switched on, or nothing."""
    on = torch.is_autocast_enabled(device.type)
    return str(torch.get_autocast_dtype(device.type)) if on else ""


def _tensor_parts(named: Mapping[str, Tensor]) -> Iterator[str | bytes]:
    for name, t in sorted(named.items()):
        yield f"{name}:{t.dtype}:{tuple(t.shape)}"
        flat = t.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
        yield flat.view(torch.uint8).cpu().numpy().tobytes() if t.numel() else b""


def _sha256(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


__all__: Sequence[str] = ["Objective", "Session", "bind"]
