"""The tricks that are rarely reported: temperature, top-p and the kind of reward, for every method.

    python studies/tricks.py                              # about 20 minutes on 2 cores
    python studies/tricks.py --problems 10 --seeds 1      # a quick look

Best-of-16, the majority of 16, the reward-weighted vote of 16, beam search, A* and the particle filter, under four
temperatures with and without a nucleus of 0.9, all with the process reward; and with the other rewards at temperature
1: the process reward read as the least or the product of the steps' scores instead of the last one's, the likelihood
(geometric mean of the tokens' probabilities), and the truth. On validation problems, because this is where settings
are chosen. Each setting is compared with its method's default (temperature 1, no nucleus, the last step's score) on
the same problems and seeds, with a bootstrap over problems; the intervals are not corrected for how many there are.

Finished parts are kept under `build/tricks`, and a run that was stopped goes on from there. Results go to
`studies/results/tricks.{json,csv,svg}`.

Paper: Liu et al. 2025, arXiv:2502.07191. Its prompts have no counterpart here: these models read problems only.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import defaultdict
from dataclasses import replace
from typing import Any, get_args

import numpy as np
from common import Row, arguments, embedded, panels, share, show, write

import bough
from bough.api import prepare
from bough.bench.stats import paired_bootstrap
from bough.core import Backend, Branch, Reward, Run
from bough.rewards import ProcessReward, Verifier
from bough.rewards.process import Aggregate
from bough.rewards.verifier import Oracle
from bough.search import AStar, BeamSearch, BestOfN, ParticleFilter
from bough.search.vote import winner
from bough.tasks import Problem, Task, get_task
from bough.zoo.parts import run_parts

TEMPERATURES = (0.4, 0.7, 1.0, 1.3)
NUCLEI = (0.9, 1.0)
DEFAULT = ("last", 1.0, 1.0)
N = 16
SEARCHES = {"beam 4 x 4": BeamSearch(), "A*": AStar(), f"particle filter {N}": ParticleFilter(n=N)}
REWARDS = (*get_args(Aggregate), "likelihood", "truth")
_MAX_TOKENS = BestOfN().max_tokens
_UNDER_WAY = 32  # problems


def likelihood(branch: Branch) -> float:
    """The geometric mean of the drawn tokens' probabilities."""
    drawn = branch.length - branch.root.length
    return float(np.exp(branch.logprob / drawn)) if drawn else 1.0


def rewards(judge: ProcessReward, task: Task, problem: Problem) -> dict[str, Reward]:
    """Every kind of reward for a problem, by name."""
    read: dict[str, Reward] = {
        how: type(judge)(judge.backend, judge.format, aggregate=how) for how in get_args(Aggregate)
    }
    return {**read, "likelihood": Verifier(likelihood, on="branch"), "truth": Oracle(task, problem)}


async def _whole(
    lm: Backend, judges: dict[str, Reward], task: Task, problem: Problem, seed: int, options: dict[str, Any]
) -> list[Row]:
    """Best-of-N and the votes, by every reward, from one set of samples."""
    run = Run(task=task)
    prompt = lm.branch(problem.prompt, seed=seed).with_run(run)
    leaves = await prompt.sample(N, stop=task.answer_stop, max_tokens=_MAX_TOKENS, **options)
    answers = [task.extract(leaf.completion) for leaf in leaves]
    right = [task.check(problem, leaf.completion) for leaf in leaves]
    tokens = run.ledger.tokens

    def vote(name: str, reward: str, weights: list[float] | None) -> Row:
        won = winner(answers, weights)
        return {"method": name, "reward": reward, "right": right[0 if won is None else won[0]], "tokens": tokens}

    rows = [vote(f"majority of {N}", "last", None)]  # it uses none; its default stands with the others'
    for name, judge in judges.items():
        scores = list(await judge(leaves, run))
        best = max(range(N), key=lambda i, s=scores: (answers[i] is not None, s[i], -leaves[i].key))
        rows.append({"method": f"best-of-{N}", "reward": name, "right": right[best], "tokens": tokens})
        rows.append(vote(f"weighted vote of {N}", name, scores))
    return rows


