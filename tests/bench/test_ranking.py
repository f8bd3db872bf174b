"""Rankings say who is ahead only where it is certain, and who leads at every budget."""

from __future__ import annotations

import numpy as np
import pytest

from bough.bench import cells, front, pairs, sole, standings
from bough.bench.stats import holm, sign_flip_test
from records import record


def run(strategy, right, *, seeds=1, **options):
    """Records of a strategy that solves problem i under seed s where right(i, s)."""
    return [
        record(i, s, strategy=strategy, correct=bool(right(i, s)), **options)
        for i in range(100)
        for s in range(seeds)
    ]


def test_every_pair_of_a_budget_is_compared_and_corrected_together():
    made = cells(
        [
            one
            for limit in (50, 100)
            for strategy, share in (("astar", 90), ("best-of-n", 60), ("greedy", 59))
            for one in run(strategy, lambda i, s, share=share: (37 * i) % 100 < share, budget={"tokens": limit})
        ]
    )
    found = pairs(made)
    assert len(found) == 6
    assert all(pair.a.arm["budget"] == pair.b.arm["budget"] for pair in found)
    assert [pair.corrected for pair in found] == holm([pair.p for pair in found])
    assert {(pair.a.method, pair.b.method, pair.certain) for pair in found} == {
        ("astar", "best-of-n", True), ("astar", "greedy", True), ("best-of-n", "greedy", False),
    }  # fmt: skip
    assert found[0].difference.estimate == pytest.approx(0.3)


def test_a_pair_is_put_in_order_on_the_trials_that_both_have():
    made = cells(
        [record(i, strategy="astar", correct=i >= 10) for i in range(40)]
        + [record(i, strategy="greedy", correct=True) for i in range(10)]
    )
    (pair,) = pairs(made)
    assert (pair.a.method, pair.trials, pair.difference.estimate) == ("greedy", 10, 1.0)
    assert pair.p == sign_flip_test(range(10), np.ones(10), np.zeros(10))


def test_the_leader_is_named_with_those_who_may_be_as_good():
    made = cells(
        run("astar", lambda i, s: i < 90, tokens=200)
        + run("best-of-n", lambda i, s: i < 91, tokens=400)
        + run("greedy", lambda i, s: i < 50)
    )
    (standing,) = standings(made, pairs(made))
    assert standing.leader.method == "best-of-n"
    assert [cell.method for cell in standing.level] == ["astar"]
    assert [cell.method for cell in standing.behind] == ["greedy"]
    assert "best-of-n leads at 91.0%; not distinguishable from it: astar; certainly behind: greedy" in str(standing)


def test_of_equally_accurate_ones_the_cheaper_leads_and_strangers_are_not_compared():
    made = cells(
        run("astar", lambda i, s: True, tokens=200)
        + run("best-of-n", lambda i, s: True, tokens=400)
        + [record(900, strategy="greedy")]
    )
    (standing,) = standings(made, pairs(made))
    assert standing.leader.method in ("astar", "greedy")
    assert [cell.method for cell in standing.apart]


def test_one_cell_leads_alone():
    made = cells([record()])
    (standing,) = standings(made, pairs(made))
    assert str(standing).endswith("astar leads at 100.0%, alone")


def brute_front(points):
    """Points that no other beats, by comparing all with all."""
    return {
        (x, y)
        for x, y in points
        if not any((u <= x and v >= y) and (u < x or v > y) for u, v in points)
    }  # fmt: skip


def test_the_front_is_what_nothing_beats_and_ties_share_it():
    rng = np.random.default_rng(0)
    for _ in range(20):
        shares = rng.integers(0, 6, 12)
        tokens = rng.integers(1, 6, 12) * 10
        made = cells(
            [
                record(i, strategy=f"s{number}", correct=i < share, tokens=int(cost))
                for number, (share, cost) in enumerate(zip(shares, tokens, strict=True))
                for i in range(6)
            ]
        )
        points = {cell.label: (cell.costs["tokens"], cell.accuracy.estimate) for cell in made}
        best = brute_front(points.values())
        assert {cell.label for cell in front(made)} == {name for name, point in points.items() if point in best}


def test_the_front_depends_on_the_cost():
    made = cells(run("astar", lambda i, s: i < 90) + run("greedy", lambda i, s: i < 90, tokens=300))
    assert [cell.label for cell in front(made, "tokens")] == ["astar"]
    assert [cell.label for cell in front(made, "reward_calls")] == ["greedy"]


def test_problems_that_one_strategy_solves_under_most_seeds():
    right = {
        ("astar", 4): {0: 3, 1: 2, 2: 1, 3: 2},  # solved under so many of 3 seeds
        ("astar", 8): {0: 3, 1: 0, 2: 3, 3: 2},
        ("greedy", 4): {0: 0, 1: 1, 2: 0, 3: 3},
    }
    made = cells(
        [
            record(i, s, strategy=strategy, n=n, correct=s < seeds)
            for (strategy, n), solved in right.items()
            for i, seeds in solved.items()
            for s in range(3)
        ]
        + [record(7, 0)]  # what only some cells ran says nothing
    )
    found = {one.index: (one.strategy, [(cell.label, n) for cell, n, _ in one.solvers]) for one in sole(made)}
    assert found == {
        0: ("astar", [("astar n=4", 3), ("astar n=8", 3)]),
        1: ("astar", [("astar n=4", 2)]),
        2: ("astar", [("astar n=8", 3)]),
    }
    assert sole(cells(run("astar", lambda i, s: True))) == []
