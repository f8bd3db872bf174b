"""The best strategy and its parameters for a model, a task and a budget, by successive halving.

Paper: Jamieson and Talwalkar 2016, arXiv:1502.07943. All candidates run on a few problems; the better half runs on
twice as many, and so on. What is added here is how sure it is:

- All candidates of a round see the same problems, so they are compared by paired differences. For each difference
  there is a confidence sequence (`bough.bench.sequences`), which holds at every moment at once. A candidate is
  dropped *for certain* when it is certainly behind another. The best of K candidates is in K - 1 differences, so
  each gets alpha / (K - 1), and the best one is dropped for certain with probability at most alpha.
- What halving drops beyond that is a guess, and is reported with how much better it may be than the winner.
- The winner's accuracy on the problems that made it win flatters it. The estimate is from fresh problems.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bough.api import as_task, default_reward, prepare, reward_for
from bough.bench.evaluate import Arm, Trial, TrialsFailed, evaluate_async
from bough.bench.results import Record, Results
from bough.bench.sequences import confidence_sequence
from bough.bench.space import candidates
from bough.bench.stats import Interval, accuracy
from bough.core import Backend, Budget, InvalidInput, Reward, Strategy, UnsupportedError, run
from bough.tasks import Problem, Task

OnProgress = Callable[[int, int, str], None]
"""Called with the trials done, those planned (fewer may be needed), and what is under way."""

_SPENT = ("tokens", "computed_tokens", "passes", "reward_calls", "reward_tokens")


@dataclass(frozen=True)
class Round:
    """One round: so many candidates on the first so many problems."""

    problems: int
    candidates: int
    dropped_for_certain: int
    dropped_by_halving: int


@dataclass(frozen=True)
class Rival:
    """A candidate that may be as good as the winner.

    Attributes:
        ahead: its accuracy minus the winner's; the best candidate's holds with probability 1 - alpha.
        problems: on which both ran.
        halved: whether halving dropped it, before it was certain.
        tokens: that it generates per problem.
    """

    strategy: Strategy
    ahead: Interval
    problems: int
    halved: bool
    tokens: float

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        return {
            "strategy": self.strategy.describe(), "ahead": self.ahead.to_dict(), "problems": self.problems,
            "halved": self.halved, "tokens": self.tokens,
        }  # fmt: skip


@dataclass(frozen=True)
class Tuned:
    """What tuning found, how sure it is, and what it cost.

    Attributes:
        strategy: the winner.
        accuracy: its accuracy on fresh problems, with a 95 % interval.
        costs: its mean cost per fresh problem.
        fresh: how many fresh problems.
        rivals: the candidates that are not distinguishable from it, those that may be best first.
        rounds: what was dropped when.
        failed: candidates that cannot run here, each with the reason.
        spent: all that was spent: trials, problems, tokens, reward calls, seconds (of this call) ...
    """

    strategy: Strategy
    budget: Budget
    accuracy: Interval
    costs: Mapping[str, float]
    fresh: int
    rivals: Sequence[Rival]
    rounds: Sequence[Round]
    failed: Sequence[tuple[Strategy, str]]
    spent: Mapping[str, float]
    alpha: float

    @property
    def lost_at_most(self) -> float:
        """The best candidate is at most so much more accurate than the winner, with probability 1 - alpha."""
        return max([0.0, *(rival.ahead.high for rival in self.rivals)])

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        return {
            "strategy": self.strategy.describe(), "budget": Arm(self.strategy, self.budget).limits,
            "accuracy": self.accuracy.to_dict(), "costs": dict(self.costs), "fresh_problems": self.fresh,
            "rivals": [rival.to_dict() for rival in self.rivals], "lost_at_most": self.lost_at_most,
            "alpha": self.alpha, "rounds": [vars(one) for one in self.rounds],
            "failed": [{"strategy": strategy.describe(), "reason": why} for strategy, why in self.failed],
            "spent": dict(self.spent),
        }  # fmt: skip


def schedule(count: int, problems: int, eta: int, first: int) -> list[int]:
    """How many problems each round runs on: the last on all, each before on 1 / eta, the first on at least ``first``.

    There are as many rounds as it takes to come from ``count`` candidates to one, unless problems are too few.
    """
    sizes = [problems]
    while len(sizes) < math.ceil(math.log(max(count, 2), eta) - 1e-9) and sizes[0] // eta >= first:
        sizes.insert(0, sizes[0] // eta)
    return sizes


class _Race:
    """The candidates with what is known of each."""

    def __init__(self, arms: Sequence[Arm], alpha: float) -> None:
        self.arms = list(arms)
        self.alive = list(range(len(arms)))
        self.records: list[dict[int, Record]] = [{} for _ in arms]
        self.halved: set[int] = set()
        self.failed: dict[int, str] = {}
        self.share = alpha / max(1, len(arms) - 1)
        self._places = {_named(arm.name, arm.params): number for number, arm in enumerate(arms)}

    def take(self, record: Record) -> None:
        """Note a candidate's record."""
        self.records[self._places[_named(record["strategy"], record["params"])]][record["index"]] = record

    def standing(self, number: int) -> tuple[float, float]:
        """Sorts candidates: the more accurate first, of equals the one that generates fewer tokens."""
        own = self.records[number].values()
        return -float(np.mean([r["correct"] for r in own])), float(np.mean([r["tokens"] for r in own]))

    def ahead(self, a: int, b: int) -> Interval:
        """Accuracy of a minus that of b, on the problems that both ran: their confidence sequence, now."""
        mine, theirs = self.records[a], self.records[b]
        shared = sorted(set(mine) & set(theirs))
        return confidence_sequence(
            [float(mine[index]["correct"]) - float(theirs[index]["correct"]) for index in shared], self.share
        )[-1]

    def drop(self, eta: int, last: bool) -> tuple[int, int]:
        """End a round: how many were dropped for certain, and by halving."""
        ranked = sorted(self.alive, key=self.standing)
        certain = {number for number in ranked[1:] if self.ahead(ranked[0], number).low > 0}
        kept = [number for number in ranked if number not in certain]
        room = len(kept) if last else min(len(kept), max(1, math.ceil(len(ranked) / eta)))
        self.halved.update(kept[room:])
        self.alive = kept[:room]
        return len(certain), len(kept) - room


