"""What a measure of sharpness returns, and what all of them ask of their arguments."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from landscapex.curvature.estimates import interval_of, quantile


@dataclass(frozen=True, eq=False, repr=False)
class Sharpness:
    """One measure of sharpness at one point.

    Attributes:
        measure: The name of the function that made it.
        value: The measure.
        standard_error: Of `value` over random draws; None if nothing was drawn, or if all of the
            population was.
        degrees: Degrees of freedom of the standard error, for `interval`.
        loss: At the point.
        settings: The arguments that decide the value.
        losses: Evaluations of the loss over (a part of) the data; two of them at the point, to see
            that it is the same.
        gradients: Evaluations of its gradient.
        products: Products with a curvature matrix.
        increases: What `value` was made of: the rise of the loss at each step of an ascent, for
            each group of samples, or for each random draw; read-only, perhaps empty.
        displacement: Where the largest loss was found, as a step ``(P,)`` from the point; None for
            measures that look for none.
        provenance: Model, data (samples, fingerprint), loss, options (batch norm, precision),
            engine, versions, and the fingerprint of all that decides the loss.
        skewness: Of `value` over random draws, for `interval`, where it is estimated.
    """

    measure: str
    value: float
    standard_error: float | None = None
    degrees: float = math.inf
    loss: float = math.nan
    settings: Mapping[str, Any] = field(default_factory=dict)
    losses: int = 0
    gradients: int = 0
    products: int = 0
    increases: np.ndarray = field(default_factory=lambda: np.empty(0))
    displacement: Tensor | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    skewness: float = 0.0

    def __float__(self) -> float:
        return self.value

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """An interval that holds the number that was estimated with a given probability.

        Args:
            confidence: The probability, between 0 and 1.

        Returns:
            Its ends, by Student's t and the skewness; both are the value if nothing was estimated.

        Raises:
            ArgumentError: If `confidence` is not between 0 and 1.
        """
        t = quantile(confidence, self.degrees)
        return interval_of(self.value, self.standard_error or 0.0, t, self.skewness)

    def __repr__(self) -> str:
        error = "" if self.standard_error is None else f" ± {self.standard_error:.2g}"
        settings = ", ".join(f"{k}={v!r}" for k, v in self.settings.items())
        return f"Sharpness({self.measure} = {self.value:.6g}{error}; {settings})"
