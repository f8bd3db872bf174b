"""bough/nano-think: a language model that thinks aloud before it answers, made from bough/nano's own samples.

A document is a prompt, thoughts and an answer, in the format of DeepSeek-R1 and Qwen3:

    <bos> prompt <think> \\n attempt wait \\n attempt wait \\n ... attempt </think> \\n \\n solution <eos>

An attempt is a whole solution that bough/nano wrote, right or wrong. The solution is the first right one among the
attempts or, where none is, a worked one. So the model learns to try several ways and to tell which of them is right,
and since what it thinks is what bough/nano would have written, there is often enough already for the answer: it
overthinks, as large models that were trained to think do.

It is to answer well whenever it is made to, too. Part of the documents have fewer attempts, and end as a method ends
thoughts that are cut at a cue: `wait`, a newline, and the closing. That closing is not learnt from, so the model does
not stop by itself before all attempts are made.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer

from bough.core import Backend, Thinking, run
from bough.core.thinking import CLOSING, OPENING
from bough.models import Decoder
from bough.search.lynx import Case, train
from bough.search.probe import Probe
from bough.tasks import TASKS

from .data import Batch
from .language import RECIPES
from .marking import PROBLEMS, Marked, chunks_of, marked_samples
from .sampling import answers_after, solved
from .tokenizer import EOS_ID, PAD_ID
from .training import Recipe, fit, next_token_loss

ATTEMPTS = 4  # all samples of a problem
CUT = {0: 0.1, 1: 0.15, 2: 0.15, 3: 0.1}  # the share of documents whose thoughts are cut after so many attempts
BUCKETS = (64, 96, 128, 160, 192, 256, 320, 384, 448, 512, 640)  # padded lengths
RECIPE = replace(
    RECIPES["nano"],
    steps=1600,
    rate=((20, 1.0), (300, 1.0), (900, 0.0), (920, 0.7), (1200, 0.7)),
    muon_lr=8e-4,
    adam_lr=6e-4,
)
FORMAT = Thinking()
FIRST_PROBED = 20_000_000  # the first problem's index for LYNX's probe: those before it trained a model
PROBE_PROBLEMS = 800  # of each task


def thinking_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with a token for the beginning and for the end of thoughts."""
    grown = Tokenizer.from_str(tokenizer.to_str())
    grown.add_tokens([AddedToken(mark, normalized=False, special=False) for mark in (OPENING, CLOSING)])
    return grown


def grow(decoder: Decoder, vocabulary: int, seed: int) -> Decoder:
    """A float32 copy of a decoder with a larger vocabulary; what the new tokens mean is still to be learnt."""
    grown = Decoder.from_config({**decoder.config.raw, "vocab_size": vocabulary}, seed=seed)
    with torch.no_grad():
        for new, old in zip(grown.parameters(), decoder.parameters(), strict=True):
            if new.shape == old.shape:
                new.copy_(old)
            else:
                new[: len(old)] = old
    return grown


@dataclass
class Document:
    """Tokens, and the weight of each in the loss."""

    ids: list[int]
    weights: list[float]

    def add(self, ids: Sequence[int], counted: bool = True, share: float = 1.0) -> None:
        self.ids += ids
        self.weights += [share if counted else 0.0] * len(ids)


Attempt = tuple[list[int], bool]  # tokens, and whether they are a right solution


class Writer:
    """Writes documents from samples.

    Args:
        tokenizer: with tokens for thoughts.
        samples: of a model, labelled; several of each problem.
        worked: the right solution of each problem, by task and index.
    """

    def __init__(
        self, tokenizer: Tokenizer, samples: Sequence[Marked], worked: Mapping[tuple[str, int], str]
    ) -> None:
        self.opening = _encode(tokenizer, FORMAT.opening)
        self.closing = _encode(tokenizer, FORMAT.closing)
        self.newline = _encode(tokenizer, "\n")
        self.wait = _encode(tokenizer, "wait")
        self.attempts: dict[tuple[str, int], list[Attempt]] = {}
        self.prompts: dict[tuple[str, int], list[int]] = {}
        for sample in samples:
            start = sample.ends[0] + 1
            self.prompts[sample.problem] = sample.ids[:start]
            if sample.ids[-1:] == self.newline:  # a sample that ran out of tokens is nothing to learn from
                attempt = (sample.ids[start:], sample.labels[-1])
                self.attempts.setdefault(sample.problem, []).extend([attempt] * sample.count)
        self.worked = {problem: _encode(tokenizer, worked[problem]) for problem in self.prompts}

    def draw(self, problem: tuple[str, int], rng: random.Random) -> Document:
        """A document about a problem: its attempts in random order, all of them or the first few."""
        attempts = rng.sample(self.attempts[problem], len(self.attempts[problem]))
        (shown,) = rng.choices([*CUT, ATTEMPTS], [*CUT.values(), 1 - sum(CUT.values())])
        return self.document(problem, attempts[:shown], cut=shown < len(attempts))

    def document(self, problem: tuple[str, int], attempts: Sequence[Attempt], cut: bool) -> Document:
        """The document with these attempts, after which thoughts end by themselves, or are cut."""
        document = Document(list(self.prompts[problem]), [0.0] * len(self.prompts[problem]))
        document.add(self.opening)
        for number, (attempt, _) in enumerate(attempts):
            if number:
                document.add(self.wait + self.newline)
            document.add(attempt)
        if cut:
            if attempts:
                document.add(self.wait)
            document.add(self.newline + self.closing, counted=False)
        else:
            document.add(self.closing)
        # Thoughts and answer weigh the same, however long they are.
        thoughts = sum(document.weights)
        document.weights = [weight / thoughts for weight in document.weights]
        right = next((attempt for attempt, is_right in attempts if is_right), self.worked[problem])
        answer = [*right, EOS_ID]
        document.add(answer, share=1 / len(answer))
        return document


