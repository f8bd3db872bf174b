"""What the embedded models' cards say of them, measured on test problems."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from bough.models import Decoder
from bough.tasks import TASKS, Problem

from .marking import Marked, marked
from .prm import pad, reliability, scores
from .sampling import sample_problems, solved
from .self_evaluation import Words, divergences, foresight
from .self_evaluation import scores as own_scores
from .training import hidden_states, logits_of

PROBLEMS = 50  # of each task and level
TRIED = 256  # problems of each default level that are tried many times
TRIES = 64  # samples of each of them
FEW = 4  # samples at the other levels
OWN = 8  # samples of each tried problem by a model that is compared with bough/nano


def by_level(model: Decoder, tokenizer: Tokenizer) -> dict[str, dict[int, dict[str, float]]]:
    """For each task and level: the share right of greedy and of sampled (temperature 1) completions."""
    table: dict[str, dict[int, dict[str, float]]] = {}
    for task in TASKS.values():
        for level in task.levels:
            problems = [task.problem("test", index, level) for index in range(PROBLEMS)]
            greedy = sample_problems(model, tokenizer, problems, 1, 0.0, seed=0)
            sampled = sample_problems(model, tokenizer, problems, FEW, 1.0, seed=0)
            row = {
                "greedy": float(solved(problems, greedy).mean()),
                "sampled": float(solved(problems, sampled).mean()),
            }
            table.setdefault(task.name, {})[level] = row
            print(task.name, level, json.dumps(row), flush=True)
    return table


def many_samples(model: Decoder, tokenizer: Tokenizer, file: Path) -> dict[str, list[list[str]]]:
    """TRIES completions, at temperature 1, of each test problem at the default levels; kept in a file."""
    if not file.exists():
        found = {}
        for name in TASKS:
            print(f"{name}: {TRIES} samples of {TRIED} problems", flush=True)
            found[name] = sample_problems(model, tokenizer, _tried(name), TRIES, 1.0, seed=1)
        file.write_text(json.dumps(found))
    stored: dict[str, list[list[str]]] = json.loads(file.read_text())
    return stored


def _tried(name: str) -> list[Problem]:
    return [TASKS[name].problem("test", index) for index in range(TRIED)]


def by_tries(samples: dict[str, list[list[str]]]) -> dict[str, dict[str, float]]:
    """For each task at its default level: how often one sample is right, and one of TRIES."""
    table = {}
    for name, completions in samples.items():
        right = solved(_tried(name), completions)
        table[name] = {"pass@1": float(right.mean()), f"pass@{TRIES}": float(right.any(1).mean())}
        print(name, json.dumps(table[name]), flush=True)
    return table


Judge = Callable[[Sequence[Marked]], list[list[float]]]


def reward_quality(judge: Judge, tokenizer: Tokenizer, samples: dict[str, list[list[str]]]) -> dict[str, Any]:
    """AUCs of a judge's scores on the samples of test problems, and how often the best-rated of N is right.

    The judge gives each sample a score at each of its line ends, as `bough.zoo.prm.scores` does. The rating of a
    solution is its last step's. Best of N is averaged over TRIES / N disjoint draws.
    """
    everything: list[Marked] = []
    values: list[list[float]] = []
    best: dict[str, dict[int, float]] = {}
    for name, completions in samples.items():
        problems = _tried(name)
        own = [marked(tokenizer, [p] * TRIES, texts) for p, texts in zip(problems, completions, strict=True)]
        flat = [sample for some in own for sample in some]
        found = judge(flat)
        everything, values, last = everything + flat, values + found, iter(found)
        rating = np.zeros((len(problems), TRIES))
        for row, texts in enumerate(completions):
            of_text = {text: next(last)[-1] for text in dict.fromkeys(texts)}
            rating[row] = [of_text[text] for text in texts]
        right = solved(problems, completions)
        best[name] = {}
        for n in (1, 2, 4, 8, 16, 32, 64):
            drawn = rating.reshape(len(problems), -1, n).argmax(-1)
            chosen = np.take_along_axis(right.reshape(len(problems), -1, n), drawn[..., None], -1)
            best[name][n] = float(chosen.mean())
        print(name, json.dumps(best[name]), flush=True)
    return {"auc": reliability(everything, values), "best of": best}


def by_the_reward_model(reward: Decoder) -> Judge:
    """What bough/nano-prm says."""
    return lambda samples: scores(reward, samples)


def itself(
    model: Decoder, nano: Decoder, tokenizer: Tokenizer, samples: dict[str, list[list[str]]]
) -> dict[str, Any]:
    """How a model that judges itself judges bough/nano's samples, and how it writes, beside bough/nano."""
    words = Words.of(tokenizer)
    quality = reward_quality(lambda some: own_scores(model, some, words)[0], tokenizer, samples)
    first = [
        sample
        for name, completions in samples.items()
        for problem, texts in zip(_tried(name), completions, strict=True)
        for sample in marked(tokenizer, [problem] * FEW, texts[:FEW])
    ]
    table: dict[str, dict[str, float]] = {}
    for name, completions in samples.items():
        problems = _tried(name)
        row = {"pass@1, nano": float(solved(problems, completions).mean())}
        for label, n, temperature in (("pass@1", OWN, 1.0), ("greedy", 1, 0.0)):
            drawn = sample_problems(model, tokenizer, problems, n, temperature, seed=1)
            row[label] = float(solved(problems, drawn).mean())
        row["greedy, nano"] = float(
            solved(problems, sample_problems(nano, tokenizer, problems, 1, 0.0, seed=1)).mean()
        )
        print(name, json.dumps(row), flush=True)
        table[name] = row
    return {
        **quality,
        "foreseen": foresight(first, own_scores(model, first, words)[1]),
        "language": divergences(model, nano, first, words),
        "writes": table,
    }


@torch.inference_mode()
def agreement(
    model: Decoder, draft: Decoder, tokenizer: Tokenizer, samples: dict[str, list[list[str]]]
) -> dict[str, float]:
    """The share of the draft's tokens that speculative sampling accepts at temperature 1, along the samples.

    That is the mean over positions of sum min(p, q) (arXiv:2211.17192).
    """
    table = {}
    for name, completions in samples.items():
        problems = _tried(name)
        own = [marked(tokenizer, [p], texts[:1])[0] for p, texts in zip(problems, completions, strict=True)]
        shares = []
        for start in range(0, len(own), 50):
            rows = own[start : start + 50]
            length = max(len(sample.ids) for sample in rows)
            tokens = pad(rows, length).tokens
            p, q = (logits_of(m, hidden_states(m, tokens)).softmax(-1) for m in (model, draft))
            overlap = torch.minimum(p, q).sum(-1).view(len(rows), length)
            shares += [overlap[row, sample.ends[0] : len(sample.ids)] for row, sample in enumerate(rows)]
        table[name] = float(torch.cat(shares).mean())
    return table
