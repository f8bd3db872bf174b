"""SCOPE: add up the conditional probabilities of an outcome along sampled texts, instead of counting outcomes.

Paper: "The SCOPE and REACH Estimators" 2026, arXiv:2602.03730 (Sum of Conditional Outcome Probability Estimator).
Pays for outcomes that are rare or drawn on the spur of the moment; costs one scoring pass over the drawn texts.

With the notation of `bough.stats.outcomes`, the outcome is sum over t of 1[t <= T] 1[x_t in E_t]. Whether t <= T
follows from x_1 ... x_t-1, so each term has the conditional expectation 1[t <= T] h_t given those, and by the tower
property

    P(outcome) = E[ h_1 + ... + h_T ].

The sum is the compensator of the process that counts the outcome. It must end with the event: beyond it, a second
one would be counted. A single value may exceed 1. And its variance need not be below that of counting: between two
texts that differ in how long they run a risk, the sum differs more than the indicator. `Reach` is its expectation
given everything but when the event strikes, so it never does worse than either. SCOPE's merit is that its texts come
from the model as it is: one pool serves any number of outcomes (`Outcome.hazards`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bough.core import Branch, Capability, Promise, technique

from .outcomes import Estimate, Estimator, Outcome


@technique(
    "scope", paper="arXiv:2602.03730", promise=Promise.UNBIASED, family="stats",
    requires=(Capability.SAMPLE, Capability.SCORE),
)  # fmt: skip
@dataclass(frozen=True)
class Scope(Estimator):
    """Estimate an outcome's probability by the sum of its conditional probabilities along sampled texts."""

    async def __call__(self, prompt: Branch, outcome: Outcome, *, first: int = 0) -> Estimate:
        texts = await outcome.trajectories(prompt, self.n, first=first)
        hazards = await outcome.hazards(prompt, texts)
        return Estimate(np.array([row.sum() for row in hazards]), np.array([len(text) for text in texts]))
