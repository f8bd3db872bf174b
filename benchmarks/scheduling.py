"""Schedulers on a heavy-tailed load: completion times against first come first served, in a simulated engine.

    python benchmarks/scheduling.py

Jobs arrive as a Poisson process. Their answers' lengths are log-normal, most of them short and a few very long, and
so are their prompts' lengths. A pass takes as long as it takes to read the weights, plus a little for every
continuation in it and every token of a prompt; a job that goes on after it made room finds its keys and values in the
cache. The schedulers are the server's own, with their defaults. The same jobs arrive at the same times for each.

A load of 1 is what the engine can do: jobs arrive as fast as full passes complete them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bough.serve.schedulers import SCHEDULERS, Job, Scheduler, make_scheduler


@dataclass(frozen=True)
class Engine:
    """What a pass costs, in seconds.

    Attributes:
        slots: continuations in a pass.
        base: of a pass without anything in it.
        row: what each continuation adds.
        token: what each token of a prompt adds.
    """

    slots: int = 16
    base: float = 0.02
    row: float = 0.0002
    token: float = 0.0001


@dataclass(frozen=True)
class Load:
    """Jobs and when they come: arrays ``[jobs]`` of times, prompts' and answers' lengths."""

    arrivals: np.ndarray
    prompts: np.ndarray
    lengths: np.ndarray


def make_load(engine: Engine, load: float, jobs: int, spread: float, seed: int) -> Load:
    """Jobs that take so much of the engine; ``spread`` is the standard deviation of the logarithm of a length."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(np.log(60), spread, jobs), 1, 8_000).astype(int)
    prompts = np.clip(rng.lognormal(np.log(100), 1.0, jobs), 1, 4_000).astype(int)
    share = engine.base / engine.slots + engine.row  # of a full pass, for one token
    gap = (lengths.mean() * share + prompts.mean() * engine.token) / load
    return Load(np.cumsum(rng.exponential(gap, jobs)), prompts, lengths)


def completion_times(scheduler: Scheduler, engine: Engine, load: Load) -> np.ndarray:
    """Float ``[jobs]``: from each job's arrival to its last token."""
    jobs = [Job(number, int(prompt)) for number, prompt in enumerate(load.prompts)]
    times, now, arrived, left = np.zeros(len(jobs)), 0.0, 0, len(jobs)
    present = 0
    running: list[Job] = []
    stale = True
    while left:
        while arrived < len(jobs) and (load.arrivals[arrived] <= now or not present):
            now = max(now, float(load.arrivals[arrived]))
            scheduler.add(jobs[arrived], now)
            arrived, present, stale = arrived + 1, present + 1, True
        wake = scheduler.wake(now)
        if stale or (wake is not None and wake <= now):
            running, stale = scheduler.choose(engine.slots, now), False
        prefill = sum(job.prompt for job in running if not job.served)
        now += engine.base + engine.row * len(running) + engine.token * prefill
        for job in running:
            job.served += 1
            if job.served == load.lengths[job.number]:
                scheduler.remove(job)
                times[job.number] = now - load.arrivals[job.number]
                left, present, stale = left - 1, present - 1, True
            elif job.served >= job.until:
                scheduler.used_up(job, now)
                stale = True
    return times


def main(words: Sequence[str] | None = None) -> None:
    """Print a table of completion times."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=4_000)
    parser.add_argument("--spread", type=float, nargs="*", default=[0.5, 1.0, 1.5, 2.0])
    parser.add_argument("--load", type=float, nargs="*", default=[0.7, 0.95])
    parser.add_argument("--slots", type=int, default=Engine.slots)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(words)
    engine = Engine(options.slots)
    print(
        "| spread | load | scheduler | mean s | p95 s | p99 s | mean, fcfs = 1 | p95, fcfs = 1 |\n" + "|---" * 8 + "|"
    )
    for spread in options.spread:
        for share in options.load:
            load = make_load(engine, share, options.jobs, spread, options.seed)
            base: np.ndarray | None = None
            for name in SCHEDULERS:
                if name == "priority":  # nothing here is more urgent than anything else
                    continue
                scheduler = make_scheduler(name)
                times = completion_times(scheduler, engine, load)
                base = times if base is None else base
                mean, p95, p99 = times.mean(), *np.percentile(times, (95, 99))
                ratios = f"{base.mean() / mean:.2f} | {np.percentile(base, 95) / p95:.2f}"
                print(f"| {spread} | {share} | {name} | {mean:.1f} | {p95:.1f} | {p99:.1f} | {ratios} |")


if __name__ == "__main__":
    main()
