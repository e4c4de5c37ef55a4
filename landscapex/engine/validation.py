"""No program is trusted before it has given what the model itself gives.

The comparison runs on real batches, cut to sizes that no export has seen, at the centre and at
points of the region to be computed, where every direction has moved the parameters: a forgotten
alias or a frozen slot is invisible at the centre.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from landscapex._batch import Batch, map_leaves, sample_count
from landscapex.engine.capture import form_of
from landscapex.engine.captured import Captured
from landscapex.engine.compiled import CompiledEngine
from landscapex.engine.eager import EagerEngine
from landscapex.engine.packing import pack_samples, per_sample
from landscapex.engine.plan import NotCapturedError
from landscapex.model.guard import Snapshot

SIZES = (11, 5)  # samples of the two batches that are compared
POINTS = 4  # besides the centre
EXACT = 4e-6  # relative to the largest output, against the model in float64: room for Winograd
LOSS = 1e-5  # relative; small losses of large outputs have fewer digits than these
AS_EAGER = 4.0  # or as many times the error of the eager model
COPY = 1e-3  # a model in float64 that is farther from the eager one is not the same model
LOOSE = 1e-5  # against the eager model, where it cannot run in float64
ROUNDED = 3e-2  # relative to the largest output, of programs that round to bf16
AS_AUTOCAST = 3.0  # or as many times the error of the eager model under autocast
_SEED = 0x5EED


def check_points(
    low: np.ndarray, high: np.ndarray, center: Tensor, directions: Tensor
) -> np.ndarray:
    """Where programs are compared: the centre, and points drawn in a box.

    The last one is no further away along each direction than the parameters are large: where
    everything overflows, nothing can be compared.

    Args:
        low: ``[K]``.
        high: ``[K]``.
        center: ``(P,)``.
        directions: ``(K, P)``.

    Returns:
        ``[1 + POINTS, K]``; every coordinate of the others is non-zero.
    """
    drawn = np.random.default_rng(_SEED).uniform(low, high, (POINTS, len(low)))
    drawn[drawn == 0] = 0.5
    norms = torch.linalg.vector_norm(directions, dim=1, dtype=torch.float64).cpu().numpy()
    room = max(1.0, float(torch.linalg.vector_norm(center, dtype=torch.float64)))
    reach = room / np.maximum(norms, np.finfo(np.float64).tiny)
    drawn[-1] = np.clip(drawn[-1], -reach, reach)
    return np.concatenate([np.zeros((1, len(low))), drawn])


def validate(
    engine: CompiledEngine,
    snapshot: Snapshot,
    center: Tensor,
    directions: Tensor,
    points: np.ndarray,
) -> None:
    """Compare a compiled engine with the model, and leave the model at the centre.

    Args:
        engine: To be checked.
        snapshot: Of the model.
        center: ``(P,)``.
        directions: ``(K, P)``.
        points: ``[n, K]``; see `check_points`.

    Raises:
        NotCapturedError: If they differ; says where and by how much.
    """
    eager = engine.eager
    try:
        double: nn.Module | None = copy.deepcopy(eager.space.model).double()
    except Exception:  # whatever the user's module does when it is copied
        double = None
    try:
        for captured, batch in _samples(engine):
            # the program itself is compared in fp32, where a wrong one cannot hide
            compared = _program_values(engine, captured, batch, points, exact=True)
            rounded = (
                _program_values(engine, captured, batch, points)
                if captured.math != "fp32"
                else None
            )
            for g, coordinates in enumerate(points.tolist()):
                snapshot.move(center, directions, coordinates)
                reference = _compare(captured, eager, double, batch, compared[g], coordinates)
                if rounded is not None:
                    _compare_rounded(captured, eager, batch, rounded[g], reference, coordinates)
    finally:
        snapshot.move(center, directions[:0], [])


def _samples(engine: CompiledEngine) -> Iterator[tuple[Captured, Batch]]:
    """Cut batches of every form."""
    seen: set[int] = set()
    for data, batches in zip(engine.data, engine.eager.data.values(), strict=True):
        for share in data.shares:
            if id(share.captured) in seen:
                continue
            seen.add(id(share.captured))
            of_form = [b for b in batches if sample_count(b) and form_of(b) == share.form]
            for batch, size in zip((of_form[0], of_form[-1]), SIZES, strict=True):
                yield share.captured, _cut(batch, size)


def _cut(batch: Batch, size: int) -> Batch:
    count = sample_count(batch)

    def cut(leaf: object) -> object:
        sampled = isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == count
        return leaf[:size] if sampled else leaf  # type: ignore[index]

    return map_leaves(batch, cut)


def _program_values(
    engine: CompiledEngine,
    captured: Captured,
    batch: Batch,
    points: np.ndarray,
    *,
    exact: bool = False,
) -> np.ndarray:
    """At each point, the entries of the model's output for all samples, and the loss."""
    computed = captured.computed(batch)
    tiles = pack_samples(captured.lowered, captured.plan.values, [[computed]], 16)
    sums, values = engine.values(captured, tiles, points, lanes=16, exact=exact)
    divisors = captured.divisors([computed], int(tiles.valid.sum()))
    loss = captured.mean_loss(sums[0], divisors)
    # [tiles, G, entries, lanes] -> [G, samples, entries]
    tile_count, point_count, entries, width = values.shape
    lanes = values.transpose(1, 0, 3, 2).reshape(point_count, tile_count * width, entries)
    outputs = lanes[:, : tiles.valid.sum()].reshape(len(points), -1)
    return np.concatenate([outputs, loss[:, None]], axis=1)


