"""OptScale: the fewest samples that reach a target score with a given confidence.

Paper: Wang et al. 2025, arXiv:2506.22376 (Probabilistic Optimality for Inference-time Scaling). Pays for best-of-N
where scores vary little within a problem and much between problems: the first few then say how many are worth
drawing. Costs nothing but the first few.

The bound. Let the scores of one problem's samples be independent with the distribution function F. The best of N
reaches the target with probability 1 - F(target) ** N, so the smallest N for which that is at least the confidence is

    N = ceil(log(1 - confidence) / log F(target)).

The distribution is a normal one with parameters mu and sigma, truncated to the scores' range [0, 1]. They are
estimated anew after each sample, by the maximum of their posterior (MAP), and the search stops when it has drawn
the N that they say. A problem whose scores stay far below the target would need more than anybody draws; it costs
all the method's n.

The prior. In the paper a fine-tuned language model predicts mu and sigma from the problem. Here the prior is the
same for all problems, fitted to the scores of validation problems (empirical Bayes): mu is normal and sigma
log-normal, with the mean and the spread that their maximum likelihood estimates have (`fit_prior`). The defaults
are those of the embedded model and reward over all tasks; ``python studies/votes.py --fit`` prints them. For
another reward, fit others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from bough.core import InvalidInput, Promise, Solution, StoppingRule, technique

from .steps import require_positive, require_probabilities

# Where the posterior is looked at: mu beyond the ends too, as most of a truncated normal may lie beyond one.
_MU = np.linspace(-1.0, 2.0, 151)[:, None]
_SIGMA = np.geomspace(0.005, 2.0, 60)[None, :]
_erfc = np.vectorize(math.erfc, otypes=[np.float64])


class Prior(NamedTuple):
    """Of the scores' parameters: mu is normal with a mean and a spread, sigma log-normal with a median and one."""

    mean: float
    mean_spread: float
    deviation: float
    deviation_spread: float


@technique("optscale", paper="arXiv:2506.22376", promise=Promise.APPROXIMATE, family="stopping", requires=())
@dataclass(frozen=True)
class OptScale(StoppingRule):
    """Stop when the best score has reached the target with confidence, by a bound from the scores so far.

    Attributes:
        target: the score to reach, of scores in [0, 1]; a solution without a score counts as 0.
        confidence: with which probability the best of N is to reach it.
        first: samples before the first estimate (the paper looks at 3 to 5).
        reached: whether a score that reaches the target is enough by itself. The paper only counts.
        mean, mean_spread, deviation, deviation_spread: the prior (see `Prior`).
    """

    target: float = 0.95
    confidence: float = 0.95
    first: int = 3
    reached: bool = True
    mean: float = 0.25
    mean_spread: float = 1.2
    deviation: float = 0.33
    deviation_spread: float = 1.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "first")
        for name in ("target", "confidence"):
            if not 0 < getattr(self, name) < 1:
                raise InvalidInput(f"{name}={getattr(self, name)} must be in (0, 1), such as 0.95")
        for name in Prior._fields:
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidInput(f"{name}={getattr(self, name)} of the prior must be positive; see `fit_prior`")

    @property
    def prior(self) -> Prior:
        """The prior of the scores' parameters."""
        return Prior(self.mean, self.mean_spread, self.deviation, self.deviation_spread)

    def __call__(self, seen: Sequence[Solution]) -> str | None:
        scores = [0.0 if solution.score is None else solution.score for solution in seen]
        require_probabilities(scores[-1:], self.info.name)
        if self.reached and scores[-1] >= self.target:
            return f"a score of {scores[-1]:.4g} reaches {self.target}"
        if len(seen) < self.first:
            return None
        mu, sigma = estimate(scores, self.prior)
        of = f"scores from N({mu:.2f}, {sigma:.2g})"
        needed = samples_needed(mu, sigma, self.target, self.confidence)
        if len(seen) < needed:
            return None
        return f"{needed:.0f} {of} reach {self.target} with probability {self.confidence}"


def estimate(scores: Sequence[float], prior: Prior | None = None) -> tuple[float, float]:
    """mu and sigma of the truncated normal that the scores are from: MAP, or without a prior maximum likelihood."""
    x = np.asarray(scores, np.float64)
    squares = ((x - x.mean()) ** 2).sum() + len(x) * (x.mean() - _MU) ** 2
    value = -len(x) * (np.log(_SIGMA) + _log_mass()) - squares / (2 * _SIGMA**2)
    if prior is not None:
        value = value - ((_MU - prior.mean) / prior.mean_spread) ** 2 / 2
        value = value - (np.log(_SIGMA / prior.deviation) / prior.deviation_spread) ** 2 / 2
    i, j = np.unravel_index(int(np.argmax(value)), value.shape)
    return float(_MU[i, 0]), float(_SIGMA[0, j])


def samples_needed(mu: float, sigma: float, target: float, confidence: float) -> float:
    """The smallest N for which the best of N scores reaches the target with this probability, or infinity."""
    tail = above(mu, sigma, target)
    if tail >= 1:
        return 1
    number = math.log1p(-confidence) / math.log1p(-tail) if tail > 0 else math.inf
    return math.ceil(number) if number < math.inf else math.inf


def above(mu: float, sigma: float, target: float) -> float:
    """The probability that a score is at least the target: of a normal, truncated to [0, 1]."""
    within = _normal_mass(mu, sigma, 0.0, 1.0)
    # Where the normal has nothing at all within the range, what is left of it stands at the nearer end.
    return _normal_mass(mu, sigma, target, 1.0) / within if within > 0 else float(mu > 1)


def fit_prior(scores: np.ndarray) -> Prior:
    """The prior of problems like these, from their scores ``[problems, n]``."""
    found = np.array([estimate(row) for row in scores])
    log_sigma = np.log(found[:, 1])
    return Prior(
        float(found[:, 0].mean()), float(found[:, 0].std()), float(np.exp(log_sigma.mean())), float(log_sigma.std())
    )


def _normal_mass(mu: float, sigma: float, low: float, high: float) -> float:
    a, b = (low - mu) / sigma / math.sqrt(2), (high - mu) / sigma / math.sqrt(2)
    # From the side where the tails are: differences of small numbers, not of numbers near one.
    return (math.erfc(a) - math.erfc(b)) / 2 if a > 0 else (math.erfc(-b) - math.erfc(-a)) / 2


@lru_cache(maxsize=1)
def _log_mass() -> np.ndarray:
    """Logarithm of what the normal has within [0, 1], at each place of the grid; infinite where it has nothing."""
    a, b = -_MU / _SIGMA / math.sqrt(2), (1 - _MU) / _SIGMA / math.sqrt(2)
    mass = np.where(a > 0, _erfc(a) - _erfc(b), _erfc(-b) - _erfc(-a)) / 2
    with np.errstate(divide="ignore"):
        return np.where(mass > 0, np.log(mass), np.inf)
