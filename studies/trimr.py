"""TrimR: what cutting redundant thoughts saves, and what it costs.

    python studies/trimr.py         # some minutes on 2 cores

bough/nano-think answers test problems, thinking as long as it likes, and with its thoughts cut by `TrimR`: where one
or two pairs of consecutive thoughts agree, and after one or two thoughts whatever they say. Paired by problem and
seed: tokens as a ratio, accuracy as a difference, both against thinking to the end. Tokens that were generated before
a verdict cut them off are counted.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from common import Row, arguments, share, show, write

import bough
from bough.bench import Arm, evaluate_async, trials
from bough.bench.stats import paired_bootstrap
from bough.core import Strategy
from bough.search import SelfConsistency, TrimR
from bough.tasks import get_task
from bough.zoo.parts import run_parts

MODEL = "bough/nano-think"
FULL = "to the end"
ARMS: dict[str, Strategy] = {
    FULL: SelfConsistency(n=1),
    "1 agreement": TrimR(),
    "2 agreements": TrimR(agreements=2),
    "1 thought": TrimR(patience=1),
    "2 thoughts": TrimR(patience=2),
}


def part(task: str, seed: int, problems: int) -> list[Row]:
    """All arms on the problems of a task, under one seed."""
    aim = get_task(task)
    rows: list[Row] = []
    with bough.load(MODEL) as lm:
        for name, strategy in ARMS.items():
            todo = trials([Arm(strategy)], [aim.problem("test", index) for index in range(problems)], [seed])
            for record in bough.run(evaluate_async(lm, todo)):
                kept = {key: record[key] for key in ("index", "seed", "correct", "tokens", "passes")}
                rows.append({"task": task, "arm": name, **kept})
    return rows


def against(rows: list[Row], full: str) -> list[Row]:
    """For each task and arm: accuracy, tokens, and both against an arm, paired by problem and seed."""
    table = []
    for task in dict.fromkeys(row["task"] for row in rows):
        by_arm: dict[str, dict[tuple[int, int], Row]] = {}
        for row in rows:
            if row["task"] == task:
                by_arm.setdefault(row["arm"], {})[row["index"], row["seed"]] = row
        base, pairs = by_arm[full], sorted(by_arm[full])
        problems = [index for index, _ in pairs]

        def column(arm: dict[tuple[int, int], Row], name: str, pairs: Any = pairs) -> np.ndarray:
            return np.array([arm[pair][name] for pair in pairs], np.float64)

        for name, arm in by_arm.items():
            more = paired_bootstrap(problems, column(arm, "correct"), column(base, "correct"))
            ratio = paired_bootstrap(problems, column(arm, "tokens"), column(base, "tokens"), "ratio")
            table.append(
                {
                    "task": task, "arm": name, **share(problems, column(arm, "correct")),
                    "tokens": round(float(column(arm, "tokens").mean()), 1),
                    "passes": round(float(column(arm, "passes").mean()), 1),
                    "difference": f"{100 * more.estimate:+.1f} ({100 * more.low:+.1f}, {100 * more.high:+.1f})",
                    "tokens, ratio": f"{ratio.estimate:.3f} ({ratio.low:.3f}, {ratio.high:.3f})",
                }
            )  # fmt: skip
    return table


def main() -> None:
    """Run what is missing, print, and keep the table."""
    args: argparse.Namespace = arguments(__doc__, "trimr").parse_args()
    parts = {
        f"{task}-{seed}-{args.problems}": (task, seed, args.problems)
        for seed in range(args.seeds)
        for task in args.tasks
    }
    found = run_parts(part, parts, args.scratch)
    table = against([row for rows in found.values() for row in rows], FULL)
    write(args.out, {"problems": args.problems, "seeds": args.seeds, "rows": table}, table)
    show(table)


if __name__ == "__main__":
    main()
