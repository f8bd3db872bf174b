r"""The tree methods at matched cost: TreeBoN against best-of-N, HyPER against self-consistency, MCTS, DVTS and CoAT.

    python studies/trees.py                                          # about 20 minutes on 2 cores
    python studies/trees.py --problems 30 --seeds 1 --split validation    # a quick look
    python studies/trees.py --arms best-of-4 best-of-8 best-of-16 treebon-4-steps treebon-8-steps treebon-16-steps \
        --others 400 --out studies/results/treebon                        # about 40 minutes; TreeBoN by lines

All on the same test problems under the same seeds; comparisons are paired, with a bootstrap over problems. TreeBoN is
compared with a best-of-N of about the same generated tokens: who has the answer of higher reward (the paper's win
rate), and who is right; a tie is half a win for each, and what the comparisons say that are no ties stands beside it.
``arithmetic-16`` is arithmetic with 16 operations instead of 6: at the tasks' default level both often have the same
answer, and nothing can win. The methods of the two claims run on all problems under all seeds; the others, and all on
``arithmetic-16``, on the first ``--others`` problems.

The work is split by task and seed over one process per core. Finished parts are kept under `build/trees`, and a run
that was stopped goes on from there; delete them when a model or a search has changed. The summary goes to
`studies/results/trees.{json,csv}`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from common import write

import bough
from bough.bench import Arm, evaluate_async, trials
from bough.bench.stats import accuracy, paired_bootstrap
from bough.core import Backend, Reward, Strategy
from bough.rewards import RejectionReward
from bough.search import DVTS, MCTS, AStar, BestOfN, CoAT, HyPER, SelfConsistency, TreeBoN
from bough.tasks import get_task
from bough.zoo.parts import run_parts

HERE = Path(__file__).parent
TASKS: dict[str, tuple[str, int | None]] = {
    "arithmetic": ("arithmetic", None),
    "arithmetic-16": ("arithmetic", 9),
    "countdown": ("countdown", None),
    "stories": ("stories", None),
}
# About the longest solution of each task, in tokens: what the paper calls the maximal length.
LENGTHS = {"arithmetic": 112, "arithmetic-16": 256, "countdown": 40, "stories": 72}
PAIRS = (
    ("treebon-4", "best-of-4"),
    ("treebon-8", "best-of-8"),
    ("treebon-16", "best-of-16"),
    ("treebon-4-steps", "best-of-4"),
    ("treebon-8-steps", "best-of-8"),
    ("treebon-16-steps", "best-of-16"),
    ("hyper", "self-consistency"),
    ("hyper-8", "self-consistency"),
    ("mcts", "best-of-16"),
    ("mcts-rollout", "best-of-16"),
    ("dvts", "best-of-16"),
    ("coat", "mcts"),
    ("mcts", "astar"),
)
CLAIMED = ("self-consistency", "hyper", "best-of-16", "treebon-16")  # on all problems
Row = dict[str, Any]


def arms(task: str) -> dict[str, Strategy]:
    """The methods, by the name that the table gives them."""
    longest = LENGTHS[task]
    return {
        "best-of-4": BestOfN(n=4),
        "best-of-8": BestOfN(n=8),
        "best-of-16": BestOfN(n=16),
        "self-consistency": SelfConsistency(n=16),
        "astar": AStar(),
        "treebon-4": TreeBoN(n=4, children=4, max_tokens=longest),
        "treebon-8": TreeBoN(n=8, children=4, max_tokens=longest),
        "treebon-16": TreeBoN(n=16, children=4, max_tokens=longest),
        **{f"treebon-{n}-steps": TreeBoN(n=n, children=4, max_tokens=longest, segment_steps=2) for n in (4, 8, 16)},
        "hyper": HyPER(),
        "hyper-8": HyPER(n=8),
        "mcts": MCTS(),
        "mcts-rollout": MCTS(evaluation="rollout"),
        "dvts": DVTS(),
        "coat": CoAT(),
    }


async def run_part(lm: Backend, reward: Reward, task: str, seed: int, args: argparse.Namespace) -> list[Row]:
    """All trials of one task under one seed."""
    name, level = TASKS[task]
    problems = [get_task(name).problem(args.split, index, level) for index in range(args.problems)]
    chosen = arms(task)
    labels = {id(strategy): label for label, strategy in chosen.items()}
    todo = []
    for label, strategy in chosen.items():
        if args.arms is None or label in args.arms:
            few = label not in CLAIMED or task == "arithmetic-16"
            todo += trials([Arm(strategy)], problems[: args.others] if few else problems, [seed])
    records = await evaluate_async(lm, todo, reward=reward, concurrency=args.concurrency)
    leaves = []
    for trial, record in zip(todo, records, strict=True):
        kept = {key: record[key] for key in ("index", "seed", "correct", "score", "tokens", "reward_calls", "passes")}
        leaves.append({"task": task, "method": labels[id(trial.arm.strategy)], **kept})
    return leaves


def part(task: str, seed: int, args: argparse.Namespace) -> list[Row]:
    """One task under one seed."""
    closed = bough.load_reward(args.reward)
    assert isinstance(closed, RejectionReward)
    # TreeBoN's segments end in the middle of steps.
    reward = RejectionReward(closed.backend, closed.format, open_ended=True)
    with bough.load(args.model, threads=1) as lm, reward.backend:  # no part leaves its memory to the next
        return bough.run(run_part(lm, reward, task, seed, args))


def wins(a: float, b: float) -> float:
    """1 for the larger, half for a tie; the same solution has the same reward but for rounding."""
    return 0.5 if math.isclose(a, b, rel_tol=1e-3) else float(a > b)


def decided(problems: list[int], won: list[float]) -> dict[str, float]:
    """How many comparisons are no ties, and the share of them that is won."""
    kept = [(problem, win) for problem, win in zip(problems, won, strict=True) if win != 0.5]
    if not kept:
        return {"comparisons": 0}
    share = paired_bootstrap([problem for problem, _ in kept], [win for _, win in kept], [0.0] * len(kept))
    return {"comparisons": len(kept), **share.to_dict()}


def compare(rows: list[Row], a: str, b: str) -> dict[str, Any] | None:
    """a against b: who wins by reward and by truth, differences and ratios, each with its interval."""
    by_trial: dict[tuple[int, int], dict[str, Row]] = defaultdict(dict)
    for row in rows:
        by_trial[row["index"], row["seed"]][row["method"]] = row
    pairs = [(found[a], found[b]) for found in by_trial.values() if a in found and b in found]
    if not pairs:
        return None
    problems = [x["index"] for x, _ in pairs]

    def of(first: list[float], second: list[float], statistic: Any = "difference") -> dict[str, float]:
        return paired_bootstrap(problems, first, second, statistic).to_dict()

    # A solution without a score has no answer: it loses to any that has one.
    reward = [wins(*(-1.0 if row["score"] is None else row["score"] for row in pair)) for pair in pairs]
    truth = [wins(x["correct"], y["correct"]) for x, y in pairs]
    nothing = [0.0] * len(pairs)
    return {
        "a": a, "b": b, "trials": len(pairs),
        # The score of a vote is its share, which is no reward.
        **({} if b == "self-consistency" else {
            "wins_by_reward": of(reward, nothing), "ties_by_reward": float(np.mean([won == 0.5 for won in reward])),
            "decided_by_reward": decided(problems, reward),
        }),
        "wins_by_truth": of(truth, nothing), "decided_by_truth": decided(problems, truth),
        "accuracy_difference": of([float(x["correct"]) for x, _ in pairs], [float(y["correct"]) for _, y in pairs]),
        "tokens_ratio": of([x["tokens"] for x, _ in pairs], [y["tokens"] for _, y in pairs], "ratio"),
    }  # fmt: skip


def summarise(rows: list[Row], args: argparse.Namespace) -> dict[str, Any]:
    """One cell per task and method, and the comparisons."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["task"], row["method"]].append(row)
    cells = []
    for (task, method), group in groups.items():
        share = accuracy([row["index"] for row in group], [row["correct"] for row in group])
        means = {name: float(np.mean([row[name] for row in group])) for name in ("tokens", "reward_calls", "passes")}
        cells.append(
            {
                "task": task, "method": method, "trials": len(group), "accuracy": round(share.estimate, 4),
                "low": round(share.low, 4), "high": round(share.high, 4),
                **{name: round(value, 2) for name, value in means.items()},
            }
        )  # fmt: skip
    comparisons = {
        task: [
            pair
            for a, b in PAIRS
            if (pair := compare([row for row in rows if row["task"] == task], a, b)) is not None
        ]
        for task in args.tasks
    }
    settings = {name: getattr(args, name) for name in ("problems", "others", "seeds", "split", "model", "reward")}
    return {**settings, "cells": cells, "comparisons": comparisons}


