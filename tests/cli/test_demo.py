"""`bough demo`: the table, the tree, the page; and what Ctrl-C leaves."""

from __future__ import annotations

import json
import signal
import subprocess
import time

from bough.cli.common import TECHNIQUES

QUICK = ("demo", "--task", "arithmetic", "-n", 4, "--level", 1)


def test_the_demo_shows_a_table_a_tree_and_saves_a_page(chains, bough):
    result = bough(*QUICK)
    assert result.exit_code == 0, result.output
    assert all(name in result.stdout for name in TECHNIQUES)
    assert "95 %" in result.stdout
    assert "answer" in result.stdout.split("astar on problem")[1]
    page = chains / "bough-demo.html"
    assert str(page.resolve()) in result.stdout.replace("\n", "")
    assert page.read_text().startswith("<!")


def test_json_has_every_cell_and_the_example(chains, bough):
    found = json.loads(bough(*QUICK, "--json", "--trace", "t.jsonl").stdout)
    (task,) = found["tasks"]
    assert [cell["strategy"] for cell in task["cells"]] == list(TECHNIQUES)
    for cell in task["cells"]:
        assert cell["problems"] == 4
        assert 0 <= cell["accuracy_low"] <= cell["accuracy"] <= cell["accuracy_high"] <= 1
        assert cell["tokens"] > 0
        assert cell["seconds"] > 0
    assert {comparison["baseline"] for comparison in task["comparisons"]} == {"best-of-n", "particle-filter"}
    trace = [json.loads(line) for line in (chains / "t.jsonl").read_text().splitlines()]
    assert trace[0]["strategy"]["name"] == "astar"
    assert trace[-1]["text"] == found["example"]["text"]


def test_the_same_seed_gives_the_same_table(chains, bough):
    def table():
        (task,) = json.loads(bough(*QUICK, "--json", "--seed", 7).stdout)["tasks"]
        return [(cell["accuracy"], cell["tokens"], cell["reward_calls"]) for cell in task["cells"]]

    assert table() == table()


def test_a_trace_that_cannot_be_saved_is_refused_first(chains, bough):
    result = bough(*QUICK, "--trace", "no/where.html")
    assert result.exit_code == 2
    assert "no folder no" in result.stderr
    assert result.stdout == ""


def test_the_demo_runs_on_the_embedded_models(bough, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = json.loads(bough("demo", "-n", 4, "--json").stdout)
    (task,) = found["tasks"]
    assert [cell["strategy"] for cell in task["cells"]] == list(TECHNIQUES)
    assert all(cell["model"] == "bough/nano" and cell["tokens"] > 0 for cell in task["cells"])
    assert {cell["reward"] for cell in task["cells"]} == {"bough/nano-prm"}
    if "example" in found:
        assert (tmp_path / "bough-demo.html").read_text().startswith("<!")


def test_ctrl_c_shows_what_was_finished(child, tmp_path):
    process = subprocess.Popen(
        **child("demo", "--task", "arithmetic", "-n", 6, "--level", 2, "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr.readline() == "running\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "interrupted" in errors
    assert not (tmp_path / "bough-demo.html").exists()
    assert json.loads(output)["interrupted"]
