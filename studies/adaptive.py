"""Adaptive inference-time compute: the accuracy of 16 samples from fewer of them.

    python studies/samples.py         # first: draws the bank, where best-of-16 is read off
    python studies/adaptive.py        # ten minutes on 2 cores
    python studies/adaptive.py --split validation --seeds 1 --thresholds 0.98 0.96 0.94 0.92
    python studies/adaptive.py --oracles      # seconds, from the bank alone; results/adaptive_oracles.{csv,json}

`AdaptiveITC` against best-of-16 with the same reward, paired by problem and seed: difference of accuracy, ratio of
tokens. With the reward's scores as they are, and calibrated on the validation samples of the task; giving up
unfinished solutions, and whole ones only. The default threshold was chosen on validation problems.

The oracles stop the same 16 samples, whose best by the reward is the answer, and bound what a stopping rule can save:

- of the choice: stops at the sample that best-of-16 would take, which nobody knows to be the best before the last. A
  rule that gives up none of the reward's choices needs no less, however it decides.
- of the problem: knows how the problem's scores are distributed and how often each is right, from the samples of the
  other seeds, but not what will be drawn. It stops at the first score of at least a threshold, after n samples at
  most, with the threshold and n of each problem that are worth most at some price of a sample; of 60 prices, at the
  one that takes fewest samples and loses at most a point.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, replace
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
LOSS = 0.01  # of accuracy, that the claim allows


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


def said(found: Row) -> str:
    """An estimate with its interval."""
    return f"{found['estimate']:.3f} ({found['low']:.3f}, {found['high']:.3f})"


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


@dataclass(frozen=True)
class Policy:
    """Stop at the first score of at least ``threshold``, and after ``most`` samples.

    Attributes:
        right: how often that ends right.
        samples: how many it takes.
    """

    threshold: float
    most: int
    right: float
    samples: float


def policies(scores: np.ndarray, right: np.ndarray) -> list[Policy]:
    """Every policy for a problem whose samples are draws from these, ``[n]`` each."""
    order = np.argsort(scores, kind="stable")
    scores, right = scores[order], right[order]
    below = np.unique(np.searchsorted(scores, scores)).tolist() + [len(scores)]  # how many a threshold leaves out
    found = []
    for j in below:
        above = 1 - j / len(scores)
        for most in (1, 2, 4, 8, FIXED):
            missed = (1 - above) ** most
            best = np.diff((np.arange(j + 1) / max(j, 1)) ** most)  # of those left out, the law of the highest
            ends = missed * float(best @ right[:j]) + (1 - missed) * float(right[j:].mean() if above else 0.0)
            samples = (1 - missed) / above if above else float(most)
            found.append(Policy(float(scores[j]) if above else math.inf, most, ends, samples))
    return found


def stops(scores: np.ndarray, policy: Policy) -> int:
    """After how many of these samples the policy stops."""
    reached = np.flatnonzero(scores[: policy.most] >= policy.threshold)
    return int(reached[0]) + 1 if len(reached) else policy.most


def oracles(task: str, args: argparse.Namespace) -> list[Row]:
    """What each oracle takes, beside best-of-16."""
    samples = bank(task, args.split, args.seeds, args.folder, args.problems)
    scores = np.stack([np.where(one.answer < 0, -1.0, one.score) for one in samples], 1)  # [problems, seeds, n]
    right = np.stack([one.right for one in samples], 1)
    costs = np.cumsum(np.stack([one.tokens for one in samples], 1), -1)[..., :FIXED]
    best = np.maximum.accumulate(scores[..., :FIXED], -1)
    rises = np.diff(best, axis=-1, prepend=-2.0) > 0
    chosen = np.maximum.accumulate(np.where(rises, np.arange(FIXED), 0), -1)  # of equals the first
    ends = np.take_along_axis(right[..., :FIXED], chosen, -1)  # whether the choice among the first k + 1 is right
    fixed = ends[..., -1]
    counts = {"of the choice": chosen[..., -1] + 1}
    known = [
        [
            policies(*(np.delete(array[problem], seed, 0).ravel() for array in (scores, right)))
            for seed in range(args.seeds)
        ]
        for problem in range(args.problems)
    ]
    tried = []
    for price in np.geomspace(0.3, 1e-5, 60):
        taken = np.zeros(fixed.shape, int)
        for problem, row in enumerate(known):
            for seed, options in enumerate(row):
                policy = max(options, key=lambda option: option.right - price * option.samples)
                taken[problem, seed] = stops(scores[problem, seed], policy)
        lost = fixed.mean() - np.take_along_axis(ends, taken[..., None] - 1, -1).mean()
        tried.append((lost > LOSS, float(taken.mean()), len(tried), taken))
    counts["of the problem"] = min(tried, key=lambda entry: entry[:3])[3]
    table = []
    for name, taken in counts.items():
        ours = np.take_along_axis(ends, taken[..., None] - 1, -1)[..., 0]
        spent = np.take_along_axis(costs, taken[..., None] - 1, -1)[..., 0]
        table.append(
            {
                "task": task,
                "oracle": name,
                "accuracy": round(float(ours.mean()), 4),
                f"best-of-{FIXED}": round(float(fixed.mean()), 4),
                "difference": said(interval(lambda a, b: float((a - b).mean()), ours * 1.0, fixed * 1.0)),
                "samples, ratio": said(interval(lambda a: float(a.mean() / FIXED), taken)),
                "tokens, ratio": said(interval(lambda a, b: float(a.sum() / b.sum()), spent, costs[..., -1])),
            }
        )
    return table


def main() -> None:
    """Run, print, and keep the table."""
    parser = arguments(__doc__, "adaptive", banked=True)
    parser.add_argument("--split", default="test", choices=("test", "validation"))
    parser.add_argument("--thresholds", type=float, nargs="+", default=[AdaptiveITC().threshold])
    parser.add_argument("--oracles", action="store_true", help="only what no stopping rule can beat")
    args = parser.parse_args()
    if args.oracles:
        table = [row for task in args.tasks for row in oracles(task, args)]
        out = args.out.with_name(f"{args.out.name}_oracles")
        write(out, {"problems": args.problems, "seeds": args.seeds, "split": args.split, "rows": table}, table)
        show(table)
        return
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
