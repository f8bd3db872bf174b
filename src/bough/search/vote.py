"""Votes over final answers, and how sure the model was of each voter's solution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

Confidence = Literal["none", "mean", "bottom", "tail"]


def tally(answers: Sequence[str | None], weights: Sequence[float] | None = None) -> dict[str, float]:
    """Total weight of each answer, in order of first appearance; None is no vote.

    Args:
        answers: one per voter.
        weights: one per voter, finite and not negative; default, 1 each.
    """
    totals: dict[str, float] = {}
    for index, answer in enumerate(answers):
        if answer is not None:
            totals[answer] = totals.get(answer, 0.0) + (1.0 if weights is None else weights[index])
    return totals


def winner(answers: Sequence[str | None], weights: Sequence[float] | None = None) -> tuple[int, float] | None:
    """Whose answer won, and its total weight; None if nobody voted.

    Of answers with equal totals, the one that appeared first wins; of its voters, the one with the highest
    weight, and of those the first, is named.
    """
    totals = tally(answers, weights)
    if not totals:
        return None
    most = max(totals.values())
    # Sums of the same weights in another order differ in the last bits.
    answer = next(a for a, total in totals.items() if math.isclose(total, most, rel_tol=1e-12))
    voters = [index for index, given in enumerate(answers) if given == answer]
    best = voters[0] if weights is None else max(voters, key=lambda index: weights[index])
    return best, totals[answer]


def confidence(logprobs: np.ndarray, kind: Confidence, window: int) -> float:
    """How sure the model was of a solution, in [0, 1]: a geometric mean of its tokens' probabilities.

    Args:
        logprobs: of the drawn tokens, ``[T]``.
        kind: over all tokens ("mean"), over the least sure ``window`` consecutive ones ("bottom", the lowest group
            confidence of Fu et al. 2025, arXiv:2508.15260), or over the last ``window`` ("tail"); 1 for "none".
        window: in tokens; a solution that is shorter is one window.
    """
    if kind == "none" or not len(logprobs):
        return 1.0
    values = np.asarray(logprobs, np.float64)
    size = len(values) if kind == "mean" else min(window, len(values))
    total = np.concatenate([[0.0], np.cumsum(values)])
    sums = total[size:] - total[:-size]
    return min(1.0, math.exp(float(sums[-1] if kind == "tail" else sums.min()) / size))


def most_sure(weights: Sequence[float], keep: float) -> list[float]:
    """The weights of the given share of voters with the largest (at least one voter); the others weigh nothing."""
    kept = max(1, round(keep * len(weights)))
    order = sorted(range(len(weights)), key=lambda index: (-weights[index], index))[:kept]
    return [weight if index in order else 0.0 for index, weight in enumerate(weights)]
