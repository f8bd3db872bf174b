"""Self-consistency: draw n whole solutions and take the answer that most of them reach.

Paper: Wang et al. 2022, arXiv:2203.11171; with reward-weighted votes, Li et al. 2022, arXiv:2206.02336. Pays when
wrong solutions disagree with each other, and needs no reward; costs n whole solutions. Majority voting converges
to the model's most probable answer, right or wrong, so it gains nothing from more samples beyond that.

With `confidence`, a vote counts as much as the model was sure of the solution (Fu et al. 2025, arXiv:2508.15260), and
those it was least sure of may be left out. The paper takes the mean log-probability of the likeliest tokens, over
all places or groups of consecutive ones; this takes that of the drawn tokens, which every backend has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, get_args

from bough.core import Branch, Capability, InvalidInput, Promise, RewardError, Run, technique

from .steps import WholeSearch, answered, require_positive
from .vote import Confidence, confidence, most_sure, winner


@technique("self-consistency", paper="arXiv:2203.11171", promise=Promise.APPROXIMATE)
@dataclass(frozen=True)
class SelfConsistency(WholeSearch):
    """Draw n whole solutions and take the answer that most of them reach.

    The answer's score is the winning answer's share of the n votes; where a stopping rule has ended the run, of the
    votes that it saw.

    Attributes:
        weighted: whether a solution's vote counts as much as its reward; needs a reward that is never negative.
        confidence: whether it counts as much as the model was sure of its tokens: of all ("mean"), of the least sure
            group of consecutive ones ("bottom"), of the last group ("tail"); with "none", votes are equal.
        window: tokens in a group; the default is for long chains of thought.
        keep: the share of the solutions, those with the largest weights, that has a vote.
    """

    weighted: bool = False
    confidence: Confidence = "none"
    window: int = 2048
    keep: float = 1.0

    tune_space: ClassVar[Mapping[str, Sequence[Any]]] = {"n": (4, 8, 16, 32, 64), "weighted": (False, True)}

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "window")
        if self.confidence not in get_args(Confidence):
            raise InvalidInput(f"confidence={self.confidence!r} is not one of {', '.join(get_args(Confidence))}")
        if not 0 < self.keep <= 1:
            raise InvalidInput(f"keep={self.keep} must be a share in (0, 1]; 1 keeps all votes")
        if self.weighted and self.confidence != "none":
            raise InvalidInput(f"weighted=True and confidence={self.confidence!r} are two weights; choose one")
        if self.weighted:
            object.__setattr__(self, "info", replace(self.info, needs_reward=True))
        if self.confidence != "none":
            requires = self.info.requires | {Capability.LOGPROBS}
            object.__setattr__(self, "info", replace(self.info, requires=requires))

    async def __call__(self, prompt: Branch, run: Run) -> Branch | None:
        ballots: dict[int, tuple[Branch, float]] = {}

        async def attempt(index: int) -> tuple[Branch, float | None]:
            leaf = await self.draw(prompt, run, index)
            return leaf, await self._weight(leaf, run)

        def cast(index: int, leaf: Branch, weight: float | None) -> None:
            ballots[index] = leaf, 1.0 if weight is None else weight

        try:
            await self.attempt_all(run, attempt, cast)
        finally:
            # Also when cut off: the vote of those that were in by then, in an order that no timing changes.
            order = sorted(ballots)
            answers = [run.task.extract(ballots[index][0].answer) for index in order]
            voters = [ballots[index][1] * (answer is not None) for index, answer in zip(order, answers, strict=True)]
            won = winner(answers, most_sure(voters, self.keep) if order else None)
            if won is not None:
                run.propose(ballots[order[won[0]]][0], won[1] / (len(order) if run.ledger.stopped else self.n))
            elif order:
                run.propose(ballots[order[0]][0])
        return run.best

    async def _weight(self, leaf: Branch, run: Run) -> float | None:
        if self.confidence != "none":
            return confidence(leaf.logprobs, self.confidence, self.window)
        if not self.weighted or not answered(leaf, run):
            return None
        weight = (await run.reward([leaf]))[0]
        if weight < 0:
            raise RewardError(f"a vote cannot weigh {weight}; give a reward that is never negative")
        return weight
