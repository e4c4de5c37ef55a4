"""The parameters of a model as one flat vector: names, offsets, ties, filters.

Everything after this file works on flat vectors ``[P]`` and never asks what a layer is. A complex
parameter counts as two real entries, real part first; a tied parameter counts once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Literal, Protocol, cast

import torch
from torch import Tensor, nn

from landscapex import _ops
from landscapex.errors import ArgumentError, ArgumentTypeError, ParameterMismatchError
from landscapex.model.entries import Entry, filter_layout
from landscapex.model.selection import (
    Selection,
    first_of,
    refuse_overlap,
    refuse_unmovable,
    select,
    unique_parameters,
)

Normalize = Literal["filter", "layer", "model", "weight"]
Ignore = Literal["bias_bn", "copy"]


class ParameterSpace:
    """The chosen parameters of a model as coordinates 0 to P - 1, as ``named_parameters()`` orders.

    Args:
        model: Any module; wrappers (DataParallel, DistributedDataParallel, torch.compile) are
            looked through.
        params: Which parameters: None for those with ``requires_grad`` (all if none has), names
            or shell patterns (``"layer1.*"``), or ``f(name, parameter) -> bool``.

    Raises:
        ParameterMismatchError: If the choice is empty, or holds a parameter that cannot be moved
            (lazy, meta, quantised, sharded, overlapping another).
        DeviceError: If the parameters lie on several devices.
    """

    def __init__(self, model: nn.Module, params: Selection = None) -> None:
        self.model = unwrap(model)
        refuse_unmovable(self.model)
        everything = unique_parameters(self.model)
        chosen = select(everything, params)
        owners = dict(self.model.named_modules())
        entries, self.parameters, offset = [], [], 0
        for names in chosen:
            p = everything[names]
            size = p.numel() * (2 if p.is_complex() else 1)
            groups, blocks = filter_layout(names[0], p, owners)
            entries.append(
                Entry(names[0], names[1:], tuple(p.shape), p.dtype, offset, size, groups, blocks)
            )
            self.parameters.append(p)
            offset += size
        self.entries: tuple[Entry, ...] = tuple(entries)
        self.size = offset
        if not self.size:
            raise ParameterMismatchError("the chosen parameters must have entries, got none.")
        self.everything = everything
        refuse_overlap(everything)

    @cached_property
    def dtype(self) -> torch.dtype:
        """Of flat vectors: float64 if any chosen parameter is, float32 otherwise."""
        double = (torch.float64, torch.complex128)
        return torch.float64 if any(e.dtype in double for e in self.entries) else torch.float32

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.parameters[0].device

    @cached_property
    def names(self) -> dict[str, int]:
        """Position in `entries` of every name, aliases included."""
        return {n: i for i, e in enumerate(self.entries) for n in (e.name, *e.aliases)}

    def gather(self) -> Tensor:
        """The live parameters as a new flat vector ``[P]``."""
        out = torch.empty(self.size, dtype=self.dtype, device=self.device)
        for e, p in zip(self.entries, self.parameters, strict=True):
            out[e.offset : e.end].copy_(_as_real(p.detach()).reshape(-1))
        return out

    def move(self, center: Tensor, directions: Tensor, coordinates: Sequence[float]) -> None:
        """Write ``center + sum_k coordinates[k] directions[k]`` into the live parameters.

        Args:
            center: ``[P]`` in `dtype`; never written.
            directions: ``[K, P]`` in `dtype`.
            coordinates: ``K`` finite numbers.
        """
        self.writer().write(center, directions, coordinates)

    def writer(self) -> Writer:
        """What writes points into the live parameters again and again."""
        return Writer(self)

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Views of a flat ``[P]`` vector by name and real shape."""
        return {e.name: vector[e.offset : e.end].view(e.real_shape) for e in self.entries}

    def flatten(self, tensors: Mapping[str, Tensor], *, what: str, missing: str) -> Tensor:
        """A flat ``[P]`` vector from named tensors.

        Args:
            tensors: Any name of a parameter -> tensor of its shape (or its real shape).
            what: What this mapping is, for the error.
            missing: ``"error"``, or ``"zero"`` to let absent parameters be zero.

        Returns:
            ``[P]`` in `dtype`, on `device`.

        Raises:
            ArgumentTypeError: If a value is not a tensor.
            ParameterMismatchError: If names or shapes do not fit; lists up to ten.
        """
        out = torch.zeros(self.size, dtype=self.dtype, device=self.device)
        bad, seen = [], set()
        for name, value in tensors.items():
            if not isinstance(value, Tensor):
                raise ArgumentTypeError(
                    f"{what} must map names to tensors, got {type(value).__name__} for {name!r}."
                )
            index = self.names.get(name)
            if index is None:
                bad.append(f"{name}: no such parameter among those chosen")
                continue
            e = self.entries[index]
            if e.dtype.is_complex and tuple(value.shape) == e.shape:
                value = torch.view_as_real(value.detach().to(torch.complex128).resolve_conj())
            if tuple(value.shape) != e.real_shape:
                bad.append(f"{name}: shape {tuple(value.shape)} instead of {e.shape}")
                continue
            out[e.offset : e.end].copy_(value.detach().reshape(-1))
            seen.add(index)
        if missing == "error":
            bad += [f"{e.name}: missing" for i, e in enumerate(self.entries) if i not in seen]
        if bad:
            raise ParameterMismatchError(f"{what} must fit the parameters, got {first_of(bad)}.")
        return out

    def vector(self, point: Tensor | Mapping[str, Tensor] | nn.Module, *, what: str) -> Tensor:
        """A point as a flat vector ``[P]``: from a flat tensor, a state_dict or a module.

        Entries of a mapping that are not among the chosen parameters are left out.

        Args:
            point: The point.
            what: Its name in errors.

        Returns:
            A new ``[P]`` tensor in `dtype`, on `device`.

        Raises:
            ArgumentTypeError: If ``point`` is none of these.
            ParameterMismatchError: If it does not fit.
        """
        if isinstance(point, nn.Module):
            point = dict(unwrap(point).named_parameters(remove_duplicate=False))
        if isinstance(point, Mapping):
            known = {n: t for n, t in point.items() if n in self.names}
            return self.flatten(known, what=what, missing="error")
        if not isinstance(point, Tensor):
            raise ArgumentTypeError(
                f"{what} must be a flat tensor, a state_dict or a module, "
                f"got {type(point).__name__}."
            )
        if tuple(point.shape) != (self.size,):
            raise ParameterMismatchError(
                f"{what} must have shape ({self.size},), got {tuple(point.shape)}."
            )
        return point.detach().to(device=self.device, dtype=self.dtype, copy=True)

    def normalization_table(
        self, rule: Normalize, *, skip_bias_bn: bool, entries: Iterable[Entry] | None = None
    ) -> tuple[Tensor, Tensor]:
        """What `_ops.filter_normalize_` scales together.

        Args:
            rule: ``"filter"``, ``"layer"``, ``"model"`` or ``"weight"``.
            skip_bias_bn: Leave biases and norm parameters out; otherwise each of them is one
                group under ``"filter"``.
            entries: Of these parameters; None for all.

        Returns:
            ``runs`` int64 ``[R, 4]`` and ``groups`` int64 ``[F + 1]``, both on the CPU.

        Raises:
            ArgumentError: If ``rule`` is not one of the four.
        """
        if rule not in ("filter", "layer", "model", "weight"):
            raise ArgumentError(
                f"`normalize` must be 'filter', 'layer', 'model', 'weight' or None, got {rule!r}."
            )
        rows = []
        for e in self.entries if entries is None else entries:
            if e.size == 0 or (skip_bias_bn and e.is_bias_bn):
                continue
            by_filter = rule == "filter" and not e.is_bias_bn
            rows.append(e.filter_rows() if by_filter else e.tensor_rows())
        runs = torch.cat(rows) if rows else torch.zeros((0, 4), dtype=torch.int64, device="cpu")
        ends = [0, len(runs)] if rule == "model" and len(runs) else range(len(runs) + 1)
        return runs.contiguous(), torch.tensor(list(ends), dtype=torch.int64, device="cpu")


