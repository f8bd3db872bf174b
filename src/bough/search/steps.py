"""What every search here does: draw whole solutions or single steps, judge them, offer what is whole."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from bough.core import Branch, Branches, BudgetExhausted, InvalidInput, RewardError, Run, Sampling, Strategy

T = TypeVar("T")


@dataclass(frozen=True)
class StepSearch(Strategy):
    """Base of the searches that advance one step at a time; a step ends where the task says.

    Attributes:
        max_step_tokens: a step that is not over by then is taken as it is.
        max_steps: an unfinished solution of so many steps is given up.
        temperature: of the steps' sampling distribution; 0 is greedy.
        top_p: nucleus of the steps' sampling distribution.
    """

    max_step_tokens: int = 256
    max_steps: int = 64
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        require_positive(self, "max_step_tokens", "max_steps")
        Sampling(temperature=self.temperature, top_p=self.top_p)

    async def draw_steps(self, states: Branches, run: Run, first: int = 0) -> Branches:
        """One more step of each state, the ``first``-th child and those that follow.

        Where the budget cuts this off, the whole solutions among what was drawn are still judged and offered.
        """
        try:
            return await states.sample(
                first=first,
                stop=run.step_stops,
                max_tokens=self.max_step_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
            )
        except BudgetExhausted as spent:
            await judge([leaf for leaf in spent.partial if leaf.finish != "budget" and run.is_solution(leaf)], run)
            raise


@dataclass(frozen=True)
class WholeSearch(Strategy):
    """Base of the searches that draw whole solutions, independently of each other.

    Attributes:
        n: how many solutions.
        max_tokens: length limit of each; one that is longer is cut there.
        temperature: of the sampling distribution.
        top_p: nucleus of the sampling distribution.
    """

    n: int = 16
    max_tokens: int = 2048
    temperature: float = 1.0
    top_p: float = 1.0

    tune_space: ClassVar[Mapping[str, Sequence[Any]]] = {"n": (4, 8, 16, 32, 64)}

    def __post_init__(self) -> None:
        require_positive(self, "n", "max_tokens")
        Sampling(temperature=self.temperature, top_p=self.top_p)

    async def draw(self, prompt: Branch, run: Run, index: int) -> Branch:
        """The ``index``-th solution. One that the budget cuts short is offered, unscored: better than nothing."""
        try:
            leaves = await prompt.sample(
                first=index,
                stop=run.task.answer_stop,
                max_tokens=self.max_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
            )
        except BudgetExhausted as spent:
            for leaf in spent.partial:
                run.propose(leaf)
            raise
        return leaves[0]


def require_positive(owner: object, *names: str) -> None:
    """Refuse a hyper-parameter that is not a whole number of at least 1."""
    for name in names:
        value = getattr(owner, name)
        if not isinstance(value, int) or value < 1:
            raise InvalidInput(f"{type(owner).__name__}({name}={value!r}): must be a whole number of at least 1")


def answered(branch: Branch, run: Run) -> bool:
    """Whether the task finds a final answer in the branch."""
    return run.task.extract(branch.completion) is not None


async def judge(branches: Sequence[Branch], run: Run) -> list[float]:
    """The reward of each branch; whole solutions are offered as the answer at once.

    A solution without a final answer is offered unscored, so it never beats one that has an answer. If the
    budget has fewer reward calls left than there are branches, the first ones get them.

    Raises:
        BudgetExhausted: after the affordable ones were judged, if there are others.
    """
    affordable = int(min(len(branches), run.ledger.reward_calls_left))
    scores = await run.reward(branches[:affordable])
    for branch, score in zip(branches, scores, strict=False):
        if run.is_solution(branch):
            run.propose(branch, score if answered(branch, run) else None)
    if affordable < len(branches):
        await run.reward(branches[affordable:])  # raises, and says which limit was reached
    return scores


def require_probabilities(scores: Iterable[float], needed_by: str) -> None:
    """Refuse a score outside [0, 1], which is no process reward.

    Raises:
        RewardError: names the score.
    """
    for score in scores:
        if not 0 <= score <= 1:
            raise RewardError(
                f"{needed_by} needs a process reward in [0, 1], the probability that a solution is right so far; "
                f"the reward returned {score}"
            )


async def settle(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of coroutines that run at the same time, in order.

    A spent budget stops one of them only: the others may still judge what they have. Any other error stops all.
    """
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        pending: Iterable[asyncio.Future[T]] = tasks
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                if (error := task.exception()) is not None and not isinstance(error, BudgetExhausted):
                    raise error
        return [task.result() for task in tasks]
    finally:
        await cancel(tasks)


async def cancel(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel tasks and wait until each has let go of what it held."""
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
