"""Branching throughput of bough's engine against `transformers`, on the same checkpoint, cores and dtype.

The work: 64 branches of 64 tokens each from one prompt of 1,024 tokens, prefill included, temperature 1.
`transformers` runs `generate(num_return_sequences=64)`, which computes the prompt once for every branch.

    python benchmarks/engine.py                    # both models; about 15 minutes on 2 cores
    python benchmarks/engine.py --models nano

Each repetition runs both, one after the other; the ratio is taken within a repetition. Results go to
`benchmarks/results/engine.json` and are printed as a table. Peak KV memory is what the engine's pool had in use at
its fullest, against what the unique tokens need.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
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


def checkpoint(name: str, folder: Path) -> Path:
    """A folder with the model: the embedded one, or random weights in bf16, with room for the whole work."""
    shape = MODELS[name]
    if shape is None:
        from bough import zoo

        decoder = load_decoder(zoo.path("bough/nano"), context=2048)
        raw = {**decoder.config.raw, "max_position_embeddings": 2048}
        wider = Decoder.from_config(raw).to(torch.bfloat16)
        wider.load_state_dict(decoder.state_dict())
        save_decoder(wider, folder)
    else:
        save_decoder(Decoder.from_config({**LLAMA, **shape}).to(torch.bfloat16), folder)
    return folder


def peer_run(model: Any, prompt: list[int], branches: int, tokens: int) -> float:
    """Seconds that `transformers` takes."""
    ids = torch.tensor([prompt])
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


def bough_run(decoder: Decoder, prompt: list[int], branches: int, tokens: int) -> tuple[float, float, dict[str, int]]:
    """Seconds, peak KV memory over what the unique tokens need, and the engine's counts; on a cold cache."""
    with NativeBackend(decoder) as lm:
        root = lm.branch(prompt, seed=0)
        started = time.perf_counter()
        leaves = lm.generate(root, n=branches, max_tokens=tokens, stop=Stop(eos=False))
        seconds = time.perf_counter() - started
        assert all(len(leaf.appended) == tokens for leaf in leaves)
        unique = len(prompt) + branches * tokens
        return seconds, lm.peak_kv_bytes / (unique * lm.engine.pool.token_bytes), vars(lm.engine.stats)


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """All repetitions of one model."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = checkpoint(name, Path(scratch))
        decoder = load_decoder(folder)
        peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    vocabulary = decoder.config.vocab_size
    prompt = np.random.default_rng(0).integers(3, vocabulary, args.prompt).tolist()
    total = args.branches * args.tokens
    bough_run(decoder, prompt[:64], 8, 4)  # both warm up
    peer_run(peer, prompt[:64], 8, 4)
    rows = []
    for repetition in range(args.repetitions):
        ours, memory, counts = bough_run(decoder, prompt, args.branches, args.tokens)
        theirs = peer_run(peer, prompt, args.branches, args.tokens)
        rows.append({"bough": total / ours, "transformers": total / theirs, "ratio": theirs / ours, "memory": memory})
        print(
            f"{name} {repetition + 1}/{args.repetitions}: bough {total / ours:,.0f} tokens/s, transformers "
            f"{total / theirs:,.1f}, ratio {theirs / ours:.1f}, peak KV {memory:.3f} of unique tokens",
            flush=True,
        )
    ratios = [row["ratio"] for row in rows]
    return {
        "parameters": sum(p.numel() for p in decoder.parameters()),
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
