"""Outcomes of what a model writes, and the plain way to estimate their probability: count them.

An outcome happens when a token of a set E is drawn before the text stops: before a token of a set S, the end of
the text, or the horizon. The set may depend on what was written before ("a 7 right after `answer `"), so with

    h_t = P(x_t in E_t | x_1 ... x_t-1)        (the hazard)

and T the position of the first event or stop, the outcome is the event x_T in E_T. `MonteCarlo` is the share of
trajectories in which it happens; `Scope` and `Reach` use the hazards along them instead, which are there anyway.
"""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from bough.core import Branch, InvalidInput, Stop

Event = Callable[[str], Collection[int]]

# As good as never, and yet finite: where nothing else is possible, the event is still drawn.
_NEVER = -1e4


@dataclass(frozen=True)
class Outcome:
    """What may happen in a text: a token of ``event`` before one of ``until`` and before it ends.

    Attributes:
        event: token ids; or a function from the text below the prompt to the ids that would be the event right after
            it, none of them where it cannot happen.
        until: token ids that end the text, the model's own end-of-text tokens apart. One that is in ``event`` too is
            the event.
        max_tokens: the horizon: at most so many tokens; default, as many as the context holds.

    Raises:
        InvalidInput: there is no event, or the horizon is not positive.
    """

    event: frozenset[int] | Event
    until: frozenset[int] = frozenset()
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if not callable(self.event) and not self.event:
            raise InvalidInput(f"event={self.event!r}: an outcome without a token never happens; give at least one")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise InvalidInput(f"max_tokens={self.max_tokens} must be at least 1, or None for no horizon")

    def after(self, text: str) -> frozenset[int]:
        """The tokens that would be the event right after this text below the prompt."""
        return frozenset(self.event(text)) if callable(self.event) else self.event

    async def trajectories(self, prompt: Branch, n: int, *, first: int = 0, spared: bool = False) -> list[list[int]]:
        """The tokens of ``n`` texts up to the event or the stop, the ``first``-th and those that follow.

        Args:
            spared: whether they are drawn from the model given that the event does not happen at each position; one
                ends with the event only where nothing else is possible.
        """
        if callable(self.event):
            texts = await asyncio.gather(*(self._by_stretches(prompt, first + i, spared) for i in range(n)))
            return list(texts)
        leaves = await prompt.sample(
            n,
            first=first,
            max_tokens=self.max_tokens,
            stop=Stop(tokens=self.until | self.event),
            logit_bias=dict.fromkeys(self.event, _NEVER) if spared else {},
        )
        return [list(leaf.appended) for leaf in leaves]

    async def _by_stretches(self, prompt: Branch, index: int, spared: bool) -> list[int]:
        """One text, drawn up to each place where the event can happen, and there by one token."""
        node, child, written = prompt, index, 0
        while True:
            before = node.completion
            event = self.after(before)
            left = None if self.max_tokens is None else self.max_tokens - written
            (node,) = await node.sample(
                first=child,
                max_tokens=1 if event else left,
                stop=Stop(tokens=self.until, when=None if event else self._due(before)),
                logit_bias=dict.fromkeys(event, _NEVER) if spared else {},
            )
            child, written = 0, node.length - prompt.length
            last = node.appended[-1]
            if last in event or last in self.until or node.finished or written == self.max_tokens:
                return node.tokens[prompt.length :]

    def _due(self, before: str) -> Callable[[str], bool]:
        return lambda text: bool(self.after(before + text))

    def events(self, prompt: Branch, text: Sequence[int]) -> list[frozenset[int]]:
        """What would have been the event at each position of a text below the prompt."""
        if not callable(self.event):
            return [self.event] * len(text)
        above = prompt.tokens[prompt.root.length :]
        return [self.after(prompt.backend.decode([*above, *text[:end]])) for end in range(len(text))]

    async def hazards(self, prompt: Branch, texts: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """The probability of the event at each position of each text: float64 ``[tokens]``, from one pass."""
        different = list(dict.fromkeys(map(tuple, texts)))
        events = [self.events(prompt, text) for text in different]
        others = sorted(frozenset().union(*(event for row in events for event in row)))
        scores = await prompt.score(different, others=others)
        column = {token: index for index, token in enumerate(others, start=1)}
        found = {}
        for text, rows, row_events in zip(different, scores, events, strict=True):
            chances = np.exp(rows.reshape(len(text), -1).astype(np.float64))
            sums = [
                chances[t, [column[token] for token in sorted(event)]].sum() for t, event in enumerate(row_events)
            ]
            found[text] = np.minimum(sums, 1.0)
        return [found[tuple(text)] for text in texts]


@dataclass(frozen=True)
class Estimate:
    """Independent, unbiased values of an outcome's probability, one per trajectory.

    Attributes:
        values: float64 ``[n]``.
        tokens: int64 ``[n]``, tokens that were generated for each.
    """

    values: np.ndarray
    tokens: np.ndarray

    @property
    def mean(self) -> float:
        """The estimate."""
        return float(self.values.mean())

    @property
    def standard_error(self) -> float:
        """Its standard error; NaN for one trajectory alone."""
        return float(self.values.std(ddof=1)) / math.sqrt(len(self.values)) if len(self.values) > 1 else math.nan


@dataclass(frozen=True)
class Estimator(ABC):
    """Base of the estimators: ``await Reach(n=10)(prompt, outcome)``.

    Attributes:
        n: trajectories.
    """

    n: int = 10

    def __post_init__(self) -> None:
        if not isinstance(self.n, int) or self.n < 1:
            raise InvalidInput(f"{type(self).__name__}(n={self.n!r}): must be a whole number of at least 1")

    @abstractmethod
    async def __call__(self, prompt: Branch, outcome: Outcome, *, first: int = 0) -> Estimate:
        """Estimate the outcome's probability below the prompt from its ``first``-th child and those that follow."""


@dataclass(frozen=True)
class MonteCarlo(Estimator):
    """Draw n texts and count those in which the outcome happens."""

    n: int = 100

    async def __call__(self, prompt: Branch, outcome: Outcome, *, first: int = 0) -> Estimate:
        texts = await outcome.trajectories(prompt, self.n, first=first)
        happened = [text[-1] in outcome.events(prompt, text)[-1] for text in texts]
        return Estimate(np.array(happened, np.float64), np.array([len(text) for text in texts]))
