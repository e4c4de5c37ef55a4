"""The engine for every model: parameters set by one fused kernel, batches through plain PyTorch."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from landscapex._warnings import warn
from landscapex.batches import FrozenBatches
from landscapex.engine import memory
from landscapex.engine.batch_norm import (
    WHY_WHOLE,
    batch_norms,
    recompute_statistics,
    refuse_single_values,
)
from landscapex.engine.layout import Layout, choose_layout, samples_are_separate
from landscapex.engine.onednn import covered_linear, without_onednn
from landscapex.engine.precision import precision_context
from landscapex.errors import DataError, EmptyDataError, LossError
from landscapex.grids.grid import AXIS_NAMES
from landscapex.interrupts import Abandon
from landscapex.losses.measure import Measure
from landscapex.losses.totals import Terms, Totals
from landscapex.model.generators import common_draws
from landscapex.model.guard import Snapshot
from landscapex.model.parameters import ParameterSpace, Steps

_COMMON_SEED = 0  # stochastic losses see the same draws at every point

log = logging.getLogger("landscapex")


class Stop(Protocol):
    """Whoever may want the work to end early; see `interrupts.Interrupts`."""

    @property
    def requested(self) -> bool:
        """Whether to return what there is."""

    def poll(self) -> None:
        """Raise `Abandon` if the point at hand has taken too long since."""


class Replayed(Protocol):
    """An evaluation that a device can do again without Python; see `graphs.Recording`."""

    def values(self, stop: Stop | None = None) -> list[float]:
        """As `EagerEngine.here`."""

    def stale(self, eager: EagerEngine) -> bool:
        """Whether it is another evaluation than that of the engine as it is now."""

    def free(self) -> None:
        """Give memory back."""


class EagerEngine:
    """Evaluates the user's own module, in place, one grid point after another.

    Use it only inside `guard.exclusive`, whose snapshot restores the model.

    Args:
        space: The parameters that move.
        measure: What is computed from a batch.
        data: Batches by name; the first gives ``loss`` and the metrics, the others
            ``{name}_loss`` and so on.
        bn: ``"eval"`` uses running statistics as they are, ``"recompute"`` computes them anew at
            each point from the first data set, ``"batch"`` normalises by each batch.
        precision: ``"model"``, ``"fp32"``, ``"tf32"``, ``"bf16x3"`` (here as fp32) or ``"bf16"``
            (autocast).
        weight_decay: Adds ``weight_decay / 2 * ||theta||^2`` over the chosen parameters to
            ``loss``.
        common_seed: Seed the global generators alike before each point.

    Attributes:
        layout: How the losses see the data; that of the user until `arrange` is called.
        laid_out: The data in this layout.
        totals: Of the last evaluation by Python, by data set.
        recording: What takes the place of `here` in `losses`, if there is such a thing.
    """

    name = "eager"

    def __init__(
        self,
        space: ParameterSpace,
        measure: Measure,
        data: Mapping[str, FrozenBatches],
        *,
        bn: str = "eval",
        precision: str = "model",
        weight_decay: float = 0.0,
        common_seed: bool = False,
    ) -> None:
        self.space = space
        self.measure = measure
        self.data = dict(data)
        self.layout = Layout()
        self.laid_out = self.data
        self.bn = bn
        self.precision = precision
        self.weight_decay = weight_decay
        self.common_seed = common_seed
        self.columns: tuple[str, ...] | None = None
        self.totals: dict[str, Totals] = {}
        self.recording: Replayed | None = None
        self._at = next(iter(self.data))  # the data that are being evaluated
        self._norms = batch_norms(space.model)
        trained = {id(m) for m in self._norms} if bn == "batch" else set()
        self._flags = [(m, id(m) in trained) for m in space.model.modules()]
        self._grad_mode: Callable[[], contextlib.AbstractContextManager[Any]] = torch.no_grad
        self._shared = False  # whether `_shared_modes` has entered what a point needs

    def arrange(self, layout: Layout | None = None) -> Layout:
        """Lay the data out for the processor; gradients, which keep activations, see them as given.

        Args:
            layout: As another engine of this model and these data had it; None chooses one by a
                rule, with a few samples.

        Returns:
            The layout.
        """
        if layout is None:
            regroup = self.bn == "eval" or not self._norms
            # where samples stay, the model is not asked; its mode may be a pass over all data
            mode = self._mode() if regroup else contextlib.nullcontext()
            with self._draws(), torch.no_grad(), mode:
                model, measure = self.space.model, self.measure
                layout = choose_layout(model, measure, self.data, regroup=regroup)
        self.layout = layout
        self.laid_out = {name: layout.apply(batches) for name, batches in self.data.items()}
        return layout

    def losses(
        self,
        snapshot: Snapshot,
        center: Tensor,
        directions: Steps,
        points: np.ndarray,
        stop: Stop | None = None,
    ) -> np.ndarray:
        """Losses and metrics at grid points, in order, until asked to stop.

        Args:
            snapshot: Of the model, held by the caller.
            center: ``(P,)``.
            directions: ``(K, P)``.
            points: ``(G, K)`` coordinates.
            stop: Asked between points and between batches.

        Returns:
            ``(n, M)`` float64, ``n <= G``, in the order of `columns`.
        """
        rows: list[list[float]] = []
        here = self.here if self.recording is None else self._replayed(self.recording)
        with self._shared_modes():
            for coordinates in points.tolist():
                if stop is not None and stop.requested:
                    break
                snapshot.move(center, directions, coordinates)
                try:
                    rows.append(here(stop))
                except Abandon:
                    break
                except Exception as error:
                    named = zip(AXIS_NAMES, coordinates, strict=False)
                    error.add_note("landscapex: at " + ", ".join(f"{a}={c:.6g}" for a, c in named))
                    raise
        snapshot.check_unchanged()
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(self.columns or ()))

    def _replayed(self, recording: Replayed) -> Callable[[Stop | None], list[float]]:
        """The evaluation as it was recorded, while it is that of this engine."""
        if recording.stale(self):
            log.info("the recorded evaluation is not that of the model any more: Python goes on")
            self.release()
            return self.here
        return recording.values

    def release(self) -> None:
        """Give back what a recorded evaluation holds of the device."""
        if self.recording is not None:
            self.recording.free()
            self.recording = None

    @property
    def differentiates(self) -> bool:
        """Whether the loss turned out to need gradients."""
        return self._grad_mode is torch.enable_grad

    def here(self, stop: Stop | None = None) -> list[float]:
        """Losses and metrics of the model as it stands now, in the order of `columns`."""
        before = self.layout.most
        while True:
            try:
                values = self._here(stop)
                break
            except Exception as error:
                if self._went_on_without_onednn(error):
                    continue
                most = self._fewer(error, self.laid_out, self.layout.most)
                if most is None:
                    raise
                self.layout = replace(self.layout, most=most)
        if self.layout.most != before:
            warn(f"memory is short: {self.layout.most} samples go through the model at a time.")
        return values

    def _here(self, stop: Stop | None) -> list[float]:
        try:
            values, names = self._evaluate(stop)
        except RuntimeError as error:
            # a loss that differentiates (gradient penalty, physics) says so the first time
            if self.columns is not None or "does not require grad" not in str(error):
                raise
            self._grad_mode = torch.enable_grad
            values, names = self._evaluate(stop)
        if names != self.columns:
            self._settle(names)
        return values

    def _went_on_without_onednn(self, error: Exception) -> bool:
        """Whether the same samples may be tried again, because oneDNN takes no part any more."""
        if not self.layout.onednn or not memory.ended_onednn(error):
            return False
        memory.let_go(error, self.space.device)
        self.layout = replace(self.layout, onednn=False)
        warn("memory is short: oneDNN has no room for its kernels, torch's own take their place.")
        return True

    def _fewer(
        self, error: Exception, data: Mapping[str, FrozenBatches], before: int | None
    ) -> int | None:
        """Half as many samples at a time as before; None if that does not help against an error."""
        if not memory.is_short(error):
            return None
        device = self.space.device
        memory.let_go(error, device)
        batches = data[self._at]
        largest = max(batches.sizes)
        most = min(before or largest, largest)
        # where batches have been cut before, samples need not be tried again
        whole = None if most == 1 else self._why_whole(batches, separate=before is not None)
        if most == 1 or whole is not None:
            error.add_note(memory.advice(most, device, whole))
            return None
        return -(-most // 2)

    def _why_whole(self, batches: FrozenBatches, *, separate: bool) -> str | None:
        """Why batches are not to be cut; None if they may be."""
        if self.bn != "eval" and self._norms:
            return WHY_WHOLE[self.bn]
        if not batches.separable:
            return f"not all of `{batches.name}` are tensors of samples of one shape"
        if not separate:
            # oneDNN may have no room for kernels of so few samples, which says nothing about them
            with self._draws(), torch.no_grad(), self._mode(), without_onednn():
                separate = samples_are_separate(self.space.model, self.measure, batches)
        return None if separate else "samples may meet in this model or loss"

    def _settle(self, names: tuple[str, ...]) -> None:
        """Take the names of the first point, which those of every other point must equal."""
        if len(set(names)) < len(names):
            raise LossError(
                f"metrics and data sets must give different columns, got {list(names)}."
            )
        if self.columns is not None:
            raise LossError(
                f"the loss must return the same metrics at every point, got {list(names)} after "
                f"{list(self.columns)}."
            )
        self.columns = names

    def _evaluate(self, stop: Stop | None) -> tuple[list[float], tuple[str, ...]]:
        if self._shared:
            self._reset_modes()
            with self._onednn():
                return self._values(stop)
        with self._draws(), self._grad_mode(), self._mode(), self._kernels():
            return self._values(stop)

    def _values(self, stop: Stop | None) -> tuple[list[float], tuple[str, ...]]:
        values: list[float] = []
        names: tuple[str, ...] = ()
        model, most = self.space.model, self.layout.most
        for name, batches in self.laid_out.items():
            self._at = name
            totals = self.totals[name] = Totals()
            b = 0
            try:  # not by way of `_terms`: beside a small network, a generator counts
                for batch in batches if most is None else memory.in_pieces(batches, most):
                    if stop is not None:
                        stop.poll()
                    totals.add(self.measure(model, batch))
                    b += 1
            except Exception as error:
                self._say_where(error, b, name, most)
                raise
            columns = totals.columns
            names = (*names, *[f"{name}_{c}" for c in columns]) if names else columns
            values += totals.values()
        if self.weight_decay:
            values[0] += 0.5 * self.weight_decay * float(self.squared_norm())
        return values, names

    def gradient(self, stop: Stop | None = None) -> Tensor:
        """Gradient of ``loss`` over the chosen parameters as they stand now, flat ``(P,)``."""
        before = most = self.layout.most_in_gradients or self.layout.most
        while True:
            try:
                gradient = self._gradient(most, stop)
                break
            except Exception as error:
                if self._went_on_without_onednn(error):
                    continue
                most = self._fewer(error, self.data, most)
                if most is None:
                    raise
        if most != before:
            self.layout = replace(self.layout, most_in_gradients=most)
            warn(f"memory is short: gradients are of {most} samples at a time.")
        return gradient

    def _gradient(self, most: int | None, stop: Stop | None) -> Tensor:
        wanted = [(e, p) for e, p in zip(self.space.entries, self.space.parameters, strict=True)]
        for _, p in wanted:
            p.requires_grad_(True)
        total = torch.zeros(self.space.size, dtype=torch.float64, device=self.space.device)
        weights = torch.zeros((), dtype=torch.float64, device=self.space.device)
        name, batches = next(iter(self.data.items()))
        # cuDNN's recurrent layers have no backward pass in evaluation mode
        recurrent = any(isinstance(m, nn.RNNBase) for m in self.space.model.modules())
        cudnn = torch.backends.cudnn.flags(enabled=False) if recurrent else contextlib.nullcontext()
        with self._draws(), torch.enable_grad(), self._mode(), cudnn:
            for terms in self._terms(name, batches, most, stop):
                n = torch.as_tensor(terms.weight, dtype=torch.float64, device=total.device)
                if n < 0:
                    raise LossError(f"The weight of a batch must be at least 0, got {float(n)}.")
                if n == 0:
                    continue
                weights += n
                if not terms.loss.requires_grad:  # it uses none of the parameters
                    continue
                grads = torch.autograd.grad(
                    terms.loss, [p for _, p in wanted], allow_unused=True, materialize_grads=False
                )
                for (e, _), g in zip(wanted, grads, strict=True):
                    if g is not None:
                        g = torch.view_as_real(g.resolve_conj()) if g.is_complex() else g
                        total[e.offset : e.end] += n * g.reshape(-1).double()
        if not weights:
            raise EmptyDataError("At least one sample or label must count, got none.")
        total /= weights
        if self.weight_decay:
            total += self.weight_decay * self.space.gather().double()
        return total.to(self.space.dtype)

    def _terms(
        self, name: str, batches: FrozenBatches, most: int | None, stop: Stop | None
    ) -> Iterator[Terms]:
        self._at = name
        pieces = batches if most is None else memory.in_pieces(batches, most)
        for b, batch in enumerate(pieces):
            if stop is not None:
                stop.poll()
            try:
                yield self.measure(self.space.model, batch)
            except Exception as error:
                self._say_where(error, b, name, most)
                raise

    def _say_where(self, error: Exception, b: int, name: str, most: int | None) -> None:
        """Note in which batch an evaluation ended, or piece of a batch that was cut."""
        error.add_note(f"landscapex: in {'batch' if most is None else 'piece'} {b} of {name}")
        refuse_single_values(error, self._norms, self.bn)

    def squared_norm(self) -> Tensor:
        """Of the chosen parameters as they stand, 0-d float64."""
        parts = [
            torch.linalg.vector_norm(
                torch.view_as_real(p) if p.is_complex() else p, dtype=torch.float64
            )
            for p in (q.detach().resolve_conj() for q in self.space.parameters)
        ]
        return torch.stack(parts).square().sum()

    def _draws(self) -> contextlib.AbstractContextManager[None]:
        if not self.common_seed:
            return contextlib.nullcontext()
        return common_draws(_COMMON_SEED)

    def _kernels(self) -> contextlib.AbstractContextManager[None]:
        if not self.layout.onednn_linear:
            return contextlib.nullcontext()
        return covered_linear(self.space.model)

    def _onednn(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self.layout.onednn else without_onednn()

    @contextlib.contextmanager
    def _shared_modes(self) -> Iterator[None]:
        """Enter once what is the same at many points: beside a small network it counts."""
        recomputes = self.bn == "recompute" and bool(self._norms)
        self._shared = self.precision == "model" and not self.common_seed and not recomputes
        try:
            with self._grad_mode(), self._kernels() if self._shared else contextlib.nullcontext():
                yield
        finally:
            self._shared = False
            torch.clear_autocast_cache()

    def _reset_modes(self) -> None:
        """Undo what a loss may have switched at the last point."""
        self._set_flags()
        wanted = self.differentiates
        if torch.is_grad_enabled() is not wanted:
            torch.set_grad_enabled(wanted)
        torch.clear_autocast_cache()

    def _set_flags(self) -> None:
        for module, training in self._flags:
            if module.training is not training:
                module.training = training

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """The modes of an evaluation, for whoever calls the measure itself."""
        with self._grad_mode(), self._mode():
            yield

    @contextlib.contextmanager
    def _mode(self) -> Iterator[None]:
        """Evaluation mode, batch norm as asked for, arithmetic as asked for."""
        self._set_flags()
        # the user's autocast keeps cast weights for as long as it lasts; ours move
        torch.clear_autocast_cache()
        try:
            with precision_context(self.precision, self.space.device), self._onednn():
                if self.bn == "recompute" and self._norms:
                    self._recompute_statistics()
                yield
        finally:
            torch.clear_autocast_cache()

    def _recompute_statistics(self) -> None:
        """Raises DataError if there are fewer than 2 samples."""
        name, batches = next(iter(self.data.items()))
        if batches.num_samples < 2:
            raise DataError(
                f"`{name}` must hold at least 2 samples with bn='recompute', got "
                f"{batches.num_samples}: one sample has no variance."
            )
        recompute_statistics(self._norms, self._terms(name, batches, None, None))
