"""Particle filtering: sample from the solutions that a process reward finds likely, instead of maximising it.

Paper: Puri et al. 2025, arXiv:2502.01618. Pays when the reward is imperfect, because no single bad score prunes a
solution for good; costs n steps and n reward calls per level, with a barrier at every level.

The weights. A solution x_1 ... x_T of T steps is the hidden path of a state-space model whose transitions are the
language model p(x_t | x_1..t-1) and whose likelihood at each step is an observation "right so far". The process
reward r_t = sigmoid(l_t) states that probability; l_t = log(r_t / (1 - r_t)), its inverse sigmoid, is the log-odds
of being right against being wrong. Resampling with probabilities softmax(l / tau) over the particles therefore
weights each by its odds to the power 1 / tau, and the population after step t, before its resampling, is a sample
of

    p(x_1..t) * prod_{s < t} (r_s / (1 - r_s)) ** (1 / tau),     to be weighted by (r_t / (1 - r_t)) ** (1 / tau).

Odds reach far beyond [0, 1], which is what lets a confident reward concentrate the population; probabilities
themselves would differ by too little to matter. A finished solution no longer moves but keeps its place, its
reward, and its share in each resampling.

The family. The above is the paper's filter, and the default. Each part of it can be another:

- ``ess_threshold``: resampling only when the effective sample size is low; until then weights multiply.
- ``resampling``: a scheme of lower variance.
- ``tempering``: the target after step t is p(x_1..t) prod_{s <= t} odds_s ** (b_t / tau) with b_t = t / tempering
  up to 1, so that early rewards do not decide too much. From step to step a log-weight grows by b_t log odds_t plus
  (b_t - b_{t-1}) times all log-odds before; at the last step b is 1, so the final target is the same.
- ``recount``: that a finished solution's reward counts again in each resampling makes its weight depend on how long
  the others take. Without, each step counts once, and the population is properly weighted for p(x) prod_t odds_t **
  (1 / tau) over whole solutions x: `population` has unbiased weights and an unbiased estimate of the evidence, the
  expectation of that product under the model (bough.search.smc)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bough.core import Branch, Branches, Capability, InvalidInput, Promise, Run, technique

from .resampling import Scheme, require_scheme, uniforms
from .smc import Population, Weighted
from .steps import StepSearch, judge, require_positive, require_probabilities

# A reward of exactly 0 or 1 has infinite log-odds; this is about float32's resolution below 1.
_CERTAIN = 1e-7


@technique(
    "particle-filter", paper="arXiv:2502.01618", promise=Promise.APPROXIMATE,
    requires=(Capability.SAMPLE, Capability.CONTINUE), needs_reward=True,
)  # fmt: skip
@dataclass(frozen=True)
class ParticleFilter(StepSearch, Weighted):
    """Advance n partial solutions step by step; resample them by the odds that the process reward gives each.

    The answer is the finished particle of highest reward, of all there were.

    Attributes:
        n: particles.
        softmax_temperature: tau in the weights softmax(log-odds / tau).
        resampling: the paper's independent draws, or a scheme of lower variance.
        ess_threshold: resample when the effective sample size falls below this share of n; None at every step.
        tempering: steps over which the exponent of the odds rises to 1 / tau; None has it there from the start.
        recount: whether a finished solution's reward counts again at each further step.
    """

    n: int = 16
    softmax_temperature: float = 1.0
    resampling: Scheme = "multinomial"
    ess_threshold: float | None = None
    tempering: int | None = None
    recount: bool = True

    tune_space: ClassVar[Mapping[str, Sequence[Any]]] = {
        "n": (4, 8, 16, 32, 64),
        "resampling": ("multinomial", "systematic"),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "n", *(("tempering",) if self.tempering is not None else ()))
        require_temperature(self.softmax_temperature)
        require_scheme(self.resampling)
        if self.ess_threshold is not None and not 0 <= self.ess_threshold <= 1:
            raise InvalidInput(f"ess_threshold={self.ess_threshold} must be in [0, 1]: a share of the particles")

    async def __call__(self, prompt: Branch, run: Run) -> Branch | None:
        particles, rewards = Branches([prompt]), np.zeros(1)
        try:
            async with aclosing(self.populations(prompt, run)) as populations:
                async for particles, rewards in populations:  # noqa: B007  (the last ones are used below)
                    pass
        finally:
            if run.best is None and particles[0] is not prompt:
                run.propose(particles[int(np.argmax(rewards))])  # cut off before anything was whole
        return run.best

    async def population(self, prompt: Branch, run: Run) -> Population:
        """The final population; properly weighted unless finished solutions are recounted."""
        async with aclosing(self.weighted(prompt, run)) as levels:
            async for level, _ in levels:
                population = level
        return population

    async def populations(self, prompt: Branch, run: Run) -> AsyncGenerator[tuple[Branches, np.ndarray], None]:
        """The particles and their rewards, float64 ``[n]``, after every step, before their resampling."""
        async with aclosing(self.weighted(prompt, run)) as levels:
            async for population, rewards in levels:
                yield population.branches, rewards

    async def weighted(self, prompt: Branch, run: Run) -> AsyncGenerator[tuple[Population, np.ndarray], None]:
        """The same with weights; once more where a resampling has left only whole solutions."""
        population, rewards, past, exponent = Population.at(prompt, self.n), np.zeros(self.n), np.zeros(self.n), 0.0
        for step in range(self.max_steps):
            particles = population.branches
            moving = [index for index, particle in enumerate(particles) if not run.is_solution(particle)]
            if not moving:
                yield population.reweighted((1 - exponent) * past), rewards
                return
            for state in dict.fromkeys(particles.select(moving)):
                run.expanded(state)
            drawn = await self.draw_steps(particles.select(moving), run)
            rewards = rewards.copy()
            rewards[moving] = await judge(drawn, run)
            require_probabilities(rewards, self.info.name)
            odds = log_odds(rewards, self.softmax_temperature)
            if not self.recount:
                odds[np.setdiff1d(np.arange(self.n), moving)] = 0
            moved = dict(zip(moving, drawn, strict=True))
            particles = Branches(moved.get(index, particle) for index, particle in enumerate(particles))
            over = step + 1 == self.max_steps or all(map(run.is_solution, particles))
            before = exponent
            exponent = 1.0 if over or self.tempering is None else min(1.0, (step + 1) / self.tempering)
            population = population.moved(particles, exponent * odds + (exponent - before) * past)
            past = past + odds
            yield population, rewards
            if over:
                return
            if self.ess_threshold is None or population.ess < self.ess_threshold * self.n:
                u = uniforms(prompt, step, self.n)
                population, survivors = population.resampled(self.resampling, u, run)
                rewards, past = rewards[survivors], past[survivors]


def log_odds(rewards: np.ndarray, temperature: float) -> np.ndarray:
    """Log-odds of process rewards over the temperature tau: float64 of their shape."""
    certain = np.clip(rewards, _CERTAIN, 1 - _CERTAIN)
    odds: np.ndarray = (np.log(certain) - np.log1p(-certain)) / temperature
    return odds


def require_temperature(tau: float) -> None:
    """Refuse a softmax temperature that is not a positive number.

    Raises:
        InvalidInput: names it.
    """
    if not 0 < tau < float("inf"):
        raise InvalidInput(f"softmax_temperature={tau} must be a positive number")
