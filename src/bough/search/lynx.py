"""LYNX: a model that thinks aloud answers as soon as its own hidden states say that it may.

Paper: "LYNX: Learning Dynamic Exits for Confidence-Controlled Reasoning", arXiv:2512.05325. Pays where a model goes
on thinking after it could answer. Costs a reading of the hidden states at each cue, which the engine has computed
anyway but for one token, and a probe that was trained once for the model, on some hundred problems.

Cues. Where the model writes a word at which thoughts turn (`Thinking.cues`: wait, hmm, alternatively), a probe reads
the hidden states at that word. Above a threshold, thoughts are closed there and the model answers; else it goes on.

Supervision, from forced exits. On problems for training, the model thinks to the end, and is made to answer at every
cue as well. Leaving at a cue is *premature* where the answer there is wrong and that after all thoughts is right
(without a judge: where the two differ). The probe is a logistic regression on the standardised hidden states of some
layers, with the outcome "not premature" at every cue.

Calibration, by split conformal prediction. For a problem that the probe was not trained on, let M be the largest
score at any cue where leaving is premature, minus infinity if there is none. A method that leaves only above a
threshold t leaves this problem prematurely only if M > t. With the M of n problems for calibration, and t the k-th
smallest, k = ceil((1 - risk)(n + 1)), a fresh problem of the same kind is left prematurely with probability at most
`risk`, whatever the probe is worth, since the rank of its M among n + 1 exchangeable ones is uniform. So at most that
share of right answers is lost. With n < 1 / risk - 1, no threshold is large enough: the model is never cut.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bough.core import Branch, Capability, InvalidInput, Promise, Run, TaskLike, technique

from .thinking import ThinkingSearch

PROBE_FILE = "lynx.safetensors"
"""The name of a probe in the folder of the checkpoint that it was trained for."""

_ROUNDS = 50


@dataclass(frozen=True, eq=False)
class Probe:
    """A logistic regression on hidden states, and what is needed to choose a threshold for it.

    Attributes:
        layers: after which the states are read, counted from 0.
        mean, scale: of each state's numbers in training, ``[layers * H]``.
        weight: ``[layers * H]``, on standardised states.
        bias: the log-odds at the mean.
        worst: for every calibration problem, the largest score where leaving is premature, or -inf; sorted.
    """

    layers: tuple[int, ...]
    mean: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    bias: float
    worst: np.ndarray

    def scores(self, states: ArrayLike) -> np.ndarray:
        """The probability that leaving is not premature, of states ``[n, layers * H]``: ``[n]``.

        Raises:
            InvalidInput: the states are of another model.
        """
        rows = np.asarray(states, np.float64)
        if rows.shape[-1] != len(self.weight):
            raise InvalidInput(
                f"the probe reads {len(self.weight)} numbers of {len(self.layers)} layers, and this model has "
                f"{rows.shape[-1]} there; train a probe for this model"
            )
        found: np.ndarray = _logistic((rows - self.mean) / self.scale @ self.weight + self.bias)
        return found

    def threshold(self, risk: float) -> float:
        """The score above which at most a share `risk` of fresh problems is left prematurely; inf: never leave."""
        rank = math.ceil((1 - risk) * (len(self.worst) + 1))
        return float(self.worst[rank - 1]) if rank <= len(self.worst) else math.inf

    def calibrated(self, worst: ArrayLike) -> Probe:
        """The probe with the largest premature score of each of other problems, -inf where there is none."""
        return replace(self, worst=np.sort(np.asarray(worst, np.float64)))

    def save(self, file: Path) -> None:
        """Write it as safetensors."""
        arrays = {name: np.atleast_1d(getattr(self, name)) for name in ("mean", "scale", "weight", "bias", "worst")}
        save_file(arrays, file, {"layers": json.dumps(self.layers)})

    @classmethod
    def load(cls, file: Path) -> Probe:
        """Read what `save` wrote.

        Raises:
            InvalidInput: there is no such file, or it is something else.
        """
        try:
            with safe_open(file, "numpy") as opened:
                arrays = {name: opened.get_tensor(name) for name in ("mean", "scale", "weight", "bias", "worst")}
                layers = tuple(json.loads(opened.metadata()["layers"]))
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            raise InvalidInput(f"{file} is no probe of LYNX ({error}); bough.search.lynx makes one") from None
        return cls(
            layers, arrays["mean"], arrays["scale"], arrays["weight"], float(arrays["bias"][0]), arrays["worst"]
        )


def fit_probe(states: ArrayLike, safe: ArrayLike, layers: Sequence[int], ridge: float = 100.0) -> Probe:
    """The probe of largest penalised likelihood, by Newton's method; still to be calibrated.

    Args:
        states: hidden states at cues, ``[n, layers * H]``, layer by layer.
        safe: whether leaving there was not premature, ``[n]``.
        layers: which layers these are, counted from 0.
        ridge: half of it times the squared weights is the penalty.

    Raises:
        InvalidInput: the outcomes are all alike.
    """
    x, y = np.asarray(states, np.float64), np.asarray(safe, np.float64)
    if x.ndim != 2 or len(x) != len(y):
        raise InvalidInput(f"states of shape {x.shape} and {y.shape} outcomes: give one row per outcome")
    if not 0 < y.mean() < 1:
        raise InvalidInput("leaving was premature at every cue or at none; give more problems")
    mean, scale = x.mean(0), x.std(0) + 1e-6
    rows = np.concatenate([(x - mean) / scale, np.ones((len(x), 1))], axis=1)
    penalty = np.append(np.full(x.shape[1], ridge), 0.0)
    weights = np.zeros(rows.shape[1])
    for _ in range(_ROUNDS):
        p = _logistic(rows @ weights)
        gradient = rows.T @ (y - p) - penalty * weights
        curvature = (rows * (p * (1 - p))[:, None]).T @ rows + np.diag(penalty + 1e-9)
        step = np.linalg.solve(curvature, gradient)
        weights = weights + step
        if np.abs(step).max() < 1e-8:
            break
    return Probe(tuple(layers), mean, scale, weights[:-1], float(weights[-1]), np.zeros(0))


def _logistic(x: np.ndarray) -> np.ndarray:
    found: np.ndarray = (1 + np.tanh(x / 2)) / 2
    return found


@dataclass(frozen=True)
class Exits:
    """What a model would have answered at every cue, and what it did after all its thoughts.

    Attributes:
        thoughts: the branch at every cue, which ends in it.
        states: the hidden states there, ``[cues, layers * H]``.
        replies: the whole solution when thoughts are closed at that cue.
        last: the whole solution after all thoughts.
    """

    thoughts: tuple[Branch, ...]
    states: np.ndarray
    replies: tuple[Branch, ...]
    last: Branch


@technique(
    "lynx", paper="arXiv:2512.05325", promise=Promise.APPROXIMATE,
    requires=(Capability.SAMPLE, Capability.HIDDEN, Capability.THINKING),
)  # fmt: skip
@dataclass(frozen=True)
class Lynx(ThinkingSearch):
    """Close the thoughts at the first cue where a probe of the hidden states is sure enough, and answer.

    Attributes:
        risk: the share of problems, at most, that lose a right answer because they are left too early.
        probe: a `Probe`, or the file of one; default, the one in the checkpoint's folder.
    """

    risk: float = 0.05
    probe: Probe | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.risk < 1:
            raise InvalidInput(f"risk={self.risk} must be a probability between 0 and 1, such as 0.05")

    async def __call__(self, prompt: Branch, run: Run) -> Branch | None:
        probe = probe_of(prompt, self.probe, PROBE_FILE)
        threshold = probe.threshold(self.risk)
        thoughts = opened = self.opened(prompt)
        while self.may_go_on(thoughts, opened):
            thoughts = await self.think(thoughts, run, opened)
            if not self.may_go_on(thoughts, opened):
                break
            (score,) = probe.scores(await states_of([thoughts], probe.layers))
            if score > threshold:
                run.selected(thoughts)
                break
        return await self.reply(thoughts, run)

    async def exits(self, prompt: Branch, run: Run, layers: Sequence[int]) -> Exits:
        """Think to the end, and answer at every cue as well: what a probe is trained and calibrated on."""
        thoughts = opened = self.opened(prompt)
        cues: list[Branch] = []
        while self.may_go_on(thoughts, opened):
            thoughts = await self.think(thoughts, run, opened)
            if self.may_go_on(thoughts, opened):
                cues.append(thoughts)
        last, *replies = await asyncio.gather(*(self.reply(node, run) for node in (thoughts, *cues)))
        states = await states_of(cues, layers) if cues else np.zeros((0, 0), np.float32)
        return Exits(tuple(cues), states, tuple(replies), last)


@dataclass(frozen=True)
class Case:
    """A problem to train on.

    Attributes:
        prompt: its root.
        task: where its answers end, and what they are.
        right: whether an answer's text is right; None: leaving is premature where the answer is another one.
    """

    prompt: Branch
    task: TaskLike
    right: Callable[[str], bool] | None = None

    def premature(self, exits: Exits) -> np.ndarray:
        """At which cues leaving is premature: bool ``[cues]``."""
        if self.right is None:
            last = self.task.extract(exits.last.answer)
            return np.array([self.task.extract(reply.answer) != last for reply in exits.replies], bool)
        lost = self.right(exits.last.answer)
        return np.array([lost and not self.right(reply.answer) for reply in exits.replies], bool)


async def train(
    cases: Sequence[Case],
    *,
    layers: Sequence[int] | None = None,
    calibration: float = 0.5,
    strategy: Lynx | None = None,
    ridge: float = 100.0,
    at_once: int = 64,
) -> Probe:
    """A probe for a model, calibrated.

    Args:
        cases: problems; the last part of them is for calibration. Shuffle them first.
        layers: whose hidden states it reads, counted from 0; default, all.
        calibration: the share of the problems that the threshold is chosen from; n of them allow risks of
            1 / (n + 1) and above.
        strategy: how thoughts and answers are drawn.
        ridge: see `fit_probe`.
        at_once: problems under way at the same time.

    Raises:
        InvalidInput: leaving is premature at every cue or at none.
    """
    drawing, gate = strategy or Lynx(), asyncio.Semaphore(at_once)
    layers = tuple(range(cases[0].prompt.backend.layers)) if layers is None else tuple(layers)

    async def one(case: Case) -> tuple[Exits, np.ndarray]:
        async with gate:
            run = Run(task=case.task)
            exits = await drawing.exits(case.prompt.with_run(run), run, layers)
            return exits, ~case.premature(exits)

    found = await asyncio.gather(*map(one, cases))
    kept = round(len(found) * (1 - calibration))
    fitted = [(exits.states, safe) for exits, safe in found[:kept] if len(safe)]
    if not fitted:
        raise InvalidInput("the model wrote no cue in its thoughts; see Thinking.cues")
    states, safe = zip(*fitted, strict=True)
    probe = fit_probe(np.concatenate(states), np.concatenate(safe), layers, ridge)
    return probe.calibrated([worst(probe, exits.states, safe) for exits, safe in found[kept:]])


def worst(probe: Probe, states: np.ndarray, safe: np.ndarray) -> float:
    """The largest score where leaving is premature, of one problem's cues; -inf where there is none."""
    return float(np.where(safe, -math.inf, probe.scores(states)).max()) if len(safe) else -math.inf


def probe_of(prompt: Branch, given: Probe | str | None, name: str) -> Probe:
    """The probe that was given, as it is or as a file, or the one of that name in the checkpoint's folder.

    Raises:
        InvalidInput: there is none.
    """
    if isinstance(given, Probe):
        return given
    folder = prompt.backend.folder
    file = Path(given) if given is not None else None if folder is None else folder / name
    if file is None or not file.exists():
        raise InvalidInput(
            f"there is no probe {file or name} for {prompt.backend.name}; train one (bough.search.lynx.train, "
            "bough.zoo.switch) and give probe='file', or put it into the checkpoint's folder"
        )
    return _load(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _load(file: Path, changed: int) -> Probe:
    return Probe.load(file)


async def states_of(branches: Sequence[Branch], layers: Sequence[int]) -> np.ndarray:
    """The hidden states at the last token after some layers, side by side: ``[n, layers * H]``."""
    backend = branches[0].backend
    return np.concatenate(await asyncio.gather(*(backend.submit_hidden(branches, layer) for layer in layers)), axis=1)
