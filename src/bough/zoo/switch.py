"""The probe that tells bough/nano-think when to answer at once (`bough.search.CoTSwitch`).

    python -m bough.zoo.switch      # some minutes; writes nano-think/switch.safetensors

The model answers training problems without thoughts, several times each; the share of right answers is what a
logistic regression on the hidden state at the prompt's last token is fitted to. The layer is the one whose probe
finds the outcomes of validation problems likeliest.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import Any

import numpy as np

from bough.core import Run, run
from bough.engine import NativeBackend
from bough.models import load_decoder, load_tokenizer
from bough.search import CoTSwitch
from bough.search.cot_switch import PROBE_FILE
from bough.search.probe import Probe, fit_probe, states_of
from bough.tasks import TASKS, Problem

from . import path
from .parts import run_parts
from .prm import auc

FIRST = 30_000_000  # the first problem's index: those before it trained the models
PROBLEMS = {"train": 600, "validation": 200}  # of each task
SAMPLES = 4
MAX_TOKENS = 224
_UNDER_WAY = 64


def answers_at_once(folder: Path, task: str, split: str, count: int) -> dict[str, Any]:
    """Of each problem: the hidden states after every layer, and the share of right answers.

    Returns:
        ``states``, ``[problems, layers * H]``, ``right``, ``[problems]``, as lists, and the number of ``layers``.
    """
    problems = [TASKS[task].problem(split, (FIRST if split == "train" else 0) + index) for index in range(count)]
    with NativeBackend(load_decoder(folder), load_tokenizer(folder), name=folder.name) as lm:
        found, layers = run(_answer_all(lm, problems)), lm.layers
    return {"states": [states for states, _ in found], "right": [right for _, right in found], "layers": layers}


async def _answer_all(lm: NativeBackend, problems: list[Problem]) -> list[tuple[list[float], float]]:
    gate, at_once = asyncio.Semaphore(_UNDER_WAY), CoTSwitch(threshold=0.0, max_tokens=MAX_TOKENS)

    async def right(problem: Problem, seed: int) -> bool:
        answer = await Run(task=TASKS[problem.task]).execute(at_once, lm.branch(problem.prompt, seed=seed))
        return TASKS[problem.task].check(problem, answer.text)

    async def one(problem: Problem) -> tuple[list[float], float]:
        async with gate:
            (states,) = await states_of([lm.branch(problem.prompt)], range(lm.layers))
            return states.tolist(), float(np.mean(await asyncio.gather(*(right(problem, s) for s in range(SAMPLES)))))

    return await asyncio.gather(*map(one, problems))


def train_switch(folder: Path, build: Path, problems: dict[str, int] | None = None) -> tuple[Probe, dict[str, Any]]:
    """The probe, and how well it tells right answers to validation problems from wrong ones.

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
        return np.concatenate([part["states"] for part in own]), np.concatenate([part["right"] for part in own])

    (states, right), (fresh, truth) = joined("train"), joined("validation")
    layers = next(iter(drawn.values()))["layers"]
    width = states.shape[1] // layers
    found = []
    for layer in range(layers):
        at = slice(layer * width, (layer + 1) * width)
        probe = fit_probe(states[:, at], right, [layer])
        expected = probe.scores(fresh[:, at])
        loss = -np.mean(truth * np.log(expected) + (1 - truth) * np.log1p(-expected))
        found.append((float(loss), probe, expected))
    _, best, expected = min(found, key=lambda one: one[0])
    by_task = {}
    for task, own in zip(TASKS, np.split(np.arange(len(truth)), len(TASKS)), strict=True):
        good, bad = (expected[own][(truth[own] > 0.5) == side] for side in (True, False))
        by_task[task] = {
            "right": round(float(truth[own].mean()), 4),
            "expected": round(float(expected[own].mean()), 4),
            "auc": round(auc(good, bad), 4),
        }
    losses = {layer: round(loss, 4) for layer, (loss, _, _) in enumerate(found)}
    return best, {"problems": counts, "samples": SAMPLES, "loss by layer": losses, "by task": by_task}


def main() -> None:
    """Train, print how good it is, and write the file."""
    parser = argparse.ArgumentParser(prog="python -m bough.zoo.switch", description="Train nano-think's switch.")
    parser.add_argument("--build", type=Path, default=Path("build/zoo/switch"), help="where what is drawn is kept")
    parser.add_argument("--out", type=Path, default=path("bough/nano-think") / PROBE_FILE)
    arguments = parser.parse_args()
    probe, measured = train_switch(path("bough/nano-think"), arguments.build)
    print(measured)
    probe.save(arguments.out)


if __name__ == "__main__":
    main()
