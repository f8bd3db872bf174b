"""bough's own server as an endpoint of bough's own client."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import bough
from bough.backends import Endpoint, connect
from bough.core import Backend, Capability, Strategy
from bough.search import AStar, BestOfN, ParticleFilter, SelfConsistency
from bough.tasks import get_task
from bough.zoo import path
from serving import Listening

PROMPT = "25*3+90-57*2\n"


@pytest.fixture(scope="module")
def lm(served: Listening) -> Iterator[Endpoint]:
    with connect(f"{served.url}/v1", tokenizer=path("bough/nano")) as found:
        yield found


def test_it_is_found_by_itself_among_its_searches(lm: Endpoint) -> None:
    assert lm.name == "bough/nano"
    assert {Capability.SAMPLE, Capability.CONTINUE, Capability.LOGPROBS, Capability.SCORE} <= lm.capabilities


def test_greedy_tokens_and_log_probabilities_are_the_engine_s(lm: Endpoint, nano: Backend) -> None:
    (theirs,), (ours,) = (model.generate(model.branch(PROMPT), temperature=0, max_tokens=120) for model in (lm, nano))
    assert (theirs.appended, theirs.finish) == (ours.appended, ours.finish)
    np.testing.assert_allclose(theirs.logprobs, ours.logprobs, atol=2e-2)  # bfloat16, in another batch


@pytest.mark.parametrize(
    "strategy",
    [BestOfN(n=4), SelfConsistency(n=4), AStar(), ParticleFilter(n=4)],
    ids=lambda strategy: strategy.info.name,
)
def test_strategies_run_on_it(lm: Endpoint, strategy: Strategy) -> None:
    answer = bough.solve(lm, PROMPT, strategy=strategy, task="arithmetic", reward="bough/nano-prm", seed=1)
    assert get_task("arithmetic").extract(answer.text) is not None and answer.ledger.tokens > 0
