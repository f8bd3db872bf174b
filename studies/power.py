"""Sampling from p(y) ** alpha: Power-SMC and scalable power sampling against Metropolis-Hastings and plain decoding.

    python studies/samples.py --unjudged                # first: draws the samples that the law itself is read off
    python studies/power.py                                                    # about 20 minutes on 2 cores
    python studies/power.py --settings --problems 200 --seeds 2                # Power-SMC's, on validation problems
    python studies/power.py --split validation --problems 20 --seeds 1 --latency 5 --out build/power/look

Accuracy is on the same problems under the same seeds for all methods, many at once; differences are paired, with a
bootstrap over problems. Metropolis-Hastings, which takes longest, runs on the first ``--mh-problems`` of them.

Beside the samplers stands the law that they are after: the share of p(y) ** 4 that is on right solutions, among all
different ones of the 192 samples of each problem; what those miss has hardly any of it. A sampler that is right more
often than its law is further from it than one that is even with it.

Latency is measured one problem at a time, all methods in one process and in turn on each problem: forward passes one
after the other and seconds, as ratios to one plain decode of the same problem.

The work is split over one process per core. Finished parts are kept under `build/power`, and a run that was stopped
goes on from there; delete them when a model or a sampler has changed. The summary goes to
`studies/results/power.{json,csv}`.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from common import interval, write
from samples import ANSWERS, load_drawn

import bough
from bough.bench import Arm, evaluate_async, trials
from bough.bench.stats import accuracy, paired_bootstrap
from bough.core import Strategy
from bough.search import PowerMH, PowerSMC, ScalablePower, SelfConsistency
from bough.tasks import get_task
from bough.zoo.parts import run_parts

HERE = Path(__file__).parent
PLAIN, LOW, MH = "plain", "low temperature", "metropolis-hastings"
METHODS: dict[str, Strategy] = {
    PLAIN: SelfConsistency(n=1),
    LOW: SelfConsistency(n=1, temperature=1 / PowerMH().alpha),
    MH: PowerMH(),
    "power-smc": PowerSMC(),
    "scalable": ScalablePower(),
}
PAIRS: tuple[tuple[str, str], ...] = (
    ("power-smc", MH), ("scalable", MH), ("power-smc", "low temperature"), ("scalable", "low temperature"),
    (MH, "low temperature"), ("low temperature", PLAIN), ("power-smc", PLAIN), ("scalable", PLAIN), (MH, PLAIN),
)  # fmt: skip
SETTINGS: dict[str, Strategy] = {
    **{name: METHODS[name] for name in (PLAIN, LOW)},
    **{f"n={n}, block={block}": PowerSMC(n=n, block=block) for n in (8, 12, 16) for block in (32, 8)},
    "n=12, block=8, ess_threshold=0.8": PowerSMC(n=12, block=8, ess_threshold=0.8),
    "n=12, block=8, ramp=32": PowerSMC(n=12, block=8, ramp=32),
    "n=12, block=8, answer=vote": PowerSMC(n=12, block=8, answer="vote"),
}
Row = dict[str, Any]


def chosen(args: argparse.Namespace) -> tuple[dict[str, Strategy], tuple[tuple[str, str], ...]]:
    """What is run, and what is compared with what."""
    if args.settings:
        return SETTINGS, tuple((name, LOW) for name in SETTINGS if name not in (PLAIN, LOW))
    return METHODS, PAIRS


def law(task: str, args: argparse.Namespace) -> np.ndarray:
    """How probable a right solution is under p(y) ** 4, of each problem, by its different samples."""
    drawn = [load_drawn(task, args.split, seed, args.folder) for seed in range(3)]
    paths, logprobs, rights = (
        np.concatenate([one[name][: args.problems] for one in drawn], axis=1) for name in ("path", "logprob", "right")
    )
    found = []
    for path, logprob, right in zip(paths, logprobs, rights, strict=True):
        _, first = np.unique(path, return_index=True)
        weights = np.exp(PowerMH().alpha * (logprob[first] - logprob[first].max()))
        found.append(float(weights @ right[first] / weights.sum()))
    return np.array(found)


def beside_law(rows: list[Row], args: argparse.Namespace) -> list[Row]:
    """Each sampler's accuracy less that of the law, on the problems that it ran on."""
    table = []
    for task in args.tasks:
        own = law(task, args)
        for name in chosen(args)[0]:
            right: dict[int, list[float]] = defaultdict(list)
            for row in rows:
                if (row["task"], row["method"]) == (task, name):
                    right[row["index"]].append(float(row["correct"]))
            here = own[sorted(right)]
            means = np.array([np.mean(right[index]) for index in sorted(right)])
            difference = interval(lambda a, b: float((a - b).mean()), means, here)
            table.append({"task": task, "method": name, "law": round(float(here.mean()), 4), "beyond": difference})
    return table


