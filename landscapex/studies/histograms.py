"""How large the weights are: histograms on shared bins, and norms over a training run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from landscapex._arrays import Array, read_only
from landscapex.errors import ArgumentError
from landscapex.model.entries import Entry
from landscapex.model.parameters import ParameterSpace
from landscapex.objective import Objective
from landscapex.trajectories.principal import Rows
from landscapex.trajectories.runs import open_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class WeightHistograms:
    """Histograms of the weights of every checkpoint, and norms; arrays are read-only.

    Weights are the parameters that have filters (of linear layers, convolutions and their like);
    biases and the parameters of norms are not among them.

    Attributes:
        steps: ``(T,)`` int64.
        edges: ``(B + 1,)``: the bins, shared by all checkpoints.
        counts: ``(T, B)`` int64: weights per bin.
        outside: ``(T,)`` int64: weights that are not finite, or lie beyond given edges.
        norms: ``(T,)``: the length of all chosen parameters, biases included.
        weight_norms: ``(T,)``: the length of the weights.
        layer_norms: ``(T, L)``: the length of each tensor of weights.
        layers: Their names.
        labels: What pictures call the checkpoints.
    """

    steps: NDArray[np.int64]
    edges: Array
    counts: NDArray[np.int64]
    outside: NDArray[np.int64]
    norms: Array
    weight_norms: Array
    layer_norms: Array
    layers: tuple[str, ...]
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.counts)

    def __repr__(self) -> str:
        first, last = self.weight_norms[0], self.weight_norms[-1]
        return (
            f"WeightHistograms({len(self)} checkpoints, {int(self.counts[0].sum()):,} weights, "
            f"{len(self.edges) - 1} bins from {self.edges[0]:.4g} to {self.edges[-1]:.4g}, "
            f"norm {first:.4g} to {last:.4g})"
        )

    @property
    def density(self) -> Array:
        """Histograms whose integral is the part of the weights inside the bins, ``(T, B)``."""
        total = self.counts.sum(axis=1) + self.outside
        return self.counts / (total[:, None] * np.diff(self.edges))

    def plot(self, **options: Any) -> Figure:
        """Draw the histograms, and the norms over the steps.

        Args:
            **options: Those of `landscapex.plot.histograms`.

        Returns:
            A figure, which notebooks display.
        """
        from landscapex import plot

        return plot.histograms(self, **options)


def weight_histograms(
    checkpoints: Any,
    model: nn.Module | Objective,
    *,
    bins: int | Sequence[float] = 100,
    labels: Sequence[str] | None = None,
) -> WeightHistograms:
    """Count the weights of every checkpoint on the same bins, and measure their norms.

    With weight decay, smaller batches take more steps and shrink the weights more; the same step
    along an unnormalised direction then moves the network further, and its minimum looks sharper.
    Checkpoints are read one at a time: once for given edges, else twice.

    Args:
        checkpoints: A run: see `landscapex.trajectory`; or some models to compare.
        model: Says which parameters there are: a module, or an `Objective`.
        bins: How many between the smallest and the largest weight of all checkpoints, or their
            edges.
        labels: One name per checkpoint; None for their steps or file names.

    Returns:
        The histograms.

    Raises:
        ArgumentError: If ``bins`` or ``labels`` cannot be used, or there are no weights.

    References:
        Li, Xu, Taylor, Studer, Goldstein, "Visualizing the Loss Landscape of Neural Nets",
        NeurIPS 2018, figures 2 and 10.

    Example:
        >>> import torch, landscapex as lx
        >>> models = [torch.nn.Linear(20, 5) for _ in range(2)]
        >>> weight_histograms(models, models[0], bins=10).counts.sum(axis=1)
        array([100, 100])
    """
    space = model.space if isinstance(model, Objective) else ParameterSpace(model)
    layers = [e for e in space.entries if not e.is_bias_bn]
    if not layers:
        raise ArgumentError("`model` must have weights of two or more dimensions, got none.")
    run = open_run(checkpoints)
    names = [c.name for c in run] if labels is None else [str(label) for label in labels]
    if isinstance(labels, str) or len(names) != len(run):
        raise ArgumentError(f"`labels` must be one name per checkpoint ({len(run)}), got {labels}.")

    rows = Rows(run, space, kept=0)

    def vectors() -> Iterator[Tensor]:
        return (rows.read(t)[0].double() for t in range(len(run)))

    edges = _edges(bins, vectors, layers)
    counts, outside, norms, layer_norms = [], [], [], []
    for vector in vectors():
        weights = _weights(vector, layers).numpy()
        inside = np.histogram(weights[np.isfinite(weights)], edges)[0]
        counts.append(inside)
        outside.append(weights.size - int(inside.sum()))
        norms.append(float(torch.linalg.vector_norm(vector)))
        parts = [torch.linalg.vector_norm(vector[e.offset : e.end]) for e in layers]
        layer_norms.append([float(part) for part in parts])
    each = np.array(layer_norms)
    return WeightHistograms(
        read_only(run.steps),
        read_only(edges),
        read_only(np.array(counts, dtype=np.int64)),
        read_only(np.array(outside, dtype=np.int64)),
        read_only(np.array(norms)),
        read_only(np.sqrt((each**2).sum(axis=1))),
        read_only(each),
        tuple(e.name for e in layers),
        tuple(names),
    )


def _weights(vector: Tensor, layers: Sequence[Entry]) -> Tensor:
    return torch.cat([vector[e.offset : e.end] for e in layers])


def _edges(bins: int | Sequence[float], vectors: Any, layers: Sequence[Entry]) -> Array:
    """The given edges, or those between the extremes of all checkpoints."""
    if not isinstance(bins, int):
        edges = np.array(bins, dtype=np.float64)
        good = edges.ndim == 1 and edges.size > 1 and np.isfinite(edges).all()
        if not good or (np.diff(edges) <= 0).any():
            raise ArgumentError(f"`bins` must be finite increasing edges, got {bins}.")
        return edges
    if isinstance(bins, bool) or bins < 1:
        raise ArgumentError(f"`bins` must be at least 1, got {bins}.")
    low, high = np.inf, -np.inf
    for vector in vectors():
        weights = _weights(vector, layers)
        weights = weights[torch.isfinite(weights)]
        if len(weights):
            low, high = min(low, float(weights.min())), max(high, float(weights.max()))
    if not low <= high:
        raise ArgumentError("the weights must be finite in some checkpoint, got none.")
    return np.histogram_bin_edges(np.array([low, high]), bins)
