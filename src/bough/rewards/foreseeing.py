"""Self-evaluation by a model's own tokens: whether a solution is right so far, and whether it will end right.

Paper: Manvi, Singh and Ermon 2024, arXiv:2410.02725: a model is trained to answer, behind a solution that need not be
finished, with one predefined token. Pays where a model was trained so (bough/nano-eval): it needs no reward model
beside it, and shares its cache.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from bough.core import Backend, Branch, Capability, Run, UnsupportedError
from bough.core.noise import token_key

from .formats import StepForesee, StepFormat, single_token
from .rejection import RejectionReward


class ForeseeingReward(RejectionReward):
    """Scores a solution, finished or not, by the probability that it ends right.

    That is the probability that nothing of it is to be rejected (see `RejectionReward`), and for an unfinished one
    times the probability that it ends right if it is right so far, which the model says after one token, the query:

        P(ends right) = P(right so far) * p(good) / (p(good) + p(bad)).

    At the bare prompt that is the probability that a fresh solution is right. The query is never part of a branch;
    beside what is cached of the branch it costs one token, and each place is asked about once.

    Args:
        backend: the model; the one that generates, or another.
        format: how the model rejects and foresees.
        open_ended: see `RejectionReward`.
    """

    foresees = True

    format: StepForesee

    def __init__(self, backend: Backend, format: StepFormat, *, open_ended: bool = True, **options: Any) -> None:
        super().__init__(backend, format, open_ended=open_ended, **options)
        if Capability.NEXT_TOKEN not in backend.capabilities:
            raise UnsupportedError(f"{backend.name} cannot foresee: it needs {Capability.NEXT_TOKEN.value}")
        self._query = single_token(self._tokenizer, self.format.query)

    async def __call__(self, branches: Sequence[Branch], run: Run) -> list[float]:
        """Each branch's probability to end right."""
        places = [None if run.is_solution(branch) else self._place(branch, run) for branch in branches]
        right, ahead = await asyncio.gather(super().__call__(branches, run), self._ahead(places, run))
        return [one * other for one, other in zip(right, ahead, strict=True)]

    def _place(self, branch: Branch, run: Run) -> list[int]:
        """What the model reads of an unfinished branch, and the query."""
        if self._reads_own_tokens(branch, run):
            tokens = branch.tokens
        else:
            steps = [step for step in branch.answer.split(run.task.step_stop) if step.strip()]
            tokens = self.format.prefix(self._tokenizer, self._question(branch.root), steps)
        place = self._fitting([*tokens, self._query], branch)
        assert place is not None, "what fills its context is finished"
        return place

    async def _ahead(self, places: Sequence[list[int] | None], run: Run) -> list[float]:
        """The answer at each place; 1 where there is none to ask at."""
        asked = {token_key(0, place): place for place in places if place is not None}
        known = {key: self._scores[key] for key in asked if key in self._scores}
        unknown = {key: place for key, place in asked.items() if key not in known}
        if unknown:
            logprobs = await self._next_token(list(unknown.values()), run)
            known.update(zip(unknown, map(float, self.format.foresee(self._tokenizer, logprobs)), strict=True))
            self._scores.update((key, known[key]) for key in unknown)
            self._forget()
        return [1.0 if place is None else known[token_key(0, place)] for place in places]
