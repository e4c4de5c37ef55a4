"""States of a model, as they are given: another module, a state_dict, a checkpoint, a vector."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from landscapex.errors import ArgumentTypeError
from landscapex.model.parameters import unwrap
from landscapex.storage import checkpoints

State = nn.Module | Mapping[str, Tensor] | Tensor | str | os.PathLike[str]
Tensors = Mapping[str, Tensor] | Tensor  # by name, or the chosen parameters in a row


def tensors_of(state: State, model: nn.Module, *, what: str = "a state") -> Tensors:
    """The tensors of a state, under the names of a model.

    Args:
        state: A module, a state_dict, the path of a checkpoint, or a flat vector.
        model: Names that all have one prefix in the state (``module.`` of DataParallel, say) lose
            it.
        what: The name of the state in errors.

    Returns:
        Parameters and buffers by name, or the flat vector.

    Raises:
        ArgumentTypeError: If ``state`` is none of these.
    """
    if isinstance(state, nn.Module):
        return named_tensors(unwrap(state))
    if isinstance(state, str | os.PathLike):
        state = checkpoints.read(Path(state))
    if isinstance(state, Tensor):
        return state
    if not isinstance(state, Mapping):
        raise ArgumentTypeError(
            f"{what} must be a module, a state_dict, a flat vector or a path, got "
            f"{type(state).__name__}."
        )
    named = {n: t for n, t in state.items() if isinstance(n, str)}
    prefix = checkpoints.common_prefix(named, named_tensors(model))
    return {n.removeprefix(prefix): t for n, t in named.items() if n.startswith(prefix)}


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a module, those included that its state_dict leaves out.

    Args:
        module: Any module.

    Returns:
        The live tensors, under all of their names.
    """
    found: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    return found | dict(module.named_buffers(remove_duplicate=False))
