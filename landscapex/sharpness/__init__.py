"""Sharpness and flatness of a loss around a point.

Exposed as ``landscapex.sharpness``. Every measure takes an `Objective`, leaves the model as it was,
and returns a `Sharpness`: the value, its standard error where it is an estimate, and what it was
taken of. The full data are used; for a subset, make an `Objective` of the subset. Which of them
predict generalisation, and where they fail to, is the subject of Andriushchenko et al., "A Modern
Look at the Relationship between Sharpness and Generalization", ICML 2023.
"""

from landscapex.sharpness.ascent import asam, m_sharpness, sam
from landscapex.sharpness.box import keskar
from landscapex.sharpness.fisher import fisher_rao
from landscapex.sharpness.flatness import relative_flatness
from landscapex.sharpness.noise import average_case, pac_bayes
from landscapex.sharpness.outcome import Sharpness
from landscapex.sharpness.posterior import local_learning_coefficient

__all__ = [
    "Sharpness",
    "asam",
    "average_case",
    "fisher_rao",
    "keskar",
    "local_learning_coefficient",
    "m_sharpness",
    "pac_bayes",
    "relative_flatness",
    "sam",
]
