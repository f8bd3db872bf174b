"""Summaries say what the records say: grouped, labelled, paired, drawn."""

from __future__ import annotations

import json

import pytest

from bough.bench import cells, compare, comparisons, plot, title, write_summary
from bough.core import InvalidInput
from records import record


def test_a_cell_is_one_strategy_with_its_parameters_budget_and_task():
    made = cells(
        [record(), record(1), record(n=8), record(budget={"tokens": 50}), record(task="countdown"), record(seed=1)]
    )
    assert [(cell.trials, cell.problems) for cell in made] == [(3, 2), (1, 1), (1, 1), (1, 1)]


def test_a_cell_s_numbers_are_means_over_its_records():
    (cell,) = cells([record(0, correct=True, tokens=100), record(1, correct=False, tokens=200)])
    assert cell.accuracy.estimate == 0.5
    assert cell.costs["tokens"] == 150
    assert cell.costs["reward_calls"] == 15
    assert cell.stopped == 0


def test_a_title_names_level_and_split_where_there_are_any():
    generated, file = record(), {**record(), "level": None, "split": "file"}
    first, second = cells([generated, file])
    assert f"level {generated['level']}" in title(first) and generated["split"] in title(first)
    assert "None" not in title(second) and title(second).startswith(f"{file['task']}, ")


def test_labels_name_what_differs_and_nothing_else():
    made = cells([record(n=4), record(n=8), record(strategy="greedy"), record(n=4, budget={"tokens": 50})])
    assert [cell.label for cell in made] == ["astar n=4", "astar n=8", "greedy", "astar n=4 budget-tokens=50"]


def test_a_comparison_is_paired_over_what_both_have():
    made = cells(
        [record(i, tokens=100 * (i + 1), correct=True) for i in range(20)]
        + [record(i, strategy="best-of-n", tokens=400 * (i + 1), correct=i % 2 == 0) for i in range(30)]
    )
    found = compare(*made)
    assert found.problems == found.trials == 20
    assert found.difference.estimate == 0.5
    # Every single problem has the same ratio, so its interval has no width; unpaired it would be wide.
    assert (found.ratios["tokens"].low, found.ratios["tokens"].high) == pytest.approx((0.25, 0.25))


def test_no_ratio_is_taken_to_a_cost_of_nothing():
    made = cells([record(i) for i in range(5)] + [record(i, strategy="greedy") for i in range(5)])
    assert set(compare(*made).ratios) == {"tokens"}


def test_cells_are_compared_at_the_same_budget_and_task():
    limits = ({"tokens": 50}, {"tokens": 100})
    made = cells(
        [
            record(i, strategy=strategy, budget=budget, task=task)
            for task in ("arithmetic", "countdown")
            for strategy in ("greedy", "astar")
            for budget in limits
            for i in range(3)
        ]
    )
    for found in comparisons(made):
        assert found.baseline.arm["strategy"] == "greedy"
        assert found.baseline.arm["budget"] == found.cell.arm["budget"]
        assert found.baseline.setting == found.cell.setting
    assert len(comparisons(made)) == 4


def test_what_has_no_trial_in_common_is_not_compared():
    made = cells([record(0), record(1, strategy="greedy")])
    assert comparisons(made) == []
    with pytest.raises(InvalidInput, match="no trial in common"):
        compare(*made)
    with pytest.raises(InvalidInput, match="no cell 'alphago' to compare with; there are astar, greedy"):
        comparisons(made, "alphago")


def test_files_appear_whole_or_not_at_all(tmp_path, monkeypatch):
    write_summary([record()], tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert set(before) == {"summary.csv", "summary.json", "report.html"}

    def full(self, *arguments, **options):
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_summary([record(), record(1)], tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_nothing_done_yet_is_an_empty_summary(tmp_path):
    found, files = write_summary([], tmp_path)
    assert found.cells == found.comparisons == found.pairs == []
    assert set(map(len, json.loads(files[1].read_text()).values())) == {0}
    assert "no finished trial" in files[2].read_text()


def test_the_plot_has_a_panel_per_task_and_a_line_per_strategy(tmp_path):
    records = [
        record(i, strategy=strategy, n=n, task=task, tokens=10 * n, correct=i % n == 0)
        for task in ("arithmetic", "countdown")
        for strategy in ("astar", "best-of-n")
        for n in (1, 2, 4)
        for i in range(8)
    ]
    png, svg = plot(cells(records), tmp_path)
    assert png.read_bytes().startswith(b"\x89PNG")
    drawn = svg.read_text()
    assert "</svg>" in drawn
    for text in ("arithmetic", "countdown", "astar", "best-of-n", "generated tokens"):
        assert f"<!-- {text}" in drawn
