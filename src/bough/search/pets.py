"""PETS: spend samples on the questions whose majority vote they may still change.

Paper: Liu et al. 2026, PETS: Towards Optimal Trajectory Allocation for Efficient Test-Time Self-Consistency. Pays
where many questions share a budget and differ in difficulty; costs whole solutions, as self-consistency does.

The measure is the self-consistency rate: how often the vote agrees with the one that infinitely many samples would
give. It asks nothing about what is right, and is estimated without labels.

Offline, all questions are known, and `bough.search.allocation.allocate` spends samples where they help most.

Online, questions come one after the other, and each is dealt with before the next. The first few samples say to
which class of difficulty a question belongs: how many votes the leader has among them. Each class has a number of
samples of its own (`PETS.budgets`), chosen on other questions of the same kind (`plan`): with A_c(k) the
self-consistency rate of a class after k samples, greedy steps buy what raises sum_c P(c) A_c most per sample until
the average budget is spent. A question's own rate is about Phi(a sqrt(k)), with a the lead of its first answer over
its second in standard deviations of one sample, and A_c is the mean over the questions of the class. (The authors
average the a of its questions instead, in which the few close ones hardly show, but they are what more samples are
for.)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from bough.core import InvalidInput, Promise, Solution, StoppingRule, technique

from .stopping import leaders


@technique("pets", paper="Liu et al. 2026", promise=Promise.APPROXIMATE, family="stopping", requires=())
@dataclass(frozen=True)
class PETS(StoppingRule):
    """Stop at the number of samples that questions of this difficulty get.

    Attributes:
        budgets: samples by the votes that the leader has among the first ones: for none of them, for one, and so on
            to all of them, so that there is one number more than there are first samples. The default gives 64 in
            doubt and stops a unanimous vote; `plan` makes those for an average budget.
    """

    budgets: tuple[int, ...] = (64, 64, 64, 24, 4)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.budgets) < 2 or any(not isinstance(b, int) or b < len(self.budgets) - 1 for b in self.budgets):
            raise InvalidInput(
                f"budgets={self.budgets!r} must be whole numbers, one more than there are first samples, and each at "
                "least their number"
            )

    @property
    def first(self) -> int:
        """Samples that tell the difficulty."""
        return len(self.budgets) - 1

    def __call__(self, seen: Sequence[Solution]) -> str | None:
        if len(seen) < self.first:
            return None
        votes, _ = leaders([solution.answer for solution in seen[: self.first]])
        if len(seen) < self.budgets[votes]:
            return None
        return f"{len(seen)} samples, as {votes} of the first {self.first} agree"


def plan(
    answers: np.ndarray, average: float, first: int = 4, shuffles: int = 8, limit: int | None = None
) -> tuple[int, ...]:
    """The budgets of `PETS` for an average number of samples, from other questions of the same kind.

    Args:
        answers: int ``[questions, n]``, which answer each of their samples has; -1 for none. No labels are needed:
            the vote of all n stands for the infinite one.
        average: samples per question that may be spent, on average.
        first: samples that tell the difficulty.
        shuffles: how many orders of the samples to average over.
        limit: samples that a question gets at most; default, n. What more than n are worth is extrapolated.
    """
    rng, given = np.random.default_rng(0), answers.shape[1]
    limit = given if limit is None else limit
    if not first <= average <= limit:
        raise InvalidInput(
            f"average={average} must be between first={first} and {limit}, the samples that a question gets at most"
        )
    if first > given:
        raise InvalidInput(
            f"first={first} is more than the {given} samples given of each question; give more of them"
        )
    sizes = np.unique([*range(first, min(limit, 64)), *np.geomspace(first, limit, 64).round().astype(int)])
    rates: list[list[np.ndarray]] = [[] for _ in range(first + 1)]
    for row in answers:
        rate = _rate(row, sizes)
        for _ in range(shuffles):
            votes, _ = leaders([None if a < 0 else str(a) for a in rng.permutation(row)[:first].tolist()])
            rates[votes].append(rate)
    shares = [len(own) / (shuffles * len(answers)) for own in rates]
    every = np.arange(limit + 1)
    curves = [np.interp(every, sizes, np.mean(own, axis=0)) if own else np.ones(limit + 1) for own in rates]
    budgets, spent = [first] * (first + 1), float(first)
    while True:
        gains = [
            (curve[b + 1] - curve[b], c)
            for c, (b, curve) in enumerate(zip(budgets, curves, strict=True))
            if b < limit and shares[c] > 0 and spent + shares[c] <= average
        ]
        if not gains or max(gains)[0] <= 0:
            return tuple(budgets)
        best = max(gains)[1]
        budgets[best] += 1
        spent += shares[best]


def _rate(answers: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """A question's self-consistency rate after so many samples, Phi(a sqrt(k))."""
    votes = sorted(Counter(answers[answers >= 0].tolist()).values(), reverse=True)
    first, second = ((*votes, 0, 0)[i] / len(answers) for i in (0, 1))
    variance = first + second - (first - second) ** 2
    if variance <= 0:  # unanimous, or nobody voted
        return np.ones(len(sizes))
    cdf, scale = NormalDist().cdf, (first - second) / math.sqrt(variance)
    return np.array([cdf(scale * math.sqrt(k)) for k in sizes.tolist()])


def majority(answers: Sequence[Hashable]) -> Hashable:
    """The answer of most votes, of equals the first; -1 and None are no votes. None if nobody voted."""
    votes = Counter(answer for answer in answers if answer is not None and answer != -1)
    return votes.most_common(1)[0][0] if votes else None
