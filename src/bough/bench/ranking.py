"""Who is ahead, and whether that is certain: pairs of cells, leaders, Pareto fronts, problems only one solves."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bough.bench.results import Record
from bough.bench.stats import Interval, holm, paired_bootstrap, sign_flip_test
from bough.bench.summary import Cell, title

LEVEL = 0.05  # chance of one wrong "certain" or more among all pairs of a report


@dataclass(frozen=True)
class Pair:
    """Two cells of one task and budget, on the trials (problem and seed) that both have.

    Attributes:
        a, b: the cells; a is the one with the higher accuracy on these trials, if either is.
        difference: accuracy of a minus that of b, with its own 95 % interval.
        p: of "they are as often right" (`sign_flip_test`).
        corrected: p corrected for all pairs that were made together (`holm`).
    """

    a: Cell
    b: Cell
    problems: int
    trials: int
    difference: Interval
    p: float
    corrected: float

    @property
    def certain(self) -> bool:
        """Whether a is ahead beyond doubt: the chance of one mistake or more among all pairs is at most `LEVEL`."""
        return self.corrected <= LEVEL

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        return {
            **self.a.setting, "budget": self.a.arm["budget"], "a": self.a.label, "b": self.b.label,
            "problems": self.problems, "trials": self.trials, "accuracy_difference": self.difference.to_dict(),
            "p": self.p, "p_corrected": self.corrected, "certain": self.certain,
        }  # fmt: skip


@dataclass(frozen=True)
class Standing:
    """Who leads at one budget on one task.

    Attributes:
        leader: the cell of highest accuracy; of equals the one that generates fewest tokens.
        behind: cells that are certainly behind it.
        level: cells that are not distinguishable from it.
        apart: cells that share no trial with it.
    """

    leader: Cell
    behind: Sequence[Cell]
    level: Sequence[Cell]
    apart: Sequence[Cell] = ()

    def __str__(self) -> str:
        def names(cells: Sequence[Cell]) -> str:
            return ", ".join(cell.method for cell in cells)

        words = f"{title(self.leader)}, {budget_words(self.leader)}: {self.leader.method} leads"
        words += f" at {self.leader.accuracy.estimate:.1%}"
        if self.level:
            words += f"; not distinguishable from it: {names(self.level)}"
        if self.behind:
            words += f"; certainly behind: {names(self.behind)}"
        if self.apart:
            words += f"; not comparable (no trial in common): {names(self.apart)}"
        if not (self.level or self.behind or self.apart):
            words += ", alone"
        return words

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON has it; cells by their labels."""
        return {
            **self.leader.setting, "budget": self.leader.arm["budget"], "leader": self.leader.label,
            "not_distinguishable": [cell.label for cell in self.level],
            "behind": [cell.label for cell in self.behind], "not_comparable": [cell.label for cell in self.apart],
        }  # fmt: skip


@dataclass(frozen=True)
class Sole:
    """A problem that one strategy solves, under most seeds, and no other strategy of that budget does.

    Attributes:
        solvers: that strategy's cells which solve it, each with (seeds solved, seeds run).
    """

    index: int
    strategy: str
    solvers: Sequence[tuple[Cell, int, int]]

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON has it; cells by their labels."""
        cell = self.solvers[0][0]
        return {
            **cell.setting, "budget": cell.arm["budget"], "index": self.index, "strategy": self.strategy,
            "solvers": {cell.label: [solved, run] for cell, solved, run in self.solvers},
        }  # fmt: skip


def contests(made: Sequence[Cell]) -> list[list[Cell]]:
    """The cells, grouped by what makes them comparable: task, level, split, model and budget."""
    groups: dict[str, list[Cell]] = defaultdict(list)
    for cell in made:
        groups[json.dumps([cell.setting, cell.arm["budget"]], sort_keys=True)].append(cell)
    return list(groups.values())


def budget_words(cell: Cell) -> str:
    """The cell's budget in words: "at most 500 tokens", "without a limit"."""
    limits = [f"{value:,g} {name.replace('_', ' ')}" for name, value in cell.arm["budget"].items()]
    return "at most " + ", ".join(limits) if limits else "without a limit"


