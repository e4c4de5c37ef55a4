"""Direction files of the code of Li et al., `loss-landscape`, in both directions.

Groups "xdirection" and "ydirection" hold one array per parameter of the model, "0", "1" and so on,
in the order of ``model.parameters()``; those of ``--dir_type states`` one per entry of the
state_dict.

Source: github.com/tomgoldstein/loss-landscape, net_plotter.py, h5_util.py.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import h5py
import numpy as np
import torch
from torch import Tensor, nn

from landscapex._directions import Directions, check_layout
from landscapex._warnings import warn
from landscapex.axes import _space, given
from landscapex.errors import (
    ArgumentError,
    ArgumentTypeError,
    CorruptFileError,
    ParameterMismatchError,
)
from landscapex.export.hdf5 import (
    MARK,
    SUFFIXES,
    Contents,
    Numbers,
    digest,
    put,
    put_about,
    read,
    write_bytes,
)
from landscapex.export.target import check_target, write
from landscapex.model.parameters import ParameterSpace

if TYPE_CHECKING:
    from landscapex.objective import Objective

_WHAT: Final = "a direction file of loss-landscape"
_GROUPS: Final = ("xdirection", "ydirection")


def directions_to_h5(
    directions: Directions, path: str | os.PathLike[str], objective: Objective | nn.Module
) -> Path:
    """Write one or two directions as a direction file of `loss-landscape`.

    Its code takes arrays by their number, so that all parameters of the model are written, those
    that do not move as zeros.

    Args:
        directions: One or two.
        path: Where to, ending in ``.h5`` or ``.hdf5``; an existing file of landscapex is replaced.
        objective: An `Objective` or a module: what the directions are for.

    Returns:
        The absolute path.

    Raises:
        ArgumentError: `path` ends otherwise, there are more than two directions, or the model has
            complex parameters.
        ArgumentTypeError: `directions` are something else.
        DirectionError: The directions are for other parameters.
        OutputError: The file cannot be written, or somebody else's file is there.
    """
    if not isinstance(directions, Directions):
        raise ArgumentTypeError(
            f"`directions` must be Directions, got {type(directions).__name__}."
        )
    target = check_target(path, SUFFIXES, (MARK,))
    if len(directions) > 2:
        raise ArgumentError(
            f"`directions` must be one or two for loss-landscape, got {len(directions)}."
        )
    space = _real_space(objective)
    check_layout(directions, space)

    def fill(file: h5py.File) -> None:
        arrays = {}
        for k, name in zip(range(len(directions)), _GROUPS, strict=False):
            group, tensors = file.create_group(name), directions[k]
            for i, (parameter, shape) in enumerate(_parameters(space)):
                there = tensors.get(parameter)
                values = np.zeros(shape, np.float32) if there is None else there.cpu().numpy()
                put(group, str(i), values)
                arrays[f"{name}/{i}"] = values
        put_about(file, {"sha256": digest(arrays)})

    return write(target, write_bytes(fill))


def directions_from_h5(
    path: str | os.PathLike[str], objective: Objective | nn.Module
) -> Directions:
    """Read the directions that `loss-landscape` drew, for a surface on the same plane.

    Args:
        path: What `plot_surface.py` or `directions_to_h5` wrote.
        objective: An `Objective` or a module: the model that the file was made for.

    Returns:
        One or two directions, as they are. In files of ``--dir_type states`` the buffers have
        directions too, which are left out; a warning and a note say so if they are not zero, and
        the same of parameters that were not chosen.

    Raises:
        ArgumentError: If the model has complex parameters.
        CorruptFileError: If the file is damaged, missing, or something else.
        ParameterMismatchError: If number or shapes of the arrays are not those of the model.
    """
    space = _real_space(objective)
    lists = read(path, _WHAT, _parse)
    rows, notes = [], []
    for name, arrays in lists.items():
        named = _named(arrays, space, f"{name} of {os.fspath(path)}")
        rows.append({n: t for n, t in named.items() if n in space.names})
        left = [n for n, t in named.items() if n not in space.names and t.count_nonzero()]
        notes.append(f"{', '.join(left[:3])} do not move, but do in the file" if left else "")
        if left:
            warn(f"{name}: {notes[-1]}.")
    made = given(objective, rows)
    axes = tuple(
        replace(axis, label=f"{name} of {Path(path).name}", note=note)
        for axis, name, note in zip(made.axes, lists, notes, strict=True)
    )
    return replace(made, axes=axes)


def _real_space(objective: Objective | nn.Module) -> ParameterSpace:
    space = _space(objective)
    if any(p.is_complex() for p in space.model.parameters()):
        raise ArgumentError("`objective` must have real parameters for loss-landscape.")
    return space


def _parameters(space: ParameterSpace) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes in the order of ``model.parameters()``."""
    return [(name, tuple(p.shape)) for name, p in space.model.named_parameters()]


def _parse(contents: Contents) -> dict[str, list[Tensor]]:
    """The arrays of each direction, in the order of their numbers."""
    about, lists = contents.about, {}
    if about and digest(contents.arrays) != about["sha256"]:
        raise CorruptFileError("its numbers do not match their SHA-256")
    for name in _GROUPS:
        arrays = contents.group(name)
        if set(arrays) != {str(k) for k in range(len(arrays))}:
            raise CorruptFileError(f"{name!r} must hold the arrays 0, 1, ..., got {[*arrays][:5]}")
        if arrays:
            lists[name] = [_tensor(arrays[str(k)]) for k in range(len(arrays))]
    if "xdirection" not in lists:
        raise CorruptFileError("it must hold the group 'xdirection'")
    return lists


def _tensor(array: Numbers) -> Tensor:
    """A copy; numbers of another machine may have their bytes in another order."""
    return torch.from_numpy(np.array(array, array.dtype.newbyteorder("=")))


def _named(arrays: Sequence[Tensor], space: ParameterSpace, what: str) -> dict[str, Tensor]:
    """Arrays under the names of the parameters, or of the entries of the state_dict."""
    shapes = [tuple(array.shape) for array in arrays]
    states = [(name, tuple(t.shape)) for name, t in space.model.state_dict().items()]
    for layout in (_parameters(space), states):
        if shapes == [shape for _, shape in layout]:
            names = [name for name, _ in layout]
            return dict(zip(names, arrays, strict=True))
    raise ParameterMismatchError(
        f"{what} must have one array per parameter of the model, got {_difference(shapes, space)}."
    )


def _difference(shapes: list[tuple[int, ...]], space: ParameterSpace) -> str:
    ours = _parameters(space)
    if len(shapes) != len(ours):
        return f"{len(shapes)} for {len(ours)}"
    name, shape, got = next((n, s, t) for (n, s), t in zip(ours, shapes, strict=True) if s != t)
    return f"shape {got} instead of {shape} for {name}"
