"""Figures of bough alone, in bf16: what a token, a step, a fork, a load and an import cost."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contenders import cpu_of_others
from contenders.bough import ENDLESS, load

from bough.core import Backend

BRANCHES = (1, 4, 16, 64, 256, 1024)
PREFIXES = (128, 512, 2048, 8192, 16384)
KERNELS = "engine.runner._team.run"
"""What runs the compiled code, from the backend: time that is not the engine's own."""


def _prompt(lm: Backend, length: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, lm.vocab_size, length).tolist()


def _generate(lm: Backend, prefix: int, branches: int, tokens: int, seed: int) -> float:
    """Seconds for so many branches of one new prompt."""
    root = lm.branch(_prompt(lm, prefix, seed), seed=seed)
    started = time.perf_counter()
    leaves = lm.generate(root, n=branches, max_tokens=tokens, stop=ENDLESS)
    seconds = time.perf_counter() - started
    assert all(len(leaf.appended) == tokens for leaf in leaves)
    return seconds


def linear_cost(folder: Path, tokens: int = 32) -> dict[str, Any]:
    """(g) Microseconds per unique token over branches (after 512 tokens) and over prefixes (of 64 branches)."""
    found: dict[str, dict[str, float]] = {"branches": {}, "prefix": {}}
    lm = load(folder, "bf16", max_batch=max(BRANCHES))
    for name, sizes in (
        ("branches", [(512, n) for n in BRANCHES]),
        ("prefix", [(prefix, 64) for prefix in PREFIXES]),
    ):
        for i, (prefix, branches) in enumerate(sizes):
            _generate(lm, prefix, branches, 2, seed=100 + i)  # warm up: the shapes of this size
            seconds = _generate(lm, prefix, branches, tokens, seed=i)
            key = branches if name == "branches" else prefix
            found[name][str(key)] = 1e6 * seconds / (prefix + branches * tokens)
    lm.close()
    return found


def step_overhead(folder: Path, tokens: int = 64) -> dict[str, Any]:
    """(h) Microseconds of a step with 1 and 64 rows, and the part of it outside the kernels.

    Raises:
        RuntimeError: the engine did not call what is taken for the kernels.
    """
    lm = load(folder, "bf16")
    spent, calls = [0.0], [0]

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                spent[0] += time.perf_counter() - started
                calls[0] += 1

        return wrapper

    *owners, name = KERNELS.split(".")
    owner = reduce(getattr, owners, lm)
    setattr(owner, name, timed(getattr(owner, name)))
    found = {}
    for rows in (1, 64):
        _generate(lm, 32, rows, tokens, seed=100 + rows)
        spent[0], calls[0] = 0.0, 0
        seconds = _generate(lm, 32, rows, tokens, seed=rows)
        if calls[0] < tokens:
            lm.close()
            raise RuntimeError(f"{KERNELS} ran {calls[0]} times for {tokens} steps; name what the engine calls")
        found[str(rows)] = {"step": 1e6 * seconds / tokens, "outside_kernels": 1e6 * (seconds - spent[0]) / tokens}
    lm.close()
    return found


def forks(folder: Path, times: int = 2000) -> dict[str, Any]:
    """(i) Microseconds of a fork, of appending a token and of selecting 64 branches; slots of KV memory they took."""
    lm = load(folder, "bf16")
    leaves = lm.generate(lm.branch(_prompt(lm, 512, 0)), n=64, max_tokens=8, stop=ENDLESS)
    lm.engine.settle()  # type: ignore[attr-defined]
    free = lm.engine.pool.free  # type: ignore[attr-defined]
    chosen = np.random.default_rng(0).integers(0, len(leaves), len(leaves))
    started = time.perf_counter()
    forked = leaves[0].fork(times)
    fork = (time.perf_counter() - started) / times
    started = time.perf_counter()
    made = [leaves[0] + [3] for _ in range(times)]
    append = (time.perf_counter() - started) / times
    started = time.perf_counter()
    selected = [leaves.select(chosen) for _ in range(times)]
    select = (time.perf_counter() - started) / times
    lm.engine.settle()  # type: ignore[attr-defined]
    assert len(forked) == len(made) == len(selected)
    taken = free - lm.engine.pool.free  # type: ignore[attr-defined]
    lm.close()
    return {"fork_us": 1e6 * fork, "append_us": 1e6 * append, "select_64_us": 1e6 * select, "slots_taken": taken}


def memory(folder: Path) -> dict[str, Any]:
    """(l) Peak KV memory of 64 branches of 64 tokens from a prompt of 1,024, over that of the unique tokens."""
    lm = load(folder, "bf16")
    _generate(lm, 1024, 64, 64, seed=0)
    unique = (1024 + 64 * 64) * lm.engine.pool.token_bytes  # type: ignore[attr-defined]
    peak = lm.peak_kv_bytes  # type: ignore[attr-defined]
    lm.close()
    return {"peak_bytes": peak, "unique_bytes": unique, "ratio": peak / unique}


def loading(folder: Path, times: int = 5) -> dict[str, Any]:
    """(j) Seconds to load a checkpoint that the page cache holds, and to read its bytes; both into new memory.

    Getting memory from the system is part of either: where it is slow, it takes longer than the copying.
    """
    files = sorted(folder.glob("*.safetensors"))
    reads, loads = [], []
    for _ in range(times + 1):  # the first of each warms up
        started = time.perf_counter()
        size = sum(len(file.read_bytes()) for file in files)
        reads.append(time.perf_counter() - started)
        assert size
        started = time.perf_counter()
        lm = load(folder, "bf16")
        loads.append(time.perf_counter() - started)
        lm.close()
        del lm
    read, seconds = statistics.median(reads[1:]), statistics.median(loads[1:])
    return {
        "load": seconds,
        "read": read,
        "ratio": seconds / read,
        "bytes": sum(file.stat().st_size for file in files),
    }


def starting(times: int = 5) -> dict[str, Any]:
    """(k) Seconds of ``import bough`` and of ``bough --help``, each in a new process; medians."""

    def seconds(*arguments: str) -> float:
        taken = []
        for _ in range(times):
            started = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            taken.append(time.perf_counter() - started)
        return statistics.median(taken)

    return {
        "python": seconds("-c", ""),
        "import": seconds("-c", "import bough"),
        "help": seconds("-m", "bough.cli", "--help"),
    }


FIGURES: dict[str, tuple[str, Callable[..., dict[str, Any]], tuple[str, ...]]] = {
    "g": ("microseconds per unique token", linear_cost, ("nano", "llama-150m")),
    "h": ("microseconds per step", step_overhead, ("nano", "llama-150m")),
    "i": ("forks", forks, ("nano",)),
    "j": ("loading", loading, ("llama-500m",)),
    "k": ("starting", starting, ()),
    "l": ("peak KV memory", memory, ("nano", "llama-500m")),
}
"""Letter: title, function of a checkpoint's folder (or of nothing), and the models it is for."""


def figure(letter: str, folder: Path | None, threads: int) -> dict[str, Any]:
    """One figure, in a process of its own; ``others``: how many cores other programs kept busy meanwhile."""
    torch.set_num_threads(threads)
    _, function, models = FIGURES[letter]
    if not models:
        return function()
    others, started = cpu_of_others(), time.perf_counter()
    found = function(folder)
    found["others"] = (cpu_of_others() - others) / (time.perf_counter() - started)
    return found
