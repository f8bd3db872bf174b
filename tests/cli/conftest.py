"""The command line on a stand-in model that works arithmetic chains."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bough import api
from bough.cli import app
from chains import ChainBackend, ChainReward

# What a child process runs to use the stand-ins too: argv is the command line.
CHILD = """
import sys, time
from pathlib import Path
from chains import ChainBackend, ChainReward
from bough import api
class Slow(ChainBackend):
    def __init__(self):
        super().__init__()
        self.slots = 10
    def _pass(self):
        if not self.passes:
            print("running", file=sys.stderr, flush=True)
        time.sleep(0.02)
        super()._pass()
api.load = lambda source, **options: Slow()
api.resolve = lambda source: Path("nowhere")
api._DEFAULT_REWARDS = {"chains": "chains-prm"}
api.load_reward = lambda source, **overrides: ChainReward()
from bough.cli import main
main()
"""


@pytest.fixture
def chains(monkeypatch, tmp_path):
    """Every model is the stand-in, and so is its reward; the working directory is empty."""
    monkeypatch.setattr(api, "load", lambda source, **options: ChainBackend())
    monkeypatch.setattr(api, "resolve", lambda source: tmp_path)
    monkeypatch.setattr(api, "_DEFAULT_REWARDS", {"chains": "chains-prm"})
    monkeypatch.setattr(api, "load_reward", lambda source, **overrides: ChainReward())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def bough():
    """Runs a command line in this process."""

    def call(*words: object, stdin: str | None = None):
        return CliRunner().invoke(app, [str(word) for word in words], input=stdin)

    return call


@pytest.fixture
def child(tmp_path):
    """The command line of a child process on the stand-ins, and its environment."""
    # The very bough that is tested here, wherever it is installed from.
    paths = os.pathsep.join(map(str, (Path(__file__).parents[1], Path(api.__file__).parents[1])))
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}

    def command(*words: object) -> dict[str, object]:
        return {
            "args": [sys.executable, "-c", CHILD, *map(str, words)], "env": environment, "cwd": tmp_path,
        }  # fmt: skip

    return command
