"""bough/nano-prm: a process reward model for bough/nano, trained on what bough/nano writes.

The whole of bough/nano is trained further, as a causal model whose `+` and `-` logits at the end of a line
are the score of the solution up to there (the read-out of Math-Shepherd, arXiv:2312.08935, with the newline
as the step tag). A head on frozen hidden states is not enough: it learns how far along a solution is rather
than whether it is right, which an AUC over all steps does not show and a search does.

Labels come from the tasks' judges, line by line, on samples for problems of the train split.
"""

from __future__ import annotations

import copy
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from bough.models import Decoder
from bough.tasks import TASKS, Problem

from .data import BUCKETS
from .sampling import sample_problems
from .tokenizer import BOS_ID, PAD_ID
from .training import Recipe, fit, hidden_states, in_bf16, logits_of

STEP_TAG, GOOD, BAD = "\n", "+", "-"
SAMPLES = {1.0: 6, 0.7: 1, 1.3: 1}  # of each problem, by temperature
PROBLEMS = 600  # per task
NEIGHBOURS = 0.2  # the share of problems from the level below the default one, and from that above
VALIDATION = 30  # problems per task
RECIPE = Recipe(
    hidden=256,
    layers=6,
    heads=8,
    kv_heads=4,
    ffn=768,
    steps=880,
    rate=((29, 1.0), (100, 1.0), (450, 0.0), (470, 0.8)),
    muon_lr=1.5e-3,
    adam_lr=1e-3,
)


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


def draw(decoder: Decoder, tokenizer: Tokenizer, split: str, per_task: int, neighbours: float) -> list[Marked]:
    """Labelled samples of the decoder on problems around the default levels."""
    rng = random.Random(f"prm/{split}")
    found: list[Marked] = []
    for task in TASKS.values():
        around = [level for level in task.levels if abs(level - task.default_level) <= 1]
        weights = [1 - 2 * neighbours if level == task.default_level else neighbours for level in around]
        levels = rng.choices(around, weights, k=per_task)
        # Far from the first indices, which trained the language model.
        problems = [task.problem(split, 10_000_000 + index, level) for index, level in enumerate(levels)]
        drawn = [
            sample_problems(decoder, tokenizer, problems, count, temperature, seed)
            for seed, (temperature, count) in enumerate(SAMPLES.items())
        ]
        completions = [[text for own in parts for text in own] for parts in zip(*drawn, strict=True)]
        print(f"{split}: {sum(map(len, completions))} samples of {task.name}", flush=True)
        for problem, texts in zip(problems, completions, strict=True):
            found += marked(tokenizer, [problem] * len(texts), texts)
    return found


@dataclass(frozen=True)
class Batch:
    """tokens [B, L]; at [N] flat places of line ends, with labels [N] and weights [N]."""

    tokens: np.ndarray
    at: np.ndarray
    labels: np.ndarray
    weights: np.ndarray


def batches(samples: Sequence[Marked], tokens_per_batch: int, seed: int) -> Iterator[Batch]:
    """Epoch after epoch, shuffled; samples of like length share a batch."""
    rng = random.Random(f"prm/{seed}")
    queues: dict[int, list[Marked]] = {length: [] for length in BUCKETS}
    while True:
        for sample in rng.sample(samples, len(samples)):
            length = next((length for length in BUCKETS if len(sample.ids) <= length), None)
            if length is None:
                continue
            queue = queues[length]
            queue.append(sample)
            if len(queue) == tokens_per_batch // length:
                yield pad(queue, length)
                queues[length] = []


def pad(samples: Sequence[Marked], length: int) -> Batch:
    """The samples as one rectangle."""
    tokens = np.full((len(samples), length), PAD_ID, np.int64)
    at, labels, weights = [], [], []
    for row, sample in enumerate(samples):
        tokens[row, : len(sample.ids)] = sample.ids
        at += [row * length + end for end in sample.ends]
        labels += sample.labels
        weights += [sample.count] * len(sample.ends)
    return Batch(tokens, np.array(at), np.array(labels, np.float32), np.array(weights, np.float32))


def margins(decoder: Decoder, batch: Batch, tags: tuple[int, int]) -> Tensor:
    """The logit of a line being right, [N]: `+` less `-`."""
    logits = logits_of(decoder, hidden_states(decoder, batch.tokens)[torch.from_numpy(batch.at)])
    return logits[:, tags[0]] - logits[:, tags[1]]


