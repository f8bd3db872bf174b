"""The probe that tells bough/nano-think when to answer at once (`bough.search.CoTSwitch`).

    python -m bough.zoo.switch      # some minutes; writes nano-think/switch.safetensors

The model answers training problems without thoughts, several times each; the share of right answers is what a
logistic regression on the hidden state at the prompt's last token is fitted to. The layer is the one, of the last
three, whose probe tells right answers to validation problems from wrong ones best.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import Any

import numpy as np

from bough.core import run
from bough.engine import NativeBackend
from bough.models import load_decoder, load_tokenizer
from bough.search import Probe, fit_probe
from bough.search.thinking import leave, opened, require_thinking
from bough.tasks import TASKS, Problem

from . import path
from .parts import run_parts
from .prm import auc

FIRST = 30_000_000  # the first problem's index: those before it trained the models
PROBLEMS = {"train": 600, "validation": 200}  # of each task
SAMPLES = 4
FILE = "switch.safetensors"
_UNDER_WAY = 64


def answers_at_once(folder: Path, task: str, split: str, count: int) -> dict[str, Any]:
    """Of each problem: the hidden states after the last three layers, and the share of right answers.

    Returns:
        ``hidden``, ``[3, problems, H]``, and ``right``, ``[problems]``, as lists.
    """
    problems = [TASKS[task].problem(split, (FIRST if split == "train" else 0) + index) for index in range(count)]
    with NativeBackend(load_decoder(folder), load_tokenizer(folder), name=folder.name) as lm:
        found = run(_answer_all(lm, problems))
    return {
        "hidden": [[states[layer] for states, _ in found] for layer in range(3)],
        "right": [right for _, right in found],
    }


async def _answer_all(lm: NativeBackend, problems: list[Problem]) -> list[tuple[list[list[float]], float]]:
    gate = asyncio.Semaphore(_UNDER_WAY)

    async def one(problem: Problem) -> tuple[list[list[float]], float]:
        async with gate:
            prompt = lm.branch(problem.prompt)
            thinking = require_thinking(prompt, "the switch")
            states = [(await prompt.hidden(layer)).tolist() for layer in (-3, -2, -1)]
            leaves = await leave(opened(prompt, thinking), thinking).sample(SAMPLES, max_tokens=224)
            return states, float(np.mean([TASKS[problem.task].check(problem, leaf.answer) for leaf in leaves]))

    return await asyncio.gather(*map(one, problems))


def train_switch(folder: Path, build: Path, problems: dict[str, int] | None = None) -> tuple[Probe, dict[str, Any]]:
    """The probe, and how well it tells right answers of validation problems from wrong ones.

    Args:
        folder: the model's.
        build: where what is drawn is kept.
        problems: of each task, by split.
    """
    counts = problems or PROBLEMS
    parts = {f"{split}-{task}": (folder, task, split, counts[split]) for split in counts for task in TASKS}
    drawn = run_parts(answers_at_once, parts, build)

    def joined(split: str) -> tuple[np.ndarray, np.ndarray]:
        own = [drawn[f"{split}-{task}"] for task in TASKS]
        return np.concatenate([part["hidden"] for part in own], 1), np.concatenate([part["right"] for part in own])

    (states, right), (fresh, truth) = joined("train"), joined("validation")
    probes = [fit_probe(states[place], right, place - 3) for place in range(3)]
    found = [probe.probability(fresh[place]) for place, probe in enumerate(probes)]
    quality = [_auc(one, truth) for one in found]
    best = int(np.argmax(quality))
    own = np.array_split(np.arange(len(truth)), len(TASKS))
    return probes[best], {
        "problems": counts,
        "samples": SAMPLES,
        "auc": {probe.layer: round(value, 4) for probe, value in zip(probes, quality, strict=True)},
        "by task": {
            task: {
                "right": round(float(truth[at].mean()), 4),
                "expected": round(float(found[best][at].mean()), 4),
                "auc": round(_auc(found[best][at], truth[at]), 4),
            }
            for task, at in zip(TASKS, own, strict=True)
        },
    }


def _auc(expected: np.ndarray, right: np.ndarray) -> float:
    """Of a problem that is mostly answered right against one that is not."""
    return auc(expected[right > 0.5], expected[right <= 0.5])


def main() -> None:
    """Train, print how good it is, and write the file."""
    parser = argparse.ArgumentParser(prog="python -m bough.zoo.switch", description="Train nano-think's switch.")
    parser.add_argument("--build", type=Path, default=Path("build/zoo/switch"), help="where what is drawn is kept")
    parser.add_argument("--out", type=Path, default=path("bough/nano-think") / FILE)
    arguments = parser.parse_args()
    probe, measured = train_switch(path("bough/nano-think"), arguments.build)
    print(measured)
    probe.save(arguments.out)


if __name__ == "__main__":
    main()
