"""REACH: the risk that an outcome strikes anywhere along a text drawn as if it never did.

Paper: "The SCOPE and REACH Estimators" 2026, arXiv:2602.03730 (Risk Estimation from Anticipated Conditional Hazards).
Pays for every outcome, the more so the more spontaneous it is; costs one scoring pass over the drawn texts, which run
on to the stop because the event does not end them.

With the notation of `bough.stats.outcomes`, draw each token from the model given that it is not the event,
q(x_t) = p(x_t) / (1 - h_t) outside E_t, up to a stop at position L, and take

    R = 1 - (1 - h_1) (1 - h_2) ... (1 - h_L).

Unbiased: a text y_1 ... y_L without the event has probability q(y_1) ... q(y_L) here, so that

    E[1 - R] = sum over y of q(y) prod (1 - h_t) = sum over y of p(y) = 1 - P(outcome).

Where h_t = 1 there is nothing else to draw; R is 1 whatever would follow, and the text ends.

Never worse than counting: toss for each position a coin that shows the event with probability h_t, independently, and
let the first one that does replace the text's token. That draws the model's own texts up to the event, so the
indicator N that any coin shows it is one Monte Carlo value; and R = E[N | the text], N's Rao-Blackwellisation:

    Var(R) = Var(N) - E[ R (1 - R) ].

Never worse than SCOPE: given the text, position t is reached with probability prod over s < t of (1 - h_s), so that

    E[ h_1 + ... + h_T | the text ] = sum over t of h_t prod over s < t of (1 - h_s) = R        (the sum telescopes).

What is gained is E[R (1 - R)], the part of the outcome's variance P (1 - P) that the text leaves open: its share is
the outcome's *spontaneity* here. At 0 the text decides (h is 1 somewhere or 0 everywhere) and REACH is counting; at
1 every text runs the same risk, and a single one tells it. One value of REACH is worth 1 / (1 - spontaneity) counted
texts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bough.core import Branch, Capability, InvalidInput, Promise, technique

from .outcomes import Estimate, Estimator, Outcome


@technique(
    "reach", paper="arXiv:2602.03730", promise=Promise.UNBIASED, family="stats",
    requires=(Capability.SAMPLE, Capability.SCORE),
)  # fmt: skip
@dataclass(frozen=True)
class Reach(Estimator):
    """Estimate an outcome's probability by the risk along texts drawn as if it never happened."""

    async def __call__(self, prompt: Branch, outcome: Outcome, *, first: int = 0) -> Estimate:
        texts = await outcome.trajectories(prompt, self.n, first=first, spared=True)
        hazards = await outcome.hazards(prompt, texts)
        return Estimate(np.array([risk(row) for row in hazards]), np.array([len(text) for text in texts]))


def risk(hazards: np.ndarray) -> float:
    """The probability that something happens which has these hazards ``[T]``, one after the other."""
    return float(-np.expm1(np.log1p(-hazards).sum())) if hazards.max() < 1 else 1.0


def spontaneity(values: np.ndarray) -> float:
    """The share of an outcome's variance that its text leaves open, in [0, 1].

    Args:
        values: float64 ``[n]`` of `Reach`, at least two.

    Raises:
        InvalidInput: there are fewer than two, or the outcome is certain, so that there is no variance to share.
    """
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        raise InvalidInput(f"{len(values)} values show no variance; give at least 2")
    open_, settled = float((values * (1 - values)).mean()), float(values.var(ddof=1))
    if open_ + settled == 0:
        raise InvalidInput("an outcome that is certain has no variance, so no spontaneity")
    return open_ / (open_ + settled)
