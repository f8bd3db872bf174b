"""Runs strategies on problems, many at once, so that the engine's batch is full."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from bough.api import Prepared, prepare, reward_for
from bough.bench.results import Record, Results, key
from bough.core import (
    Answer,
    Backend,
    BoughError,
    Budget,
    EngineClosed,
    InvalidInput,
    Reward,
    StoppingRule,
    Strategy,
    run,
)
from bough.tasks import Problem, Task, get_task

_TOO_MANY_FAILURES = 20
_AT_ONCE = 32  # where it is not known how full the passes are
_FULL = 0.9  # fuller than that, more trials at once would only wait
_LOOK_SECONDS, _LOOK_PASSES = 0.05, 8


@dataclass(frozen=True)
class Arm:
    """One side of a comparison: a strategy with its parameters, under a budget, with or without a stopping rule."""

    strategy: Strategy
    budget: Budget = Budget()
    stop: StoppingRule | None = None

    @property
    def name(self) -> str:
        """The strategy's name."""
        return self.strategy.info.name

    @property
    def params(self) -> dict[str, Any]:
        """The strategy's hyper-parameters, as JSON has them."""
        described = {name: value for name, value in self.strategy.describe().items() if name != "name"}
        plain: dict[str, Any] = json.loads(json.dumps(described, default=str))
        return plain

    @property
    def limits(self) -> dict[str, float]:
        """The budget's limits, unlimited ones left out."""
        named = {limit.name: getattr(self.budget, limit.name) for limit in fields(self.budget)}
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True)
class Trial:
    """One strategy on one problem under one seed."""

    arm: Arm
    seed: int
    problem: Problem


class TrialsFailed(BoughError):
    """Some trials raised. The others are done and recorded; running again tries these again.

    Attributes:
        failures: each trial with what it raised.
    """

    def __init__(self, failures: Sequence[tuple[Trial, BoughError]], done: int) -> None:
        trial, error = failures[0]
        super().__init__(
            f"{len(failures)} of {len(failures) + done} trials failed and are not in the results; first "
            f"{trial.arm.name} on {trial.problem.task} problem {trial.problem.index} with seed "
            f"{trial.seed}: {error}"
        )
        self.failures = tuple(failures)


def trials(arms: Sequence[Arm], problems: Sequence[Problem], seeds: Iterable[int] = (0,)) -> list[Trial]:
    """Every strategy on every problem under every seed.

    A problem is complete before the next begins, and a seed before the next: a bench that is stopped has compared
    what it has, and the time that is left can be told from the time it took so far.

    Raises:
        InvalidInput: there is no arm, no problem or no seed, or one stands there twice.
    """
    chosen = list(seeds)
    for what, given in (("strategy", arms), ("problem", problems), ("seed", chosen)):
        if not given:
            raise InvalidInput(f"there is no {what} to run; give at least one")
        if len(set(map(repr, given))) < len(given):
            raise InvalidInput(f"a {what} is given twice; give each once")
    return [Trial(arm, seed, problem) for seed in chosen for problem in problems for arm in arms]


