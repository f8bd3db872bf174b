"""Self-evaluation: what a model gains from judging its own solutions, and with how few of them.

    python studies/self_evaluation.py
    python studies/self_evaluation.py --split validation --seeds 1 --thresholds 0.9 0.92 0.94 0.96

bough/nano-eval writes and judges; no other model is asked. Against 16 samples, the best by its own judgement:
adaptive inference-time compute with whole solutions only, and giving up unfinished ones; and, of 16 samples judged
after a few tokens, only the most promising finished (paired: the same samples). The gain is from one sample to the
best of 16; where adaptive compute's share of it is above what its first, greedy, solution reaches, further ones were
well spent. The default threshold was chosen on validation problems.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from common import Row, arguments, interval, show, write

import bough
from bough.api import prepare, reward_for
from bough.core import Backend, Event, Reward, Run, Strategy
from bough.core.events import Sampled
from bough.search import AdaptiveITC, BestOfN
from bough.tasks import Problem, get_task
from bough.zoo.parts import run_parts

MODEL = "bough/nano-eval"
FIXED = 16
EARLY = {"arithmetic": 32, "countdown": 16, "stories": 16, "logic": 8}  # tokens, about a third of a solution
KEPT = (8, 4)  # of the fixed samples, after so many tokens
UNDER_WAY = 32  # problems


def settings(thresholds: list[float]) -> dict[str, AdaptiveITC]:
    """What is compared with the fixed samples, by name."""
    found = {"greedy": AdaptiveITC(n=1, prune=1.0)}
    for threshold in thresholds:
        own = AdaptiveITC(threshold=threshold)
        found[f"adaptive {threshold:g}"] = replace(own, prune=1.0)
        found[f"adaptive {threshold:g}, giving up halfway"] = own
    return found


async def fixed(lm: Backend, reward: Reward, problem: Problem, seed: int) -> Row:
    """16 samples, judged after a few tokens, and in the end."""
    task, longest = get_task(problem.task), BestOfN().max_tokens
    run = Run(task=task, reward=reward)
    prompt = lm.branch(problem.prompt, seed=seed).with_run(run)
    early = EARLY[problem.task]
    begun = await prompt.sample(FIXED, stop=task.answer_stop, max_tokens=early)
    hopes = await run.reward(begun)
    unfinished = [i for i, branch in enumerate(begun) if not run.is_solution(branch)]
    leaves = list(begun)
    ends = await asyncio.gather(
        *(begun[i].sample(1, stop=task.answer_stop, max_tokens=longest - early) for i in unfinished)
    )
    for i, drawn in zip(unfinished, ends, strict=True):
        leaves[i] = drawn[0]
    scores = await run.reward(leaves)
    texts = [leaf.completion for leaf in leaves]
    return {
        "expected": (await run.reward([prompt]))[0],
        "right": [task.check(problem, text) for text in texts],
        "score": [s if task.extract(text) is not None else -1.0 for s, text in zip(scores, texts, strict=True)],
        "hope": hopes,
        "tokens": [leaf.length - prompt.length for leaf in leaves],
        "early": [branch.length - prompt.length for branch in begun],
    }


async def one(lm: Backend, reward: Reward, strategy: Strategy, problem: Problem, seed: int) -> Row:
    """One run of a strategy."""
    begun = 0

    def count(event: Event) -> None:
        nonlocal begun
        begun += isinstance(event, Sampled) and event.parent == ready.root.id

    ready = prepare(lm, problem, strategy=strategy, reward=reward, seed=seed, on_event=count, trace=False)
    answer = await ready.execute()
    ledger = answer.ledger
    return {
        "right": get_task(problem.task).check(problem, answer.text),
        "samples": begun,
        "tokens": ledger.tokens,
        "calls": ledger.reward_calls,
        "judged": ledger.reward_tokens,
    }


async def draw(lm: Backend, task: str, seed: int, args: argparse.Namespace) -> dict[str, list[Row]]:
    """Everything on all problems of a task."""
    problems = [get_task(task).problem(args.split, index) for index in range(args.problems)]
    chosen = settings(args.thresholds)
    reward = reward_for(lm, AdaptiveITC(), None)
    assert reward is not None
    gate = asyncio.Semaphore(UNDER_WAY)

    async def solve(name: str, problem: Problem) -> Row:
        async with gate:
            if name == "fixed":
                return await fixed(lm, reward, problem, seed)
            return await one(lm, reward, chosen[name], problem, seed)

    return {
        name: list(await asyncio.gather(*(solve(name, problem) for problem in problems)))
        for name in ("fixed", *chosen)
    }


def part(task: str, seed: int, args: argparse.Namespace) -> dict[str, list[Row]]:
    """One task under one seed."""
    with bough.load(MODEL) as lm:
        return bough.run(draw(lm, task, seed, args))


def best(score: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Whether the sample with the highest score is right, ``[problems, seeds]``."""
    chosen: np.ndarray = np.take_along_axis(right, score.argmax(-1)[..., None], -1)[..., 0]
    return chosen


