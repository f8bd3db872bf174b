"""What one greedy sample hides: its verdict beside the distribution that it stands for.

    python studies/samples.py               # the bank of samples, about an hour on 2 cores; once for all studies
    python studies/one_sample.py            # about 5 minutes on 2 cores

Per problem, the greedy answer's verdict, and the probability p that a sample is right, from the bank (64 samples
under each of 3 seeds). The first table has, by task: how often greedy decoding and a sample are right; of the
problems that greedy decoding gets right, the share that a sample fails with a probability above 20 % (fragile), and
how likely one of ten samples is wrong; of those it gets wrong, the share that some sample solves, that most samples
solve, and the mean of p; and the wrong answers that are the model's most frequent one (confidently wrong). The second
has the levels of each task, 100 problems each with 16 samples: accuracy of greedy decoding, of a sample, of the
majority, of at least one, and of all of them; where a curve falls most from one level to the next (its transition),
and by how much. Intervals are a bootstrap over problems. Results go to `studies/results/one_sample.{json,csv,svg}`.

Paper: Joshi et al. 2026, arXiv:2601.07239. Its paraphrases and safety prompts have no counterpart here.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

import numpy as np
from common import Row, arguments, bank, embedded, interval, joined, panels, show, write

import bough
from bough.core import Backend
from bough.search.vote import winner
from bough.tasks import Problem, Task, get_task
from bough.zoo.parts import run_parts

PER_LEVEL = 16  # samples
FRAGILE = 0.2
_RETRIES = 10
_MAX_TOKENS = bough.search.BestOfN().max_tokens
_UNDER_WAY = 16  # problems


async def _verdicts(lm: Backend, task: Task, problems: list[Problem], n: int) -> list[Row]:
    gate = asyncio.Semaphore(_UNDER_WAY)

    async def one(problem: Problem) -> Row:
        async with gate:
            prompt = lm.branch(problem.prompt)
            (greedy,) = await prompt.sample(temperature=0, stop=task.answer_stop, max_tokens=_MAX_TOKENS)
            found: Row = {"greedy": task.check(problem, greedy.completion)}
            if n:
                texts = (await prompt.sample(n, stop=task.answer_stop, max_tokens=_MAX_TOKENS)).completions
                right = [task.check(problem, text) for text in texts]
                won = winner([task.extract(text) for text in texts])
                found |= {"right": right, "majority": won is not None and right[won[0]]}
            return found

    return list(await asyncio.gather(*map(one, problems)))


def part(name: str, level: int | None, count: int, n: int) -> list[Row]:
    """One task's level: the greedy verdict, and those of n samples."""
    task = get_task(name)
    problems = [task.problem("test", index, level) for index in range(count)]
    with embedded() as (lm, _):
        return bough.run(_verdicts(lm, task, problems, n))


def hidden(task: str, greedy: np.ndarray, args: argparse.Namespace) -> Row:
    """What the greedy verdicts, bool ``[problems]``, say and do not say."""
    seeds = bank(task, "test", args.seeds, args.folder, args.problems)
    right = joined(seeds, "right")
    p = right.mean(axis=1)
    # The most frequent answer of a problem's samples under the first seed, and whether it is a right one.
    confident = np.array(
        [
            won is not None and not verdicts[won[0]] and won[1] > len(verdicts) / 2
            for row, verdicts in zip(seeds[0].answer, seeds[0].right, strict=True)
            for won in [winner([None if answer < 0 else str(answer) for answer in row])]
        ]
    )
    table: Row = {"task": task, "problems": len(p), "samples": right.shape[1]}
    statistics: dict[str, Any] = {
        "greedy": lambda g, p, c: g.mean(),
        "one sample": lambda g, p, c: p.mean(),
        "some sample": lambda g, p, c: (p > 0).mean(),
        "right, fragile": lambda g, p, c: (p[g] < 1 - FRAGILE).mean() if g.any() else np.nan,
        "right, one of 10 fails": lambda g, p, c: (1 - p[g] ** _RETRIES).mean() if g.any() else np.nan,
        "right, worst tenth's p": lambda g, p, c: np.quantile(p[g], 0.1) if g.any() else np.nan,
        "wrong, some sample solves": lambda g, p, c: (p[~g] > 0).mean() if (~g).any() else np.nan,
        "wrong, most samples solve": lambda g, p, c: (p[~g] > 0.5).mean() if (~g).any() else np.nan,
        "wrong, mean p": lambda g, p, c: p[~g].mean() if (~g).any() else np.nan,
        "most samples agree and err": lambda g, p, c: c.mean(),
    }
    for name, statistic in statistics.items():
        found = interval(statistic, greedy, p, confident, resamples=500)
        table |= {name: found["estimate"], f"{name}, low": found["low"], f"{name}, high": found["high"]}
    return table


