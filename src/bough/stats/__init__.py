"""Estimates of what a model would do, from branches of it.

Importing this room registers its techniques.
"""

from .outcomes import Estimate, Estimator, MonteCarlo, Outcome
from .reach import Reach, spontaneity
from .scope import Scope

__all__ = ["Estimate", "Estimator", "MonteCarlo", "Outcome", "Reach", "Scope", "spontaneity"]
