"""`bough tune`: a winner, what is as good, what it cost, and the command to run next; resumable."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import time

import pytest

QUICK = ("tune", "-t", "arithmetic", "--level", 2, "-n", 12, "--fresh", 6, "--first", 4, "--budget-tokens", 150)
ARMS = ("-s", "greedy", "-s", "best-of-n:n=2/4", "-s", "self-consistency:n=2")


def records(folder):
    return [json.loads(line) for line in (folder / "bough-tune" / "results.jsonl").read_text().splitlines()]


def test_people_see_the_winner_its_rivals_the_cost_and_the_next_command(chains, bough):
    result = bough(*QUICK, *ARMS)
    assert result.exit_code == 0, result.output
    words = " ".join(result.stdout.split())
    assert "fresh problems (95 % interval" in words
    assert "4 on 6, 2 on 12" in words
    assert "by halving" in words
    assert f"finding out cost {len(records(chains))} trials on 18 problems" in words
    assert "not distinguishable from it" in words


def test_programs_get_all_of_it_and_the_command_runs(chains, bough):
    found = json.loads(bough(*QUICK, *ARMS, "--json").stdout)
    assert found["budget"] == {"tokens": 150}
    assert found["spent"]["trials"] == len(records(chains))
    assert {record["split"] for record in records(chains)} == {"validation"}
    words = shlex.split(found["command"])
    assert words[:2] == ["bough", "solve"]
    solved = json.loads(bough(*words[1:], "--json").stdout)
    assert solved["strategy"] == found["strategy"]["name"]
    assert solved["ledger"]["tokens"] <= 150
    assert {"name": solved["strategy"], **solved["params"]} == found["strategy"]


def test_architectures_compete_and_their_search_is_counted(chains, bough):
    pytest.importorskip("optuna", reason="architectures are searched by optuna, an extra")
    found = json.loads(bough(*QUICK, "-s", "greedy", "--architectures", 2, "--json").stdout)
    assert 0 < found["architectures"]["trials"] <= 2 * 32
    names = [found["strategy"]["name"], *(rival["strategy"]["name"] for rival in found["rivals"])]
    assert "archon" in names
    made = [record for record in records(chains) if record["strategy"] == "archon"]
    assert found["architectures"]["tokens"] <= sum(record["tokens"] for record in made)
    words = " ".join(bough(*QUICK, "-s", "greedy", "--architectures", 2).stdout.split())
    assert "finding architectures to compare cost 0 trials" in words, "they are in the results by now"


def test_a_name_alone_tries_all_that_the_technique_has(chains, bough):
    found = json.loads(bough(*QUICK, "-s", "self-consistency", "--json").stdout)
    assert found["rounds"][0]["candidates"] == 10


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("tune", "-t", "arithmetic"), "no budget to tune for"),
        (("tune", "-t", "sudoku", "--budget-tokens", 9), "no task 'sudoku'"),
        (("tune", "-t", "arithmetic", "--budget-tokens", 0), "budget tokens=0"),
        (("tune", "-t", "arithmetic", "--budget-tokens", 9, "-s", "magic"), "no strategy 'magic'"),
        (("tune", "-t", "arithmetic", "--budget-tokens", 9, "--split", "exam"), "unknown split 'exam'"),
        (("tune", "-t", "arithmetic", "--budget-tokens", 9, "-s", "astar:doubt=7"), "doubt=7"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(chains, bough, words, says):
    result = bough(*words)
    assert result.exit_code == 2
    assert says in result.stderr
    assert not (chains / "bough-tune").exists()


def test_a_tuning_that_is_stopped_goes_on_where_it_was(child, tmp_path):
    words = (*QUICK, "-n", 4, "--first", 2, "--fresh", 2, *ARMS, "--concurrency", 4, "--json")
    path = tmp_path / "bough-tune" / "results.jsonl"
    process = subprocess.Popen(**child(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not (path.exists() and path.read_bytes().count(b"\n") >= 3):
            assert time.monotonic() < deadline, "it did not get that far"
            assert process.poll() is None, "it ended too early"
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "goes on from there" in errors
    kept = path.read_bytes()
    whole = json.loads(subprocess.run(**child(*words), capture_output=True, text=True, check=True).stdout)
    assert path.read_bytes().startswith(kept)
    assert len(records(tmp_path)) == whole["spent"]["trials"]