def by_level(task: str, level: int, rows: list[Row]) -> Row:
    """One level under each way of looking at it."""
    right = np.array([row["right"] for row in rows])
    measures = {
        "greedy": np.array([row["greedy"] for row in rows], float), "one sample": right.mean(axis=1),
        "majority": np.array([row["majority"] for row in rows], float),
        "some sample": right.any(axis=1).astype(float), "every sample": right.all(axis=1).astype(float),
    }  # fmt: skip
    found: Row = {"task": task, "level": level, "problems": len(rows)}
    for name, values in measures.items():
        estimate = interval(np.mean, values, resamples=500)
        found |= {name: estimate["estimate"], f"{name}, low": estimate["low"], f"{name}, high": estimate["high"]}
    return found


MEASURES = ("greedy", "one sample", "majority", "some sample", "every sample")


def transitions(levels: list[Row]) -> list[Row]:
    """Where each task's curves fall most, and by how much."""
    found = []
    for task in dict.fromkeys(row["task"] for row in levels):
        mine = [row for row in levels if row["task"] == task]
        for name in MEASURES:
            falls = [before[name] - after[name] for before, after in zip(mine, mine[1:], strict=False)]
            at = int(np.argmax(falls))
            found.append(
                {
                    "task": task, "measure": name, "after level": mine[at]["level"], "fall": round(falls[at], 4),
                    "whole fall": round(mine[0][name] - mine[-1][name], 4),
                }
            )  # fmt: skip
    return found


def plot(levels: list[Row], args: argparse.Namespace) -> None:
    """Accuracy by level."""
    with panels(args.out, args.tasks, "accuracy", "level") as axes:
        for task, axis in axes.items():
            rows = [row for row in levels if row["task"] == task]
            at = [row["level"] for row in rows]
            for name in MEASURES:
                axis.plot(at, [row[name] for row in rows], marker="o", ms=3, label=name)
                bounds = [[row[f"{name}, {end}"] for row in rows] for end in ("low", "high")]
                axis.fill_between(at, *bounds, alpha=0.1)


def main() -> None:
    """Run, print, and keep the summary."""
    parser = arguments(__doc__, "one_sample", banked=True)
    parser.add_argument("--per-level", type=int, default=100, help="problems of each level")
    args = parser.parse_args()
    greedy = {f"{task}-greedy-{args.problems}": (task, None, args.problems, 0) for task in args.tasks}
    levels = {
        f"{task}-level-{level}-{args.per_level}": (task, level, args.per_level, PER_LEVEL)
        for task in args.tasks
        for level in get_task(task).levels
    }
    found = run_parts(part, {**greedy, **levels}, args.scratch)
    table = [
        hidden(task, np.array([row["greedy"] for row in found[name]]), args) for name, (task, *_) in greedy.items()
    ]
    curves = [by_level(task, level, found[name]) for name, (task, level, *_) in levels.items()]
    steps = transitions(curves)
    write(args.out, {"seeds": args.seeds, "hidden": table, "levels": curves, "transitions": steps}, curves)
    plot(curves, args)
    for row in table:
        print(row["task"], f"{row['problems']} problems, {row['samples']} samples each")
        for name in list(row)[3::3]:
            print(f"  {name:28} {row[name]:.3f} [{row[f'{name}, low']:.3f}, {row[f'{name}, high']:.3f}]")
    show([{name: value for name, value in row.items() if ", " not in name} for row in curves])
    show(steps)


if __name__ == "__main__":
    main()
