"""Perplexity: how probable the model finds what was written, from the log-probabilities that its branches carry.

Pays where wrong solutions surprise the model that wrote them; costs nothing for tokens that were drawn. Long
solutions are less probable than short ones, so the mean over tokens (minus the logarithm of the perplexity) is the
default.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from bough.core import Branch, Capability, InvalidInput, Run, UnsupportedError
from bough.core.noise import token_key

Over = Literal["mean", "sum"]
LEAST = -100.0  # log-probability of a token that the model rules out: a score must be finite


class Perplexity:
    """Log-probability of a branch's completion under its model: the mean per token, or the sum; 0 for an empty one.

    Where tokens were given rather than drawn, the completion is scored in one pass; equal roots share it.

    Args:
        over: "mean" or "sum".
    """

    name = "perplexity"

    def __init__(self, over: Over = "mean") -> None:
        if over not in get_args(Over):
            raise InvalidInput(f"over={over!r} is not one of {', '.join(get_args(Over))}")
        self.over = over

    async def __call__(self, branches: Sequence[Branch], run: Run) -> list[float]:
        """One log-probability per branch, at most 0.

        Raises:
            UnsupportedError: tokens were given, and the model cannot score them.
        """
        known = [_own(branch) for branch in branches]
        given: dict[int, list[int]] = {}
        for index, logprobs in enumerate(known):
            if np.isnan(logprobs).any():
                given.setdefault(branches[index].root.key, []).append(index)
        if given:
            groups = list(given.values())
            scored = await asyncio.gather(*(_scored([branches[i] for i in group], run) for group in groups))
            for group, found in zip(groups, scored, strict=True):
                for index, logprobs in zip(group, found, strict=True):
                    known[index] = logprobs
        return [self._total(logprobs) for logprobs in known]

    def _total(self, logprobs: np.ndarray) -> float:
        if not len(logprobs):
            return 0.0
        bounded = np.maximum(logprobs.astype(np.float64), LEAST)
        return float(bounded.mean() if self.over == "mean" else bounded.sum())


def _own(branch: Branch) -> np.ndarray:
    """Log-probabilities ``[tokens]`` below the root; NaN where tokens were given."""
    return np.concatenate([np.zeros(0, np.float32), *(node.logprobs for node in branch.path[1:])])


async def _scored(branches: Sequence[Branch], run: Run) -> list[np.ndarray]:
    """The same, computed: branches of one root, in one pass."""
    root = branches[0].root
    if Capability.SCORE not in root.backend.capabilities:
        raise UnsupportedError(
            f"the perplexity of given tokens needs {Capability.SCORE.value}, which {root.backend.name} does not offer"
        )
    meter = Run()  # so that the reward's work is charged to reward_tokens and not to the model's
    fresh = Branch(root.backend, None, root.tokens, token_key(0, root.tokens), run=meter)
    try:
        return await root.backend.submit_score(fresh, [branch.tokens[root.length :] for branch in branches])
    finally:
        run.ledger.reward_tokens += meter.ledger.computed_tokens
