"""Vote as a reward: which share of the other samples reaches the same answer.

Self-consistency (Wang et al. 2022, arXiv:2203.11171) seen as a score per sample, so that it combines with others:
a geometric mean of votes and of a verifier's probabilities, for one. Costs nothing; needs the samples together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from bough.core import Branch, RewardError, Run


class Vote:
    """The share of the other branches of a call whose final answer is the same; 0 without an answer.

    The population is the call: the same branch among others has another score, so it must not be cached. A strategy
    that asks for one branch at a time (best-of-n) has no population.
    """

    name = "vote"

    async def __call__(self, branches: Sequence[Branch], run: Run) -> list[float]:
        """One share in [0, 1] per branch.

        Raises:
            RewardError: there is only one branch, and so nobody to agree with.
        """
        if len(branches) < 2:
            raise RewardError(
                "a vote was asked for about 1 branch; it needs at least 2 in one call: use a strategy that judges "
                "its samples together, or self-consistency, which votes itself"
            )
        answers = [run.task.extract(branch.answer) for branch in branches]
        votes = Counter(answer for answer in answers if answer is not None)
        return [0.0 if answer is None else (votes[answer] - 1) / (len(branches) - 1) for answer in answers]
