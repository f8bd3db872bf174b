"""The implicit reward of a pair of models: how much likelier tuning made what was written.

Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290) tunes a policy so that, with its reference,

    r(prompt, y) = beta * log(policy(y | prompt) / reference(y | prompt))

is a reward that explains the preferences, up to a term of the prompt alone. The logarithm is a sum over tokens, so
each token has a reward, and a partial text has the sum of its own (Rafailov et al. 2024, arXiv:2404.12358). A long
text has more terms than a short one; TreeBoN (Qiu et al. 2024, arXiv:2410.16033) weighs the k-th token by 1 / k.
"""

from __future__ import annotations

import asyncio
import math
import weakref
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from bough.core import Backend, Branch, Capability, InvalidInput, Reward, Run, UnsupportedError
from bough.core.noise import token_key

from .process import same_vocabulary

Weights = Literal["uniform", "inverse"]


class ImplicitReward:
    """Scores partial and whole texts by the log-ratio of two models, token by token.

    The sums up to earlier branches are remembered: a branch costs one pass of each model over the tokens that its
    judged ancestors do not have, and all branches of a call are scored at the same time. Where the text was drawn
    from the policy itself, its log-probabilities are known and cost nothing.

    Args:
        policy: the tuned model.
        reference: the model that it was tuned from.
        beta: the strength of the tuning's pull to the reference.
        weights: of the k-th token below the root: "uniform", 1, or "inverse", 1 / k.
        final: judges whole solutions instead, where partial ones alone should have the implicit reward.
        memory: how many sums are remembered.

    Raises:
        UnsupportedError: a model cannot score given tokens, or the two have different vocabularies.
        InvalidInput: beta is not a positive number, or the weights or memory make no sense.
    """

    def __init__(
        self,
        policy: Backend,
        reference: Backend,
        *,
        beta: float = 0.1,
        weights: Weights = "uniform",
        final: Reward | None = None,
        memory: int = 1 << 16,
    ) -> None:
        if not 0 < beta < math.inf:
            raise InvalidInput(f"beta={beta} must be a positive number; what the policy was tuned with")
        if weights not in get_args(Weights):
            raise InvalidInput(f"weights={weights!r} is not one of {', '.join(get_args(Weights))}")
        if memory < 1:
            raise InvalidInput(f"memory={memory} must be at least 1 sum")
        for model in (policy, reference):
            if Capability.SCORE not in model.capabilities:
                raise UnsupportedError(f"{model.name} cannot be half of an implicit reward: it lacks SCORE")
        self._shares: weakref.WeakKeyDictionary[Backend, bool] = weakref.WeakKeyDictionary()
        self.policy = policy
        self.reference = reference
        self.beta = beta
        self.weights = weights
        self.final = final
        self.name = f"{policy.name} / {reference.name}"
        self._memory = memory
        self._sums: dict[int, float] = {}
        self._require_same(reference)

    async def __call__(self, branches: Sequence[Branch], run: Run) -> list[float]:
        """Each branch's score, any finite number; 0 where nothing is below the root."""
        whole = [index for index, branch in enumerate(branches) if self.final is not None and run.is_solution(branch)]
        partial = [index for index in range(len(branches)) if index not in set(whole)]
        scores = dict(zip(partial, await self._score([branches[index] for index in partial], run), strict=True))
        if self.final is not None and whole:
            scores.update(zip(whole, await self.final([branches[index] for index in whole], run), strict=True))
        return [scores[index] for index in range(len(branches))]

    def _require_same(self, other: Backend) -> None:
        """Refuse a model whose tokens mean nothing to the policy."""
        if other not in self._shares:
            one, two = self.policy.tokenizer, other.tokenizer
            same = one is two if one is None or two is None else same_vocabulary(one, two)
            self._shares[other] = same and self.policy.vocab_size == other.vocab_size
        if not self._shares[other]:
            raise UnsupportedError(
                f"{other.name} and {self.policy.name} have different vocabularies; an implicit reward needs the "
                "generator, the policy and the reference to share one"
            )

    async def tokens(self, branch: Branch, run: Run) -> np.ndarray:
        """The unweighted reward of each token below the root: float64 ``[tokens]``."""
        self._require_same(branch.backend)
        return self.beta * (await self._ratios([(branch, branch.root.length)], run))[0]

    async def _score(self, branches: Sequence[Branch], run: Run) -> list[float]:
        jobs: dict[int, tuple[Branch, int, float]] = {}
        keys = []
        for branch in branches:
            self._require_same(branch.backend)
            nodes, start, known = branch.path, branch.root.length, 0.0
            for node in reversed(nodes[1:]):
                if (remembered := self._sums.get(_key(node))) is not None:
                    start, known = node.length, remembered
                    break
            keys.append(_key(branch))
            jobs.setdefault(keys[-1], (branch, start, known))
        todo = {key: job for key, job in jobs.items() if job[1] < job[0].length}
        ratios = await self._ratios([(branch, start) for branch, start, _ in todo.values()], run)
        found = {key: known for key, (_, _, known) in jobs.items()}
        for (key, (branch, start, known)), ratio in zip(todo.items(), ratios, strict=True):
            place = np.arange(start, branch.length) - branch.root.length + 1
            weights = 1 / place if self.weights == "inverse" else np.ones(len(place))
            found[key] = self._sums[key] = known + float(weights @ ratio)
        while len(self._sums) > self._memory:
            del self._sums[next(iter(self._sums))]
        return [self.beta * found[key] for key in keys]

    async def _ratios(self, jobs: Sequence[tuple[Branch, int]], run: Run) -> list[np.ndarray]:
        """For each branch, the log-ratio of its tokens from a place on."""
        sums = await asyncio.gather(*(self._logprobs(model, jobs, run) for model in (self.policy, self.reference)))
        return [policy - reference for policy, reference in zip(*sums, strict=True)]

    async def _logprobs(self, model: Backend, jobs: Sequence[tuple[Branch, int]], run: Run) -> list[np.ndarray]:
        # A run of its own, so that the reward's work is charged to reward_tokens and not to the model's.
        meter = Run()

        async def one(branch: Branch, start: int) -> np.ndarray:
            tokens = branch.tokens
            if branch.backend is model:
                drawn = np.concatenate([node.logprobs for node in branch.path])[start:]
                if not np.isnan(drawn).any():
                    return drawn.astype(np.float64)
            if start == len(tokens):
                return np.zeros(0)
            prefix = Branch(model, None, tokens[:start], token_key(0, tokens[:start]), run=meter)
            [logprobs] = await model.submit_score(prefix, [model.check_tokens(tokens[start:])])
            return logprobs.astype(np.float64)

        try:
            return await asyncio.gather(*(one(branch, start) for branch, start in jobs))
        finally:
            run.ledger.reward_tokens += meter.ledger.computed_tokens


def _key(branch: Branch) -> int:
    """Names a text and where its prompt ends."""
    return token_key(branch.root.length, branch.tokens)
