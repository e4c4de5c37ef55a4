"""One small program for each thing a step can do: ``CASES[name](samples)``.

Importing the modules registers their cases.
"""

from __future__ import annotations

import step_cases_contractions
import step_cases_losses
import step_cases_reductions
import step_cases_values
from step_builder import CASES as CASES
from step_builder import StepCase as StepCase

MODULES = (
    step_cases_contractions,
    step_cases_losses,
    step_cases_reductions,
    step_cases_values,
)
