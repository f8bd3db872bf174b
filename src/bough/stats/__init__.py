"""Estimates of what a model would do, and of what its answers are worth.

Importing this room registers its techniques.
"""

from .outcomes import Estimate, Estimator, MonteCarlo, Outcome
from .reach import Reach, spontaneity
from .scope import Scope
from .verifier_limits import acceptance, optimal_samples, precision, resampling, utility

__all__ = [
    "Estimate", "Estimator", "MonteCarlo", "Outcome", "Reach", "Scope", "acceptance", "optimal_samples", "precision",
    "resampling", "spontaneity", "utility",
]  # fmt: skip
