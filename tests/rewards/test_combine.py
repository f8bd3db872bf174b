"""Potentials multiply: combined rewards against their closed forms; conversions; each branch asked once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bough.core import Branch, Budget, InvalidInput, RewardError, Run, run
from bough.rewards import Cached, Converted, LogLinear, Product, Threshold
from bough.search import BestOfN
from executing import execute
from toy import ToyBackend, ToyReward, judged


class Fixed:
    """Gives the scores that it is told."""

    name = "fixed"

    def __init__(self, *scores: float) -> None:
        self.scores = scores

    async def __call__(self, branches: Sequence[Branch], run: Run) -> list[float]:
        return list(self.scores[: len(branches)])


def branches(n: int) -> list[Branch]:
    return [ToyBackend().branch("a?") + "a" * (i + 1) for i in range(n)]


probabilities = st.lists(st.floats(1e-6, 1.0), min_size=3, max_size=3)
weights = st.lists(st.floats(0.01, 5.0), min_size=2, max_size=2)


@given(probabilities, probabilities, weights)
def test_products_and_geometric_means_are_what_they_are(p: list[float], q: list[float], w: list[float]) -> None:
    product = run(Product(Fixed(*p), Fixed(*q), weights=w)(branches(3), Run()))
    assert product == pytest.approx([a ** w[0] * b ** w[1] for a, b in zip(p, q, strict=True)])
    mean = run(Product(Fixed(*p), Fixed(*q), weights=w, mean=True)(branches(3), Run()))
    assert mean == pytest.approx([(a ** w[0] * b ** w[1]) ** (1 / sum(w)) for a, b in zip(p, q, strict=True)])
    assert all(
        min(a, b) <= m * (1 + 1e-9) and m <= max(a, b) * (1 + 1e-9) for a, b, m in zip(p, q, mean, strict=True)
    )
    summed = run(LogLinear(Fixed(*p), Fixed(*q), weights=w)(branches(3), Run()))
    assert summed == pytest.approx([w[0] * a + w[1] * b for a, b in zip(p, q, strict=True)])


@given(st.floats(0.001, 0.999))
def test_conversions_undo_each_other(p: float) -> None:
    for there, back in (("log", "exp"), ("log-odds", "logistic")):
        again = Converted(Converted(Fixed(p), there), back)  # type: ignore[arg-type]
        assert run(again(branches(1), Run())) == pytest.approx([p])
    assert run(Converted(Fixed(p), "log-odds")(branches(1), Run())) == pytest.approx([math.log(p / (1 - p))])


def test_the_ends_of_the_scale_stay_finite() -> None:
    for by in ("log", "log-odds"):
        low, high = run(Converted(Fixed(0.0, 1.0), by)(branches(2), Run()))  # type: ignore[arg-type]
        assert math.isfinite(low) and math.isfinite(high) and low < -30 and high >= 0
    assert run(Product(Fixed(0.0, 1.0), Fixed(1.0, 1.0))(branches(2), Run())) == pytest.approx([0, 1], abs=1e-12)
    assert run(Converted(Fixed(-800.0, 800.0), "logistic")(branches(2), Run())) == [0.0, 1.0]


def test_a_score_on_the_wrong_scale_is_named() -> None:
    with pytest.raises(RewardError, match=r"log\(fixed\): 1.5 is no probability"):
        run(Product(Fixed(1.5))(branches(1), Run()))
    with pytest.raises(RewardError, match="too large"):
        run(Converted(Fixed(1e4), "exp")(branches(1), Run()))
    with pytest.raises(RewardError, match="returned 1 scores for 2"):
        run(LogLinear(Fixed(1.0))(branches(2), Run()))


def test_thresholds_pass_what_reaches_them() -> None:
    threshold = Threshold(Fixed(0.49, 0.5, 0.51), 0.5)
    assert run(threshold(branches(3), Run())) == [0.0, 1.0, 1.0]
    assert threshold.name == "fixed>=0.5"


def test_nonsense_is_refused() -> None:
    for made, says in (
        (lambda: Product(), "at least one"),
        (lambda: LogLinear(Fixed(), weights=[1, 2]), "2 weights for 1"),
        (lambda: LogLinear(Fixed(), weights=[-1]), "not negative"),
        (lambda: LogLinear(Fixed(), weights=[0]), "not all 0"),
        (lambda: LogLinear(Fixed(), weights=[math.nan]), "finite"),
        (lambda: Converted(Fixed(), "square"), "by='square'"),  # type: ignore[arg-type]
        (lambda: Threshold(Fixed(), math.nan), "at=nan"),
        (lambda: Cached(Fixed(), memory=0), "memory=0"),
    ):
        with pytest.raises(InvalidInput, match=says):
            made()


def test_each_branch_is_asked_about_once_and_charged_each_time() -> None:
    backend, inner = ToyBackend(), ToyReward()
    cached = Cached(inner)
    first, _ = run(execute(BestOfN(n=8), backend, reward=cached))
    asked = inner.calls
    again, _ = run(execute(BestOfN(n=8), backend, reward=cached))
    assert (again.score, again.text) == (first.score, first.text)
    assert inner.calls == asked == cached.asked and cached.remembered == first.ledger.reward_calls
    assert again.ledger.reward_calls == first.ledger.reward_calls
    limited, _ = run(execute(BestOfN(n=8), backend, reward=cached, budget=Budget(reward_calls=3)))
    assert limited.ledger.reward_calls == 3
    leaf = backend.branch("a?") + "ab"
    assert run(cached([leaf, leaf, leaf + "c"], Run())) == [judged(leaf.tokens)] * 2 + [judged((leaf + "c").tokens)]
    assert inner.calls == asked + 2


def test_the_oldest_scores_are_forgotten_first() -> None:
    inner = ToyReward()
    cached = Cached(inner, memory=2)
    root = ToyBackend().branch("a?")
    leaves = [root + text for text in ("a", "b", "c")]
    assert run(cached(leaves, Run())) == [judged(leaf.tokens) for leaf in leaves]
    run(cached(leaves[1:], Run()))
    assert inner.calls == 3
    run(cached(leaves[:1], Run()))
    assert inner.calls == 4
