"""The embedded model behind ``transformers serve``, which gives text and nothing about it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

import bough
from bough import zoo
from bough.backends import Endpoint, connect
from bough.core import Capability, UnsupportedError
from bough.search import AStar, SelfConsistency
from servers import free_port, need, serving

need("transformers", "accelerate", "fastapi", "uvicorn", "openai")

NANO = str(zoo.path("bough/nano"))
PROMPT = "23+48-17*3\n"


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    folder: Path = tmp_path_factory.mktemp("serve")
    port = free_port()
    serve = "import sys; from transformers.cli.transformers import main; sys.argv[0] = 'transformers'; main()"
    command = ["-c", serve, "serve", NANO, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with serving(command, port, folder / "log", path="/health") as url, connect(url, model=NANO, timeout=60) as made:
        yield made


def test_it_offers_text_and_nothing_more(lm: Endpoint) -> None:
    assert {Capability.SAMPLE, Capability.CONTINUE} <= lm.capabilities
    assert not lm.capabilities & {Capability.LOGPROBS, Capability.SCORE}
    with pytest.raises(UnsupportedError, match="astar needs log-probabilities.*without it there are"):
        bough.solve(lm, PROMPT, strategy=AStar(), reward=len)


def test_greedy_text_is_the_native_engine_s(lm: Endpoint) -> None:
    with bough.load("bough/nano") as native:
        (ours,) = native.generate(native.branch(PROMPT), temperature=0, max_tokens=60)
    (theirs,) = lm.generate(lm.branch(PROMPT), temperature=0, max_tokens=60)
    assert theirs.appended_text == ours.appended_text and theirs.finish == ours.finish
    assert math.isnan(theirs.logprob)
    (line,) = lm.generate(lm.branch(PROMPT), temperature=0, max_tokens=60, stop="\n")
    assert line.finish == "stop" and line.appended_text.startswith(ours.appended_text.split("\n")[0] + "\n")


def test_self_consistency_runs_on_it(lm: Endpoint) -> None:
    answer = bough.solve(lm, PROMPT, strategy=SelfConsistency(n=3, max_tokens=60), task="arithmetic")
    assert answer.text and answer.score is not None and answer.ledger.tokens > 3