async def _problem(
    lm: Backend, judge: ProcessReward, task: Task, problem: Problem, seed: int, options: dict[str, Any]
) -> list[Row]:
    default = (options["temperature"], options["top_p"]) == DEFAULT[1:]
    judges = rewards(judge, task, problem)
    used = judges if default else {"last": judges["last"]}
    rows = await _whole(lm, used, task, problem, seed, options)
    for name, search in SEARCHES.items():
        for reward, by in used.items():
            answer = await prepare(
                lm, problem, strategy=replace(search, **options), reward=by, seed=seed, trace=False
            ).execute()
            right = task.check(problem, answer.text)
            rows.append({"method": name, "reward": reward, "right": right, "tokens": answer.ledger.tokens})
    return rows


def part(name: str, seed: int, count: int, temperature: float, top_p: float) -> list[Row]:
    """One task under one seed and one sampling distribution."""
    task = get_task(name)
    options = {"temperature": temperature, "top_p": top_p}

    async def run(lm: Backend, judge: ProcessReward) -> list[Row]:
        gate = asyncio.Semaphore(_UNDER_WAY)

        async def one(index: int) -> list[Row]:
            async with gate:
                rows = await _problem(lm, judge, task, task.problem("validation", index), seed, options)
                return [{"task": name, "index": index, "seed": seed, **row, **options} for row in rows]

        return [row for rows in await asyncio.gather(*map(one, range(count))) for row in rows]

    with embedded() as (lm, judge):
        return bough.run(run(lm, judge))


def summarise(rows: list[Row]) -> list[Row]:
    """One row per task, method and setting, each beside its method's default."""
    groups: dict[tuple[Any, ...], dict[tuple[int, int], Row]] = defaultdict(dict)
    for row in rows:
        setting = (row["task"], row["method"], row["reward"], row["temperature"], row["top_p"])
        groups[setting][row["index"], row["seed"]] = row
    table = []
    for (task, method, *setting), mine in groups.items():
        reward, temperature, top_p = setting
        usual = groups[(task, method, *DEFAULT)]
        problems = [index for index, _ in mine]
        right = [float(row["right"]) for row in mine.values()]
        gain = paired_bootstrap(problems, right, [float(usual[trial]["right"]) for trial in mine], resamples=2_000)
        table.append(
            {
                "task": task, "method": method, "reward": reward, "temperature": temperature, "top_p": top_p,
                **share(problems, right),
                "tokens": round(float(np.mean([row["tokens"] for row in mine.values()])), 1),
                "less default": round(gain.estimate, 4), "gain_low": round(gain.low, 4),
                "gain_high": round(gain.high, 4),
            }
        )  # fmt: skip
    order = {name: place for place, name in enumerate(REWARDS)}
    table.sort(key=lambda row: (row["task"], row["method"], order[row["reward"]], row["temperature"], row["top_p"]))
    return table


def plot(table: list[Row], args: argparse.Namespace) -> None:
    """Accuracy against temperature, with the nucleus dashed."""
    with panels(args.out, args.tasks, "accuracy", "temperature") as axes:
        for task, axis in axes.items():
            mine = [row for row in table if row["task"] == task and row["reward"] == "last"]
            for number, method in enumerate(dict.fromkeys(row["method"] for row in mine)):
                for top_p in NUCLEI:
                    rows = [row for row in mine if row["method"] == method and row["top_p"] == top_p]
                    axis.plot(
                        [row["temperature"] for row in rows], [row["accuracy"] for row in rows], marker="o", ms=3,
                        color=f"C{number}", ls="-" if top_p == 1 else "--", label=method if top_p == 1 else None,
                    )  # fmt: skip


def main() -> None:
    """Run, print, and keep the summary."""
    args = arguments(__doc__, "tricks", ["arithmetic", "countdown", "stories"], problems=100, seeds=2).parse_args()
    parts = {
        f"{task}-{seed}-{args.problems}-{temperature}-{top_p}": (task, seed, args.problems, temperature, top_p)
        for task in args.tasks
        for seed in range(args.seeds)
        for temperature in TEMPERATURES
        for top_p in NUCLEI
    }
    found = run_parts(part, parts, args.scratch)
    table = summarise([row for rows in found.values() for row in rows])
    write(args.out, {"problems": args.problems, "seeds": args.seeds, "rows": table}, table)
    plot(table, args)
    show(table)


if __name__ == "__main__":
    main()
