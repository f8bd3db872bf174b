"""Diverse prefixes for bough/nano: k short soft prompts, trained so that one of k samples is right more often.

Paper: EconProver, arXiv:2509.12603, whose parallel samples differ by trainable prefixes, one for each part of the
training problems, learnt by reinforcement learning. Here every prefix meets every problem, and the parts emerge from
what is optimised. With p_j(x) the probability that a sample below prefix j solves problem x, the probability that one
of k samples does, one sample below each prefix, is

    pass@k(x) = 1 - product over j of (1 - p_j(x)),    d pass@k / d p_j = product over i != j of (1 - p_i(x)),

so a prefix is paid for the problems that the others miss, and only for those.

No sampling is needed to climb that. p_j(x) is at least the probability of the right solutions that are known, the sum
of pi(y | x, prefix j) over y in Y(x), which one forward pass over them gives with its exact gradient. That is policy
gradient with the expectation over a set of actions taken exactly, and expert iteration when Y(x) is what the model
itself found: samples of the plain model that the task's judge takes for right, and the problem's worked solution.

The model is frozen. A prefix is m embeddings that stand between prompt and solution (in the paper, before the
prompt), so that the prompt's keys and values are computed once for all prefixes.

Prefixes that begin alike stay alike: each is paid the same, and learns the same. So at first (`partition` steps)
every known solution teaches one prefix only, the one below which it is likeliest, and the prefixes part.

    python -m bough.zoo.prefixes        # ten minutes on one core; writes nano/prefixes.safetensors
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from bough.models import AttentionSpec, Decoder, load_decoder, save_prefixes
from bough.tasks import TASKS, Problem

from . import path
from .attend import RectangleAttend
from .parts import run_parts
from .sampling import sample_problems
from .tokenizer import BOS_ID, EOS_ID, PAD_ID
from .training import logits_of

FIRST = 20_000_000  # the first problem's index: those before it trained the models
CHUNK = 250
EVERY = 20  # steps between two saved states


@dataclass(frozen=True)
class Recipe:
    """What determines trained prefixes.

    Attributes:
        prefixes, tokens: k and m.
        tasks: whose problems they learn from.
        problems: of each task, at its default level.
        samples: of the plain model, of each problem.
        solutions: known right solutions that are kept of each problem, at most.
        batch: problems in a step.
        partition: steps in which each solution teaches one prefix only.
        steps, rate: of Adam; the rate falls to 0 linearly.
        seed: of the samples, of the order, and of the first values.
    """

    prefixes: int = 4
    tokens: int = 4
    tasks: tuple[str, ...] = ("countdown", "logic")
    problems: int = 1500
    samples: int = 16
    solutions: int = 6
    batch: int = 12
    partition: int = 120
    steps: int = 300
    rate: float = 0.02
    seed: int = 0


RECIPE = Recipe()


@dataclass(frozen=True)
class Known:
    """A problem's prompt, and right solutions of it, as token ids."""

    prompt: list[int]
    solutions: list[list[int]]


