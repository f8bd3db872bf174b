"""A*-decoding's alternatives on validation problems: cost, width, revisits, tie-breaking, speculation, aggregation.

    python studies/astar.py                    # about five minutes on 2 cores

The defaults of `AStar` were chosen from this table, before anything was measured on test problems. Every row is on
the same problems under the same seed; best-of-16 and the 16-particle filter stand beside them. Finished trials are
kept in `build/astar.jsonl`, and a run that was stopped goes on from there; the table goes to
`studies/results/astar.csv`.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import bough
from bough.bench import Arm, Results, evaluate, trials
from bough.bench.stats import accuracy
from bough.core import Strategy
from bough.rewards import ProcessReward
from bough.search import AStar, BeamSearch, BestOfN, ParticleFilter
from bough.tasks import get_task

HERE = Path(__file__).parent


def alternatives() -> dict[str, Strategy]:
    """What is compared, by name."""
    table: dict[str, Strategy] = {
        "best-of-16": BestOfN(n=16),
        "particle filter 16": ParticleFilter(n=16),
        "beam 4 x 4": BeamSearch(),
    }
    for cost in ("deterioration", "worst"):
        for width in (1, 2, 4):
            for revisit in (0.05, 0.15, 0.3):
                table[f"{cost}, width {width}, revisit {revisit}"] = AStar(
                    width=width, cost=cost, revisit_cost=revisit, parallel=1
                )
    default = AStar()
    table["default, cost none"] = replace(default, cost="none", parallel=1)
    for tie_break in ("deepest", "reward"):
        table[f"default, ties by {tie_break}"] = replace(default, tie_break=tie_break, parallel=1)
    for parallel, doubt in ((4, 0.0), (4, 0.5)):
        table[f"default, {parallel} at once above doubt {doubt}"] = replace(default, parallel=parallel, doubt=doubt)
    return table


def main() -> None:
    """Run, print, and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["arithmetic", "countdown", "stories"])
    parser.add_argument("--problems", type=int, default=60)
    parser.add_argument("--only", default="", help="run only the alternatives whose name has this in it")
    parser.add_argument("--model", default="bough/nano")
    parser.add_argument("--reward", default="bough/nano-prm")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "astar.csv")
    parser.add_argument("--scratch", type=Path, default=HERE.parent / "build" / "astar.jsonl")
    args = parser.parse_args()
    lm = bough.load(args.model)
    rewards = {how: bough.load_reward(args.reward, aggregate=how) for how in ("last", "min", "prod")}
    strategies = {name: s for name, s in alternatives().items() if args.only in name}
    runs = [(name, "last", strategy) for name, strategy in strategies.items()]
    if not args.only:
        runs += [(f"default, {how} over steps", how, AStar()) for how in ("min", "prod")]
    rows: list[dict[str, Any]] = []
    with Results(args.scratch) as results:
        for task_name in args.tasks:
            problems = [get_task(task_name).problem("validation", index) for index in range(args.problems)]
            groups: dict[str, list[tuple[str, Strategy]]] = defaultdict(list)
            for name, how, strategy in runs:
                groups[how].append((name, strategy))
            for how, group in groups.items():
                reward = rewards[how]
                assert isinstance(reward, ProcessReward)
                for name, strategy in group:
                    records = evaluate(
                        lm,
                        trials([Arm(strategy)], problems),
                        reward=reward,
                        results=results,
                        reward_model=f"{args.reward} {how}",
                        concurrency=32,
                    )
                    share = accuracy(range(len(records)), [record["correct"] for record in records])
                    means = {
                        k: round(float(np.mean([r[k] for r in records])), 1)
                        for k in ("tokens", "reward_calls", "passes")
                    }
                    row = {"task": task_name, "what": name, "accuracy": round(share.estimate, 3)}
                    row |= {"low": round(share.low, 3), "high": round(share.high, 3), **means}
                    rows.append(row)
                    print("  ".join(f"{value:<36}" if k == "what" else f"{value:>9}" for k, value in row.items()))
    with args.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
