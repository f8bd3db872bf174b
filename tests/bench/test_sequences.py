"""Confidence sequences hold at every moment at once, and close in."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bough.bench.sequences import confidence_sequence
from bough.core import InvalidInput


def brute(values, alpha, m, low=-1.0, high=1.0):
    """Whether the hedged capital ever reached its threshold at candidate mean m, term by term."""
    x = [(value - low) / (high - low) for value in values]
    m = (m - low) / (high - low)
    up = down = 1.0
    for t, one in enumerate(x, 1):
        past = x[: t - 1]
        means = [(0.5 + sum(past[:i])) / (i + 1) for i in range(1, t)]
        variance = (0.25 + sum((value - mean) ** 2 for value, mean in zip(past, means, strict=True))) / t
        bet = math.sqrt(2 * math.log(2 / alpha) / (variance * t * math.log(1 + t)))
        up *= 1 + min(bet, 0.5 / m) * (one - m)
        down *= 1 - min(bet, 0.5 / (1 - m)) * (one - m)
        if max(up, down) >= 2 / alpha:
            return True
    return False


def test_the_interval_is_what_no_gambler_got_rich_on():
    rng = np.random.default_rng(0)
    values = rng.choice([-1.0, 0.0, 1.0], 80, p=[0.1, 0.6, 0.3])
    last = confidence_sequence(values, 0.1)[-1]
    for m in np.linspace(-0.99, 0.99, 67):
        if last.low + 0.004 < m < last.high - 0.004:
            assert not brute(values, 0.1, m)
        elif m < last.low - 0.004 or m > last.high + 0.004:
            assert brute(values, 0.1, m)


@pytest.mark.parametrize("chances", [(0.1, 0.8, 0.1), (0.05, 0.65, 0.3), (0.5, 0.0, 0.5), (0.0, 0.98, 0.02)])
def test_the_mean_is_never_left_out_at_any_time_as_often_as_promised(chances):
    rng = np.random.default_rng(1)
    mean = chances[2] - chances[0]
    wrong = 0
    for _ in range(200):
        values = rng.choice([-1.0, 0.0, 1.0], 150, p=chances)
        sequence = confidence_sequence(values, 0.1)
        wrong += any(not interval.low <= mean <= interval.high for interval in sequence)
    assert wrong / 200 <= 0.1 + 2 * math.sqrt(0.1 * 0.9 / 200)


def test_a_fixed_time_interval_would_not_have_held_so_often():
    """What makes the above a test: looking at a 90 % interval every time is wrong far more often than in 10 %."""
    rng = np.random.default_rng(2)
    wrong = 0
    for _ in range(300):
        x = rng.choice([-1.0, 1.0], 200)
        n = np.arange(1, 201)
        wrong += bool((np.abs(np.cumsum(x) / n) > 1.645 / np.sqrt(n))[10:].any())
    assert wrong / 300 > 0.2


def test_a_real_difference_is_found_and_the_interval_closes_in():
    rng = np.random.default_rng(3)
    values = rng.choice([-1.0, 0.0, 1.0], 2000, p=[0.05, 0.6, 0.35])
    sequence = confidence_sequence(values, 0.05)
    assert next(t for t, interval in enumerate(sequence, 1) if interval.low > 0) < 120
    assert sequence[-1].high - sequence[-1].low < 0.15
    widths = [interval.high - interval.low for interval in sequence]
    assert widths == sorted(widths, reverse=True)


def test_values_that_never_vary_are_learnt_fast():
    assert confidence_sequence([1.0] * 60, 0.05)[-1].low > 0.6
    assert confidence_sequence([0.0] * 200, 0.05)[-1].high < 0.1


def test_swapping_the_two_sides_mirrors_the_interval():
    values = np.random.default_rng(4).choice([-1.0, 0.0, 1.0], 60)
    ours, theirs = confidence_sequence(values, 0.05)[-1], confidence_sequence(-values, 0.05)[-1]
    assert (ours.low, ours.high) == pytest.approx((-theirs.high, -theirs.low))


def test_what_has_no_interval_is_refused():
    assert confidence_sequence([], 0.05) == []
    with pytest.raises(InvalidInput, match="alpha=0"):
        confidence_sequence([0.0], 0)
    with pytest.raises(InvalidInput, match="2.0 is outside"):
        confidence_sequence([2.0], 0.05)
    with pytest.raises(InvalidInput, match="nan is outside"):
        confidence_sequence([math.nan], 0.05)
