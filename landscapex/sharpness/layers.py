"""What a network is made of, as far as measures ask: a layer by name, homogeneous layers."""

from __future__ import annotations

from typing import Any

from torch import nn

from landscapex._names import did_you_mean
from landscapex.errors import ArgumentError, ArgumentTypeError
from landscapex.model.entries import Entry
from landscapex.model.parameters import ParameterSpace

_LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# f(c x) = c f(x) for c > 0, without parameters, in evaluation mode
_HOMOGENEOUS = (
    nn.ReLU, nn.LeakyReLU, nn.Identity, nn.Flatten, nn.Unflatten,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip


def weight_entry(space: ParameterSpace, layer: object) -> Entry:
    """The weight of a layer, by the name of the layer or of the weight.

    Args:
        space: The chosen parameters.
        layer: ``"fc3"`` or ``"fc3.weight"``.

    Returns:
        Where the weight lies.

    Raises:
        ArgumentError: If there is no such weight, or it has no rows of output units.
        ArgumentTypeError: If ``layer`` is no name.
    """
    if not isinstance(layer, str):
        raise ArgumentTypeError(f"`layer` must be a name, got {type(layer).__name__}.")
    index = space.names.get(layer, space.names.get(f"{layer}.weight"))
    if index is None:
        weights = [n for n, i in space.names.items() if len(space.entries[i].shape) > 1]
        known = {n.removesuffix(".weight"): None for n in weights} | dict.fromkeys(weights)
        hint = did_you_mean(layer, known) or f"; there are {', '.join(weights)}."
        raise ArgumentError(
            f"`layer` must name a layer with a weight among the chosen parameters, got {layer!r}"
            f"{hint}"
        )
    entry = space.entries[index]
    if len(entry.shape) < 2 or not entry.size or entry.transposed_groups:
        what = "a transposed convolution" if entry.transposed_groups else f"shape {entry.shape}"
        raise ArgumentError(
            f"`layer` must have a weight with one row per output unit along axis 0, got {what} "
            f"for {layer!r}."
        )
    if entry.dtype.is_complex:
        raise ArgumentError(f"`layer` must have a real weight, got {entry.dtype} for {layer!r}.")
    return entry


def last_linear(model: nn.Module, entry: Entry) -> nn.Linear | None:
    """The linear layer that owns a weight alone.

    Args:
        model: Of the weight.
        entry: The weight.

    Returns:
        The layer, or None if the weight is tied or belongs to something else.
    """
    path, _, leaf = entry.name.rpartition(".")
    owner = dict(model.named_modules()).get(path)
    if entry.aliases or leaf != "weight" or type(owner) is not nn.Linear or _hooked(owner):
        return None
    return owner


def homogeneous_layers(space: ParameterSpace) -> int | None:
    """How many weight layers a network has whose output is homogeneous in each of them.

    Args:
        space: The chosen parameters of the network.

    Returns:
        L, for which scaling all parameters by c > 0 scales the output by ``c ** L``; None unless
        the model is a chain of plain layers without biases, all of whose parameters are chosen.
    """
    if len(space.everything) != len(space.entries):
        return None
    chain = _chain(space.model)
    if chain is None or any(_hooked(m) for m in chain):
        return None
    linear = [m for m in chain if type(m) in _LINEAR]
    if any(getattr(m, "bias", None) is not None for m in linear):
        return None
    return len(linear) if all(type(m) in (*_LINEAR, *_HOMOGENEOUS) for m in chain) else None


def _chain(module: nn.Module) -> list[nn.Module] | None:
    """The layers of nested plain `nn.Sequential`, in order; None if one is hooked."""
    if type(module) is not nn.Sequential:
        return [module]
    if _hooked(module):
        return None
    layers: list[nn.Module] = []
    for child in module:
        inside = _chain(child)
        if inside is None:
            return None
        layers += inside
    return layers


def _hooked(module: Any) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
