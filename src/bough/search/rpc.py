"""RPC: vote with the probabilities of the different solutions, and leave out those that are improbable.

Paper: Zhou et al. 2025, A Theoretical Study on Bridging Internal Probability and Self-Consistency for LLM Reasoning.
Pays where solutions repeat or a few carry much of the probability: what they weigh is then known from their first
draw. Costs n whole solutions, as self-consistency does, and needs their log-probabilities.

Perplexity consistency. Self-consistency estimates the probability p(a) of an answer by the share of n samples that
reach it, with a variance of p(a) (1 - p(a)) / n. But the model says what each solution's probability is. Summed over
the different solutions y that were drawn and reach a,

    c(a) = sum of p(y) over the distinct y with answer a   <=   p(a),

and what is missing, p(a) - c(a), is what was never drawn: each solution y is missing with (1 - p(y)) ** n, which
vanishes exponentially. Repeats say nothing new and count once.

Reasoning pruning. Where n is far too small for that, improbable solutions are drawn at random out of a great many
and make c(a) worse. The probabilities of the different solutions are modelled as a mixture of two Weibull
distributions, fitted by EM (with the repeats, a component would collapse on one of them). A solution is left out if
it rather belongs to the component of the lower mean, and is also less probable than the mean (the paper's rule,
which has no threshold to choose).

The length. The probability of a whole solution falls with its length, so that of two answers the one with shorter
derivations weighs more. That is what the theory is about, and the default. The authors' experiments use the mean
log-probability of a token instead (`probability="mean"`, the inverse perplexity), which no longer sums up to p(a).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from bough.core import Branch, Capability, InvalidInput, Promise, Run, technique

from .steps import WholeSearch
from .vote import winner

Probability = Literal["whole", "mean"]

_SHAPES = (0.05, 20.0)  # a component that collapses on repeats of one solution has no likelihood limit
_SHARES = (0.2, 0.8)  # of a component in the mixture, as in the authors' code
_ROUNDS, _BISECTIONS = 60, 30


@technique(
    "rpc", paper="Zhou et al. 2025", promise=Promise.APPROXIMATE, requires=(Capability.SAMPLE, Capability.LOGPROBS)
)
@dataclass(frozen=True)
class RPC(WholeSearch):
    """Draw n whole solutions and take the answer whose different solutions are the most probable in sum.

    The answer's score is its share of that sum.

    Attributes:
        prune: whether improbable solutions are left out of the vote.
        probability: of a "whole" solution, or the "mean" (geometric) of its tokens' probabilities.
    """

    prune: bool = True
    probability: Probability = "whole"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.probability not in get_args(Probability):
            raise InvalidInput(f"probability={self.probability!r} is not one of {', '.join(get_args(Probability))}")

    async def __call__(self, prompt: Branch, run: Run) -> Branch | None:
        ballots: dict[int, Branch] = {}

        async def attempt(index: int) -> tuple[Branch, float | None]:
            return await self.draw(prompt, run, index), None

        def cast(index: int, leaf: Branch, score: float | None) -> None:
            ballots[index] = leaf

        try:
            await self.attempt_all(run, attempt, cast)
        finally:  # also when cut off: the vote of those that were in by then
            leaves = [ballots[index] for index in sorted(ballots)]
            if leaves:
                logprobs = [float(leaf.logprobs.sum(dtype=np.float64)) for leaf in leaves]
                if self.probability == "mean":
                    logprobs = [p / max(1, len(leaf.appended)) for p, leaf in zip(logprobs, leaves, strict=True)]
                weights = path_weights([leaf.appended for leaf in leaves], logprobs, self.prune)
                won = winner([run.task.extract(leaf.answer) for leaf in leaves], weights)
                if won is None:
                    run.propose(leaves[0])
                else:
                    # More digits than the log-probabilities have would depend on what shared the batch.
                    run.propose(leaves[won[0]], round(won[1] / sum(weights), 4))
        return run.best


def path_weights(paths: Sequence[Hashable], logprobs: Sequence[float], prune: bool = True) -> list[float]:
    """What each of n solutions weighs in the vote: its probability, or 0 for a repeat or a pruned one.

    Args:
        paths: what tells two solutions apart.
        logprobs: of each; any common offset leaves the vote as it is, so the weights are over the largest.
        prune: whether improbable solutions weigh nothing.
    """
    kept = distinct(paths)
    relative = np.asarray(logprobs, np.float64) - max(logprobs)
    if prune:
        kept &= ~pruned(relative, kept)
    weights: list[float] = np.where(kept, np.exp(relative), 0.0).tolist()
    return weights


def distinct(paths: Sequence[Hashable]) -> np.ndarray:
    """Which solutions are the first of their kind: bool ``[n]``."""
    first = {path: index for index, path in reversed(list(enumerate(paths)))}
    return np.array([first[path] == index for index, path in enumerate(paths)])


def pruned(logprobs: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Which solutions reasoning pruning leaves out: bool ``[..., n]``.

    The likeliest is never left out: it is no less probable than the mean.

    Args:
        logprobs: of each, ``[..., n]``; every row is judged by itself.
        counted: bool ``[..., n]``; the others, the repeats, have no part in the mixture and the mean.
    """
    x = np.exp(np.maximum(logprobs - logprobs.max(-1, keepdims=True), -600))
    mean = (x * counted).sum(-1, keepdims=True) / counted.sum(-1, keepdims=True)
    return (fit_mixture(x, counted).responsibilities < 0.5) & (x < mean)


