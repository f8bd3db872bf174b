"""EconProver's two economies: thinking only where it pays, and samples that do not fail alike.

    python studies/econ.py          # some minutes on 2 cores

The switch: bough/nano-think answers test problems always at once, always after thinking, and as `CoTSwitch` decides
with the probe of `python -m bough.zoo.switch`, at several thresholds. Accuracy as a difference and tokens as a ratio
are paired by problem and seed, against always thinking.

The prefixes: bough/nano draws k samples of test problems, one below each of its k trained prefixes
(`python -m bough.zoo.prefixes`), as many without, and as many below the prefix that is right most often. One of them
being right is what counts (pass@k), paired by problem and seed.
"""

from __future__ import annotations

import argparse
import asyncio

import numpy as np
from common import Row, arguments, share, show, write
from trimr import MODEL, against

import bough
from bough.bench import Arm, evaluate_async, trials
from bough.bench.stats import paired_bootstrap
from bough.core import Backend, Strategy
from bough.search import CoTSwitch
from bough.tasks import get_task
from bough.zoo.parts import run_parts

ALWAYS = "always"
THRESHOLDS = (0.3, 0.5, 0.7, 0.9)
PLAIN_MODEL = "bough/nano"
_UNDER_WAY = 64


def switches() -> dict[str, Strategy]:
    """What is compared."""
    return {
        ALWAYS: CoTSwitch(threshold=2.0),
        "never": CoTSwitch(threshold=0.0),
        **{f"below {threshold:g}": CoTSwitch(threshold=threshold) for threshold in THRESHOLDS},
    }


def switch_part(task: str, seed: int, problems: int) -> list[Row]:
    """The switch at every threshold, under one seed."""
    aim, rows = get_task(task), []
    with bough.load(MODEL) as lm:
        for name, strategy in switches().items():
            todo = trials([Arm(strategy)], [aim.problem("test", index) for index in range(problems)], [seed])
            for record in bough.run(evaluate_async(lm, todo)):
                kept = {key: record[key] for key in ("index", "seed", "correct", "tokens", "passes")}
                rows.append({"task": task, "arm": name, **kept})
    return rows


def prefix_part(task: str, seed: int, problems: int) -> list[Row]:
    """Which of k samples are right: plain ones, and k of each prefix, under one seed."""
    with bough.load(PLAIN_MODEL) as lm:
        return bough.run(_draw(lm, task, seed, problems))


async def _draw(lm: Backend, task: str, seed: int, problems: int) -> list[Row]:
    aim, k = get_task(task), len(lm.prefixes)
    gate = asyncio.Semaphore(_UNDER_WAY)

    async def one(index: int) -> Row:
        async with gate:
            problem = aim.problem("test", index)
            root = lm.branch(problem.prompt, seed=seed)
            roots = [root, *(root + prefix for prefix in lm.prefixes)]
            drawn = await asyncio.gather(*(below.sample(k, max_tokens=224) for below in roots))
            right = [[aim.check(problem, leaf.answer) for leaf in leaves] for leaves in drawn]
            return {"task": task, "index": index, "seed": seed, "plain": right[0], "prefixes": right[1:]}

    return await asyncio.gather(*map(one, range(problems)))


def coverage(rows: list[Row]) -> list[Row]:
    """For each task: pass@1 and pass@k of plain samples, of one below each prefix, and of k below the best prefix."""
    table = []
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        problems = [row["index"] for row in own]
        plain = np.array([row["plain"] for row in own])  # [trials, k]
        below = np.array([row["prefixes"] for row in own])  # [trials, prefix, k]
        best = int(below.mean((0, 2)).argmax())
        sets = {"plain": plain, "one below each prefix": below[:, :, 0], "all below the best": below[:, best]}
        for name, right in sets.items():
            covered = right.any(1).astype(np.float64)
            more = paired_bootstrap(problems, covered, plain.any(1))
            table.append(
                {
                    "task": task, "samples": name, "k": right.shape[1], "pass@1": round(float(right.mean()), 4),
                    **share(problems, covered),
                    "difference": f"{100 * more.estimate:+.1f} ({100 * more.low:+.1f}, {100 * more.high:+.1f})",
                }
            )  # fmt: skip
    return table


def main() -> None:
    """Run what is missing, print, and keep the tables."""
    parser = arguments(__doc__, "econ")
    parser.add_argument("--only", choices=("switch", "prefixes"), help="one half of the study")
    args: argparse.Namespace = parser.parse_args()
    halves = {"switch": (switch_part, lambda rows: against(rows, ALWAYS)), "prefixes": (prefix_part, coverage)}
    for half, (part, summary) in halves.items():
        if args.only not in (None, half):
            continue
        parts = {
            f"{half}-{task}-{seed}-{args.problems}": (task, seed, args.problems)
            for seed in range(args.seeds)
            for task in args.tasks
        }
        found = run_parts(part, parts, args.scratch)
        table = summary([row for rows in found.values() for row in rows])
        out = args.out.with_name(f"{args.out.name}-{half}")
        write(out, {"problems": args.problems, "seeds": args.seeds, "rows": table}, table)
        show(table)


if __name__ == "__main__":
    main()
