"""Particle Gibbs: run a particle filter again and again, each time around a solution that the last one found.

Paper: Puri et al. 2025, arXiv:2502.01618 (its particle Gibbs), with the ancestor sampling of Lindsten, Jordan and
Schon 2014, arXiv:1401.0604. Pays when one filter's population has collapsed onto a wrong beginning, which a second
one is free to leave; costs ``iterations`` filters one after the other, and for each step of the kept solution a
scoring pass and the rewards of its rest below every other particle.

The kernel. The target is that of the particle filter, over whole solutions x of T steps:

    gamma(x) = p(x) prod_t odds_t(x_1..t) ** (1 / tau),        odds = r / (1 - r) of the process reward r.

A sweep is a conditional particle filter: n - 1 particles move by the model, are weighted by the odds of their new
step and resampled at every step, as usual; the n-th is the kept solution x', step by step. The next kept solution
is drawn from the last population by weight. This leaves gamma / Z invariant for any n of 2 or more (Andrieu, Doucet
and Holenstein 2010), so the kept solutions' law approaches it, whatever the first one was.

Ancestor sampling. Before step t the rest x'_t..T is given a new beginning: particle i's, with probability in
proportion to w_i gamma(x^i_1..t-1, x'_t..T) / gamma(x^i_1..t-1), which is

    w_i p(x'_t..T | x^i_1..t-1) prod_{s >= t} odds(x^i_1..t-1, x'_t..s) ** (1 / tau).

Otherwise the kept solution's beginning would hardly ever change, since all others have died out by the end. A process
reward sees the whole text, so all later rewards change with the beginning and are computed anew. Below a beginning
that is over, or where the rest would not be cut into the same steps, that density is 0.

A finished solution stays as it is and is no longer weighted. The first sweep is an ordinary particle filter.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import numpy as np

from bough.core import Branch, Branches, Capability, InvalidInput, Promise, Run, technique

from .particle_filter import log_odds, require_temperature
from .power import graft
from .resampling import uniforms
from .smc import Population
from .steps import StepSearch, judge, require_positive, require_probabilities, settle

Odds = dict[Branch, float]


@technique(
    "particle-gibbs", paper="arXiv:2502.01618", promise=Promise.APPROXIMATE, needs_reward=True,
    requires=(Capability.SAMPLE, Capability.CONTINUE, Capability.LOGPROBS, Capability.SCORE),
)  # fmt: skip
@dataclass(frozen=True)
class ParticleGibbs(StepSearch):
    """Repeat a particle filter conditionally on the solution kept from the one before.

    The answer is the finished particle of highest reward, of all there were.

    Attributes:
        n: particles of each sweep, the kept one included.
        iterations: sweeps, the first one included.
        softmax_temperature: tau in the weights softmax(log-odds / tau).
        ancestor_sampling: whether the kept solution's rest may get another beginning.
    """

    n: int = 8
    iterations: int = 3
    softmax_temperature: float = 1.0
    ancestor_sampling: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "n", "iterations")
        require_temperature(self.softmax_temperature)
        if self.n < 2:
            raise InvalidInput(f"n={self.n} leaves no particle beside the kept solution; it must be at least 2")
        if (self.temperature, self.top_p) != (1, 1):
            raise InvalidInput(
                f"temperature={self.temperature}, top_p={self.top_p}: the target is the model's own distribution, "
                "times the odds, so both must be 1; softmax_temperature weighs the odds"
            )

    async def __call__(self, prompt: Branch, run: Run) -> Branch | None:
        kept = prompt
        try:
            async with aclosing(self.chain(prompt, run)) as chain:
                async for kept in chain:
                    run.selected(kept)
        finally:
            if run.best is None and kept is not prompt:
                run.propose(kept)
        return run.best

    async def chain(self, prompt: Branch, run: Run) -> AsyncGenerator[Branch, None]:
        """The kept solution after each sweep."""
        kept: Branch | None = None
        odds: Odds = {}
        for iteration in range(self.iterations):
            kept = await self.sweep(kept, prompt, run, odds, iteration)
            yield kept

    async def sweep(self, kept: Branch | None, prompt: Branch, run: Run, odds: Odds, iteration: int) -> Branch:
        """One conditional particle filter.

        Args:
            kept: the solution to keep, one node per step; None for an ordinary filter.
            prompt: the root.
            run: the run.
            odds: log-odds over tau of the kept solution's nodes; those of all new nodes are added.
            iteration: number of the sweep, which its randomness is keyed by.
        """
        steps = kept.path[1:] if kept is not None else []
        free = self.n - bool(steps)
        population = Population.at(prompt, self.n)
        try:
            for level in range(self.max_steps):
                if all(map(run.is_solution, population.branches)):
                    break
                if level:
                    u = uniforms(prompt, iteration * self.max_steps + level, self.n)
                    if self.ancestor_sampling and level < len(steps):
                        steps = await self._reattached(steps, level, population, run, odds, u[-1])
                    population, _ = population.resampled("multinomial", u[:free], run)
                particles = list(population.branches[:free])
                moving = [index for index, particle in enumerate(particles) if not run.is_solution(particle)]
                increments = np.zeros(self.n)
                if moving:
                    for state in dict.fromkeys(particles[index] for index in moving):
                        run.expanded(state)
                    states = Branches(particles[index] for index in moving)
                    drawn = await self.draw_steps(states, run, first=iteration * self.n)
                    for index, leaf in zip(moving, drawn, strict=True):
                        particles[index] = leaf
                    increments[moving] = await self._judged(drawn, run, odds)
                if steps:
                    particles.append(steps[min(level, len(steps) - 1)])
                    increments[-1] = odds[steps[level]] if level < len(steps) else 0.0
                population = Population(Branches(particles), increments)
        finally:
            if run.best is None and population.branches[0] is not prompt:
                run.propose(population.branches[0])
        return population.branches[population.draw(uniforms(prompt, -iteration - 1, 1)[0])]

    async def _judged(self, branches: Branches, run: Run, odds: Odds) -> np.ndarray:
        """Log-odds over tau of new nodes, float64 ``[n]``."""
        rewards = await judge(branches, run)
        require_probabilities(rewards, self.info.name)
        new = log_odds(np.array(rewards), self.softmax_temperature)
        odds.update(zip(branches, new.tolist(), strict=True))
        return new

    async def _reattached(
        self, steps: list[Branch], level: int, population: Population, run: Run, odds: Odds, u: float
    ) -> list[Branch]:
        """The kept solution's steps from ``level`` on, below a beginning drawn by ancestor sampling."""
        own, rest = steps[level - 1], steps[level:]
        tokens = [token for node in rest for token in node.appended]

        async def below(beginning: Branch) -> tuple[list[Branch], float]:
            if beginning is own:
                nodes = rest
            elif run.is_solution(beginning) or beginning.length + len(tokens) > beginning.backend.context:
                return [], -np.inf
            else:
                [logprobs] = await beginning.score([tokens])
                nodes, node = [], beginning
                for step in rest:
                    start = node.length - beginning.length
                    node = graft(node, step.appended, logprobs[start : start + len(step.appended)])
                    nodes.append(node)
                if [*map(run.is_solution, nodes)] != [*map(run.is_solution, rest)]:
                    return [], -np.inf
                await self._judged(Branches(nodes), run, odds)
            return nodes, sum(node.logprobs.sum(dtype=np.float64) + odds[node] for node in nodes)

        beginnings = list(dict.fromkeys(population.branches))
        options = dict(zip(beginnings, await settle(map(below, beginnings)), strict=True))
        densities = np.array([options[particle][1] for particle in population.branches])
        joint = Population(population.branches, population.log_weights + densities)
        chosen = joint.branches[joint.draw(u)]
        return [*chosen.path[1:], *options[chosen][0]]
