"""Votes over final answers."""

from __future__ import annotations

import math
from collections.abc import Sequence


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
