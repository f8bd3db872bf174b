"""What is there when a run is cut short, and when the problem changes under way.

    python studies/interruption.py                              # about 35 minutes on 2 cores
    python studies/interruption.py --problems 20 --seeds 1      # a quick look

Interruptions. Each method runs to its end, and again under budgets of 10 ... 90 % of the tokens that this took, which
cut it in the middle of a generation; the answer is its best so far. Best-of-16 stands here twice: with all of its
solutions under way at once, which is how it is fastest, and one after the other. "One sample, told to answer" is a
single solution that is cut at those shares, whereupon `answer ` is written for it and it says its answer. That counts
as right by the answer alone (not on countdown, whose answer stands in the problem), the rest by all of their lines.
Of all cut runs:

- *leakage*: what stands where the answer should be is reasoning, without an answer line;
- *panic*: an answer is given, and it is wrong, though the whole run's is right;
- *nothing*: there was no text at all.

Updates. After 10 ... 90 % of an arithmetic solution was written, the problem's first or last operand changes. The
model restarts on the new problem, or continues its own text below the new problem. Both count by the new problem's
answer. *Self-doubt* is a wrong answer to the update where the old solution, undisturbed, and the restart were both
right; *stale* are those of them that give the old problem's answer.

Finished parts are kept under `build/interruption`, and a run that was stopped goes on from there. Results go to
`studies/results/interruption.{json,csv,svg}`.

Paper: Wu et al. 2025, arXiv:2510.11713, whose models are told of the interruption or the update in words; these
models know no words but those of a solution.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import numpy as np
from common import Row, arguments, embedded, panels, share, show, write

import bough
from bough.api import prepare
from bough.core import Backend, Branch, Budget, Reward, Run, Strategy
from bough.search import AStar, BeamSearch, BestOfN, ParticleFilter, SelfConsistency
from bough.search.steps import answered
from bough.tasks import Problem, Task, get_task
from bough.tasks.base import apply
from bough.zoo.parts import run_parts

SHARES = tuple(round(0.1 * tenth, 1) for tenth in range(1, 10))


@dataclass(frozen=True)
class InTurn(BestOfN):
    """Best-of-N that begins a solution when the one before it has ended, as it would run without a batch."""

    async def __call__(self, prompt: Branch, run: Run) -> Branch | None:
        for index in range(self.n):
            leaf = await self.draw(prompt, run, index)
            run.propose(leaf, (await run.reward([leaf]))[0] if answered(leaf, run) else None)
        return run.best


METHODS: dict[str, Strategy] = {
    "A*": AStar(),
    "best-of-16": BestOfN(n=16),
    "best-of-16 in turn": InTurn(n=16),
    "self-consistency 16": SelfConsistency(n=16),
    "particle filter 16": ParticleFilter(n=16),
    "beam 4 x 4": BeamSearch(),
    "one sample": SelfConsistency(n=1),
}
TOLD = "one sample, told to answer"
_MAX_TOKENS = BestOfN().max_tokens
_ANSWER_TOKENS = 8
_LIMIT = 999  # of arithmetic's values
_UNDER_WAY = 16


def judged(task: Task, problem: Problem, text: str, whole: bool, by_answer: bool = False) -> Row:
    """What has become of a run: right or not, and how it failed. ``whole``: whether the uncut run is right."""
    answer = task.extract(text)
    right = answer == problem.answer if by_answer else task.check(problem, text)
    return {
        "right": right, "leakage": bool(text) and answer is None, "nothing": not text,
        "panic": answer is not None and not right and whole,
    }  # fmt: skip


async def _cut(lm: Backend, reward: Reward, task: Task, problem: Problem, seed: int) -> list[Row]:
    """One problem, by every method, whole and at every share."""
    rows = []

    async def run(strategy: Strategy, tokens: int | None) -> Any:
        budget = Budget(tokens=tokens)
        return await prepare(
            lm, problem, strategy=strategy, reward=reward, budget=budget, seed=seed, trace=False
        ).execute()

    for name, strategy in METHODS.items():
        whole = await run(strategy, None)
        right = task.check(problem, whole.text)
        rows.append({"method": name, "share": 1.0, **judged(task, problem, whole.text, right)})
        limits = [max(1, round(part * whole.ledger.tokens)) for part in SHARES]
        for part, cut in zip(SHARES, [await run(strategy, limit) for limit in limits], strict=True):
            rows.append({"method": name, "share": part, **judged(task, problem, cut.text, right)})
    if task.name != "countdown":
        rows += await _told(lm, task, problem, seed)
    return rows


async def _told(lm: Backend, task: Task, problem: Problem, seed: int) -> list[Row]:
    prompt = lm.branch(problem.prompt, seed=seed)
    (whole,) = await prompt.sample(stop=task.answer_stop, max_tokens=_MAX_TOKENS)
    right = task.extract(whole.completion) == problem.answer
    rows = [{"method": TOLD, "share": 1.0, **judged(task, problem, whole.completion, right, by_answer=True)}]
    for part in SHARES:
        node = prompt + whole.appended[: max(1, round(part * len(whole.appended)))]
        if task.extract(node.completion) is None or not node.completion.endswith("\n"):
            lines = node.completion.split("\n")
            begun = lines[-1].startswith("answer")  # it was answering already
            node = node if begun else node + ("answer " if not lines[-1] else "\nanswer ")
            (node,) = await node.sample(stop="\n", max_tokens=_ANSWER_TOKENS, temperature=0)
        rows.append({"method": TOLD, "share": part, **judged(task, problem, node.completion, right, by_answer=True)})
    return rows


# Updates ---------------------------------------------------------------------------------------------------


def updated(prompt: str, which: str, rng: random.Random) -> tuple[str, str]:
    """The arithmetic problem with its first or last operand changed, and the new answer."""
    parts = re.findall(r"[-+*]?[0-9]+", prompt)
    at = 0 if which == "first operand" else len(parts) - 1
    for _ in range(10_000):
        operation = "" if at == 0 else parts[at][0]
        new = [*parts]
        new[at] = operation + str(rng.randint(2, 9) if operation == "*" else rng.randint(1, 99))
        if new == parts:
            continue
        values = [int(new[0])]
        for part in new[1:]:
            values.append(apply(values[-1], part[0], int(part[1:])))
        if all(0 <= value <= _LIMIT for value in values):
            return "".join(new) + "\n", str(values[-1])
    return "", ""  # no other operand keeps the values in range


async def _update(lm: Backend, task: Task, problem: Problem, seed: int) -> list[Row]:
    rows = []
    options: dict[str, Any] = {"stop": task.answer_stop, "max_tokens": _MAX_TOKENS}
    (old,) = await lm.branch(problem.prompt, seed=seed).sample(**options)
    before = task.extract(old.completion) == problem.answer
    for which in ("last operand", "first operand"):
        text, answer = updated(problem.prompt, which, random.Random(f"{which}/{problem.index}"))
        if not text or answer == problem.answer:
            continue
        prompt = lm.branch(text, seed=seed)
        (restarted,) = await prompt.sample(**options)
        restart = task.extract(restarted.completion) == answer
        for part in SHARES:
            kept = prompt + old.appended[: max(1, round(part * len(old.appended)))]
            (leaf,) = await kept.sample(**options)
            said = task.extract(leaf.completion)
            wrong = before and restart and said != answer
            rows.append(
                {
                    "update": which, "share": part, "restart": restart, "continue": said == answer,
                    "restart_tokens": len(restarted.appended), "continue_tokens": len(leaf.appended),
                    "able": before and restart, "self_doubt": wrong, "stale": wrong and said == problem.answer,
                }
            )  # fmt: skip
    return rows


# Running ---------------------------------------------------------------------------------------------------


async def _each(
    work: Callable[[Problem], Coroutine[Any, Any, list[Row]]], task: Task, count: int, seed: int
) -> list[Row]:
    gate = asyncio.Semaphore(_UNDER_WAY)

    async def one(index: int) -> list[Row]:
        async with gate:
            return [{"index": index, **row} for row in await work(task.problem("test", index))]

    return [row for rows in await asyncio.gather(*map(one, range(count))) for row in rows]


def part(kind: str, name: str, seed: int, count: int) -> list[Row]:
    """One task's cut runs, or its updates, under one seed."""
    task = get_task(name)
    with embedded() as (lm, reward):
        if kind == "cut":
            return bough.run(_each(lambda problem: _cut(lm, reward, task, problem, seed), task, count, seed))
        return bough.run(_each(lambda problem: _update(lm, task, problem, seed), task, count, seed))


