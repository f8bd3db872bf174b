"""Tuning finds the best candidate, drops nothing for certain that is the best, and counts what it spent."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pytest

from bough.bench import Arm, Results, TrialsFailed, candidates, space, tune
from bough.bench.results import key
from bough.core import (
    Branch,
    Budget,
    Capability,
    InvalidInput,
    Promise,
    Run,
    Strategy,
    TechniqueInfo,
    techniques,
)
from bough.search import BestOfN, Greedy, SelfConsistency
from bough.tasks import get_task
from chains import ChainBackend, ChainReward

Race = sys.modules["bough.bench.tune"]._Race
schedule = sys.modules["bough.bench.tune"].schedule
TASK = get_task("arithmetic")
BUDGET = Budget(tokens=400)


def info(name: str, needs_reward: bool = False) -> TechniqueInfo:
    return TechniqueInfo(
        name, Strategy, "test", "", Promise.APPROXIMATE, frozenset({Capability.SAMPLE}), needs_reward
    )


@dataclass(frozen=True)
class Lucky(Strategy):
    """Draws one answer, hot enough to be wrong often; not in the registry, so no contract test walks it."""

    temperature: float = 1.0
    size: int = 8
    flag: bool = False
    kind: Literal["a", "b"] = "a"
    max_tokens: int = 100
    info: ClassVar[TechniqueInfo] = info("lucky")

    def __post_init__(self) -> None:
        if self.size == 4:
            raise InvalidInput("size=4 is refused")

    async def __call__(self, prompt: Branch, run: Run) -> Branch | None:
        if self.kind == "b":
            raise ValueError("broken")
        return (await prompt.sample(temperature=self.temperature))[0]


def tuned(strategies: Any, **options: Any) -> Any:
    given = {"problems": 24, "fresh": 20, "first": 6, "level": 2, "reward": ChainReward(), **options}
    return tune(ChainBackend(), "arithmetic", BUDGET, strategies=strategies, **given)


def test_the_best_candidate_wins_and_its_estimate_is_from_fresh_problems():
    seen: list[tuple[int, int, str]] = []
    found = tuned(
        [Lucky(temperature=4.0), Lucky(temperature=3.0), Greedy(), Lucky()], on_progress=lambda *one: seen.append(one)
    )
    assert isinstance(found.strategy, Greedy)
    assert [one.problems for one in found.rounds] == [12, 24]
    assert found.rounds[0].candidates == 4
    fresh = [TASK.problem("validation", index, 2) for index in range(24, 44)]
    (record,) = {json_of(found.accuracy)}
    from bough.bench import accuracy, evaluate, trials

    again = evaluate(ChainBackend(), trials([Arm(Greedy(), BUDGET)], fresh))
    assert record == json_of(accuracy(range(20), [one["correct"] for one in again]))
    assert found.costs["tokens"] == pytest.approx(np.mean([one["tokens"] for one in again]))
    assert seen[-1][0] == seen[-1][1] == found.spent["trials"]
    assert all(done <= planned for done, planned, _ in seen)


def json_of(interval: Any) -> tuple[float, float, float]:
    return interval.estimate, interval.low, interval.high


def test_what_it_spent_is_the_sum_of_the_trials(tmp_path):
    with Results(tmp_path / "r.jsonl") as results:
        found = tuned([Greedy(), Lucky(temperature=3.0), BestOfN(n=2)], results=results)
        records = list(results.records)
    assert found.spent["trials"] == len(records)
    assert found.spent["problems"] == len({record["index"] for record in records}) == 44
    for cost in ("tokens", "reward_calls", "computed_tokens"):
        assert found.spent[cost] == sum(record[cost] for record in records)
    assert all(record["split"] == "validation" and record["budget"] == {"tokens": 400} for record in records)


def test_an_interrupted_tuning_goes_on_and_finds_the_same(tmp_path):
    arms = [Greedy(), Lucky(temperature=3.0), Lucky(), BestOfN(n=2)]
    whole = tuned(arms)
    count = 0

    def interrupt(done: int, planned: int, words: str) -> None:
        nonlocal count
        count += 1
        if count == 30:
            raise KeyboardInterrupt

    with Results(tmp_path / "r.jsonl") as results, pytest.raises(KeyboardInterrupt):
        tuned(arms, results=results, on_progress=interrupt)
    with Results(tmp_path / "r.jsonl") as results:
        kept = len(results.records)
        again = tuned(arms, results=results)
        assert 30 <= kept < len(results.records) == whole.spent["trials"]
        assert len({key(record) for record in results.records}) == len(results.records)
    plain = [{**one.to_dict(), "spent": None, "costs": None} for one in (whole, again)]
    assert plain[0] == plain[1]


def test_a_candidate_that_fails_is_left_out_with_its_reason():
    found = tuned([Lucky(kind="b"), Greedy(), Lucky(temperature=3.0)])
    ((strategy, why),) = found.failed
    assert strategy == Lucky(kind="b")
    assert "broken" in why
    assert isinstance(found.strategy, Greedy)
    with pytest.raises(TrialsFailed, match="broken"):
        tuned([Lucky(kind="b")])


def test_candidates_without_the_reward_they_need_are_not_tried():
    found = tuned([Greedy(), BestOfN(n=2)], reward=None)
    assert [strategy for strategy, _ in found.failed] == [BestOfN(n=2)]
    with pytest.raises(InvalidInput, match="no candidate can run here: best-of-n needs a reward"):
        tuned([BestOfN(n=2)], reward=None)


def race(chances: Any, rng: Any, n: int, alpha: float) -> Any:
    """Candidates that are right with these chances on problems of shared difficulty, after n problems."""
    made = Race([Arm(Lucky(temperature=1 + number / 10)) for number in range(len(chances))], alpha)
    difficulty = rng.random(n)
    for number, chance in enumerate(chances):
        right = (difficulty + rng.normal(0, 0.1, n)) < chance
        made.records[number] = {i: {"correct": bool(x), "tokens": 1.0} for i, x in enumerate(right)}
    return made


def test_the_best_is_dropped_for_certain_no_more_often_than_promised():
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(120):
        made = race([0.6, 0.6, 0.6, 0.6], rng, 64, 0.1)  # all equal: every certain drop is a mistake
        whole = made.records
        for upto in (16, 32, 64):  # a look after every round
            made.records = [{i: one for i, one in records.items() if i < upto} for records in whole]
            certain, _ = made.drop(2, last=True)
            if certain:
                wrong += 1
                break
    assert wrong / 120 <= 0.1 + 2 * math.sqrt(0.1 * 0.9 / 120)


def test_a_clearly_worse_candidate_is_dropped_for_certain():
    made = race([0.9, 0.2, 0.85], np.random.default_rng(1), 100, 0.05)
    certain, halved = made.drop(2, last=True)
    assert (certain, halved) == (1, 0)
    assert 1 not in made.alive


def test_halving_keeps_the_better_half_and_says_whom_it_dropped():
    made = race([0.5, 0.52, 0.54, 0.56], np.random.default_rng(2), 20, 0.05)
    ranked = sorted(range(4), key=made.standing)
    certain, halved = made.drop(2, last=False)
    assert (certain, halved) == (0, 2)
    assert made.alive == ranked[:2]
    assert made.halved == set(ranked[2:])


def test_rivals_are_whoever_is_not_certainly_behind():
    found = tuned([Greedy(), Greedy(max_tokens=200), Lucky(temperature=6.0)], problems=120, first=60, fresh=1)
    assert isinstance(found.strategy, Greedy)
    (rival,) = found.rivals
    assert isinstance(rival.strategy, Greedy)
    assert (rival.ahead.estimate, rival.halved) == (0.0, False)
    assert found.lost_at_most == rival.ahead.high < 0.15
    assert sum(one.dropped_for_certain for one in found.rounds) == 1


@pytest.mark.parametrize(
    ("arguments", "sizes"),
    [
        ((40, 128, 2, 16), [16, 32, 64, 128]),
        ((3, 128, 2, 16), [64, 128]),
        ((1, 128, 2, 16), [128]),
        ((100, 90, 3, 5), [10, 30, 90]),
        ((100, 10, 2, 16), [10]),
    ],
)
def test_the_schedule_grows_by_eta_from_enough_problems(arguments, sizes):
    assert schedule(*arguments) == sizes


def test_a_declared_space_is_a_product_and_a_derived_one_changes_one_field_at_a_time():
    assert {(one.n, one.weighted) for one in space(SelfConsistency)} == {
        (n, weighted) for n in (4, 8, 16, 32, 64) for weighted in (False, True)
    }
    assert space(SelfConsistency)[0] == SelfConsistency()
    assert set(space(Lucky)) == {
        Lucky(), Lucky(size=2), Lucky(size=16), Lucky(size=32), Lucky(flag=True), Lucky(kind="b"),
    }  # fmt: skip


def test_every_strategy_of_the_gallery_has_a_space_that_it_accepts():
    made = candidates()
    for name, found in techniques().items():
        if issubclass(found.cls, Strategy):
            assert found.cls() in made, name
            assert set(found.cls.tune_space) <= {*found.cls.__dataclass_fields__}, name
    with pytest.raises(InvalidInput, match="no strategy 'magic'"):
        candidates(["magic"])


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"problems": 0}, "problems=0"),
        ({"fresh": 0}, "fresh=0"),
        ({"eta": 1}, "eta=1"),
        ({"alpha": 1.0}, "alpha=1.0"),
    ],
)
def test_bad_input_is_refused(options, names):
    with pytest.raises(InvalidInput, match=names):
        tuned([Greedy()], **options)
