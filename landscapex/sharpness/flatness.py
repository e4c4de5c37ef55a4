"""Relative flatness of one layer (Petzka et al.)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from landscapex._batch import predict
from landscapex._numbers import check_count
from landscapex.curvature.draws import check_seed
from landscapex.curvature.linear import SymmetricOperator
from landscapex.curvature.operators import hessian
from landscapex.curvature.trace import trace
from landscapex.errors import ArgumentError
from landscapex.model.entries import Entry
from landscapex.objective import Objective, Point
from landscapex.session import Session
from landscapex.sharpness.layers import last_linear, weight_entry
from landscapex.sharpness.outcome import Sharpness
from landscapex.sharpness.probe import check_objective, probing

_METHODS = ("auto", "closed form", "trace")


def relative_flatness(
    objective: Objective,
    layer: str,
    *,
    method: str = "auto",
    products: int = 90,
    seed: int = 0,
    center: Point = None,
) -> Sharpness:
    r"""The trace of one layer's Hessian, weighted by the inner products of its rows.

    For a weight with rows :math:`w_s` it is :math:`\sum_{s,s'} \langle w_s, w_{s'} \rangle\,
    \mathrm{tr}\, H_{s,s'}` with :math:`H_{s,s'} = \partial^2 J / \partial w_s \partial w_{s'}`. It
    does not change when the rows of the layer are multiplied by numbers that the next layer
    undoes, nor when all of its inputs are multiplied by one number that it undoes; it does change
    under factors of single inputs.

    Closed form: for a last linear layer with inputs :math:`\phi` under cross entropy,
    :math:`E\, \lVert\phi\rVert^2 (\sum_s p_s \lVert w_s \rVert^2 - \lVert W^T p \rVert^2)`,
    exact in one pass. Otherwise the trace of :math:`L^T H L` with :math:`W W^T = L L^T`, by
    products with the Hessian of the layer: exact if their number suffices, estimated otherwise.

    Args:
        objective: Of the loss J; all of its data are used, and its weight decay.
        layer: Its name, or that of its weight. Filters of a convolution are rows.
        method: ``"closed form"``, ``"trace"``, or ``"auto"``: the first where it holds.
        products: How many products with the Hessian an estimate may take.
        seed: Of the estimate.
        center: The point; None for the live parameters.

    Returns:
        The measure, with the standard error of an estimate.

    Raises:
        ArgumentError: If an argument cannot be used, or the closed form is asked for where it does
            not hold.

    References:
        Petzka, Kamp, Adilova, Sminchisescu, Boley, "Relative Flatness and Generalization",
        NeurIPS 2021, definition 3 (without the traces' normalisation).

    Example:
        >>> import landscapex as lx
        >>> objective = lx.Objective(*lx.examples.digits())
        >>> found = lx.sharpness.relative_flatness(objective, "16")
        >>> found.settings
        {'layer': '16.weight', 'method': 'closed form'}
    """
    if method not in _METHODS:
        raise ArgumentError(f"`method` must be one of {', '.join(_METHODS)}, got {method!r}.")
    check_count("products", products, 2)
    check_seed(seed)
    check_objective(objective)
    entry = weight_entry(objective.space, layer)
    with probing(objective, center, gradients=False) as probe:
        loss = probe.center()
        weight = probe.session.center[entry.offset : entry.end].view(entry.shape[0], -1).double()
        exact = None if method == "trace" else _closed_form(probe.session, entry, weight)
        settings = {"layer": entry.name, "method": "closed form"}
        probe.losses += exact is not None
        found = probe.outcome("relative_flatness", exact or 0.0, loss, settings)
    if exact is not None:
        return found
    if method == "closed form":
        raise ArgumentError(
            "`method` must be 'trace' unless the layer is the last one, linear, used once, under "
            f"cross entropy without class weights, got 'closed form' for {layer!r}."
        )
    operator = weighted(hessian(objective, params=[entry.name], center=center), weight)
    estimate = trace(operator, products=products, seed=seed)
    return replace(
        found,
        value=estimate.value,
        standard_error=None if estimate.exact else estimate.standard_error,
        degrees=estimate.degrees,
        skewness=estimate.skewness,
        products=estimate.products,
        settings={
            "layer": entry.name, "method": "trace", "by": estimate.method,
            "products": products, "seed": seed,
        },
    )  # fmt: skip


def weighted(curvature: SymmetricOperator, weight: Tensor) -> SymmetricOperator:
    """``L^T H L`` for ``L = (U S) x I`` with the singular vectors and values of the weight.

    Args:
        curvature: H of the layer, ``(n_out n_in, n_out n_in)``.
        weight: ``(n_out, n_in)``.

    Returns:
        A matrix whose trace is the relative flatness, of ``n_in min(n_out, n_in)`` rows.
    """
    u, sizes, _ = torch.linalg.svd(weight, full_matrices=False)
    factor = (u * sizes).to(curvature.dtype)  # [n_out, r]
    rows, rank = factor.shape

    def product(z: Tensor) -> Tensor:
        made = curvature.apply((factor @ z.view(rank, -1)).reshape(-1))
        return (factor.T @ made.view(rows, -1)).reshape(-1)

    size = rank * weight.shape[1]
    return SymmetricOperator(product, size, curvature.dtype, curvature.device)


def _closed_form(session: Session, entry: Entry, weight: Tensor) -> float | None:
    """The exact value of a last layer under cross entropy; None where it does not hold."""
    measure, model = session.engine.measure, session.space.model
    layer = last_linear(model, entry)
    if measure.functional != "cross_entropy" or layer is None:
        return None
    if measure.options.get("weight") is not None:
        return None
    total = count = 0.0
    norms = weight.square().sum(1)  # [n_out]
    with torch.no_grad(), session.engine.evaluating():
        for inputs, output, target in _passes(session, layer):
            if inputs is None or target.ndim != 1 or target.is_floating_point():
                return None
            counted = target != measure.options.get("ignore_index", -100)
            p = output.double().softmax(1)
            spread = p @ norms - (p @ weight).square().sum(1)
            total += float((inputs.double().square().sum(1) * spread)[counted].sum())
            count += float(counted.sum())
    if not count:
        return None
    decay = session.engine.weight_decay * weight.shape[1] * float(norms.sum())
    return total / count + decay


def _passes(session: Session, layer: nn.Linear) -> Iterator[tuple[Tensor | None, Tensor, Tensor]]:
    """Inputs of a layer, output and target of each batch; inputs None if it is not the last."""
    calls: list[tuple[Tensor, Tensor]] = []
    handle = layer.register_forward_hook(lambda _, args, out: calls.append((args[0], out)))
    try:
        for batch in next(iter(session.engine.data.values())):
            calls.clear()
            output, target = predict(session.space.model, batch, session.engine.measure.name)
            last = len(calls) == 1 and output is calls[0][1] and output.ndim == 2
            yield (calls[0][0] if last else None), output, target
    finally:
        handle.remove()
