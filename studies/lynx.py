"""What LYNX saves of the thoughts of bough/nano-think, what it loses, and whether its risk is kept.

    python studies/lynx.py                       # some twenty minutes on 2 cores
    python studies/lynx.py --tasks logic --problems 40 --seeds 1

Every problem is thought through to the end, and answered at every cue as well (`Lynx.exits`); what LYNX does at any
risk follows from that, with the probe that ships with the model. Beside it: no thoughts at all, and leaving at the
first cue. `lost` is the share of trials that LYNX answers wrongly and whole thoughts rightly. The risk bounds it for
all tasks together, since the probe was calibrated on all. The last rows are of a probe that was trained and
calibrated on arithmetic alone.
"""

from __future__ import annotations

import argparse
import asyncio
import math
from pathlib import Path
from typing import Any

import numpy as np
from common import Row, arguments, interval, show, write

import bough
from bough.core import Backend, Branch, Run
from bough.search import Lynx
from bough.search.lynx import PROBE_FILE
from bough.search.probe import Probe
from bough.tasks import get_task
from bough.zoo import path
from bough.zoo.parts import run_parts
from bough.zoo.thinking import train_probe

MODEL = "bough/nano-think"
RISKS = (0.02, 0.05, 0.1, 0.2)
OWN, FOREIGN = "all tasks", "arithmetic"  # what a probe was trained on
_AT_ONCE = 128


async def trial(prompt: Branch, task: str, index: int, probes: dict[str, Probe], strategy: Lynx) -> Row:
    """Right or not and tokens drawn, without thoughts, with all of them and at every cue; and the probes' scores."""
    aim = get_task(task)
    problem = aim.problem("test", index)

    def judged(start: Branch, leaf: Branch, given: int = 0) -> tuple[bool, int]:
        return aim.check(problem, leaf.answer), leaf.length - start.length - given

    run = Run(task=aim)
    prompt = prompt.with_run(run)
    opened = strategy.opened(prompt)
    direct = await strategy.reply(opened + "\n", run)  # an empty line, as in training
    assert direct.parent is not None
    (layers,) = {probe.layers for probe in probes.values()}
    found = await strategy.exits(prompt, run, layers)
    scores = {name: probe.scores(found.states).tolist() if found.thoughts else [] for name, probe in probes.items()}
    cues = []
    for thoughts, leaf in zip(found.thoughts, found.replies, strict=True):
        assert leaf.parent is not None
        cues.append(judged(opened, leaf, leaf.parent.length - thoughts.length))
    return {
        "index": index,
        "direct": judged(direct.parent, direct),
        "whole": judged(opened, found.last),
        "cues": cues,
        "scores": scores,
    }


def part(task: str, seed: int, foreign: Path, args: argparse.Namespace) -> list[Row]:
    """All problems of a task under one seed."""
    probes = {OWN: Probe.load(path(MODEL) / PROBE_FILE), FOREIGN: Probe.load(foreign)}
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(lm: Backend, index: int) -> Row:
        async with gate:
            prompt = lm.branch(get_task(task).problem("test", index).prompt, seed=seed)
            return await trial(prompt, task, index, probes, Lynx())

    async def everything(lm: Backend) -> list[Row]:
        return list(await asyncio.gather(*(one(lm, index) for index in range(args.problems))))

    with bough.load(MODEL) as lm:
        return bough.run(everything(lm))


def left(row: Row, name: str, threshold: float) -> tuple[bool, int]:
    """What LYNX gives of a trial."""
    cues = zip(row["cues"], row["scores"][name], strict=True)
    return next((cue for cue, score in cues if score > threshold), row["whole"])


def methods(probes: dict[str, Probe]) -> dict[str, Any]:
    """What is compared, by name: functions from a trial to right or not, and tokens."""
    found: dict[str, Any] = {
        "no thoughts": lambda row: row["direct"],
        "all thoughts": lambda row: row["whole"],
        "the first cue": lambda row: next(iter(row["cues"]), row["whole"]),
    }
    for name, probe in probes.items():
        for risk in RISKS:
            threshold = probe.threshold(risk)
            found[f"LYNX, {name}, risk {risk:g}"] = lambda row, n=name, t=threshold: left(row, n, t)
    return found


def compared(task: str, name: str, rows: list[list[Row]], method: Any) -> Row:
    """One method beside whole thoughts; `rows[problem]` are its trials."""
    own = np.array([[method(row) for row in some] for some in rows], float)  # [problems, trials, 2]
    whole = np.array([[row["whole"] for row in some] for some in rows], float)
    lost = (whole[..., 0] > own[..., 0]).astype(float)
    return {
        "task": task,
        "method": name,
        "accuracy": round(float(own[..., 0].mean()), 4),
        "tokens": round(float(own[..., 1].mean()), 1),
        "difference": interval(lambda a, b: float((a - b).mean()), own[..., 0], whole[..., 0]),
        "tokens, ratio": interval(lambda a, b: float(a.sum() / b.sum()), own[..., 1], whole[..., 1]),
        "lost": interval(lambda a: float(a.mean()), lost),
    }


def said(value: Any) -> Any:
    """An interval as text; anything else as it is."""
    if not isinstance(value, dict):
        return value
    return f"{value['estimate']:.4f} ({value['low']:.4f}, {value['high']:.4f})"


def main() -> None:
    """Run, print, and keep the table."""
    args = arguments(__doc__, "lynx").parse_args()
    args.scratch.mkdir(parents=True, exist_ok=True)
    foreign = args.scratch / f"{FOREIGN}.safetensors"
    if not foreign.exists():
        with bough.load(MODEL) as lm:
            train_probe(lm, [FOREIGN]).save(foreign)
    parts: dict[str, tuple[Any, ...]] = {
        f"{task}-{seed}-{args.problems}": (task, seed, foreign, args)
        for seed in range(args.seeds)
        for task in args.tasks
    }
    found = run_parts(part, parts, args.scratch)
    probes = {OWN: Probe.load(path(MODEL) / PROBE_FILE), FOREIGN: Probe.load(foreign)}
    by_task = {
        task: [
            [found[f"{task}-{seed}-{args.problems}"][index] for seed in range(args.seeds)]
            for index in range(args.problems)
        ]
        for task in args.tasks
    }
    by_task["all"] = [some for rows in by_task.values() for some in rows]
    table = [
        compared(task, name, rows, method)
        for task, rows in by_task.items()
        for name, method in methods(probes).items()
    ]
    thresholds = {
        name: {str(risk): t if math.isfinite(t := probe.threshold(risk)) else None for risk in RISKS}
        for name, probe in probes.items()
    }
    flat = [{name: said(value) for name, value in row.items()} for row in table]
    write(args.out, {"problems": args.problems, "seeds": args.seeds, "thresholds": thresholds, "rows": table}, flat)
    show(flat)


if __name__ == "__main__":
    main()