class Mixture(NamedTuple):
    """A mixture of two Weibull distributions, the one with the higher mean first.

    Attributes:
        shares: ``[..., 2]``, of the components.
        shapes: ``[..., 2]``, k of each.
        scales: ``[..., 2]``, lambda of each.
        responsibilities: ``[..., n]``, the probability that each point is of the first component.
    """

    shares: np.ndarray
    shapes: np.ndarray
    scales: np.ndarray
    responsibilities: np.ndarray


def fit_mixture(x: np.ndarray, counted: np.ndarray | None = None) -> Mixture:
    """The mixture of two Weibull distributions that fits the points best, by EM from a split at the median.

    Args:
        x: ``[..., n]``, positive; every row is fitted by itself.
        counted: bool ``[..., n]``, which of them to fit; default, all.
    """
    y = np.log(x)
    present = np.ones_like(x) if counted is None else counted.astype(np.float64)
    number = present.sum(-1, keepdims=True)
    # Ranks decide, not values, so that there are points on either side also where all are equal.
    order = np.argsort(np.where(present > 0, y, -np.inf), axis=-1, kind="stable")
    rank = np.argsort(order, axis=-1, kind="stable") - (y.shape[-1] - number)
    high = np.where(rank >= number / 2, 0.9, 0.1)
    for _ in range(_ROUNDS):
        weights = np.stack([high, 1 - high], axis=-2) * present[..., None, :]  # [..., 2, n]
        shares = np.clip(weights.sum(-1) / number, *_SHARES)
        shapes, log_scales = fit_weibull(y[..., None, :], weights)
        z = shapes[..., None] * (y[..., None, :] - log_scales[..., None])
        density = np.log(shares * shapes)[..., None] + z - np.exp(np.minimum(z, 700.0))  # the factor 1 / x cancels
        high = 1 / (1 + np.exp(np.clip(density[..., 1, :] - density[..., 0, :], -700, 700)))
    log_gamma = np.vectorize(math.lgamma, otypes=[np.float64])
    means = log_scales + log_gamma(1 + 1 / shapes)
    swapped = means[..., :1] < means[..., 1:]
    first = np.where(swapped, [1, 0], [0, 1])
    shares, shapes, log_scales = (np.take_along_axis(v, first, -1) for v in (shares, shapes, log_scales))
    return Mixture(shares, shapes, np.exp(log_scales), np.where(swapped, 1 - high, high))


def fit_weibull(y: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shape and log-scale ``[...]`` of greatest weighted likelihood, from log-points and weights ``[..., n]``.

    The shape is where sum w x^k y / sum w x^k - 1 / k - sum w y / sum w, which rises with k, is zero; by bisection.
    """
    total = np.maximum(weights.sum(-1), 1e-300)
    mean, top = (weights * y).sum(-1) / total, y.max(-1, keepdims=True)
    low, high = (np.full(total.shape, math.log(k)) for k in _SHAPES)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        shape = np.exp(middle)
        powers = weights * np.exp(shape[..., None] * (y - top))
        rising = (powers * y).sum(-1) / np.maximum(powers.sum(-1), 1e-300) - 1 / shape - mean > 0
        low, high = np.where(rising, low, middle), np.where(rising, middle, high)
    shape = np.exp((low + high) / 2)
    powers = (weights * np.exp(shape[..., None] * (y - top))).sum(-1) / total
    return shape, top[..., 0] + np.log(np.maximum(powers, 1e-300)) / shape