async def tune_async(
    lm: Backend,
    task: str | Task,
    budget: Budget,
    *,
    strategies: Sequence[Strategy] | None = None,
    reward: str | Reward | None = None,
    problems: int = 128,
    fresh: int = 200,
    eta: int = 2,
    first: int = 16,
    alpha: float = 0.05,
    split: str = "validation",
    level: int | None = None,
    seed: int = 0,
    concurrency: int | None = None,
    results: Results | None = None,
    model: str | None = None,
    reward_model: str | None = None,
    on_progress: OnProgress | None = None,
) -> Tuned:
    """The best of the strategies, with its parameters, for this model, task and budget.

    Args:
        lm: the model.
        task: a task, or the name of one.
        budget: the limits of each problem's search.
        strategies: the candidates; default, `bough.bench.candidates()`.
        reward: for strategies that use one; default, the one that comes with the model. Without any, candidates
            that need one are left out.
        problems: of the split on which the last round runs.
        fresh: further problems for the estimate.
        eta: each round keeps 1 / eta of the candidates and runs on eta times the problems.
        first: at least so many problems in the first round.
        alpha: the probability that the best candidate is dropped "for certain".
        split, level: which problems.
        seed: of every trial.
        concurrency: as in `evaluate_async`.
        results: where to keep each trial; those that it has already are not run again.
        model, reward_model: names in the records, as in `evaluate_async`.
        on_progress: see `OnProgress`.

    Raises:
        InvalidInput: an argument is out of range, or no candidate can run on this model.
        TrialsFailed: the winner failed on a fresh problem.
    """
    for name, value, least in (("problems", problems, 1), ("fresh", fresh, 1), ("eta", eta, 2), ("first", first, 1)):
        if value < least:
            raise InvalidInput(f"{name}={value} must be at least {least}")
    if not 0 < alpha < 1:
        raise InvalidInput(f"alpha={alpha} must be in (0, 1), such as 0.05")
    aim = as_task(task)
    if not isinstance(aim, Task):
        raise InvalidInput(f"task={task!r} has no problems to tune on; give a task of bough.tasks or the name of one")
    began = time.perf_counter()
    drawn = [aim.problem(split, index, level) for index in range(problems + fresh)]
    chosen = candidates() if strategies is None else list(strategies)
    if reward is None:
        reward = default_reward(lm.name)
    runnable, unable = _runnable(lm, chosen, aim, drawn[0], reward, budget)
    if not runnable:
        why = unable[0][1] if unable else "there is none"
        raise InvalidInput(f"no candidate can run here: {why}")
    race = _Race([Arm(strategy, budget) for strategy in runnable], alpha)
    sizes = schedule(len(runnable), problems, eta, first)

    def plan(at: int) -> int:
        """Trials to come after round ``at``, if halving alone drops candidates."""
        alive, more = len(race.alive), 0
        for before, size in zip(sizes[at:], sizes[at + 1 :], strict=False):
            alive = max(1, math.ceil(alive / eta))
            more += alive * (size - before)
        return more + fresh

    async def advance(upto: Sequence[Problem], words: str, more: int) -> None:
        """Run the live candidates on these problems; those that fail are out."""
        while True:
            todo = [
                Trial(race.arms[number], seed, problem)
                for problem in upto
                for number in race.alive
                if problem.index not in race.records[number]
            ]
            done = sum(map(len, race.records))
            numbers = {id(race.arms[number]): number for number in race.alive}

            def note(record: Record, planned: int = done + len(todo) + more) -> None:
                race.take(record)
                if on_progress is not None:
                    on_progress(sum(map(len, race.records)), planned, words)

            if not todo:
                return
            try:
                records = await evaluate_async(
                    lm, todo, reward=reward, results=results, tasks={aim.name: aim}, concurrency=concurrency,
                    model=model, reward_model=reward_model, on_record=note,
                )  # fmt: skip
            except TrialsFailed as error:
                for trial, reason in error.failures:
                    race.failed.setdefault(numbers[id(trial.arm)], str(reason))
                race.alive = [number for number in race.alive if number not in race.failed]
                if not race.alive:
                    raise
                continue
            for record in records:
                race.take(record)
            return

    rounds = []
    for at, size in enumerate(sizes):
        count = len(race.alive)
        await advance(drawn[:size], f"round {at + 1} of {len(sizes)}: {count} candidates", plan(at))
        count = len(race.alive)
        rounds.append(Round(size, count, *race.drop(eta, last=at == len(sizes) - 1)))
        if len(race.alive) == 1:
            break
    best = min(race.alive, key=race.standing)
    rivals = _rivals(race, best)
    race.alive = [best]
    await advance(drawn[problems:], f"{race.arms[best].name} on fresh problems", 0)
    own = [record for index, record in race.records[best].items() if index >= problems]
    everything = [record for records in race.records for record in records.values()]
    return Tuned(
        race.arms[best].strategy,
        budget,
        accuracy([record["index"] for record in own], [record["correct"] for record in own]),
        {cost: float(np.mean([record[cost] for record in own])) for cost in (*_SPENT, "seconds")},
        fresh,
        rivals,
        rounds,
        [*unable, *((race.arms[number].strategy, why) for number, why in race.failed.items())],
        {
            "trials": len(everything), "problems": len({record["index"] for record in everything}),
            **{name: sum(record[name] for record in everything) for name in _SPENT},
            "seconds": time.perf_counter() - began,
        },
        alpha,
    )  # fmt: skip


