"""Self-consistency: draw n whole solutions and take the answer that most of them reach.

Paper: Wang et al. 2022, arXiv:2203.11171; with reward-weighted votes, Li et al. 2022, arXiv:2206.02336. Pays when
wrong solutions disagree with each other, and needs no reward; costs n whole solutions. Majority voting converges
to the model's most probable answer, right or wrong, so it gains nothing from more samples beyond that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from bough.core import Branch, Promise, RewardError, Run, technique

from .steps import WholeSearch, answered, settle
from .vote import winner


@technique("self-consistency", paper="arXiv:2203.11171", promise=Promise.APPROXIMATE)
@dataclass(frozen=True)
class SelfConsistency(WholeSearch):
    """Draw n whole solutions and take the answer that most of them reach.

    The answer's score is the winning answer's share of the n votes.

    Attributes:
        weighted: whether a solution's vote counts as much as its reward; needs a reward that is never negative.
    """

    weighted: bool = False

    tune_space: ClassVar[Mapping[str, Sequence[Any]]] = {"n": (4, 8, 16, 32, 64), "weighted": (False, True)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weighted:
            object.__setattr__(self, "info", replace(self.info, needs_reward=True))

    async def __call__(self, prompt: Branch, run: Run) -> Branch | None:
        ballots: dict[int, tuple[Branch, float]] = {}

        async def attempt(index: int) -> None:
            leaf = await self.draw(prompt, run, index)
            ballots[index] = leaf, await self._weight(leaf, run)

        try:
            await settle(attempt(index) for index in range(self.n))
        finally:
            # Also when cut off: the vote of those that were in by then, in an order that no timing changes.
            order = sorted(ballots)
            answers = [run.task.extract(ballots[index][0].completion) for index in order]
            won = winner(answers, [ballots[index][1] for index in order])
            if won is not None:
                run.propose(ballots[order[won[0]]][0], won[1] / self.n)
            elif order:
                run.propose(ballots[order[0]][0])
        return run.best

    async def _weight(self, leaf: Branch, run: Run) -> float:
        if not self.weighted or not answered(leaf, run):
            return 1.0
        weight = (await run.reward([leaf]))[0]
        if weight < 0:
            raise RewardError(f"a vote cannot weigh {weight}; give a reward that is never negative")
        return weight
