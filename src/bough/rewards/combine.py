"""Combinations of rewards by potentials: each score becomes a log-weight, potentials multiply, so log-weights add.

A reward that is a probability p has the log-weight log p; a product of independent judges is the sum of theirs, a
geometric mean their mean (Hinton 2002's product of experts). What a score is must be said: `Converted` turns
probabilities into log-weights or log-odds and back.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args
from weakref import WeakKeyDictionary

from bough.core import Backend, Branch, InvalidInput, Reward, RewardError, Run

Scale = Literal["log", "exp", "log-odds", "logistic"]
LEAST = 1e-30  # a probability of 0 as a factor: scores must be finite


class Product:
    """The product of rewards that are probabilities, each to the power of its weight; or their geometric mean.

    All rewards are asked at the same time. A branch that one of them gives 0 has (all but) 0.

    Args:
        rewards: at least one; each score must be in [0, 1].
        weights: one per reward, not negative, not all 0; default, 1 each.
        mean: the weighted geometric mean, which stays comparable with its parts; else the product.
    """

    def __init__(self, *rewards: Reward, weights: Sequence[float] | None = None, mean: bool = False) -> None:
        self.potentials = LogLinear(*(Converted(reward, "log") for reward in rewards), weights=weights)
        self.mean = mean
        inside = ", ".join(reward.name for reward in rewards)
        self.name = f"{'geometric-mean' if mean else 'product'}({inside})"

    async def __call__(self, branches: Sequence[Branch], run: Run) -> list[float]:
        """One probability per branch.

        Raises:
            RewardError: a score is no probability.
        """
        total = sum(self.potentials.weights) if self.mean else 1.0
        return [math.exp(weight / total) for weight in await self.potentials(branches, run)]


class LogLinear:
    """The weighted sum of rewards that are log-weights: the logarithm of the product of their potentials.

    Args:
        rewards: at least one.
        weights: one per reward, finite; not negative, and not all 0; default, 1 each.
    """

    def __init__(self, *rewards: Reward, weights: Sequence[float] | None = None) -> None:
        if not rewards:
            raise InvalidInput("there are no rewards to combine; give at least one")
        self.rewards = rewards
        self.weights = tuple(1.0 for _ in rewards) if weights is None else tuple(map(float, weights))
        if len(self.weights) != len(rewards):
            raise InvalidInput(f"there are {len(self.weights)} weights for {len(rewards)} rewards; give one each")
        if not all(0 <= weight < math.inf for weight in self.weights) or not any(self.weights):
            raise InvalidInput(f"weights={self.weights} must be finite, not negative, and not all 0")
        self.name = f"log-linear({', '.join(reward.name for reward in rewards)})"

    async def __call__(self, branches: Sequence[Branch], run: Run) -> list[float]:
        """One log-weight per branch."""
        columns = await asyncio.gather(*(reward(branches, run) for reward in self.rewards))
        for reward, column in zip(self.rewards, columns, strict=True):
            if len(column) != len(branches):
                raise RewardError(f"reward {reward.name} returned {len(column)} scores for {len(branches)} branches")
        return [
            sum(weight * float(score) for weight, score in zip(self.weights, row, strict=True))
            for row in zip(*columns, strict=True)
        ]


def _log(score: float) -> float:
    return math.log(max(_probability(score), LEAST))


def _log_odds(score: float) -> float:
    p = min(max(_probability(score), LEAST), 1 - 1e-16)
    return math.log(p) - math.log1p(-p)


def _exp(score: float) -> float:
    if score > 700:
        raise RewardError(f"a log-weight of {score} is too large for a number")
    return math.exp(score)


def _probability(score: float) -> float:
    if not 0 <= score <= 1:
        raise RewardError(f"{score} is no probability in [0, 1]")
    return score


_CONVERSIONS: dict[Scale, Callable[[float], float]] = {
    "log": _log,
    "exp": _exp,
    "log-odds": _log_odds,
    "logistic": lambda score: (1 + math.tanh(score / 2)) / 2,
}


class Converted:
    """A reward on another scale: probabilities by "log" or "log-odds", log-weights by "exp", log-odds by "logistic".

    Probabilities of 0 (and, for log-odds, of 1) are taken as the nearest that has a finite logarithm.

    Args:
        reward: what to convert.
        by: the function.
    """

    def __init__(self, reward: Reward, by: Scale) -> None:
        if by not in get_args(Scale):
            raise InvalidInput(f"by={by!r} is not one of {', '.join(get_args(Scale))}")
        self.reward = reward
        self.by = by
        self.name = f"{by}({reward.name})"

    async def __call__(self, branches: Sequence[Branch], run: Run) -> list[float]:
        """One converted score per branch.

        Raises:
            RewardError: a score is not on the scale that this converts from.
        """
        try:
            return [_CONVERSIONS[self.by](float(score)) for score in await self.reward(branches, run)]
        except RewardError as error:
            raise RewardError(f"{self.name}: {error}") from None


class Threshold:
    """1 where a reward reaches a threshold, else 0: a verifier that passes or fails.

    Args:
        reward: what is compared.
        at: the least score that passes.
    """

    def __init__(self, reward: Reward, at: float) -> None:
        if not math.isfinite(at):
            raise InvalidInput(f"at={at} must be a finite number")
        self.reward = reward
        self.at = at
        self.name = f"{reward.name}>={at:g}"

    async def __call__(self, branches: Sequence[Branch], run: Run) -> list[float]:
        """1.0 or 0.0 per branch."""
        return [float(score >= self.at) for score in await self.reward(branches, run)]


class Cached:
    """A reward that is asked about each branch once: scores are remembered by the branch's key, backend and task.

    A run is charged for every branch that it asks about, remembered or not, so what a method costs does not depend on
    what ran before it; what is saved is the work. Not for rewards that compare the branches of a call (`Vote`).

    Args:
        reward: what is asked.
        memory: how many scores are kept, the oldest forgotten first.

    Attributes:
        asked: branches that the reward was asked about.
        remembered: branches that it was not, because their score was known.
    """

    def __init__(self, reward: Reward, memory: int = 1 << 16) -> None:
        if memory < 1:
            raise InvalidInput(f"memory={memory} must be at least 1 score")
        self.reward = reward
        self.memory = memory
        self.name = reward.name
        self.foresees = bool(getattr(reward, "foresees", False))
        self.asked = 0
        self.remembered = 0
        self._scores: WeakKeyDictionary[Backend, dict[tuple[int, str], float]] = WeakKeyDictionary()

    async def __call__(self, branches: Sequence[Branch], run: Run) -> list[float]:
        """One score per branch."""
        found: list[float | None] = []
        new: dict[tuple[int, str], Branch] = {}
        for branch in branches:
            key = (branch.key, run.task.name)
            found.append(self._scores.get(branch.backend, {}).get(key))
            if found[-1] is None:
                new[key] = branch
        self.remembered += len(branches) - len(new)
        fresh: dict[tuple[int, str], float] = {}
        if new:
            self.asked += len(new)
            fresh = dict(zip(new, map(float, await self.reward(list(new.values()), run)), strict=True))
            for key, branch in new.items():
                own = self._scores.setdefault(branch.backend, {})
                own[key] = fresh[key]
                while len(own) > self.memory:
                    del own[next(iter(own))]
        return [
            fresh[branch.key, run.task.name] if score is None else score
            for branch, score in zip(branches, found, strict=True)
        ]
