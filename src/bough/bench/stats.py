"""Intervals for accuracies and for paired comparisons, where several seeds share one problem.

Seeds of one problem are not independent: an easy problem is right under every seed. Whatever is computed here
treats the problem as the unit that was drawn at random, and its seeds as a cluster within it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from bough.core import InvalidInput

_CHUNK = 1 << 22  # resampled problems held at once


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.3g} [{self.low:.3g}, {self.high:.3g}]"

    def to_dict(self) -> dict[str, float]:
        """The three numbers, by name."""
        return {"estimate": self.estimate, "low": self.low, "high": self.high}


def wilson(successes: float, n: float, confidence: float = 0.95) -> Interval:
    """Wilson's score interval for a proportion (Wilson, 1927); `n` may be an effective sample size.

    Raises:
        InvalidInput: ``n`` is not positive, or ``successes`` is outside ``[0, n]``.
    """
    if not n > 0:
        raise InvalidInput(f"an accuracy needs at least one trial, not n={n}")
    if not 0 <= successes <= n:
        raise InvalidInput(f"{successes} successes of {n} trials: successes must be in [0, n]")
    z = _quantile(confidence)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At p = 0 and p = 1 the bound equals p; rounding must not put it on the wrong side.
    return Interval(p, float(max(0.0, min(p, centre - half))), float(min(1.0, max(p, centre + half))))


def accuracy(problems: ArrayLike, correct: ArrayLike, confidence: float = 0.95) -> Interval:
    """Accuracy over trials of which several may share a problem.

    Wilson's interval at the effective sample size n / deff, where the design effect compares the variance
    between problems with that of as many independent trials (Korn and Graubard, 1998; Franco et al., 2019).
    With one trial per problem it is Wilson's interval. An accuracy of 0 or 1 shows no variance to estimate
    deff from, so it counts each problem once.

    Args:
        problems: ``[n]``, which problem each trial was on.
        correct: ``[n]``, whether it was right.
    """
    right = np.asarray(correct, dtype=np.float64)
    _, problem = np.unique(np.asarray(problems), return_inverse=True)
    if right.shape != problem.shape or right.ndim != 1:
        raise InvalidInput(f"{problem.shape} problems and {right.shape} outcomes: give one outcome per trial")
    n, clusters = len(right), int(problem.max(initial=-1)) + 1
    if n == 0:
        raise InvalidInput("an accuracy needs at least one trial, not n=0")
    p = float(right.mean())
    if clusters == n:
        return wilson(right.sum(), n, confidence)
    if p in (0.0, 1.0) or clusters == 1:
        effective = float(clusters)
    else:
        residuals = np.bincount(problem, right - p)
        variance = clusters / (clusters - 1) * float(residuals @ residuals) / n**2
        # Never more than the trials there are, never fewer than the problems: seeds cannot take away.
        effective = min(float(n), max(float(clusters), p * (1 - p) / variance if variance else float(n)))
    return wilson(p * effective, effective, confidence)


def paired_bootstrap(
    problems: ArrayLike,
    a: ArrayLike,
    b: ArrayLike,
    statistic: Literal["difference", "ratio"] = "difference",
    *,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Mean of ``a`` minus (or over) the mean of ``b``, with a percentile bootstrap over problems.

    Whole problems are drawn with replacement, each with all its trials (Efron and Tibshirani, 1993, ch. 8),
    and the same problems for ``a`` and ``b``: what makes a problem hard cancels out.

    Args:
        problems: ``[n]``, which problem each pair of trials was on.
        a: ``[n]``, one measurement per trial.
        b: ``[n]``, the other's measurement in the same trial (same problem and seed).
        statistic: difference of the means, or ratio of the means.

    Raises:
        InvalidInput: the lengths differ, there is nothing to compare, or a ratio's denominator can be 0.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    _, problem = np.unique(np.asarray(problems), return_inverse=True)
    if not (first.shape == second.shape == problem.shape) or first.ndim != 1 or not len(first):
        raise InvalidInput(
            f"problems {problem.shape}, a {first.shape} and b {second.shape} must be of one length, not empty"
        )
    # Per problem: sums and number of trials. A resample weighs problems; its means are weighted sums.
    sums = np.stack([np.bincount(problem, first), np.bincount(problem, second), np.bincount(problem)], axis=1)
    if statistic == "ratio" and not (sums[:, 1] > 0).all():
        raise InvalidInput("the ratio's denominator is 0 for some problem; take statistic='difference'")

    def compare(totals: np.ndarray) -> np.ndarray:
        if statistic == "ratio":
            return totals[..., 0] / totals[..., 1]
        return (totals[..., 0] - totals[..., 1]) / totals[..., 2]

    draws = [compare(weights @ sums) for weights in _resamples(len(sums), resamples, seed)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(draws), [tail, 1 - tail])
    return Interval(float(compare(sums.sum(axis=0))), float(low), float(high))


def _resamples(count: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of ``count`` problems is in each resample: float64 ``[chunk, count]``, chunk by chunk."""
    chunk = max(1, _CHUNK // count)
    if resamples <= chunk:  # comparisons of one table share their problems, and so their resamples
        yield _drawn(count, resamples, seed)
        return
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, chunk):
        yield _multinomial(rng, count, min(chunk, resamples - start))