def compared(found: Mapping[str, list[list[Row]]], tasks: list[str]) -> list[Row]:
    """The table of some tasks; the rows of ``found`` are per seed, one task's problems after another's."""

    def array(name: str, field: str) -> np.ndarray:  # [problems, seeds, ...]
        return np.array([[row[field] for row in rows] for rows in found[name]], float).swapaxes(0, 1)

    right, score = array("fixed", "right"), array("fixed", "score")
    tokens, hope, early = (array("fixed", name) for name in ("tokens", "hope", "early"))
    every = best(score, right)
    single = right.mean(-1)
    sides = {"1 sample": (single, np.ones(single.shape), tokens.mean(-1), 0.0)}
    for n in (2, 4, 8, FIXED):
        blocks = np.stack([best(score[..., k : k + n], right[..., k : k + n]) for k in range(0, FIXED, n)], -1)
        sides[f"best of {n}"] = blocks.mean(-1), np.full(single.shape, n), n * tokens.mean(-1), n
    for kept in KEPT:
        promising = np.argsort(np.argsort(-hope, -1, kind="stable"), -1) < kept
        spent = np.where(promising, tokens, early).sum(-1)
        chosen = best(np.where(promising, score, -2), right)
        sides[f"{kept} of {FIXED} finished"] = chosen, np.full(single.shape, FIXED), spent, FIXED + kept
    for name in found:
        if name != "fixed":
            correct, samples, spent, calls = (array(name, field) for field in ("right", "samples", "tokens", "calls"))
            sides[name] = correct, samples, spent, float(calls.mean())

    def said(statistic: Any, *arrays: np.ndarray) -> str:
        one = interval(statistic, *arrays)
        return f"{one['estimate']:.3f} ({one['low']:.3f}, {one['high']:.3f})"

    table = []
    for name, (correct, samples, spent, asked) in sides.items():
        table.append(
            {
                "task": tasks[0] if len(tasks) == 1 else "all",
                "setting": name,
                "accuracy": round(float(correct.mean()), 4),
                f"less best of {FIXED}": said(lambda a, b: float((a - b).mean()), correct, every),
                "share of the gain": said(
                    lambda a, b, c: float((a - c).mean() / (b - c).mean()), correct, every, single
                ),
                "samples": round(float(samples.mean()), 2),
                "tokens, share": said(lambda a, b: float(a.sum() / b.sum()), spent, tokens.sum(-1)),
                "reward calls": round(asked, 2),
            }
        )
    return table


def main() -> None:
    """Run, print, and keep the table."""
    parser = arguments(__doc__, "self_evaluation")
    parser.add_argument("--split", default="test", choices=("test", "validation"))
    parser.add_argument("--thresholds", type=float, nargs="+", default=[AdaptiveITC().threshold])
    args = parser.parse_args()
    label = "-".join(map(str, args.thresholds))
    parts: dict[str, tuple[Any, ...]] = {
        f"{task}-{args.split}-{seed}-{args.problems}-{label}": (task, seed, args)
        for seed in range(args.seeds)
        for task in args.tasks
    }
    found = run_parts(part, parts, args.scratch)
    table = []
    for tasks in [*([task] for task in args.tasks), args.tasks]:
        joined = {
            name: [
                [row for task in tasks for row in found[f"{task}-{args.split}-{seed}-{args.problems}-{label}"][name]]
                for seed in range(args.seeds)
            ]
            for name in ("fixed", *settings(args.thresholds))
        }
        table += compared(joined, tasks)
    write(args.out, {"problems": args.problems, "seeds": args.seeds, "split": args.split, "rows": table}, table)
    show(table)


if __name__ == "__main__":
    main()
