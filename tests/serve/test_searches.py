"""Searches over HTTP: a strategy in the model's name or in the body, its ledger and trace in the response."""

from __future__ import annotations

import json

import pytest

import bough
from bough.serve import Scheduled, Server, Service
from serving import listening

PROBLEM = "23+48-17*3\n"


@pytest.fixture(scope="module")
def searching(nano):
    """The embedded model with its reward."""
    reward = bough.load_reward("bough/nano-prm")
    service = Service(Scheduled(nano), rewards={"bough/nano-prm": reward}, default_reward="bough/nano-prm")
    with listening(Server(service)) as made:
        yield made
    reward.backend.close()


def test_a_strategy_in_the_models_name_answers_as_the_library_does(searching, nano):
    found = searching.openai.completions.create(model="nano+astar", prompt=PROBLEM, seed=4)
    wanted = bough.solve(nano, PROBLEM, strategy="astar", reward=searching.service.rewards["bough/nano-prm"], seed=4)
    assert found.choices[0].text == wanted.text
    assert found.choices[0].finish_reason == "stop"
    assert found.bough["score"] == pytest.approx(wanted.score, abs=1e-2)
    assert found.usage.completion_tokens == found.bough["ledger"]["tokens"] == wanted.ledger.tokens
    assert found.bough["ledger"]["reward_calls"] == wanted.ledger.reward_calls


def test_the_body_says_how_to_search(searching):
    found = searching.openai.chat.completions.create(
        model="bough/nano",
        messages=[{"role": "user", "content": "23+48-17*3"}],
        extra_body={"bough": {"strategy": "best-of-n", "params": {"n": 3}, "budget": {"reward_calls": 3}, "seed": 9}},
        temperature=0.5,
    )
    assert found.bough["strategy"]["name"] == "best-of-n"
    assert found.bough["strategy"]["n"] == 3
    assert found.bough["strategy"]["temperature"] == 0.5
    assert found.bough["seed"] == 9
    assert found.bough["ledger"]["reward_calls"] == 3


def test_a_budget_that_ends_the_search_is_said(searching):
    found = searching.post(
        "/v1/completions", prompt=PROBLEM, bough={"strategy": "astar", "budget": {"tokens": 5}}, model="nano"
    ).json()
    assert "tokens: 5 of 5" in found["bough"]["stopped_by"]
    assert found["choices"][0]["finish_reason"] == "length"
    assert found["usage"]["completion_tokens"] <= 5


def test_the_trace_has_an_address(searching):
    found = searching.post("/v1/completions", model="nano+astar", prompt=PROBLEM, seed=1).json()
    lines = searching.http.get(found["bough"]["trace"]).text.splitlines()
    records = [json.loads(line) for line in lines]
    assert records[0]["strategy"]["name"] == "astar"
    assert records[-1]["type"] == "finished" and records[-1]["text"] == found["choices"][0]["text"]
    assert "<html" in searching.http.get(found["bough"]["trace"] + ".html").text
    assert searching.http.get("/traces/nothing").status_code == 404


def test_a_stream_has_progress_in_comments_and_then_the_answer(searching):
    body = {"model": "nano+best-of-n", "prompt": PROBLEM, "seed": 2, "stream": True}
    with searching.http.stream("POST", "/v1/completions", json=body) as response:
        lines = [line for line in response.iter_lines() if line]
    comments = [json.loads(line[2:]) for line in lines if line.startswith(": ")]
    assert comments[0]["event"] == "started" and comments[0]["trace"].startswith("/traces/")
    assert lines[-1] == "data: [DONE]"
    whole = searching.openai.completions.create(**{**body, "stream": False})
    stream = list(searching.openai.completions.create(**body))
    assert "".join(choice.text for chunk in stream for choice in chunk.choices) == whole.choices[0].text
    assert stream[-1].bough["ledger"]["tokens"] == whole.bough["ledger"]["tokens"]


def test_events_come_as_chunks_where_they_are_asked_for(searching):
    body = {"model": "nano", "prompt": PROBLEM, "seed": 2, "stream": True}
    stream = list(
        searching.openai.completions.create(**body, extra_body={"bough": {"strategy": "astar", "events": True}})
    )
    kinds = [chunk.bough["type"] for chunk in stream if not chunk.choices and "type" in (chunk.bough or {})]
    assert kinds[0] == "root" and kinds[-1] == "finished" and "sampled" in kinds and "scored" in kinds


def test_an_answers_logprobs_are_the_models(searching, nano):
    found = searching.openai.completions.create(model="nano+astar", prompt=PROBLEM, seed=4, logprobs=2)
    table = found.choices[0].logprobs
    text = "".join(name for name in table.tokens if not name.startswith("token_id:"))
    assert text == found.choices[0].text
    assert all(logprob <= 0 for logprob in table.token_logprobs)
    assert all(len(top) in (2, 3) for top in table.top_logprobs)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"bough": {"strategy": "no-such"}}, 404, "bough.strategy"),
        ({"bough": {"strategy": "astar", "params": {"no": 1}}}, 400, "bough.params.no"),
        ({"bough": {"strategy": "astar", "params": {"width": "2"}}}, 400, "bough.params.width"),
        ({"bough": {"strategy": "astar", "params": {"width": 0}}}, 400, "bough.params"),
        ({"bough": {"strategy": "best-of-n", "params": {"n": 10**9}}}, 400, "bough.params.n"),
        ({"bough": {"strategy": "astar", "reward": "/etc/passwd"}}, 404, "bough.reward"),
        ({"bough": {"strategy": "astar", "task": "/etc/passwd.jsonl"}}, 404, "bough.task"),
        ({"bough": {"strategy": "astar", "stop": "astar"}}, 404, "bough.stop"),
        ({"bough": {"strategy": "astar", "budget": {"tokens": 0}}}, 400, "bough.budget.tokens"),
        ({"bough": {"budget": {"tokens": 9}}}, 400, "bough.budget"),
        ({"model": "nano+astar", "bough": {"strategy": "greedy"}}, 400, "bough.strategy"),
        ({"model": "nano+astar", "n": 2}, 400, "n"),
        ({"model": "nano+astar", "max_tokens": 5}, 400, "max_tokens"),
        ({"model": "nano+astar", "top_k": 5}, 400, "top_k"),
        ({"model": "nano+astar", "stop": ["x"]}, 400, "stop"),
        ({"model": "nano+astar", "prompt": ["a", "b"]}, 400, "prompt"),
        ({"model": "nano+astar", "seed": 1, "bough": {"seed": 2}}, 400, "bough.seed"),
    ],
)
def test_what_a_search_cannot_do_is_refused_by_name(searching, body, status, param):
    response = searching.post("/v1/completions", **{"model": "nano", "prompt": PROBLEM, **body})
    assert response.status_code == status, response.text
    assert response.json()["error"]["param"] == param
    assert searching.idle()


def test_without_a_reward_a_search_that_needs_one_is_refused(served):
    response = served.post("/v1/completions", model="nano+best-of-n", prompt=PROBLEM)
    assert response.status_code == 400
    assert "reward" in response.json()["error"]["message"]


def test_the_searches_are_listed_as_models(searching):
    names = [model.id for model in searching.openai.models.list()]
    assert "bough/nano+astar" in names and "bough/nano+self-consistency" in names
    assert searching.openai.models.retrieve("nano+astar").id == "nano+astar"
