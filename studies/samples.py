"""A bank of judged samples, which studies of votes, stopping rules and allocations draw from.

    python studies/samples.py                         # about an hour on 2 cores
    python studies/samples.py --tasks countdown --problems 50 --seeds 1

For every task, split and seed: whole solutions of each problem, drawn as best-of-N and self-consistency draw theirs
(the n-th child of the prompt under that seed), with what votes and stopping rules look at. One file for each under
``build/samples``; what is there is not drawn again. Delete them when a model has changed.
"""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

import bough
from bough.core import Backend, Branch, Reward, Run
from bough.rewards import ProcessReward
from bough.tasks import Problem, Task, get_task
from bough.zoo.parts import run_parts

SCRATCH = Path(__file__).parent.parent / "build" / "samples"
TASKS = ("arithmetic", "countdown", "stories", "logic")
N = 64
_TAIL = 16
_UNDER_WAY = 16  # problems


@dataclass(frozen=True)
class Samples:
    """The samples of some problems of one task under one seed; every array is ``[problems, n]``.

    Attributes:
        answer: int, which of the problem's different answers the sample has, in order of appearance; -1 if none.
        path: int, which of the problem's different solutions it is, in order of appearance.
        right: bool, whether every line of it is right.
        tokens: int, generated tokens.
        steps: int, lines.
        logprob: float, log-probability of the whole solution under the model.
        min_logprob: float, of its least likely token.
        tail_logprob: float, mean over its last 16 tokens.
        score: float, the process reward of the whole solution.
        key: uint64, the branch's key, which settles ties.
    """

    answer: np.ndarray
    path: np.ndarray
    right: np.ndarray
    tokens: np.ndarray
    steps: np.ndarray
    logprob: np.ndarray
    min_logprob: np.ndarray
    tail_logprob: np.ndarray
    score: np.ndarray
    key: np.ndarray


_TYPES = {
    "right": bool,
    "key": np.uint64,
    "answer": np.int64,
    "path": np.int64,
    "tokens": np.int64,
    "steps": np.int64,
}


def load_samples(task: str, split: str, seed: int, folder: Path = SCRATCH) -> Samples:
    """What ``python studies/samples.py`` has drawn."""
    with np.load(folder / f"{task}-{split}-{seed}.npz") as file:
        return Samples(**{field.name: file[field.name] for field in fields(Samples)})


def _row(task: Task, problem: Problem, leaves: list[Branch], scores: list[float]) -> dict[str, list[Any]]:
    answers: dict[str | None, int] = {None: -1}
    paths: dict[tuple[int, ...], int] = {}
    texts = [leaf.completion for leaf in leaves]
    logprobs = [leaf.logprobs for leaf in leaves]
    return {
        "answer": [answers.setdefault(task.extract(text), len(answers) - 1) for text in texts],
        "path": [paths.setdefault(leaf.appended, len(paths)) for leaf in leaves],
        "right": [task.check(problem, text) for text in texts],
        "tokens": [len(leaf.appended) for leaf in leaves],
        "steps": [text.count("\n") for text in texts],
        "logprob": [float(row.sum(dtype=np.float64)) for row in logprobs],
        "min_logprob": [float(row.min()) for row in logprobs],
        "tail_logprob": [float(row[-_TAIL:].mean()) for row in logprobs],
        "score": list(scores),
        "key": [leaf.key for leaf in leaves],
    }


async def _draw(
    lm: Backend, reward: Reward, task: Task, problems: list[Problem], seed: int
) -> dict[str, list[list[Any]]]:
    gate = asyncio.Semaphore(_UNDER_WAY)

    async def one(problem: Problem) -> dict[str, list[Any]]:
        async with gate:
            run = Run(task=task, reward=reward)
            prompt = lm.branch(problem.prompt, seed=seed).with_run(run)
            leaves = list(await prompt.sample(N, stop=task.answer_stop, max_tokens=bough.search.BestOfN().max_tokens))
            return _row(task, problem, leaves, await run.reward(leaves))

    rows = await asyncio.gather(*map(one, problems))
    return {name: [row[name] for row in rows] for name in rows[0]}


def part(task: str, split: str, seed: int, count: int) -> dict[str, list[list[Any]]]:
    """One task, split and seed."""
    reward = bough.load_reward("bough/nano-prm")
    assert isinstance(reward, ProcessReward)
    aim = get_task(task)
    with bough.load("bough/nano") as lm, reward.backend:
        return bough.run(_draw(lm, reward, aim, [aim.problem(split, index) for index in range(count)], seed))


def main() -> None:
    """Draw what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--problems", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3, help="of the test split; validation has the first alone")
    parser.add_argument("--folder", type=Path, default=SCRATCH)
    args = parser.parse_args()
    kinds = [("validation", 0), *(("test", seed) for seed in range(args.seeds))]
    names = {
        f"{task}-{split}-{seed}": (task, split, seed, args.problems) for split, seed in kinds for task in args.tasks
    }
    missing = {name: what for name, what in names.items() if not (args.folder / f"{name}.npz").exists()}
    for name, arrays in run_parts(part, missing, args.folder / "parts").items():
        typed = {key: np.array(values, _TYPES.get(key, np.float64)) for key, values in arrays.items()}
        np.savez_compressed(args.folder / f"{name}.npz", **typed)


if __name__ == "__main__":
    main()
