"""Which parameters of a model are moved, and which models have some that cannot be."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from landscapex.errors import ArgumentTypeError, DeviceError, ParameterMismatchError

Selection = None | Sequence[str] | Callable[[str, nn.Parameter], bool]

_NAMES_SHOWN = 10  # in one error


def unique_parameters(model: nn.Module) -> dict[tuple[str, ...], nn.Parameter]:
    """Every parameter under all of its names; two views of the same memory are one parameter.

    Args:
        model: Any module.

    Returns:
        Names to parameter, in the order of ``named_parameters()``.
    """
    by_memory: dict[object, tuple[list[str], nn.Parameter]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        key: object = id(p)
        if p.numel():
            key = (p.data_ptr(), p.dtype, tuple(p.shape), p.stride(), p.is_conj())
        by_memory.setdefault(key, ([], p))[0].append(name)
    return {tuple(names): p for names, p in by_memory.values()}


def select(
    everything: Mapping[tuple[str, ...], nn.Parameter], params: Selection
) -> list[tuple[str, ...]]:
    """Choose parameters.

    Args:
        everything: Names to parameter, as `unique_parameters` gives them.
        params: As of `landscapex.model.parameters.ParameterSpace`.

    Returns:
        The names of those chosen, in the order of `everything`.

    Raises:
        ParameterMismatchError: If none is chosen, a name fits none, or numbers of that dtype do
            not move.
    """
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
                    f"{first_of([names[0] for names in everything])}."
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
            f"{first_of([f'{name} ({dtype})' for name, dtype in fixed.items()])}."
        )
    return chosen


def _strings(params: Iterable[str]) -> Iterable[str]:
    for p in params:
        if not isinstance(p, str):
            raise ArgumentTypeError(f"`params` must hold names, got {type(p).__name__}.")
        yield p


def refuse_unmovable(model: nn.Module) -> None:
    """Refuse a model with parameters that cannot be moved, chosen or not.

    Args:
        model: Any module.

    Raises:
        ParameterMismatchError: If any is not a plain dense tensor with values of its own.
        DeviceError: If they lie on several devices, or on one without float64.
    """
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
        raise ParameterMismatchError(
            f"parameters must be plain dense tensors, got {first_of(bad)}."
        )
    if any(device.startswith("mps") for device in devices):
        raise DeviceError(
            "the model must be on a device with float64, got mps: move model and data to the CPU."
        )
    if len(devices) > 1:
        listed = ", ".join(f"{name} on {device}" for device, name in devices.items())
        raise DeviceError(f"all parameters must be on one device, got {listed}.")


def refuse_sparse_buffers(model: nn.Module) -> None:
    """Refuse a model whose buffers could not be compared, and put back, bit by bit.

    Args:
        model: To be evaluated at other points.

    Raises:
        ParameterMismatchError: If a buffer is not dense.
    """
    bad = [f"{n} ({b.layout})" for n, b in model.named_buffers() if b.layout != torch.strided]
    if bad:
        raise ParameterMismatchError(
            f"buffers must be dense, or plain attributes of a module, got {first_of(bad)}."
        )


def _movable_dtype(dtype: torch.dtype) -> bool:
    return dtype in (
        torch.float16, torch.bfloat16, torch.float32, torch.float64,
        torch.complex64, torch.complex128,
    )  # fmt: skip


def refuse_overlap(everything: Mapping[tuple[str, ...], nn.Parameter]) -> None:
    """Refuse parameters that share part of their memory: they cannot be moved independently.

    Args:
        everything: Names to parameter.

    Raises:
        ParameterMismatchError: If two of them do, or one with itself.
    """
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
                    f"{first_of([m[2] for m in members])} in one storage; clone one of them."
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


def first_of(items: Sequence[str]) -> str:
    """The first ten of what is wrong, for an error.

    Args:
        items: All of it.

    Returns:
        In one line, with the number of the others.
    """
    shown = "; ".join(items[:_NAMES_SHOWN])
    more = len(items) - _NAMES_SHOWN
    return f"{shown}; and {more} more" if more > 0 else shown
