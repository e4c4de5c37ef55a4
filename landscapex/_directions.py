"""Directions as vectors over the flat parameters, with what is known of each."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from landscapex.errors import DirectionError
from landscapex.model.drawn import Drawn
from landscapex.model.parameters import ParameterSpace, Steps
from landscapex.storage import tensor_file

_FORMAT = "landscapex directions 1"
PARALLEL = 0.999  # |cos| above this: the axes of a plane would coincide
_BLOCK = 1 << 22  # entries turned into float64 at once


@dataclass(frozen=True)
class Axis:
    """What one direction is.

    Attributes:
        label: In words, e.g. "random direction 1".
        source: "random", "between", "gradient", "given", "hessian".
        normalize: How it was scaled to the centre: "filter", "layer", "model", "weight" or None.
        ignore: What happened to biases and norm parameters: "bias_bn" (zero), "copy" or None.
        seed: Of a random draw.
        zero_filters: Filters of the centre that are all zero: the direction is zero there.
        note: Anything else a reader of the result should know.
        reach: The coordinates drawn by default run from minus to plus this; None for those that
            the source has.
    """

    label: str
    source: str
    normalize: str | None = None
    ignore: str | None = None
    seed: int | None = None
    zero_filters: int = 0
    note: str = ""
    reach: float | None = None

    @property
    def default_span(self) -> tuple[float, float]:
        """The coordinates drawn when nothing else is asked for."""
        if self.reach is not None:
            return (-self.reach, self.reach)
        return (-0.5, 1.5) if self.source == "between" else (-1.0, 1.0)

    def unit(self, norm: float) -> str:
        """What one step of the coordinate is, in words, for a direction of this length."""
        words = {
            "filter": "each filter moves by its own length",
            "layer": "each layer moves by its own length",
            "model": "the weights move by their own length",
            "weight": "each weight moves by about itself",
        }
        if self.source == "between":
            return f"1 = at the other model, ‖d‖ = {norm:.4g}"
        return f"1 = {words.get(self.normalize or '', 'the direction itself')}, ‖d‖ = {norm:.4g}"


@dataclass(frozen=True, eq=False)
class Directions:
    """``K`` directions over the ``P`` chosen parameters of a model.

    Attributes:
        vectors: ``(K, P)`` float32, or float64 for models with float64 parameters.
        axes: What each of them is.
        layout: (name, shape) of every parameter, in the order of the flat vector; a complex
            parameter has a last axis (real, imaginary).
    """

    vectors: Tensor
    axes: tuple[Axis, ...]
    layout: tuple[tuple[str, tuple[int, ...]], ...]

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or len(self.axes) != len(self.vectors):
            raise DirectionError(
                f"`vectors` must have shape (K, P) with K = {len(self.axes)} axes, got "
                f"{tuple(self.vectors.shape)}."
            )

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, k: int) -> dict[str, Tensor]:
        """Direction ``k`` as named tensors (views)."""
        sizes = [math.prod(shape) for _, shape in self.layout]
        parts = self.vectors[k].split(sizes)
        return {n: t.view(s) for (n, s), t in zip(self.layout, parts, strict=True)}

    def __repr__(self) -> str:
        labels = ", ".join(a.label for a in self.axes)
        return f"Directions(K={len(self)}, P={self.vectors.shape[1]}: {labels})"

    @property
    def steps(self) -> Steps:
        """What a model moves along."""
        return self.vectors

    def norm(self) -> Tensor:
        """Lengths ``(K,)``, float64 on the CPU."""
        return gram(self.vectors).diagonal().sqrt()

    def cosine(self) -> Tensor:
        """Cosines between the directions ``(K, K)``, float64 on the CPU; 0 with a zero one."""
        return _cosine(gram(self.vectors))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a safetensors file with keys ``"{k}/{name}"`` and the axes as a JSON header.

        Args:
            path: The file; replaced at once when it is complete.

        Returns:
            The absolute path.

        Raises:
            OutputError: If it cannot be written.
        """
        tensors = {f"{k}/{n}": t for k in range(len(self)) for n, t in self[k].items()}
        texts = {
            "axes": json.dumps([a.__dict__ for a in self.axes]),
            "layout": json.dumps(self.layout),
        }
        return tensor_file.save(path, _FORMAT, tensors, texts)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Directions:
        """Read what `save` wrote.

        Args:
            path: The file.

        Returns:
            The directions, on the CPU.

        Raises:
            CorruptFileError: If the file is damaged or not one of ours.
        """
        return tensor_file.load(path, _FORMAT, _joined)

    def fingerprint(self) -> str:
        """SHA-256 of the vectors and their layout, in hexadecimal."""
        digest = hashlib.sha256(repr((self.layout, self.vectors.dtype)).encode())
        for row in self.vectors:
            _digest(row, digest)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class DrawnDirections(Directions):
    """Random directions so large that they are not held: `vectors` has a shape and no numbers.

    Attributes:
        inner: Inner products, ``(K, K)`` float64.
        digest: SHA-256 of their numbers.
    """

    _drawn: Drawn
    inner: Tensor
    digest: str

    @classmethod
    def of(cls, drawn: Drawn) -> DrawnDirections:
        """Draw them once, for what is to be known of them.

        Args:
            drawn: What draws them.

        Returns:
            The directions.
        """
        space, count = drawn.space, drawn.count
        digest = hashlib.sha256(f"{drawn.rule} {drawn.ignore}".encode())
        inner = torch.zeros((count, count), dtype=torch.float64, device="cpu")
        zero = 0
        for i in range(len(space.entries)):
            block, lengths = drawn.scaled(i)
            zero += int((lengths == 0).sum())
            inner += gram(block)
            for row in block:
                _digest(row, digest)
        axes = tuple(
            Axis(
                f"random direction {k + 1}", "random", drawn.rule, drawn.ignore, drawn.seed, zero,
                note="drawn anew for every point",
            )
            for k in range(count)
        )  # fmt: skip
        shape = torch.empty((count, space.size), dtype=space.dtype, device="meta")
        return cls(shape, axes, layout_of(space), drawn, inner, digest.hexdigest())

    @property
    def steps(self) -> Steps:
        """What draws them."""
        return self._drawn

    def __getitem__(self, k: int) -> dict[str, Tensor]:
        """Direction ``k`` as named tensors: one direction, held."""
        return {n: self._drawn.of(i)[k].view(s) for i, (n, s) in enumerate(self.layout)}

    def norm(self) -> Tensor:
        """Lengths ``(K,)``, float64 on the CPU."""
        return self.inner.diagonal().sqrt()

    def cosine(self) -> Tensor:
        """Cosines between the directions ``(K, K)``, float64 on the CPU; 0 with a zero one."""
        return _cosine(self.inner)

    def fingerprint(self) -> str:
        """SHA-256 of the numbers, tensor by tensor, in hexadecimal."""
        return self.digest


