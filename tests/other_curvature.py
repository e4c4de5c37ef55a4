"""Published tools for curvature, as they are, on the models and matrices that landscapex is given.

A file that imports this one is skipped where they are not installed.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from pinned import skip_unless_installed, stand_ins
from torch import Tensor, nn
from torch.nn import functional as F

skip_unless_installed("curvlinops-for-pytorch", "hessian-eigenthings", "pyhessian")

# curvlinops imports these for Kronecker factors, inverses and Fisher matrices; nothing here calls
# them.
with stand_ins(
    "einops",
    "einconv",
    "einconv.utils",
    "linear_operator",
    "linear_operator.utils",
    "linear_operator.utils.linear_cg",
):
    import curvlinops
    import hessian_eigenthings
    import pyhessian
    from curvlinops._torch_base import PyTorchLinearOperator
    from curvlinops.papyan2020traces.spectrum import fast_lanczos

__all__ = [
    "curvlinops",
    "curvlinops_hessian",
    "curvlinops_matrix",
    "eigenthings_hessian",
    "eigenthings_matrix",
    "fast_lanczos",
    "flat",
    "hessian_eigenthings",
    "pyhessian",
    "pyhessian_hessian",
    "pyhessian_matrix",
    "pyhessian_product",
    "seeded",
    "silence",
]

Batches = Sequence[tuple[Tensor, Tensor]]


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """One vector of tensors."""
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def like(vector: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """A flat vector cut into the shapes of tensors."""
    pieces = vector.split([t.numel() for t in tensors])
    return [piece.view_as(t) for piece, t in zip(pieces, tensors, strict=True)]


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


# --- Cross entropy of a model --------------------------------------------------------------------


def curvlinops_hessian(
    model: nn.Module, batches: Batches, **options: Any
) -> curvlinops.HessianLinearOperator:
    """`HessianLinearOperator`; its products are ``operator @ v``."""
    return curvlinops.HessianLinearOperator(
        model, nn.CrossEntropyLoss(), _trainable(model), batches, **options
    )


def eigenthings_hessian(
    model: nn.Module, batches: Batches, **options: Any
) -> hessian_eigenthings.HessianOperator:
    """`HessianOperator`; its products are ``operator @ v``."""
    loss = hessian_eigenthings.supervised_loss(F.cross_entropy)
    return hessian_eigenthings.HessianOperator(model, batches, loss, **options)


def pyhessian_hessian(model: nn.Module, batches: Batches) -> pyhessian.hessian:
    """`hessian`, of one batch, whose gradient it keeps, or of several."""
    if len(batches) == 1:
        return pyhessian.hessian(model, F.cross_entropy, data=batches[0], cuda=False)
    return pyhessian.hessian(model, F.cross_entropy, dataloader=batches, cuda=False)


def pyhessian_product(made: pyhessian.hessian, vector: Tensor) -> Tensor:
    """The product that its methods take."""
    v = like(vector, made.params)
    if made.full_dataset:
        return flat(made.dataloader_hv_product(v)[1])
    return flat(pyhessian.hessian_vector_product(made.gradsH, made.params, v))


# --- A known matrix ------------------------------------------------------------------------------


class _Matrix(PyTorchLinearOperator):
    SELF_ADJOINT = True

    def __init__(self, matrix: Tensor) -> None:
        super().__init__([(len(matrix),)], [(len(matrix),)])
        self.matrix = matrix

    @property
    def device(self) -> torch.device:
        return self.matrix.device

    @property
    def dtype(self) -> torch.dtype:
        return self.matrix.dtype

    def _matmat(self, columns: list[Tensor]) -> list[Tensor]:
        return [self.matrix @ columns[0]]


def curvlinops_matrix(matrix: Tensor) -> PyTorchLinearOperator:
    """A symmetric matrix as an operator of curvlinops."""
    return _Matrix(matrix)


def eigenthings_matrix(matrix: Tensor) -> hessian_eigenthings.LambdaOperator:
    """A symmetric matrix as an operator of hessian-eigenthings."""
    return hessian_eigenthings.LambdaOperator(lambda v: matrix @ v, len(matrix), dtype=matrix.dtype)


class Quadratic(nn.Module):
    """``w A w / 2`` of its parameters, which are 0; whatever the inputs are."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(len(matrix), dtype=matrix.dtype))
        self.matrix = matrix

    def forward(self, _: Tensor) -> Tensor:
        return 0.5 * self.w @ self.matrix @ self.w


def pyhessian_matrix(matrix: Tensor) -> pyhessian.hessian:
    """A symmetric matrix as the Hessian that PyHessian finds; its vectors are always float32."""
    batch = (torch.zeros(1), torch.zeros(1))
    return pyhessian.hessian(
        Quadratic(matrix.float()), lambda output, _: output, data=batch, cuda=False
    )


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """curvlinops prints what differs when it finds a difference."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def seeded(seed: int, call: Callable[[], Any]) -> Any:
    """Call what draws from the global generator, which is all that PyHessian and curvlinops do."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return call()
