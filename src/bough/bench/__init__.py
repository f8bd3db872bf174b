"""Comparisons of strategies: many problems at once, resumable, with honest intervals.

For example, A* under a budget against best-of-16, on 400 problems under 3 seeds:

    >>> lm = bough.load("bough/nano")
    >>> problems = [bough.tasks.get_task("arithmetic").problem("test", i) for i in range(400)]
    >>> arms = [Arm(BestOfN(n=16)), Arm(AStar(), Budget(tokens=500))]
    >>> with Results("out/results.jsonl") as results:
    ...     evaluate(lm, trials(arms, problems, seeds=range(3)), results=results)
    >>> write_summary(results.records, Path("out"))
"""

from bough.bench.architectures import search_architectures
from bough.bench.evaluate import Arm, Trial, TrialsFailed, evaluate, evaluate_async, trials
from bough.bench.files import write_summary
from bough.bench.overview import Overview, overview
from bough.bench.ranking import Pair, Sole, Standing, front, pairs, sole, standings
from bough.bench.report import report
from bough.bench.results import Record, Results, fingerprint
from bough.bench.sequences import confidence_sequence
from bough.bench.space import candidates, space
from bough.bench.stats import Interval, accuracy, holm, paired_bootstrap, sign_flip_test, wilson
from bough.bench.summary import (
    Cell,
    Comparison,
    by_setting,
    cells,
    compare,
    comparisons,
    plot,
    title,
)
from bough.bench.tune import Rival, Round, Tuned, tune, tune_async

__all__ = [
    "Arm", "Cell", "Comparison", "Interval", "Overview", "Pair", "Record", "Results", "Rival", "Round", "Sole",
    "Standing", "Trial", "TrialsFailed", "Tuned", "accuracy", "by_setting", "candidates", "cells", "compare",
    "comparisons", "confidence_sequence", "evaluate", "evaluate_async", "fingerprint", "front", "holm",
    "overview", "paired_bootstrap", "pairs", "plot", "report", "search_architectures", "sign_flip_test", "sole",
    "space", "standings", "title", "trials", "tune", "tune_async", "wilson", "write_summary",
]  # fmt: skip