class Prefixed(nn.Module):
    """The frozen embedding of a decoder, with the prefixes' rows after it.

    Attributes:
        weight: the frozen rows, ``[V, H]``, which are the head's too.
        soft: the prefixes, ``[k, m, H]``.
    """

    def __init__(self, weight: Tensor, soft: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.soft = nn.Parameter(soft)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[T]`` -> ``[T, H]``."""
        return F.embedding(tokens, torch.cat([self.get_buffer("weight"), self.soft.flatten(0, 1)]))


def known_solutions(policy: Path, tokenizer: Tokenizer, build: Path, recipe: Recipe) -> list[Known]:
    """What the prefixes learn from. What is drawn is kept under build."""
    parts = {
        f"{task}-{recipe.seed}-{recipe.samples}-{start:05}": (
            policy, tokenizer.to_str(), task, start, min(CHUNK, recipe.problems - start), recipe.samples, recipe.seed,
        )
        for task in recipe.tasks
        for start in range(0, recipe.problems, CHUNK)
    }  # fmt: skip
    drawn = run_parts(draw, parts, build)
    found = []
    for name, (_, _, task, start, *_) in parts.items():
        for index, texts in enumerate(drawn[name], FIRST + start):
            problem = TASKS[task].problem("train", index)
            encoded = [tokenizer.encode(text, add_special_tokens=False).ids for text in [problem.prompt, *texts]]
            found.append(Known([BOS_ID, *encoded[0]], [[*ids, EOS_ID] for ids in encoded[1 : 1 + recipe.solutions]]))
    return found


def draw(
    policy: Path, tokenizer_json: str, task: str, start: int, count: int, samples: int, seed: int
) -> list[list[str]]:
    """The different right solutions of some problems, those drawn most often first."""
    problems = [TASKS[task].problem("train", FIRST + start + i) for i in range(count)]
    texts = sample_problems(load_decoder(policy), Tokenizer.from_str(tokenizer_json), problems, samples, 1.0, seed)
    return [right_solutions(problem, own) for problem, own in zip(problems, texts, strict=True)]


def right_solutions(problem: Problem, texts: Sequence[str]) -> list[str]:
    """The different right ones of these, most frequent first, and the problem's own."""
    task = TASKS[problem.task]
    drawn = [text for text in texts if task.check(problem, text)]
    return sorted(dict.fromkeys([*drawn, problem.solution]), key=lambda text: -drawn.count(text))


def coverage_loss(decoder: Decoder, embed: Prefixed, batch: Sequence[Known]) -> tuple[Tensor, Tensor]:
    """The mean probability that every prefix's sample is wrong, and each prefix's probability to be right.

    Args:
        decoder: whose embedding is ``embed``.
        embed: of the prefixes.
        batch: B problems.

    Returns:
        A number, and ``[B, k]``: of the known solutions alone, so the first is an upper bound, the second a lower.
    """
    logprobs = known_logprobs(decoder, embed, batch)
    right = torch.stack([own.logsumexp(1).exp() for own in logprobs])  # [B, k]
    missed = (1 - right).clamp(min=0).prod(1)
    return missed.mean(), right.detach()


def partition_loss(decoder: Decoder, embed: Prefixed, batch: Sequence[Known]) -> tuple[Tensor, Tensor]:
    """The mean of -log pi(y | x, prefix) over known solutions, each below the prefix that it is assigned to.

    That is the prefix below which it is likeliest, compared with that prefix's mean over the batch, so that every
    prefix gets about as many. Returns a number, and each prefix's probability to be right, ``[B, k]``.
    """
    logprobs = known_logprobs(decoder, embed, batch)
    each = torch.cat(logprobs, 1)  # [k, solutions of all problems]
    chosen = (each - each.mean(1, keepdim=True)).detach().argmax(0)
    right = torch.stack([own.logsumexp(1).exp() for own in logprobs])
    return -each.gather(0, chosen[None]).mean(), right.detach()


def known_logprobs(decoder: Decoder, embed: Prefixed, batch: Sequence[Known]) -> list[Tensor]:
    """For each problem, the log-probability of each known solution below each prefix, ``[k, solutions]``."""
    k, m, _ = embed.soft.shape
    vocabulary = len(embed.get_buffer("weight"))
    prompts, lengths = _padded([known.prompt for known in batch])
    read = PromptAttend(lengths)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        decoder(prompts.flatten(), torch.arange(prompts.shape[1]).repeat(len(batch)), read)

    below = [
        (of, [*range(vocabulary + j * m, vocabulary + (j + 1) * m), *solution])
        for of, known in enumerate(batch)
        for j in range(k)
        for solution in known.solutions
    ]
    owner = torch.tensor([of for of, _ in below])
    tokens, ends = _padded([ids for _, ids in below])
    positions = lengths[owner][:, None] + torch.arange(tokens.shape[1])
    place = torch.arange(tokens.shape[1])
    drawn = (place >= m) & (place < ends[:, None])  # [rows, L], the solutions' tokens
    with torch.autocast("cpu", torch.bfloat16):
        hidden = decoder(tokens.flatten(), positions.flatten(), read.below(owner, tokens.shape[1])).last
    before = hidden.view(*tokens.shape, -1)[:, :-1][drawn[:, 1:]]
    each = -F.cross_entropy(logits_of(decoder, before), tokens[drawn], reduction="none")
    whole = each.new_zeros(len(below)).index_add(0, drawn.nonzero()[:, 0], each)
    return [part.view(k, -1) for part in whole.split([k * len(known.solutions) for known in batch])]


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Tokens ``[B, L]`` with padding on the right, and lengths ``[B]``."""
    tokens = torch.full((len(rows), max(map(len, rows))), PAD_ID)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return tokens, torch.tensor([len(ids) for ids in rows])


class PromptAttend:
    """Attention within prompts, padded on the right to one length, whose keys and values it keeps.

    Args:
        lengths: of the prompts, ``[B]``.
    """

    def __init__(self, lengths: Tensor) -> None:
        self.lengths = lengths
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}  # by layer, [B, P, kv heads, D]
        self.within = RectangleAttend(len(lengths), int(lengths.max()))

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec) -> Tensor:
        shape = (len(self.lengths), -1, *k.shape[1:])
        self.kept[layer] = k.view(shape), v.view(shape)
        return self.within(layer, q, k, v, spec)

    def below(self, owner: Tensor, length: int) -> BelowAttend:
        """Attention of rows of a length, each of which follows the prompt that ``owner [R]`` names."""
        return BelowAttend(self, owner, length)


class BelowAttend:
    """Causal attention of R rows of length L over themselves and what a `PromptAttend` has kept."""

    def __init__(self, prompts: PromptAttend, owner: Tensor, length: int) -> None:
        self.prompts, self.owner, self.length = prompts, owner, length
        longest = int(prompts.lengths.max())
        absent = torch.arange(longest) >= prompts.lengths[owner][:, None]  # [R, P]
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        hidden = torch.cat([absent[:, None].expand(-1, length, -1), later.expand(len(owner), -1, -1)], 2)
        self.mask = torch.zeros(hidden.shape).masked_fill(hidden, float("-inf"))  # [R, L, P + L]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec) -> Tensor:
        rows, groups = len(self.owner), q.shape[1] // k.shape[1]
        keys, values = (
            torch.cat([kept[self.owner].to(own.dtype), own.view(rows, self.length, *own.shape[1:])], 1)
            for kept, own in zip(self.prompts.kept[layer], (k, v), strict=True)
        )

        def per_head(x: Tensor) -> Tensor:  # [R, N, H, D] -> [R * kv heads, groups * N, D]
            return x.transpose(1, 2).reshape(rows * k.shape[1], -1, x.shape[-1])

        scores = torch.bmm(per_head(q.view(rows, self.length, *q.shape[1:])), per_head(keys).transpose(1, 2))
        scores = scores.view(rows, -1, groups * self.length, keys.shape[1]) * spec.scale
        weights = (scores + self.mask.repeat(1, groups, 1)[:, None]).softmax(-1).to(v.dtype)
        out = torch.bmm(weights.flatten(0, 1), per_head(values)).view(rows, q.shape[1], self.length, -1)
        return out.transpose(1, 2).reshape(q.shape)


def batches(known: Sequence[Known], recipe: Recipe) -> Iterator[list[Known]]:
    """Epoch after epoch, shuffled; problems of like length share a batch, which pads less."""
    rng = random.Random(f"prefixes/{recipe.seed}")
    while True:
        order = sorted(rng.sample(known, len(known)), key=lambda one: len(one.prompt) + len(one.solutions[0]))
        groups = [order[i : i + recipe.batch] for i in range(0, len(order), recipe.batch)]
        yield from rng.sample(groups, len(groups))


def train_prefixes(
    decoder: Decoder, known: Sequence[Known], recipe: Recipe = RECIPE, state_file: Path | None = None
) -> tuple[Tensor, list[dict[str, Any]]]:
    """The trained prefixes ``[k, m, H]`` float32, and how they did on the way. The decoder stays as it is.

    With a state file, a run that was interrupted goes on from there.
    """
    embedding = decoder.embed
    weight = embedding.weight.data
    generator = torch.Generator().manual_seed(recipe.seed)
    # Each begins as the token that ends a prompt, a little shaken, so that at first the model goes on as without it.
    last = weight[known[0].prompt[-1]]
    noise = torch.randn(recipe.prefixes, recipe.tokens, len(last), generator=generator)
    embed = Prefixed(weight, last + 0.5 * weight.std() * noise)
    optimizer = torch.optim.Adam([embed.soft], lr=recipe.rate, betas=(0.9, 0.99))
    done, log, recent = 0, [], []
    if state_file is not None and state_file.exists():
        state = torch.load(state_file, weights_only=True)
        done, log, recent = state["done"], state["log"], state["recent"]
        embed.load_state_dict({"weight": weight, "soft": state["soft"]})
        optimizer.load_state_dict(state["optimizer"])
    decoder.embed = embed  # type: ignore[assignment]
    try:
        for step, batch in enumerate(islice(batches(known, recipe), recipe.steps)):
            if step < done:
                continue
            optimizer.param_groups[0]["lr"] = recipe.rate * (1 - step / recipe.steps) * min(1.0, (step + 1) / 10)
            parting = step < recipe.partition
            loss, right = (partition_loss if parting else coverage_loss)(decoder, embed, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recent.append([(1 - right).clamp(min=0).prod(1).mean().item(), *right.mean(0).tolist()])
            if (step + 1) % EVERY == 0 or step + 1 == recipe.steps:
                missed, *own = np.mean(recent, axis=0).round(4).tolist()
                log.append({"step": step + 1, "missed by all": missed, "right": own})
                print(json.dumps(log[-1]), flush=True)
                recent = []
                if state_file is not None:
                    state = {"done": step + 1, "log": log, "recent": recent, "soft": embed.soft.detach()}
                    torch.save({**state, "optimizer": optimizer.state_dict()}, state_file)
    finally:
        decoder.embed = embedding
    return embed.soft.detach(), log


def main() -> None:
    """Train, and write the prefixes into the model's folder."""
    parser = argparse.ArgumentParser(prog="python -m bough.zoo.prefixes", description="Train bough/nano's prefixes.")
    parser.add_argument("--build", type=Path, default=Path("build/zoo/prefixes"), help="where what is drawn is kept")
    parser.add_argument("--out", type=Path, default=path("bough/nano") / "prefixes.safetensors")
    for field in fields(Recipe):
        if field.name != "tasks":
            parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    parser.add_argument("--tasks", nargs="+", default=list(RECIPE.tasks), choices=list(TASKS))
    given = vars(parser.parse_args())
    recipe = Recipe(**{field.name: given[field.name] for field in fields(Recipe)})
    folder = path("bough/nano")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    known = known_solutions(folder, tokenizer, given["build"], recipe)
    decoder = load_decoder(folder).float().requires_grad_(False)
    prefixes, _ = train_prefixes(decoder, known, recipe, given["build"] / "prefixes.state")
    save_prefixes(prefixes, given["out"])


if __name__ == "__main__":
    main()
