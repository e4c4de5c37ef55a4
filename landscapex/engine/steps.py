"""Steps of the grid program: what each of them reads, computes and writes.

A step names the buffers and weights of its `landscapex.engine.program.Program` by number, and their
elements by tables. NONE, AFFINE and FULL are those of `landscapex.engine.program.Grid`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

Table: TypeAlias = np.ndarray
"""int32, C-contiguous: numbers of elements."""


def table(values: Sequence[int] | np.ndarray) -> Table:
    """Element numbers as steps hold them.

    Args:
        values: Integers of any shape.

    Returns:
        int32, contiguous.
    """
    return np.ascontiguousarray(values, dtype=np.int32)


@dataclass(frozen=True)
class Activation:
    """A function applied to what a step is about to write; ``a`` and ``b`` are its parameters."""

    name: str = "none"
    a: float = 0.0
    b: float = 0.0


ACTIVATIONS = (
    "none", "relu", "leaky_relu", "elu", "gelu", "gelu_tanh", "silu", "mish", "softplus",
    "sigmoid", "tanh", "clamp", "hardswish", "hardsigmoid", "hardshrink", "softshrink", "softsign",
    "logsigmoid", "exp", "log", "log1p", "sqrt", "rsqrt", "square", "reciprocal", "abs", "neg",
    "sin", "cos", "erf", "scale", "shift", "power", "threshold",
)  # fmt: skip
"""Names of activations. Parameters: leaky_relu(a = slope); elu(a = alpha, b = scale: b * a *
(exp(x) - 1) below 0, b * x above; serves selu and celu's alpha 1); softplus(a = beta, b =
threshold); clamp(a = low, b = high: relu6, hardtanh); hardshrink, softshrink(a = lambda); scale
(a * x); shift(x + a); power(x ** a); threshold(x if x > a else b). NaN stays NaN in all of them."""

NONE = Activation()


@dataclass(frozen=True)
class Operand:
    """What a `Map` reads.

    Attributes:
        kind: ``"buffer"`` (NONE, AFFINE or FULL), ``"weight"`` or ``"number"``.
        id: Of the buffer or weight.
        at: One element (buffer) or entry (weight) for each output.
        value: Of a number.
    """

    kind: str
    id: int = -1
    at: Table | None = None
    value: float = 0.0


@dataclass(frozen=True)
class Contract:
    """Linear layers and convolutions: a sum over taps, for every position and output channel.

    ``out[to[p] + channels[g, m]] = act(scale * (bias + sum_r w[g, m, r] *
    input[at[p] + group[g] + taps[r]]) + shift + residual[residual_at[p] +
    residual_channels[g, m]])``; scale, shift, bias and residual where they are given.

    Attributes:
        input: Buffer; NONE or FULL (NONE if the output is AFFINE).
        taps: ``[R]``.
        at: ``[P]``.
        group: ``[groups]``.
        out: Buffer; AFFINE to share the products among all points.
        to: ``[P]``.
        channels: ``[groups, M]``.
        weight: Of ``groups * M * R`` entries in the order of `contract_order`.
        bias: Weight of ``groups * M`` entries, or -1.
        scale: Likewise.
        shift: Likewise.
        residual: Buffer (any grid; AFFINE is combined on the fly), or -1.
        residual_at: ``[P]`` or empty.
        residual_channels: ``[groups, M]`` or empty.
        activation: Applied last.
    """

    input: int
    taps: Table
    at: Table
    group: Table
    out: int
    to: Table
    channels: Table
    weight: int
    bias: int = -1
    scale: int = -1
    shift: int = -1
    residual: int = -1
    residual_at: Table = field(default_factory=lambda: np.zeros(0, np.int32))
    residual_channels: Table = field(default_factory=lambda: np.zeros(0, np.int32))
    activation: Activation = NONE


@dataclass(frozen=True)
class Winograd:
    """A 3 x 3 convolution of stride 1 as F(4 x 4, 3 x 3) (Lavin and Gray, CVPR 2016).

    Height and width are multiples of 4, channels multiples of 8. Element (c, y, x) of the input
    *with its halo* lies at ``input_at + c * input_channel + y * input_row + x``; the first tap of
    output (0, 0) is (0, 0) there. Outputs and residuals likewise, without halo.

    Attributes:
        input: Buffer, FULL or NONE.
        out: Buffer, FULL.
        weight: A `Weight` with ``winograd=(outputs, inputs)``.
        bias: Weight of ``outputs`` entries, or -1.
        scale: Likewise.
        shift: Likewise.
        residual: Buffer (not AFFINE), or -1.
        activation: Applied last.
    """

    input: int
    input_at: int
    input_channel: int
    input_row: int
    inputs: int
    out: int
    out_at: int
    out_channel: int
    out_row: int
    outputs: int
    height: int
    width: int
    weight: int
    bias: int = -1
    scale: int = -1
    shift: int = -1
    residual: int = -1
    residual_at: int = 0
    residual_channel: int = 0
    residual_row: int = 0
    activation: Activation = NONE


MAP_OPS = (
    "copy", "add", "sub", "mul", "div", "maximum", "minimum", "pow", "scale_shift", "where",
)  # fmt: skip
"""``copy`` a; binary on a, b; ``scale_shift`` a * b + c; ``where`` b where a != 0, else c."""


@dataclass(frozen=True)
class Map:
    """Elementwise: ``out[to[i]] = act(op(a[i], b[i], c[i]))``.

    A `Map` whose output is AFFINE copies one AFFINE buffer, without activation; every other reads
    AFFINE buffers by combining their sets on the fly.

    Attributes:
        op: One of `MAP_OPS`.
        operands: One, two or three.
        out: Buffer.
        to: ``[n]``.
        activation: Applied last.
    """

    op: str
    operands: tuple[Operand, ...]
    out: int
    to: Table
    activation: Activation = NONE


@dataclass(frozen=True)
class Reduce:
    """Pooling, means, maxima, interpolation: ``out[to[i]]`` from ``input[sources[j]]``.

    ``j`` runs from ``offsets[i]`` to ``offsets[i + 1]``; ``sum`` takes ``scale * sum_j
    coefficients[j] x_j`` (coefficients 1 if None), ``max``, ``min`` and ``prod`` what they say.
    NaN stays NaN in all of them.

    Attributes:
        op: ``"sum"``, ``"max"``, ``"min"`` or ``"prod"``.
        input: Buffer, any grid; AFFINE is combined on the fly unless the output is AFFINE.
        offsets: ``[n + 1]``.
        sources: ``[offsets[n]]``.
        out: Buffer; AFFINE only for ``sum`` without activation.
        to: ``[n]``.
        coefficients: float32, or None.
        scale: Factor of a sum.
        activation: Applied last.
    """

    op: str
    input: int
    offsets: Table
    sources: Table
    out: int
    to: Table
    coefficients: np.ndarray | None = None
    scale: float = 1.0
    activation: Activation = NONE


@dataclass(frozen=True)
class Normalize:
    """Layer, group, instance and RMS norm: each group of elements by its own mean and variance.

    ``(x - mean) / sqrt(var + eps) * gamma + beta``; RMS norm leaves the mean out and takes the mean
    square for the variance (biased in both).

    Attributes:
        input: Buffer, FULL or NONE.
        sources: ``[groups, count]``.
        out: Buffer, FULL.
        to: ``[groups, count]``.
        gamma: Weight, or -1.
        gamma_at: ``[groups, count]`` entries, or empty.
        beta: Weight, or -1.
        beta_at: Likewise.
        eps: Added to the variance.
        rms: Whether it is RMS norm.
        activation: Applied last.
    """

    input: int
    sources: Table
    out: int
    to: Table
    gamma: int = -1
    gamma_at: Table = field(default_factory=lambda: np.zeros(0, np.int32))
    beta: int = -1
    beta_at: Table = field(default_factory=lambda: np.zeros(0, np.int32))
    eps: float = 1e-5
    rms: bool = False
    activation: Activation = NONE


@dataclass(frozen=True)
class Softmax:
    """Softmax, or its logarithm, over each row of ``sources [groups, count]``.

    Attributes:
        input: Buffer, FULL or NONE.
        sources: ``[groups, count]``.
        out: Buffer, FULL.
        to: ``[groups, count]``.
        log: Whether the logarithm is wanted.
        safe: Zeros instead of NaN for rows of nothing but -inf (masked attention).
    """

    input: int
    sources: Table
    out: int
    to: Table
    log: bool = False
    safe: bool = False


@dataclass(frozen=True)
class MatMul:
    """Products of two live matrices: ``out[to[b, i, j]] = scale * sum_k x[b, i, k] y[b, k, j]``.

    Attributes:
        x: Buffer, FULL or NONE.
        x_at: ``[B, I, K]``.
        y: Buffer, FULL or NONE.
        y_at: ``[B, K, J]``.
        out: Buffer, FULL.
        to: ``[B, I, J]``.
        scale: Factor.
    """

    x: int
    x_at: Table
    y: int
    y_at: Table
    out: int
    to: Table
    scale: float = 1.0


@dataclass(frozen=True)
class LstmCell:
    """``c' = sigmoid(f) c + sigmoid(i) tanh(g)``; ``h = sigmoid(o) tanh(c')``.

    Attributes:
        gates: Buffer, FULL.
        gates_at: ``[4, H]``, in the order i, f, g, o.
        cell: Buffer of c, or -1 for zeros.
        cell_at: ``[H]`` or empty.
        cell_out: Buffer of c'.
        cell_to: ``[H]``.
        out: Buffer of h.
        to: ``[H]``.
    """

    gates: int
    gates_at: Table
    cell: int
    cell_at: Table
    cell_out: int
    cell_to: Table
    out: int
    to: Table


@dataclass(frozen=True)
class GruCell:
    """``r, z = sigmoid(x + h)``; ``n = tanh(x_n + r h_n)``; ``h' = (1 - z) n + z h``.

    Attributes:
        x: Buffer of the input's part of the gates (biases included), FULL or AFFINE.
        x_at: ``[3, H]``, in the order r, z, n.
        h: Buffer of the hidden state's part (biases included), FULL.
        h_at: ``[3, H]``.
        hidden: Buffer of h, or -1 for zeros.
        hidden_at: ``[H]`` or empty.
        out: Buffer of h'.
        to: ``[H]``.
    """

    x: int
    x_at: Table
    h: int
    h_at: Table
    hidden: int
    hidden_at: Table
    out: int
    to: Table


@dataclass(frozen=True)
class Embedding:
    """``out[to[i, d]] = weight[index[at[i]] * D + d]``; the weight is ``[V, D]`` row-major.

    Attributes:
        index: Index buffer; entries lie between 0 and V - 1.
        at: ``[n]``.
        weight: Of ``V * D`` entries.
        out: Buffer, FULL.
        to: ``[n, D]``.
    """

    index: int
    at: Table
    weight: int
    out: int
    to: Table


@dataclass(frozen=True)
class CrossEntropy:
    """Adds to term `term` the weighted negative log-likelihoods of a tile, in float64.

    With class weights w, smoothing s and C classes, a position with label y adds ``(1 - s) w_y
    (-log p_y) + s / C sum_c w_c (-log p_c)``, and nothing if y is ``ignore_index``; class
    probabilities q add ``-sum_c w_c ((1 - s) q_c + s / C) log p_c``.

    Attributes:
        input: Buffer of logits (of log-probabilities with `log_input`), FULL or NONE or AFFINE.
        sources: ``[n, C]``.
        target: Index buffer of labels, or input buffer of probabilities.
        target_at: ``[n]``, or ``[n, C]`` for probabilities.
        term: Which sum.
        class_weight: float32 ``[C]``, or None.
        ignore_index: Label that does not count.
        smoothing: Label smoothing.
        log_input: Whether the input holds log-probabilities (NLL).
        probabilities: Whether the target holds probabilities.
    """

    input: int
    sources: Table
    target: int
    target_at: Table
    term: int
    class_weight: np.ndarray | None = None
    ignore_index: int = -100
    smoothing: float = 0.0
    log_input: bool = False
    probabilities: bool = False


ELEMENT_LOSSES = (
    "identity", "mse", "l1", "smooth_l1", "huber", "bce", "bce_logits", "poisson", "poisson_log",
    "soft_margin", "kl", "kl_log",
)  # fmt: skip
"""torch's elementwise losses. Parameters: smooth_l1(a = beta), huber(a = delta), bce_logits(a =
pos_weight), poisson(a = eps; without log input); ``identity`` is the value itself."""


@dataclass(frozen=True)
class ElementLoss:
    """Adds to term `term` ``sum_i weight_i loss(x_i, target_i)`` of a tile, in float64.

    Attributes:
        kind: One of `ELEMENT_LOSSES`.
        input: Buffer, FULL, NONE or AFFINE.
        at: ``[n]``.
        target: Buffer (input, FULL or NONE), or -1 (``identity``).
        target_at: ``[n]`` or empty.
        term: Which sum.
        a: Parameter of the loss.
        weight: float32 ``[n]``, or None.
    """

    kind: str
    input: int
    at: Table
    target: int
    target_at: Table
    term: int
    a: float = 0.0
    weight: np.ndarray | None = None


@dataclass(frozen=True)
class Hits:
    """Adds to term `term` how many decisions of a tile are right; a NaN never is.

    Attributes:
        decision: ``"class"``: the label is among the `top` largest scores (the first of equal ones
            counts as larger); ``"threshold"``: (score > threshold) == (target > target_threshold).
        input: Buffer of scores.
        sources: ``[n, C]``; C = 1 for thresholds.
        target: Index buffer of labels, or (thresholds) input or index buffer.
        target_at: ``[n]``.
        term: Which sum.
        top: How many scores count.
        ignore_index: Label that does not count.
        threshold: Of the score.
        target_threshold: Of the target.
    """

    decision: str
    input: int
    sources: Table
    target: int
    target_at: Table
    term: int
    top: int = 1
    ignore_index: int = -100
    threshold: float = 0.0
    target_threshold: float = 0.5


Step: TypeAlias = (
    Contract | Winograd | Map | Reduce | Normalize | Softmax | MatMul | LstmCell | GruCell
    | Embedding | CrossEntropy | ElementLoss | Hits
)  # fmt: skip
