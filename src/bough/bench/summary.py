"""From records to what people read: accuracy and cost of each cell, paired comparisons, a plot."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bough.bench.evaluate import Arm
from bough.bench.results import Record
from bough.bench.stats import Interval, accuracy, paired_bootstrap
from bough.core import InvalidInput, UnsupportedError

COSTS = ("tokens", "computed_tokens", "passes", "reward_calls", "reward_tokens", "seconds")
_SETTING = ("task", "level", "split", "model")
_ARM = ("strategy", "params", "budget", "reward")


@dataclass(frozen=True)
class Cell:
    """All trials of one strategy, with the same parameters and budget, on one task.

    Attributes:
        label: the strategy, with what distinguishes it from its other cells ("best-of-n n=16 budget-tokens=500").
        method: the label without the budget ("best-of-n n=16").
        problems: how many problems.
        trials: how many (problem, seed).
        accuracy: share of right answers, with its 95 % interval over problems.
        costs: mean per trial of each of `COSTS`, and of "total_tokens", computed ones and the reward's.
        stopped: share of the trials that a budget or a stopping rule ended.
        records: the trials.
    """

    setting: Mapping[str, Any]
    arm: Mapping[str, Any]
    label: str
    method: str
    problems: int
    trials: int
    accuracy: Interval
    costs: Mapping[str, float]
    stopped: float
    records: Sequence[Record]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the records, as JSON has it."""
        return {
            **self.setting, **self.arm, "label": self.label, "problems": self.problems, "trials": self.trials,
            "accuracy": self.accuracy.estimate, "accuracy_low": self.accuracy.low,
            "accuracy_high": self.accuracy.high, **self.costs, "stopped_by_budget": self.stopped,
        }  # fmt: skip


def cells(records: Sequence[Record], arms: Sequence[Arm] = ()) -> list[Cell]:
    """The cells that these records fall into: those of ``arms`` in their order, then as each first appears."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        named = [*(record[name] for name in (*_SETTING, *_ARM)), record.get("stop")]
        groups[json.dumps(named, sort_keys=True)].append(record)
    rules = [None if arm.stop is None else arm.stop.describe() for arm in arms]
    order = [
        json.dumps([arm.name, arm.params, arm.limits, rule], sort_keys=True)
        for arm, rule in zip(arms, rules, strict=True)
    ]

    def place(cell: Cell) -> int:
        name = json.dumps([cell.arm.get(part) for part in ("strategy", "params", "budget", "stop")], sort_keys=True)
        return order.index(name) if name in order else len(order)

    made = sorted((_cell(group) for group in groups.values()), key=place)
    return [replace(cell, label=_label(cell, made), method=_label(cell, made, with_budget=False)) for cell in made]


def by_setting(made: Sequence[Cell]) -> list[list[Cell]]:
    """The cells, grouped by what they have in common: task, level, split and model."""
    groups: dict[str, list[Cell]] = defaultdict(list)
    for cell in made:
        groups[json.dumps(cell.setting)].append(cell)
    return list(groups.values())


def title(cell: Cell) -> str:
    """The cell's setting in words; the model's fingerprint left out."""
    setting = cell.setting
    model = setting["model"].split("@")[0]
    if setting["level"] is None:  # a file of problems has neither levels nor splits
        return f"{setting['task']}, {model}"
    return f"{setting['task']}, level {setting['level']}, {setting['split']} problems, {model}"


def _cell(records: list[Record]) -> Cell:
    problems = [record["index"] for record in records]
    costs = {cost: float(np.mean([record[cost] for record in records])) for cost in COSTS}
    return Cell(
        setting={name: records[0][name] for name in _SETTING},
        arm={name: records[0][name] for name in (*_ARM, "stop") if name in records[0]},
        label=records[0]["strategy"],
        method=records[0]["strategy"],
        problems=len(set(problems)),
        trials=len(records),
        accuracy=accuracy(problems, [record["correct"] for record in records]),
        costs={**costs, "total_tokens": costs["computed_tokens"] + costs["reward_tokens"]},
        stopped=float(np.mean([record["stopped_by"] is not None for record in records])),
        records=records,
    )


def _label(cell: Cell, others: Sequence[Cell], with_budget: bool = True) -> str:
    """The strategy's name, and the settings in which it differs from the other cells of the same name."""
    namesakes = [_settings(other, with_budget) for other in others if other.arm["strategy"] == cell.arm["strategy"]]
    own = _settings(cell, with_budget)
    # A setting that only some of the cells have differs too: "-" where it is absent.
    different = [
        f"{name}={own[name]}"
        for name in own
        if any(json.dumps(own[name]) != json.dumps(other.get(name)) for other in namesakes)
    ]
    return " ".join([cell.arm["strategy"], *different])


def _settings(cell: Cell, with_budget: bool) -> dict[str, Any]:
    budget = {f"budget-{name}": value for name, value in cell.arm["budget"].items()} if with_budget else {}
    reward = {} if cell.arm["reward"] is None else {"reward": cell.arm["reward"].split("@")[0]}
    stop = {f"stop-{name}": value for name, value in cell.arm.get("stop", {}).items()}
    return {**cell.arm["params"], **budget, **reward, **stop}