@lru_cache(maxsize=1)
def _drawn(count: int, resamples: int, seed: int) -> np.ndarray:
    return _multinomial(np.random.default_rng(seed), count, resamples)


def _multinomial(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    return rng.multinomial(count, np.full(count, 1 / count), size=size).astype(np.float64)


def sign_flip_test(problems: ArrayLike, a: ArrayLike, b: ArrayLike) -> float:
    """Two-sided p-value of "``a`` and ``b`` are as often right", paired over problems.

    If the two are as good as each other on every problem, each problem's difference (the sum over its seeds) could
    as well have had the other sign. The p-value is the share of all sign patterns that put the total at least as far
    from 0 as it is (Fisher's randomisation test, 1935). Differences are whole numbers, so the distribution of the
    total is computed, not sampled: the p-value is exact, however small. With one seed it is McNemar's exact test.

    Args:
        problems: ``[n]``, which problem each pair of trials was on.
        a: ``[n]``, whether the one was right.
        b: ``[n]``, whether the other was right in the same trial.

    Raises:
        InvalidInput: the lengths differ, or there is nothing to compare.
    """
    first, second = np.asarray(a, dtype=np.int64), np.asarray(b, dtype=np.int64)
    _, problem = np.unique(np.asarray(problems), return_inverse=True)
    if not (first.shape == second.shape == problem.shape) or first.ndim != 1 or not len(first):
        raise InvalidInput(
            f"problems {problem.shape}, a {first.shape} and b {second.shape} must be of one length, not empty"
        )
    differences = np.bincount(problem, first - second).astype(np.int64)
    weights, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    # How many of n differences of weight w are positive is binomial; the total's distribution is their convolution.
    total = np.ones(1)
    for weight, n in zip(weights.tolist(), counts.tolist(), strict=True):
        spaced = np.zeros(weight * n + 1)
        spaced[::weight] = np.exp(_log_binomials(n) - n * np.log(2))
        total = np.convolve(total, spaced)
    values = 2 * np.arange(len(total)) - (len(total) - 1)
    return min(1.0, float(total[np.abs(values) >= abs(int(differences.sum()))].sum()))


def _log_binomials(n: int) -> np.ndarray:
    """The logarithms of n over k, for k from 0 to n."""
    steps = np.arange(1, n + 1)
    return np.concatenate([[0.0], np.cumsum(np.log(n + 1 - steps) - np.log(steps))])


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for how many there are (Holm, 1979): reject those of at most alpha.

    Then the chance of one false rejection or more among all of them is at most alpha, whatever depends on what.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def _quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise InvalidInput(f"confidence={confidence} must be in (0, 1), such as 0.95")
    return NormalDist().inv_cdf((1 + confidence) / 2)
