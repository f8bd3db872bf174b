"""Allocation: one budget of samples for many questions, spent where it may still change a majority vote.

The offline half of PETS (Liu et al. 2026; see `bough.search.pets`). It answers many prompts, so it is no strategy.

Offline, all questions are known. Allocating samples to them is allocating labels to the items of a crowd (Chen, Lin
and Zhou 2013): between the two leading answers of a question with v1 >= v2 votes, the leader is the majority of the
infinite vote with the posterior probability h(v1, v2) = P(Beta(v1 + 1, v2 + 1) > 1/2). The optimistic knowledge
gradient draws next where the better of the possible answers would raise h most, and that is another vote for the
leader:

    R+ = h(v1 + 1, v2) - h(v1, v2) = C(v1 + v2 + 1, v1 + 1) / 2 ** (v1 + v2 + 2)

(`gain`), as a binomial tail of one toss more. Large for close votes, it falls exponentially where one answer leads.
The authors keep a Dirichlet posterior over a fixed number of options and estimate h from random draws; comparing
the two that lead needs no number of options and no draws.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bough.core import Backend, Branch, FreeText, InvalidInput, Ledger, Run, TaskLike

from .steps import cancel
from .stopping import ahead, leaders
from .vote import winner


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
        chooser.told(question, index, run.task.extract(leaf.answer))
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
