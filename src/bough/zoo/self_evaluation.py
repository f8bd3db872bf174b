"""bough/nano-eval: bough/nano-prm, trained further to write as bough/nano does while it goes on judging.

Generative self-evaluation (Manvi, Singh and Ermon 2024, arXiv:2410.02725): one model, and what it says of a solution,
finished or not, is read from its own next-token distribution. It says two things (`bough.rewards.ForeseeingReward`).

*Right so far*, by rejection, as bough/nano-prm: each token y_t of the solution is held against one that no text has,
and the solution is right so far with the probability that none is rejected. As the model also generates, that token
must hardly ever be drawn. So its logit is read with an offset,

    p(y_t stands) = logistic(z(y_t) - z(reject) - OFFSET),

and one that rejects with odds of a hundred to one has a share of exp(-OFFSET) * 100 in the distribution. To begin
with, the direction along which the hidden states are most nearly constant is taken from the token's embedding, so
that its logit is lower by about OFFSET everywhere.

*Ends right if it is right so far*: the token QUERY is put behind an unfinished solution, and p(GOOD) / (p(GOOD) +
p(BAD)) there is the answer. Behind the prompt alone that is the probability that a fresh solution is right.

The loss is the sum of three terms, on bough/nano's own samples: the likelihood of the lines' labels under rejection
(see `bough.zoo.prm`); at the queries, that of the samples' outcomes under the product of both; and the divergence of
the next-token distribution from bough/nano's. Queries stand after every line but the last, and at some places within;
those of one sample share a pass: they come last, and each attends to what it is about and to itself.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from bough.models import Decoder
from bough.tasks import TASKS

from .attend import RectangleAttend
from .data import BUCKETS
from .language import RECIPES
from .marking import Marked, marked_samples
from .prm import REJECT_ID, along, auc, reliability
from .tokenizer import PAD_ID
from .training import Recipe, fit, in_bf16, logits_of

QUERY, GOOD, BAD = "#", "Y", "N"
OFFSET = 16.0
LANGUAGE = 3.0  # the weight of the divergence beside those of the labels
WITHIN = 2  # queries of a sample within its lines
RECIPE = replace(RECIPES["nano"], steps=300, rate=((10, 1.0), (100, 1.0)), muon_lr=8e-4, adam_lr=6e-4)


@dataclass(frozen=True)
class Words:
    """The ids of the query and of its answers."""

    query: int
    good: int
    bad: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Words:
        """Their ids in the zoo's tokenizer, which has every byte."""
        query, good, bad = (tokenizer.encode(word, add_special_tokens=False).ids[0] for word in (QUERY, GOOD, BAD))
        return cls(query, good, bad)


@dataclass(frozen=True)
class Batch:
    """Samples padded to one length, each followed by its queries.

    Attributes:
        tokens: ``[B, L]``.
        positions: ``[B, L]``; a query's is the one behind what it is about.
        hidden: ``[B, L, L]``, which places must not be attended to.
        written: flat places of the tokens of the solutions, ``[N]``.
        last: flat places of the last tokens of the solutions, ``[B]``.
        line: which line each written token is in, ``[N]``; lines are numbered through the batch.
        first: the number of the first line of each line's sample, ``[lines]``.
        labels: whether a sample is right up to a line, ``[lines]``.
        weights: how often it occurred, ``[lines]``.
        queries: flat places of the queries, ``[Q]``.
        begins: how many written tokens there are before each query's sample, ``[Q]``.
        reaches: how many there are up to the place that it is about, ``[Q]``.
        outcomes: whether each query's sample ends right, ``[Q]``.
        query_weights: how often it occurred, ``[Q]``.
    """

    tokens: np.ndarray
    positions: np.ndarray
    hidden: np.ndarray
    written: np.ndarray
    last: np.ndarray
    line: np.ndarray
    first: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    queries: np.ndarray
    begins: np.ndarray
    reaches: np.ndarray
    outcomes: np.ndarray
    query_weights: np.ndarray


