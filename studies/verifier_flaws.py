"""What resampling until a verifier accepts can reach when the verifier errs.

    python studies/samples.py                  # the bank of samples, about an hour on 2 cores; once for all studies
    python studies/verifier_flaws.py           # a minute

Samples of a problem are taken in the order in which they were drawn, k at most, until the verifier accepts one.
Verifiers are the process reward above a threshold, and the truth with coin tosses: it accepts a wrong solution with
probability f and rejects a right one with probability m. The table has, by k, the share of problems answered right
and wrong, with intervals over problems, beside what the closed forms of `bough.stats.verifier_limits` say of each
problem's own p, f and m (from all its samples), and what no number of samples passes: the limit of the share answered
right, and the bound of the precision, both means over problems, the latter over those with any accepted sample. The
utility is 1 for a right answer, minus the cost for a wrong one, 0 for none; the number of samples with the highest is
found on validation and on test problems.

Also: the correlation, over problems, of the accuracy of a single sample with the verifier's false positive rate (over
problems with at least 10 wrong samples). Results go to `studies/results/verifier_flaws.{json,csv,svg}`.

Paper: Stroebl, Kapoor and Narayanan 2024, arXiv:2411.17501, where the correlation is over models; here one model's
problems stand in for them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
from common import Row, arguments, bank, interval, joined, panels, show, trials, write
from samples import N, Samples

from bough.bench.stats import accuracy
from bough.core.noise import mix
from bough.stats import acceptance, precision, resampling

BUDGETS = (1, 2, 4, 8, 16, 32, 64)
COSTS = (0.0, 0.5, 1.0, 2.0, 4.0)
THRESHOLDS = (0.5, 0.9, 0.99)
NOISE = ((0.02, 0.0), (0.1, 0.0), (0.1, 0.2), (0.3, 0.0))  # false positive rate, false negative rate
_LEAST_WRONG = 10
Verifier = Callable[[Samples], np.ndarray]


def _tossed(samples: Samples, false_positive: float, false_negative: float) -> np.ndarray:
    tosses = np.array([[mix(int(key)) / 2**64 for key in row] for row in samples.key])
    accepted: np.ndarray = np.where(samples.right, tosses >= false_negative, tosses < false_positive)
    return accepted


def verifiers() -> dict[str, Verifier]:
    """Which samples are accepted, bool ``[problems, n]``, by the verifier's name. A solution needs an answer."""
    table: dict[str, Verifier] = {}
    for threshold in THRESHOLDS:
        table[f"reward >= {threshold}"] = lambda s, t=threshold: (s.score >= t) & (s.answer >= 0)
    for f, m in NOISE:
        table[f"truth, f={f} m={m}"] = lambda s, f=f, m=m: _tossed(s, f, m)
    return table


def outcomes(samples: Samples, accepted: np.ndarray) -> np.ndarray:
    """What at most k samples come to, k = 0 ... n: int ``[problems, n + 1]``, 1 right, -1 wrong, 0 none."""
    problems, n = accepted.shape
    first = np.where(accepted.any(axis=1), accepted.argmax(axis=1), n)
    verdict = np.where(samples.right[np.arange(problems), np.minimum(first, n - 1)], 1, -1)
    found: np.ndarray = np.where(np.arange(n + 1) > first[:, None], verdict[:, None], 0)
    return found


