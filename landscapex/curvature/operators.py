"""Hessian, Gauss-Newton and Fisher matrices of an objective, as operators on flat parameters."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from landscapex._directions import layout_of
from landscapex._numbers import check_count
from landscapex.curvature import draws
from landscapex.curvature.classes import ClassDecomposition, decompose
from landscapex.curvature.density import SpectralDensity, spectral_density
from landscapex.curvature.diagonal import DiagonalEstimate, diagonal
from landscapex.curvature.eigenpairs import Eigenpairs
from landscapex.curvature.lanczos import eigenpairs
from landscapex.curvature.linear import GAUSS_NEWTON, HESSIAN, Layout, SymmetricOperator
from landscapex.curvature.linearized import HessianBuilder, OutputBuilder
from landscapex.curvature.outputs import check_loss
from landscapex.curvature.products import (
    Block,
    Linearization,
    Plan,
    statistics,
)
from landscapex.curvature.standing import arithmetic
from landscapex.curvature.trace import TraceEstimate, trace
from landscapex.errors import ArgumentError, ParameterMismatchError
from landscapex.model.parameters import ParameterSpace
from landscapex.model.selection import Selection
from landscapex.objective import Objective, bind, names_objective_options
from landscapex.session import Point, Session

MATRICES = {
    "hessian": HESSIAN, "ggn": GAUSS_NEWTON, "fisher": "Fisher matrix",
    "empirical_fisher": "empirical Fisher matrix",
}  # fmt: skip
KINDS = tuple(MATRICES)


class Curvature(SymmetricOperator):
    """A curvature matrix of an objective at a point, known by its products with vectors.

    It stands where the model stood when it was made: training goes on without changing it. Made by
    `hessian`.

    Attributes:
        kind: ``"hessian"``, ``"ggn"``, ``"fisher"`` or ``"empirical_fisher"``.
        layout: (name, shape) of every parameter, in the order of the flat vector.
        gradient: Of the objective at the point, over the same parameters, ``(P,)``.
        loss: The objective there, weight decay included.
        provenance: What it was made of and how.
        plan: How the model was linearised, for other points of the same session.
        products: How many products were taken so far.

    Example:
        >>> import torch, landscapex as lx
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> lx.hessian(model, (x, torch.zeros(2, 1)), "mse_loss") @ torch.ones(2)
        tensor([1., 4.])
    """

    def __init__(
        self,
        linearization: Linearization,
        block: Block,
        layout: Layout,
        *,
        kind: str,
        decay: float,
        gradient: Tensor,
        provenance: Mapping[str, Any],
    ) -> None:
        space = linearization.space
        # not a method of its own: that would keep all graphs until cycles are collected
        product = partial(linearization.product, block, decay=decay)
        super().__init__(product, block.size, space.dtype, space.device, name=MATRICES[kind])
        self.kind, self.layout, self.gradient = kind, layout, gradient
        self.loss, self.plan = linearization.loss, linearization.plan
        self.provenance = MappingProxyType(dict(provenance))
        self._linearization, self._block, self._decay = linearization, block, decay

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"Curvature({self.kind}, P={self.size:,} in {len(self.layout)} tensors, {dtype}, "
            f"{self.device}, loss {self.loss:.6g})"
        )

    def restrict(self, params: Selection) -> Curvature:
        """The diagonal block of some parameters: of a layer, of a group.

        It shares the linearisation, so that it costs nothing to make, and a product with it costs
        less than one with the whole.

        Args:
            params: Names or shell patterns (``"layer1.*"``), or ``f(name, parameter) -> bool``,
                among those of this operator.

        Returns:
            An operator over these parameters alone.

        Raises:
            ParameterMismatchError: If there are others among them.

        Example:
            >>> import landscapex as lx
            >>> lx.hessian(*lx.examples.digits(), kind="ggn").restrict("0.*")
            Curvature(ggn, P=2,600 in 2 tensors, float32, cpu, loss 0.0179...)
        """
        whole = self._linearization.space
        part = chosen_space(whole.model, params, {name for name, _ in self.layout})
        block = Block(tuple(whole.names[e.name] for e in part.entries), part.entries)
        named = dict(zip((n for n, _ in self.layout), self._parts(self.gradient), strict=True))
        gradient = torch.cat([named[e.name] for e in part.entries])
        return Curvature(
            self._linearization,
            block,
            layout_of(part),
            kind=self.kind,
            decay=self._decay,
            gradient=gradient,
            provenance={**self.provenance, "parameters": [e.name for e in part.entries]},
        )

    def eigenvalues(
        self,
        k: int = 5,
        which: str = "LA",
        *,
        tol: float | None = None,
        block: int = 1,
        basis: int | None = None,
        max_products: int | None = None,
        seed: int = 0,
        start: Tensor | None = None,
        progress: bool = True,
        quiet: bool = False,
    ) -> Eigenpairs:
        """Some eigenvalues with their vectors and residuals; see `curvature.lanczos.eigenpairs`.

        Args:
            k: How many.
            which: ``"LA"`` (largest), ``"SA"`` (smallest), ``"LM"`` (largest in magnitude) or
                ``"BE"`` (both ends), as in SciPy's ``eigsh``.
            tol: Of residuals, relative to the largest eigenvalue in size; None for 1e-8 in float64
                and 1e-4 in float32.
            block: Start vectors: as many copies of a multiple eigenvalue can be found.
            basis: Products before the first restart; None for a default.
            max_products: Where to give up; None for ``1000 + 100 k``.
            seed: Of start vectors.
            start: Instead: ``(P,)``, or up to ``block`` rows ``(j, P)``.
            progress: Show a bar if it takes longer than half a second.
            quiet: Leave the flags to tell what did not converge.

        Returns:
            The pairs.
        """
        return eigenpairs(
            self, k, which, tol=tol, block=block, basis=basis, max_products=max_products,
            seed=seed, start=start, progress=progress, quiet=quiet,
        )  # fmt: skip

    def spectral_density(
        self,
        *,
        probes: int = 8,
        steps: int = 80,
        seed: int = 0,
        sigma: float | None = None,
        distribution: str = "gaussian",
        reorthogonalize: bool = False,
        progress: bool = True,
    ) -> SpectralDensity:
        """The distribution of all eigenvalues; see `curvature.density.spectral_density`.

        Args:
            probes: Random vectors; each costs `steps` products.
            steps: Of the recurrence for each vector.
            seed: Of the random vectors.
            sigma: Standard deviation, in units of eigenvalues, of what replaces each node in the
                smooth density; None for the resolution.
            distribution: Of the random vectors: ``"gaussian"`` or ``"signs"``.
            reorthogonalize: Keep ``steps * P`` numbers, so that no eigenvalue comes twice.
            progress: Show a bar if it takes longer than half a second.

        Returns:
            The estimate.
        """
        return spectral_density(
            self, probes=probes, steps=steps, seed=seed, sigma=sigma, distribution=distribution,
            reorthogonalize=reorthogonalize, progress=progress,
        )  # fmt: skip

    def trace(
        self,
        *,
        method: str = "auto",
        products: int = 90,
        seed: int = 0,
        tol: float | None = None,
        progress: bool = True,
    ) -> TraceEstimate:
        """The sum of all eigenvalues; see `curvature.trace.trace`.

        Args:
            method: ``"hutchinson"``, ``"hutch++"``, ``"xtrace"`` or ``"auto"``.
            products: How many may be taken.
            seed: Of the random vectors.
            tol: Stop when the standard error is at most this part of the value.
            progress: Show a bar if it takes longer than half a second.

        Returns:
            The estimate with its standard error.
        """
        return trace(self, method=method, products=products, seed=seed, tol=tol, progress=progress)

    def diagonal(
        self,
        *,
        products: int = 90,
        seed: int = 0,
        method: str = "hutchinson",
        progress: bool = True,
    ) -> DiagonalEstimate:
        """The diagonal; see `curvature.diagonal.diagonal`.

        Args:
            products: How many are taken.
            seed: Of the random vectors.
            method: ``"hutchinson"`` or ``"diag++"``.
            progress: Show a bar if it takes longer than half a second.

        Returns:
            The estimate with its standard errors.
        """
        return diagonal(self, products=products, seed=seed, method=method, progress=progress)

    def class_decomposition(self) -> ClassDecomposition:
        """The Gauss-Newton matrix of a classifier by classes; see `curvature.classes.decompose`.

        Returns:
            Its four parts.

        Raises:
            ArgumentError: If this is not a Gauss-Newton matrix.
        """
        if self.kind != "ggn":
            raise ArgumentError(
                f"`kind` must be 'ggn' for a decomposition by classes, got {self.kind!r}."
            )
        return decompose(self._linearization, self._block, self.layout)

    def _parts(self, vector: Tensor) -> list[Tensor]:
        return [vector[e.offset : e.end] for e in self._block.entries]


@names_objective_options
def hessian(
    model: nn.Module | Objective,
    data: Any = None,
    loss: Any = None,
    *,
    kind: str = "hessian",
    params: Selection = None,
    center: Point = None,
    seed: int = 0,
    samples: int = 1,
    memory: int | None = None,
) -> Curvature:
    r"""The curvature of an objective at a point, over all data.

    Every product is exact: of second derivatives of the mean loss
    :math:`\sum_b n_b l_b / \sum_b n_b` over all batches, never of finite differences. The batches
    are linearised once; a product is then one more backward pass through the graph of the gradient
    (about two gradients; four thirds for the other kinds).

    Batch norm is that of the objective, ``bn="eval"`` or ``"batch"``. Parameters of 16 bits are
    widened to float32, and autocast is off. A complex parameter counts by its real and its
    imaginary part.

    Args:
        model: A module, or an `Objective` (then without data and loss).
        data: See `Objective`.
        loss: See `Objective`. All kinds but ``"hessian"`` need to see the output of the model and
            the loss apart: a name from ``torch.nn.functional`` or a criterion of ``torch.nn``.
        kind: ``"hessian"``: second derivatives of the loss, weight decay included.
            ``"ggn"``: the generalised Gauss-Newton matrix :math:`\sum_i J_i^T A_i J_i` with the
            Hessians A of the loss by the outputs of the model, weight decay included; for losses
            that are convex in the outputs, where it is positive semi-definite.
            ``"fisher"``: outer products of gradients with labels drawn from the model's own
            distribution; its expectation is the Gauss-Newton matrix. The distribution is the
            softmax for cross entropy, the sigmoid for binary cross entropy, and a normal one of
            variance 1/2 for the squared error, of which torch's squared error is the negative
            logarithm.
            ``"empirical_fisher"``: the same with the labels of the data: neither the Fisher matrix
            nor an approximation of the Hessian (Kunstner, Hennig, Balles 2019).
            Both leave weight decay out. A sample is a row of the output.
        params: The parameters whose block of the matrix is wanted: names or shell patterns, or
            ``f(name, parameter) -> bool``; None for all of the objective. Others are constants.
        center: As ``point`` of `Objective.loss`.
        seed: Of drawn labels.
        samples: Labels drawn for each sample, for ``"fisher"``.
        memory: Bytes that graphs may take between products; None for a quarter of what is free.
            Batches that do not fit are linearised anew at each product, with the same result.

    Returns:
        The operator. It holds copies of the parameters and buffers; the model is as it was.

    Raises:
        ArgumentError: If an option has an unknown value; with ``bn="recompute"``, whose statistics
            depend on the parameters; or inside ``torch.inference_mode()``.
        LossError: If the loss has no second derivatives, or does not fit the kind.
        ParameterMismatchError: If ``params`` chooses what the objective does not.

    References:
        Pearlmutter, "Fast exact multiplication by the Hessian", Neural Computation 6, 1994.
        Schraudolph, "Fast curvature matrix-vector products", Neural Computation 14, 2002.
        Kunstner, Hennig, Balles, "Limitations of the empirical Fisher approximation", NeurIPS 2019.

    Example:
        >>> import landscapex as lx
        >>> hessian = lx.hessian(*lx.examples.digits())
        >>> hessian.shape == (len(hessian.gradient),) * 2
        True
    """
    check_kind(kind)
    objective = bind(model, data, loss, metrics=(), precision="model")
    objective.check_differentiable("curvature")
    check_loss(kind, objective.measure)
    with objective.session(center) as session:
        fingerprint = session.fingerprint()
        made = linearize(session, kind, params=params, seed=seed, samples=samples, memory=memory)
        made.provenance = MappingProxyType({**made.provenance, "fingerprint": fingerprint})
    return made


def linearize(
    session: Session,
    kind: str = "hessian",
    *,
    params: Selection = None,
    seed: int = 0,
    samples: int = 1,
    memory: int | None = None,
    plan: Plan | None = None,
) -> Curvature:
    """The curvature where the model of a session stands.

    Args:
        session: Open. Products may be taken inside it and after its end.
        kind: As in `hessian`.
        params: As in `hessian`.
        seed: As in `hessian`.
        samples: As in `hessian`.
        memory: As in `hessian`.
        plan: That of another point of the session, for the same kind and parameters.

    Returns:
        The operator.
    """
    check_kind(kind)
    draws.check_seed(seed)
    check_count("samples", samples, 1)
    if memory is not None:
        check_count("memory", memory, 0)
    engine, objective = session.engine, session.objective
    objective.check_differentiable("curvature")
    check_loss(kind, engine.measure)
    space = session.space
    if params is not None:
        space = chosen_space(space.model, params, set(space.names))
    builder = (
        HessianBuilder(engine.measure)
        if kind == "hessian"
        else OutputBuilder(engine.measure, kind, seed, samples)
    )
    with engine.evaluating():
        made = Linearization(session, space, builder, memory=memory, plan=plan)
    decay = objective.weight_decay if kind in ("hessian", "ggn") else 0.0
    provenance = {
        **session.describe(),
        "kind": kind,
        "matrix": MATRICES[kind],
        "parameters": [e.name for e in space.entries],
        "weight_decay": decay,
        "batch_norm": statistics(session),
        "precision": arithmetic(engine.precision),
        "method": _method(made, kind),
        "asymmetry": made.plan.asymmetry,
        "seed": seed if kind == "fisher" else None,
        "samples": samples if kind == "fisher" else None,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    return Curvature(
        made,
        made.whole,
        layout_of(space),
        kind=kind,
        decay=decay,
        gradient=made.gradient,
        provenance=provenance,
    )


def check_kind(kind: object) -> None:
    """Refuse what is no kind of curvature.

    Args:
        kind: Of the user.

    Raises:
        ArgumentError: If it is none of `KINDS`.
    """
    if kind not in KINDS:
        raise ArgumentError(f"`kind` must be one of {', '.join(KINDS)}, got {kind!r}.")


def chosen_space(model: nn.Module, params: Selection, allowed: set[str]) -> ParameterSpace:
    """Some parameters of those that an objective or an operator has.

    Args:
        model: Theirs.
        params: Which.
        allowed: Names to choose among.

    Returns:
        Their space.

    Raises:
        ParameterMismatchError: If there are others among them.
    """
    space = ParameterSpace(model, params)
    if others := [e.name for e in space.entries if e.name not in allowed]:
        raise ParameterMismatchError(
            f"`params` must choose among the {len(allowed)} parameters at hand, got "
            f"{', '.join(others[:10])}; choose them for the Objective first."
        )
    return space


def _method(made: Linearization, kind: str) -> str:
    """How products are taken, in words."""
    what = "the gradient" if kind == "hessian" else "the output and its Jacobian"
    if made.plan.own:
        return (
            f"{MATRICES[kind]}: {what} of every batch anew at each product, by the model's own "
            "tensors, which something holds directly"
        )
    return (
        f"{MATRICES[kind]}: the graph of {what}, kept for {made.kept} of {made.batches} batches "
        "and formed anew for the others"
    )
