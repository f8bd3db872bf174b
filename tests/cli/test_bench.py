"""`bough bench`: strategies x budgets x seeds, resumable, summarised in files that agree with the records."""

from __future__ import annotations

import csv
import itertools
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from bough.bench import wilson
from bough.tasks import get_task

QUICK = ("bench", "--level", 1, "-n", 4, "-o", "out")
ARMS = ("-s", "greedy", "-s", "best-of-n:n=1/3")


def records(folder):
    return [json.loads(line) for line in (folder / "out" / "results.jsonl").read_text().splitlines()]


def test_a_bench_writes_records_a_summary_and_a_plot(chains, bough):
    result = bough(*QUICK, *ARMS, "--seeds", 2)
    assert result.exit_code == 0, result.output
    assert len(records(chains)) == 3 * 4 * 2
    files = {file.name for file in (chains / "out").iterdir()}
    assert files == {
        "results.jsonl", "summary.csv", "summary.json", "report.html", "plot.png", "plot.svg",
    }  # fmt: skip
    assert (chains / "out" / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert "best-of-n n=3 against greedy" in result.stdout.replace("\n", " ")


def test_results_of_other_weights_are_told_apart(chains, bough):
    for weights in ("int8", "int4", "int8"):
        assert bough(*QUICK, "-s", "greedy", "--weights", weights).exit_code == 0
    models = [record["model"] for record in records(chains)]
    assert len(models) == 2 * 4  # the third is the first again
    assert {model.split()[-1] for model in models} == {"int8", "int4"}


def test_the_summary_is_the_mean_of_the_records(chains, bough):
    bough(*QUICK, *ARMS)
    with (chains / "out" / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["greedy", "best-of-n n=1", "best-of-n n=3"]
    for row in rows:
        own = [
            record for record in records(chains)
            if record["strategy"] == row["strategy"] and record["params"] == json.loads(row["params"])
        ]  # fmt: skip
        right = sum(record["correct"] for record in own)
        interval = wilson(right, 4)
        assert float(row["accuracy"]) == right / 4
        assert float(row["accuracy_low"]) == pytest.approx(interval.low)
        assert float(row["accuracy_high"]) == pytest.approx(interval.high)
        for cost in ("tokens", "passes", "reward_calls"):
            assert float(row[cost]) == pytest.approx(np.mean([record[cost] for record in own]))


def test_json_says_what_the_files_say(chains, bough):
    found = json.loads(bough(*QUICK, *ARMS, "--json").stdout)
    summary = json.loads((chains / "out" / "summary.json").read_text())
    assert found["cells"] == summary["cells"]
    assert all(found[name] == summary[name] for name in summary)
    assert set(summary) == {"cells", "comparisons", "pairs", "standings", "sole"}
    assert [standing["budget"] for standing in summary["standings"]] == [{}]
    assert found["new_trials"] == found["trials"] == 12
    names = [comparison["label"] for comparison in found["comparisons"]]
    assert names == ["best-of-n n=1", "best-of-n n=3"]
    assert all(comparison["baseline"] == "greedy" for comparison in found["comparisons"])


def test_a_second_call_runs_only_what_is_new(chains, bough):
    bough(*QUICK, *ARMS)
    before = (chains / "out" / "results.jsonl").read_bytes()
    again = json.loads(bough(*QUICK, *ARMS, "--json").stdout)
    assert again["new_trials"] == 0
    assert (chains / "out" / "results.jsonl").read_bytes() == before
    more = json.loads(bough(*QUICK, *ARMS, "-s", "self-consistency:n=2", "--json").stdout)
    assert more["new_trials"] == 4
    assert len(more["cells"]) == 4


def test_other_weights_are_not_mistaken_for_these(chains, bough):
    (chains / "model.safetensors").write_bytes(b"one")
    bough(*QUICK, "-s", "greedy")
    (chains / "model.safetensors").write_bytes(b"two")
    found = json.loads(bough(*QUICK, "-s", "greedy", "--json").stdout)
    assert found["new_trials"] == 4
    assert len({cell["model"] for cell in found["cells"]}) == 2


def test_budgets_make_one_cell_each(chains, bough):
    words = ("-s", "greedy", "-s", "best-of-n:n=2", "--budget-tokens", "20,none", "--budget-reward-calls", "1")
    found = json.loads(bough(*QUICK, *words, "--json").stdout)
    assert [cell["budget"] for cell in found["cells"]] == [
        {"tokens": 20, "reward_calls": 1}, {"reward_calls": 1},
    ] * 2  # fmt: skip
    assert all(record["tokens"] <= 20 for record in records(chains) if "tokens" in record["budget"])
    # At a matched budget: each cell is compared with greedy under the same limits.
    assert [comparison["baseline"] for comparison in found["comparisons"]] == [
        "greedy budget-tokens=20", "greedy",
    ]  # fmt: skip


def test_stopping_rules_make_one_cell_each(chains, bough):
    rules = ("--stop", "none", "--stop", "score-threshold:threshold=0.6")
    found = json.loads(bough(*QUICK, "-s", "best-of-n:n=8", *rules, "--json").stdout)
    free, stopped = found["cells"]
    assert "stop" not in free and stopped["stop"]["name"] == "score-threshold"
    assert stopped["stopped_by_budget"] > free["stopped_by_budget"] == 0 and stopped["tokens"] < free["tokens"]
    (pair,) = found["pairs"]
    assert pair["a"] != pair["b"] and {"score-threshold" in pair["a"], "score-threshold" in pair["b"]} == {
        True,
        False,
    }


def test_without_matplotlib_the_numbers_are_still_written(chains, bough, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = bough(*QUICK, "-s", "greedy")
    assert result.exit_code == 0
    assert "pip install 'bough[plot]'" in result.stderr
    assert (chains / "out" / "summary.csv").exists()


def test_the_report_names_the_leader_and_shows_the_prompts(chains, bough):
    result = bough(*QUICK, *ARMS, "--seeds", 2)
    found = json.loads((chains / "out" / "summary.json").read_text())
    page = (chains / "out" / "report.html").read_text()
    words = " ".join(result.stdout.split())
    for standing in found["standings"]:
        assert f"{standing['leader']} leads at" in page
        assert f"{standing['leader']} leads at" in words
    assert len(found["sole"]) == page.count("seeds</p>")
    for one in found["sole"]:
        prompt = get_task("arithmetic").problem("test", one["index"], 1).prompt
        assert f"<pre>{prompt.strip()}</pre>" in page


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-s", "best-of-n:n=four"], "best-of-n's n is 'four'"),
        (["-s", "best-of-n:m=4"], "no parameter 'm'"),
        (["-s", "greedy", "-s", "greedy"], "strategy is given twice"),
        (["--budget-tokens", "many"], "budget tokens is 'many'"),
        (["--budget-tokens", "0"], "budget tokens=0"),
        (["-t", "sudoku"], "no task 'sudoku'"),
        (["--split", "exam"], "unknown split 'exam'"),
        (["--against", "astar", "-s", "greedy"], "--against 'astar'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(chains, bough, words, says):
    result = bough("bench", "-n", 2, "-o", "out", *words)
    assert result.exit_code == 2
    assert says in result.stderr
    assert not (chains / "out").exists()


def test_a_folder_that_cannot_be_made_is_one_line(chains, bough):
    (chains / "out").write_text("a file")
    result = bough(*QUICK, "-s", "greedy")
    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) == 1


def wait_for(condition, process):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it did not get that far"
        assert process.poll() is None, "it ended too early"
        time.sleep(0.02)


def test_a_bench_that_is_stopped_goes_on_where_it_was(child, tmp_path):
    strategies = ("-s", "greedy", "-s", "best-of-n:n=2")
    words = ("bench", "--level", 1, "-n", 6, "--seeds", 2, *strategies, "-o", "out", "--concurrency", 2, "--json")
    path = tmp_path / "out" / "results.jsonl"
    kept = b""
    for stop in (signal.SIGINT, signal.SIGKILL):
        process = subprocess.Popen(**child(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            more = kept.count(b"\n") + 3
            wait_for(lambda more=more: path.exists() and path.read_bytes().count(b"\n") >= more, process)
            process.send_signal(stop)
            output, errors = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
        if stop == signal.SIGINT:
            assert process.returncode == 130
            assert "Traceback" not in errors
            assert "goes on from there" in errors
            assert json.loads(output)["interrupted"]
        content = path.read_bytes()
        assert content.startswith(kept)
        kept = content[: content.rindex(b"\n") + 1]
        assert kept.count(b"\n") < 24
    whole = subprocess.run(**child(*words), capture_output=True, text=True, check=True)
    assert json.loads(whole.stdout)["new_trials"] == 24 - kept.count(b"\n")
    assert path.read_bytes().startswith(kept)
    done = sorted((record["strategy"], record["index"], record["seed"]) for record in records(tmp_path))
    assert done == sorted(itertools.product(("greedy", "best-of-n"), range(6), range(2)))
