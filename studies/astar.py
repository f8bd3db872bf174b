"""A*-decoding's alternatives on validation problems: price of drawing again, width, cost, ties, speculation.

    python studies/astar.py                    # about a quarter of an hour on 2 cores

The defaults of `AStar` were chosen from this table, before anything was measured on test problems. Every row is on
the same problems under the same seed; best-of-16 and the 16-particle filter stand beside them. Finished trials are
kept under `build/astar`, and a run that was stopped goes on from there; delete them when a model or a search has
changed. The table goes to `studies/results/astar.csv`.
"""

from __future__ import annotations

import argparse
import csv
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import bough
from bough.bench import Arm, evaluate, trials
from bough.bench.stats import accuracy
from bough.core import Strategy
from bough.rewards import ProcessReward
from bough.search import AStar, BeamSearch, BestOfN, ParticleFilter
from bough.search.astar import Node
from bough.tasks import get_task
from bough.zoo.parts import run_parts

HERE = Path(__file__).parent


class PricedByDraws(AStar):
    """Every draw costs the same, new or not."""

    def price(self, node: Node) -> float:
        """Cost times draws."""
        return self.revisit_cost * node.drawn


class PricedByNext(AStar):
    """The next new child costs the draws that it takes, however many there were before."""

    def price(self, node: Node) -> float:
        """Cost times expected draws."""
        return self.revisit_cost / (1 - node.explored)


class PricedByDrawsAndNext(AStar):
    """As the default, but a repeated child counts too."""

    def price(self, node: Node) -> float:
        """Cost times draws times expected draws."""
        return self.revisit_cost * node.drawn / (1 - node.explored)


def alternatives() -> dict[str, Strategy]:
    """What is compared, by name."""
    default = AStar()
    table: dict[str, Strategy] = {
        "best-of-16": BestOfN(n=16),
        "particle filter 16": ParticleFilter(n=16),
        "beam 4 x 4": BeamSearch(),
        "default": default,
    }
    for revisit in (0.01, 0.03):
        table[f"default, revisit {revisit}"] = replace(default, revisit_cost=revisit)
    table["default, width 2"] = replace(default, width=2)
    for what, priced, costs in (
        ("draws", PricedByDraws, (0.05, 0.1)),
        ("1 / U", PricedByNext, (0.03, 0.1)),
        ("draws / U", PricedByDrawsAndNext, (0.005, 0.01)),
    ):
        for revisit in costs:
            table[f"price {what}, revisit {revisit}"] = priced(revisit_cost=revisit)
    table["default, cost none"] = replace(default, cost="none")
    table["default, cost deterioration"] = replace(default, cost="deterioration")
    table["default, ties by reward"] = replace(default, tie_break="reward")
    for parallel, doubt in ((1, 1.0), (4, 0.0)):
        table[f"default, {parallel} at once above doubt {doubt}"] = replace(default, parallel=parallel, doubt=doubt)
    return table


def measure(task: str, strategy: Strategy, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One strategy on the task's validation problems."""
    problems = [get_task(task).problem("validation", index) for index in range(args.problems)]
    reward = bough.load_reward(args.reward)
    assert isinstance(reward, ProcessReward)
    with bough.load(args.model) as lm, reward.backend:  # no part leaves its memory to the next
        return evaluate(lm, trials([Arm(strategy)], problems), reward=reward)


def summarise(records: list[dict[str, Any]]) -> dict[str, float]:
    """Accuracy with its interval, and mean costs."""
    share = accuracy(range(len(records)), [record["correct"] for record in records])
    means = {
        what: float(np.mean([record[what] for record in records])) for what in ("tokens", "reward_calls", "passes")
    }
    return {
        "accuracy": round(share.estimate, 3), "low": round(share.low, 3), "high": round(share.high, 3),
        **{what: round(mean, 1) for what, mean in means.items()},
    }  # fmt: skip


def main() -> None:
    """Run, print, and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["arithmetic", "countdown", "stories"])
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--model", default="bough/nano")
    parser.add_argument("--reward", default="bough/nano-prm")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "astar.csv")
    parser.add_argument("--scratch", type=Path, default=HERE.parent / "build" / "astar")
    args = parser.parse_args()
    cells = {(task, name): strategy for task in args.tasks for name, strategy in alternatives().items()}
    parts = {
        re.sub(r"[^a-z0-9.]+", "-", f"{task} {name} {args.problems}"): (task, strategy, args)
        for (task, name), strategy in cells.items()
    }
    found = run_parts(measure, parts, args.scratch)
    rows = [
        {"task": task, "what": name, **summarise(records)}
        for (task, name), records in zip(cells, found.values(), strict=True)
    ]
    for row in rows:
        print("  ".join(f"{value:<36}" if what == "what" else f"{value:>10}" for what, value in row.items()))
    with args.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
