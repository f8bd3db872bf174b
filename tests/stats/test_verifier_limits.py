"""Resampling against an imperfect verifier: closed forms against enumeration of every course it can take."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from bough.core import InvalidInput
from bough.stats import acceptance, optimal_samples, precision, resampling, utility


@pytest.mark.parametrize(("p", "f", "m"), [(0.3, 0.2, 0.1), (0.9, 0.0, 0.5), (0.0, 0.4, 0.0), (1.0, 0.3, 0.0)])
@pytest.mark.parametrize("k", [0, 1, 2, 4])
def test_right_and_wrong_answers_are_as_likely_as_all_courses_of_events_say(p, f, m, k) -> None:
    right = wrong = 0.0
    for course in product([(True, True), (True, False), (False, True), (False, False)], repeat=k):
        chance, answer = 1.0, None
        for is_right, accepted in course:
            accepts = (1 - m) if is_right else f
            chance *= (p if is_right else 1 - p) * (accepts if accepted else 1 - accepts)
            answer = is_right if accepted and answer is None else answer
        right += chance * (answer is True)
        wrong += chance * (answer is False)
    assert np.array(resampling(p, f, k, m)) == pytest.approx([right, wrong])


def test_no_number_of_samples_raises_the_precision() -> None:
    for k in (1, 3, 10, 10_000):
        right, wrong = resampling(0.3, 0.2, k, 0.1)
        assert right / (right + wrong) == pytest.approx(precision(0.3, 0.2, 0.1))
    assert resampling(0.3, 0.2, 10_000, 0.1)[0] == pytest.approx(0.27 / (0.27 + 0.14))
    assert precision(0.0, 0.0) == 0 and acceptance(0.0, 0.0) == 0


def test_with_a_perfect_verifier_more_samples_always_help() -> None:
    assert resampling(0.1, 0.0, 50)[0] == pytest.approx(1 - 0.9**50)
    assert optimal_samples([0.1, 0.5], [0.0, 0.0], cost=100.0, most=64) == 64


def test_the_optimal_number_lies_in_between_where_easy_problems_are_answered_first() -> None:
    # Easy: accepted at once and right. Hard: rarely accepted, and then wrong.
    p, f = [0.9, 0.0], [0.0, 0.05]
    best = optimal_samples(p, f, cost=1.0, most=100)
    assert 0 < best < 100
    marginal = [utility(p, f, k + 1, 1.0) - utility(p, f, k, 1.0) for k in range(100)]
    assert all(gain > 0 for gain in marginal[:best]) and marginal[best] <= 0
    # d/dk of 0.9-geometric gains equals that of 0.05-geometric losses: 0.9 * 0.1^k against 0.05 * 0.95^k.
    assert best == next(k for k in range(100) if 0.9 * 0.1**k <= 0.05 * 0.95**k)


def test_a_single_problem_is_worth_all_samples_or_none() -> None:
    assert precision(0.2, 0.25) == pytest.approx(0.5)
    assert optimal_samples(0.2, 0.25, cost=0.9, most=20) == 20  # 0.5 > 0.9 / 1.9
    assert optimal_samples(0.2, 0.25, cost=1.1, most=20) == 0


def test_nonsense_is_refused() -> None:
    with pytest.raises(InvalidInput, match="1.5"):
        acceptance(1.5, 0.0)
    with pytest.raises(InvalidInput, match="f=nan"):
        precision(0.5, float("nan"))
    with pytest.raises(InvalidInput, match="k=-1"):
        resampling(0.5, 0.5, -1)
    with pytest.raises(InvalidInput, match="cost=-1"):
        optimal_samples(0.5, 0.5, cost=-1, most=3)
