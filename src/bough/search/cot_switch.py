"""Dynamic chain-of-thought switch: answer at once where that is likely to be right, and think aloud elsewhere.

Paper: EconProver, arXiv:2509.12603, where it goes with `bough.search.DiversePrefixes`. Pays where many problems are
easy and thoughts are long; costs a pass over the prompt.

Who decides. The paper tunes the model by preferences between its answers with and without thoughts, so that it opens
its thoughts, or closes them at once, as the problem asks for. Such a model says by itself how much it would rather
answer at once: by the probability that it closes its thoughts as soon as they are open (without a `probe`). For a
model that was not tuned so, a logistic regression on the hidden state at the prompt's last token tells how likely an
answer without thoughts is to be right (`fit_probe`), learnt from the model's own answers to other problems. It is the
same preference, "without thoughts where that is right anyway", with the threshold left open: with g the accuracy that
thinking adds where the answer at once is wrong, and c the price of its tokens in accuracy, thinking pays where
(1 - p) g > c, that is below the threshold p = 1 - c / g.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from bough.core import (
    Branch,
    BudgetExhausted,
    Capability,
    CheckpointError,
    InvalidInput,
    Promise,
    Run,
    Sampling,
    Strategy,
    UnsupportedError,
    technique,
)
from bough.core.thinking import Thinking

from .steps import require_positive
from .thinking import leave, opened, require_thinking

_PENALTIES = tuple(10.0**power for power in range(-1, 5))
_FOLDS = 5


@technique(
    "cot-switch", paper="arXiv:2509.12603", promise=Promise.APPROXIMATE,
    requires=(Capability.SAMPLE, Capability.SCORE),
)  # fmt: skip
@dataclass(frozen=True)
class CoTSwitch(Strategy):
    """Answer at once where that is likely to be right, and think aloud elsewhere.

    Attributes:
        threshold: the probability from which the model answers at once; 0 always does, and above 1 always thinks.
        probe: a file of a probe (`Probe.save`), which tells the probability that an answer at once is right; None
            takes the probability that the model itself closes its thoughts at once.
        max_thinking_tokens: of the thoughts; longer ones are closed there.
        max_tokens: of the answer.
        temperature: of the sampling distribution.
        top_p: nucleus of the sampling distribution.
    """

    threshold: float = 0.5
    probe: str | None = None
    max_thinking_tokens: int = 8192
    max_tokens: int = 2048
    temperature: float = 1.0
    top_p: float = 1.0

    tune_space: ClassVar[Mapping[str, Sequence[Any]]] = {"threshold": (0.3, 0.5, 0.7, 0.9)}

    def __post_init__(self) -> None:
        require_positive(self, "max_thinking_tokens", "max_tokens")
        if not self.threshold >= 0:
            raise InvalidInput(f"threshold={self.threshold} must be a probability, or more to think always")
        Sampling(temperature=self.temperature, top_p=self.top_p)
        if self.probe is not None:
            requires = (Capability.SAMPLE, Capability.HIDDEN)
            object.__setattr__(self, "info", replace(self.info, requires=frozenset(requires)))

    async def __call__(self, prompt: Branch, run: Run) -> Branch | None:
        thinking = require_thinking(prompt, self.info.name)
        node = opened(prompt, thinking)
        sure = await self._sure(prompt, node, thinking)
        node = leave(node, thinking) if sure >= self.threshold else await self._think(node, run, thinking)
        if node.finished:  # the context ended with the thoughts
            run.propose(node)
            return node
        leaf = await self._drawn(node, run, max_tokens=self.max_tokens, stop=run.task.answer_stop)
        run.propose(leaf)
        return leaf

    async def _sure(self, prompt: Branch, node: Branch, thinking: Thinking) -> float:
        if self.probe is None:
            (logprobs,) = await node.score([f"\n{thinking.closing}"])
            return float(np.exp(logprobs.sum(dtype=np.float64)))
        probe = load_probe(self.probe)
        return float(probe.probability((await prompt.hidden(probe.layer))[None])[0])

    async def _think(self, node: Branch, run: Run, thinking: Thinking) -> Branch:
        closing = thinking.closing.strip()
        thoughts = await self._drawn(node, run, max_tokens=self.max_thinking_tokens, stop=closing)
        if closing in thoughts.appended_text or thoughts.finish == "context":
            return thoughts
        if thoughts.finish == "eos":  # it ended the text without ever closing them
            thoughts = node + thoughts.appended[:-1]
        return leave(thoughts, thinking)

    async def _drawn(self, node: Branch, run: Run, **options: Any) -> Branch:
        sampling = Sampling(temperature=self.temperature, top_p=self.top_p)
        try:
            return (await node.sample(sampling=sampling, **options))[0]
        except BudgetExhausted as spent:
            run.propose(spent.partial[0])
            raise


@dataclass(frozen=True, eq=False)
class Probe:
    """A logistic regression on hidden states.

    Attributes:
        weights: ``[H]``.
        bias: a number.
        layer: whose hidden states it reads.
    """

    weights: np.ndarray
    bias: float
    layer: int = -1

    def probability(self, hidden: np.ndarray) -> np.ndarray:
        """``[n, H]`` -> ``[n]``.

        Raises:
            UnsupportedError: the states have another width.
        """
        if hidden.shape[-1] != len(self.weights):
            raise UnsupportedError(
                f"the probe reads states of {len(self.weights)} numbers, and the model's have {hidden.shape[-1]}; "
                "give a probe that was fitted to this model"
            )
        return _logistic(hidden.astype(np.float64) @ self.weights + self.bias)

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write what `load_probe` reads."""
        parts = {"weights": self.weights, "bias": np.array([self.bias]), "layer": np.array([self.layer])}
        save_file(parts, os.fspath(file))