def _compare(
    captured: Captured,
    eager: EagerEngine,
    double: nn.Module | None,
    batch: Batch,
    found: np.ndarray,
    coordinates: list[float],
) -> np.ndarray:
    """Returns what the model gives, in float64 if it can."""
    single = _eager_values(captured, eager, eager.space.model, batch)
    exact = None
    if double is not None:
        source = dict(eager.space.model.named_parameters())
        with torch.no_grad():
            for name, p in double.named_parameters():
                p.copy_(source[name])
        wide = map_leaves(batch, _widened)
        try:
            exact = _eager_values(captured, eager, double, wide)
        except Exception:  # a module that fixes a dtype inside
            exact = None
    if exact is not None and COPY < _distance(single, exact) < np.inf:
        exact = None  # numbers that the model holds elsewhere did not move with the copy
    reference = single if exact is None else exact
    # the last number is the loss, which has a size of its own: it may be off by what outputs
    # that are as far off as these make of it (no loss of a class grows faster than its scores)
    spread = 0.0
    for part, what, tight in ((slice(0, -1), "output", EXACT), (slice(-1, None), "loss", LOSS)):
        limit = LOOSE
        if exact is not None:
            limit = max(tight, AS_EAGER * _distance(single[part], exact[part]))
        off = _distance(found[part].astype(np.float64), reference[part])
        if not off <= limit + spread:
            at = ", ".join(f"{c:.3g}" for c in coordinates)
            raise NotCapturedError(
                f"the program gives another {what} than the model: {off:.1e} off at ({at}), "
                f"{limit + spread:.1e} allowed"
            )
        finite = reference[:-1][np.isfinite(reference[:-1])]
        if len(finite) and np.isfinite(off) and np.isfinite(reference[-1]) and reference[-1] != 0:
            spread = 2 * off * np.abs(finite).max() / np.abs(reference[-1])
    return reference


def _compare_rounded(
    captured: Captured,
    eager: EagerEngine,
    batch: Batch,
    found: np.ndarray,
    reference: np.ndarray,
    coordinates: list[float],
) -> None:
    autocast = _eager_values(captured, eager, eager.space.model, batch, rounded=True)
    # losses are left out: small ones are differences of large outputs
    limit = max(ROUNDED, AS_AUTOCAST * _distance(autocast[:-1], reference[:-1]))
    off = _distance(found[:-1].astype(np.float64), reference[:-1])
    if not off <= limit:
        at = ", ".join(f"{c:.3g}" for c in coordinates)
        raise NotCapturedError(
            f"bf16 gives another output than the model: {off:.1e} off at ({at}), "
            f"{limit:.1e} allowed"
        )


def _eager_values(
    captured: Captured,
    eager: EagerEngine,
    model: nn.Module,
    batch: Batch,
    *,
    rounded: bool = False,
) -> np.ndarray:
    # without autocast, unless it is what is wanted
    exact = (
        contextlib.nullcontext()
        if rounded
        else torch.autocast(eager.space.device.type, enabled=False)
    )
    with eager.evaluating(), exact:
        loss, outputs, _ = eager.measure.captured(model, batch)
    parts = []
    if outputs and captured.lowered.program.outputs:
        value = captured.plan.values[captured.plan.outputs[1]]
        parts.append(per_sample(outputs[0].detach().double(), value).reshape(-1))
    parts.append(loss.detach().double().reshape(1).cpu().numpy())
    return np.concatenate(parts)


def _widened(leaf: object) -> object:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.dtype == torch.float32 else leaf


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference, relative to the largest number; infinite if others are not finite."""
    finite = np.isfinite(b)
    same = np.array_equal(a[~finite], b[~finite].astype(a.dtype), equal_nan=True)
    if not same or not np.isfinite(a[finite]).all():
        return np.inf
    if not finite.any():
        return 0.0
    scale = np.abs(b[finite]).max()
    return float(np.abs(a[finite] - b[finite]).max() / max(scale, np.finfo(np.float32).tiny))