def tune(lm: Backend, task: str | Task, budget: Budget, **options: Any) -> Tuned:
    """`tune_async` from synchronous code."""
    return run(tune_async(lm, task, budget, **options))


def _named(strategy: str, params: Mapping[str, Any]) -> str:
    return json.dumps([strategy, params], sort_keys=True)


def _runnable(
    lm: Backend, chosen: Sequence[Strategy], task: Task, problem: Problem, reward: str | Reward | None, budget: Budget
) -> tuple[list[Strategy], list[tuple[Strategy, str]]]:
    """The candidates that can run on this model, and the others with the reason."""
    able: list[Strategy] = []
    unable: list[tuple[Strategy, str]] = []
    for strategy in chosen:
        try:
            judge = reward_for(lm, strategy, reward)
            prepare(lm, problem.prompt, strategy=strategy, reward=judge, task=task, budget=budget, trace=False)
            able.append(strategy)
        except UnsupportedError as error:
            unable.append((strategy, str(error)))
    return able, unable


def _rivals(race: _Race, best: int) -> list[Rival]:
    """Whatever is not certainly behind the winner."""
    found = []
    for number, arm in enumerate(race.arms):
        shared = set(race.records[number]) & set(race.records[best])
        if number == best or number in race.failed or not shared:
            continue
        ahead = race.ahead(number, best)
        if ahead.high >= 0:
            tokens = float(np.mean([record["tokens"] for record in race.records[number].values()]))
            found.append(Rival(arm.strategy, ahead, len(shared), number in race.halved, tokens))
    return sorted(found, key=lambda rival: (rival.halved, -rival.ahead.estimate, rival.tokens))
