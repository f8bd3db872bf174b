"""The recipe: trains the embedded models on one CPU core and writes them as Hugging Face folders.

    python -m bough.zoo.train nano          # about three quarters of an hour on one core with bf16 matmuls
    python -m bough.zoo.train --all         # all of them

A run is resumed where it stopped: its state is saved every few minutes under build/zoo/.
Hidden matrices are trained by Muon (https://kellerjordan.github.io/posts/muon), embeddings and norms by AdamW,
with float32 weights and bf16 matrix products; the learning rate warms up, stays, and decays linearly to 0.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from bough.models import Decoder
from bough.tasks import TASKS
from bough.zoo.attend import RectangleAttend
from bough.zoo.data import Batch, batches, tokenizer_corpus
from bough.zoo.sampling import accuracy
from bough.zoo.tokenizer import BOS_ID, EOS_ID, PAD_ID, train_tokenizer

CONTEXT = 1024
SAVE_EVERY = 200  # steps
MEASURE_EVERY = 200


@dataclass(frozen=True)
class Recipe:
    """What determines a trained model, its data and its random numbers included."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    steps: int
    batch_tokens: int = 8192  # padded
    warmup: int = 60
    decay: float = 0.5  # the share of the steps, at the end, over which the learning rate falls to 0
    muon_lr: float = 4e-3
    adam_lr: float = 4e-3
    weight_decay: float = 0.01
    seed: int = 0


RECIPES = {
    "nano": Recipe(hidden=256, layers=6, heads=8, kv_heads=4, ffn=768, steps=2300),
    "nano-draft": Recipe(hidden=128, layers=4, heads=4, kv_heads=2, ffn=384, steps=1500),
}


def config_of(recipe: Recipe, vocabulary: int) -> dict[str, Any]:
    """The model's config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": recipe.hidden,
        "intermediate_size": recipe.ffn,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.heads,
        "num_key_value_heads": recipe.kv_heads,
        "head_dim": recipe.hidden // recipe.heads,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "pad_token_id": PAD_ID,
        "dtype": "bfloat16",
    }


def optimizers(decoder: Decoder, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for the embedding and the norms."""
    matrices = [p for p in decoder.layers.parameters() if p.dim() == 2]
    others = [p for p in decoder.parameters() if not any(p is m for m in matrices)]
    return [
        torch.optim.Muon(
            matrices, lr=recipe.muon_lr, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=recipe.adam_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def rate(step: int, recipe: Recipe) -> float:
    """The learning rate at a step, relative to its peak."""
    up = (step + 1) / recipe.warmup
    down = (recipe.steps - step) / (recipe.decay * recipe.steps)
    return min(1.0, up, down)


def hidden_states(decoder: Decoder, tokens: Tensor) -> Tensor:
    """tokens [B, L] -> [B * L, H], with bf16 matrix products."""
    rows, length = tokens.shape
    with torch.autocast("cpu", torch.bfloat16):
        attend = RectangleAttend(rows, length)
        return decoder(tokens.flatten(), torch.arange(length).repeat(rows), attend).last


def loss_of(decoder: Decoder, batch: Batch) -> Tensor:
    """The mean cross-entropy of the tokens that count, in nats."""
    targets = torch.from_numpy(batch.targets).flatten()
    counted = (targets >= 0).nonzero().flatten()
    hidden = hidden_states(decoder, torch.from_numpy(batch.tokens))[counted]
    with torch.autocast("cpu", torch.bfloat16):
        logits = decoder.logits(hidden)
    return F.cross_entropy(logits.float(), targets[counted])


def train(name: str, build: Path, recipe: Recipe) -> tuple[Decoder, Tokenizer, list[dict[str, Any]]]:
    """Trains (or goes on training) a model; the decoder, its tokenizer, and what was measured on the way."""
    tokenizer = train_tokenizer(tokenizer_corpus(400))
    decoder = Decoder.from_config(config_of(recipe, tokenizer.get_vocab_size()), seed=recipe.seed)
    parts = optimizers(decoder, recipe)
    build.mkdir(parents=True, exist_ok=True)
    state_file = build / f"{name}.state"
    step, seen, seconds, log = 0, 0, 0.0, []
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        step, seen, seconds, log = state["step"], state["seen"], state["seconds"], state["log"]
        decoder.load_state_dict(state["decoder"])
        for part, part_state in zip(parts, state["optimizers"]):
            part.load_state_dict(part_state)
    peaks = [[group["lr"] for group in part.param_groups] for part in parts]
    if step:
        peaks = [[recipe.muon_lr], [recipe.adam_lr]]
    levels = {task: TASKS[task].default_level for task in TASKS}
    running, since = 0.0, 0
    for batch in batches(tokenizer, recipe.batch_tokens, recipe.seed, skip=step):
        if step >= recipe.steps:
            break
        began = time.perf_counter()
        for part, peak in zip(parts, peaks):
            for group, lr in zip(part.param_groups, peak):
                group["lr"] = lr * rate(step, recipe)
        loss = loss_of(decoder, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        for part in parts:
            part.step()
            part.zero_grad()
        step, seen, since = step + 1, seen + batch.tokens.size, since + 1
        seconds += time.perf_counter() - began
        running += loss.item()
        if step % 20 == 0:
            print(
                f"step {step} loss {running / since:.4f} tokens/s {seen / seconds:.0f} s {seconds:.0f}",
                flush=True,
            )
            running, since = 0.0, 0
        if step % MEASURE_EVERY == 0 or step == recipe.steps:
            model = copy.deepcopy(decoder).to(torch.bfloat16)
            entry = {"step": step, "tokens": seen, "seconds": round(seconds), "loss": loss.item()}
            for label, temperature in (("greedy", 0.0), ("sampled", 1.0)):
                entry[label] = accuracy(model, tokenizer, "validation", 64, temperature, levels, seed=0)
            log.append(entry)
            print(json.dumps(entry), flush=True)
        if step % SAVE_EVERY == 0 or step == recipe.steps:
            state = {
                "step": step,
                "seen": seen,
                "seconds": seconds,
                "log": log,
                "decoder": decoder.state_dict(),
            }
            state["optimizers"] = [part.state_dict() for part in parts]
            torch.save(state, state_file.with_suffix(".new"))
            state_file.with_suffix(".new").replace(state_file)
    return decoder, tokenizer, log


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the embedded models.")
    parser.add_argument("names", nargs="*", choices=[*RECIPES, []], help="which models")
    parser.add_argument("--build", type=Path, default=Path("build/zoo"), help="where running state is kept")
    parser.add_argument("--steps", type=int, help="fewer or more steps than the recipe's")
    arguments = parser.parse_args()
    for name in arguments.names:
        recipe = RECIPES[name]
        if arguments.steps:
            recipe = replace(recipe, steps=arguments.steps)
        train(name, arguments.build, recipe)


if __name__ == "__main__":
    main()
