"""Calibration: a reward's scores as probabilities, fitted to outcomes of other problems.

Platt 1999 (Probabilistic Outputs for Support Vector Machines): the log-odds of being right are a line in the reward's
own log-odds, fitted by maximum likelihood. It changes no order, so best-of-N is as before; methods that act on how
likely a solution is to be right (`AdaptiveITC`, `OptScale`, thresholds) act on better numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from bough.core import Branch, InvalidInput, Reward, RewardError, Run

_SURE = 1e-6  # scores nearer than this to 0 and 1 are taken as this near
_ROUNDS = 100


class Calibrated:
    """A reward's scores, probabilities s, as the probabilities logistic(slope * log-odds(s) + intercept).

    Args:
        reward: what is calibrated; its scores are in [0, 1].
        slope, intercept: as `platt` fits them; the slope is positive, so that the order stays.
    """

    def __init__(self, reward: Reward, slope: float, intercept: float) -> None:
        if not (0 < slope < math.inf and math.isfinite(intercept)):
            raise InvalidInput(f"slope={slope} must be positive and intercept={intercept} finite")
        self.reward, self.slope, self.intercept = reward, slope, intercept
        self.name = f"calibrated({reward.name}, {slope:.4g}, {intercept:.4g})"

    async def __call__(self, branches: Sequence[Branch], run: Run) -> list[float]:
        """One probability per branch.

        Raises:
            RewardError: a score is no probability.
        """
        scores = np.array(await self.reward(branches, run), np.float64)
        if not ((scores >= 0) & (scores <= 1)).all():
            raise RewardError(f"{self.name}: {scores.tolist()} are not all probabilities in [0, 1]")
        found: list[float] = _logistic(self.slope * _log_odds(scores) + self.intercept).tolist()
        return found


def platt(scores: ArrayLike, right: ArrayLike) -> tuple[float, float]:
    """The slope and intercept of maximum likelihood, by Newton's method.

    Args:
        scores: ``[n]`` in [0, 1].
        right: ``[n]``, whether what was scored is right.

    Raises:
        InvalidInput: the lengths differ, or the outcomes are all alike, which no line explains best.
    """
    x, y = _log_odds(np.asarray(scores, np.float64)), np.asarray(right, np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise InvalidInput(f"{x.shape} scores and {y.shape} outcomes: give one outcome per score")
    if not 0 < y.mean() < 1:
        raise InvalidInput("the outcomes are all right or all wrong; give samples of more problems")
    rows, line = np.stack([x, np.ones_like(x)], axis=1), np.array([1.0, 0.0])
    for _ in range(_ROUNDS):
        p = _logistic(rows @ line)
        gradient, curvature = rows.T @ (y - p), (rows * (p * (1 - p))[:, None]).T @ rows
        step = np.linalg.lstsq(curvature, gradient, rcond=None)[0]
        line = line + np.clip(step, -1, 1)  # a full step may overshoot where p is near 0 or 1
        if np.abs(step).max() < 1e-9:
            break
    return float(line[0]), float(line[1])


def _log_odds(p: np.ndarray) -> np.ndarray:
    sure = np.clip(p, _SURE, 1 - _SURE)
    found: np.ndarray = np.log(sure) - np.log1p(-sure)
    return found


def _logistic(x: np.ndarray) -> np.ndarray:
    found: np.ndarray = (1 + np.tanh(x / 2)) / 2
    return found
