"""What can be had without a verifier: quality against generated tokens, and what marks a right solution.

    python studies/samples.py               # the bank of samples, about an hour on 2 cores; once for all studies
    python studies/verifier_free.py         # about 10 minutes on 2 cores

Methods, each with n = 1 ... 64 solutions: the majority's answer; the solution of highest log-probability, whole or
per token, or whose least likely token is the likeliest (best-of-N by likelihood); votes weighted by the probability
of the solution, of its last 16 tokens, of its least likely token, and by all features of a solution together; and
sequential revision, which redraws a solution from the line of its least likely token on and keeps the new one if it
is likelier per token. A method and size is on the Pareto front if nothing is as right with fewer tokens.

Features (length in tokens, steps, log-probabilities) are compared between right and wrong solutions of the same
problem: the probability that a right one has the higher value (AUC), and the difference of the means over the
standard deviation within problems (d), with intervals from a bootstrap over problems. The weights of the last vote
are those of a logistic regression within problems, fitted on validation samples.

Results go to `studies/results/verifier_free.{json,csv,svg}`.

Paper: Wang et al. 2025, arXiv:2504.14047. Its linguistic markers have no counterpart in these solutions.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
from common import Row, arguments, bank, embedded, interval, panels, share, show, trials, write
from samples import Samples

import bough
from bough.bench.stats import paired_bootstrap
from bough.core import Backend, Branch
from bough.search.vote import winner
from bough.tasks import Problem, Task, get_task
from bough.zoo.parts import run_parts

SIZES = (1, 2, 4, 8, 16, 32, 64)
COMPARED = 16
REVISIONS = (0, 1, 3, 7, 15)
_MAX_TOKENS = bough.search.BestOfN().max_tokens
_UNDER_WAY = 32  # problems
Score = Callable[[Samples], np.ndarray]

FEATURES: dict[str, Score] = {
    "tokens": lambda s: s.tokens.astype(float),
    "steps": lambda s: s.steps.astype(float),
    "log-probability": lambda s: s.logprob,
    "log-probability per token": lambda s: s.logprob / s.tokens,
    "least likely token": lambda s: s.min_logprob,
    "last 16 tokens": lambda s: s.tail_logprob,
}
LIKELIHOODS = ("log-probability", "log-probability per token", "least likely token")
WEIGHTS = ("log-probability", "last 16 tokens", "least likely token")  # each as a probability


def standardised(samples: Samples, spread: np.ndarray) -> np.ndarray:
    """Features ``[problems, n, features]``, each from its problem's mean and over its spread within problems."""
    values = np.stack([feature(samples) for feature in FEATURES.values()], axis=2)
    centred: np.ndarray = (values - values.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1.0)
    return centred


