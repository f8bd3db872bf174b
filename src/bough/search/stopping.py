"""Stopping rules: when a search has seen enough whole solutions. ``solve(..., stop=rule)`` ends any strategy by one.

Adaptive consistency. Paper: Aggarwal et al. 2023, arXiv:2305.11860. Stops a vote when its leader would most likely
win it anyway. Between the two answers with the most votes v1 >= v2, the leader's share of the model's distribution
has the posterior Beta(v1 + 1, v2 + 1) under a uniform prior, so it is ahead with the probability

    P(p > 1/2) = sum_{j <= v1} C(v1 + v2 + 1, j) / 2 ** (v1 + v2 + 1),

the tail of a Beta with whole parameters being that of a binomial. Pays on easy questions, where few votes decide.

Early-stopping self-consistency. Paper: Li et al. 2024, arXiv:2401.10480. Draws a window of solutions at a time, and
stops when all of a window reach the same answer: the sharpest rule there is (the entropy of the window is zero).

Score threshold. Paper: Weitzman 1979, Optimal search for the best alternative. Where
every alternative costs the same to look at, the best one can do is to take the first that reaches a reservation
value. Pays where the reward is a probability that can be trusted.

Patience. Paper: Prechelt 1998, Early stopping - but when? Stops when no better solution was found for a while, which
needs no scale for the scores.

Each asks only for whole solutions, in order (see `bough.core.StoppingRule`), and costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from bough.core import InvalidInput, Promise, Solution, StoppingRule, technique

from .steps import require_positive
from .vote import tally


def ahead(leader: int, runner_up: int) -> float:
    """P(p > 1/2) for p ~ Beta(leader + 1, runner_up + 1): the leader of a vote is the more probable of the two."""
    n = leader + runner_up + 1
    return sum(math.comb(n, j) for j in range(leader + 1)) / 2**n


@technique(
    "adaptive-consistency", paper="arXiv:2305.11860", promise=Promise.APPROXIMATE, family="stopping", requires=()
)
@dataclass(frozen=True)
class AdaptiveConsistency(StoppingRule):
    """Stop when the answer with the most votes is the most probable one, with confidence.

    Attributes:
        confidence: posterior probability that the leader is ahead of the runner-up.
    """

    confidence: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.5 < self.confidence < 1:
            raise InvalidInput(
                f"confidence={self.confidence} must be in (0.5, 1): a leader without any votes is ahead with 0.5"
            )

    def __call__(self, seen: Sequence[Solution]) -> str | None:
        first, second = leaders([solution.answer for solution in seen])
        surely = ahead(first, second)
        if surely < self.confidence:
            return None
        return f"{first} votes against {second}, ahead with probability {surely:.4f} of {self.confidence}"


@technique(
    "early-stopping-consistency",
    paper="arXiv:2401.10480",
    promise=Promise.APPROXIMATE,
    family="stopping",
    requires=(),
)
@dataclass(frozen=True)
class EarlyStoppingConsistency(StoppingRule):
    """Stop when all solutions of a window reach the same answer.

    Attributes:
        window: solutions per window, one window after the other (the paper's for its shorter tasks).
        parallel: as in every rule; the paper draws a window at once.
    """

    window: int = 5
    parallel: int = field(default=5, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "window")

    def __call__(self, seen: Sequence[Solution]) -> str | None:
        if len(seen) % self.window:
            return None
        answers = {solution.answer for solution in seen[-self.window :]}
        return f"the last {self.window} solutions agree" if len(answers) == 1 and None not in answers else None


@technique("score-threshold", paper="Weitzman 1979", promise=Promise.APPROXIMATE, family="stopping", requires=())
@dataclass(frozen=True)
class ScoreThreshold(StoppingRule):
    """Stop at the first solution whose score is high enough.

    Attributes:
        threshold: the score that is enough, on the reward's scale; rewards in [0, 1] are what the default is for.
    """

    threshold: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.threshold < math.inf:
            raise InvalidInput(f"threshold={self.threshold} must be a positive number, such as 0.95 of a probability")

    def __call__(self, seen: Sequence[Solution]) -> str | None:
        score = seen[-1].score
        if score is None or score < self.threshold:
            return None
        return f"a score of {score:.4g} reaches {self.threshold}"


@technique("patience", paper="Prechelt 1998", promise=Promise.APPROXIMATE, family="stopping", requires=())
@dataclass(frozen=True)
class Patience(StoppingRule):
    """Stop when so many solutions in a row were no better than the best before them.

    A solution without a score is better only than none at all.

    Attributes:
        patience: solutions that may pass without improvement.
    """

    patience: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "patience")

    def __call__(self, seen: Sequence[Solution]) -> str | None:
        scores = [-math.inf if solution.score is None else solution.score for solution in seen]
        waited = len(scores) - 1 - scores.index(max(scores))
        return f"{waited} solutions without a better one" if waited >= self.patience else None


def leaders(answers: Sequence[str | None]) -> tuple[int, int]:
    """The votes of the two answers with the most of them; 0 where there is none."""
    votes = sorted(map(int, tally(answers).values()), reverse=True)
    return (*votes, 0, 0)[0], (*votes, 0, 0)[1]
