"""Training documents: endless fresh problems of the train split, in batches of similar length.

A document is `<bos> prompt solution <eos>`; the loss is on the solution and `<eos>` only.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from bough.tasks import TASKS

from .tokenizer import BOS_ID, EOS_ID, PAD_ID


@dataclass(frozen=True)
class Mix:
    """How documents are drawn until a batch is reached: weights of the tasks, and of their levels from 1 on."""

    until: float
    tasks: dict[str, int]
    levels: tuple[int, ...]
    longer: tuple[int, ...] = (0, 0, 0)  # levels 7 to 9, which only arithmetic has


# First short problems, from which looking things up and reckoning are learnt fastest; then all levels; at last the
# longest chains as well, so that arithmetic too has a level that is not mastered.
MIXES = (
    Mix(500, {"arithmetic": 2, "countdown": 3, "stories": 4, "logic": 4}, (6, 5, 3, 1, 0, 0)),
    Mix(2300, {"arithmetic": 3, "countdown": 4, "stories": 4, "logic": 4}, (2, 4, 5, 4, 2, 1)),
    Mix(float("inf"), {"arithmetic": 3, "countdown": 4, "stories": 4, "logic": 4}, (2, 4, 5, 4, 2, 1), (6, 8, 6)),
)
BUCKETS = (48, 64, 96, 128, 160, 192, 256)  # padded lengths


@dataclass(frozen=True)
class Batch:
    """Documents padded to one length.

    tokens [B, L] int64; targets [B, L] int64, the next token where it counts and -100 elsewhere; weights
    [B, L] float32 of the targets in the loss, the same in sum for every document.
    """

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray

    @property
    def documents(self) -> int:
        return len(self.tokens)


def tokenizer_corpus(per_level: int) -> Iterator[str]:
    """Text to train the tokenizer on: the first problems of every task and of levels 1 to 6."""
    for task in TASKS.values():
        for level in task.levels[:6]:
            for index in range(per_level):
                problem = task.problem("train", index, level)
                yield problem.prompt + problem.solution


def batches(tokenizer: Tokenizer, tokens_per_batch: int, seed: int, skip: int = 0) -> Iterator[Batch]:
    """Endless batches of about tokens_per_batch padded tokens; `skip` starts after that many batches.

    Each bucket length has its own queue, and a batch is given out when one is full.
    """
    rng = random.Random(f"zoo/{seed}")
    queues: dict[int, list[tuple[list[int], int]]] = {length: [] for length in BUCKETS}
    indices = dict.fromkeys(((task, level) for task, t in TASKS.items() for level in t.levels), 0)
    made = 0
    while True:
        mix = next(mix for mix in MIXES if made < mix.until)
        prompts, solutions = [], []
        for task in rng.choices(list(mix.tasks), list(mix.tasks.values()), k=256):
            levels = TASKS[task].levels
            level = rng.choices(levels, (*mix.levels, *mix.longer)[: len(levels)])[0]
            problem = TASKS[task].problem("train", indices[task, level], level)
            indices[task, level] += 1
            prompts.append(problem.prompt)
            solutions.append(problem.solution)
        encoded = zip(
            tokenizer.encode_batch_fast(prompts, add_special_tokens=False),
            tokenizer.encode_batch_fast(solutions, add_special_tokens=False),
            strict=True,
        )
        for prompt, solution in encoded:
            ids = [BOS_ID, *prompt.ids, *solution.ids, EOS_ID]
            length = next((b for b in BUCKETS if len(ids) <= b), None)
            if length is None:
                continue
            queue = queues[length]
            queue.append((ids, 1 + len(prompt.ids)))
            if len(queue) == tokens_per_batch // length:
                if made >= skip:
                    yield _pad(queue, length)
                made += 1
                queues[length] = []


def _pad(documents: list[tuple[list[int], int]], length: int) -> Batch:
    tokens = np.full((len(documents), length), PAD_ID, np.int64)
    targets = np.full((len(documents), length), -100, np.int64)
    for row, (ids, start) in enumerate(documents):
        tokens[row, : len(ids)] = ids
        targets[row, start - 1 : len(ids) - 1] = ids[start:]
    weights = (targets >= 0).astype(np.float32)
    weights /= weights.sum(1, keepdims=True)
    return Batch(tokens, targets, weights)
