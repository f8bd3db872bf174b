"""The embedded model behind llama.cpp's Python server: the same tokens and scores, and strategies that run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import bough
from bough import zoo
from bough.backends import Endpoint, connect
from bough.core import Backend, Budget, Capability, UnsupportedError
from bough.search import AStar, BestOfN, ParticleFilter, SelfConsistency
from bough.tasks import get_task
from servers import free_port, need, serving

need("llama_cpp", "gguf", "fastapi", "uvicorn", "sse_starlette", "starlette_context", "pydantic_settings")

NANO = zoo.path("bough/nano")
PROMPTS = [get_task("arithmetic").problem("test", index).prompt for index in range(6)]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    import gguf_files

    folder: Path = tmp_path_factory.mktemp("llama")
    model = gguf_files.convert(NANO, "fp32", folder / "nano.gguf", tokenizer=True)
    port = free_port()
    options = {
        "model": model, "model_alias": "bough/nano", "n_ctx": 1024, "logits_all": "true", "n_threads": 1,
        "n_threads_batch": 1, "host": "127.0.0.1", "port": port, "verbose": "false", "interrupt_requests": "false",
        "type_k": 0, "type_v": 0,  # keys and values in fp32; by default they are rounded to fp16
    }  # fmt: skip
    command = [
        "-m",
        "llama_cpp.server",
        *(str(word) for item in options.items() for word in (f"--{item[0]}", item[1])),
    ]
    with serving(command, port, folder / "log") as address:
        yield address


@pytest.fixture(scope="module")
def lm(url: str) -> Iterator[Endpoint]:
    with connect(url, tokenizer=NANO) as connected:
        yield connected


@pytest.fixture(scope="module")
def native() -> Iterator[Backend]:
    with bough.load("bough/nano", dtype="float32") as loaded:
        yield loaded


def test_it_offers_what_it_was_seen_to_do(lm: Endpoint, url: str) -> None:
    assert lm.name == "bough/nano"
    assert {c.name for c in lm.capabilities} == {"SAMPLE", "CONTINUE", "LOGPROBS", "SCORE", "SEEDED"}
    assert not lm.route.ids and not lm.route.several  # it takes text, and ignores n
    with connect(url) as without:  # it does not report how likely the end is
        assert without.capabilities == lm.capabilities - {Capability.LOGPROBS}
        with pytest.raises(UnsupportedError, match=r"astar needs log-prob.*give tokenizer=.*best-of-n"):
            bough.solve(without, PROMPTS[0], strategy=AStar())


def test_greedy_tokens_and_their_log_probabilities_are_the_native_engine_s(lm: Endpoint, native: Backend) -> None:
    for prompt in PROMPTS:
        (theirs,) = lm.generate(lm.branch(prompt), temperature=0, max_tokens=120)
        (ours,) = native.generate(native.branch(prompt), temperature=0, max_tokens=120)
        assert theirs.root.tokens == ours.root.tokens and theirs.key == ours.key
        assert (theirs.appended, theirs.finish) == (ours.appended, ours.finish)
        assert np.abs(theirs.logprobs - ours.logprobs).max() < 1e-3


def test_scores_are_the_native_engine_s(lm: Endpoint, native: Backend) -> None:
    prompt, given = "12+34\n", ["12+34=46\nanswer 46\n", "12+34=47\n"]
    theirs, ours = (model.score(model.branch(prompt), given) for model in (lm, native))
    for one, other in zip(theirs, ours, strict=True):
        assert one == pytest.approx(other, abs=1e-3)


def test_drawn_tokens_have_the_log_probabilities_that_the_native_engine_gives_them(
    lm: Endpoint, native: Backend
) -> None:
    root = lm.branch(PROMPTS[1], seed=7)
    for leaf in lm.generate(root, 4, max_tokens=80):
        (ours,) = native.score(native.branch(PROMPTS[1]), [leaf.appended])
        assert leaf.logprobs == pytest.approx(ours, abs=1e-3)


@pytest.mark.parametrize(
    "strategy",
    [BestOfN(n=4), SelfConsistency(n=4), AStar(width=2), ParticleFilter(n=4)],
    ids=lambda strategy: strategy.info.name,
)
def test_strategies_run_as_they_do_on_the_native_engine(lm: Endpoint, strategy: bough.core.Strategy) -> None:
    answer = bough.solve(lm, PROMPTS[0], strategy=strategy, task="arithmetic", budget=Budget(tokens=1500), seed=1)
    assert answer.branch is not None and get_task("arithmetic").extract(answer.text) is not None
    assert answer.ledger.tokens > 0 and answer.ledger.computed_tokens > answer.ledger.tokens
    again = bough.solve(lm, PROMPTS[0], strategy=strategy, task="arithmetic", budget=Budget(tokens=1500), seed=1)
    assert again.branch is not None and again.branch.tokens == answer.branch.tokens


def test_the_command_line_solves_on_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from bough.cli import app

    command = ["solve", "-m", url, "--task", "arithmetic", "-s", "self-consistency", "-p", "n=3", "--json", "12+34"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["model"] == "bough/nano" and answer["answer"]
