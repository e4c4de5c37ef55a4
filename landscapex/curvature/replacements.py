"""Functions of torch whose second derivatives are slow or wrong, written another way.

Of a convolution, torch writes the derivative of the weight gradient as a convolution with swapped
axes, of which the kernel is as large as the image: right, but slow; here it uses the kernels of
the first derivatives. The second derivative of batch norm by running statistics goes over its input
ten times where four will do. Of a fused weight norm, torch (2.13) forgets that the norm depends on
the weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class _Settings(NamedTuple):
    """What a convolution is, beside input and weight."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    transposed: bool
    output_padding: list[int]
    groups: int


class Replacements(TorchFunctionMode):
    """Replaces those functions while it is entered; the results are the same.

    Args:
        fixed: Whether derivatives of gradients are wanted by their cotangents alone, inputs and
            weights being constants: then nothing is computed for the latter.
    """

    def __init__(self, *, fixed: bool) -> None:
        super().__init__()
        self._fixed = fixed

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Called for every function of torch."""
        kwargs = kwargs or {}
        if func is torch._weight_norm:
            return _weight_norm(*args, **kwargs)
        if func in _CONVOLUTIONS:
            return self._convolution(func, args, kwargs)
        if func is F.batch_norm:
            return self._batch_norm(func, args, kwargs)
        return func(*args, **kwargs)

    def _convolution(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        dims, transposed, names = _CONVOLUTIONS[func]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        x, weight, bias = given["input"], given["weight"], given.get("bias")
        ours = x.ndim == dims + 2 and x.dtype == weight.dtype and x.is_floating_point()
        if not ours or _mapped(x, weight) or isinstance(given.get("padding"), str):
            return func(*args, **kwargs)
        settings = _Settings(
            _several(given.get("stride", 1), dims),
            _several(given.get("padding", 0), dims),
            _several(given.get("dilation", 1), dims),
            transposed,
            _several(given.get("output_padding", 0), dims),
            given.get("groups", 1),
        )
        return _Convolution.apply(x, weight, bias, settings, self._fixed)

    def _batch_norm(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        given = {**dict(zip(_BATCH_NORM, args, strict=False)), **kwargs}
        x, tensors = given["input"], [given.get(name) for name in _BATCH_NORM[1:5]]
        there = [t for t in tensors if t is not None and t.dtype == x.dtype]
        whole = len(there) == len(tensors) and x.is_floating_point()
        if given.get("training", False) or not whole or _mapped(x, *there):
            return func(*args, **kwargs)
        mean, variance, weight, bias = there
        shape = (-1, *[1] * (x.ndim - 2))
        scale = weight * (variance + given.get("eps", 1e-5)).rsqrt()
        centered = x - mean.reshape(shape)
        with torch.no_grad():  # the bits of the model: a kink may be next to a value
            output = func(*args, **kwargs)
        places = scale.reshape(shape), bias.reshape(shape)
        return _Affine.apply(centered, *places, self._fixed, [output])


class _Convolution(torch.autograd.Function):
    """The convolution itself."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        settings: _Settings,
        fixed: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.settings, ctx.fixed = settings, fixed
        return torch.ops.aten.convolution(x, weight, bias, *settings)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        if ctx.fixed:
            x, weight = x.detach(), weight.detach()
        wanted = ctx.needs_input_grad[:2]
        by_input, by_weight = _Gradients.apply(cotangent, x, weight, ctx.settings, wanted)
        by_bias = None
        if ctx.needs_input_grad[2]:
            by_bias = cotangent.sum([i for i in range(cotangent.ndim) if i != 1])
        return by_input, by_weight, by_bias, None, None