@torch.inference_mode()
def scores(decoder: Decoder, samples: Sequence[Marked], tags: tuple[int, int]) -> list[list[float]]:
    """The reward of each sample at each of its line ends."""
    found: list[list[float]] = [[] for _ in samples]
    order = sorted(range(len(samples)), key=lambda i: len(samples[i].ids))
    for start in range(0, len(order), 64):
        rows = order[start : start + 64]
        batch = pad([samples[i] for i in rows], len(samples[rows[-1]].ids))
        values = margins(decoder, batch, tags).sigmoid().tolist()
        for i in rows:
            found[i], values = values[: len(samples[i].ends)], values[len(samples[i].ends) :]
    return found


def auc(good: np.ndarray, bad: np.ndarray) -> float:
    """The probability that a good one scores above a bad one, ties counting half."""
    return pairs_won(good, bad) / (len(good) * len(bad)) if len(good) and len(bad) else float("nan")


def pairs_won(good: np.ndarray, bad: np.ndarray) -> float:
    """How many (good, bad) pairs have the good one above, ties counting half."""
    ordered = np.sort(bad)
    below = np.searchsorted(ordered, good, "left").sum()
    return float(below + np.searchsorted(ordered, good, "right").sum()) / 2


def reliability(samples: Sequence[Marked], rewards: Sequence[Sequence[float]]) -> dict[str, dict[str, float]]:
    """For each task, the AUC of a step's reward against its label, prompts' own ends left out.

    `overall`: all steps together, which flatters. `within`: pairs of steps at the same depth of the same
    problem. `first error`: such pairs where all earlier steps of both are right, so that only the step
    itself can tell; what a search that has pruned well is left with. Identical steps count once per sample.
    """
    table: dict[str, dict[str, float]] = {}
    for task in TASKS:
        everywhere: dict[bool, list[float]] = {True: [], False: []}
        groups: dict[tuple[int, int], dict[bool, list[float]]] = {}
        firsts: dict[tuple[int, int], dict[bool, list[float]]] = {}
        for sample, values in zip(samples, rewards, strict=True):
            if sample.problem[0] != task:
                continue
            for depth in range(1, len(sample.ends)):
                label, place = sample.labels[depth], (sample.problem[1], depth)
                chosen = [values[depth]] * sample.count
                everywhere[label] += chosen
                groups.setdefault(place, {True: [], False: []})[label] += chosen
                if sample.labels[depth - 1]:
                    firsts.setdefault(place, {True: [], False: []})[label] += chosen
        table[task] = {
            "overall": auc(np.array(everywhere[True]), np.array(everywhere[False])),
            "within": _within(groups),
            "first error": _within(firsts),
        }
    return table


def _within(groups: dict[tuple[int, int], dict[bool, list[float]]]) -> float:
    won = pairs = 0.0
    for group in groups.values():
        won += pairs_won(np.array(group[True]), np.array(group[False]))
        pairs += len(group[True]) * len(group[False])
    return won / pairs if pairs else float("nan")


def tags_of(tokenizer: Tokenizer) -> tuple[int, int]:
    """The ids of the tokens that say good and bad."""
    vocabulary = tokenizer.get_vocab()
    return vocabulary[GOOD], vocabulary[BAD]


def train_reward_model(
    policy: Decoder, tokenizer: Tokenizer, build: Path, recipe: Recipe = RECIPE
) -> tuple[Decoder, list[dict[str, Any]]]:
    """A reward model initialised from the policy (float32), and what was measured on the way."""
    file = build / "nano-prm.samples.json"
    if file.exists():
        stored = json.loads(file.read_text())
        samples, held_out = ([Marked(tuple(p), *rest) for p, *rest in stored[key]] for key in ("train", "validation"))
    else:
        model = in_bf16(policy)
        samples = draw(model, tokenizer, "train", PROBLEMS, NEIGHBOURS)
        held_out = draw(model, tokenizer, "validation", VALIDATION, 0.0)
        rows = {
            key: [[s.problem, s.ids, s.ends, s.labels, s.count] for s in part]
            for key, part in (("train", samples), ("validation", held_out))
        }
        file.write_text(json.dumps(rows))
    tags = tags_of(tokenizer)
    decoder = copy.deepcopy(policy).float().requires_grad_(True)

    def loss_of(model: Decoder, batch: Batch) -> Tensor:
        weights = torch.from_numpy(batch.weights)
        return F.binary_cross_entropy_with_logits(
            margins(model, batch, tags), torch.from_numpy(batch.labels), weights / weights.mean()
        )

    def data(skip: int) -> Iterable[Batch]:
        found = batches(samples, recipe.batch_tokens, recipe.seed)
        for _ in range(skip):
            next(found)
        return found

    def measure(model: Decoder) -> dict[str, Any]:
        return {"auc": reliability(held_out, scores(model, held_out, tags))}

    log = fit(decoder, recipe, data, loss_of, lambda batch: batch.tokens.size, measure, build / "nano-prm.state")
    return decoder, log
