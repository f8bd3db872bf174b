"""The contenders: each does every workload with the best of its own means.

A contender's module is imported in the process that runs it, so that a missing peer is skipped and no contender's
threads stand in another's way.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from workloads import Workload


@dataclass(frozen=True)
class Outcome:
    """What a run took.

    Attributes:
        seconds: of the work.
        produced: tokens that it really made.
        extra: whatever else is worth keeping: ``first_token``, seconds to it (median); ``others``, how many cores
            other programs kept busy meanwhile.
    """

    seconds: float
    produced: int
    extra: dict[str, float] = field(default_factory=dict)


class Contender(ABC):
    """One way to run a checkpoint; a workload is the method of its title's name, where there is one."""

    @abstractmethod
    def __init__(self, folder: Path, precision: str, threads: int) -> None: ...

    @staticmethod
    @abstractmethod
    def version() -> str:
        """Name and version of what runs."""

    def run(self, work: Workload) -> Outcome:
        """Do the work.

        Raises:
            NotImplementedError: this contender has no means for it.
        """
        method: Any = getattr(self, work.title.replace(" ", "_"), None)
        if method is None:
            raise NotImplementedError(f"{type(self).__name__} does not do {work.title}")
        others, wall = cpu_of_others(), time.perf_counter()
        outcome: Outcome = method(work)
        # Less what the clock, which counts hundredths of a second, may be wrong by.
        others = max(cpu_of_others() - others - 0.02, 0.0)
        outcome.extra["others"] = others / (time.perf_counter() - wall)
        if outcome.produced != work.produced:
            raise AssertionError(f"{outcome.produced} tokens were produced instead of {work.produced}")
        return outcome


@dataclass(frozen=True)
class Entry:
    """A contender's place: module, class, packages it needs, and what it offers."""

    module: str
    cls: str
    needs: tuple[str, ...]
    precisions: tuple[str, ...]
    works: str
    about: str

    @property
    def missing(self) -> list[str]:
        return [package for package in self.needs if find_spec(package) is None]

    def load(self) -> type[Contender]:
        found: type[Contender] = getattr(import_module(f"contenders.{self.module}"), self.cls)
        return found


CONTENDERS = {
    "bough": Entry("bough", "Bough", (), ("bf16", "int8", "int4"), "abcdef", "this repository"),
    "llama.cpp": Entry(
        "llamacpp",
        "LlamaCpp",
        ("llama_cpp", "gguf"),
        ("bf16", "int8", "int4"),
        "abcdef",
        "sequences that share one KV cache; Q8_0 and Q4_0",
    ),
    "transformers": Entry(
        "transformers",
        "Transformers",
        ("transformers",),
        ("bf16",),
        "abcdef",
        "its caches by hand: the prompt once, repeated, selected; continuous batching for (d)",
    ),
    "generate": Entry(
        "transformers",
        "Generate",
        ("transformers",),
        ("bf16",),
        "bc",
        "transformers' generate() as it stands, prefixes submitted again",
    ),
    "ctranslate2": Entry(
        "ctranslate2", "CTranslate2", ("ctranslate2", "transformers"), ("int8",), "abce", "no bf16 on CPUs, no int4"
    ),
    "torch": Entry("torch", "Products", (), ("bf16",), "e", "the bare matrix products of a prefill, in one loop"),
}


def cpu_of_others() -> float:
    """CPU seconds of all other processes so far; where the system does not say, of none."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system = map(int, stat.read_text().split(maxsplit=4)[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK") - time.process_time()


def mean_logprobs(logits: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Mean log-probability of ``target [T]`` under the logits ``[n, T, V]`` of each row: float64 ``[n]``."""
    scores = np.empty(len(logits))
    for i, row in enumerate(logits):  # a row at a time stays in the cache
        peak = row.max(1)
        total = np.exp(row - peak[:, None]).sum(1)
        scores[i] = (row[np.arange(len(target)), target] - peak - np.log(total)).mean()
    return scores