def pairs(made: Sequence[Cell]) -> list[Pair]:
    """Every pair of cells at each budget of each task; p-values are corrected over all of them together."""
    found = []
    for group in contests(made):
        for a, b in itertools.combinations(group, 2):
            theirs = _by_trial(b)
            shared = [(x, theirs[trial]) for trial, x in _by_trial(a).items() if trial in theirs]
            if not shared:
                continue
            if sum(x["correct"] for x, _ in shared) < sum(y["correct"] for _, y in shared):
                a, b, shared = b, a, [(y, x) for x, y in shared]
            problems = [x["index"] for x, _ in shared]
            first, second = ([float(pair[side]["correct"]) for pair in shared] for side in (0, 1))
            found.append(
                Pair(
                    a, b, len(set(problems)), len(shared), paired_bootstrap(problems, first, second),
                    p=sign_flip_test(problems, first, second), corrected=1.0,
                )
            )  # fmt: skip
    corrected = holm([pair.p for pair in found])
    return [replace(pair, corrected=p) for pair, p in zip(found, corrected, strict=True)]


def standings(made: Sequence[Cell], compared: Sequence[Pair]) -> list[Standing]:
    """The leader of each budget of each task, with who is certainly behind it and who may not be.

    That one of many leads by luck is accounted for: the pairs' correction covers whichever leads.
    """
    verdicts = {frozenset((id(pair.a), id(pair.b))): pair for pair in compared}
    found = []
    for group in contests(made):
        leader = min(group, key=lambda cell: (-cell.accuracy.estimate, cell.costs["tokens"]))
        behind: list[Cell] = []
        level: list[Cell] = []
        apart: list[Cell] = []
        for cell in group:
            if cell is leader:
                continue
            pair = verdicts.get(frozenset((id(leader), id(cell))))
            if pair is None:
                apart.append(cell)
            else:
                (behind if pair.certain and pair.a is leader else level).append(cell)
        found.append(Standing(leader, behind, level, apart))
    return found


def front(made: Sequence[Cell], cost: str = "tokens") -> list[Cell]:
    """The Pareto front of cells of one task: no other is at least as accurate at no more cost, and better in one.

    Cells that agree in both are on it together. The front is that of the estimates, not of what is certain.
    """

    def dominated(cell: Cell) -> bool:
        own = (cell.accuracy.estimate, -cell.costs[cost])
        others = ((other.accuracy.estimate, -other.costs[cost]) for other in made)
        return any(other != own and other[0] >= own[0] and other[1] >= own[1] for other in others)

    return [cell for cell in made if not dominated(cell)]


def sole(made: Sequence[Cell]) -> list[Sole]:
    """The problems that only one strategy solves, at each budget of each task, among those that all cells ran.

    A cell solves a problem if it is right under more than half of its seeds; a strategy, if one of its cells does.
    """
    found = []
    for group in contests(made):
        if len({cell.arm["strategy"] for cell in group}) < 2:
            continue
        tallies = [_tally(cell) for cell in group]
        for index in sorted(set.intersection(*(set(tally) for tally in tallies))):
            solvers = [
                (cell, *tally[index])
                for cell, tally in zip(group, tallies, strict=True)
                if 2 * tally[index][0] > tally[index][1]
            ]
            strategies = {cell.arm["strategy"] for cell, _, _ in solvers}
            if len(strategies) == 1:
                found.append(Sole(index, strategies.pop(), solvers))
    return found


def _by_trial(cell: Cell) -> Mapping[tuple[int, int], Record]:
    return {(record["index"], record["seed"]): record for record in cell.records}


def _tally(cell: Cell) -> dict[int, tuple[int, int]]:
    """Of each problem: under how many seeds it was solved, and under how many it ran."""
    counts: dict[int, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for record in cell.records:
        solved, run = counts[record["index"]]
        counts[record["index"]] = (solved + bool(record["correct"]), run + 1)
    return counts
