"""From a model and its data to a compiled engine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscapex._batch import Batch, sample_count
from landscapex.engine.backend import Backend
from landscapex.engine.batch_norm import batch_norms
from landscapex.engine.capture import capture, form_of
from landscapex.engine.captured import Captured
from landscapex.engine.compiled import CompiledEngine, DataSet, Share
from landscapex.engine.device import DeviceBackend
from landscapex.engine.eager import EagerEngine
from landscapex.engine.host import HostBackend
from landscapex.engine.packing import pack_samples
from landscapex.engine.plan import NotCapturedError, Plan
from landscapex.model.parameters import ParameterSpace

MOST_FORMS = 8  # of batches: each needs a plan of its own


@cache
def backend_of(device: torch.device) -> Backend | None:
    """What runs programs where a model is.

    Args:
        device: Of the model.

    Returns:
        None if nothing does.
    """
    if device.type == "cuda":
        return DeviceBackend(device)
    return HostBackend() if device.type == "cpu" else None


def _math(eager: EagerEngine) -> str:
    return "fp32" if eager.precision == "model" else eager.precision


def refuse(eager: EagerEngine) -> None:
    """Refuse settings that only the eager engine serves.

    Args:
        eager: Holds the settings.

    Raises:
        NotCapturedError: Why.
    """
    space = eager.space
    backend = backend_of(space.device)
    if backend is None:
        raise NotCapturedError(f"the model is on {space.device}")
    if why := backend.unavailable(_math(eager)):
        raise NotCapturedError(why)
    odd = {str(e.dtype).removeprefix("torch.") for e in space.entries} - {"float32"}
    if odd:
        raise NotCapturedError(f"parameters are {', '.join(sorted(odd))}")
    if eager.bn != "eval" and batch_norms(space.model):
        raise NotCapturedError(f"bn={eager.bn!r} makes batch norm depend on the batch")
    if eager.common_seed:
        raise NotCapturedError("check=False asks for random draws")
    if torch.is_autocast_enabled(space.device.type):
        raise NotCapturedError("autocast is on")
    if any(batches.reader for batches in eager.data.values()):
        raise NotCapturedError("the data are read again for each point")
    if not all(m.built_in for m in eager.measure.metrics):
        raise NotCapturedError("a metric is a function of the user's")


class PlanCache:
    """Plans of one objective, for as long as they fit.

    A plan serves until a parameter or buffer is replaced, or the model gets another structure; its
    lowering, until a tensor that no direction moves gets other numbers.
    """

    def __init__(self) -> None:
        self._structure: Any = None
        self._bytes = ""
        self._plans: dict[Any, Plan] = {}
        self._captured: dict[Any, Captured] = {}
        self.reused = False
        """Whether a plan of an earlier run was handed out since `adapt`."""

    def adapt(self, model: nn.Module, moving: frozenset[str]) -> None:
        """Forget what does not fit the model any more.

        Args:
            model: As it is now.
            moving: Names of parameters that some direction moves.
        """
        tensors = [*model.named_parameters(), *model.named_buffers()]
        structure = (repr(model), [(n, t.data_ptr(), t.shape, t.dtype) for n, t in tensors])
        digest = hashlib.sha256()
        for name, tensor in tensors:
            if name not in moving:
                raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu()
                digest.update(raw.numpy().data)
        if structure != self._structure:
            self._plans.clear()
        if structure != self._structure or digest.hexdigest() != self._bytes:
            self._captured.clear()
        self._structure, self._bytes = structure, digest.hexdigest()
        self.reused = False

    def forget(self) -> bool:
        """Forget everything; tells whether there was something."""
        had = bool(self._plans)
        self._plans.clear()
        self._captured.clear()
        return had

    def captured(
        self, eager: EagerEngine, form: str, batch: Batch, moving: frozenset[str]
    ) -> Captured:
        """The program for batches of one form.

        Args:
            eager: Holds model and loss.
            form: Of the batches.
            batch: One of them.
            moving: Names of parameters that some direction moves.

        Returns:
            From the cache if it is there.
        """
        key = (form, moving)
        math, backend = _math(eager), backend_of(eager.space.device)
        assert backend is not None
        if key in self._plans:
            self.reused = True
        else:
            self._plans[key] = capture(eager.space.model, eager.measure, batch, moving=moving)
        if (key, math) not in self._captured:
            self._captured[key, math] = Captured(
                self._plans[key], eager.measure.metrics, backend, math=math
            )
        return self._captured[key, math]


def compile_engine(
    eager: EagerEngine, center: Tensor, directions: Tensor, plans: PlanCache
) -> CompiledEngine:
    """Capture the model and prepare its data.

    Args:
        eager: Of the session; it has evaluated the centre, where the model stands.
        center: ``(P,)``.
        directions: ``(K, P)``.
        plans: Of the objective.

    Returns:
        An engine that has not been checked yet.

    Raises:
        NotCapturedError: If the model needs the eager engine.
    """
    refuse(eager)
    moving = _moving(eager.space, directions)
    plans.adapt(eager.space.model, moving)
    sets = []
    for name, batches in eager.data.items():
        forms: dict[str, list[Batch]] = {}
        numbers: dict[str, list[int]] = {}
        for b, batch in enumerate(batches):
            if sample_count(batch):  # an empty batch adds nothing to a sum
                forms.setdefault(form_of(batch), []).append(batch)
                numbers.setdefault(form_of(batch), []).append(b)
        if len(forms) > MOST_FORMS:
            raise NotCapturedError(f"the batches of {name} have {len(forms)} different shapes")
        weights, counts = _weights(eager, name)
        shares = []
        for form, of_form in forms.items():
            captured = plans.captured(eager, form, of_form[0], moving)
            # batches that were regrouped have one form, and samples that need no others
            mine = weights[numbers[form]] if len(weights) == len(batches) else weights
            shares.append(_share(form, captured, of_form, mine, eager, len(directions) + 1))
        wrong = tuple(m.name == "error" for m in eager.measure.metrics)
        sets.append(DataSet(tuple(shares), float(weights.sum()), counts, wrong))
    return CompiledEngine(eager, sets, center, directions)


def _moving(space: ParameterSpace, directions: Tensor) -> frozenset[str]:
    return frozenset(
        e.name for e in space.entries if bool((directions[:, e.offset : e.end] != 0).any())
    )


def _weights(eager: EagerEngine, name: str) -> tuple[np.ndarray, np.ndarray]:
    """What each batch of the last evaluation weighs, and what each metric counts in all."""
    weights = np.array(eager.totals[name].weights())
    return weights[:, 0], weights[:, 1:].sum(axis=0)


def _share(
    form: str,
    captured: Captured,
    batches: Sequence[Batch],
    weights: np.ndarray,
    eager: EagerEngine,
    sets: int,
) -> Share:
    computed = [captured.computed(b) for b in batches]
    if eager.measure.regroupable:
        groups, weights = [computed], np.array([weights.sum()])
        samples = [sum(sample_count(b) for b in batches)]
    else:
        groups = [[c] for c in computed]
        samples = [sample_count(b) for b in batches]
    lanes = captured.lanes(max(samples), sets)
    tiles = pack_samples(captured.lowered, captured.plan.values, groups, lanes)
    divisors = tuple(captured.divisors(group, n) for group, n in zip(groups, samples, strict=True))
    return Share(form, captured, lanes, tiles, weights, divisors)
