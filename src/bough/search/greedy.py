"""Greedy decoding: what a model says when nobody searches. The baseline of every table.

Paper: Sutskever et al. 2014, arXiv:1409.3215 (there as a beam of size 1). Pays when one answer is all there is time
for; costs one answer.
"""

from __future__ import annotations

from dataclasses import dataclass

from bough.core import Branch, BudgetExhausted, InvalidInput, Promise, Run, Strategy, technique


@technique("greedy", paper="arXiv:1409.3215", promise=Promise.APPROXIMATE, deterministic=True)
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
        try:
            leaves = await prompt.sample(temperature=0, stop=run.task.answer_stop, max_tokens=self.max_tokens)
        except BudgetExhausted as spent:
            run.propose(spent.partial[0])  # the beginning of an answer: better than nothing
            raise
        run.propose(leaves[0])
        return run.best
