"""Branching throughput of bough's engine against `transformers`, on the same checkpoint, cores and dtype.

The work: 64 branches of 64 tokens each from one prompt of 1,024 tokens, prefill included, temperature 1.
`transformers` runs `generate(num_return_sequences=64)`, which computes the prompt once for every branch.

    python benchmarks/engine.py                    # both models; about 20 minutes on 2 cores
    python benchmarks/engine.py --models nano

Each repetition runs both, one after the other and each in a process of its own, where the other's threads do not
stand in its way; the ratio is taken within a repetition. Results go to
`benchmarks/results/engine.json` and are printed as a table. Peak KV memory is what the engine's pool had in use at
its fullest, against what the unique tokens need.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import bough
from bough.core import Stop
from bough.engine import NativeBackend
from bough.models import Decoder, load_decoder, save_decoder

RESULTS = Path(__file__).parent / "results" / "engine.json"
MODELS: dict[str, dict[str, Any] | None] = {
    "nano": None,  # the embedded model
    "llama-500m": {
        "vocab_size": 32000,
        "hidden_size": 1280,
        "intermediate_size": 3584,
        "num_hidden_layers": 24,
        "num_attention_heads": 20,
        "num_key_value_heads": 5,
    },
}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def checkpoint(name: str, folder: Path) -> int:
    """Save the model, the embedded one or random weights in bf16, with room for the work; its parameters."""
    shape = MODELS[name]
    if shape is None:
        from bough import zoo

        embedded = load_decoder(zoo.path("bough/nano"), context=2048)
        model = Decoder.from_config({**embedded.config.raw, "max_position_embeddings": 2048}).to(torch.bfloat16)
        model.load_state_dict(embedded.state_dict())
    else:
        model = Decoder.from_config({**LLAMA, **shape}).to(torch.bfloat16)
    save_decoder(model, folder)
    return sum(parameter.numel() for parameter in model.parameters())


@cache
def peer_model(folder: Path) -> Any:
    """The checkpoint in `transformers`."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()


def peer_run(folder: Path, prompt: list[int], branches: int, tokens: int) -> float:
    """Seconds that `transformers` takes."""
    model, ids = peer_model(folder), torch.tensor([prompt])
    started = time.perf_counter()
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            num_return_sequences=branches,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            pad_token_id=0,
            top_k=0,
        )
    seconds = time.perf_counter() - started
    assert out.shape == (branches, len(prompt) + tokens)
    return seconds


@cache
def decoder(folder: Path) -> Decoder:
    """The checkpoint in bough."""
    return load_decoder(folder)


def bough_run(folder: Path, prompt: list[int], branches: int, tokens: int) -> tuple[float, float, dict[str, int]]:
    """Seconds, peak KV memory over what the unique tokens need, and the engine's counts; on a cold cache."""
    with NativeBackend(decoder(folder)) as lm:
        root = lm.branch(prompt, seed=0)
        started = time.perf_counter()
        leaves = lm.generate(root, n=branches, max_tokens=tokens, stop=Stop(eos=False))
        seconds = time.perf_counter() - started
        assert all(len(leaf.appended) == tokens for leaf in leaves)
        unique = len(prompt) + branches * tokens
        return seconds, lm.peak_kv_bytes / (unique * lm.engine.pool.token_bytes), vars(lm.engine.stats)


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """All repetitions of one model."""
    total, rows = args.branches * args.tokens, []
    spawn = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as scratch,
        ProcessPoolExecutor(1, spawn) as ours,
        ProcessPoolExecutor(1, spawn) as theirs,
    ):
        folder = Path(scratch)
        parameters = theirs.submit(checkpoint, name, folder).result()
        config = json.loads((folder / "config.json").read_text())
        prompt = np.random.default_rng(0).integers(3, config["vocab_size"], args.prompt).tolist()
        for contender, run in ((ours, bough_run), (theirs, peer_run)):  # both warm up
            contender.submit(run, folder, prompt[:64], 8, 4).result()
        for repetition in range(args.repetitions):
            seconds, memory, counts = ours.submit(bough_run, folder, prompt, args.branches, args.tokens).result()
            peer = theirs.submit(peer_run, folder, prompt, args.branches, args.tokens).result()
            rows.append(
                {"bough": total / seconds, "transformers": total / peer, "ratio": peer / seconds, "memory": memory}
            )
            print(
                f"{name} {repetition + 1}/{args.repetitions}: bough {total / seconds:,.0f} tokens/s, transformers "
                f"{total / peer:,.1f}, ratio {peer / seconds:.1f}, peak KV {memory:.3f} of unique tokens",
                flush=True,
            )
    ratios = [row["ratio"] for row in rows]
    return {
        "parameters": parameters,
        "repetitions": rows,
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "peak_kv_over_unique": max(row["memory"] for row in rows),
        "engine": counts,
    }


def main() -> None:
    """Measure, print, and keep the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--prompt", type=int, default=1024)
    parser.add_argument("--branches", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    results = json.loads(args.out.read_text()) if args.out.exists() else {"models": {}}
    results["machine"] = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "bough": bough.__version__,
    }
    results["work"] = {"prompt": args.prompt, "branches": args.branches, "tokens": args.tokens, "dtype": "bfloat16"}
    for name in args.models:
        results["models"][name] = measure(name, args)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=2) + "\n")
    print(f"\n{'model':12} {'bough tok/s':>12} {'peer tok/s':>12} {'ratio (min-max)':>20} {'peak KV / unique':>18}")
    for name, row in results["models"].items():
        ours, theirs = (statistics.median(r[k] for r in row["repetitions"]) for k in ("bough", "transformers"))
        spread = f"{row['ratio']['median']:.1f} ({row['ratio']['min']:.1f}-{row['ratio']['max']:.1f})"
        print(f"{name:12} {ours:12,.0f} {theirs:12,.1f} {spread:>20} {row['peak_kv_over_unique']:18.3f}")


if __name__ == "__main__":
    main()
