"""A process reward model as a reward: the probability that each step of a solution is right so far."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np

from bough.core import Backend, Branch, Capability, InvalidInput, Run, TokenizerLike, UnsupportedError
from bough.core.noise import token_key

from .formats import AtStepEnd, StepFormat, single_token

Aggregate = Literal["last", "min", "prod"]

_AGGREGATES: dict[str, Callable[[Sequence[float]], float]] = {
    "last": lambda scores: scores[-1],
    "min": min,
    "prod": lambda scores: float(np.prod(scores)),
}


class ProcessReward:
    """Scores partial solutions with a process reward model; one submission for all branches of a call.

    The steps of a branch are what lies between the task's step stops below the root, blank ones left out. A last
    step that is not over is judged as if it ended there. A branch without any step has nothing wrong: it scores 1.
    One whose generation ended because the context was full, and which leaves no room for the tag, scores 0.

    Where the reward model reads its score at the step stop itself and has the generator's tokenizer, it gets the
    very tokens that were generated; otherwise prompt and steps go through text.

    Args:
        backend: runs the reward model; closed by whoever opened it.
        format: how the model is asked.
        aggregate: the branch's score from those of its steps: the "last", the "min" or the "prod"uct. Which one is
            right depends on the training: "last" where a label says that everything so far is right, "min" or
            "prod" where it is about the step alone.
        question: what the model is told of the prompt; default, its text.
        memory: how many steps' scores are remembered, so that "min" and "prod" ask for new steps only.

    Raises:
        UnsupportedError: the backend has no tokenizer or no next-token distribution.
    """

    _needs = Capability.NEXT_TOKEN

    def __init__(
        self,
        backend: Backend,
        format: StepFormat,
        *,
        aggregate: Aggregate = "last",
        question: Callable[[Branch], str] | None = None,
        memory: int = 1 << 16,
    ) -> None:
        if aggregate not in get_args(Aggregate):
            raise InvalidInput(f"aggregate={aggregate!r} is not one of {', '.join(get_args(Aggregate))}")
        if memory < 1:
            raise InvalidInput(f"memory={memory} must be at least 1 score")
        if backend.tokenizer is None or self._needs not in backend.capabilities:
            raise UnsupportedError(
                f"{backend.name} cannot be a process reward: it needs a tokenizer and {self._needs.value}"
            )
        self.backend = backend
        self.format = format
        self.aggregate = aggregate
        self.name = backend.name
        self._tokenizer: TokenizerLike = backend.tokenizer
        self._question = question or (lambda root: root.text)
        self._memory = memory
        self._scores: dict[int, float] = {}
        self._same_tokenizer: weakref.WeakKeyDictionary[Backend, bool] = weakref.WeakKeyDictionary()

    async def __call__(self, branches: Sequence[Branch], run: Run) -> list[float]:
        """Each branch's score, in [0, 1]."""
        wanted = slice(-1, None) if self.aggregate == "last" else slice(None)
        steps = await self._judge([self._prefixes(branch, run, wanted) for branch in branches], run)
        return [_AGGREGATES[self.aggregate](scores) if scores else 1.0 for scores in steps]

    async def steps(self, branch: Branch, run: Run) -> list[float]:
        """The score of every step of a branch, each in [0, 1]."""
        return (await self._judge([self._prefixes(branch, run, slice(None))], run))[0]

    async def _judge(self, branches: Sequence[Sequence[list[int] | None]], run: Run) -> list[list[float]]:
        """Scores of the prefixes of each branch; None is a step that cannot be judged and scores 0."""
        keys = [[None if tokens is None else token_key(0, tokens) for tokens in prefixes] for prefixes in branches]
        known: dict[int | None, float] = {None: 0.0}
        unknown: dict[int, list[int]] = {}
        for key, tokens in zip(sum(keys, []), [tokens for prefixes in branches for tokens in prefixes], strict=True):
            if key in self._scores:
                known[key] = self._scores[key]
            elif key is not None and tokens is not None:
                unknown[key] = tokens
        if unknown:
            known.update(zip(unknown, await self._ask(list(unknown.values()), run), strict=True))
            for key in unknown:
                self._scores[key] = known[key]
            self._forget()
        return [[known[key] for key in row] for row in keys]

    def _forget(self) -> None:
        while len(self._scores) > self._memory:
            del self._scores[next(iter(self._scores))]

    async def _ask(self, prefixes: Sequence[list[int]], run: Run) -> list[float]:
        logprobs = await self._next_token(prefixes, run)
        return [float(score) for score in self.format.read(self._tokenizer, logprobs)]

    async def _next_token(self, prefixes: Sequence[list[int]], run: Run) -> np.ndarray:
        """Log-probabilities ``[n, V]`` after each prefix."""
        # A run of its own, so that the reward's work is charged to reward_tokens and not to the model's.
        meter = Run()
        roots = [Branch(self.backend, None, tokens, token_key(0, tokens), run=meter) for tokens in prefixes]
        try:
            return await self.backend.submit_next_token(roots)
        finally:
            run.ledger.reward_tokens += meter.ledger.computed_tokens

    # What the model reads ----------------------------------------------------------------------------------

    def _prefixes(self, branch: Branch, run: Run, wanted: slice) -> list[list[int] | None]:
        """The tokens after which each wanted step is judged."""
        stop, root = run.task.step_stop, branch.root
        if self._reads_own_tokens(branch, run):
            # What was read and never written, such as a trained prefix, is no business of the reward model.
            written = [[t for t in node.appended if t < node.backend.vocab_size] for node in branch.path]
            tokens = [token for node in written for token in node]
            prefixes = self._own_tokens(tokens, len(written[0]), single_token(self._tokenizer, stop))[wanted]
        else:
            steps = [step for step in branch.answer.split(stop) if step.strip()]
            question = self._question(root)
            prefixes = [
                self.format.prefix(self._tokenizer, question, steps[: index + 1])
                for index in range(len(steps))[wanted]
            ]
        return [self._fitting(tokens, branch) for tokens in prefixes]

    def _reads_own_tokens(self, branch: Branch, run: Run) -> bool:
        same_stop = isinstance(self.format, AtStepEnd) and self.format.tag == run.task.step_stop
        thought = branch.backend.thinking is not None and branch.answer != branch.completion
        return same_stop and not thought and self._shares_tokens(branch.backend)

    def _own_tokens(self, tokens: list[int], start: int, tag: int) -> list[list[int]]:
        """The prefixes of a generated sequence that end in the tag, one per step."""
        prefixes, written = [], False
        for end, token in enumerate(tokens[start:], start=start):
            if token != tag:
                written = written or token not in self._tokenizer.eos_ids
            elif written:
                prefixes.append(tokens[: end + 1])
                written = False
        if written:
            over = len(tokens)
            while tokens[over - 1] in self._tokenizer.eos_ids:
                over -= 1
            prefixes.append([*tokens[:over], tag])
        return prefixes

    def _fitting(self, tokens: list[int], branch: Branch) -> list[int] | None:
        if len(tokens) <= self.backend.context:
            return tokens
        if branch.length >= branch.backend.context:
            return None
        raise InvalidInput(
            f"a solution has {len(tokens)} tokens for the reward {self.name}, more than its context of "
            f"{self.backend.context}; use a reward with a longer context, or shorter solutions (max_tokens)"
        )

    def _shares_tokens(self, generator: Backend) -> bool:
        if generator not in self._same_tokenizer:
            self._same_tokenizer[generator] = same_vocabulary(generator.tokenizer, self._tokenizer)
        return self._same_tokenizer[generator]


def same_vocabulary(one: TokenizerLike | None, other: TokenizerLike) -> bool:
    """Whether two tokenizers give every id the same meaning."""
    if one is other:
        return True
    if one is None or (one.vocab_size, one.bos_id, one.eos_ids) != (other.vocab_size, other.bos_id, other.eos_ids):
        return False
    return all(_bytes(one, token) == _bytes(other, token) for token in range(one.vocab_size))


def _bytes(tokenizer: TokenizerLike, token: int) -> bytes | None:
    try:
        return tokenizer.token_bytes(token)
    except InvalidInput:  # an id that the vocabulary skips
        return None
