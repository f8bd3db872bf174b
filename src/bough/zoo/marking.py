"""What the reward model learns from: samples of bough/nano, labelled line by line by the tasks' judges."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bough.models import load_decoder
from bough.tasks import TASKS, Problem

from .parts import run_parts
from .sampling import sample_problems
from .tokenizer import BOS_ID

STEP_TAG = "\n"
SAMPLES = {1.0: 3, 1.3: 1}  # of each problem, by temperature
PROBLEMS = {"validation": 160, "train": 8000}  # per task
NEIGHBOURS = 0.1  # the share of training problems from the level below the default one, and from that above
FIRST = 10_000_000  # the first problem's index: the indices before it trained the language model
_CHUNK = 400


@dataclass(frozen=True)
class Marked:
    """A prompt with one completion: tokens, where its lines end, and whether it is right up to there.

    `count` identical completions of one problem are kept once. The first end is the prompt's own, where
    nothing is wrong yet.
    """

    problem: tuple[str, int]  # task and index
    ids: list[int]
    ends: list[int]
    labels: list[bool]
    count: int


def marked(tokenizer: Tokenizer, problems: Sequence[Problem], completions: Sequence[str]) -> list[Marked]:
    """The completions with their judge's labels, identical ones merged."""
    (newline,) = tokenizer.encode(STEP_TAG, add_special_tokens=False).ids
    found = []
    for (problem, completion), count in Counter(zip(problems, completions, strict=True)).items():
        text = problem.prompt + completion
        ids = [BOS_ID, *tokenizer.encode(text, add_special_tokens=False).ids]
        ends = [at for at, token in enumerate(ids) if token == newline]
        labels = [True, *TASKS[problem.task].step_labels(problem, completion)]
        assert len(ends) == len(labels)
        found.append(Marked((problem.task, problem.index), ids, ends, labels, count))
    return found


@dataclass(frozen=True)
class Chunk:
    """The problems that a process samples at a time, and keeps in one file."""

    split: str
    task: str
    start: int
    count: int

    def __str__(self) -> str:
        return f"{self.split}-{self.task}-{self.start:05}"

    def problems(self) -> list[Problem]:
        """The problems themselves, of levels around the default one in training."""
        task = TASKS[self.task]
        share = NEIGHBOURS if self.split == "train" else 0.0
        around = [level for level in task.levels if abs(level - task.default_level) <= 1]
        weights = [1 - 2 * share if level == task.default_level else share for level in around]
        levels = random.Random(f"{self.split}/{self.task}/{self.start}").choices(around, weights, k=self.count)
        return [task.problem(self.split, FIRST + self.start + i, level) for i, level in enumerate(levels)]


def chunks_of(problems: Mapping[str, int]) -> list[Chunk]:
    """All chunks of `problems[split]` problems of each task."""
    return [
        Chunk(split, task, start, min(_CHUNK, count - start))
        for split, count in problems.items()
        for start in range(0, count, _CHUNK)
        for task in TASKS
    ]


def marked_samples(
    policy: Path, tokenizer: Tokenizer, build: Path, problems: Mapping[str, int] = PROBLEMS
) -> dict[str, list[Marked]]:
    """Labelled samples, by split, of the policy saved in a folder, on `problems[split]` problems of each task.

    What is drawn is kept under build: a call that was interrupted goes on where it stopped.
    """
    chunks = chunks_of(problems)
    drawn = run_parts(_draw_chunk, {str(chunk): (policy, tokenizer.to_str(), chunk) for chunk in chunks}, build)
    found: dict[str, list[Marked]] = {split: [] for split in problems}
    for chunk in chunks:
        found[chunk.split] += [Marked(tuple(problem), *rest) for problem, *rest in drawn[str(chunk)]]
    return found


def _draw_chunk(policy: Path, tokenizer_json: str, chunk: Chunk) -> list[tuple[Any, ...]]:
    """The fields of each `Marked` of a chunk."""
    tokenizer, problems = Tokenizer.from_str(tokenizer_json), chunk.problems()
    decoder = load_decoder(policy)
    rows = []
    for seed, (temperature, n) in enumerate(SAMPLES.items()):
        completions = sample_problems(decoder, tokenizer, problems, n, temperature, seed)
        for problem, texts in zip(problems, completions, strict=True):
            rows += [astuple(row) for row in marked(tokenizer, [problem] * n, texts)]
    return rows