@dataclass(frozen=True)
class Comparison:
    """One cell against another, on the trials (problem and seed) that both have.

    Attributes:
        difference: accuracy of the cell minus that of the baseline.
        ratios: mean cost of the cell over that of the baseline, where the baseline has any.
    """

    cell: Cell
    baseline: Cell
    problems: int
    trials: int
    difference: Interval
    ratios: Mapping[str, Interval]

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        return {
            **self.cell.setting, "label": self.cell.label, "baseline": self.baseline.label,
            "problems": self.problems, "trials": self.trials,
            "accuracy_difference": self.difference.to_dict(),
            **{f"{cost}_ratio": ratio.to_dict() for cost, ratio in self.ratios.items()},
        }  # fmt: skip


def compare(cell: Cell, baseline: Cell, costs: Sequence[str] = ("tokens", "reward_calls")) -> Comparison:
    """Accuracy difference and cost ratios, paired over problems and seeds.

    Raises:
        InvalidInput: the cells have no trial in common.
    """
    theirs = {(record["index"], record["seed"]): record for record in baseline.records}
    pairs = [
        (record, theirs[trial]) for record in cell.records if (trial := (record["index"], record["seed"])) in theirs
    ]
    if cell.setting != baseline.setting or not pairs:
        raise InvalidInput(f"{cell.label} and {baseline.label} have no trial in common to compare them on")
    problems = [a["index"] for a, _ in pairs]

    def column(name: str, side: int) -> list[float]:
        return [float(pair[side][name]) for pair in pairs]

    return Comparison(
        cell,
        baseline,
        len(set(problems)),
        len(pairs),
        paired_bootstrap(problems, column("correct", 0), column("correct", 1)),
        {
            cost: paired_bootstrap(problems, column(cost, 0), column(cost, 1), "ratio")
            for cost in costs
            if min(column(cost, 1)) > 0
        },
    )


def comparisons(made: Sequence[Cell], baseline: str | None = None) -> list[Comparison]:
    """Every cell against the baseline's at the same budget, within each setting.

    Args:
        made: the cells.
        baseline: a strategy's name or a cell's label; default, the first cell's strategy. Where it has
            several cells at that budget, or none, its first one is taken.
    """
    names = [name for cell in made for name in (cell.label, cell.arm["strategy"])]
    if baseline is not None and made and baseline not in names:
        raise InvalidInput(
            f"there is no cell {baseline!r} to compare with; there are {', '.join(dict.fromkeys(names))}"
        )
    found = []
    for cell in made:
        peers = [other for other in made if other.setting == cell.setting]
        name = baseline or peers[0].arm["strategy"]
        candidates = [other for other in peers if name in (other.label, other.arm["strategy"])]
        if not candidates:
            continue  # results of an earlier bench, of other strategies
        same = [other for other in candidates if other.arm["budget"] == cell.arm["budget"]]
        against = (same or candidates)[0]
        if cell.arm["strategy"] != against.arm["strategy"] and _share_a_trial(cell, against):
            found.append(compare(cell, against))
    return found


def _share_a_trial(a: Cell, b: Cell) -> bool:
    trials = {(record["index"], record["seed"]) for record in b.records}
    return any((record["index"], record["seed"]) in trials for record in a.records)


def plot(made: Sequence[Cell], folder: Path) -> list[Path]:
    """Draw accuracy against generated tokens, with 95 % intervals: ``plot.png`` and ``plot.svg``.

    One panel per task, one line per strategy through its cells.

    Raises:
        UnsupportedError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UnsupportedError("the plot needs matplotlib; pip install 'bough[plot]', and run again") from None
    groups = by_setting(made)
    names = list(dict.fromkeys(cell.arm["strategy"] for cell in made))
    figure = Figure(figsize=(5.2 * len(groups), 4.2), layout="constrained")
    panels = figure.subplots(1, len(groups), squeeze=False, sharey=True)[0]
    for panel, group in zip(panels, groups, strict=True):
        for number, name in enumerate(names):
            line = [cell for cell in group if cell.arm["strategy"] == name]
            line.sort(key=lambda cell: cell.costs["tokens"])
            if not line:
                continue
            p = np.array([cell.accuracy.estimate for cell in line])
            low = np.array([cell.accuracy.low for cell in line])
            high = np.array([cell.accuracy.high for cell in line])
            panel.errorbar(
                [max(1.0, cell.costs["tokens"]) for cell in line], p, yerr=[p - low, high - p], label=name,
                marker="osv^DP*X"[number % 8], capsize=2, linewidth=1.2, color=f"C{number % 10}",
            )  # fmt: skip
        panel.set(
            xscale="log", ylim=(0, 1), xlabel="generated tokens per problem",
            title=title(group[0]),
        )  # fmt: skip
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy, 95 % interval")
    panels[0].legend()
    return [
        write_whole(folder / f"plot.{kind}", partial(figure.savefig, format=kind, dpi=150)) for kind in ("png", "svg")
    ]


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Write beside the file, then put in its place: it appears whole or not at all."""
    scratch = path.with_name(f".{path.name}.part")
    try:
        write(scratch)
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    return path