def cut_table(task: str, rows: list[Row]) -> list[Row]:
    """Accuracy and failures by method and share."""
    table = []
    for method in dict.fromkeys(row["method"] for row in rows):
        for at in (*SHARES, 1.0):
            mine = [row for row in rows if row["method"] == method and row["share"] == at]
            rates = {
                what: round(float(np.mean([row[what] for row in mine])), 4)
                for what in ("leakage", "panic", "nothing")
            }
            right = share([row["index"] for row in mine], [row["right"] for row in mine])
            table.append({"task": task, "method": method, "share": at, **right, **rates})
    return table


def update_table(task: str, rows: list[Row]) -> list[Row]:
    """Accuracy on the new problem by the share that was written, and self-doubt among those able to do better."""
    table = []
    for which in dict.fromkeys(row["update"] for row in rows):
        for at in SHARES:
            mine = [row for row in rows if row["update"] == which and row["share"] == at]
            able = [row for row in mine if row["able"]]
            problems = [row["index"] for row in mine]
            found: Row = {"task": task, "update": which, "share": at, "trials": len(mine)}
            for what in ("continue", "restart"):
                right = share(problems, [row[what] for row in mine])
                found |= {what: right["accuracy"], f"{what}_low": right["low"], f"{what}_high": right["high"]}
                found[f"{what}_tokens"] = round(float(np.mean([row[f"{what}_tokens"] for row in mine])), 1)
            for what in ("self_doubt", "stale"):
                found[what] = round(float(np.mean([row[what] for row in able])), 4) if able else float("nan")
            table.append(found)
    return table


