"""A bench runs every trial once, whatever kills it, and says what each one found and cost."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest

from bough.bench import Arm, Results, TrialsFailed, evaluate, evaluate_async, trials
from bough.bench.results import KEY, fingerprint, key
from bough.core import (
    Branch,
    Budget,
    Capability,
    InvalidInput,
    Occupancy,
    Promise,
    RewardError,
    Run,
    Strategy,
    TechniqueInfo,
    UnsupportedError,
    run,
)
from bough.search import Greedy
from bough.tasks import get_task
from chains import ChainBackend, ChainReward, solution

TASK = get_task("arithmetic")


@dataclass(frozen=True)
class FirstOf(Strategy):
    """Sample n answers and keep the best by the reward; not in the registry, so no contract test walks it."""

    n: int = 4
    info: ClassVar[TechniqueInfo]

    async def __call__(self, prompt: Branch, run: Run) -> Branch | None:
        leaves = await prompt.sample(self.n)
        for leaf, score in zip(leaves, await run.reward(leaves), strict=True):
            run.propose(leaf, score)
        return run.best


FirstOf.info = TechniqueInfo(
    "first-of", FirstOf, "test", "", Promise.APPROXIMATE, frozenset({Capability.SAMPLE}), needs_reward=True
)


def problems(n: int):
    return [TASK.problem("test", index, level=2) for index in range(n)]


ARMS = [Arm(Greedy()), Arm(FirstOf(2)), Arm(FirstOf(4)), Arm(FirstOf(4), Budget(tokens=30))]


def bench(results=None, n=5, seeds=(0, 1), **options):
    todo = trials(ARMS, problems(n), seeds)
    return evaluate(ChainBackend(), todo, reward=ChainReward(), results=results, **options)


def found(record):
    """A record without what depends on who else was running."""
    return {name: value for name, value in record.items() if name not in ("seconds", "passes")}


def test_each_trial_says_what_it_found_and_cost():
    records = bench()
    assert len(records) == 4 * 5 * 2
    for record in records:
        problem = problems(5)[record["index"]]
        assert record["correct"] == TASK.check(problem, record["text"])
        assert record["answer"] == TASK.extract(record["text"])
    greedy = records[0]
    assert greedy["text"] == solution(problems(1)[0].prompt.rstrip("\n"))
    assert greedy["correct"]
    assert greedy["tokens"] == len(greedy["text"]) + 1  # one a character, and the end of the text
    assert greedy["reward_calls"] == 0
    assert records[1]["reward_calls"] == 2
    capped = records[3:20:4]
    assert all(record["tokens"] <= 30 and record["stopped_by"].startswith("the run's") for record in capped)


def test_what_runs_beside_a_trial_does_not_change_it():
    alone, crowd = bench(concurrency=1), bench(concurrency=16)
    assert [found(record) for record in alone] == [found(record) for record in crowd]


def test_trials_run_at_once_up_to_the_limit():
    class Counting(ChainBackend):
        most = 0

        def _pass(self):
            self.most = max(self.most, len({id(drawing.draw.parent.run) for drawing in self._active}))
            super()._pass()

    lm = Counting()
    evaluate(lm, trials([Arm(Greedy())], problems(20)), concurrency=6)
    assert lm.most == 6


class Measured(ChainBackend):
    """Says how full its passes are."""

    drawn = most = 0

    def __init__(self, max_batch):
        super().__init__()
        self.max_batch = max_batch

    def _pass(self):
        self.drawn += min(len(self._active), self.max_batch)
        self.most = max(self.most, len({id(drawing.draw.parent.run) for drawing in self._active}))
        super()._pass()

    def occupancy(self):
        return Occupancy(self.passes, self.drawn, self.max_batch)


@pytest.mark.parametrize(
    ("arm", "count", "least", "most"), [(Arm(Greedy()), 150, 36, 80), (Arm(FirstOf(16)), 24, 2, 12)]
)
def test_as_many_trials_run_at_once_as_fill_the_passes(monkeypatch, arm, count, least, most):
    """Of a batch of 40: about 40 that draw one branch, about 3 that draw 16."""
    monkeypatch.setattr(sys.modules["bough.bench.evaluate"], "_LOOK_SECONDS", 0)
    lm = Measured(max_batch=40)
    found = evaluate(lm, trials([arm], problems(count)), reward=ChainReward())
    assert least <= lm.most <= most
    assert [record["index"] for record in found] == list(range(count))


def test_an_interrupted_bench_resumes_where_it_was(tmp_path):
    class Interrupted(Exception):
        pass

    whole = bench()
    path = tmp_path / "results.jsonl"
    count = 0

    def interrupt(record):
        nonlocal count
        count += 1
        if count == 17:
            raise Interrupted

    with Results(path) as results, pytest.raises(Interrupted):
        bench(results, on_record=interrupt)
    kept = path.read_text().splitlines()
    assert 17 <= len(kept) < len(whole)
    fresh = []
    with Results(path) as results:
        again = bench(results, on_record=fresh.append)
    assert path.read_text().splitlines()[: len(kept)] == kept
    assert len(fresh) == len(whole) - len(kept)
    assert [found(record) for record in again] == [found(record) for record in whole]


def test_a_finished_bench_runs_nothing_again(tmp_path):
    with Results(tmp_path / "r.jsonl") as results:
        first = bench(results)
    with Results(tmp_path / "r.jsonl") as results:
        assert bench(results, on_record=lambda record: pytest.fail("ran again")) == first


def test_a_last_line_cut_short_by_a_kill_is_run_again(tmp_path):
    path = tmp_path / "r.jsonl"
    with Results(path) as results:
        whole = bench(results)
    data = path.read_bytes()
    path.write_bytes(data[: -len(data.splitlines()[-1]) // 2])
    fresh = []
    with Results(path) as results:
        again = bench(results, on_record=fresh.append)
    assert len(fresh) == 1
    assert [key(record) for record in again] == [key(record) for record in whole]
    assert all(json.loads(line) for line in path.read_text().splitlines())


@pytest.mark.parametrize("damage", ["{}", "not json", "[1]", ""])
def test_damage_inside_the_file_is_refused_by_line(tmp_path, damage):
    path = tmp_path / "r.jsonl"
    with Results(path) as results:
        bench(results, n=1)
    lines = path.read_text().splitlines()
    lines[2] = damage
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(InvalidInput, match="line 3"):
        Results(path)


def test_two_benches_cannot_write_one_file(tmp_path):
    with Results(tmp_path / "r.jsonl"), pytest.raises(InvalidInput, match="another process is writing"):
        Results(tmp_path / "r.jsonl")


def test_a_full_disk_leaves_the_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "r.jsonl"
    with Results(path) as results:
        first, second = bench(n=1)[:2]
        results.append(first)

        class Full:
            def __init__(self, file):
                self.file = file

            def write(self, data):
                if len(data) < 20:
                    raise OSError(28, "No space left on device")
                return self.file.write(data[:-10])  # a short write, as the system does before it gives up

            def __getattr__(self, name):
                return getattr(self.file, name)

        monkeypatch.setattr(results, "_file", Full(results._file))
        with pytest.raises(OSError, match="No space left"):
            results.append(second)
        assert second not in results
    with Results(path) as results:
        assert results.records == [first]


def test_a_failing_trial_is_named_and_the_others_are_kept(tmp_path):
    bad = problems(5)[3].prompt

    def reward(tokens):
        return float("nan") if bad in ChainBackend().decode(tokens) else 0.5

    judge = ChainReward()
    judge.score = reward
    todo = trials([Arm(FirstOf(2))], problems(5))
    with Results(tmp_path / "r.jsonl") as results:
        with pytest.raises(TrialsFailed, match="1 of 5 trials failed.*problem 3.*returned nan") as caught:
            evaluate(ChainBackend(), todo, reward=judge, results=results)
        assert sorted(record["index"] for record in results.records) == [0, 1, 2, 4]
        ((trial, error),) = caught.value.failures
        assert trial.problem.index == 3
        assert isinstance(error, RewardError)
        judge.score = lambda tokens: 0.5
        assert len(evaluate(ChainBackend(), todo, reward=judge, results=results)) == 5


def test_a_bench_where_everything_fails_stops_early():
    judge = ChainReward()
    judge.score = lambda tokens: float("nan")
    with pytest.raises(TrialsFailed, match="20 of 20"):
        evaluate(ChainBackend(), trials([Arm(FirstOf(2))], problems(40)), reward=judge, concurrency=1)


def test_what_cannot_run_is_refused_before_anything_runs():
    lm = ChainBackend()
    with pytest.raises(UnsupportedError, match="first-of needs a reward"):
        evaluate(lm, trials(ARMS, problems(2)))
    assert not lm.used


@pytest.mark.parametrize(
    ("arms", "count", "seeds", "names"),
    [
        ([], 1, (0,), "no strategy"),
        (ARMS, 0, (0,), "no problem"),
        (ARMS, 1, (), "no seed"),
        ([Arm(Greedy()), Arm(Greedy())], 1, (0,), "strategy is given twice"),
        (ARMS, 1, (3, 3), "seed is given twice"),
    ],
)
def test_nothing_to_run_and_repeats_are_refused(arms, count, seeds, names):
    with pytest.raises(InvalidInput, match=names):
        trials(arms, problems(count), seeds)


def test_cancelling_a_bench_frees_the_backend():
    lm = ChainBackend()

    async def start_and_cancel():
        work = asyncio.ensure_future(evaluate_async(lm, trials([Arm(Greedy())], problems(10))))
        while not lm.passes:
            await asyncio.sleep(0)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        await asyncio.sleep(0)
        return lm.idle

    assert run(start_and_cancel())


def test_a_record_is_named_by_everything_that_decides_it():
    (record,) = evaluate(ChainBackend(), trials([Arm(Greedy(), Budget(tokens=99))], problems(1)))
    assert {name: record[name] for name in KEY} == {
        "task": "arithmetic", "level": 2, "split": "test", "index": 0, "seed": 0, "strategy": "greedy",
        "params": {"max_tokens": None}, "budget": {"tokens": 99}, "model": "chains", "reward": None,
    }  # fmt: skip


def test_a_fingerprint_changes_with_the_weights(tmp_path):
    assert fingerprint(tmp_path) == ""
    (tmp_path / "model.safetensors").write_bytes(bytes(3 << 20))
    first = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == first
    (tmp_path / "model.safetensors").write_bytes(bytes((3 << 20) - 1) + b"\1")
    assert fingerprint(tmp_path) != first
