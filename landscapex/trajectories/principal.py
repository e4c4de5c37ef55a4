"""Principal components of a training run, from the Gram matrix of its checkpoints.

The ``T`` checkpoints are the rows of a matrix ``(T, P)`` that is read in blocks of columns, so that
the matrix need not fit into memory; all sums are in float64. Nothing is random: the components are
those of the singular value decomposition.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from landscapex.errors import ParameterMismatchError
from landscapex.model.entries import Entry
from landscapex.model.parameters import ParameterSpace
from landscapex.storage.checkpoints import common_prefix
from landscapex.trajectories.runs import Run, State

_KEPT = 1 << 29  # bytes of flat checkpoints at once in memory; more are read again per block
_BLOCK = 1 << 23  # bytes of one block of columns in float64: about what a cache holds
_BLOCK_READ = 1 << 27  # the same where every block opens every file again


class Rows:
    """Checkpoints as rows over the chosen parameters of a model.

    Numbers are those of the dtype of the parameters, however the checkpoints store them, and
    wherever they are kept.

    Args:
        run: The checkpoints.
        space: The parameters; names, ties and order.
        kept: Bytes of flat checkpoints that may be in memory while they are in use.
        block: Bytes of a block of columns; None for what suits.

    Attributes:
        run: The checkpoints.
        space: The parameters.
    """

    def __init__(
        self, run: Run, space: ParameterSpace, *, kept: int = _KEPT, block: int | None = None
    ) -> None:
        self.run, self.space = run, space
        self._prefixes = [""] * len(run)
        bytes_each = space.size * space.dtype.itemsize
        self._keeps = bytes_each * len(run) <= kept
        block = block or (_BLOCK if self._keeps else _BLOCK_READ)
        self._width = max(1, block // (8 * max(len(run), 1)))
        self._flat: list[Tensor | None] = [None] * len(run)
        self._digests = [b""] * len(run)

    def __len__(self) -> int:
        return len(self.run)

    def read(self, t: int) -> tuple[Tensor, State]:
        """One checkpoint, as a flat vector and as it is.

        Args:
            t: Its number.

        Returns:
            ``(P,)`` on the CPU, and the state under the names of the model.

        Raises:
            CorruptFileError: If it cannot be read.
            ParameterMismatchError: If it does not fit the model (lists up to ten names), or is
                no longer what it was when it was first read.
        """
        checkpoint, space = self.run[t], self.space
        state = checkpoint.read()
        if not isinstance(state, Tensor):
            prefix = common_prefix(state, list(space.names))
            self._prefixes[t] = prefix
            state = {n.removeprefix(prefix): s for n, s in state.items() if n.startswith(prefix)}
        flat = space.vector(state, what=checkpoint.name).cpu()
        # of a recorded file, its reader has checked that it is the same
        digest = b"" if checkpoint.sha256 else hashlib.sha256(flat.numpy().data).digest()
        if self._digests[t] not in (b"", digest):
            raise ParameterMismatchError(
                f"{checkpoint.name} must not change while its run is in use, but it did."
            )
        self._digests[t] = digest
        if self._keeps:
            self._flat[t] = flat
        return flat, state

    def load(self) -> None:
        """Read again what `release` let go, and find out whether it still is the same.

        Raises:
            ArgumentError: If a file is gone.
            CorruptFileError: If it cannot be read.
            ParameterMismatchError: If it has changed.
        """
        for t, flat in enumerate(self._flat):
            if flat is None:
                self.read(t)

    def release(self) -> None:
        """Let go of all that can be read again, and of what was given beside the parameters."""
        for t, checkpoint in enumerate(self.run):
            if isinstance(checkpoint.source, Path):
                self._flat[t] = None
        kept = (
            checkpoint if flat is None else replace(checkpoint, source=flat)
            for checkpoint, flat in zip(self.run, self._flat, strict=True)
        )
        self.run = replace(self.run, checkpoints=tuple(kept))

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """The matrix in blocks of columns, after every row has been read once.

        Yields:
            The first column, and ``(T, B)`` float64 on the CPU.
        """
        for start in range(0, self.space.size, self._width):
            stop = min(start + self._width, self.space.size)
            block = torch.empty((len(self), stop - start), dtype=torch.float64, device="cpu")
            for t in range(len(self)):
                self._fill(block[t], t, start, stop)
            yield start, block

    def _fill(self, out: Tensor, t: int, start: int, stop: int) -> None:
        flat = self._flat[t]
        if flat is None:
            state = self.run[t].open()
            if not isinstance(state, Tensor):
                self._fill_by_name(out, t, state, start, stop)
                return
            flat = state
        out.copy_(flat[start:stop].to(self.space.dtype))

    def _fill_by_name(
        self, out: Tensor, t: int, state: Mapping[str, Tensor], start: int, stop: int
    ) -> None:
        for e in self.space.entries:
            first, last = max(e.offset, start), min(e.end, stop)
            if first < last:
                tensor = _tensor_of(e, state, self._prefixes[t], self.run[t].name).reshape(-1)
                part = tensor[first - e.offset : last - e.offset]
                # rounded as in `read`
                out[first - start : last - start].copy_(part.to(self.space.dtype))


def _tensor_of(e: Entry, state: Mapping[str, Tensor], prefix: str, what: str) -> Tensor:
    """A parameter in a state, under any of its names, complex ones as pairs."""
    for name in (e.name, *e.aliases):
        if prefix + name in state:
            tensor = state[prefix + name].detach()
            if e.dtype.is_complex and tensor.shape == e.shape:
                tensor = torch.view_as_real(tensor.to(torch.complex128).resolve_conj())
            if tuple(tensor.shape) == e.real_shape:
                return tensor
    raise ParameterMismatchError(f"{what} must not change while it is read, but {e.name} did.")


@dataclass(frozen=True)
class Components:
    """Principal components of rows.

    Attributes:
        vectors: ``(K, P)`` float64, orthonormal; K may be less than was asked for.
        lengths: ``(K,)`` their singular values.
        ratios: ``(R,)`` shares of the variance, largest first, of all components that are there.
    """

    vectors: Tensor
    lengths: np.ndarray
    ratios: np.ndarray


def principal_components(
    rows: Rows,
    n: int,
    *,
    used: np.ndarray,
    origin: int,
    center: bool,
    columns: Tensor | None = None,
) -> Components:
    r"""The leading principal components of displacements from one of the rows.

    With :math:`M` the displacements (their mean taken off if ``center``) and
    :math:`M M^\top = U \Sigma^2 U^\top`, component k is :math:`M^\top u_k / \sigma_k`. Its sign is
    such that the largest coordinate relative to the origin is positive.

    Args:
        rows: The checkpoints.
        n: How many; fewer are returned if the rows span less.
        used: ``(T,)`` bool; which rows take part.
        origin: Row that the displacements start from.
        center: Whether to take the mean row off.
        columns: ``(P,)`` bool; other columns count as zero. None for all.

    Returns:
        The components; none if all rows are the same.

    References:
        Li, Xu, Taylor, Studer, Goldstein, "Visualizing the Loss Landscape of Neural Nets",
        NeurIPS 2018, section 7.
    """
    index = torch.from_numpy(np.flatnonzero(used))
    gram = torch.zeros((len(index), len(index)), dtype=torch.float64, device="cpu")
    for start, block in rows.blocks():
        part = _displacements(start, block, index, origin, center, columns)
        gram += part @ part.T
    values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    # Products of rows are known to about T eps of the largest; below that nothing is left.
    noise = 8 * len(index) * torch.finfo(torch.float64).eps * float(values[0])
    rank = int((values > noise).sum())
    total = float(values.sum())
    ratios = (values[:rank] / total).numpy() if rank else np.zeros(0)
    k = min(n, rank)
    weights = vectors[:, :k] / values[:k].sqrt()
    weights = weights * _signs(vectors[:, :k], int((index == origin).nonzero()))
    found = torch.empty((k, rows.space.size), dtype=torch.float64, device="cpu")
    for start, block in rows.blocks():
        part = _displacements(start, block, index, origin, center, columns)
        found[:, start : start + part.shape[1]] = weights.T @ part
    if k:  # for weak components, what rounding left: one Cholesky step makes them orthonormal
        lower = torch.linalg.cholesky(found @ found.T)
        found = torch.linalg.solve_triangular(lower, found, upper=False).contiguous()
    return Components(found, values[:k].sqrt().numpy(), ratios)


def _displacements(
    start: int, block: Tensor, index: Tensor, origin: int, center: bool, columns: Tensor | None
) -> Tensor:
    part = block[index]
    part -= block[origin]
    if columns is not None:
        part *= columns[start : start + part.shape[1]]
    if center:
        part -= part.mean(0)
    return part


def _signs(vectors: Tensor, origin: int) -> Tensor:
    """-1 for components along which the farthest row is at a negative coordinate."""
    relative = vectors - vectors[origin]
    farthest = relative.abs().argmax(0)
    return torch.where(relative.gather(0, farthest[None])[0] < 0, -1.0, 1.0).double()


@dataclass(frozen=True)
class Fit:
    """Where rows are relative to a plane.

    Attributes:
        coordinates: ``(T, K)`` along the directions, by least squares.
        residuals: ``(T,)`` distances from the plane.
        distances: ``(T,)`` distances from its origin.
    """

    coordinates: np.ndarray
    residuals: np.ndarray
    distances: np.ndarray


def fit(rows: Rows, vectors: Tensor, origin: int) -> Fit:
    """Project displacements onto directions.

    The residual vectors are formed, not their norms subtracted: close to the plane the difference
    of two squares would have no correct digit.

    Args:
        rows: The checkpoints; a row that is not finite has NaN everywhere.
        vectors: ``(K, P)``, linearly independent.
        origin: Row that the displacements start from.

    Returns:
        Coordinates and distances.
    """
    count = len(vectors)
    inner = torch.zeros((count, count), dtype=torch.float64, device="cpu")
    products = torch.zeros((count, len(rows)), dtype=torch.float64, device="cpu")
    for start, block in rows.blocks():
        d = vectors[:, start : start + block.shape[1]].double().cpu()
        inner += d @ d.T
        products += d @ (block - block[origin]).T
    coordinates = torch.linalg.solve(inner, products).T
    squares = torch.zeros((2, len(rows)), dtype=torch.float64, device="cpu")
    for start, block in rows.blocks():
        d = vectors[:, start : start + block.shape[1]].double().cpu()
        moved = block - block[origin]
        squares[0] += (moved - coordinates @ d).square().sum(1)
        squares[1] += moved.square().sum(1)
    lost = ~torch.isfinite(squares[1])
    coordinates[lost] = squares[:, lost] = math.nan
    return Fit(coordinates.numpy(), *(s.sqrt().numpy() for s in squares))


def random_walk_ratios(steps: np.ndarray, *, center: bool = True, origin: int = -1) -> np.ndarray:
    r"""Shares of the variance of a random walk in very many dimensions, recorded at these steps.

    The inner products of its displacements are then their expectations,
    :math:`\min(|t_i - t_o|, |t_j - t_o|)` on one side of the origin and 0 across it. For many
    evenly spaced steps the shares tend to :math:`6 / (\pi k)^2` with the mean taken off, and to
    :math:`8 / (\pi (2 k - 1))^2` without, for an origin at an end.

    Args:
        steps: ``(T,)``, increasing.
        center: Whether the mean is taken off.
        origin: Row that displacements start from.

    Returns:
        ``(T,)``, largest first; they sum to 1.

    References:
        Antognini, Sohl-Dickstein, "PCA of high dimensional random walks with comparison to neural
        network training", NeurIPS 2018, section 2.

    Example:
        >>> random_walk_ratios(np.arange(1000))[:2].round(3)
        array([0.608, 0.152])
    """
    times = np.asarray(steps, dtype=np.float64)
    times = times - times[origin]
    same_side = times[:, None] * times >= 0
    gram = np.where(same_side, np.minimum(np.abs(times[:, None]), np.abs(times)), 0.0)
    if center:
        gram = gram - gram.mean(0)
        gram = gram - gram.mean(1)[:, None]
    values = np.linalg.eigvalsh((gram + gram.T) / 2)[::-1].clip(min=0)
    return values / values.sum()


def random_walk_limit(n: int, *, center: bool = True) -> np.ndarray:
    """What `random_walk_ratios` tends to for many evenly spaced steps.

    Args:
        n: How many components.
        center: Whether the mean is taken off.

    Returns:
        ``(n,)`` shares.
    """
    k = np.arange(1, n + 1)
    return 6 / (math.pi * k) ** 2 if center else 8 / (math.pi * (2 * k - 1)) ** 2
