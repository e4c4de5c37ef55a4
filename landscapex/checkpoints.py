"""Checkpoints: the state_dict of a model in a file, read without running anything that is in it.

Safetensors and ``torch.save`` files are read. A file that would need Python code of its own to be
executed is refused, and there is no switch to read it all the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from landscapex.errors import ArgumentError, CorruptFileError, ParameterMismatchError

_SAFETENSORS = (".safetensors",)
_TORCH = (".pt", ".pth", ".bin", ".ckpt")
# Where training scripts put the state_dict when they save more than that.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
# What DataParallel, DDP and torch.compile put before every name.
_PREFIXES = ("module.", "_orig_mod.")
_LISTED = 10


def read(path: str | Path) -> dict[str, Tensor]:
    """Read a state_dict.

    Args:
        path: A ``.safetensors`` file, or a ``.pt``, ``.pth``, ``.bin`` or ``.ckpt`` file of
            ``torch.save`` that holds a state_dict, alone or under ``"state_dict"``,
            ``"model_state_dict"`` or ``"model"``.

    Returns:
        Names and tensors, on the CPU.

    Raises:
        ArgumentError: If there is no such file, or its suffix is none of those above.
        CorruptFileError: If the file is damaged, holds no state_dict, or asks for code to be run.
    """
    path = Path(path)
    if not path.is_file():
        raise ArgumentError(f"`checkpoint` must be a file, got {str(path)!r}.")
    if path.suffix in _SAFETENSORS:
        return _read_safetensors(path)
    if path.suffix in _TORCH:
        return _read_torch(path)
    suffixes = ", ".join(_SAFETENSORS + _TORCH)
    raise ArgumentError(f"`checkpoint` must end in one of {suffixes}, got {str(path)!r}.")


def load(model: nn.Module, path: str | Path) -> None:
    """Read a state_dict and copy it into a model.

    Args:
        model: Written to only when every name, shape and dtype fits.
        path: As in `read`. A prefix ``module.`` or ``_orig_mod.`` on every name is dropped.

    Raises:
        ParameterMismatchError: If names are missing or unexpected, or shapes or dtypes differ.
            The message lists up to ten of them.

    Example:
        >>> import safetensors.torch, tempfile, torch
        >>> model = torch.nn.Linear(2, 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = folder + "/model.safetensors"
        ...     safetensors.torch.save_file({"weight": torch.ones(1, 3)}, file)
        ...     load(model, file)
        Traceback (most recent call last):
        landscapex.errors.ParameterMismatchError: The checkpoint does not fit the model:
          weight: shape (1, 2) in the model, (1, 3) in the checkpoint
          bias: missing in the checkpoint
    """
    expected = model.state_dict(keep_vars=True)
    state = _without_prefixes(read(path), expected)
    problems = _mismatches(expected, state)
    if problems:
        listed = problems[:_LISTED]
        if len(problems) > _LISTED:
            listed.append(f"and {len(problems) - _LISTED} more")
        raise ParameterMismatchError(
            "The checkpoint does not fit the model:\n  " + "\n  ".join(listed)
        )
    model.load_state_dict(state, strict=False)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CorruptFileError(f"{path} is not a readable safetensors file: {error}.") from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader raises nearly anything on a damaged file
        raise CorruptFileError(_refusal(path, error)) from error
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content or not _all_tensors(content):
        raise CorruptFileError(
            f"{path} must hold a state_dict (names and tensors), got {_describe(content)}."
        )
    return dict(content)


def _refusal(path: Path, error: Exception) -> str:
    text = str(error)
    if "weights_only" not in text and "Weights only" not in text:
        return f"{path} is not a readable torch.save file: {type(error).__name__}."
    asked = re.search(r"GLOBAL (\S+)", text)
    what = f" ({asked[1]})" if asked else ""
    return (
        f"{path} was refused: reading it would run code that is stored in it{what}. Save the "
        "weights alone: torch.save(model.state_dict(), path)."
    )


def _all_tensors(content: Mapping[Any, Any]) -> bool:
    return all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())


def _describe(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a mapping with keys {list(map(str, content))[:_LISTED]}"
    return f"a {type(content).__name__}"


def _without_prefixes(
    state: dict[str, Tensor], expected: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        wrapped = state and all(name.startswith(prefix) for name in state)
        if wrapped and not any(name.startswith(prefix) for name in expected):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _mismatches(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """One line for every name that does not fit, in the order of the model."""
    # Safetensors keeps one name of tied parameters: what arrives under another name is there.
    arrived = {id(expected[name]) for name in state if name in expected}
    problems = []
    for name, tensor in expected.items():
        if not isinstance(tensor, Tensor):
            continue  # extra state: the module's own business
        if name in state:
            problems += _difference(name, tensor, state[name])
        elif id(tensor) not in arrived and not name.endswith("num_batches_tracked"):
            problems.append(f"{name}: missing in the checkpoint")
    problems += [f"{name}: not in the model" for name in state if name not in expected]
    return problems


def _difference(name: str, model: Tensor, file: Tensor) -> list[str]:
    if model.shape != file.shape:
        shapes = f"shape {tuple(model.shape)} in the model, {tuple(file.shape)} in the checkpoint"
        return [f"{name}: {shapes}"]
    if torch.promote_types(model.dtype, file.dtype) != model.dtype:  # copying would lose digits
        return [f"{name}: {model.dtype} in the model, {file.dtype} in the checkpoint"]
    return []