def worked_solutions(split: str) -> dict[tuple[str, int], str]:
    """Those of the problems that `marked_samples` has samples of."""
    chunks = chunks_of({split: PROBLEMS[split]})
    return {(problem.task, problem.index): problem.solution for chunk in chunks for problem in chunk.problems()}


def batches(writer: Writer, tokens_per_batch: int, seed: int, skip: int = 0) -> Iterator[Batch]:
    """Epoch after epoch, shuffled; documents of like length share a batch. `skip` leaves out so many batches."""
    rng = random.Random(f"think/{seed}")
    queues: dict[int, list[Document]] = {length: [] for length in BUCKETS}
    while True:
        for place in rng.sample(sorted(writer.attempts), len(writer.attempts)):
            document = writer.draw(place, rng)
            length = next((length for length in BUCKETS if len(document.ids) <= length), None)
            if length is None:
                continue
            queues[length].append(document)
            if len(queues[length]) == tokens_per_batch // length:
                if skip:
                    skip -= 1
                else:
                    yield _pad(queues[length], length)
                queues[length] = []


def _pad(documents: Sequence[Document], length: int) -> Batch:
    tokens = np.full((len(documents), length), PAD_ID, np.int64)
    targets = np.full((len(documents), length), -100, np.int64)
    weights = np.zeros((len(documents), length), np.float32)
    for row, document in enumerate(documents):
        n = len(document.ids)
        tokens[row, :n] = document.ids
        weights[row, : n - 1] = document.weights[1:]
        counted = weights[row, : n - 1] > 0
        targets[row, : n - 1][counted] = np.array(document.ids[1:])[counted]
    return Batch(tokens, targets, weights)


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def accuracy_after(
    decoder: Decoder, tokenizer: Tokenizer, split: str, count: int, attempts: Sequence[int]
) -> dict[str, dict[int, float]]:
    """For each task at its default level: the share right when thinking ends after so many attempts.

    Sampled at temperature 1 on the split's first `count` problems; all attempts are ATTEMPTS.
    """
    table: dict[str, dict[int, float]] = {}
    for task in TASKS.values():
        problems = [task.problem(split, index) for index in range(count)]
        table[task.name] = {}
        for shown in attempts:
            texts = answers_after(decoder, tokenizer, problems, FORMAT, shown if shown < ATTEMPTS else None, seed=0)
            table[task.name][shown] = float(solved(problems, [[text] for text in texts]).mean())
        print(task.name, json.dumps(table[task.name]), flush=True)
    return table


def train_thinking_model(
    policy: Decoder, shipped: Path, plain: Tokenizer, build: Path, recipe: Recipe = RECIPE
) -> tuple[Decoder, Tokenizer, list[dict[str, Any]]]:
    """The model (float32), its tokenizer, and what was measured on the way.

    `policy` is what it starts from; `shipped` is the folder of the model that the samples are drawn from.
    """
    samples = marked_samples(shipped, plain, build / "nano-prm")
    tokenizer = thinking_tokenizer(plain)
    writer = Writer(tokenizer, samples["train"], worked_solutions("train"))
    decoder = grow(policy, tokenizer.get_vocab_size(), recipe.seed)

    def data(skip: int) -> Iterable[Batch]:
        return batches(writer, recipe.batch_tokens, recipe.seed, skip)

    def measure(model: Decoder) -> dict[str, Any]:
        return {"after": accuracy_after(model, tokenizer, "validation", 64, (0, 1, 2, ATTEMPTS))}

    log = fit(
        decoder,
        recipe,
        data,
        lambda model, batch: next_token_loss(model, batch.tokens, batch.targets, batch.weights),
        lambda batch: batch.tokens.size,
        measure,
        build / "nano-think.state",
    )
    return decoder, tokenizer, log


def train_probe(lm: Backend, tasks: Iterable[str] = TASKS, problems: int = PROBE_PROBLEMS) -> Probe:
    """A probe for LYNX, trained on half of so many problems of each task and calibrated on the other half.

    They are of the train split and the default levels, and have trained no model.
    """
    cases = []
    for name in tasks:
        task = TASKS[name]
        for index in range(FIRST_PROBED, FIRST_PROBED + problems):
            problem = task.problem("train", index)
            cases.append(Case(lm.branch(problem.prompt), task, partial(task.check, problem)))
    random.Random("probe").shuffle(cases)
    return run(train(cases))
