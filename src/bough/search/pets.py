"""PETS: spend samples on the questions whose majority vote they may still change.

Paper: Liu et al. 2026, PETS: Towards Optimal Trajectory Allocation for Efficient Test-Time Self-Consistency. Pays
where many questions share a budget and differ in difficulty; costs whole solutions, as self-consistency does.

The measure is the self-consistency rate: how often the vote agrees with the one that infinitely many samples would
give. It asks nothing about what is right, and is estimated without labels (`self_consistency_rate`).

Offline, all questions are known. Allocating samples to them is allocating labels to the items of a crowd (Chen, Lin
and Zhou 2013): between the two leading answers of a question with v1 >= v2 votes, the leader is the majority of the
infinite vote with the posterior probability h(v1, v2) = P(Beta(v1 + 1, v2 + 1) > 1/2). The optimistic knowledge
gradient draws next where the better of the possible answers would raise h most, and that is another vote for the
leader:

    R+ = h(v1 + 1, v2) - h(v1, v2) = C(v1 + v2 + 1, v1 + 1) / 2 ** (v1 + v2 + 2)

(`gain`), as a binomial tail of one toss more. Large for close votes, it falls exponentially where one answer leads.
The authors keep a Dirichlet posterior over a fixed number of options and estimate h from random draws; comparing
the two that lead needs no number of options and no draws.

Online, questions come one after the other, and each is dealt with before the next. The first few samples say to
which class of difficulty a question belongs: how many votes the leader has among them. Each class has a number of
samples of its own (`PETS.budgets`), chosen on other questions of the same kind (`plan`): with A_c(k) the
self-consistency rate of a class after k samples, modelled as Phi(a sqrt(k) + b), greedy steps buy what raises sum_c
P(c) A_c most per sample until the average budget is spent.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from bough.core import (
    Backend,
    Branch,
    FreeText,
    InvalidInput,
    Ledger,
    Promise,
    Run,
    Solution,
    StoppingRule,
    TaskLike,
    technique,
)  # fmt: skip

from .steps import cancel
from .stopping import ahead, leaders
from .vote import winner


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


def plan(answers: np.ndarray, average: float, first: int = 4, shuffles: int = 8) -> tuple[int, ...]:
    """The budgets of `PETS` for an average number of samples, from other questions of the same kind.

    Args:
        answers: int ``[questions, n]``, which answer each of their samples has; -1 for none. No labels are needed:
            the vote of all n stands for the infinite one.
        average: samples per question that may be spent, on average.
        first: samples that tell the difficulty.
        shuffles: how many orders of the samples to average over.
    """
    if not first <= average <= answers.shape[1]:
        raise InvalidInput(
            f"average={average} must be between first={first} and the {answers.shape[1]} samples given"
        )
    rng, limit = np.random.default_rng(0), answers.shape[1]
    sizes = sorted({*range(first, min(limit, 16)), *np.geomspace(first, limit * 3 // 4, 12).astype(int).tolist()})
    rates: dict[int, list[list[bool]]] = {votes: [] for votes in range(first + 1)}
    for row in answers:
        final = majority(row.tolist())
        for _ in range(shuffles):
            order = rng.permutation(row).tolist()
            votes, _ = leaders([None if a < 0 else str(a) for a in order[:first]])
            rates[votes].append([majority(order[:k]) == final for k in sizes])
    count = sum(map(len, rates.values()))
    shares = [len(rates[votes]) / count for votes in rates]
    curves = [_rate_curve(sizes, rates[votes], limit) for votes in rates]
    budgets, spent = [first] * (first + 1), float(first)
    while True:
        gains = [
            (curve[b + 1] - curve[b], c)
            for c, (b, curve) in enumerate(zip(budgets, curves, strict=True))
            if b < limit and shares[c] > 0 and spent + shares[c] <= average
        ]
        if not gains or max(gains)[0] <= 1e-6:
            return tuple(budgets)
        best = max(gains)[1]
        budgets[best] += 1
        spent += shares[best]


def _rate_curve(sizes: Sequence[int], agreed: Sequence[Sequence[bool]], limit: int) -> np.ndarray:
    """The self-consistency rate after k samples, ``[limit + 1]``: Phi(a sqrt(k) + b), a >= 0, by least squares."""
    if not agreed:
        return np.ones(limit + 1)
    normal, n = NormalDist(), len(agreed)
    observed = np.clip(np.mean(agreed, axis=0), 0.5 / n, 1 - 0.5 / n)
    probits, roots = np.array([normal.inv_cdf(float(rate)) for rate in observed]), np.sqrt(sizes)
    slope, level = np.polyfit(roots, probits, 1)
    if slope < 0:
        slope, level = 0.0, float(probits.mean())
    return np.array([normal.cdf(slope * math.sqrt(k) + level) for k in range(limit + 1)])


def majority(answers: Sequence[Hashable]) -> Hashable:
    """The answer of most votes, of equals the first; -1 and None are no votes. None if nobody voted."""
    votes = Counter(answer for answer in answers if answer is not None and answer != -1)
    return votes.most_common(1)[0][0] if votes else None


def self_consistency_rate(votes: Sequence[tuple[int, int]]) -> float:
    """How many of these questions have, in expectation, the vote that infinitely many samples would give them.

    Args:
        votes: of the two answers that lead, per question.
    """
    return math.fsum(ahead(*question) for question in votes) / len(votes)


def gain(leader: int, runner_up: int) -> float:
    """What another vote for the leader adds to the probability that it is the majority of the infinite vote."""
    n = leader + runner_up + 1
    return math.comb(n, leader + 1) / 2 ** (n + 1)


class KnowledgeGradient:
    """Which of many questions to sample next, by the optimistic knowledge gradient.

    Args:
        questions: how many there are.
        first: samples that each gets before any gets more.
        limit: samples that each gets at most.

    Attributes:
        answers: the answers of each question so far, by the index of the sample; None where it is not there yet.
    """

    def __init__(self, questions: int, first: int = 2, limit: int = 64) -> None:
        self.answers: list[list[str | None]] = [[] for _ in range(questions)]
        self.first, self.limit = first, limit
        self._under_way = [0] * questions
        self._gains = np.full(questions, 1.0 + first)  # what has less than the first samples is before any gain

    def next(self) -> int | None:
        """The question to sample next, which is then under way; None if all have all they may get."""
        question = int(np.argmax(self._gains))
        if self._gains[question] < 0:
            return None
        self._under_way[question] += 1
        self.answers[question].append(None)
        self._update(question)
        return question

    def told(self, question: int, index: int, answer: str | None) -> None:
        """The ``index``-th sample of a question is there."""
        self.answers[question][index] = answer
        self._under_way[question] -= 1
        self._update(question)

    def _update(self, question: int) -> None:
        drawn = len(self.answers[question])
        first, second = leaders(self.answers[question])
        # What is under way is hoped to be for the leader, so that not all go to the same question.
        value = gain(first + self._under_way[question], second)
        self._gains[question] = (
            -1.0 if drawn >= self.limit else 1.0 + self.first - drawn if drawn < self.first else value
        )


@dataclass(frozen=True)
class Vote:
    """What an allocation found for one question.

    Attributes:
        answer: the majority's; None if there is none.
        branch: a solution that reaches it, or None.
        votes: of the two answers that lead.
        samples: how many solutions were drawn.
    """

    answer: str | None
    branch: Branch | None
    votes: tuple[int, int]
    samples: int


async def allocate(
    lm: Backend,
    prompts: Sequence[str],
    samples: int,
    *,
    task: TaskLike | None = None,
    seed: int = 0,
    parallel: int = 32,
    first: int = 2,
    limit: int = 64,
    max_tokens: int = 2048,
    temperature: float = 1.0,
) -> tuple[list[Vote], Ledger]:
    """Self-consistency on many questions under one budget of samples, offline.

    Many draws are under way at the same time. A decision waits only for the draw that was decided on ``parallel``
    decisions before, so that what is known at each of them, and with it the result, is a function of the seed.

    Args:
        lm: the model.
        prompts: the questions.
        samples: whole solutions to draw, over all questions.
        task: where solutions end and what their answers are.
        seed: of all questions.
        parallel: draws under way at the same time, at most.
        first: solutions that each question gets before any gets more.
        limit: solutions that a question gets at most.
        max_tokens: length limit of each.
        temperature: of the sampling distribution.

    Returns:
        One vote per question, and what was spent.

    Raises:
        InvalidInput: there is no question, or a number is not positive.
    """
    if not prompts:
        raise InvalidInput("there are no questions; give at least one prompt")
    for name, value in (("samples", samples), ("parallel", parallel), ("first", first), ("limit", limit)):
        if value < 1:
            raise InvalidInput(f"{name}={value} must be at least 1")
    run = Run(task=task or FreeText())
    roots = [lm.branch(prompt, seed=seed).with_run(run) for prompt in prompts]
    leaves: list[list[Branch | None]] = [[] for _ in prompts]
    chooser = KnowledgeGradient(len(prompts), first, limit)
    under_way: deque[tuple[int, int, asyncio.Task[Branch]]] = deque()

    async def draw(question: int, index: int) -> Branch:
        drawn = await roots[question].sample(
            first=index, stop=run.task.answer_stop, max_tokens=max_tokens, temperature=temperature
        )
        return drawn[0]

    async def oldest() -> None:
        question, index, task = under_way[0]
        leaf = await task
        leaves[question][index] = leaf
        chooser.told(question, index, run.task.extract(leaf.completion))
        under_way.popleft()

    try:
        for _ in range(samples):
            if len(under_way) == parallel:
                await oldest()
            question = chooser.next()
            if question is None:
                break
            index = len(leaves[question])
            leaves[question].append(None)
            under_way.append((question, index, asyncio.ensure_future(draw(question, index))))
        while under_way:
            await oldest()
    finally:
        await cancel(task for _, _, task in under_way)
        run.ledger.close()
    votes = []
    for answers, drawn in zip(chooser.answers, leaves, strict=True):
        won = winner(answers)
        answer, branch = (None, None) if won is None else (answers[won[0]], drawn[won[0]])
        votes.append(Vote(answer, branch, leaders(answers), len(answers)))
    return votes, run.ledger