def rates(samples: list[Samples], accepts: Verifier) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of each problem: p, f, m (0 where there is nothing to tell it from), and its number of wrong samples."""
    right = joined(samples, "right")
    accepted = np.concatenate([accepts(one) for one in samples], axis=1)
    rights, wrongs = right.sum(axis=1), (~right).sum(axis=1)
    f = (accepted & ~right).sum(axis=1) / np.maximum(wrongs, 1)
    m = (~accepted & right).sum(axis=1) / np.maximum(rights, 1)
    return right.mean(axis=1), f, m, wrongs


def best_k(courses: np.ndarray, cost: float) -> int:
    """The number of samples of highest mean utility, from courses ``[problems, n + 1]`` of 1, 0 and -1."""
    return int(np.argmax(np.where(courses < 0, -cost, courses).mean(axis=0)))


def study(task: str, args: argparse.Namespace) -> tuple[list[Row], list[Row], list[Row]]:
    """The curves, the optimal numbers of samples, and the correlations of one task."""
    test = bank(task, "test", args.seeds, args.folder, args.problems)
    validation = bank(task, "validation", 1, args.folder, args.problems)
    curves, optima, correlations = [], [], []
    for name, accepts in verifiers().items():
        courses = [outcomes(one, accepts(one)) for one in test]
        p, f, m, wrongs = rates(test, accepts)
        limits, ever = precision(p, f, m), acceptance(p, f, m) > 0
        for k in BUDGETS:
            problems, what = trials([course[:, k] for course in courses])
            right, wrong = accuracy(problems, what == 1), accuracy(problems, what == -1)
            predicted = resampling(p, f, k, m)
            curves.append(
                {
                    "task": task, "verifier": name, "k": k,
                    "right": round(right.estimate, 4), "low": round(right.low, 4), "high": round(right.high, 4),
                    "wrong": round(wrong.estimate, 4),
                    "right_closed_form": round(float(predicted[0].mean()), 4),
                    "wrong_closed_form": round(float(predicted[1].mean()), 4),
                    "precision": round(right.estimate / max(right.estimate + wrong.estimate, 1e-12), 4),
                    "limit": round(float(limits.mean()), 4),
                    "bound": round(float(limits[ever].mean()), 4) if ever.any() else 0.0,
                    "perfect": round(float((1 - (1 - p) ** k).mean()), 4),
                }
            )  # fmt: skip
        seen = [outcomes(one, accepts(one)) for one in validation]
        stacked = np.stack(courses, axis=1)  # [problems, seeds, n + 1]
        for cost in COSTS:
            gained = np.where(stacked < 0, -cost, stacked)
            chosen = best_k(np.concatenate(seen), cost)
            found = interval(lambda s, c=cost: best_k(s.reshape(-1, N + 1), c), stacked, resamples=300)
            optima.append(
                {
                    "task": task, "verifier": name, "cost": cost, "best_k": int(found["estimate"]),
                    "low": int(found["low"]), "high": int(found["high"]), "best_k_validation": chosen,
                    "utility_there": round(float(gained[..., chosen].mean()), 4),
                    "utility_1": round(float(gained[..., 1].mean()), 4),
                    "utility_64": round(float(gained[..., N].mean()), 4),
                }
            )  # fmt: skip
        enough = wrongs >= _LEAST_WRONG
        if name.startswith("reward") and enough.sum() > 2:
            correlation = interval(_correlation, p[enough], f[enough])
            correlations.append(
                {
                    "task": task, "verifier": name, "problems": int(enough.sum()),
                    "correlation": correlation["estimate"], "low": correlation["low"], "high": correlation["high"],
                    "false_positive_rate": round(float(f[enough].mean()), 4),
                }
            )  # fmt: skip
    return curves, optima, correlations


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.corrcoef(x, y)[0, 1]) if x.std() and y.std() else np.nan


def plot(curves: list[Row], args: argparse.Namespace) -> None:
    """Right answers against the number of samples, with each verifier's limit."""
    with panels(args.out, args.tasks, "answered right", "at most k samples") as axes:
        for task, axis in axes.items():
            mine = [row for row in curves if row["task"] == task]
            for name in verifiers():
                rows = [row for row in mine if row["verifier"] == name]
                (line,) = axis.plot(BUDGETS, [row["right"] for row in rows], marker="o", ms=3, label=name)
                axis.axhline(rows[0]["limit"], color=line.get_color(), ls=":", lw=1)
            perfect = [row["perfect"] for row in mine if row["verifier"] == name]
            axis.plot(BUDGETS, perfect, color="black", lw=1, label="perfect verifier")
            axis.set_xscale("log", base=2)


def main() -> None:
    """Compute, print, and keep the summary."""
    args = arguments(__doc__, "verifier_flaws", banked=True, scratch=False).parse_args()
    curves: list[Row] = []
    optima: list[Row] = []
    correlations: list[Row] = []
    for task in args.tasks:
        for table, rows in zip((curves, optima, correlations), study(task, args), strict=True):
            table += rows
    head: dict[str, Any] = {"problems": args.problems, "seeds": args.seeds}
    write(args.out, {**head, "curves": curves, "optima": optima, "correlations": correlations}, curves)
    plot(curves, args)
    for table in (curves, optima, correlations):
        if table:
            show(table)
            print()


if __name__ == "__main__":
    main()
