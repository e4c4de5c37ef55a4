"""Elementwise operators: activations, arithmetic, choices by a mask."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from landscapex.engine.lowering.lanes import Denominator, Entries, Lanes, Scalar
from landscapex.engine.lowering.registry import handles
from landscapex.engine.lowering.walk import Lowering
from landscapex.engine.plan import NotCapturedError
from landscapex.engine.steps import Activation

# --- functions of one value -----------------------------------------------------------------------


def activate(
    low: Lowering, node: fx.Node, x: Any, name: str, a: float = 0.0, b: float = 0.0
) -> Lanes:
    """Add a step that applies a function of `steps.ACTIVATIONS`.

    Args:
        low: The lowering.
        node: Whose value it computes.
        x: Live or batch value.
        name: Of the function.
        a: Its first parameter.
        b: Its second.

    Returns:
        The value.

    Raises:
        NotCapturedError: If it is the loss of a batch.
    """
    if isinstance(x, Scalar):
        raise NotCapturedError(f"{name} of a loss")
    return low.map("copy", node, x, activation=Activation(name, float(a), float(b)))


def _plain(name: str) -> Callable[..., Lanes]:
    def handler(low: Lowering, node: fx.Node, x: Any) -> Lanes:
        return activate(low, node, x, name)

    return handler


for _aten, _name in {
    "relu": "relu", "silu": "silu", "mish": "mish", "sigmoid": "sigmoid", "tanh": "tanh",
    "hardswish": "hardswish", "hardsigmoid": "hardsigmoid", "softsign": "softsign",
    "log_sigmoid": "logsigmoid", "exp": "exp", "log": "log", "log1p": "log1p", "sqrt": "sqrt",
    "rsqrt": "rsqrt", "square": "square", "reciprocal": "reciprocal", "abs": "abs",
    "sin": "sin", "cos": "cos", "erf": "erf",
}.items():  # fmt: skip
    handles(_aten)(_plain(_name))


@handles("relu6")
def _relu6(low: Lowering, node: fx.Node, x: Any) -> Lanes:
    return activate(low, node, x, "clamp", 0.0, 6.0)


@handles("log_sigmoid_forward")
def _log_sigmoid(low: Lowering, node: fx.Node, x: Any) -> tuple[Lanes, None]:
    return activate(low, node, x, "logsigmoid"), None


@handles("leaky_relu")
def _leaky_relu(low: Lowering, node: fx.Node, x: Any, slope: float) -> Lanes:
    return activate(low, node, x, "leaky_relu", slope)


@handles("elu")
def _elu(low: Lowering, node: fx.Node, x: Any, alpha: float, scale: float, inner: float) -> Lanes:
    """``scale * x`` above 0, ``scale * alpha * (exp(inner * x) - 1)`` below."""
    if inner != 1:
        x = activate(low, node, x, "scale", inner)
    return activate(low, node, x, "elu", alpha * inner, scale / inner)


@handles("selu")
def _selu(low: Lowering, node: fx.Node, x: Any) -> Lanes:
    return _elu(low, node, x, 1.6732632423543772848, 1.0507009873554804934, 1.0)


@handles("celu")
def _celu(low: Lowering, node: fx.Node, x: Any, alpha: float) -> Lanes:
    return _elu(low, node, x, alpha, 1.0, 1.0 / alpha)


@handles("gelu")
def _gelu(low: Lowering, node: fx.Node, x: Any, approximate: str) -> Lanes:
    return activate(low, node, x, "gelu_tanh" if approximate == "tanh" else "gelu")


@handles("softplus")
def _softplus(low: Lowering, node: fx.Node, x: Any, beta: float, threshold: float) -> Lanes:
    return activate(low, node, x, "softplus", beta, threshold)


@handles("hardtanh", "clamp")
def _clamp(low: Lowering, node: fx.Node, x: Any, least: float | None, most: float | None) -> Lanes:
    least = -math.inf if least is None else least
    return activate(low, node, x, "clamp", least, math.inf if most is None else most)


@handles("clamp_min")
def _clamp_min(low: Lowering, node: fx.Node, x: Any, least: float) -> Lanes:
    return _clamp(low, node, x, least, None)


@handles("clamp_max")
def _clamp_max(low: Lowering, node: fx.Node, x: Any, most: float) -> Lanes:
    return _clamp(low, node, x, None, most)


@handles("hardshrink")
def _hardshrink(low: Lowering, node: fx.Node, x: Any, lambd: float) -> Lanes:
    return activate(low, node, x, "hardshrink", lambd)


@handles("softshrink")
def _softshrink(low: Lowering, node: fx.Node, x: Any, lambd: float) -> Lanes:
    return activate(low, node, x, "softshrink", lambd)


@handles("threshold")
def _threshold(low: Lowering, node: fx.Node, x: Any, threshold: float, value: float) -> Lanes:
    return activate(low, node, x, "threshold", threshold, value)


@handles("expm1")
def _expm1(low: Lowering, node: fx.Node, x: Any) -> Lanes:
    """Exact near 0: ``expm1(x) = elu(x)`` below 0, and ``-exp(x) elu(-x)`` above."""
    below = low.map("minimum", node, x, 0.0, activation=Activation("elu", 1.0, 1.0))
    above = low.map("maximum", node, x, 0.0)
    turned = activate(low, node, activate(low, node, above, "neg"), "elu", 1.0, 1.0)
    grown = activate(low, node, above, "exp")
    return low.map("sub", node, below, low.map("mul", node, grown, turned))


@handles("log2")
def _log2(low: Lowering, node: fx.Node, x: Any) -> Lanes:
    return activate(low, node, activate(low, node, x, "log"), "scale", 1 / math.log(2))


@handles("log10")
def _log10(low: Lowering, node: fx.Node, x: Any) -> Lanes:
    return activate(low, node, activate(low, node, x, "log"), "scale", 1 / math.log(10))


@handles("exp2")
def _exp2(low: Lowering, node: fx.Node, x: Any) -> Lanes:
    return low.map("pow", node, 2.0, x)


@handles("pow.Tensor_Scalar")
def _power(low: Lowering, node: fx.Node, x: Any, exponent: float) -> Any:
    if exponent == 1:
        return x
    named = {2: "square", 0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}.get(exponent)
    return activate(low, node, x, named) if named else activate(low, node, x, "power", exponent)


@handles("glu")
def _glu(low: Lowering, node: fx.Node, x: Any, dim: int) -> Lanes:
    x = low.live(x)
    value, gate = (low.moved(x, part) for part in x.index.chunk(2, dim))
    return low.map("mul", node, value, activate(low, node, gate, "sigmoid"))


@handles("prelu", "_prelu_kernel")
def _prelu(low: Lowering, node: fx.Node, x: Any, weight: Any) -> Lanes:
    """``w * min(x, 0) + max(x, 0)``, a slope for each channel or one for all."""
    channels = math.prod(weight.shape)
    if channels > 1 and len(weight.shape) == 1:
        sizes = (channels, *(1,) * (len(low.shape(node)) - 2))
        weight = (
            Entries(weight.slot, weight.index.view(sizes))
            if isinstance(weight, Entries)
            else weight.view(sizes)
        )
    below = low.map("minimum", node, x, 0.0)
    above = activate(low, node, x, "relu")
    return low.map("scale_shift", node, below, weight, above)


# --- arithmetic -----------------------------------------------------------------------------------


@handles("add.Tensor", "add.Scalar")
def _add(low: Lowering, node: fx.Node, x: Any, y: Any, alpha: float) -> Any:
    _refuse_sizes(node)
    if isinstance(x, Scalar) or isinstance(y, Scalar):
        return _number(x).plus(_number(y).times(alpha))
    if alpha != 1:
        return low.map("scale_shift", node, y, alpha, x)
    return low.map("add", node, x, y)


@handles("sub.Tensor", "sub.Scalar")
def _sub(low: Lowering, node: fx.Node, x: Any, y: Any, alpha: float) -> Any:
    _refuse_sizes(node)
    if alpha == 1 and not (isinstance(x, Scalar) or isinstance(y, Scalar)):
        return low.map("sub", node, x, y)
    return _add(low, node, x, y, -alpha)


@handles("rsub.Tensor", "rsub.Scalar")
def _rsub(low: Lowering, node: fx.Node, x: Any, y: Any, alpha: float) -> Any:
    return _sub(low, node, y, x, alpha)


@handles("mul.Tensor", "mul.Scalar")
def _mul(low: Lowering, node: fx.Node, x: Any, y: Any) -> Any:
    _refuse_sizes(node)
    if isinstance(x, Scalar) or isinstance(y, Scalar):
        loss, factor = (x, y) if isinstance(x, Scalar) else (y, x)
        return loss.times(_factor(factor, "a product of losses"))
    return low.map("mul", node, x, y)


@handles("div.Tensor", "div.Scalar")
def _div(low: Lowering, node: fx.Node, x: Any, y: Any) -> Any:
    if isinstance(x, Scalar) or isinstance(y, Scalar):
        if not isinstance(x, Scalar):
            raise NotCapturedError("a quotient of losses")
        if _counts_samples(node.args[1]):
            return _per_sample(x, int(y))
        return x.times(1 / _factor(y, "a quotient of losses"))
    _refuse_sizes(node)
    return low.map("div", node, x, y)


def _counts_samples(argument: Any) -> bool:
    """Whether a number is a size that depends on the batch: it was evaluated for one sample."""
    return isinstance(argument, fx.Node) and isinstance(argument.meta.get("val"), torch.SymInt)


def _refuse_sizes(node: fx.Node) -> None:
    if any(_counts_samples(argument) for argument in node.args):
        raise NotCapturedError("arithmetic with the number of samples")


def _per_sample(loss: Scalar, entries: int) -> Scalar:
    """A sum over the samples, divided by a multiple of how many they are."""
    if loss.constant or any(part.denominator is not None for part in loss.parts):
        raise NotCapturedError("a mean divided by the number of samples")
    divided = (replace(part, denominator=Denominator(per_sample=entries)) for part in loss.parts)
    return Scalar(tuple(divided))


def _number(x: Any) -> Scalar:
    return x if isinstance(x, Scalar) else Scalar((), _factor(x, "a penalty beside the loss"))


def _factor(x: Any, what: str) -> float:
    """A number that is the same for all batches and points."""
    if isinstance(x, int | float) or (isinstance(x, Tensor) and x.numel() == 1):
        return float(x)
    raise NotCapturedError(what)


@handles("neg")
def _neg(low: Lowering, node: fx.Node, x: Any) -> Any:
    return x.times(-1.0) if isinstance(x, Scalar) else activate(low, node, x, "neg")


@handles("maximum", "clamp_min.Tensor", "max.other")
def _maximum(low: Lowering, node: fx.Node, x: Any, y: Any) -> Lanes:
    return low.map("maximum", node, x, y)


@handles("minimum", "clamp_max.Tensor", "min.other")
def _minimum(low: Lowering, node: fx.Node, x: Any, y: Any) -> Lanes:
    return low.map("minimum", node, x, y)


@handles("clamp.Tensor")
def _clamp_between(low: Lowering, node: fx.Node, x: Any, least: Any, most: Any) -> Any:
    x = x if least is None else low.map("maximum", node, x, least)
    return x if most is None else low.map("minimum", node, x, most)


@handles("pow.Tensor_Tensor", "pow.Scalar")
def _pow(low: Lowering, node: fx.Node, x: Any, y: Any) -> Lanes:
    return low.map("pow", node, x, y)


@handles("addcmul")
def _addcmul(low: Lowering, node: fx.Node, x: Any, y: Any, z: Any, value: float) -> Lanes:
    if value != 1:
        return low.map("scale_shift", node, low.map("mul", node, y, z), value, x)
    return low.map("scale_shift", node, y, z, x)


@handles("addcdiv")
def _addcdiv(low: Lowering, node: fx.Node, x: Any, y: Any, z: Any, value: float) -> Lanes:
    ratio = low.map("div", node, y, z)
    return low.map("scale_shift", node, ratio, value, x)


@handles("lerp.Scalar", "lerp.Tensor")
def _lerp(low: Lowering, node: fx.Node, x: Any, y: Any, weight: Any) -> Lanes:
    return low.map("scale_shift", node, low.map("sub", node, y, x), weight, x)


# --- comparisons and choices: a mask is true where it is not 0 ------------------------------------


def _not(low: Lowering, node: fx.Node, mask: Any) -> Lanes:
    return low.map("where", node, mask, 0.0, 1.0)


def _beyond(low: Lowering, node: fx.Node, x: Any, y: Any) -> Lanes:
    """1 where ``x <= y``, 0 where ``x > y`` or one of them is NaN."""
    for bound in (x, y):
        if isinstance(bound, int | float) and math.isinf(bound):
            raise NotCapturedError("a comparison with infinity")
    return _not(low, node, low.map("sub", node, x, y, activation=Activation("relu")))


@handles("le.Scalar", "le.Tensor")
def _le(low: Lowering, node: fx.Node, x: Any, y: Any) -> Lanes:
    return _beyond(low, node, x, y)


@handles("ge.Scalar", "ge.Tensor")
def _ge(low: Lowering, node: fx.Node, x: Any, y: Any) -> Lanes:
    return _beyond(low, node, y, x)


@handles("gt.Scalar", "gt.Tensor")
def _gt(low: Lowering, node: fx.Node, x: Any, y: Any) -> Lanes:
    return low.map("where", node, _beyond(low, node, x, y), 0.0, _beyond(low, node, y, x))


@handles("lt.Scalar", "lt.Tensor")
def _lt(low: Lowering, node: fx.Node, x: Any, y: Any) -> Lanes:
    return _gt(low, node, y, x)


@handles("eq.Scalar", "eq.Tensor")
def _eq(low: Lowering, node: fx.Node, x: Any, y: Any) -> Lanes:
    return low.map("mul", node, _beyond(low, node, x, y), _beyond(low, node, y, x))


@handles("ne.Scalar", "ne.Tensor")
def _ne(low: Lowering, node: fx.Node, x: Any, y: Any) -> Lanes:
    return _not(low, node, _eq(low, node, x, y))


@handles("logical_and", "__and__.Tensor", "bitwise_and.Tensor")
def _and(low: Lowering, node: fx.Node, x: Any, y: Any) -> Lanes:
    return low.map("where", node, x, y, 0.0)


@handles("logical_or", "__or__.Tensor", "bitwise_or.Tensor")
def _or(low: Lowering, node: fx.Node, x: Any, y: Any) -> Lanes:
    return low.map("where", node, x, 1.0, y)


@handles("logical_not", "bitwise_not")
def _negation(low: Lowering, node: fx.Node, mask: Any) -> Lanes:
    return _not(low, node, mask)


@handles("where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar")
def _where(low: Lowering, node: fx.Node, mask: Any, x: Any, y: Any) -> Lanes:
    return low.map("where", node, mask, x, y)


@handles("masked_fill.Scalar", "masked_fill.Tensor")
def _masked_fill(low: Lowering, node: fx.Node, x: Any, mask: Any, value: Any) -> Lanes:
    return low.map("where", node, mask, value, x)


@handles("sign", "sgn")
def _sign(low: Lowering, node: fx.Node, x: Any) -> Lanes:
    return low.map("sub", node, _beyond(low, node, 0.0, x), _beyond(low, node, x, 0.0))