def main() -> None:
    """Run, print, and keep the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--arms", nargs="+", default=None, help="only these methods")
    parser.add_argument("--problems", type=int, default=400)
    parser.add_argument("--others", type=int, default=100, help="problems for what no claim is about")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    parser.add_argument("--model", default="bough/nano")
    parser.add_argument("--reward", default="bough/nano-prm")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "trees")
    parser.add_argument("--scratch", type=Path, default=HERE.parent / "build" / "trees")
    args = parser.parse_args()
    which = "-".join(sorted(args.arms)) if args.arms else "all"
    parts = {
        f"{task}-{seed}-{args.split}-{args.problems}-{args.others}-{which}": (task, seed, args)
        for seed in range(args.seeds)
        for task in args.tasks
    }
    rows = [row for found in run_parts(part, parts, args.scratch).values() for row in found]
    summary = summarise(rows, args)
    write(args.out, summary, summary["cells"])
    for cell in summary["cells"]:
        print(
            f"{cell['task']:13} {cell['method']:17} accuracy {cell['accuracy']:.3f} [{cell['low']:.3f}, "
            f"{cell['high']:.3f}] tokens {cell['tokens']:8.1f} calls {cell['reward_calls']:7.2f}"
        )
    for task, pairs in summary["comparisons"].items():
        for pair in pairs:
            print(task, json.dumps(pair))


if __name__ == "__main__":
    main()
