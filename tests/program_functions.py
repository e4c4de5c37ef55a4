"""The functions that steps apply to single numbers, in float64: activations and losses."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy import special

from landscapex.engine.steps import ACTIVATIONS, ELEMENT_LOSSES, Activation

Array = np.ndarray


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _softplus(x: Array, a: float, b: float) -> Array:
    return np.where(a * x > b, x, np.log1p(np.exp(a * x)) / a)


def _gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


_FUNCTIONS: dict[str, Callable[[Array, float, float], Array]] = {
    "none": lambda x, a, b: x,
    "relu": lambda x, a, b: np.maximum(x, 0),
    "leaky_relu": lambda x, a, b: np.where(x > 0, x, a * x),
    "elu": lambda x, a, b: np.where(x > 0, b * x, b * a * np.expm1(x)),
    "gelu": lambda x, a, b: 0.5 * x * (1 + special.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x, a, b: _gelu_tanh(x),
    "silu": lambda x, a, b: x * sigmoid(x),
    "mish": lambda x, a, b: x * np.tanh(np.logaddexp(0, x)),
    "softplus": _softplus,
    "sigmoid": lambda x, a, b: sigmoid(x),
    "tanh": lambda x, a, b: np.tanh(x),
    "clamp": np.clip,
    "hardswish": lambda x, a, b: x * np.clip(x + 3, 0, 6) / 6,
    "hardsigmoid": lambda x, a, b: np.clip(x + 3, 0, 6) / 6,
    "hardshrink": lambda x, a, b: np.where(np.abs(x) <= a, 0, x),
    "softshrink": lambda x, a, b: np.sign(x) * np.maximum(np.abs(x) - a, 0),
    "softsign": lambda x, a, b: x / (1 + np.abs(x)),
    "logsigmoid": lambda x, a, b: np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x))),
    "exp": lambda x, a, b: np.exp(x),
    "log": lambda x, a, b: np.log(x),
    "log1p": lambda x, a, b: np.log1p(x),
    "sqrt": lambda x, a, b: np.sqrt(x),
    "rsqrt": lambda x, a, b: 1 / np.sqrt(x),
    "square": lambda x, a, b: x * x,
    "reciprocal": lambda x, a, b: 1 / x,
    "abs": lambda x, a, b: np.abs(x),
    "neg": lambda x, a, b: -x,
    "sin": lambda x, a, b: np.sin(x),
    "cos": lambda x, a, b: np.cos(x),
    "erf": lambda x, a, b: special.erf(x),
    "scale": lambda x, a, b: a * x,
    "shift": lambda x, a, b: x + a,
    "power": lambda x, a, b: np.power(x, a),
    "threshold": lambda x, a, b: np.where(x > a, x, b),
}
assert tuple(_FUNCTIONS) == ACTIVATIONS


def activate(activation: Activation, x: Array) -> Array:
    """Apply an activation."""
    value = _FUNCTIONS[activation.name](x, activation.a, activation.b)
    return np.where(np.isnan(x), np.nan, value)


# --- losses of elements -------------------------------------------------------------------------


def _huber(x: Array, t: Array, a: float) -> Array:
    d = np.abs(x - t)
    return np.where(d <= a, 0.5 * d * d, a * (d - 0.5 * a))


def _smooth_l1(x: Array, t: Array, a: float) -> Array:
    d = np.abs(x - t)
    return np.where(d < a, 0.5 * d * d / a, d - 0.5 * a) if a else d


def _bce(x: Array, t: Array, a: float) -> Array:
    # torch bounds the logarithms from below
    return -(t * np.maximum(np.log(x), -100) + (1 - t) * np.maximum(np.log1p(-x), -100))


def _bce_logits(x: Array, t: Array, a: float) -> Array:
    softplus = np.maximum(-x, 0) + np.log1p(np.exp(-np.abs(x)))  # log(1 + exp(-x))
    return (1 - t) * x + (1 + (a - 1) * t) * softplus


LOSSES: dict[str, Callable[[Array, Array, float], Array]] = {
    "identity": lambda x, t, a: x,
    "mse": lambda x, t, a: (x - t) ** 2,
    "l1": lambda x, t, a: np.abs(x - t),
    "smooth_l1": _smooth_l1,
    "huber": _huber,
    "bce": _bce,
    "bce_logits": _bce_logits,
    "poisson": lambda x, t, a: x - t * np.log(x + a),
    "poisson_log": lambda x, t, a: np.exp(x) - t * x,
    "soft_margin": lambda x, t, a: np.log1p(np.exp(-t * x)),
    "kl": lambda x, t, a: special.xlogy(t, t) - t * x,
    "kl_log": lambda x, t, a: np.exp(t) * (t - x),
}
assert tuple(LOSSES) == ELEMENT_LOSSES
