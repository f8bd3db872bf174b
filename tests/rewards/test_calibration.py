"""Calibration: the fit of maximum likelihood, and a reward on the fitted scale."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize

from bough.core import InvalidInput, RewardError, Run, run
from bough.rewards import Calibrated, platt
from toy import ToyBackend, ToyReward, judged


def test_the_fit_finds_the_line_that_made_the_outcomes() -> None:
    generator = np.random.default_rng(0)
    scores = generator.uniform(0.01, 0.99, 40_000)
    odds = 0.7 * np.log(scores / (1 - scores)) + 1.5
    right = generator.uniform(size=len(scores)) < 1 / (1 + np.exp(-odds))
    slope, intercept = platt(scores, right)
    assert slope == pytest.approx(0.7, abs=0.03) and intercept == pytest.approx(1.5, abs=0.05)


def test_the_fit_is_that_of_a_general_optimiser() -> None:
    generator = np.random.default_rng(1)
    scores = generator.beta(0.3, 0.3, 300)
    right = generator.uniform(size=300) < 0.2 + 0.5 * scores

    def loss(line: np.ndarray) -> float:
        sure = np.clip(scores, 1e-6, 1 - 1e-6)
        x = line[0] * np.log(sure / (1 - sure)) + line[1]
        return float(np.sum(np.logaddexp(0, x) - right * x))

    best = scipy.optimize.minimize(loss, [1.0, 0.0], tol=1e-10)
    assert loss(np.array(platt(scores, right))) <= best.fun + 1e-6


def test_scores_are_moved_and_keep_their_order() -> None:
    async def both() -> tuple[list[float], list[float]]:
        made = Run()
        branches = [ToyBackend().branch(text).with_run(made) for text in ("a?", "b?", "c?", "ab?", "ba?")]
        plain = ToyReward()
        return await plain(branches, made), await Calibrated(plain, 0.5, 1.0)(branches, made)

    plain, moved = run(both())
    expected = [1 / (1 + np.exp(-(0.5 * np.log(s / (1 - s)) + 1.0))) for s in plain]
    np.testing.assert_allclose(moved, expected, rtol=1e-9)
    assert np.argsort(plain).tolist() == np.argsort(moved).tolist()


def test_what_cannot_be_calibrated_is_refused() -> None:
    with pytest.raises(InvalidInput, match="all right or all wrong"):
        platt([0.2, 0.8], [True, True])
    with pytest.raises(InvalidInput, match="one outcome per score"):
        platt([0.2, 0.8], [True])
    with pytest.raises(InvalidInput, match="slope=-1"):
        Calibrated(ToyReward(), -1.0, 0.0)

    async def odd() -> None:
        made = Run()
        await Calibrated(ToyReward(lambda tokens: 3 * judged(tokens) + 1), 1.0, 0.0)(
            [ToyBackend().branch("a?")], made
        )

    with pytest.raises(RewardError, match="not all probabilities"):
        run(odd())
