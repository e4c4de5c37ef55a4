"""A model in our hands: what evaluates points around a centre, and describes what it does."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from landscapex.batches import FrozenBatches
from landscapex.engine.batch_norm import batch_norms
from landscapex.engine.choice import Choice, Region, choose
from landscapex.engine.eager import EagerEngine, Stop
from landscapex.errors import (
    NondeterministicLossError,
    NonFiniteCenterError,
    ParameterMismatchError,
    ReentrancyError,
)
from landscapex.model.determinism import name_culprit
from landscapex.model.guard import Snapshot
from landscapex.model.parameters import Steps
from landscapex.model.states import State, Tensors, tensors_of

if TYPE_CHECKING:
    from landscapex.objective import Objective

Point = State | None

REPEAT_TOLERANCE = 1e-6  # relative difference of two evaluations of the centre


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
            tensors = tensors_of(center, self.space.model, what="`center`")
            self.center = self.space.vector(tensors, what="`center`")
            self._adopt(tensors)
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

    def losses(self, directions: Steps, points: np.ndarray, stop: Stop | None = None) -> np.ndarray:
        """Values ``(G, M)`` at coordinates ``(G, K)`` along ``(K, P)`` directions."""
        self._require_open()
        compiled = self.choice.compiled
        if compiled is None or not (isinstance(directions, Tensor) and compiled.serves(directions)):
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
        directions: Steps,
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

    def _adopt(self, center: Tensors) -> None:
        """Buffers and parameters outside the choice, where they have names."""
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
                _copy_into(target.detach(), center[name], name)

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
                    "notes": [*f.notes, *self.memory_notes(f)],
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

    def memory_notes(self, batches: FrozenBatches) -> list[str]:
        """What is to be said of how they were evaluated, because memory is short."""
        layout = self.engine.layout
        said = []
        if not layout.onednn:
            said.append("memory was short: torch's own kernels took the place of oneDNN's")
        if layout.most is not None and layout.most < max(batches.sizes):
            most = layout.most
            said.append(f"memory was short: {most} samples went through the model at a time")
        return said


def _copy_into(target: Tensor, value: Tensor, name: str) -> None:
    try:
        target.copy_(value)
    except RuntimeError as error:  # an expanded buffer cannot be written
        if not torch.equal(target, value.to(target)):
            raise ParameterMismatchError(
                f"`center` must have the model's own values for {name}, whose entries share "
                "memory and cannot be written, got others; clone it in the model."
            ) from error


def _autocast(device: torch.device) -> str:
    """The autocast dtype that the caller has switched on, or nothing."""
    on = torch.is_autocast_enabled(device.type)
    return str(torch.get_autocast_dtype(device.type)) if on else ""


def digest_of(named: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors by name.

    Args:
        named: In any order.

    Returns:
        Hexadecimal.
    """
    return _sha256(*_tensor_parts(named))


def _tensor_parts(named: Mapping[str, Tensor]) -> Iterator[str | memoryview]:
    for name, t in sorted(named.items()):
        yield f"{name}:{t.dtype}:{tuple(t.shape)}"
        flat = t.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
        yield memoryview(flat.view(torch.uint8).cpu().numpy().data) if t.numel() else ""


def _sha256(*parts: str | memoryview) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()
