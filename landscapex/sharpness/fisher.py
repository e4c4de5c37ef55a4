"""The Fisher-Rao norm (Liang et al.)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from landscapex._batch import predict
from landscapex.curvature.operators import hessian
from landscapex.errors import ArgumentError
from landscapex.losses.measure import Measure
from landscapex.objective import Objective, Point
from landscapex.session import Session
from landscapex.sharpness.layers import homogeneous_layers
from landscapex.sharpness.outcome import Sharpness
from landscapex.sharpness.probe import probing

_METHODS = ("auto", "closed form", "definition")


def fisher_rao(objective: Objective, *, method: str = "auto", center: Point = None) -> Sharpness:
    r"""The squared length of the parameters in the metric of the empirical Fisher matrix.

    Definition: :math:`\theta^T I \theta` with :math:`I = E\, \nabla l \nabla l^T` over the samples
    and their labels, by one product with I. Closed form, for networks whose output is homogeneous
    in each of L layers of weights (rectifiers, no biases) and one loss per sample:
    :math:`L^2 E\, \langle \partial l / \partial f, f \rangle^2`, in one pass. It does not change
    when nodes of a rectifier network are rescaled. Weight decay has no part in it.

    Args:
        objective: Of the loss, one of ``torch.nn.functional`` or its criterion; all data are used.
        method: ``"closed form"``, ``"definition"``, or ``"auto"``: the first where it holds; the
            settings of the result say which it was.
        center: The point; None for the live parameters.

    Returns:
        The squared norm; exact for these data.

    Raises:
        ArgumentError: If the method is unknown, or the closed form is asked for where it does not
            hold.

    References:
        Liang, Poggio, Rakhlin, Stokes, "Fisher-Rao Metric, Geometry, and Complexity of Neural
        Networks", AISTATS 2019, definition 2 and theorem 3.1. L counts layers of weights; with
        biases the closed form is only approximate, and is not used.

    Example:
        >>> import torch, landscapex as lx
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4, bias=False), torch.nn.ReLU())
        >>> data = torch.randn(6, 3), torch.arange(6) % 4
        >>> lx.sharpness.fisher_rao(lx.Objective(model, data, "cross_entropy")).settings
        {'method': 'closed form', 'layers': 1}
    """
    if method not in _METHODS:
        raise ArgumentError(f"`method` must be one of {', '.join(_METHODS)}, got {method!r}.")
    with probing(objective, center, gradients=False) as probe:
        loss = probe.center()
        theta = probe.session.center.clone()
        layers = None if method == "definition" else homogeneous_layers(probe.space)
        square = None if layers is None else _output_products(probe.session)
        probe.losses += square is not None
        settings = {"method": "closed form", "layers": layers}
        value = (layers or 0) ** 2 * (square or 0.0)
        found = probe.outcome("fisher_rao", value, loss, settings)
    if square is not None:
        return found
    if method == "closed form":
        raise ArgumentError(
            "`method` must be 'definition' unless the model is a chain of layers without biases "
            "and the loss torch's own, one for each sample without weights, got 'closed form' for "
            f"{type(objective.model).__name__}."
        )
    fisher = hessian(objective, kind="empirical_fisher", center=center)
    value = float(torch.dot(theta.double(), fisher.apply(theta).double()))
    return replace(found, value=value, products=1, settings={"method": "definition"})


class _Given(nn.Module):
    """A model whose output is known already."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, *_: object, **__: object) -> Tensor:
        return self.output


def _output_products(session: Session) -> float | None:
    """The mean of ``<dl/df, f> ** 2`` over the samples; None if samples have weights."""
    measure = session.engine.measure
    if not measure.regroupable or measure.options.get("weight") is not None:
        return None
    total, count = 0.0, 0
    for batch in next(iter(session.engine.data.values())):
        with torch.no_grad(), session.engine.evaluating():
            output, target = predict(session.space.model, batch, measure.name)
        if not isinstance(output, Tensor) or not _one_loss_each(measure, output, target):
            return None
        output = output.detach().requires_grad_()
        with torch.enable_grad():
            mean = measure(_Given(output), batch).loss
            (slope,) = torch.autograd.grad(mean, output)
        # the batch mean weighs a sample by 1 / n
        products = len(output) * (slope.double() * output.double()).reshape(len(output), -1).sum(1)
        total += float(products.detach().square().sum())
        count += len(output)
    return total / count if count else None


def _one_loss_each(measure: Measure, output: Tensor, target: object) -> bool:
    """Whether every sample has one loss, and all of them count alike."""
    if measure.functional not in ("cross_entropy", "nll_loss"):
        return output.ndim > 0 and output.numel() == len(output)
    if not isinstance(target, Tensor) or output.ndim != 2:
        return False
    return not bool((target == measure.options.get("ignore_index", -100)).any())
