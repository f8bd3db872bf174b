"""Adaptive inference-time compute: the accuracy of 16 samples from fewer of them.

    python studies/samples.py         # first: draws the bank, where best-of-16 is read off
    python studies/adaptive.py        # ten minutes on 2 cores
    python studies/adaptive.py --split validation --seeds 1 --thresholds 0.98 0.96 0.94 0.92

`AdaptiveITC` against best-of-16 with the same reward, paired by problem and seed: difference of accuracy, ratio of
tokens. With the reward's scores as they are, and calibrated on the validation samples of the task; giving up
unfinished solutions, and whole ones only. The default threshold was chosen on validation problems.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import numpy as np
from common import Row, arguments, bank, embedded, interval, show, write

import bough
from bough.bench import Arm, evaluate_async, trials
from bough.core import Backend, Reward
from bough.rewards import Calibrated, platt
from bough.search import AdaptiveITC
from bough.tasks import get_task
from bough.zoo.parts import run_parts

FIXED = 16


def settings(thresholds: list[float]) -> dict[str, tuple[AdaptiveITC, bool]]:
    """What is compared, by name: a strategy, and whether the reward is calibrated."""
    found = {}
    for threshold in thresholds:
        own = AdaptiveITC(threshold=threshold)
        found[f"{threshold:g}"] = own, False
        found[f"{threshold:g}, calibrated"] = own, True
        found[f"{threshold:g}, calibrated, whole only"] = replace(own, prune=1.0), True
    return found


async def draw(lm: Backend, reward: Reward, task: str, seed: int, args: argparse.Namespace) -> list[Row]:
    """All settings on all problems."""
    aim = get_task(task)
    problems = [aim.problem(args.split, index) for index in range(args.problems)]
    (validation,) = bank(task, "validation", 1, args.folder, args.problems)
    calibrated = Calibrated(reward, *platt(validation.score.ravel(), validation.right.ravel()))
    rows = []
    for name, (strategy, calibrate) in settings(args.thresholds).items():
        todo = trials([Arm(strategy)], problems, [seed])
        records = await evaluate_async(lm, todo, reward=calibrated if calibrate else reward)
        kept = ("index", "correct", "tokens", "reward_calls", "passes")
        rows += [{"setting": name, "seed": seed, **{k: record[k] for k in kept}} for record in records]
    return rows


def part(task: str, seed: int, args: argparse.Namespace) -> list[Row]:
    """One task under one seed."""
    with embedded() as (lm, reward):
        return bough.run(draw(lm, reward, task, seed, args))


def compared(task: str, name: str, rows: list[Row], args: argparse.Namespace) -> Row:
    """One setting beside best-of-16."""
    samples = bank(task, args.split, args.seeds, args.folder, args.problems)
    shape = (args.problems, args.seeds)
    right, tokens = np.zeros(shape), np.zeros(shape)
    for row in rows:
        right[row["index"], row["seed"]], tokens[row["index"], row["seed"]] = row["correct"], row["tokens"]
    fixed, spent = np.zeros(shape), np.zeros(shape)
    for seed, one in enumerate(samples):
        answered = one.answer[:, :FIXED] >= 0
        best = np.where(answered, one.score[:, :FIXED], -1).argmax(1)
        fixed[:, seed] = one.right[np.arange(args.problems), best]
        spent[:, seed] = one.tokens[:, :FIXED].sum(1)

    def said(found: dict[str, float]) -> str:
        return f"{found['estimate']:.3f} ({found['low']:.3f}, {found['high']:.3f})"

    return {
        "task": task,
        "setting": name,
        "accuracy": round(float(right.mean()), 4),
        f"best-of-{FIXED}": round(float(fixed.mean()), 4),
        "difference": said(interval(lambda a, b: float((a - b).mean()), right, fixed)),
        "tokens": round(float(tokens.mean()), 1),
        "tokens, ratio": said(interval(lambda a, b: float(a.sum() / b.sum()), tokens, spent)),
        "reward calls": round(float(np.mean([row["reward_calls"] for row in rows])), 2),
    }


def main() -> None:
    """Run, print, and keep the table."""
    parser = arguments(__doc__, "adaptive", banked=True)
    parser.add_argument("--split", default="test", choices=("test", "validation"))
    parser.add_argument("--thresholds", type=float, nargs="+", default=[AdaptiveITC().threshold])
    args = parser.parse_args()
    parts: dict[str, tuple[Any, ...]] = {
        f"{task}-{args.split}-{seed}-{args.problems}-{'-'.join(map(str, args.thresholds))}": (task, seed, args)
        for seed in range(args.seeds)
        for task in args.tasks
    }
    found = run_parts(part, parts, args.scratch)
    table = []
    for task in args.tasks:
        own = [row for name, rows in found.items() if name.startswith(f"{task}-") for row in rows]
        for name in settings(args.thresholds):
            table.append(compared(task, name, [row for row in own if row["setting"] == name], args))
    write(args.out, {"problems": args.problems, "seeds": args.seeds, "split": args.split, "rows": table}, table)
    show(table)


if __name__ == "__main__":
    main()
