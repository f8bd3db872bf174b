"""Confidence sequences: intervals for a mean that hold at every moment at once, so looking early costs nothing.

Paper: Waudby-Smith and Ramdas 2020, arXiv:2010.09686 (the hedged capital process, section 4, with the predictable
plug-in bets of section 3.3). For each candidate mean m of values in [0, 1] two gamblers start with 1: one bets that
the mean is above m, K+ = prod(1 + l_i (x_i - m)), one that it is below, K- = prod(1 - l_i (x_i - m)). If m is the
mean, both are nonnegative martingales for bets l_i that depend on the past alone, so by Ville's inequality neither
ever reaches 2 / alpha but with probability alpha / 2. The candidates that no gambler got rich on are the interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bough.bench.stats import Interval
from bough.core import InvalidInput

_GRID = 1000  # candidate means; the interval's ends are rounded outwards to it
_LARGEST_BET = 0.5  # of what would risk everything


def confidence_sequence(
    values: Sequence[float], alpha: float, low: float = -1.0, high: float = 1.0
) -> list[Interval]:
    """After each value, an interval for the mean; with probability 1 - alpha, all of them hold.

    Each is the intersection of those so far. The values' means, given the past, must be the same; they need not be
    independent otherwise.

    Args:
        values: in ``[low, high]``, in the order in which they came.
        alpha: the probability that any of the intervals is wrong.

    Raises:
        InvalidInput: a value is outside the range, or alpha outside (0, 1).
    """
    if not 0 < alpha < 1:
        raise InvalidInput(f"alpha={alpha} must be in (0, 1), such as 0.05")
    raw = np.asarray(values, dtype=np.float64)
    outside = raw[~((raw >= low) & (raw <= high))]
    if outside.size:
        raise InvalidInput(f"a value of {outside[0]} is outside [{low}, {high}]")
    if not raw.size:
        return []
    x = (raw - low) / (high - low)
    bets = _bets(x, alpha)[:, None]
    candidates = np.linspace(0.0, 1.0, _GRID + 1)
    inner = candidates[1:-1]
    away = x[:, None] - inner
    above = np.cumsum(np.log1p(np.minimum(bets, _LARGEST_BET / inner) * away), axis=0)
    below = np.cumsum(np.log1p(-np.minimum(bets, _LARGEST_BET / (1 - inner)) * away), axis=0)
    rich = math.log(2 / alpha)
    # The bets on a smaller m pay more, so each gambler rules out one end. Outwards by one point of the grid.
    first = np.maximum.accumulate((above >= rich).sum(axis=1))
    last = len(inner) - np.maximum.accumulate((below >= rich).sum(axis=1))
    means = np.cumsum(x) / np.arange(1, len(x) + 1)
    return [
        Interval(*(low + (high - low) * float(end) for end in (mean, candidates[a], candidates[min(b + 1, _GRID)])))
        for mean, a, b in zip(means, first, last, strict=True)
    ]


def _bets(x: np.ndarray, alpha: float) -> np.ndarray:
    """The predictable plug-in bets: large where the values so far varied little, smaller as time goes."""
    count = np.arange(1, len(x) + 1)
    mean = (0.5 + np.cumsum(x)) / (count + 1)
    variance = (0.25 + np.cumsum((x - mean) ** 2)) / (count + 1)
    before = np.concatenate([[0.25], variance[:-1]])
    bets: np.ndarray = np.sqrt(2 * math.log(2 / alpha) / (before * count * np.log1p(count)))
    return bets
