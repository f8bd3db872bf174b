"""Accuracy against generated tokens: A*-decoding, best-of-N, self-consistency, beam search, particle filter.

    python studies/budgets.py                                         # about 45 minutes on 2 cores
    python studies/budgets.py --problems 50 --curve 20 --seeds 1      # a quick look

Every method runs on the same test problems under the same seeds, at sizes from 1/4 to 4 times its default; the
comparisons are paired, with a bootstrap over problems. Best-of-N and self-consistency draw the n-th child of the
prompt as their n-th sample, so their sizes below the largest are the first N of its samples, and are computed from
them.

A* stops when it has found what it trusts, so it has no size; what it spends on doubt is its `revisit_cost`. A*'s
default, and size 16 of best-of-N, self-consistency and the particle filter, which the figure compares, run on all
problems under all seeds; the rest, which draws the curve, on the first problems under the first seed.

The work is split by task and seed over one process per core. Finished parts are kept under `build/budgets`, and a
run that was stopped goes on from there; delete them when a model or a search has changed. The summary goes to
`studies/results/budgets.{json,csv,svg}`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import write

import bough
from bough.bench import Arm, evaluate_async, trials
from bough.bench.stats import accuracy, paired_bootstrap
from bough.core import Backend, Reward, Run
from bough.rewards import ProcessReward
from bough.search import AStar, BeamSearch, BestOfN, ParticleFilter
from bough.search.vote import winner
from bough.tasks import Problem, Task, get_task
from bough.zoo.parts import run_parts

HERE = Path(__file__).parent
SIZES = (4, 8, 16, 32, 64)  # 1/4 to 4 times the default of 16
SIZE = 16
REVISIT_COSTS = (0.08, 0.04, 0.02, 0.01, 0.005)
COMPARED: dict[str, tuple[float, ...]] = {"astar": (AStar().revisit_cost,), "particle-filter": (SIZE,)}
Row = dict[str, Any]


def searches() -> dict[str, dict[float, Any]]:
    """The step-level searches, by family and size."""
    return {
        "beam-search": {w * e: BeamSearch(width=w, expand=e) for w, e in ((2, 2), (2, 4), (4, 4), (8, 4), (8, 8))},
        "particle-filter": {n: ParticleFilter(n=n) for n in SIZES},
        "astar": {cost: AStar(revisit_cost=cost) for cost in REVISIT_COSTS},
    }


async def sampled(
    lm: Backend, reward: Reward, task: Task, problem: Problem, seed: int, sizes: Sequence[int]
) -> list[tuple[str, float, Row]]:
    """Best-of-N and self-consistency of the sizes, from the samples of the largest."""
    run = Run(task=task, reward=reward)
    prompt = lm.branch(problem.prompt, seed=seed).with_run(run)
    leaves = await prompt.sample(max(sizes), stop=task.answer_stop, max_tokens=BestOfN().max_tokens)
    answers = [task.extract(leaf.completion) for leaf in leaves]
    scores = await run.reward(leaves)
    right = [task.check(problem, leaf.completion) for leaf in leaves]
    lengths = [len(leaf.appended) for leaf in leaves]
    rows: list[tuple[str, float, Row]] = []
    for size in sizes:
        spent = {"tokens": sum(lengths[:size]), "passes": max(lengths[:size])}
        # An unanswered solution is never preferred; of equal scores the smaller key stays (`Run.propose`).
        best = max(range(size), key=lambda i: (answers[i] is not None, scores[i], -leaves[i].key))
        rows.append(("best-of-n", size, {"correct": right[best], "reward_calls": size, **spent}))
        for name, weights, calls in (
            ("self-consistency", None, 0),
            ("self-consistency weighted", scores[:size], size),
        ):
            won = winner(answers[:size], weights)
            correct = right[won[0]] if won is not None else right[0]
            rows.append((name, size, {"correct": correct, "reward_calls": calls, **spent}))
    return rows


async def run_part(lm: Backend, reward: Reward, task: Task, seed: int, args: argparse.Namespace) -> list[Row]:
    """All trials of one task under one seed."""
    problems = [task.problem("test", index) for index in range(args.problems)]
    curve = problems[: args.curve] if seed == 0 else []
    arms = {(name, size): Arm(strategy) for name, sizes in searches().items() for size, strategy in sizes.items()}
    compared = [arm for (name, size), arm in arms.items() if size in COMPARED.get(name, ())]
    todo = trials(compared, problems, [seed])
    if curve:
        todo += trials([arm for arm in arms.values() if arm not in compared], curve, [seed])
    keys = {id(arm): key for key, arm in arms.items()}
    kept = ("index", "seed", "correct", "tokens", "reward_calls", "passes")
    rows = []
    for trial, record in zip(
        todo, await evaluate_async(lm, todo, reward=reward, concurrency=args.concurrency), strict=True
    ):
        name, size = keys[id(trial.arm)]
        rows.append({"task": task.name, "method": name, "size": size, **{k: record[k] for k in kept}})
    gate = asyncio.Semaphore(max(1, args.concurrency // 2))

    async def draw(problem: Problem) -> list[Row]:
        sizes = SIZES if problem in curve else (SIZE,)
        async with gate:
            drawn = await sampled(lm, reward, task, problem, seed, sizes)
        head = {"task": task.name, "index": problem.index, "seed": seed}
        return [{**head, "method": name, "size": size, **row} for name, size, row in drawn]

    for batch in await asyncio.gather(*map(draw, problems)):
        rows += batch
    return rows


def part(task: str, seed: int, args: argparse.Namespace) -> list[Row]:
    """One task under one seed."""
    reward = bough.load_reward(args.reward)
    assert isinstance(reward, ProcessReward)
    with bough.load(args.model) as lm, reward.backend:  # no part leaves its memory to the next
        return bough.run(run_part(lm, reward, get_task(task), seed, args))


def aligned(rows: list[Row], a: tuple[str, float], b: tuple[str, float]) -> Iterator[tuple[Row, Row]]:
    """The trials of two methods, paired by problem and seed."""
    by_trial: dict[tuple[int, int], dict[tuple[str, float], Row]] = defaultdict(dict)
    for row in rows:
        by_trial[row["index"], row["seed"]][row["method"], row["size"]] = row
    return ((pair[a], pair[b]) for pair in by_trial.values() if a in pair and b in pair)


def compare(rows: list[Row], a: tuple[str, float], b: tuple[str, float]) -> dict[str, Any]:
    """a against b: differences of accuracy and reward calls, ratio of tokens, each with its interval."""
    pairs = list(aligned(rows, a, b))
    problems = [x["index"] for x, _ in pairs]

    def of(what: str, statistic: Any) -> dict[str, float]:
        first, second = ([float(p[i][what]) for p in pairs] for i in (0, 1))
        return paired_bootstrap(problems, first, second, statistic).to_dict()

    return {
        "a": f"{a[0]} {a[1]}",
        "b": f"{b[0]} {b[1]}",
        "accuracy_difference": of("correct", "difference"),
        "tokens_ratio": of("tokens", "ratio"),
        "reward_calls_difference": of("reward_calls", "difference"),
    }


def summarise(rows: list[Row], args: argparse.Namespace) -> dict[str, Any]:
    """One cell per task, method and size, and the comparisons that the figure is about."""
    groups: dict[tuple[str, str, float], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["task"], row["method"], row["size"]].append(row)
    cells = []
    for (task, method, size), group in groups.items():
        share = accuracy([r["index"] for r in group], [r["correct"] for r in group])
        cells.append(
            {
                "task": task, "method": method, "size": size, "trials": len(group),
                "accuracy": round(share.estimate, 4),
                "low": round(share.low, 4), "high": round(share.high, 4),
                "tokens": round(float(np.mean([r["tokens"] for r in group])), 1),
                "reward_calls": round(float(np.mean([r["reward_calls"] for r in group])), 2),
            }
        )  # fmt: skip
    comparisons = {}
    for task in sorted({row["task"] for row in rows}):
        mine = [row for row in rows if row["task"] == task]
        comparisons[task] = [
            compare(mine, ("astar", cost), (other, SIZE))
            for cost in COMPARED["astar"]
            for other in ("best-of-n", "particle-filter", "self-consistency")
        ]
    return {
        "problems": args.problems, "seeds": args.seeds, "curve": args.curve,
        "model": args.model, "reward": args.reward,
        "default_revisit_cost": AStar().revisit_cost, "cells": cells, "comparisons": comparisons,
    }  # fmt: skip


def plot(summary: dict[str, Any], path: Path) -> None:
    """Accuracy against generated tokens, one panel per task."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    tasks = list(dict.fromkeys(cell["task"] for cell in summary["cells"]))
    figure, axes = plt.subplots(1, len(tasks), figsize=(4.2 * len(tasks), 3.8), squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        for method in ("astar", "beam-search", "particle-filter", "best-of-n", "self-consistency"):
            cells = sorted(
                (c for c in summary["cells"] if c["task"] == task and c["method"] == method),
                key=lambda c: c["tokens"],
            )
            tokens = [c["tokens"] for c in cells]
            axis.plot(tokens, [c["accuracy"] for c in cells], marker="o", markersize=3, label=method)
            axis.fill_between(tokens, [c["low"] for c in cells], [c["high"] for c in cells], alpha=0.15)
        axis.set(xscale="log", title=task, xlabel="generated tokens per problem", ylabel="accuracy")
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Run, print, and keep the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["arithmetic", "countdown", "stories"])
    parser.add_argument("--problems", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--curve", type=int, default=100, help="problems for the sizes that are not compared")
    parser.add_argument("--model", default="bough/nano")
    parser.add_argument("--reward", default="bough/nano-prm")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "budgets")
    parser.add_argument("--scratch", type=Path, default=HERE.parent / "build" / "budgets")
    args = parser.parse_args()
    parts = {
        f"{task}-{seed}-{args.problems}-{args.curve}": (task, seed, args)
        for seed in range(args.seeds)
        for task in args.tasks
    }
    rows = [row for found in run_parts(part, parts, args.scratch).values() for row in found]
    summary = summarise(rows, args)
    write(args.out, summary, summary["cells"])
    plot(summary, args.out.with_suffix(".svg"))
    for cell in summary["cells"]:
        print(
            f"{cell['task']:11} {cell['method']:26} {cell['size']:5g} accuracy {cell['accuracy']:.3f} "
            f"[{cell['low']:.3f}, {cell['high']:.3f}] tokens {cell['tokens']:8.1f} calls {cell['reward_calls']:7.2f}"
        )
    for task, pairs in summary["comparisons"].items():
        for pair in pairs:
            print(task, json.dumps(pair))


if __name__ == "__main__":
    main()
