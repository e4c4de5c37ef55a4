"""Curvature matrices as whole matrices in float64, row by row: written from the definitions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

MeanAndWeight = Callable[[Callable[..., Any], Any], tuple[Tensor, float]]


def flat_leaves(model: nn.Module, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Copies of (some) parameters to differentiate by; tied ones once."""
    return {
        n: p.detach().clone().requires_grad_()
        for n, p in model.named_parameters()
        if (p.requires_grad if names is None else n in names)
    }


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


def rows(vector: Tensor, leaves: dict[str, Tensor]) -> Tensor:
    """The Jacobian of a flat vector, one backward pass per entry."""
    made = []
    for entry in vector.reshape(-1):
        found = [None] * len(leaves)
        if entry.requires_grad:
            found = torch.autograd.grad(
                entry, list(leaves.values()), retain_graph=True, allow_unused=True
            )
        made.append(
            flat(
                [
                    torch.zeros_like(p) if g is None else g
                    for g, p in zip(found, leaves.values(), strict=True)
                ]
            )
        )
    return torch.stack(made)


def dense_hessian(
    model: nn.Module, batches: Sequence[Any], term: MeanAndWeight, names: Any = None
) -> Tensor:
    """Second derivatives of ``sum_b n_b l_b / sum_b n_b``, entry by entry."""
    leaves = flat_leaves(model, names)

    def call(*args: Any, **kwargs: Any) -> Any:
        return functional_call(model, leaves, args, kwargs)

    with sdpa_kernel(SDPBackend.MATH):
        pairs = [term(call, batch) for batch in batches]
        loss = sum(n * value for value, n in pairs) / sum(n for _, n in pairs)
        gradient = torch.autograd.grad(
            loss, list(leaves.values()), create_graph=True, materialize_grads=True
        )
        return rows(flat(gradient), leaves)


def jacobian(model: nn.Module, inputs: Any, names: Any = None) -> tuple[Tensor, Tensor]:
    """Outputs and their Jacobian ``(entries of the output, P)``."""
    leaves = flat_leaves(model, names)
    with sdpa_kernel(SDPBackend.MATH):
        output = functional_call(model, leaves, (inputs,))
        return output.detach(), rows(output, leaves)


def dense_ggn(model: nn.Module, x: Tensor, loss: str, target: Tensor, names: Any = None) -> Tensor:
    """``1/N sum_i J_i^T A_i J_i`` with the Hessian A_i of the loss of sample i in closed form."""
    output, jac = jacobian(model, x, names)
    total = torch.zeros(jac.shape[1], jac.shape[1], dtype=torch.float64)
    width = output[0].numel()
    for i in range(len(output)):
        own = jac[i * width : (i + 1) * width]
        z = output[i].reshape(-1)
        if loss in ("cross_entropy", "nll_loss"):
            p = F.softmax(z, 0)
            a = torch.diag(p) - torch.outer(p, p)
        elif loss == "mse_loss":  # the mean is over entries
            a = 2 * torch.eye(width, dtype=z.dtype) / width
        else:
            p = z.sigmoid()
            a = torch.diag(p * (1 - p)) / width
        total += own.T @ a @ own
    return total / len(output)


def dense_empirical_fisher(
    model: nn.Module, x: Tensor, loss: str, target: Tensor, names: Any = None
) -> Tensor:
    """``1/W sum_n g_n g_n^T`` from one gradient per sample of the sum over its labels."""
    leaves = flat_leaves(model, names)
    total: Tensor | float = 0.0
    labels = 0
    for n in range(len(x)):
        value = getattr(F, loss)(
            functional_call(model, leaves, (x[n : n + 1],)), target[n : n + 1], reduction="none"
        )
        labels += value.numel()
        g = flat(torch.autograd.grad(value.sum(), list(leaves.values()), materialize_grads=True))
        total = total + torch.outer(g, g)
    return total / labels
