"""Greedy decoding: what a model says when nobody searches. The baseline of every table.

Pays when one answer is all there is time for; costs one answer.
"""

from __future__ import annotations

from dataclasses import dataclass

from bough.core import Branch, InvalidInput, Promise, Run, Strategy, technique


@technique("greedy", paper="textbook", promise=Promise.APPROXIMATE, family="baseline")
@dataclass(frozen=True)
class Greedy(Strategy):
    """Decode one answer, taking the most likely token at every step.

    Attributes:
        max_tokens: at most so many; default, as many as the context holds.
    """

    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise InvalidInput(f"max_tokens={self.max_tokens} must be at least 1, or None for no limit")

    async def __call__(self, prompt: Branch, run: Run) -> Branch | None:
        """Decode one answer."""
        stop = run.task.answer_stop
        (answer,) = await prompt.sample(temperature=0, stop=stop, max_tokens=self.max_tokens)
        run.propose(answer)
        return run.best
