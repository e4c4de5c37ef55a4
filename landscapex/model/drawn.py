"""Random directions that nobody holds: drawn tensor by tensor, for very large models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from landscapex import _ops
from landscapex._draws import gaussian_
from landscapex.model.entries import Entry
from landscapex.model.parameters import Ignore, Normalize, ParameterSpace


@dataclass(frozen=True, eq=False)
class Drawn:
    """``K`` random directions ``(K, P)`` that exist only in pieces, as long as they are needed.

    The numbers are those of `axes.random`: each tensor has a stream of its own, and filters are
    scaled within their tensor.

    Attributes:
        space: The parameters.
        count: ``K``.
        seed: Of the draw.
        rule: As ``normalize`` of `axes.random`; not ``"model"``, which needs all tensors at once.
        ignore: As in `axes.random`.
        center: Flat point ``(P,)`` they are scaled to.
    """

    space: ParameterSpace
    count: int
    seed: int
    rule: Normalize | None
    ignore: Ignore | None
    center: Tensor

    def of(self, i: int) -> Tensor:
        """The directions within parameter ``i``, ``(K, n)``."""
        return self.scaled(i)[0]

    def scaled(self, i: int) -> tuple[Tensor, Tensor]:
        """The directions within parameter ``i``, and the lengths of the model's filters there.

        Args:
            i: Number of the parameter.

        Returns:
            ``(K, n)``, and ``(F,)`` float64, empty if nothing is scaled.
        """
        e = self.space.entries[i]
        block = self.center.new_zeros((self.count, e.size))
        for k in range(self.count):
            draw_entry(block[k], e, self.seed, k, self.ignore)
        center = self.center[e.offset : e.end]
        none = block.new_zeros(0, dtype=torch.float64)
        if e.is_bias_bn and self.ignore is not None:
            if self.ignore == "copy":
                block[:] = center
            return block, none
        if self.rule is None or not e.size:
            return block, none
        runs, groups = self.space.normalization_table(
            self.rule, skip_bias_bn=self.ignore is not None, entries=[e]
        )
        runs[:, 0] -= e.offset
        norms = block.new_zeros((self.count + 1, len(groups) - 1), dtype=torch.float64)
        elementwise = self.rule == "weight"
        _ops.filter_normalize_(block, center, runs, groups, norms, elementwise=elementwise)
        return block, norms[-1]


def draw_entry(out: Tensor, entry: Entry, seed: int, k: int, ignore: Ignore | None) -> None:
    """Draw direction ``k`` within one parameter, before it is scaled.

    Args:
        out: ``(n,)``, zero.
        entry: The parameter.
        seed: Of the draw.
        k: Number of the direction.
        ignore: As in `axes.random`.
    """
    if not (ignore == "bias_bn" and entry.is_bias_bn):
        gaussian_(out, f"{seed}/direction/{k}/{entry.name}")