async def evaluate_async(
    lm: Backend,
    todo: Sequence[Trial],
    *,
    reward: str | Reward | None = None,
    results: Results | None = None,
    tasks: Mapping[str, Task] | None = None,
    concurrency: int | None = None,
    model: str | None = None,
    reward_model: str | None = None,
    on_resume: Callable[[int], None] | None = None,
    on_record: Callable[[Record], None] | None = None,
) -> list[Record]:
    """Run the trials, except those that ``results`` has already, and return the records of all of them.

    Args:
        lm: the model.
        todo: what to run, from `trials`.
        reward: for strategies that use one; default, the one that comes with the model.
        results: where to append each record as it is there; None keeps them in memory only.
        tasks: the judges, by the name of the problems' task; default, those of `bough.tasks`.
        concurrency: trials that run at once. Default: a few, and more for as long as the model's passes have room
            for them; at most two for each branch that a pass can draw.
        model: name of the model in the records; default, its own.
        reward_model: name of the reward in the records; default, its own.
        on_resume: called once, before anything runs, with the number of trials that are done already.
        on_record: called with each new record.

    Returns:
        One record per trial, in the order of ``todo``: what names it (`results.KEY`), and ``correct``,
        ``score``, ``tokens``, ``computed_tokens``, ``passes``, ``reward_calls``, ``reward_tokens``,
        ``seconds`` (while the others ran too), ``stopped_by``, ``answer``, ``text``.

    Raises:
        InvalidInput, UnsupportedError: before anything runs, if a strategy cannot run on this model.
        TrialsFailed: some trials raised; all others ran.
        OSError: the results could not be written.
    """
    if concurrency is not None and concurrency < 1:
        raise InvalidInput(f"concurrency={concurrency} must be at least 1")
    # By identity: a third party's strategy may have fields that cannot be hashed.
    arms = {id(trial.arm): trial for trial in reversed(todo)}
    names = {trial.problem.task for trial in todo}
    known_tasks = {name: get_task(name) if tasks is None else tasks[name] for name in names}
    judges = {arm: reward_for(lm, trial.arm.strategy, reward) for arm, trial in arms.items()}

    def ready(trial: Trial) -> Prepared:
        return prepare(
            lm, trial.problem, strategy=trial.arm.strategy, reward=judges[id(trial.arm)],
            task=known_tasks[trial.problem.task], budget=trial.arm.budget, stop=trial.arm.stop,
            seed=trial.seed, trace=False,
        )  # fmt: skip

    def name_of(trial: Trial) -> Record:
        judge = judges[id(trial.arm)]
        problem = trial.problem
        return {
            "task": problem.task, "level": problem.level, "split": problem.split, "index": problem.index,
            "seed": trial.seed, "strategy": trial.arm.name, "params": trial.arm.params,
            "budget": trial.arm.limits, "model": model or lm.name,
            "reward": None if judge is None else reward_model or judge.name,
            **({} if trial.arm.stop is None else {"stop": trial.arm.stop.describe()}),
        }  # fmt: skip

    for trial in arms.values():
        ready(trial)
    done: dict[int, Record] = {}
    left: list[int] = []
    known = {} if results is None else {key(record): record for record in results.records}
    for number, trial in enumerate(todo):
        record = known.get(key(name_of(trial)))
        if record is None:
            left.append(number)
        else:
            done[number] = record
    if on_resume is not None:
        on_resume(len(done))
    failures: list[tuple[Trial, BoughError]] = []

    async def work(queue: Iterator[int]) -> None:
        for number in queue:
            trial = todo[number]
            try:
                answer = await ready(trial).execute()
            except EngineClosed:
                raise
            except BoughError as error:
                failures.append((trial, error))
                if len(failures) >= _TOO_MANY_FAILURES:
                    raise TrialsFailed(failures, len(done)) from error
                continue
            # In a thread: a judge may have to run unit tests.
            found = await asyncio.to_thread(outcome, known_tasks[trial.problem.task], trial.problem, answer)
            record = {**name_of(trial), **found}
            if results is not None:
                results.append(record)
            done[number] = record
            if on_record is not None:
                on_record(record)

    queue = iter(left)
    crowd = _Crowd(lm, concurrency, len(left))
    workers: list[asyncio.Future[None]] = []
    pending: set[asyncio.Future[None]] = set()
    try:
        while (more := crowd.more()) or pending:
            begun = [asyncio.ensure_future(work(queue)) for _ in range(more)]
            workers += begun
            ended, pending = await asyncio.wait(
                pending.union(begun), timeout=crowd.look_after, return_when=asyncio.FIRST_COMPLETED
            )
            for worker in ended:
                worker.result()
            if ended:  # nothing is left to begin
                crowd.close()
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    if failures:
        raise TrialsFailed(failures, len(done)) from failures[0][1]
    return [done[number] for number in range(len(todo))]


class _Crowd:
    """How many trials run at once: as many as asked for, or as many as fill the model's passes."""

    def __init__(self, lm: Backend, asked: int | None, trials: int) -> None:
        self._lm, self._before = lm, lm.occupancy()
        self._most, self._begun = min(asked or _AT_ONCE, trials), 0
        self._next = self._most
        self.look_after: float | None = None
        if asked is None and self._before is not None:
            self.look_after = _LOOK_SECONDS
            self._most = min(2 * self._before.max_batch, trials)
            self._next = min(self._most, max(1, self._before.max_batch // 16))

    def more(self) -> int:
        """How many to begin now beside those that run."""
        if self._begun:
            self._next = max(1, self._begun // 2) if self._has_room() else 0
        more = min(self._next, self._most - self._begun)
        self._begun += more
        return more

    def close(self) -> None:
        """Begin none any more."""
        self._most, self.look_after = self._begun, None

    def _has_room(self) -> bool:
        now = self._lm.occupancy() if self._begun < self._most else None
        if now is None or self._before is None or now.passes - self._before.passes < _LOOK_PASSES:
            return False
        fill = now.fill(self._before)
        self._before = now
        return fill < _FULL


def evaluate(lm: Backend, todo: Sequence[Trial], **options: Any) -> list[Record]:
    """`evaluate_async` from synchronous code."""
    return run(evaluate_async(lm, todo, **options))


def outcome(task: Task, problem: Problem, answer: Answer) -> Record:
    """What a trial found and what it cost."""
    spent = answer.ledger.to_dict()
    costs = ("tokens", "computed_tokens", "passes", "reward_calls", "reward_tokens", "seconds")
    return {
        "correct": task.check(problem, answer.text),
        "score": answer.score,
        **{name: spent[name] for name in costs},
        "stopped_by": answer.stopped_by,
        "answer": task.extract(answer.text),
        "text": answer.text,
    }