class InPieces(Protocol):
    """Directions ``(K, P)`` that nobody holds as a whole; see `drawn.Drawn`."""

    def of(self, i: int) -> Tensor:
        """The directions within parameter ``i``, ``(K, n)``."""


Steps = Tensor | InPieces


class Writer:
    """The live parameters as the contiguous real tensors that `_ops.perturb_` takes.

    Parameters that are not contiguous are written by way of a copy. It holds as long as no
    parameter gets other memory.
    """

    def __init__(self, space: ParameterSpace) -> None:
        self._entries = space.entries
        self._by_copy = []
        self._tensors = []
        for e, p in zip(space.entries, space.parameters, strict=True):
            target = p.detach()
            if p.is_conj() or p.is_neg() or not p.is_contiguous():
                target = torch.empty(e.shape, dtype=e.dtype, device=p.device)
                self._by_copy.append((p, target))
            self._tensors.append(_as_real(target))

    def write(self, center: Tensor, directions: Steps, coordinates: Sequence[float]) -> None:
        """Write a point; see `ParameterSpace.move`."""
        if isinstance(directions, Tensor):
            _ops.perturb_(self._tensors, center, directions, coordinates)
        else:
            for i, (e, tensor) in enumerate(zip(self._entries, self._tensors, strict=True)):
                part = directions.of(i)
                _ops.perturb_([tensor], center[e.offset : e.end], part, coordinates)
        if self._by_copy:
            with torch.no_grad():
                for p, copied in self._by_copy:
                    p.copy_(copied)


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel and torch.compile wrappers.

    Args:
        model: Perhaps wrapped.

    Returns:
        The user's own module.

    Raises:
        ArgumentTypeError: If ``model`` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(f"`model` must be a torch.nn.Module, got {type(model).__name__}.")
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        kind = type(model)
        if kind.__name__ == "OptimizedModule" and kind.__module__.startswith("torch._dynamo"):
            # not by attribute: another wrapper may hand those on
            model = cast(nn.Module, model._modules["_orig_mod"])
        elif isinstance(model, wrappers):
            model = model.module
        else:
            return model


def _as_real(t: Tensor) -> Tensor:
    return torch.view_as_real(t.resolve_conj()) if t.is_complex() else t
