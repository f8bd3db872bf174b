"""A causal model with a token for *wrong* as a process reward: the probability that it rejects nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np

from bough.core import Backend, Branch, Capability, Run
from bough.core.noise import token_key

from .formats import StepFormat, StepReject, single_token
from .process import ProcessReward


class RejectionReward(ProcessReward):
    """Scores a partial solution by the probability that the reward model rejects none of its tokens.

    The model is a causal one with a token that no text has. With p its next-token distribution before the token y_t,

        P(right so far) = product over the tokens y_t of the solution of  p(y_t) / (p(y_t) + p(reject)).

    So a model that knows how a solution goes on knows what to reject, and the score never rises along a path. The
    products up to earlier steps are remembered: a new step costs one pass over its own tokens.

    Args:
        open_ended: whether a last step that is not over is judged by the tokens that it has, not as if it ended
            there; for searches that stop in the middle of steps. Without effect where the generator has another
            tokenizer.
    """

    _needs = Capability.SCORE

    format: StepReject

    def __init__(self, backend: Backend, format: StepFormat, *, open_ended: bool = False, **options: Any) -> None:
        super().__init__(backend, format, **options)
        self.open_ended = open_ended

    def _own_tokens(self, tokens: list[int], start: int, tag: int) -> list[list[int]]:
        prefixes = super()._own_tokens(tokens, start, tag)
        if self.open_ended and prefixes and prefixes[-1] == [*tokens, tag]:
            prefixes[-1] = list(tokens)
        return prefixes

    def _prefixes(self, branch: Branch, run: Run, wanted: slice) -> list[list[int] | None]:
        """The prompt, and the tokens up to the end of each step, wanted or not: the score is a product over all."""
        if self._reads_own_tokens(branch, run):
            prompt = branch.root.tokens
        else:
            prompt = self.format.prefix(self._tokenizer, self._question(branch.root), [])
        return [self._fitting(prompt, branch), *super()._prefixes(branch, run, slice(None))]

    async def _judge(self, branches: Sequence[Sequence[list[int] | None]], run: Run) -> list[list[float]]:
        found: dict[int | None, float] = {None: 0.0}
        keys = [[None if tokens is None else token_key(0, tokens) for tokens in prefixes] for prefixes in branches]
        jobs: dict[int, dict[int, list[int]]] = {}  # by what to judge: the prefixes from the last judged one on
        for prefixes, own in zip(branches, keys, strict=True):
            if own[0] is None:
                continue  # not even the prompt fits
            found[own[0]] = 1.0
            found.update((key, self._scores[key]) for key in own if key is not None and key in self._scores)
            fitting = [
                (k, tokens) for k, tokens in zip(own, prefixes, strict=True) if k is not None and tokens is not None
            ]
            judged = max(i for i, (key, _) in enumerate(fitting) if key in found)
            if judged + 1 < len(fitting):
                jobs[fitting[-1][0]] = dict(fitting[judged:])
        shares = await self._kept([list(prefixes.values()) for prefixes in jobs.values()], run)
        for prefixes_by_key, kept in zip(jobs.values(), shares, strict=True):
            base, *new = prefixes_by_key
            for key, share in zip(new, kept, strict=True):
                found[key] = self._scores[key] = found[base] * share
        self._forget()
        return [[found[key] for key in own[1:]] for own in keys]

    async def _kept(self, jobs: Sequence[list[list[int]]], run: Run) -> list[list[float]]:
        """For each job, the probability that nothing is rejected from its first prefix to the end of each other."""
        meter = Run()
        reject = single_token(self._tokenizer, self.format.reject)
        futures = [
            self.backend.submit_score(
                Branch(self.backend, None, first, token_key(0, first), run=meter), [last[len(first) :]], [reject]
            )
            for first, *_, last in jobs
        ]
        try:
            found = [pairs for (pairs,) in await asyncio.gather(*futures)]
        finally:
            run.ledger.reward_tokens += meter.ledger.computed_tokens
        kept = [np.cumprod(self.format.read(self._tokenizer, pairs)) for pairs in found]
        return [
            [float(products[len(tokens) - len(first) - 1]) for tokens in rest]
            for products, (first, *rest) in zip(kept, jobs, strict=True)
        ]
