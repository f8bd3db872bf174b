"""Best-of-N: draw n whole solutions and keep the one with the highest reward.

Paper: Cobbe et al. 2021, arXiv:2110.14168 (there with a trained verifier, n = 100). Pays when the reward tells
right solutions from wrong ones; costs n whole solutions and n reward calls, whatever the problem.
"""

from __future__ import annotations

from dataclasses import dataclass

from bough.core import Branch, Promise, Run, technique

from .steps import WholeSearch, answered


@technique("best-of-n", paper="arXiv:2110.14168", promise=Promise.APPROXIMATE, needs_reward=True)
@dataclass(frozen=True)
class BestOfN(WholeSearch):
    """Draw n whole solutions and keep the one with the highest reward.

    Each solution is judged as soon as it is finished, so a run that is cut off has judged all that were. One
    without a final answer costs no reward call and is never preferred to one with an answer.
    """

    async def __call__(self, prompt: Branch, run: Run) -> Branch | None:
        async def attempt(index: int) -> tuple[Branch, float | None]:
            leaf = await self.draw(prompt, run, index)
            return leaf, (await run.reward([leaf]))[0] if answered(leaf, run) else None

        await self.attempt_all(run, attempt, lambda _, leaf, score: run.propose(leaf, score))
        return run.best
