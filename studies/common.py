"""What the studies share: the embedded models, the bank of samples, tables, figures and results."""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from samples import SCRATCH, TASKS, Samples, load_samples

import bough
from bough.bench.stats import accuracy
from bough.core import Backend
from bough.rewards import ProcessReward

HERE = Path(__file__).parent
RESULTS = HERE / "results"
BUILD = HERE.parent / "build"
Row = dict[str, Any]


@contextmanager
def embedded(model: str = "bough/nano", reward: str = "bough/nano-prm") -> Iterator[tuple[Backend, ProcessReward]]:
    """The model and its reward; nothing of them is left afterwards for the next part."""
    judge = bough.load_reward(reward)
    assert isinstance(judge, ProcessReward)
    with bough.load(model) as lm, judge.backend:
        yield lm, judge


def arguments(
    doc: str | None,
    name: str,
    tasks: Sequence[str] = TASKS,
    *,
    problems: int = 400,
    seeds: int = 3,
    banked: bool = False,
    scratch: bool = True,
) -> argparse.ArgumentParser:
    """The options that every study has; and where the bank of samples is, or finished parts are, if it uses them."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(tasks))
    parser.add_argument("--problems", type=int, default=problems)
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--out", type=Path, default=RESULTS / name)
    if banked:
        parser.add_argument("--folder", type=Path, default=SCRATCH, help="where studies/samples.py keeps its samples")
    if scratch:
        parser.add_argument("--scratch", type=Path, default=BUILD / name)
    return parser


def bank(task: str, split: str, seeds: int, folder: Path, problems: int) -> list[Samples]:
    """What `studies/samples.py` has drawn of the first problems, one entry per seed.

    Raises:
        SystemExit: it has not been drawn, or not as many problems.
    """
    found = []
    for seed in range(seeds):
        if not (folder / f"{task}-{split}-{seed}.npz").exists():
            raise SystemExit(f"{folder} has no {task}-{split}-{seed}; run python studies/samples.py first")
        whole = load_samples(task, split, seed, folder)
        if len(whole.right) < problems:
            raise SystemExit(
                f"{folder} has {len(whole.right)} problems of {task}; give --problems {len(whole.right)}"
            )
        found.append(Samples(**{name: array[:problems] for name, array in vars(whole).items()}))
    return found


def joined(samples: Sequence[Samples], name: str) -> np.ndarray:
    """One array of all seeds' samples: ``[problems, seeds * n]``."""
    return np.concatenate([getattr(one, name) for one in samples], axis=1)


def trials(per_seed: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Problem and outcome of every trial, from one array ``[problems]`` per seed."""
    return np.concatenate([np.arange(len(one)) for one in per_seed]), np.concatenate(list(per_seed))


def share(problems: Any, right: Any) -> Row:
    """An accuracy with its interval over problems, rounded."""
    found = accuracy(problems, right)
    return {
        "accuracy": round(found.estimate, 4), "low": round(found.low, 4), "high": round(found.high, 4),
    }  # fmt: skip


def interval(statistic: Any, *per_problem: np.ndarray, resamples: int = 2_000, seed: int = 0) -> Row:
    """A statistic of arrays over problems, with its percentile bootstrap over them.

    Args:
        statistic: called with the arrays, each with its rows drawn with replacement (the same in all).
        per_problem: arrays ``[problems, ...]``.
    """
    rng, count = np.random.default_rng(seed), len(per_problem[0])
    draws = (rng.integers(count, size=count) for _ in range(resamples))
    found = [statistic(*(array[chosen] for array in per_problem)) for chosen in draws]
    kept = np.array(found)[np.isfinite(found)]
    low, high = np.quantile(kept, [0.025, 0.975]) if len(kept) else (np.nan, np.nan)
    estimate = statistic(*per_problem)
    return {"estimate": round(float(estimate), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def write(out: Path, summary: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """The summary as JSON and the rows as CSV, under one name."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(_plain(summary), indent=1) + "\n")
    with out.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _plain(value: Any) -> Any:
    """The value as JSON has it; what is not a number is null."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def show(rows: Sequence[Row]) -> None:
    """Print rows as a table."""
    names = list(rows[0])
    texts = [[f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    widths = [max(len(name), *(len(text[k]) for text in texts)) for k, name in enumerate(names)]
    for line in [names, *texts]:
        print("  ".join(f"{text:<{width}}" for text, width in zip(line, widths, strict=True)).rstrip())


@contextmanager
def panels(path: Path, titles: Sequence[str], ylabel: str, xlabel: str) -> Iterator[Mapping[str, Any]]:
    """A figure with one panel per title, saved as SVG in the end."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = path.stem  # the same figure is the same file
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(titles), figsize=(4.2 * len(titles), 3.8), squeeze=False)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set(title=title, xlabel=xlabel)
        axis.grid(alpha=0.3)
    axes[0][0].set(ylabel=ylabel)
    yield dict(zip(titles, axes[0], strict=True))
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    plt.close(figure)
