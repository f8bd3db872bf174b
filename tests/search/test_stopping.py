"""Stopping rules against closed forms, and the law of what they stop against exact enumeration."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import scipy.stats

import bough
from bough.bench import Arm, evaluate, trials
from bough.bench.results import key
from bough.bench.summary import cells
from bough.core import (
    Branch,
    Budget,
    FreeText,
    InvalidInput,
    Promise,
    RewardError,
    Run,
    Solution,
    StoppingRule,
    TechniqueInfo,
    run,
)
from bough.search import (
    AdaptiveConsistency,
    AStar,
    BestOfN,
    EarlyStoppingConsistency,
    Greedy,
    ParticleFilter,
    Patience,
    ScoreThreshold,
    SelfConsistency,
)
from bough.search.stopping import ahead
from bough.search.vote import winner
from bough.tasks import get_task
from chains import ChainBackend, ChainReward
from executing import execute, idle
from toy import SYMBOLS, ToyBackend, ToyReward, solutions, toy_model

PROMPT = "ab?"
ROOT = tuple(SYMBOLS.index(character) for character in PROMPT)


class Lines(FreeText):
    """The answer of a text is how many lines it has: short solutions, which arrive first, agree with each other."""

    def extract(self, text: str) -> str | None:
        return str(text.count("\n"))


LINES = Counter[str]()
for tokens, probability in solutions(toy_model, ROOT):
    LINES[str(tokens[len(ROOT) :].count(SYMBOLS.index("\n")))] += probability


@dataclass(frozen=True)
class After(StoppingRule):
    """Enough after so many; not in the registry, so no contract test walks it."""

    enough: int = 3
    info: ClassVar[TechniqueInfo]

    def __call__(self, seen: Sequence[Solution]) -> str | None:
        return f"{len(seen)} seen" if len(seen) >= self.enough else None


After.info = TechniqueInfo("after", After, "test", "", Promise.APPROXIMATE, frozenset(), False)


# The rules -----------------------------------------------------------------------------------------------------


def test_the_leader_is_ahead_with_the_probability_that_scipy_says() -> None:
    for first, second in itertools.product(range(12), repeat=2):
        assert ahead(first, second) == pytest.approx(scipy.stats.beta(first + 1, second + 1).sf(0.5), abs=1e-12)
    assert ahead(500, 400) == pytest.approx(scipy.stats.beta(501, 401).sf(0.5), abs=1e-9)


def given(answers: str, scores: Sequence[float | None] = ()) -> list[Solution]:
    both = itertools.zip_longest(answers, scores)
    return [Solution(None if answer == "-" else answer, score) for answer, score in both]


def test_adaptive_consistency_compares_the_two_that_lead() -> None:
    rule = AdaptiveConsistency()
    assert rule.stops_at(given("xxxxxxxx")) == 4  # 1 - 2 ** -(v + 1) >= 0.95 from v = 4 on
    assert rule.stops_at(given("xyxxxxxxx")) == 7  # P(Bin(8, 1/2) <= 6) = 1 - 9 / 256
    assert rule.stops_at(given("-x-x-x-x-x")) == 8, "what has no answer is no vote"
    assert rule.stops_at(given("xaxbxcxdxexf")) == 11, "several that were seen once are not one that was seen often"


def test_a_window_must_agree_as_a_whole() -> None:
    rule = EarlyStoppingConsistency(window=3)
    assert rule.stops_at(given("xyxxxyyyy")) == 9, "windows do not overlap"
    assert rule.stops_at(given("xxx")) == 3
    assert rule.stops_at(given("---yyy")) == 6


def test_scores_stop_at_the_threshold_or_when_they_no_longer_rise() -> None:
    scores = [0.3, None, 0.7, 0.6, 0.7, 0.96, 0.1]
    assert ScoreThreshold(0.7).stops_at(given("x" * 7, scores)) == 3
    assert ScoreThreshold().stops_at(given("x" * 7, scores)) == 6
    assert Patience(2).stops_at(given("x" * 7, scores)) == 5, "an equal score is no improvement"
    assert Patience(3).stops_at(given("x" * 7, scores)) == 7


# The law of what is stopped ------------------------------------------------------------------------------------


def sequential(rule: StoppingRule, n: int) -> dict[tuple[str, int], float]:
    """The law of (winner, votes counted) of drawing one after the other: every sequence of n answers."""
    law: Counter[tuple[str, int]] = Counter()
    for answers in itertools.product(LINES, repeat=n):
        seen = rule.stops_at(map(Solution, answers))
        won = winner(answers[:seen])
        assert won is not None
        law[answers[won[0]], seen] += float(np.prod([LINES[answer] for answer in answers]))
    assert sum(law.values()) == pytest.approx(1)
    return dict(law)


def fits(found: Counter[Any], law: dict[Any, float]) -> bool:
    total, rare = sum(found.values()), [k for k, p in law.items() if p * sum(found.values()) < 5]
    expected = [p * total for k, p in law.items() if k not in rare]
    observed = [found[k] for k in law if k not in rare]
    expected.append(max(total - sum(expected), 1e-9))
    observed.append(total - sum(observed))
    if expected[-1] < 1:
        expected, observed = expected[:-1], observed[:-1]
        expected = [e * sum(observed) / sum(expected) for e in expected]
    return bool(scipy.stats.chisquare(observed, np.array(expected) * sum(observed) / sum(expected)).pvalue > 1e-4)


class Ballots(Run):
    """A run that remembers how many solutions its rule has seen."""

    @property
    def seen(self) -> int:
        return len(self._seen)


async def voted(seed: int, backend: ToyBackend, n: int, rule: StoppingRule) -> tuple[str, int]:
    made = Ballots(task=Lines(), stop=rule)
    answer = await made.execute(SelfConsistency(n=n), backend.branch(PROMPT, seed=seed))
    return str(answer.text.count("\n")), made.seen


async def voted_by_arrival(seed: int, backend: ToyBackend, n: int, rule: StoppingRule) -> tuple[str, int]:
    seen: list[str] = []
    async for leaf in backend.branch(PROMPT, seed=seed).sample_as_completed(n):
        seen.append(str(leaf.completion.count("\n")))
        if rule(list(map(Solution, seen))):
            break
    won = winner(seen)
    assert won is not None
    return seen[won[0]], len(seen)


async def all_of(vote: Any, n: int, rule: StoppingRule) -> Counter[tuple[str, int]]:
    backend = ToyBackend()
    return Counter(await asyncio.gather(*(vote(seed, backend, n, rule) for seed in range(800))))


@pytest.mark.parametrize("parallel", [1, 3, 8])
def test_a_stopped_vote_has_the_law_of_drawing_one_after_the_other(parallel: int) -> None:
    rule = AdaptiveConsistency(confidence=0.8, parallel=parallel)
    assert fits(run(all_of(voted, 8, rule)), sequential(rule, 8))


def test_asking_at_each_arrival_would_be_biased() -> None:
    """The same rule on the same draws in the order in which they arrive: the test above can fail."""
    rule = AdaptiveConsistency(confidence=0.8)
    law = sequential(rule, 8)
    found = run(all_of(voted_by_arrival, 8, rule))
    assert not fits(found, law)
    short = sum(count for (answer, _), count in found.items() if answer == "1") / 800
    assert short > 1.2 * sum(p for (answer, _), p in law.items() if answer == "1")


def test_what_it_stops_is_the_prefix_of_what_it_would_have_drawn() -> None:
    backend = ToyBackend()
    for seed in range(20):
        leaves = run(backend.branch(PROMPT, seed=seed).sample(16))
        scores = run(ToyReward()(leaves, Run()))
        rule = Patience(3)
        seen = rule.stops_at(Solution(None, score) for score in scores)
        answer, _ = run(execute(BestOfN(n=16), backend, PROMPT, seed, stop=rule))
        assert answer.score == max(scores[:seen])
        assert (answer.stopped_by is not None) == (rule([Solution(None, s) for s in scores[:seen]]) is not None)


# What it does to a run -----------------------------------------------------------------------------------------


def test_no_more_than_a_window_is_in_flight_and_what_is_late_is_cancelled() -> None:
    class Watching(ToyBackend):
        most = 0

        def _pass(self) -> None:
            self.most = max(self.most, len(self._active))
            super()._pass()

    for parallel in (1, 3):
        backend = Watching()
        answer, _ = run(execute(SelfConsistency(n=64), backend, stop=After(5, parallel=parallel)))
        assert backend.most == parallel
        assert answer.stopped_by == "stop: after: 5 seen"
        started = {drawing.draw.key for drawing in backend._active}
        assert len(started) <= parallel - 1 and idle(backend)


def test_a_window_of_one_spends_what_its_solutions_have_and_no_more() -> None:
    backend = ToyBackend()
    answer, _ = run(execute(BestOfN(n=64), backend, stop=After(5, parallel=1)))
    leaves = run(backend.branch(PROMPT).sample(5))
    assert answer.ledger.tokens == sum(len(leaf.appended) for leaf in leaves)
    assert answer.ledger.reward_calls == 5


@pytest.mark.parametrize("strategy", [AStar(), ParticleFilter(), BestOfN(), SelfConsistency()], ids=str)
def test_searches_end_without_knowing_of_the_rule(strategy: Any) -> None:
    class Counting(After):
        def __call__(self, seen: Sequence[Solution]) -> str | None:
            counts.append(len(seen))
            return super().__call__(seen)

    counts: list[int] = []
    backend = ToyBackend()
    answer, recorded = run(execute(strategy, backend, stop=Counting(1)))
    assert counts == [1], "each solution is shown once, and none after the last"
    assert answer.stopped_by == "stop: after: 1 seen"
    assert answer.branch is not None
    free, _ = run(execute(strategy, backend))
    assert free.stopped_by is None and answer.ledger.tokens <= free.ledger.tokens
    with pytest.raises(bough.BudgetExhausted, match="stop: after"):
        run(recorded.reward([answer.branch]))


def test_a_budget_that_ends_first_keeps_what_was_drawn() -> None:
    backend = ToyBackend()
    free = run(execute(BestOfN(n=16), backend))[0].ledger
    for limit in ({"tokens": free.tokens // 3}, {"reward_calls": 4}):
        answer, recorded = run(execute(BestOfN(n=16), backend, stop=After(15), budget=Budget(**limit)))  # type: ignore[arg-type]
        assert answer.stopped_by is not None and "stop" not in answer.stopped_by
        assert answer.branch is not None and answer.score == max(p.score or 0 for p in recorded.proposals)
    leaves = {leaf.key for leaf in run(backend.branch(PROMPT).sample(16))}
    assert answer.branch.key in leaves
    assert idle(backend)


def test_a_solution_that_is_cut_off_is_never_shown() -> None:
    class Never(After):
        def __call__(self, seen: Sequence[Solution]) -> str | None:
            shown.extend(seen[-1:])
            return None

    shown: list[Solution] = []
    answer, _ = run(execute(Greedy(), ToyBackend(), stop=Never(), budget=Budget(tokens=2)))
    assert answer.branch is not None and answer.branch.finish == "budget" and not shown
    answer, _ = run(execute(Greedy(), ToyBackend(), stop=Never()))
    assert len(shown) == 1


def test_an_error_before_the_end_is_raised_and_one_after_it_is_not() -> None:
    class Failing(ToyReward):
        async def __call__(self, branches: Sequence[Branch], run: Run) -> list[float]:
            if branches[0].key == late.key:
                raise ZeroDivisionError
            return await super().__call__(branches, run)

    backend = ToyBackend()
    late = run(backend.branch(PROMPT).sample(8))[7]
    run(execute(BestOfN(n=8), backend, reward=Failing(), stop=After(7, parallel=1)))
    with pytest.raises(RewardError, match="ZeroDivision"):
        run(execute(BestOfN(n=8), backend, reward=Failing(), stop=After(8, parallel=8)))
    assert idle(backend)


# The front door ------------------------------------------------------------------------------------------------


def test_solve_takes_a_rule_or_its_name() -> None:
    backend, options = ToyBackend(), {"strategy": BestOfN(n=32), "reward": ToyReward()}
    by_name = bough.solve(backend, PROMPT, stop="patience", **options)  # type: ignore[arg-type]
    assert by_name.stopped_by is not None and by_name.stopped_by.startswith("stop: patience: 4 solutions")
    assert by_name.trace.header["stop"] == Patience().describe()
    given = bough.solve(backend, PROMPT, stop=Patience(), **options)  # type: ignore[arg-type]
    assert (given.text, given.score) == (by_name.text, by_name.score)
    for wrong, says in ((3, "neither a StoppingRule"), ("greedy", "no stopping rule"), ("luck", "no technique")):
        with pytest.raises(InvalidInput, match=says):
            bough.solve(backend, PROMPT, stop=wrong, **options)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="not a strategy"):
        bough.solve(backend, PROMPT, strategy="patience")


def test_an_arm_with_a_rule_is_another_arm(tmp_path: Any) -> None:
    task = get_task("arithmetic")
    arms = [Arm(BestOfN(n=4)), Arm(BestOfN(n=4), stop=After(1)), Arm(BestOfN(n=4), stop=After(2))]
    todo = trials(arms, [task.problem("test", index, level=2) for index in range(3)])
    records = evaluate(ChainBackend(), todo, reward=ChainReward())
    assert len(set(map(key, records))) == 9
    plain, first = records[::3], records[1::3]
    assert all("stop" not in record and record["reward_calls"] == 4 for record in plain)
    assert all(record["stop"] == After(1).describe() for record in first)
    assert all(record["stopped_by"].startswith("stop: after") for record in first)
    made = cells(records, arms)
    assert [cell.arm.get("stop") for cell in made] == [None, After(1).describe(), After(2).describe()]
    assert len({cell.label for cell in made}) == 3
    assert replace(arms[1], stop=None) == arms[0]