def _cosine(inner: Tensor) -> Tensor:
    length = inner.diagonal().sqrt()
    outer = length[:, None] * length
    return torch.where(outer > 0, inner / outer.where(outer > 0, 1.0), 0.0)


def _digest(row: Tensor, digest: hashlib._Hash) -> None:
    for part in row.split(_BLOCK):
        digest.update(part.cpu().numpy().tobytes())


def _joined(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> Directions:
    """Directions from what `Directions.save` wrote."""
    axes = tuple(Axis(**a) for a in json.loads(texts["axes"]))
    layout = tuple((n, tuple(s)) for n, s in json.loads(texts["layout"]))
    rows = [
        torch.cat([tensors[f"{k}/{n}"].reshape(-1) for n, _ in layout]) for k in range(len(axes))
    ]
    return Directions(torch.stack(rows), axes, layout)


def check_layout(directions: Directions, space: ParameterSpace) -> None:
    """Refuse directions that were made for other parameters.

    Raises:
        DirectionError: If names, order or shapes differ.
    """
    ours, theirs = layout_of(space), directions.layout
    if ours == theirs and directions.vectors.shape[1] == space.size:
        return
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=False) if a != b]
    detail = f"{pairs[0][1]} instead of {pairs[0][0]}" if pairs else f"{len(theirs)} parameters"
    raise DirectionError(
        f"`directions` must be over the objective's {len(ours)} chosen parameters, got {detail}."
    )


def check_usable(directions: Directions) -> None:
    """Refuse directions that cannot span an axis.

    Raises:
        DirectionError: If one is zero or not finite, or two are parallel (|cos| > 0.999).
    """
    norms = directions.norm().tolist()
    for axis, norm in zip(directions.axes, norms, strict=True):
        if not math.isfinite(norm):
            raise DirectionError(f"{axis.label} must be finite, got a length of {norm}.")
        if norm == 0:
            raise DirectionError(f"{axis.label} must not be zero everywhere, got length 0.")
    cosines = directions.cosine()
    for i in range(len(directions)):
        for j in range(i):
            if abs(c := float(cosines[i, j])) > PARALLEL:
                raise DirectionError(
                    f"{directions.axes[j].label} and {directions.axes[i].label} must not be "
                    f"parallel (|cosine| <= {PARALLEL}), got a cosine of {c:.6f}."
                )


def gram(vectors: Tensor, others: Tensor | None = None) -> Tensor:
    """Inner products of the rows with each other ``(K, K)``, or with other rows ``(K, L)``.

    Args:
        vectors: ``(K, P)``.
        others: ``(L, P)``.

    Returns:
        Summed in float64, on the CPU.
    """
    columns = len(vectors if others is None else others)
    total = torch.zeros((len(vectors), columns), dtype=torch.float64, device="cpu")
    theirs = None if others is None else others.split(_BLOCK, dim=1)
    for i, part in enumerate(vectors.split(_BLOCK, dim=1)):
        wide = part.double()
        total += (wide @ (wide if theirs is None else theirs[i].double()).T).cpu()
    return total


def layout_of(space: ParameterSpace) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """(name, real shape) of every parameter, in flat order."""
    return tuple((e.name, e.real_shape) for e in space.entries)
