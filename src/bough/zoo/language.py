"""bough/nano and bough/nano-draft: language models trained from scratch on worked solutions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bough.models import Decoder
from bough.tasks import TASKS

from .data import Batch, batches, tokenizer_corpus
from .sampling import accuracy
from .tokenizer import train_tokenizer
from .training import Recipe, config_of, fit, next_token_loss

RECIPES = {
    "nano": Recipe(
        hidden=256,
        layers=6,
        heads=8,
        kv_heads=4,
        ffn=768,
        steps=2650,
        rate=((59, 1.0), (690, 1.0), (2300, 0.0), (2330, 0.5)),
    ),
    "nano-draft": Recipe(hidden=128, layers=4, heads=4, kv_heads=2, ffn=384, steps=600, rate=((59, 1.0), (180, 1.0))),
}


def make_tokenizer() -> Tokenizer:
    """The tokenizer of all embedded models."""
    return train_tokenizer(tokenizer_corpus(400))


def train_language_model(name: str, build: Path, recipe: Recipe) -> tuple[Decoder, list[dict[str, Any]]]:
    """The trained decoder (float32), and what was measured on validation problems on the way."""
    tokenizer = make_tokenizer()
    decoder = Decoder.from_config(config_of(recipe, tokenizer.get_vocab_size()), seed=recipe.seed)
    levels = {task: TASKS[task].default_level for task in TASKS}

    def measure(model: Decoder) -> dict[str, Any]:
        return {
            "greedy": accuracy(model, tokenizer, "validation", 64, 0.0, levels, seed=0),
            "sampled": accuracy(model, tokenizer, "validation", 64, 1.0, levels, seed=0),
        }

    def data(skip: int) -> Iterable[Batch]:
        return batches(tokenizer, recipe.batch_tokens, recipe.seed, skip)

    log = fit(
        decoder,
        recipe,
        data,
        lambda model, batch: next_token_loss(model, batch.tokens, batch.targets, batch.weights),
        lambda batch: batch.tokens.size,
        measure,
        build / f"{name}.state",
    )
    return decoder, log
