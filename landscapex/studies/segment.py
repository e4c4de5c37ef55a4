"""The straight line between two states of a model: parameters, and what follows them.

A state is what training changes: parameters and buffers. Between two states, floating-point
tensors are interpolated, and whatever cannot be interpolated is copied from the nearer end.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from landscapex.errors import ParameterMismatchError
from landscapex.model.parameters import ParameterSpace

_VARIANCE = "running_var"  # what batch norm calls it: it has no square root below 0
_COUNTER = "num_batches_tracked"  # read in training mode only


@dataclass(frozen=True, eq=False)
class Companion:
    """One tensor that is not among the chosen parameters and differs at the ends.

    Attributes:
        name: In the model.
        target: The live tensor.
        start: Its value at coordinate 0.
        end: Its value at coordinate 1, of the same dtype.
    """

    name: str
    target: Tensor
    start: Tensor
    end: Tensor

    @property
    def interpolated(self) -> bool:
        """Whether its numbers lie on a line; counters and flags jump."""
        return self.start.is_floating_point() or self.start.is_complex()

    def at(self, alpha: float) -> Tensor:
        """The value at a coordinate: exactly that of an end at 0 and at 1.

        Args:
            alpha: Beyond [0, 1] floating-point tensors are extrapolated; variances stop at 0.

        Returns:
            A tensor, perhaps of a wider dtype.
        """
        if not self.interpolated:
            return self.end if alpha > 0.5 else self.start
        if alpha in (0.0, 1.0):
            return self.end if alpha else self.start
        wide = torch.complex128 if self.start.is_complex() else torch.float64
        start, end = self.start.to(wide), self.end.to(wide)
        # equal entries stay: an infinite one in a mask would become NaN
        mixed = torch.where(start == end, start, (1 - alpha) * start + alpha * end)
        if self.name.rpartition(".")[2] == _VARIANCE:
            mixed = mixed.clamp(min=0.0)
        return mixed


class Companions:
    """What follows the line from the state of a model, as it stands, to another.

    Args:
        space: The chosen parameters, which move on their own.
        end: Tensors of the other end by name; names that the model does not have do not matter.
        exempt: Names that stay as they are at the start.

    Raises:
        ParameterMismatchError: If a tensor has another shape.
    """

    def __init__(
        self, space: ParameterSpace, end: Mapping[str, Tensor], exempt: Collection[str] = ()
    ) -> None:
        self._all: list[Companion] = []
        for names, target in _others(space, exempt).items():
            given = next((n for n in names if n in end), None)
            if given is None:
                continue
            if end[given].shape != target.shape:
                raise ParameterMismatchError(
                    f"`model_b` must fit the model, got shape {tuple(end[given].shape)} instead "
                    f"of {tuple(target.shape)} for {given}."
                )
            start = target.detach().clone()
            there = end[given].detach().to(start)
            if not torch.equal(start, there):
                self._all.append(Companion(names[0], target, start, there.clone()))

    def __len__(self) -> int:
        return len(self._all)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What they are at the other end, by name."""
        return {c.name: c.end for c in self._all}

    @property
    def targets(self) -> list[Tensor]:
        """The live tensors."""
        return [c.target.detach() for c in self._all]

    def follow(self, coordinates: Sequence[float]) -> None:
        """Write the values at a point.

        Args:
            coordinates: Of the point, the one along the line last; none for the start.
        """
        alpha = float(coordinates[-1]) if len(coordinates) else 0.0
        with torch.no_grad():
            for c in self._all:
                c.target.detach().copy_(c.at(alpha))

    def describe(self) -> str:
        """What becomes of them, in words; empty if there are none."""
        moving = [c.name for c in self._all if c.interpolated]
        jumping = [c.name for c in self._all if not c.interpolated]
        parts = []
        if moving:
            parts.append(f"{_named(moving)} interpolated")
        if any(name.rpartition(".")[2] == _VARIANCE for name in moving):
            parts[-1] += " (variances not below 0)"
        if jumping:
            parts.append(f"{_named(jumping)} copied from the nearer end")
        return "; ".join(parts)


def absent(
    space: ParameterSpace, state: Mapping[str, Tensor], exempt: Collection[str] = ()
) -> list[str]:
    """What a state leaves open.

    Args:
        space: The chosen parameters.
        state: Tensors by name.
        exempt: Names that do not matter.

    Returns:
        Names of buffers, and of parameters outside the choice, that the state does not have.
    """
    open_ones = [names for names in _others(space, exempt) if not any(n in state for n in names)]
    return [names[0] for names in open_ones if names[0].rpartition(".")[2] != _COUNTER]


def _others(space: ParameterSpace, exempt: Collection[str]) -> dict[tuple[str, ...], Tensor]:
    """Buffers and parameters outside the choice, under all of their names."""
    found: dict[tuple[str, ...], Tensor] = {
        names: p for names, p in space.everything.items() if names[0] not in space.names
    }
    by_identity: dict[int, tuple[list[str], Tensor]] = {}
    for name, b in space.model.named_buffers(remove_duplicate=False):
        by_identity.setdefault(id(b), ([], b))[0].append(name)
    found |= {tuple(names): b for names, b in by_identity.values()}
    return {names: t for names, t in found.items() if set(names).isdisjoint(exempt)}


def _named(names: Sequence[str]) -> str:
    """A few names, and how many there are."""
    shown = ", ".join(names[:2]) + (", ..." if len(names) > 2 else "")
    return f"{len(names)} further {'tensor' if len(names) == 1 else 'tensors'} ({shown})"
