"""``bough demo``: the main job, on the embedded model and held-out problems."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import TextColumn

from bough.cli.common import (
    INTERRUPTED,
    TECHNIQUES,
    JsonOption,
    LevelOption,
    ModelOption,
    RewardOption,
    WeightsOption,
    cell_table,
    check_trace_file,
    chosen_problems,
    chosen_tasks,
    err,
    out,
    print_json,
    progress,
    sentence,
)

if TYPE_CHECKING:
    from bough.bench import Arm, Cell, Record
    from bough.core import Answer, Backend, Reward
    from bough.tasks import Problem, Task

_BASELINES = ("best-of-n", "particle-filter")


def demo(
    tasks: Annotated[
        list[str] | None,
        typer.Option("--task", "-t", help="arithmetic, countdown, stories, logic, or all. Repeatable."),
    ] = None,
    problems: Annotated[
        int, typer.Option("--problems", "-n", min=1, help="How many held-out problems of each task.")
    ] = 100,
    level: LevelOption = None,
    model: ModelOption = "bough/nano",
    reward: RewardOption = None,
    weights: WeightsOption = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same table.")] = 0,
    trace: Annotated[
        Path, typer.Option(metavar="FILE", help="Where to save the page with one solved problem's search.")
    ] = Path("bough-demo.html"),
    json: JsonOption = False,
) -> None:
    """Watch searches get more problems right than plain decoding, and see what each of them costs.

    Runs greedy decoding, best-of-n, self-consistency, beam search, a particle filter and A* on problems that the
    model never saw; then shows one of A*'s searches as a tree, and saves it as a page for your browser.

    Examples:

        bough demo
        bough demo --task arithmetic --problems 200
        bough demo --task all --json > demo.json
    """
    from bough import api
    from bough.bench import Arm, TrialsFailed
    from bough.cli.params import make_strategy

    check_trace_file(trace)
    arms = [Arm(make_strategy(name)) for name in TECHNIQUES]
    chosen = [(task, chosen_problems(task, "test", level, problems)) for task in chosen_tasks(tasks or ["countdown"])]
    with err.status(f"loading {model}"):
        lm = api.load(model, weights=weights)
        judge = api.reward_for(lm, arms[-1].strategy, reward)
    shown: list[dict[str, Any]] = []
    example: Problem | None = None
    interrupted = False
    failed: TrialsFailed | None = None
    for task, drawn in chosen:
        records: list[Record] = []
        seconds: list[float] = []
        try:
            _run(lm, judge, task, drawn, arms, seed, records, seconds)
        except KeyboardInterrupt:
            interrupted = True
        except TrialsFailed as error:
            failed = error
        shown.append(_report(records, seconds, json))
        example = example or _example(records, drawn)
        if interrupted or failed:
            break
    result: dict[str, Any] = {"tasks": shown, "interrupted": interrupted}
    if example is not None and not interrupted:
        result["example"] = _search(lm, judge, arms[-1], example, seed, trace, json)
    if json:
        print_json(result)
    if failed is not None:
        raise failed
    if interrupted:
        err.print("interrupted; the table has what was finished by then")
        raise typer.Exit(INTERRUPTED)


def _run(
    lm: Backend, judge: Reward | None, task: Task, problems: Sequence[Problem], arms: Sequence[Arm], seed: int,
    records: list[Record], seconds: list[float],
) -> None:  # fmt: skip
    """Run one strategy after the other, each on all problems at once; records and wall-clock seconds fill up."""
    from bough.bench import evaluate, trials

    columns = (TextColumn("{task.fields[right]}"), TextColumn("{task.fields[spent]}"))
    with progress(*columns) as bar:
        lines = [
            bar.add_task(f"{task.name}: {arm.name}", total=len(problems), start=False, right="", spent="")
            for arm in arms
        ]
        for line, arm in zip(lines, arms, strict=True):
            bar.start_task(line)
            start = time.perf_counter()
            own: list[Record] = []

            def note(record: Record, line: Any = line, own: list[Record] = own) -> None:
                own.append(record)
                records.append(record)
                bar.update(
                    line, advance=1, right=f"{sum(one['correct'] for one in own) / len(own):4.0%} right",
                    spent=f"{sum(one['tokens'] for one in own):,} tokens",
                )  # fmt: skip

            seconds.append(0.0)
            try:
                evaluate(lm, trials([arm], problems, [seed]), reward=judge, on_record=note)
            finally:
                bar.stop_task(line)
                seconds[-1] = (time.perf_counter() - start) / max(1, len(own))


def _report(records: Sequence[Record], seconds: Sequence[float], json: bool) -> dict[str, Any]:
    """Show a task's table; the same as plain values."""
    from bough.bench import cells, comparisons, title

    made: list[Cell] = cells(records)
    compared = [
        comparison
        for baseline in _BASELINES
        if any(cell.arm["strategy"] == baseline for cell in made)
        for comparison in comparisons(made, baseline)
        if comparison.cell.arm["strategy"] == "astar"
    ]
    if made and not json:
        heading = f"{title(made[0])}: mean per problem of {max(cell.problems for cell in made)}"
        out.print(cell_table(heading, made, seconds))
        for comparison in compared:
            out.print(escape(sentence(comparison)), soft_wrap=True)
        out.print()
    rows = zip(made, seconds, strict=False)
    return {
        "cells": [{**cell.to_dict(), "seconds": spent} for cell, spent in rows],
        "comparisons": [comparison.to_dict() for comparison in compared],
    }


def _example(records: Sequence[Record], problems: Sequence[Problem]) -> Problem | None:
    """A problem that A* solved; if there is one, that greedy decoding did not."""
    right = {
        name: [record["index"] for record in records if record["strategy"] == name and record["correct"]]
        for name in ("astar", "greedy")
    }
    gained = sorted(set(right["astar"]) - set(right["greedy"])) or sorted(right["astar"])
    return next((problem for problem in problems if problem.index == gained[0]), None) if gained else None


def _search(
    lm: Backend, judge: Reward | None, arm: Arm, problem: Problem, seed: int, path: Path, json: bool
) -> dict[str, Any]:
    """Search one problem again, now with a trace: show its tree and save its page."""
    from bough import api
    from bough.trace import tree

    answer: Answer = api.solve(lm, problem, strategy=arm.strategy, reward=judge, seed=seed)
    if not json:
        out.print(f"[bold]{arm.name} on problem {problem.index}[/]: {escape(problem.prompt.strip())}")
        out.print(tree(answer.trace))
    saved = answer.trace.save(path).resolve()
    if not json:
        out.print(f"the whole search, to look at in a browser: {saved}", markup=False, soft_wrap=True)
    return {"task": problem.task, "index": problem.index, "text": answer.text, "trace": str(saved)}
