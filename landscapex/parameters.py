"""The parameters of a model as one flat vector: names, offsets, ties, filters.

Everything after this file works on flat vectors ``[P]`` and never asks what a layer is. A complex
parameter counts as two real entries, real part first; a tied parameter counts once.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, cast

import torch
from torch import Tensor, nn

from landscapex import _ops
from landscapex.errors import ArgumentError, ArgumentTypeError, DeviceError, ParameterMismatchError

Normalize = Literal["filter", "layer", "model", "weight"]
Ignore = Literal["bias_bn", "copy"]
Selection = None | Sequence[str] | Callable[[str, nn.Parameter], bool]

_NAMES_SHOWN = 10  # in one error


@dataclass(frozen=True)
class Entry:
    """Where one parameter lies in the flat vector, and how its filters lie in it.

    Attributes:
        name: Its first name in ``model.named_parameters()``.
        aliases: The other names of the same tensor (tied weights).
        shape: Its shape.
        dtype: Its dtype.
        offset: Where it starts in the flat vector.
        size: Real entries it takes there (two per complex entry).
        transposed_groups: 0, or the groups of a transposed convolution, whose output units lie
            on axis 1.
        blocks: How many tensors are stacked in it along axis 0 (3 for ``in_proj_weight``).
    """

    name: str
    aliases: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    size: int
    transposed_groups: int = 0
    blocks: int = 1

    @property
    def end(self) -> int:
        """Where the next parameter starts."""
        return self.offset + self.size

    @property
    def real_shape(self) -> tuple[int, ...]:
        """The shape, with a last axis (real, imaginary) for complex dtypes."""
        return (*self.shape, 2) if self.dtype.is_complex else self.shape

    @property
    def is_bias_bn(self) -> bool:
        """Whether it belongs to the class of biases and norm parameters.

        That is every parameter of at most one dimension, and every one whose filters have a
        single entry.
        """
        if len(self.shape) <= 1 or self.size == 0:
            return True
        entry_size = 2 if self.dtype.is_complex else 1
        return self.filter_size == entry_size

    @property
    def filter_size(self) -> int:
        """Real entries of one filter (only for two or more dimensions, not empty)."""
        return self.size // self.num_filters

    @property
    def num_filters(self) -> int:
        """Output units: axis 0, or group x axis 1 of a transposed convolution."""
        if self.transposed_groups:
            return self.transposed_groups * self.shape[1]
        return self.shape[0]

    def filter_rows(self) -> Tensor:
        """One row (offset, count, stride, inner) per filter, ``(F, 4)`` int64."""
        f = torch.arange(self.num_filters, device="cpu")
        if not self.transposed_groups:
            inner = self.filter_size
            return _rows(self.offset + f * inner, 1, inner, inner)
        # weight[g * in_per_group + i, o, ...]: the pieces of filter (g, o) lie one input row apart
        per_group = self.shape[0] // self.transposed_groups
        inner = self.size // (self.shape[0] * self.shape[1])
        stride = self.shape[1] * inner
        group, out = f // self.shape[1], f % self.shape[1]
        return _rows(
            self.offset + group * per_group * stride + out * inner, per_group, stride, inner
        )

    def tensor_rows(self) -> Tensor:
        """One row per stacked tensor (the whole parameter, or its three attention blocks)."""
        size = self.size // self.blocks
        return _rows(self.offset + torch.arange(self.blocks, device="cpu") * size, 1, size, size)


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
        _refuse_unmovable(self.model)
        everything = _unique_parameters(self.model)
        chosen = _select(everything, params)
        owners = dict(self.model.named_modules())
        entries, self.parameters, offset = [], [], 0
        for names in chosen:
            p = everything[names]
            size = p.numel() * (2 if p.is_complex() else 1)
            groups, blocks = _filter_layout(names[0], p, owners)
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
        _refuse_overlap(everything)

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
            raise ParameterMismatchError(f"{what} must fit the parameters, got {_some(bad)}.")
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

    def normalization_table(self, rule: Normalize, *, skip_bias_bn: bool) -> tuple[Tensor, Tensor]:
        """What `_ops.filter_normalize_` scales together.

        Args:
            rule: ``"filter"``, ``"layer"``, ``"model"`` or ``"weight"``.
            skip_bias_bn: Leave biases and norm parameters out; otherwise each of them is one
                group under ``"filter"``.

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
        for e in self.entries:
            if e.size == 0 or (skip_bias_bn and e.is_bias_bn):
                continue
            by_filter = rule == "filter" and not e.is_bias_bn
            rows.append(e.filter_rows() if by_filter else e.tensor_rows())
        runs = torch.cat(rows) if rows else torch.zeros((0, 4), dtype=torch.int64, device="cpu")
        ends = [0, len(runs)] if rule == "model" and len(runs) else range(len(runs) + 1)
        return runs.contiguous(), torch.tensor(list(ends), dtype=torch.int64, device="cpu")