Asked = tuple[Marked, Sequence[int]]  # a sample, and the places after which it is asked about


def right(sample: Marked) -> bool:
    """Whether a sample's outcome is right: every line up to its answer."""
    return sample.labels[-1] and len(sample.labels) > 1


def batches(samples: Sequence[Marked], query: int, tokens_per_batch: int, seed: int) -> Iterator[Batch]:
    """Epoch after epoch, shuffled; samples of like length share a batch."""
    rng = random.Random(f"self-evaluation/{seed}")
    queues: dict[int, list[Asked]] = {length: [] for length in BUCKETS}
    while True:
        for sample in rng.sample(samples, len(samples)):
            inner = range(sample.ends[0] + 1, len(sample.ids) - 1)
            asked = sorted({*sample.ends[:-1], *rng.sample(inner, min(WITHIN, len(inner)))})
            needed = len(sample.ids) + len(asked)
            length = next((length for length in BUCKETS if needed <= length), None)
            if length is None:
                continue
            queue = queues[length]
            queue.append((sample, asked))
            if len(queue) == tokens_per_batch // length:
                yield pad(queue, query, length)
                queues[length] = []


def pad(asked: Sequence[Asked], query: int, length: int) -> Batch:
    """The samples and their queries as one rectangle."""
    shape = len(asked), length
    tokens, positions = np.full(shape, PAD_ID, np.int64), np.tile(np.arange(length), (len(asked), 1))
    hidden = np.tile(np.triu(np.ones((length, length), bool), 1), (len(asked), 1, 1))
    found: dict[str, list[int]] = {field.name: [] for field in fields(Batch)[3:]}
    for row, (sample, places) in enumerate(asked):
        count = len(sample.ids)
        tokens[row, :count] = sample.ids
        line, begins = len(found["labels"]), len(found["written"])
        for before, end, label in zip(sample.ends, sample.ends[1:], sample.labels[1:], strict=False):
            found["written"] += range(row * length + before + 1, row * length + end + 1)
            found["line"] += [len(found["labels"])] * (end - before)
            found["first"].append(line)
            found["labels"].append(label)
            found["weights"].append(sample.count)
        found["last"].append(row * length + count - 1)
        for at, place in enumerate(places, start=count):
            tokens[row, at], positions[row, at] = query, place + 1
            hidden[row, at, place + 1 : at] = True
            found["queries"].append(row * length + at)
            found["begins"].append(begins)
            found["reaches"].append(begins + place - sample.ends[0])
            found["outcomes"].append(right(sample))
            found["query_weights"].append(sample.count)
    typed = {name: np.array(values, np.int64) for name, values in found.items()}
    for name in ("labels", "outcomes"):
        typed[name] = typed[name].astype(bool)
    return Batch(tokens, positions, hidden, **typed)


class MaskedAttend(RectangleAttend):
    """Attention over padded rows, each with a mask of its own."""

    def __init__(self, hidden: np.ndarray) -> None:
        rows, length, _ = hidden.shape
        super().__init__(rows, length)
        self.mask = torch.zeros(hidden.shape).masked_fill_(torch.from_numpy(hidden), float("-inf"))


def states(decoder: Decoder, batch: Batch) -> Tensor:
    """Final hidden states ``[B * L, H]``, with bf16 matrix products."""
    tokens, positions = (torch.from_numpy(array).flatten() for array in (batch.tokens, batch.positions))
    with torch.autocast("cpu", torch.bfloat16):
        return decoder(tokens, positions, MaskedAttend(batch.hidden)).last


@dataclass(frozen=True)
class Read:
    """What a model says of a batch.

    Attributes:
        next: logits before each written token, and after the last one of each row, ``[N + B, V]``.
        kept: the log-probability that no token of a line is rejected, ``[lines]``, float64.
        so_far: that none is up to the place of each query, ``[Q]``, float64.
        ahead: the log-odds at each query, ``[Q]``.
    """

    next: Tensor
    kept: Tensor
    so_far: Tensor
    ahead: Tensor


