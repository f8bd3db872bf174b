"""All that a bench found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bough.bench.evaluate import Arm
from bough.bench.ranking import Pair, Sole, Standing, front, pairs, sole, standings
from bough.bench.results import Record
from bough.bench.summary import Cell, Comparison, by_setting, cells, comparisons

# What accuracy is held against, in words.
AXES = {
    "tokens": "generated tokens", "total_tokens": "total tokens", "passes": "passes", "reward_calls": "reward calls",
    "seconds": "seconds",
}  # fmt: skip


@dataclass(frozen=True)
class Overview:
    """All that a bench found.

    Attributes:
        cells: accuracy and cost of each strategy at each budget of each task.
        comparisons: each against the baseline.
        pairs: every two at the same budget, corrected for how many there are.
        standings: who leads at each budget, and who is not distinguishable from it.
        sole: the problems that only one strategy solves.
    """

    cells: Sequence[Cell]
    comparisons: Sequence[Comparison]
    pairs: Sequence[Pair]
    standings: Sequence[Standing]
    sole: Sequence[Sole]

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON has it; of each cell, on which costs' Pareto fronts it is."""
        fronts = {
            axis: {id(cell) for group in by_setting(self.cells) for cell in front(group, axis)} for axis in AXES
        }
        rows = [
            {**cell.to_dict(), "pareto": [axis for axis in AXES if id(cell) in fronts[axis]]} for cell in self.cells
        ]
        return {
            "cells": rows,
            **{
                name: [one.to_dict() for one in getattr(self, name)]
                for name in ("comparisons", "pairs", "standings", "sole")
            },
        }


def overview(records: Sequence[Record], arms: Sequence[Arm] = (), baseline: str | None = None) -> Overview:
    """What these records say; arguments as `cells` and `comparisons` take them."""
    made = cells(records, arms)
    paired = pairs(made)
    return Overview(made, comparisons(made, baseline), paired, standings(made, paired), sole(made))
