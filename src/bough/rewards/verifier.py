"""Outcome rewards from code: a check that a program can make, or the truth itself, for tests and studies."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, Protocol

from bough.core import Branch, InvalidInput, RewardError, Run

Verdict = bool | float


class Verifier:
    """Scores a branch by a check of its text: True is 1, False is 0, a number is itself.

    Args:
        check: called with the completion (the text below the root), or with the branch; may be a coroutine
            function, whose calls then run at the same time.
        on: what it is called with.
        name: for traces and messages; default, the function's name.
    """

    def __init__(
        self,
        check: Callable[[Any], Verdict | Awaitable[Verdict]],
        *,
        on: Literal["text", "branch"] = "text",
        name: str | None = None,
    ) -> None:
        if on not in ("text", "branch"):
            raise InvalidInput(f"on={on!r}: the check is called with the 'text' or with the 'branch'")
        self.check = check
        self.on = on
        self.name = name or str(getattr(check, "__name__", type(check).__name__))

    async def __call__(self, branches: Sequence[Branch], run: Run) -> list[float]:
        """One verdict per branch, as a number.

        Raises:
            RewardError: the check returned something that is no number.
        """

        async def one(branch: Branch) -> Any:
            verdict = self.check(branch if self.on == "branch" else branch.answer)
            return await verdict if inspect.isawaitable(verdict) else verdict

        verdicts = await asyncio.gather(*map(one, branches))
        try:
            return [float(verdict) for verdict in verdicts]
        except (TypeError, ValueError):
            raise RewardError(f"check {self.name} returned {verdicts!r}; return True, False or a number") from None


class Checkable(Protocol):
    """What `Oracle` needs of a task."""

    def check(self, problem: Any, completion: str) -> bool:
        """Whether a whole solution is right."""
        ...

    def step_labels(self, problem: Any, completion: str) -> list[bool]:
        """Per finished step: whether the solution is right so far."""
        ...


class Oracle:
    """The truth about one problem as a process reward, for tests and studies: 1 while a solution is right, else 0.

    What no real reward can do; it bounds what a search could gain from a better one.
    """

    name = "oracle"

    def __init__(self, task: Checkable, problem: Any) -> None:
        self.task = task
        self.problem = problem

    async def __call__(self, branches: Sequence[Branch], run: Run) -> list[float]:
        """1.0 for a right solution, or a partial one whose steps so far are right; else 0.0."""
        return [
            float(
                self.task.check(self.problem, branch.answer)
                if run.is_solution(branch)
                else all(self.task.step_labels(self.problem, branch.answer))
            )
            for branch in branches
        ]
