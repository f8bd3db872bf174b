"""A bank of judged samples, which studies of votes, stopping rules and allocations draw from.

    python studies/samples.py                         # about an hour on 2 cores
    python studies/samples.py --tasks countdown --problems 50 --seeds 1
    python studies/samples.py --unjudged --validation-seeds 3             # a quarter of an hour; into build/answers

For every task, split and seed: whole solutions of each problem, drawn as best-of-N and self-consistency draw theirs
(the n-th child of the prompt under that seed), with what votes and stopping rules look at. One file for each under
``build/samples``; what is there is not drawn again. Delete them when a model has changed. Studies that only count
answers do without the reward's scores, which take most of the time.

Answers and solutions are kept as numbers that are the same under every seed, so that the samples of several seeds
are one pool.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, fields
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

import bough
from bough.core import Backend, Branch, Reward, Run
from bough.rewards import ProcessReward
from bough.tasks import Problem, Task, get_task
from bough.zoo.parts import run_parts

SCRATCH = Path(__file__).parent.parent / "build" / "samples"
ANSWERS = SCRATCH.with_name("answers")
TASKS = ("arithmetic", "countdown", "stories", "logic")
N = 64
_TAIL = 16
_UNDER_WAY = 16  # problems


@dataclass(frozen=True)
class Samples:
    """The samples of some problems of one task under one seed; every array is ``[problems, n]``.

    Attributes:
        answer: int, the number of the sample's answer, the same wherever the answer is; -1 if it has none.
        path: int, the number of the whole solution, the same wherever that is.
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
    """What ``python studies/samples.py`` has drawn.

    Raises:
        SystemExit: it was drawn without the reward's scores.
    """
    arrays = load_drawn(task, split, seed, folder)
    if "score" not in arrays:
        raise SystemExit(f"{folder} was drawn with --unjudged and has no scores; run python studies/samples.py")
    return Samples(**arrays)


def load_answers(task: str, split: str, seeds: int, folder: Path = ANSWERS) -> np.ndarray:
    """The answers of all seeds' samples, judged or not: int ``[problems, seeds * n]``, -1 for none."""
    return np.concatenate([load_drawn(task, split, seed, folder)["answer"] for seed in range(seeds)], axis=1)


def load_drawn(task: str, split: str, seed: int, folder: Path = ANSWERS) -> dict[str, np.ndarray]:
    """What was drawn, judged or not, by the names in `Samples`; ``score`` is there if it was judged.

    Raises:
        SystemExit: it has not been drawn, or numbers that mean something else.
    """
    path = folder / f"{task}-{split}-{seed}.npz"
    if not path.exists():
        raise SystemExit(f"there is no {path}; run python studies/samples.py (with --unjudged for build/answers)")
    with np.load(path) as file:
        arrays = {field.name: file[field.name] for field in fields(Samples) if field.name in file}
    if arrays["answer"].max() < N:
        raise SystemExit(f"{path} numbers answers in order of appearance, as this no longer does; draw it again")
    return arrays


def number(content: bytes) -> int:
    """A number for some bytes, in every process the same: 63 bits, at least 0."""
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little") >> 1


def _row(task: Task, problem: Problem, leaves: Sequence[Branch], scores: list[float] | None) -> dict[str, list[Any]]:
    texts = [leaf.completion for leaf in leaves]
    answers = [task.extract(text) for text in texts]
    logprobs = [leaf.logprobs for leaf in leaves]
    return {
        "answer": [-1 if answer is None else number(answer.encode()) for answer in answers],
        "path": [number(np.array(leaf.appended, "<i4").tobytes()) for leaf in leaves],
        "right": [task.check(problem, text) for text in texts],
        "tokens": [len(leaf.appended) for leaf in leaves],
        "steps": [text.count("\n") for text in texts],
        "logprob": [float(row.sum(dtype=np.float64)) for row in logprobs],
        "min_logprob": [float(row.min()) for row in logprobs],
        "tail_logprob": [float(row[-_TAIL:].mean()) for row in logprobs],
        "key": [leaf.key for leaf in leaves],
        **({} if scores is None else {"score": scores}),
    }


async def _draw(
    lm: Backend, reward: Reward | None, task: Task, problems: list[Problem], seed: int
) -> dict[str, list[list[Any]]]:
    gate = asyncio.Semaphore(_UNDER_WAY)

    async def one(problem: Problem) -> dict[str, list[Any]]:
        async with gate:
            run = Run(task=task, reward=reward)
            prompt = lm.branch(problem.prompt, seed=seed).with_run(run)
            leaves = await prompt.sample(N, stop=task.answer_stop, max_tokens=bough.search.BestOfN().max_tokens)
            return _row(task, problem, leaves, None if reward is None else list(await run.reward(leaves)))

    rows = await asyncio.gather(*map(one, problems))
    return {name: [row[name] for row in rows] for name in rows[0]}


def part(task: str, split: str, seed: int, count: int, judged: bool) -> dict[str, list[list[Any]]]:
    """One task, split and seed."""
    aim = get_task(task)
    problems = [aim.problem(split, index) for index in range(count)]
    with bough.load("bough/nano") as lm:
        if not judged:
            return bough.run(_draw(lm, None, aim, problems, seed))
        reward = bough.load_reward("bough/nano-prm")
        assert isinstance(reward, ProcessReward)
        with reward.backend:
            return bough.run(_draw(lm, reward, aim, problems, seed))


def main() -> None:
    """Draw what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--problems", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3, help="of the test split")
    parser.add_argument("--validation-seeds", type=int, default=1, help="of the validation split")
    parser.add_argument("--unjudged", action="store_true", help="without the reward's scores")
    parser.add_argument("--folder", type=Path, help="where to keep them: build/samples, or build/answers if unjudged")
    args = parser.parse_args()
    folder = args.folder or (ANSWERS if args.unjudged else SCRATCH)
    kinds = [
        *(("validation", seed) for seed in range(args.validation_seeds)),
        *(("test", seed) for seed in range(args.seeds)),
    ]
    names = {
        f"{task}-{split}-{seed}": (task, split, seed, args.problems, not args.unjudged)
        for split, seed in kinds
        for task in args.tasks
    }
    missing = {name: what for name, what in names.items() if not (folder / f"{name}.npz").exists()}
    for name, arrays in run_parts(part, missing, folder / "parts").items():
        typed = {key: np.array(values, _TYPES.get(key, np.float64)) for key, values in arrays.items()}
        np.savez_compressed(folder / f"{name}.npz", **typed)


if __name__ == "__main__":
    main()