def part(kind: str, task: str, seed: int, args: argparse.Namespace) -> list[Row]:
    """One task under one seed: what is right; or how long each method takes alone."""
    with bough.load(args.model, threads=1) as lm:
        judge = get_task(task)
        if kind == "latency":
            problems = [judge.problem(args.split, index) for index in range(args.latency + 1)]
            rows = []
            for problem in problems:
                for name, strategy in chosen(args)[0].items():
                    answer = bough.solve(lm, problem.prompt, strategy=strategy, task=judge, seed=seed)
                    cost = {"passes": answer.ledger.passes, "seconds": answer.ledger.seconds}
                    rows.append({"task": task, "method": name, "index": problem.index, **cost})
            return [row for row in rows if row["index"]]  # the first problem warms up
        problems = [judge.problem(args.split, index) for index in range(args.problems)]
        arms = {name: Arm(strategy) for name, strategy in chosen(args)[0].items()}
        todo = [
            trial
            for name, arm in arms.items()
            for trial in trials([arm], problems[: args.mh_problems] if name == MH else problems, [seed])
        ]
        names = {id(arm): name for name, arm in arms.items()}
        records = bough.run(evaluate_async(lm, todo, concurrency=args.concurrency))
        kept = ("index", "seed", "correct", "tokens")
        return [
            {"task": task, "method": names[id(trial.arm)], **{key: record[key] for key in kept}}
            for trial, record in zip(todo, records, strict=True)
        ]


def paired(rows: list[Row], a: str, b: str, what: str, statistic: Any) -> dict[str, float]:
    """One method against another on the trials that both have, with an interval."""
    by_trial: dict[tuple[Any, ...], dict[str, Row]] = defaultdict(dict)
    for row in rows:
        by_trial[row["task"], row["index"], row.get("seed", 0)][row["method"]] = row
    pairs = [(key, pair[a], pair[b]) for key, pair in by_trial.items() if a in pair and b in pair]
    problems = [f"{key[0]} {key[1]}" for key, _, _ in pairs]
    first, second = ([float(pair[side][what]) for pair in pairs] for side in (1, 2))
    return {"problems": len(set(problems)), **paired_bootstrap(problems, first, second, statistic).to_dict()}


def summarise(rows: list[Row], times: list[Row], args: argparse.Namespace) -> dict[str, Any]:
    """Per task and over all: accuracies, differences, and ratios of latency."""
    cells, comparisons, latency = [], [], []
    for task in [*args.tasks, "all"]:
        mine = [row for row in rows if task in (row["task"], "all")]
        timed = [row for row in times if task in (row["task"], "all")]
        for name in chosen(args)[0]:
            group = [row for row in mine if row["method"] == name]
            share = accuracy([f"{r['task']} {r['index']}" for r in group], [r["correct"] for r in group])
            alone = {unit: paired(timed, name, PLAIN, unit, "ratio") for unit in ("passes", "seconds")}
            cells.append(
                {
                    "task": task, "method": name, "trials": len(group), "accuracy": round(share.estimate, 4),
                    "low": round(share.low, 4), "high": round(share.high, 4),
                    "tokens": round(float(np.mean([r["tokens"] for r in group])), 1),
                    **{f"{unit}_over_plain": round(ratio["estimate"], 3) for unit, ratio in alone.items()},
                }
            )  # fmt: skip
            latency.append({"task": task, "method": name, **alone})
        for a, b in chosen(args)[1]:
            ratios = {f"{unit}_ratio": paired(timed, a, b, unit, "ratio") for unit in ("passes", "seconds")}
            difference = paired(mine, a, b, "correct", "difference")
            comparisons.append({"task": task, "a": a, "b": b, "accuracy_difference": difference, **ratios})
    return {
        "problems": args.problems, "mh_problems": args.mh_problems, "seeds": args.seeds, "split": args.split,
        "latency_problems": args.latency, "model": args.model,
        "methods": {name: strategy.describe() for name, strategy in chosen(args)[0].items()},
        "cells": cells, "law": beside_law(rows, args), "comparisons": comparisons, "latency_over_plain": latency,
    }  # fmt: skip


def main() -> None:
    """Run, print, and keep the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["arithmetic", "countdown", "stories", "logic"])
    parser.add_argument(
        "--settings", action="store_true", help="compare settings of Power-SMC, on validation problems"
    )
    parser.add_argument("--split", choices=["validation", "test"], help="test, unless settings are compared")
    parser.add_argument("--problems", type=int, default=400)
    parser.add_argument("--mh-problems", type=int, default=200, help="of these, for Metropolis-Hastings")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--latency", type=int, default=25, help="problems per task that are timed alone")
    parser.add_argument("--model", default="bough/nano")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--folder", type=Path, default=ANSWERS, help="of python studies/samples.py --unjudged")
    parser.add_argument("--out", type=Path, help="results/power, or results/power_settings")
    parser.add_argument("--scratch", type=Path, default=HERE.parent / "build" / "power")
    args = parser.parse_args()
    args.split = args.split or ("validation" if args.settings else "test")
    args.out = args.out or HERE / "results" / ("power_settings" if args.settings else "power")
    size = f"{'settings-' * args.settings}{args.split}-{args.problems}-{args.mh_problems}-{args.latency}"
    right = {f"right-{t}-{seed}-{size}": ("right", t, seed, args) for seed in range(args.seeds) for t in args.tasks}
    alone = {f"latency-{t}-{size}": ("latency", t, 0, args) for t in args.tasks}
    found = run_parts(part, {**alone, **right}, args.scratch)
    rows, times = ([row for name in names for row in found[name]] for names in (right, alone))
    summary = summarise(rows, times, args)
    write(args.out, summary, summary["cells"])
    for cell in summary["cells"]:
        print(
            f"{cell['task']:11} {cell['method']:20} accuracy {cell['accuracy']:.3f} [{cell['low']:.3f}, "
            f"{cell['high']:.3f}] tokens {cell['tokens']:8.1f}; over plain decoding: passes "
            f"{cell['passes_over_plain']:6.2f}, seconds {cell['seconds_over_plain']:6.2f}"
        )
    for comparison in summary["comparisons"]:
        print(json.dumps(comparison))


if __name__ == "__main__":
    main()
