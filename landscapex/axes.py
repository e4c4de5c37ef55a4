"""Directions: the named axes of a loss surface, over flat parameters ``[K, P]``.

Exposed as ``landscapex.directions``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from landscapex import _ops
from landscapex._directions import (
    Axis,
    Directions,
    DrawnDirections,
    check_layout,
    gram,
    layout_of,
)
from landscapex._warnings import warn
from landscapex.errors import (
    ArgumentError,
    ArgumentTypeError,
    DirectionError,
)
from landscapex.model.drawn import Drawn, draw_entry
from landscapex.model.parameters import Ignore, Normalize, ParameterSpace
from landscapex.model.states import State, Tensors, tensors_of

if TYPE_CHECKING:
    from landscapex.objective import Objective

__all__ = [
    "Axis", "Directions", "DrawnDirections", "between", "given", "gradient", "hessian", "load",
    "normalize", "random", "random_in_pieces",
]  # fmt: skip


def __dir__() -> list[str]:
    return sorted(__all__)


def load(path: str | os.PathLike[str]) -> Directions:
    """Read directions from a file that `Directions.save` wrote; see `Directions.load`."""
    return Directions.load(path)


def random(
    objective: Objective | nn.Module,
    n: int = 2,
    *,
    seed: int = 0,
    normalize: Normalize | None = "filter",
    ignore: Ignore | None = "bias_bn",
    orthogonalize: bool = False,
    center: State | None = None,
) -> Directions:
    r"""Draw Gaussian directions and scale them to the model.

    Entries are independent standard normals from Philox 4x32-10 with a key made of ``seed``, the
    number of the direction and the name of the parameter: the same on every device, in any order
    and for any selection of parameters. With ``normalize="filter"`` each filter becomes
    :math:`d_f \lVert \theta_f \rVert / \lVert d_f \rVert`.

    Args:
        objective: An `Objective`, or a module.
        n: How many.
        seed: Of the draw.
        normalize: ``"filter"`` (the unit is the length of each filter), ``"layer"`` (of each
            tensor), ``"model"`` (of all perturbed weights), ``"weight"`` (multiply entry by
            entry), or None.
        ignore: For biases, norm parameters and filters of one entry: ``"bias_bn"`` sets them to
            zero, ``"copy"`` to the parameters themselves (as the reference code does without its
            option; two such directions are correlated), None normalises each tensor as one filter.
        orthogonalize: Make each direction orthogonal to those before it, after normalising; the
            axes' notes then say what that changed.
        center: What to scale to: a flat vector ``(P,)``, a state_dict, a module or the path of a
            checkpoint; None for the live parameters.

    Returns:
        ``K = n`` directions ``(n, P)``; a filter that is zero in the model is zero in them.

    Raises:
        ArgumentError: If an argument has a value not listed above.
        ArgumentTypeError: If ``seed`` is not a whole number.

    References:
        Li, Xu, Taylor, Studer, Goldstein, "Visualizing the Loss Landscape of Neural Nets",
        NeurIPS 2018, section 4. Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as
        1, 2, 3", SC 2011.

    Example:
        >>> import torch, landscapex as lx
        >>> lx.directions.random(torch.nn.Linear(3, 2), n=2).vectors.shape
        torch.Size([2, 8])
    """
    _check_draw(n, seed)
    space = _space(objective)
    vectors = torch.zeros((n, space.size), dtype=space.dtype, device=space.device)
    for k in range(n):
        for e in space.entries:
            draw_entry(vectors[k, e.offset : e.end], e, seed, k, ignore)
    axes = tuple(Axis(f"random direction {k + 1}", "random", seed=seed) for k in range(n))
    drawn = Directions(vectors, axes, layout_of(space))
    return _scaled(drawn, space, normalize, ignore, orthogonalize, center)


def random_in_pieces(
    objective: Objective | nn.Module,
    n: int = 2,
    *,
    seed: int = 0,
    normalize: Normalize | None = "filter",
    ignore: Ignore | None = "bias_bn",
    center: State | None = None,
) -> DrawnDirections:
    """The directions of `random`, drawn tensor by tensor whenever they are needed.

    They take the memory of the largest tensor, not of the model, and the time of a draw at every
    point. `surface` does this by itself where directions would take more than 4 GiB.

    Args:
        objective: As in `random`.
        n: As in `random`.
        seed: As in `random`.
        normalize: As in `random`, but ``"model"``, which needs all tensors at once.
        ignore: As in `random`.
        center: As in `random`.

    Returns:
        Directions with the numbers of `random`; their ``vectors`` hold none.

    Raises:
        ArgumentError: If an argument has a value not listed above.
        ArgumentTypeError: If ``seed`` is not a whole number.

    Example:
        >>> import torch, landscapex as lx
        >>> drawn = lx.directions.random_in_pieces(torch.nn.Linear(3, 2), n=2)
        >>> drawn.vectors.device.type, drawn[0]["weight"].shape
        ('meta', torch.Size([2, 3]))
    """
    _check_draw(n, seed)
    _check_ignore(ignore)
    if normalize == "model":
        raise ArgumentError(
            "`normalize` must be 'filter', 'layer', 'weight' or None in pieces, got 'model'."
        )
    space = _space(objective)
    at = _flat(space, center)
    return DrawnDirections.of(Drawn(space, n, seed, normalize, ignore, at))


def between(
    objective: Objective | nn.Module, *models: State, center: State | None = None
) -> Directions:
    """From the centre to other models: coordinate 1 is the other model's parameters.

    Args:
        objective: An `Objective`, or a module.
        *models: Modules, state_dicts, paths of checkpoints or flat vectors, one per direction.
        center: Where to start from, likewise; None for the live parameters.

    Only parameters move. Where the other model has other buffers (batch-norm statistics) or other
    parameters outside the choice, coordinate 1 is not quite the other model: a warning and a note
    in the result say so.

    Returns:
        One direction per model, not normalised.

    Raises:
        ArgumentError: If no model is given.

    Example:
        >>> import torch, landscapex as lx
        >>> a, b = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
        >>> lx.directions.between(a, b).axes[0].default_span
        (-0.5, 1.5)
    """
    if not models:
        raise ArgumentError("`models` must hold at least one model, got none.")
    space = _space(objective)
    start = _flat(space, center)
    names = [f"model {k + 1}" for k in range(len(models))]
    others = [tensors_of(m, space.model, what=w) for m, w in zip(models, names, strict=True)]
    ends = [space.vector(o, what=w) for o, w in zip(others, names, strict=True)]
    # in float64, rounded once: the end point is met as well as the dtype allows
    vectors = torch.stack([(e.double() - start.double()).to(space.dtype) for e in ends])
    which = [""] if len(models) == 1 else [f" {k + 1}" for k in range(len(models))]
    notes = [_left_behind(space, other) for other in others]
    for note in filter(None, notes):
        warn(f"between: {note}.")
    axes = tuple(
        Axis(f"towards the other model{w}", "between", note=n)
        for w, n in zip(which, notes, strict=True)
    )
    return Directions(vectors, axes, layout_of(space))


def gradient(objective: Objective, *, center: State | None = None) -> Directions:
    """The gradient of the loss at the centre: coordinate 1 is one whole gradient uphill.

    Args:
        objective: What to differentiate.
        center: As in `random`.

    Returns:
        One direction, not normalised.
    """
    vector = objective.gradient(center)[None]
    return Directions(vector, (Axis("gradient", "gradient"),), layout_of(_space(objective)))


def hessian(
    objective: Objective,
    n: int = 2,
    *,
    which: str = "LA",
    kind: str = "hessian",
    tol: float | None = None,
    seed: int = 0,
    center: State | None = None,
) -> Directions:
    """Eigenvectors of the curvature at the centre: where the loss bends most.

    Random directions hide negative curvature; ``which="BE"`` shows it beside the largest. Without
    a span of its own, an axis runs to where the quadratic term alone changes the loss by as much
    as it is.

    Args:
        objective: What to differentiate.
        n: How many.
        which: ``"LA"`` (of the largest eigenvalues), ``"SA"`` (smallest), ``"LM"`` (largest in
            magnitude) or ``"BE"`` (both ends, in rising order).
        kind: Of curvature, as in `landscapex.hessian`.
        tol: Of residuals, relative to the largest eigenvalue in size; None for 1e-4 in float32 and
            1e-8 in float64.
        seed: Of start vectors.
        center: As in `random`.

    Returns:
        Directions of length 1, orthogonal to each other; labels hold the eigenvalues.

    References:
        Böttcher, Wheeler, "Visualizing high-dimensional loss landscapes with Hessian directions",
        arXiv 2208.13219.

    Example:
        >>> import torch, landscapex as lx
        >>> x, model = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.nn.Linear(2, 1, bias=False)
        >>> objective = lx.Objective(model, (x, torch.zeros(2, 1)), "mse_loss")
        >>> [a.label for a in lx.directions.hessian(objective).axes]
        ['eigenvector 1 (λ = 4)', 'eigenvector 2 (λ = 1)']
    """
    from landscapex.curvature import operators  # it needs directions, too

    curvature = operators.hessian(objective, kind=kind, center=center)
    found = curvature.eigenvalues(n, which, tol=tol, seed=seed)
    return found.directions(curvature, loss=objective.loss(center))


def given(objective: Objective | nn.Module, directions: Any) -> Directions:
    """Directions of one's own.

    Args:
        objective: An `Objective`, or a module.
        directions: A sequence of mappings {parameter name: tensor}, in which a parameter that is
            absent does not move; one such mapping; or a tensor ``(K, P)``.

    Returns:
        The directions, as given.

    Raises:
        ArgumentTypeError: If ``directions`` is none of these.
        DirectionError: If a tensor has another number of columns.
    """
    space = _space(objective)
    if isinstance(directions, Mapping):
        directions = [directions]
    if isinstance(directions, Tensor):
        if directions.ndim != 2 or directions.shape[1] != space.size:
            raise DirectionError(
                f"`directions` must have shape (K, {space.size}), got {tuple(directions.shape)}."
            )
        vectors = directions.detach().to(device=space.device, dtype=space.dtype, copy=True)
        notes = [""] * len(vectors)
    elif isinstance(directions, Sequence) and directions:
        for d in directions:
            if not isinstance(d, Mapping):
                raise ArgumentTypeError(
                    "`directions` must hold mappings {parameter name: tensor}, got "
                    f"{type(d).__name__}."
                )
        rows = [
            space.flatten(d, what=f"direction {k + 1}", missing="zero")
            for k, d in enumerate(directions)
        ]
        vectors = torch.stack(rows)
        known = [sum(n in space.names for n in d) for d in directions]
        notes = [
            "parameters not given do not move" if k < len(space.entries) else "" for k in known
        ]
    else:
        raise ArgumentTypeError(
            "`directions` must be Directions, a tensor (K, P) or a sequence of mappings, got "
            f"{type(directions).__name__}."
        )
    axes = tuple(Axis(f"given direction {k + 1}", "given", note=n) for k, n in enumerate(notes))
    return Directions(vectors, axes, layout_of(space))


def normalize(
    directions: Directions,
    objective: Objective | nn.Module,
    rule: Normalize | None = "filter",
    *,
    ignore: Ignore | None = None,
    center: State | None = None,
) -> Directions:
    """Scale directions to the model, as `random` does.

    Args:
        directions: Left as they are.
        objective: An `Objective`, or a module.
        rule: As ``normalize`` of `random`.
        ignore: As in `random`; None also scales biases, each as one filter.
        center: What to scale to: a flat vector ``(P,)``, a state_dict, a module or the path of a
            checkpoint; None for the live parameters.

    Returns:
        New directions.

    Raises:
        DirectionError: If they are not held: see `random_in_pieces`.
    """
    if isinstance(directions, DrawnDirections):
        raise DirectionError(
            "`directions` must be held to be normalised, got directions in pieces: pass "
            "`normalize` and `ignore` to `random_in_pieces`."
        )
    space = _space(objective)
    check_layout(directions, space)
    copied = replace(
        directions, vectors=directions.vectors.to(space.device, space.dtype, copy=True)
    )
    return _scaled(copied, space, rule, ignore, False, center)


def _scaled(
    directions: Directions,
    space: ParameterSpace,
    rule: Normalize | None,
    ignore: Ignore | None,
    orthogonalize: bool,
    center: State | None,
) -> Directions:
    """Normalise, treat biases, orthogonalise: in place, in this order."""
    _check_ignore(ignore)
    vectors = directions.vectors
    at = _flat(space, center)
    zero = 0
    if ignore is not None:
        for e in space.entries:
            if e.is_bias_bn:
                own = at[e.offset : e.end] if ignore == "copy" else 0.0
                vectors[:, e.offset : e.end] = own
    if rule is not None:
        runs, groups = space.normalization_table(rule, skip_bias_bn=ignore is not None)
        norms = _rescale(vectors, at, runs, groups, elementwise=rule == "weight")
        zero = int((norms[-1] == 0).sum())
    axes = tuple(
        replace(a, normalize=rule, ignore=ignore, zero_filters=zero) for a in directions.axes
    )
    if orthogonalize:
        axes = _orthogonalize(vectors, axes, space)
    return replace(directions, axes=axes)


def _check_draw(n: object, seed: object) -> None:
    if not isinstance(n, int) or n < 1:
        raise ArgumentError(f"`n` must be a whole number of at least 1, got {n!r}.")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ArgumentTypeError(f"`seed` must be a whole number, got {seed!r}.")


def _check_ignore(ignore: object) -> None:
    if ignore not in ("bias_bn", "copy", None):
        raise ArgumentError(f"`ignore` must be 'bias_bn', 'copy' or None, got {ignore!r}.")


def _rescale(
    vectors: Tensor, center: Tensor, runs: Tensor, groups: Tensor, *, elementwise: bool
) -> Tensor:
    """Scale in place; the norms ``(K + 1, F)`` before scaling, those of the centre last."""
    shape = (len(vectors) + 1, len(groups) - 1)
    norms = torch.zeros(shape, dtype=torch.float64, device=vectors.device)
    _ops.filter_normalize_(vectors, center, runs, groups, norms, elementwise=elementwise)
    return norms


def _orthogonalize(
    vectors: Tensor, axes: tuple[Axis, ...], space: ParameterSpace
) -> tuple[Axis, ...]:
    """Gram-Schmidt, dividing by the squared length; says what became of cosines and filters."""
    table = space.normalization_table("filter", skip_bias_bn=False)
    before = _filter_norms(vectors, *table)
    cosines = Directions(vectors, axes, layout_of(space)).cosine()
    for k in range(1, len(vectors)):
        for _ in range(2):  # once more, for what rounding left
            for j in range(k):
                pair = gram(vectors[[j, k]])
                if pair[0, 0] > 0:
                    vectors[k] -= float(pair[0, 1] / pair[0, 0]) * vectors[j]
    after = _filter_norms(vectors, *table)
    change = torch.where(before > 0, (after / before - 1).abs(), 0.0).amax(1).tolist()
    noted = [axes[0]]
    for k in range(1, len(axes)):
        was = ", ".join(f"{float(c):.2g}" for c in cosines[k, :k])
        note = (
            f"made orthogonal to the directions before it (cosine was {was}); "
            f"a filter changed its length by up to {change[k]:.2%}"
        )
        noted.append(replace(axes[k], note=note))
    return tuple(noted)


def _filter_norms(vectors: Tensor, runs: Tensor, groups: Tensor) -> Tensor:
    """Norms of every filter of every direction ``(K, F)``, float64."""
    copied = vectors.clone()
    return _rescale(copied, vectors[0], runs, groups, elementwise=False)[:-1]


def _left_behind(space: ParameterSpace, other: Tensors) -> str:
    """What of another model a line over the chosen parameters does not reach, in words."""
    if not isinstance(other, Mapping):
        return ""
    mine = {**dict(space.model.named_buffers()), **dict(space.model.named_parameters())}
    differing = [
        name
        for name, t in mine.items()
        if name not in space.names
        and t.is_floating_point()
        and isinstance(other.get(name), Tensor)
        and not (other[name].shape == t.shape and torch.equal(other[name].to(t), t))
    ]
    if not differing:
        return ""
    shown = ", ".join(differing[:3]) + (", ..." if len(differing) > 3 else "")
    return (
        f"the other model differs in {len(differing)} tensors that do not move ({shown}): "
        "those of this model are used at every point"
    )


def _flat(space: ParameterSpace, center: State | None) -> Tensor:
    """The point that directions are scaled to, or start from."""
    if center is None or isinstance(center, Tensor):
        return space.gather() if center is None else center
    return space.vector(tensors_of(center, space.model, what="`center`"), what="`center`")


def _space(objective: Objective | nn.Module) -> ParameterSpace:
    if isinstance(objective, nn.Module):
        return ParameterSpace(objective)
    space = getattr(objective, "space", None)
    if not isinstance(space, ParameterSpace):
        raise ArgumentTypeError(
            f"`objective` must be an Objective or a module, got {type(objective).__name__}."
        )
    return space
