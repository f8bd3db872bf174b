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
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from bough.core import Branch, Branches, InvalidInput, Promise, Run, technique

from .resampling import RESAMPLING, uniforms
from .steps import StepSearch, judge, require_positive, require_probabilities

# A reward of exactly 0 or 1 has infinite log-odds; this is about float32's resolution below 1.
_CERTAIN = 1e-7


@technique("particle-filter", paper="arXiv:2502.01618", promise=Promise.APPROXIMATE, needs_reward=True)
@dataclass(frozen=True)
class ParticleFilter(StepSearch):
    """Advance n partial solutions step by step; resample them by the odds that the process reward gives each.

    The answer is the finished particle of highest reward, of all there were.

    Attributes:
        n: particles.
        softmax_temperature: tau in the weights softmax(log-odds / tau).
        resampling: the paper's independent draws, or a scheme of lower variance.
    """

    n: int = 16
    softmax_temperature: float = 1.0
    resampling: Literal["multinomial", "stratified", "systematic"] = "multinomial"

    tune_space: ClassVar[Mapping[str, Sequence[Any]]] = {
        "n": (4, 8, 16, 32, 64),
        "resampling": ("multinomial", "systematic"),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "n")
        if not 0 < self.softmax_temperature < float("inf"):
            raise InvalidInput(f"softmax_temperature={self.softmax_temperature} must be a positive number")
        if self.resampling not in RESAMPLING:
            raise InvalidInput(f"resampling={self.resampling!r} is not one of {', '.join(RESAMPLING)}")

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

    async def populations(self, prompt: Branch, run: Run) -> AsyncGenerator[tuple[Branches, np.ndarray], None]:
        """The particles and their rewards, float64 ``[n]``, after every step, before their resampling."""
        particles, rewards = Branches([prompt] * self.n), np.zeros(self.n)
        for step in range(self.max_steps):
            moving = [index for index, particle in enumerate(particles) if not run.is_solution(particle)]
            if not moving:
                return
            for state in dict.fromkeys(particles.select(moving)):
                run.expanded(state)
            drawn = await self.draw_steps(particles.select(moving), run)
            rewards = rewards.copy()
            rewards[moving] = await judge(drawn, run)
            require_probabilities(rewards, self.info.name)
            moved = dict(zip(moving, drawn, strict=True))
            particles = Branches(moved.get(index, particle) for index, particle in enumerate(particles))
            yield particles, rewards
            if all(map(run.is_solution, particles)):
                return
            survivors = RESAMPLING[self.resampling](self.weights(rewards), uniforms(prompt, step, self.n))
            for index in range(self.n):
                if index in survivors:
                    run.selected(particles[index])
                else:
                    run.pruned(particles[index], f"not resampled at reward {rewards[index]:.3g}")
            particles, rewards = particles.select(survivors), rewards[survivors]

    def weights(self, rewards: np.ndarray) -> np.ndarray:
        """Resampling probabilities, float64 ``[n]``: softmax of the rewards' log-odds over the temperature."""
        certain = np.clip(rewards, _CERTAIN, 1 - _CERTAIN)
        log_odds = (np.log(certain) - np.log1p(-certain)) / self.softmax_temperature
        weights = np.exp(log_odds - log_odds.max())
        return weights / weights.sum()
