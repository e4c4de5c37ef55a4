"""One parameter in the flat vector: where it lies, and how its filters lie in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


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


def filter_layout(name: str, p: Tensor, owners: Mapping[str, nn.Module]) -> tuple[int, int]:
    """How the filters of a parameter lie in it.

    Args:
        name: Its name.
        p: The parameter.
        owners: The modules of the model by path.

    Returns:
        Groups of a transposed convolution or 0; tensors stacked along axis 0.
    """
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