def plot(cut: list[Row], updates: list[Row], args: argparse.Namespace) -> None:
    """Accuracy against the share of the run, by task; and against the share written when the problem changed."""
    titles = [*args.tasks, *(["updates"] if updates else [])]
    with panels(args.out, titles, "accuracy", "share of the whole run's tokens") as axes:
        for task in args.tasks:
            rows = [row for row in cut if row["task"] == task]
            for method in dict.fromkeys(row["method"] for row in rows):
                mine = [row for row in rows if row["method"] == method]
                axes[task].plot(
                    [r["share"] for r in mine], [r["accuracy"] for r in mine], marker="o", ms=3, label=method
                )
        for which in dict.fromkeys(row["update"] for row in updates):
            mine = [row for row in updates if row["update"] == which]
            for what in ("continue", "restart"):
                style = {"ls": "--"} if what == "restart" else {}
                axes["updates"].plot(SHARES, [row[what] for row in mine], label=f"{which}, {what}", **style)
        if updates:
            axes["updates"].legend(fontsize=7)


def main() -> None:
    """Run, print, and keep the summary."""
    args = arguments(__doc__, "interruption", ["arithmetic", "countdown", "stories"], problems=100).parse_args()
    parts = {
        f"{kind}-{task}-{seed}-{args.problems}": (kind, task, seed, args.problems)
        for kind in ("cut", "update")
        for task in args.tasks
        for seed in range(args.seeds)
        if kind == "cut" or task == "arithmetic"
    }
    found = run_parts(part, parts, args.scratch)

    def rows_of(kind: str, task: str) -> list[Row]:
        return [row for name, what in parts.items() if what[:2] == (kind, task) for row in found[name]]

    cut = [row for task in args.tasks for row in cut_table(task, rows_of("cut", task))]
    updates = update_table("arithmetic", rows_of("update", "arithmetic"))
    head = {"problems": args.problems, "seeds": args.seeds}
    write(args.out, {**head, "cut": cut, "updates": updates}, cut)
    plot(cut, updates, args)
    for table in (cut, updates):
        if table:
            show(table)
            print()


if __name__ == "__main__":
    main()