class Writer:
    """The live parameters as the contiguous real tensors that `_ops.perturb_` takes.

    Parameters that are not contiguous are written by way of a copy. It holds as long as no
    parameter gets other memory.
    """

    def __init__(self, space: ParameterSpace) -> None:
        self._by_copy = []
        self._tensors = []
        for e, p in zip(space.entries, space.parameters, strict=True):
            target = p.detach()
            if p.is_conj() or p.is_neg() or not p.is_contiguous():
                target = torch.empty(e.shape, dtype=e.dtype, device=p.device)
                self._by_copy.append((p, target))
            self._tensors.append(_as_real(target))

    def write(self, center: Tensor, directions: Tensor, coordinates: Sequence[float]) -> None:
        """Write a point; see `ParameterSpace.move`."""
        _ops.perturb_(self._tensors, center, directions, coordinates)
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


def _some(items: Sequence[str]) -> str:
    shown = "; ".join(items[:_NAMES_SHOWN])
    more = len(items) - _NAMES_SHOWN
    return f"{shown}; and {more} more" if more > 0 else shown


def _unique_parameters(model: nn.Module) -> dict[tuple[str, ...], nn.Parameter]:
    """Every parameter under all of its names; two views of the same memory are one parameter."""
    by_memory: dict[object, tuple[list[str], nn.Parameter]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        key: object = id(p)
        if p.numel():
            key = (p.data_ptr(), p.dtype, tuple(p.shape), p.stride(), p.is_conj())
        by_memory.setdefault(key, ([], p))[0].append(name)
    return {tuple(names): p for names, p in by_memory.values()}


def _select(
    everything: Mapping[tuple[str, ...], nn.Parameter], params: Selection
) -> list[tuple[str, ...]]:
    if not everything:
        raise ParameterMismatchError("`model` must have parameters, got none.")
    if params is None:
        trainable = [names for names, p in everything.items() if p.requires_grad]
        return trainable or [names for names, p in everything.items() if _movable_dtype(p.dtype)]
    if callable(params):
        chosen = [names for names, p in everything.items() if any(params(n, p) for n in names)]
    else:
        patterns = [params] if isinstance(params, str) else list(_strings(params))
        hits: set[tuple[str, ...]] = set()
        for pattern in patterns:
            found = {
                names for names in everything if any(fnmatch.fnmatchcase(n, pattern) for n in names)
            }
            if not found:
                raise ParameterMismatchError(
                    f"`params` must name parameters of the model, got {pattern!r}; it has "
                    f"{_some([names[0] for names in everything])}."
                )
            hits |= found
        chosen = [names for names in everything if names in hits]
    if not chosen:
        raise ParameterMismatchError("`params` must choose at least one parameter, got none.")
    fixed = {names[0]: everything[names].dtype for names in chosen}
    fixed = {name: dtype for name, dtype in fixed.items() if not _movable_dtype(dtype)}
    if fixed:
        raise ParameterMismatchError(
            "`params` must choose floating-point or complex parameters, got "
            f"{_some([f'{name} ({dtype})' for name, dtype in fixed.items()])}."
        )
    return chosen


def _strings(params: Iterable[str]) -> Iterable[str]:
    for p in params:
        if not isinstance(p, str):
            raise ArgumentTypeError(f"`params` must hold names, got {type(p).__name__}.")
        yield p


def _refuse_unmovable(model: nn.Module) -> None:
    bad = []
    for name, module in model.named_modules():
        kind = type(module)
        if ".quantized" in kind.__module__ and kind.__module__.startswith(("torch.", "torchao.")):
            bad.append(f"{name or 'model'} (quantised module {kind.__name__})")
        if kind.__name__ == "FullyShardedDataParallel":
            bad.append(f"{name or 'model'} (FullyShardedDataParallel)")
    devices: dict[str, str] = {}
    for name, p in model.named_parameters():
        if isinstance(p, nn.parameter.UninitializedParameter):
            bad.append(f"{name} (lazy, not initialised yet: run one forward pass first)")
            continue
        if type(p).__name__ == "DTensor" or type(p.data).__name__ == "DTensor":
            bad.append(f"{name} (DTensor)")
        elif p.is_meta:
            bad.append(f"{name} (on the meta device: it has no values)")
        elif p.is_quantized or (p.requires_grad and not _movable_dtype(p.dtype)):
            bad.append(f"{name} ({p.dtype})")
        elif p.is_inference():
            bad.append(f"{name} (an inference tensor: clone it outside inference_mode)")
        elif p.layout != torch.strided:
            bad.append(f"{name} ({p.layout})")
        devices.setdefault(str(p.device), name)
    if bad:
        raise ParameterMismatchError(f"parameters must be plain dense tensors, got {_some(bad)}.")
    if any(device.startswith("mps") for device in devices):
        raise DeviceError(
            "the model must be on a device with float64, got mps: move model and data to the CPU."
        )
    if len(devices) > 1:
        listed = ", ".join(f"{name} on {device}" for device, name in devices.items())
        raise DeviceError(f"all parameters must be on one device, got {listed}.")


def _movable_dtype(dtype: torch.dtype) -> bool:
    return dtype in (
        torch.float16, torch.bfloat16, torch.float32, torch.float64,
        torch.complex64, torch.complex128,
    )  # fmt: skip


def _refuse_overlap(everything: Mapping[tuple[str, ...], nn.Parameter]) -> None:
    """Parameters that share part of their memory cannot be moved independently."""
    by_storage: dict[int, list[tuple[int, int, str, Tensor]]] = {}
    for names, p in everything.items():
        if any(n > 1 and s == 0 for n, s in zip(p.shape, p.stride(), strict=True)) and p.numel():
            raise ParameterMismatchError(
                f"{names[0]} must own each of its entries, got an expanded tensor with strides "
                f"{p.stride()}; clone it."
            )
        if p.numel():
            first = int(p.storage_offset() * p.element_size())
            reach = sum((n - 1) * s for n, s in zip(p.shape, p.stride(), strict=True))
            last = int(first + reach * p.element_size())
            storage = p.untyped_storage().data_ptr()
            by_storage.setdefault(storage, []).append((first, last, names[0], p.detach()))
    for members in by_storage.values():
        members.sort(key=lambda m: m[:2])
        reached = -1
        for first, last, name, _ in members:
            if first <= reached and _share_entries([m[3] for m in members]):
                raise ParameterMismatchError(
                    f"{name} must not share part of its memory with another parameter, got "
                    f"{_some([m[2] for m in members])} in one storage; clone one of them."
                )
            reached = max(reached, last)


def _share_entries(tensors: Sequence[Tensor]) -> bool:
    """Whether views of one storage have a byte in common (their ranges do, perhaps interleaved)."""
    mark = torch.zeros(tensors[0].untyped_storage().nbytes(), dtype=torch.int8, device="cpu")
    for t in tensors:
        size = t.element_size()
        view = mark.as_strided(
            (*t.shape, size), [*(s * size for s in t.stride()), 1], t.storage_offset() * size
        )
        if bool(view.any()):
            return True
        view.fill_(1)
    return False


def _filter_layout(name: str, p: Tensor, owners: Mapping[str, nn.Module]) -> tuple[int, int]:
    """(groups of a transposed convolution or 0, tensors stacked along axis 0)."""
    path, _, leaf = name.rpartition(".")
    path = path.removesuffix("parametrizations.weight").rstrip(".")  # they keep the weight's layout
    owner = owners.get(path)
    if isinstance(owner, nn.modules.conv._ConvTransposeNd):
        per_group = owner.out_channels // owner.groups
        weight_shape = (owner.in_channels, per_group, *owner.kernel_size)
        return (owner.groups if tuple(p.shape) == weight_shape else 0), 1
    if leaf == "in_proj_weight" and p.ndim == 2 and p.shape[0] % 3 == 0:
        return 0, 3
    return 0, 1


def _rows(start: Tensor, count: int, stride: int, inner: int) -> Tensor:
    rest = torch.tensor([count, stride, inner], device="cpu").expand(len(start), 3)
    return torch.cat([start[:, None], rest], 1)
