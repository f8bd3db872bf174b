"""A plain batched sampler, for measuring a model in training and for drawing what the reward model learns from.

The engine does this better, but needs a finished checkpoint; this one runs on a decoder in memory.
"""

from __future__ import annotations

from functools import partial

import torch
from tokenizers import Tokenizer
from torch import Tensor

from bough.models import Decoder
from bough.tasks import TASKS, Problem

from .attend import CachedAttend, RectangleAttend
from .tokenizer import BOS_ID, EOS_ID, PAD_ID


@torch.inference_mode()
def sample(
    decoder: Decoder,
    prompts: list[list[int]],
    temperature: float,
    max_tokens: int,
    generator: torch.Generator,
) -> list[list[int]]:
    """One continuation of each prompt, in order, up to and without <eos>; greedy at temperature 0."""
    config, rows = decoder.config, len(prompts)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    longest = int(lengths.max())
    tokens = torch.full((rows, longest), PAD_ID)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = torch.tensor(prompt)
    limits = (lengths + max_tokens).clamp(max=config.context)
    dtype = decoder.embed.weight.dtype
    cache = CachedAttend(config.num_layers, rows, int(limits.max()), config.num_kv_heads, config.head_dim, dtype)
    first = partial(cache.prefill, RectangleAttend(rows, longest))
    hidden = decoder(tokens.flatten(), torch.arange(longest).repeat(rows), first).last
    hidden = hidden.view(rows, longest, -1)[torch.arange(rows), lengths - 1]
    out: list[list[int]] = [[] for _ in prompts]
    alive, positions, ended = torch.arange(rows), lengths.clone(), torch.zeros(rows, dtype=torch.bool)
    while True:
        new = _choose(decoder.logits(hidden), temperature, generator)
        going = ~ended & (new != EOS_ID) & (positions < limits)
        for row, token, goes in zip(alive.tolist(), new.tolist(), going.tolist(), strict=True):
            if goes:
                out[row].append(token)
        ended |= ~going
        if ended.all():
            return out
        # Moving the cache costs more than a few idle rows do.
        if ended.float().mean() > 0.2:
            kept = (~ended).nonzero().flatten()
            cache.keep(kept)
            alive, limits, ended = alive[kept], limits[kept], ended[kept]
            new, positions = new[kept], positions[kept]
        positions = positions.masked_fill(ended, 0)
        cache.place(positions)
        hidden = decoder(new, positions, cache).last
        positions = positions + 1


def _choose(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    if temperature == 0:
        return logits.argmax(-1)
    cumulative = (logits / temperature).softmax(-1).cumsum(-1)
    at = torch.rand(len(logits), 1, generator=generator) * cumulative[:, -1:]
    return (cumulative <= at).sum(-1).clamp(max=logits.shape[-1] - 1)


def sample_problems(
    decoder: Decoder,
    tokenizer: Tokenizer,
    problems: list[Problem],
    temperature: float,
    seed: int,
    batch: int = 256,
    max_tokens: int = 224,
) -> list[str]:
    """One completion of each problem. Problems of like length share a batch."""
    generator = torch.Generator().manual_seed(seed)
    encoded = tokenizer.encode_batch_fast([problem.prompt for problem in problems], add_special_tokens=False)
    prompts = [[BOS_ID, *encoding.ids] for encoding in encoded]
    order = sorted(range(len(problems)), key=lambda i: (problems[i].task, problems[i].level, len(prompts[i])))
    texts = [""] * len(problems)
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        completions = sample(decoder, [prompts[i] for i in rows], temperature, max_tokens, generator)
        for i, text in zip(rows, tokenizer.decode_batch(completions), strict=True):
            texts[i] = text
    return texts


def accuracy(
    decoder: Decoder,
    tokenizer: Tokenizer,
    split: str,
    count: int,
    temperature: float,
    levels: dict[str, int],
    seed: int,
) -> dict[str, float]:
    """The share of each task's first `count` problems, at the given level, that one completion gets right."""
    problems = [TASKS[task].problem(split, i, level) for task, level in levels.items() for i in range(count)]
    right = {task: 0 for task in levels}
    texts = sample_problems(decoder, tokenizer, problems, temperature, seed)
    for problem, text in zip(problems, texts, strict=True):
        right[problem.task] += TASKS[problem.task].check(problem, text)
    return {task: number / count for task, number in right.items()}