def read(decoder: Decoder, batch: Batch, words: Words) -> Read:
    """Both read-outs."""
    hidden = states(decoder, batch)
    places = torch.from_numpy(np.concatenate([batch.written - 1, batch.last]))
    logits = logits_of(decoder, hidden[places])
    before = logits[: len(batch.written)]
    own = before.gather(1, torch.from_numpy(batch.tokens.ravel()[batch.written])[:, None])[:, 0]
    stands = F.logsigmoid(own - before[:, REJECT_ID] - OFFSET).double()
    kept = stands.new_zeros(len(batch.labels)).index_add(0, torch.from_numpy(batch.line), stands)
    total = F.pad(stands.cumsum(0), (1, 0))
    so_far = total[torch.from_numpy(batch.reaches)] - total[torch.from_numpy(batch.begins)]
    answers = logits_of(decoder, hidden[torch.from_numpy(batch.queries)])
    return Read(logits, kept, so_far, answers[:, words.good] - answers[:, words.bad])


def terms(found: Read, teacher: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """The mean losses in nats: of the lines' labels, of the outcomes at the queries, and the divergence per token.

    ``teacher`` is what `Read.next` is of bough/nano. What is rejected is learnt from the lines' labels alone.
    """
    correct, weights = torch.from_numpy(batch.labels), torch.from_numpy(batch.weights)
    lines = mean_loss(found.kept, along(found.kept, batch.first), correct, weights)
    right_so_far = found.so_far.detach() + F.logsigmoid(found.ahead)
    outcomes, often = torch.from_numpy(batch.outcomes), torch.from_numpy(batch.query_weights)
    queries = mean_loss(right_so_far, right_so_far, outcomes, often)
    divergence = F.kl_div(found.next.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True)
    return lines, queries, divergence


def mean_loss(good: Tensor, all_good: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean of -good where the label is right, and of -log(1 - exp(all_good)) where it is not."""
    wrong = -torch.log(-torch.expm1(all_good.clamp(max=-1e-6)))
    return ((torch.where(labels, -good, wrong) * weights).sum() / weights.sum()).float()


def loss(decoder: Decoder, teacher: Decoder, batch: Batch, words: Words) -> Tensor:
    """The sum of the terms, the divergence LANGUAGE times."""
    with torch.inference_mode():
        theirs = read(teacher, batch, words).next
    lines, queries, divergence = terms(read(decoder, batch, words), theirs.clone(), batch)
    return lines + queries + LANGUAGE * divergence


@torch.no_grad()
def lower(decoder: Decoder, batch: Batch) -> None:
    """Lower the logit of rejection by about OFFSET, in place: by least squares on the hidden states of a batch."""
    hidden = states(decoder, batch)[torch.from_numpy(batch.written - 1)].double()
    target = torch.full((len(hidden), 1), OFFSET, dtype=torch.float64)
    decoder.embed.weight[REJECT_ID] -= torch.linalg.lstsq(hidden, target).solution[:, 0].to(decoder.embed.weight)


@torch.inference_mode()
def scores(decoder: Decoder, samples: Sequence[Marked], words: Words) -> tuple[list[list[float]], list[list[float]]]:
    """For each sample, at the prompt's end and each line's: to be right so far, and to end right, as the reward."""
    stands: list[list[float]] = [[] for _ in samples]
    ends_right: list[list[float]] = [[] for _ in samples]
    order = sorted(range(len(samples)), key=lambda i: len(samples[i].ids))
    for start in range(0, len(order), 64):
        rows = order[start : start + 64]
        length = max(len(samples[i].ids) + len(samples[i].ends) for i in rows)
        batch = pad([(samples[i], samples[i].ends) for i in rows], words.query, length)
        found = read(decoder, batch, words)
        so_far, ahead = found.so_far.exp().tolist(), found.ahead.sigmoid().tolist()
        for i in rows:
            last = len(samples[i].ends) - 1
            stands[i], so_far = so_far[: last + 1], so_far[last + 1 :]
            ends_right[i] = [s * a for s, a in zip(stands[i], [*ahead[:last], 1.0], strict=True)]
            ahead = ahead[last + 1 :]
    return stands, ends_right


@torch.inference_mode()
def divergences(
    decoder: Decoder, teacher: Decoder, samples: Sequence[Marked], words: Words
) -> dict[str, dict[str, float]]:
    """For each task: the divergence from the teacher in nats a token, and the largest share that rejection draws."""
    table = {}
    for task in TASKS:
        own = [sample for sample in samples if sample.problem[0] == task]
        total, tokens, drawn = 0.0, 0, 0.0
        for start in range(0, len(own), 64):
            rows = own[start : start + 64]
            batch = pad([(sample, []) for sample in rows], words.query, max(len(sample.ids) for sample in rows))
            ours, theirs = (read(model, batch, words).next.log_softmax(-1) for model in (decoder, teacher))
            total += float(F.kl_div(ours, theirs, reduction="sum", log_target=True))
            tokens += len(ours)
            drawn = max(drawn, float(ours[:, REJECT_ID].exp().max()))
        table[task] = {"divergence": total / tokens, "rejection drawn": drawn}
    return table


def foresight(samples: Sequence[Marked], values: Sequence[Sequence[float]]) -> dict[str, dict[str, float]]:
    """For each task, how well the outcome is foreseen, at the bare prompt and halfway along the lines.

    The AUC over all samples, and the mean of the values beside the share that ends right.
    """
    table = {}
    for task in TASKS:
        own = [(s, v) for s, v in zip(samples, values, strict=True) if s.problem[0] == task]
        count = np.array([sample.count for sample, _ in own])
        outcome = np.repeat([right(sample) for sample, _ in own], count)
        row = {"right": float(outcome.mean())}
        for name, share in (("prompt", 0.0), ("halfway", 0.5)):
            value = np.repeat([v[round(share * (len(v) - 1))] for _, v in own], count)
            row |= {f"auc, {name}": auc(value[outcome], value[~outcome]), f"mean, {name}": float(value.mean())}
        table[task] = row
    return table


def train_self_evaluation(
    policy: Decoder, reward: Decoder, shipped: Path, tokenizer: Tokenizer, build: Path, recipe: Recipe = RECIPE
) -> tuple[Decoder, list[dict[str, Any]]]:
    """A self-evaluating model initialised from the policy's reward model (float32), and what was measured on the way.

    `shipped` is the policy's folder, which the samples are drawn from.
    """
    samples, words = marked_samples(shipped, tokenizer, build / "nano-prm"), Words.of(tokenizer)
    decoder, teacher = copy.deepcopy(reward).float().requires_grad_(True), in_bf16(policy)
    lower(decoder, next(batches(samples["train"], words.query, recipe.batch_tokens, recipe.seed)))

    def data(skip: int) -> Iterable[Batch]:
        found = batches(samples["train"], words.query, recipe.batch_tokens, recipe.seed)
        for _ in range(skip):
            next(found)
        return found

    def measure(model: Decoder) -> dict[str, Any]:
        stands, ends_right = scores(model, samples["validation"], words)
        return {
            "auc": reliability(samples["validation"], stands),
            "foreseen": foresight(samples["validation"], ends_right),
            "language": divergences(model, teacher, samples["validation"], words),
        }

    log = fit(
        decoder,
        recipe,
        data,
        lambda model, batch: loss(model, teacher, batch, words),
        lambda batch: batch.tokens.size,
        measure,
        build / "nano-eval.state",
    )
    return decoder, log