def fit(samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    """Spread and weight of each feature: a logistic regression of right against wrong within problems.

    The features are centred by problem and the intercept is a problem's own log-odds, so that what makes a problem
    easy is no evidence for its solutions. A ridge of 1 keeps the weights finite.
    """
    mixed = samples.right.any(axis=1) & ~samples.right.all(axis=1)
    spread = np.sqrt(np.mean(standardised(samples, np.ones(len(FEATURES)))[mixed] ** 2, axis=(0, 1)))
    x = standardised(samples, spread)[mixed]
    y = samples.right[mixed].astype(float)
    share_right = y.mean(axis=1, keepdims=True)
    offset = np.broadcast_to(np.log(share_right / (1 - share_right)), y.shape).ravel()
    flat, target, weights = x.reshape(-1, x.shape[2]), y.ravel(), np.zeros(x.shape[2])
    for _ in range(50):  # Newton's method
        p = 1 / (1 + np.exp(-(offset + flat @ weights)))
        hessian = flat.T @ (flat * (p * (1 - p))[:, None]) + np.eye(len(weights))
        step = np.linalg.solve(hessian, flat.T @ (target - p) - weights)
        weights = weights + step
        if np.abs(step).max() < 1e-8:
            break
    return spread, weights


def methods(spread: np.ndarray, weights: np.ndarray) -> dict[str, tuple[str, Score]]:
    """Every method by name: whether it votes or takes the best one, and by what."""
    table: dict[str, tuple[str, Score]] = {"majority": ("vote", lambda s: np.ones(s.right.shape))}
    for name in LIKELIHOODS:
        table[f"best: {name}"] = ("best", FEATURES[name])
    for name in WEIGHTS:
        table[f"vote: {name}"] = (
            "vote",
            lambda s, by=FEATURES[name]: np.exp(by(s) - by(s).max(axis=1, keepdims=True)),
        )
    table["vote: all features"] = ("vote", lambda s: np.exp(standardised(s, spread) @ weights))
    return table


def chosen(kind: str, samples: Samples, scores: np.ndarray, n: int) -> np.ndarray:
    """Whether the choice among the first n samples is right, bool ``[problems]``."""
    verdicts = []
    for answers, right, values in zip(samples.answer[:, :n], samples.right[:, :n], scores[:, :n], strict=True):
        if kind == "best":  # one without an answer is never preferred
            index = max(range(n), key=lambda i, a=answers, v=values: (a[i] >= 0, v[i]))
        else:
            won = winner([None if answer < 0 else str(answer) for answer in answers], values.tolist())
            index = 0 if won is None else won[0]
        verdicts.append(bool(right[index]))
    return np.array(verdicts)


# Sequential revision ---------------------------------------------------------------------------------------


def _per_token(solution: Branch) -> float:
    logprobs = np.concatenate([node.logprobs for node in solution.path[1:]])
    return float(logprobs[np.isfinite(logprobs)].mean())


def _before_doubt(solution: Branch) -> Branch:
    """What stands before the line of the solution's least likely token: a branch with its log-probabilities."""
    drawn = solution.path[1:]
    tokens = [token for node in drawn for token in node.appended]
    logprobs = np.concatenate([node.logprobs for node in drawn])
    at, newline = int(np.nanargmin(logprobs)), solution.backend.encode("\n")[0]
    start = max((i + 1 for i in range(at) if tokens[i] == newline), default=0)
    if not start:
        return solution.root
    root = solution.root
    return Branch(root.backend, root, tokens[:start], solution.key, logprobs=logprobs[:start])


async def _revised(prompt: Branch, task: Task, problem: Problem) -> list[Row]:
    """The verdict on one solution after each number of revisions, and the tokens generated until then."""
    options: dict[str, Any] = {"stop": task.answer_stop, "max_tokens": _MAX_TOKENS}
    (solution,) = await prompt.sample(**options)
    tokens, rows = len(solution.appended), []
    for revision in range(max(REVISIONS) + 1):
        if revision in REVISIONS:
            rows.append({"revisions": revision, "right": task.check(problem, solution.completion), "tokens": tokens})
        # Another index each time: what was tried from the same place is not tried again.
        (other,) = await _before_doubt(solution).sample(first=revision + 1, **options)
        tokens += len(other.appended)
        if _per_token(other) > _per_token(solution):
            solution = other
    return rows


async def _revise_all(lm: Backend, task: Task, count: int, seed: int) -> list[list[Row]]:
    gate = asyncio.Semaphore(_UNDER_WAY)

    async def one(index: int) -> list[Row]:
        async with gate:
            problem = task.problem("test", index)
            return await _revised(lm.branch(problem.prompt, seed=seed), task, problem)

    return list(await asyncio.gather(*map(one, range(count))))


def part(task: str, count: int, seed: int) -> list[list[Row]]:
    """Sequential revision of one task's problems under one seed."""
    with embedded() as (lm, _):
        return bough.run(_revise_all(lm, get_task(task), count, seed))


# The tables ------------------------------------------------------------------------------------------------


def auc(right: np.ndarray, values: np.ndarray) -> float:
    """Probability that a right sample of a problem has a higher value than a wrong one of it, ties by half."""
    a, b = values[right][:, None], values[~right][None, :]
    return float(np.mean((a > b) + 0.5 * (a == b)))


def associations(task: str, seeds: list[Samples]) -> list[Row]:
    """What marks a right solution, within problems."""
    rows = []
    for name, feature in FEATURES.items():
        areas, gaps, squares = [], [], []
        for samples in seeds:
            for right, values in zip(samples.right, feature(samples), strict=True):
                if right.all() or not right.any():
                    areas.append(np.nan)
                    gaps.append(np.nan)
                    squares.append(np.nan)
                    continue
                areas.append(auc(right, values))
                gaps.append(values[right].mean() - values[~right].mean())
                inside = np.where(right, values - values[right].mean(), values - values[~right].mean())
                squares.append(np.mean(inside**2))
        shape = (len(seeds), -1)
        area, gap, square = (np.array(x).reshape(shape).T for x in (areas, gaps, squares))  # [problems, seeds]
        usable = ~np.isnan(area).all(axis=1)
        if not usable.any():
            continue
        effect = interval(
            lambda g, s: np.nanmean(g) / np.sqrt(np.nanmean(s)) if np.nanmean(s) else 0.0, gap[usable], square[usable]
        )
        area_found = interval(np.nanmean, area[usable])
        rows.append(
            {
                "task": task, "feature": name, "problems": int(usable.sum()), "auc": area_found["estimate"],
                "auc_low": area_found["low"], "auc_high": area_found["high"], "d": effect["estimate"],
                "d_low": effect["low"], "d_high": effect["high"],
            }
        )  # fmt: skip
    return rows


def front(rows: list[Row]) -> None:
    """Mark the rows of one task that nothing beats at fewer tokens."""
    best = -1.0
    for row in sorted(rows, key=lambda row: (row["tokens"], -row["accuracy"])):
        row["front"] = row["accuracy"] > best
        best = max(best, row["accuracy"])


def study(task: str, args: argparse.Namespace, revisions: list[list[list[Row]]]) -> tuple[list[Row], list[Row], Row]:
    """Cells, comparisons with the majority, and the fitted weights of one task."""
    test = bank(task, "test", args.seeds, args.folder, args.problems)
    spread, weights = fit(bank(task, "validation", 1, args.folder, args.problems)[0])
    cells, comparisons = [], []
    kept: dict[str, np.ndarray] = {}
    for name, (kind, score) in methods(spread, weights).items():
        scored = [score(samples) for samples in test]
        for n in SIZES:
            problems, right = trials([chosen(kind, *pair, n) for pair in zip(test, scored, strict=True)])
            tokens = float(np.mean([samples.tokens[:, :n].sum(axis=1) for samples in test]))
            head = {"task": task, "method": name, "n": n}
            cells.append({**head, **share(problems, right), "tokens": round(tokens, 1)})
            if n == COMPARED:
                kept[name] = right
    for k, count in enumerate(REVISIONS):
        problems, right = trials([np.array([rows[k]["right"] for rows in seed]) for seed in revisions])
        tokens = float(np.mean([rows[k]["tokens"] for seed in revisions for rows in seed]))
        head = {"task": task, "method": "sequential revision", "n": count + 1}
        cells.append({**head, **share(problems, right), "tokens": round(tokens, 1)})
        if count + 1 == COMPARED:
            kept["sequential revision"] = right
    front(cells)
    for name, right in kept.items():
        if name != "majority":
            gap = paired_bootstrap(problems, right, kept["majority"])
            comparisons.append(
                {
                    "task": task, "method": name, "n": COMPARED, "less majority": round(gap.estimate, 4),
                    "low": round(gap.low, 4), "high": round(gap.high, 4),
                }
            )  # fmt: skip
    return cells, comparisons, {"task": task, **dict(zip(FEATURES, weights.round(3).tolist(), strict=True))}


def plot(cells: list[Row], args: argparse.Namespace) -> None:
    """Accuracy against tokens, the front in black."""
    with panels(args.out, args.tasks, "accuracy", "generated tokens per problem") as axes:
        for task, axis in axes.items():
            mine = [row for row in cells if row["task"] == task]
            for name in dict.fromkeys(row["method"] for row in mine):
                rows = [row for row in mine if row["method"] == name]
                axis.plot([r["tokens"] for r in rows], [r["accuracy"] for r in rows], marker="o", ms=3, label=name)
            ahead = sorted((row["tokens"], row["accuracy"]) for row in mine if row["front"])
            axis.plot(*zip(*ahead, strict=True), color="black", lw=1, ls="--", label="Pareto front")
            axis.set_xscale("log")


def main() -> None:
    """Run, print, and keep the summary."""
    args = arguments(__doc__, "verifier_free", banked=True).parse_args()
    parts = {
        f"{task}-{args.problems}-{seed}": (task, args.problems, seed)
        for task in args.tasks
        for seed in range(args.seeds)
    }
    found = run_parts(part, parts, args.scratch)
    cells: list[Row] = []
    comparisons: list[Row] = []
    features: list[Row] = []
    fitted: list[Row] = []
    for task in args.tasks:
        revisions = [found[name] for name, (of, *_) in parts.items() if of == task]
        rows, against, weights = study(task, args, revisions)
        cells, comparisons, fitted = cells + rows, comparisons + against, [*fitted, weights]
        features += associations(task, bank(task, "test", args.seeds, args.folder, args.problems))
    head = {"problems": args.problems, "seeds": args.seeds}
    tables = {"cells": cells, "comparisons": comparisons, "features": features, "weights": fitted}
    write(args.out, {**head, **tables}, cells)
    plot(cells, args)
    for table in tables.values():
        show(table)
        print()


if __name__ == "__main__":
    main()
