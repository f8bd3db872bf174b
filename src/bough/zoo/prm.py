"""bough/nano-prm: a process reward model for bough/nano, trained on what bough/nano writes.

bough/nano, grown by a few layers, is trained further as a whole, as a causal model whose `+` and `-` logits at
the end of a line are the score of the solution up to there (the read-out of Math-Shepherd, arXiv:2312.08935,
with the newline as the step tag). A head on frozen hidden states is not enough: it learns how far along a
solution is rather than whether it is right, which an AUC over all steps does not show and a search does.

Why it grows: what bough/nano expects next is worked out in its last layer, so no layer is left that could
compare it with what was written. On top of it, new layers can; at first they pass everything through.

Why it goes on learning the language too: labels alone, some bits a sample, make it forget how the tasks are
done. The lines that the judges call right are also targets of next-token prediction.
"""

from __future__ import annotations

import random
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
from bough.tasks import TASKS

from .data import BUCKETS
from .marking import Marked, marked_samples
from .tokenizer import PAD_ID
from .training import Recipe, config_of, fit, hidden_states, logits_of

GOOD, BAD = "+", "-"
LANGUAGE = 0.5  # the weight of next-token prediction beside that of the labels
RECIPE = Recipe(
    hidden=256,
    layers=9,
    heads=8,
    kv_heads=4,
    ffn=768,
    steps=1500,
    rate=((20, 1.0), (600, 1.0)),
    muon_lr=1.5e-3,
    adam_lr=1e-3,
)


def grown(policy: Decoder, config: dict[str, Any], seed: int) -> Decoder:
    """A decoder with more layers that computes what the policy computes: the new ones add nothing yet."""
    decoder = Decoder.from_config(config, seed=seed)
    missing, unexpected = decoder.load_state_dict(policy.state_dict(), strict=False)
    assert not unexpected and all(name.startswith("layers.") for name in missing)
    for layer in list(decoder.layers)[len(policy.layers) :]:
        for linear in (layer.attention.out, layer.mlp.down):
            torch.nn.init.zeros_(linear.weight)
    return decoder.requires_grad_(True)


@dataclass(frozen=True)
class Batch:
    """tokens [B, L]; at [N] flat places of line ends, with labels [N] and weights [N].

    targets [B, L]: the next token where it belongs to a right line, -100 elsewhere.
    """

    tokens: np.ndarray
    targets: np.ndarray
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
    targets = np.full((len(samples), length), -100, np.int64)
    at, labels, weights = [], [], []
    for row, sample in enumerate(samples):
        tokens[row, : len(sample.ids)] = sample.ids
        first, last_right = sample.ends[0], sample.ends[sum(sample.labels) - 1]
        targets[row, first:last_right] = sample.ids[first + 1 : last_right + 1]
        at += [row * length + end for end in sample.ends]
        labels += sample.labels
        weights += [sample.count] * len(sample.ends)
    return Batch(tokens, targets, np.array(at), np.array(labels, np.float32), np.array(weights, np.float32))


def margins(decoder: Decoder, hidden: Tensor, batch: Batch, tags: tuple[int, int]) -> Tensor:
    """The logit of a line being right, [N], from the batch's final hidden states: `+` less `-`."""
    logits = logits_of(decoder, hidden[torch.from_numpy(batch.at)])
    return logits[:, tags[0]] - logits[:, tags[1]]


def label_and_token_loss(decoder: Decoder, batch: Batch, tags: tuple[int, int]) -> Tensor:
    """The mean cross-entropy of the labels, in nats, and LANGUAGE times that of the right lines' tokens."""
    hidden, weights = hidden_states(decoder, batch.tokens), torch.from_numpy(batch.weights)
    labels = F.binary_cross_entropy_with_logits(
        margins(decoder, hidden, batch, tags), torch.from_numpy(batch.labels), weights / weights.mean()
    )
    targets = torch.from_numpy(batch.targets).flatten()
    counted = (targets >= 0).nonzero().flatten()
    return labels + LANGUAGE * F.cross_entropy(logits_of(decoder, hidden[counted]), targets[counted])


@torch.inference_mode()
def scores(decoder: Decoder, samples: Sequence[Marked], tags: tuple[int, int]) -> list[list[float]]:
    """The reward of each sample at each of its line ends."""
    found: list[list[float]] = [[] for _ in samples]
    order = sorted(range(len(samples)), key=lambda i: len(samples[i].ids))
    for start in range(0, len(order), 64):
        rows = order[start : start + 64]
        batch = pad([samples[i] for i in rows], len(samples[rows[-1]].ids))
        values = margins(decoder, hidden_states(decoder, batch.tokens), batch, tags).sigmoid().tolist()
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
    policy: Decoder, shipped: Path, tokenizer: Tokenizer, build: Path, recipe: Recipe = RECIPE
) -> tuple[Decoder, list[dict[str, Any]]]:
    """A reward model grown from the policy (float32), and what was measured on the way.

    `shipped` is the policy's folder, which the samples are drawn from.
    """
    samples = marked_samples(shipped, tokenizer, build / "nano-prm")
    tags = tags_of(tokenizer)
    decoder = grown(policy, config_of(recipe, tokenizer.get_vocab_size()), recipe.seed)

    def data(skip: int) -> Iterable[Batch]:
        found = batches(samples["train"], recipe.batch_tokens, recipe.seed)
        for _ in range(skip):
            next(found)
        return found

    def measure(model: Decoder) -> dict[str, Any]:
        return {"auc": reliability(samples["validation"], scores(model, samples["validation"], tags))}

    log = fit(
        decoder,
        recipe,
        data,
        lambda model, batch: label_and_token_loss(model, batch, tags),
        lambda batch: batch.tokens.size,
        measure,
        build / "nano-prm.state",
    )
    return decoder, log
