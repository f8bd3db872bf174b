"""bough/nano-prm: a process reward model for bough/nano, trained on what bough/nano writes.

bough/nano is trained further as a whole, as a causal model with one more thing to say: *reject*, a token that no
text has. Where a solution goes on with token y, the model holds y against it, and a solution is right so far with
the probability that none of its tokens is rejected:

    P(right so far) = product over the tokens y_t of the solution of  p(y_t) / (p(y_t) + p(reject)),

with p the model's next-token distribution before y_t. So what the model knows about how to go on is what it judges
by, before it has seen a single label, and a line's last token can still be rejected for the line as a whole. Read
off one tag at the end of each line instead (the read-out of Math-Shepherd, arXiv:2312.08935), the same model learnt
countdown and little else from the same samples: no layer is left above the prediction that could compare it with
what was written, and neither further layers nor dense targets for them made up for that. A head on frozen hidden
states learns how far along a solution is rather than whether it is right, which an AUC over all steps does not show
and a search does.

The loss is the likelihood of the judges' labels, line by line: with q_k the probability that no token of line k is
rejected, -log q_k for a right line, and -log(1 - q_1 ... q_k) for a line at or after the first error, which leaves
open which token to reject. So that it goes on knowing how the tasks are done, right lines are also targets of
next-token prediction.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
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
from .language import RECIPES
from .marking import Marked, marked_samples
from .tokenizer import PAD_ID
from .training import Recipe, fit, hidden_states, logits_of

REJECT_ID = PAD_ID
LANGUAGE = 0.5  # the weight of next-token prediction beside that of the labels
RECIPE = replace(RECIPES["nano"], steps=1300, rate=((20, 1.0), (400, 1.0)), muon_lr=8e-4, adam_lr=6e-4)


@dataclass(frozen=True)
class Batch:
    """Samples padded to one length.

    Attributes:
        tokens: ``[B, L]``.
        written: flat places of the tokens of the solutions' lines, ``[N]``.
        line: which line each of them is in, ``[N]``; lines are numbered through the batch.
        first: the number of the first line of each line's sample, ``[lines]``.
        labels: whether a sample is right up to a line, ``[lines]``.
        weights: how often it occurred, ``[lines]``.
    """

    tokens: np.ndarray
    written: np.ndarray
    line: np.ndarray
    first: np.ndarray
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
    written: list[int] = []
    line: list[int] = []
    first: list[int] = []
    labels: list[bool] = []
    weights: list[int] = []
    for row, sample in enumerate(samples):
        tokens[row, : len(sample.ids)] = sample.ids
        begins = len(labels)
        for before, end, label in zip(sample.ends, sample.ends[1:], sample.labels[1:], strict=False):
            written += range(row * length + before + 1, row * length + end + 1)
            line += [len(labels)] * (end - before)
            first.append(begins)
            labels.append(label)
            weights.append(sample.count)
    return Batch(tokens, *map(np.array, (written, line, first, labels, weights)))


def log_kept(decoder: Decoder, batch: Batch) -> tuple[Tensor, Tensor]:
    """The log-probability that no token of a line is rejected, ``[lines]``, and each token's as the next, ``[N]``.

    The first in float64, since it is summed along solutions.
    """
    hidden = hidden_states(decoder, batch.tokens)[torch.from_numpy(batch.written - 1)]
    logits = logits_of(decoder, hidden)
    own = logits.gather(1, torch.from_numpy(batch.tokens.ravel()[batch.written])[:, None])[:, 0]
    kept = F.logsigmoid(own - logits[:, REJECT_ID]).double()
    lines = kept.new_zeros(len(batch.labels)).index_add(0, torch.from_numpy(batch.line), kept)
    return lines, own - logits.logsumexp(-1)


def along(lines: Tensor, first: np.ndarray) -> Tensor:
    """The sums of the lines' values from the first of their sample on, ``[lines]``."""
    total = lines.cumsum(0)
    return total - (total - lines)[torch.from_numpy(first)]


def loss(decoder: Decoder, batch: Batch) -> Tensor:
    """The mean cross-entropy of the labels, in nats, and LANGUAGE times that of the right lines' tokens."""
    lines, next_token = log_kept(decoder, batch)
    right, weights = torch.from_numpy(batch.labels), torch.from_numpy(batch.weights)
    wrong = -torch.log(-torch.expm1(along(lines, batch.first).clamp(max=-1e-6)))
    labels = (torch.where(right, -lines, wrong) * weights).sum() / weights.sum()
    return labels.float() - LANGUAGE * next_token[right[torch.from_numpy(batch.line)]].mean()


@torch.inference_mode()
def scores(decoder: Decoder, samples: Sequence[Marked]) -> list[list[float]]:
    """The probability of each sample to be right up to each of its line ends; 1 at the prompt's."""
    found: list[list[float]] = [[] for _ in samples]
    order = sorted(range(len(samples)), key=lambda i: len(samples[i].ids))
    for start in range(0, len(order), 64):
        rows = order[start : start + 64]
        batch = pad([samples[i] for i in rows], len(samples[rows[-1]].ids))
        values = along(log_kept(decoder, batch)[0], batch.first).exp().tolist() if len(batch.labels) else []
        for i in rows:
            lines = len(samples[i].ends) - 1
            found[i], values = [1.0, *values[:lines]], values[lines:]
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


def train_reward_model(
    policy: Decoder, shipped: Path, tokenizer: Tokenizer, build: Path, recipe: Recipe = RECIPE
) -> tuple[Decoder, list[dict[str, Any]]]:
    """A reward model initialised from the policy (float32), and what was measured on the way.

    `shipped` is the policy's folder, which the samples are drawn from.
    """
    samples = marked_samples(shipped, tokenizer, build / "nano-prm")
    decoder = copy.deepcopy(policy).float().requires_grad_(True)

    def data(skip: int) -> Iterable[Batch]:
        found = batches(samples["train"], recipe.batch_tokens, recipe.seed)
        for _ in range(skip):
            next(found)
        return found

    def measure(model: Decoder) -> dict[str, Any]:
        return {"auc": reliability(samples["validation"], scores(model, samples["validation"]))}

    log = fit(decoder, recipe, data, loss, lambda batch: batch.tokens.size, measure, build / "nano-prm.state")
    return decoder, log