class _Gradients(torch.autograd.Function):
    """Both gradients of a convolution, linear in each of cotangent, input and weight."""

    @staticmethod
    def forward(
        ctx: Any,
        cotangent: Tensor,
        x: Tensor,
        weight: Tensor,
        settings: _Settings,
        wanted: tuple[bool, bool],
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.save_for_backward(cotangent, x, weight)
        ctx.settings = settings
        ctx.set_materialize_grads(False)
        return _gradients(cotangent, x, weight, settings, wanted)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, by_input: Tensor | None, by_weight: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        cotangent, x, weight = ctx.saved_tensors
        settings, needed = ctx.settings, ctx.needs_input_grad
        to_cotangent = to_x = to_weight = None
        if by_input is not None:
            if needed[0]:
                to_cotangent = torch.ops.aten.convolution(by_input, weight, None, *settings)
            if needed[2]:
                to_weight = _gradients(cotangent, by_input, weight, settings, (False, True))[1]
        if by_weight is not None:
            if needed[0]:
                moved = torch.ops.aten.convolution(x, by_weight, None, *settings)
                to_cotangent = moved if to_cotangent is None else to_cotangent.add_(moved)
            if needed[1]:
                to_x = _gradients(cotangent, x, by_weight, settings, (True, False))[0]
        return to_cotangent, to_x, to_weight, None, None


def _gradients(
    cotangent: Tensor, x: Tensor, weight: Tensor, settings: _Settings, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    by_input, by_weight, _ = torch.ops.aten.convolution_backward(
        cotangent, x, weight, None, *settings, (*wanted, False)
    )
    return by_input, by_weight


class _Affine(torch.autograd.Function):
    """``x scale + shift``, with one of both for each channel; the output is known."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, fixed: bool, output: list[Tensor]
    ) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.fixed = fixed
        return output[0]

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        x, scale = ctx.saved_tensors
        if ctx.fixed:
            x, scale = x.detach(), scale.detach()
        by_x, by_scale = _AffineGradients.apply(cotangent, x, scale, ctx.needs_input_grad[:2])
        by_shift = _per_channel(cotangent, scale) if ctx.needs_input_grad[2] else None
        return by_x, by_scale, by_shift, None, None


class _AffineGradients(torch.autograd.Function):
    """Gradients of `_Affine` by input and scale, linear in each of cotangent, input and scale."""

    @staticmethod
    def forward(
        ctx: Any, cotangent: Tensor, x: Tensor, scale: Tensor, wanted: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.save_for_backward(cotangent, x, scale)
        ctx.set_materialize_grads(False)
        by_x = cotangent * scale if wanted[0] else None
        return by_x, _per_channel(cotangent * x, scale) if wanted[1] else None

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, by_x: Tensor | None, by_scale: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        cotangent, x, scale = ctx.saved_tensors
        needed = ctx.needs_input_grad
        to_cotangent = to_x = to_scale = None
        if by_x is not None:
            if needed[0]:
                to_cotangent = by_x * scale
            if needed[2]:
                to_scale = _per_channel(by_x * cotangent, scale)
        if by_scale is not None:
            if needed[0]:
                moved = to_cotangent
                to_cotangent = x * by_scale if moved is None else moved.addcmul_(x, by_scale)
            if needed[1]:
                to_x = cotangent * by_scale
        return to_cotangent, to_x, to_scale, None


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    """Sums over samples and places, ``[C, 1, ...]``."""
    return values.sum([i for i in range(values.ndim) if i != 1]).reshape(like.shape)


def _mapped(*tensors: Tensor) -> bool:
    """Whether a transform of `torch.func` has wrapped one of them."""
    return any(torch._C._functorch.is_functorch_wrapped_tensor(t) for t in tensors)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """``g v / ||v||``, norms over all axes but one (-1: over all)."""
    others = [i for i in range(v.ndim) if i != dim]
    return v * (g / torch.linalg.vector_norm(v, dim=others, keepdim=dim != -1))


def _several(value: Any, dims: int) -> list[int]:
    """One number per dimension."""
    values = [value] if isinstance(value, int) else list(value)
    return values * dims if len(values) == 1 else values


_STRAIGHT = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = (
    "input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"
)  # fmt: skip
_BATCH_NORM = (
    "input",
    "running_mean",
    "running_var",
    "weight",
    "bias",
    "training",
    "momentum",
    "eps",
)
_CONVOLUTIONS = {
    **{getattr(torch, f"conv{n}d"): (n, False, _STRAIGHT) for n in (1, 2, 3)},
    **{getattr(torch, f"conv_transpose{n}d"): (n, True, _TRANSPOSED) for n in (1, 2, 3)},
}