@lru_cache(maxsize=64)
def load_probe(file: str) -> Probe:
    """A probe from its file.

    Raises:
        CheckpointError: the file is missing or corrupt, or is none of a probe.
    """
    try:
        parts = load_file(file)
        return Probe(parts["weights"], float(parts["bias"][0]), int(parts["layer"][0]))
    except (OSError, SafetensorError, KeyError) as error:
        raise CheckpointError(f"{file} is no file of a probe ({error!r}); Probe.save writes one") from error


def fit_probe(hidden: ArrayLike, right: ArrayLike, layer: int = -1) -> Probe:
    """The logistic regression of maximum penalised likelihood, on standardised states.

    The penalty is the one, of six, under which five-fold cross-validation finds the likelihood highest.

    Args:
        hidden: ``[n, H]``.
        right: ``[n]``, whether an answer was right, or how many of some were, in [0, 1].
        layer: whose hidden states they are.

    Raises:
        InvalidInput: the lengths differ, a number is out of range, or there are fewer than ten examples.
    """
    x, y = np.asarray(hidden, np.float64), np.asarray(right, np.float64)
    if x.ndim != 2 or y.shape != (len(x),) or len(x) < 2 * _FOLDS:
        raise InvalidInput(f"states of shape {x.shape} and outcomes of {y.shape}: give [n, H] and [n], n at least 10")
    if not (np.isfinite(x).all() and ((y >= 0) & (y <= 1)).all()):
        raise InvalidInput("the states must be finite, and the outcomes in [0, 1]")
    mean, spread = x.mean(0), x.std(0) + 1e-12
    rows = np.column_stack([(x - mean) / spread, np.ones(len(x))])
    fold = np.arange(len(x)) % _FOLDS

    def held_out(penalty: float) -> float:
        total = 0.0
        for number in range(_FOLDS):
            line = _ridge(rows[fold != number], y[fold != number], penalty)
            logit = rows[fold == number] @ line
            total += float((y[fold == number] * logit - np.logaddexp(0, logit)).sum())
        return total

    line = _ridge(rows, y, max(_PENALTIES, key=held_out))
    weights = line[:-1] / spread
    return Probe(weights, float(line[-1] - weights @ mean), layer)


def _ridge(rows: np.ndarray, y: np.ndarray, penalty: float) -> np.ndarray:
    """Newton's method; the last column, of ones, goes free of the penalty."""
    line, penalties = np.zeros(rows.shape[1]), np.full(rows.shape[1], penalty)
    penalties[-1] = 1e-3
    for _ in range(50):
        p = _logistic(rows @ line)
        gradient = rows.T @ (y - p) - penalties * line
        step = np.linalg.solve((rows.T * (p * (1 - p))) @ rows + np.diag(penalties), gradient)
        line = line + step * min(1.0, 4 / (np.abs(rows @ step).max() + 1e-12))  # a full step may overshoot
        if np.abs(step).max() < 1e-8:
            break
    return line


def _logistic(x: np.ndarray) -> np.ndarray:
    found: np.ndarray = (1 + np.tanh(x / 2)) / 2
    return found


__all__ = ["CoTSwitch", "Probe", "fit_probe", "load_probe"]
