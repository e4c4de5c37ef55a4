"""What tells two losses or metrics apart in another process: classes, constants and source text."""

from __future__ import annotations

import functools
import hashlib
import inspect
import math
import textwrap
import types
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from landscapex._batch import digest

JSON: TypeAlias = Any  # None, bool, int, float, str, and lists and dicts of these

_MAX_DEPTH = 3  # a closure of a closure of a function; deeper ones count by their type


def qualified_name(thing: Any) -> str:
    """Return ``module.qualname`` of a class or function.

    Args:
        thing: A class or function.

    Returns:
        The dotted name.
    """
    return f"{thing.__module__}.{thing.__qualname__}"


def of_constant(value: Any, depth: int = 0) -> JSON:
    """Describe a constant so that another value has another description, where that is possible.

    Args:
        value: Anything; tensors and arrays are hashed.
        depth: How many callables this value is nested in.

    Returns:
        The value itself if JSON holds it, a hash, or the name of its type.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, nn.Parameter):  # moves with the model, whose own hash covers it
        return f"Parameter {tuple(value.shape)}"
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        return {"sha256": digest(value)}
    if isinstance(value, (torch.dtype, torch.device, complex, bytes)):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [of_constant(item, depth) for item in value]
    if isinstance(value, Mapping):
        return {str(key): of_constant(item, depth) for key, item in value.items()}
    if callable(value) and not isinstance(value, (nn.Module, type)) and depth < _MAX_DEPTH:
        return of_callable(value, depth + 1)
    return qualified_name(value if isinstance(value, type) else type(value))


def of_callable(function: Callable[..., Any], depth: int = 0) -> JSON:
    """Describe a callable by its source text and the constants it can see.

    Args:
        function: A function, method, partial or object with ``__call__``.
        depth: How many callables this one is nested in.

    Returns:
        Its source, or a hash of its bytecode where there is no source; default arguments,
        closure and global constants. Functions that it calls are not followed.
    """
    if isinstance(function, functools.partial):
        return {
            "partial": of_callable(function.func, depth),
            "args": of_constant(function.args, depth),
            "keywords": of_constant(function.keywords, depth),
        }
    if isinstance(function, types.MethodType):
        owner = function.__self__
        kind = owner if isinstance(owner, type) else type(owner)
        return {"method": of_callable(function.__func__, depth), "of": qualified_name(kind)}
    if isinstance(function, types.FunctionType):
        return {"source": _source(function, function.__code__), **_constants(function, depth)}
    if isinstance(function, (types.BuiltinFunctionType, type)):
        return {"name": qualified_name(function)}
    kind = type(function)
    described = {"class": qualified_name(kind), "attributes": _attributes(function, depth)}
    call = kind.__call__
    if isinstance(call, types.FunctionType):
        described["source"] = _source(kind, call.__code__)
    return described


def of_module(module: nn.Module, shared: Collection[nn.Module]) -> JSON:
    """Describe a criterion: classes, constants and tensors of it and of its submodules.

    Args:
        module: The criterion.
        shared: Modules of the model, left out because the hash of the model covers them.

    Returns:
        Its description.
    """
    described = {}
    for path, part in module.named_modules():
        if any(part is other for other in shared):
            continue
        kind = type(part)
        tensors = {
            **dict(part.named_parameters(recurse=False)),
            **dict(part.named_buffers("", False)),
        }
        described[path] = {
            "class": qualified_name(kind),
            "constants": _attributes(part, 0),
            "tensors": {name: digest(tensor) for name, tensor in tensors.items()},
        }
        if not kind.__module__.startswith("torch.") and isinstance(
            kind.forward, types.FunctionType
        ):
            described[path]["source"] = _source(kind, kind.forward.__code__)
    return described


def _attributes(thing: Any, depth: int) -> JSON:
    public = {key: value for key, value in getattr(thing, "__dict__", {}).items() if key[0] != "_"}
    public.pop("training", None)
    return of_constant(public, depth + 1)


def _constants(function: types.FunctionType, depth: int) -> dict[str, JSON]:
    """Default arguments, closure, and those globals that are plain constants."""
    code = function.__code__
    cells = {}
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            cells[name] = cell.cell_contents
        except ValueError:  # a name that is bound later
            continue
    names = (name for name in code.co_names if name in function.__globals__)
    visible = {name: function.__globals__[name] for name in names}
    simple = (bool, int, float, str, tuple, Tensor, np.ndarray)
    return {
        "defaults": of_constant([function.__defaults__, function.__kwdefaults__], depth),
        "closure": of_constant(cells, depth),
        "globals": of_constant({k: v for k, v in visible.items() if isinstance(v, simple)}, depth),
    }


def _source(thing: Any, code: types.CodeType) -> str:
    bytecode = f"bytecode {_bytecode(code)}"
    try:
        text = textwrap.dedent(inspect.getsource(thing))
    except (OSError, TypeError):  # typed into an interpreter, or made by exec
        return bytecode
    # Two lambdas in one statement have the same text.
    return f"{text}{bytecode}" if text.count("lambda") > 1 else text


def _bytecode(code: types.CodeType) -> str:
    constants = [
        _bytecode(item) if isinstance(item, types.CodeType) else repr(item)
        for item in code.co_consts
    ]
    text = f"{code.co_code.hex()} {constants} {code.co_names} {code.co_varnames}"
    return hashlib.sha256(text.encode()).hexdigest()
