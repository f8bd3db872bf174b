"""`solve`: whatever a prompt, a strategy and a reward are given as, and what is refused before anything runs."""

from __future__ import annotations

import asyncio
import gc
from dataclasses import dataclass
from typing import ClassVar

import pytest

import bough
from bough import api
from bough.core import (
    Branch,
    Budget,
    Capability,
    InvalidInput,
    Promise,
    RewardError,
    Run,
    Strategy,
    StrategyError,
    TechniqueInfo,
    UnsupportedError,
)
from bough.search import AStar, BestOfN, Greedy
from bough.tasks import get_task
from chains import ChainBackend, ChainReward, solution

PROMPT = "23+48-17*3"
SOLVED = "23+48=71\n71-17=54\n54*3=162\nanswer 162\n"
PROBLEM = get_task("arithmetic").problem("test", 0, level=2)


def test_a_prompt_is_solved_and_the_answer_says_what_it_cost():
    answer = bough.solve(ChainBackend(), PROMPT + "\n", strategy=AStar(width=4), reward=ChainReward())
    assert answer.text == SOLVED
    assert answer.score > 0.5
    assert answer.ledger.tokens >= len(SOLVED)
    assert answer.ledger.reward_calls > 0
    assert answer.stopped_by is None


def test_the_default_strategy_is_astar():
    assert bough.solve(ChainBackend(), PROBLEM, reward=ChainReward()).trace.header["strategy"]["name"] == "astar"


@pytest.mark.parametrize(
    "prompt",
    [
        PROBLEM,
        PROBLEM.prompt,
        ChainBackend().encode(PROBLEM.prompt),
        [{"role": "user", "content": PROBLEM.prompt}],
    ],
    ids=["problem", "text", "tokens", "messages"],
)
def test_text_tokens_messages_and_problems_are_prompts(prompt):
    assert bough.solve(ChainBackend(), prompt, strategy=Greedy()).text == solution(PROBLEM.prompt.strip())


def test_a_problem_brings_its_task():
    lm = ChainBackend()
    assert api.prepare(lm, PROBLEM, strategy=Greedy()).run.task.name == "arithmetic"
    assert api.prepare(lm, PROBLEM, strategy=Greedy(), task="countdown").run.task.name == "countdown"
    assert api.prepare(lm, PROBLEM.prompt, strategy=Greedy()).run.task.name == "text"


def test_a_task_s_problem_gets_the_newline_it_ends_in_and_free_text_is_left_alone():
    lm = ChainBackend()
    assert api.prepare(lm, PROMPT, strategy=Greedy(), task="arithmetic").root.text == PROMPT + "\n"
    assert api.prepare(lm, PROMPT + "\n", strategy=Greedy(), task="arithmetic").root.text == PROMPT + "\n"
    assert api.prepare(lm, PROMPT, strategy=Greedy()).root.text == PROMPT
    lm.name = "bough/nano"
    assert api.prepare(lm, PROMPT, strategy=Greedy()).root.text == PROMPT + "\n"


@pytest.mark.parametrize("name", ["astar", "best-of-n", "self-consistency", "beam-search", "particle-filter"])
def test_a_strategy_s_name_stands_for_its_defaults(name):
    answer = bough.solve(ChainBackend(), PROBLEM, strategy=name, reward=ChainReward())
    assert answer.trace.header["strategy"]["name"] == name
    assert get_task("arithmetic").extract(answer.text) is not None


def test_a_function_of_the_completion_is_a_reward():
    seen = []

    def shortest(text):
        seen.append(text)
        return -len(text)

    answer = bough.solve(ChainBackend(), PROBLEM, strategy=BestOfN(n=8), reward=shortest)
    assert len(seen) == 8
    assert all(text.endswith("\n") and PROBLEM.prompt not in text for text in seen)
    assert answer.score == -min(map(len, seen))


def test_a_reward_s_name_is_loaded_once_per_model_and_dropped_with_it(monkeypatch):
    loads = []

    def load_reward(source, **overrides):
        loads.append(source)
        return ChainReward()

    monkeypatch.setattr(api, "load_reward", load_reward)
    lm = ChainBackend()
    for _ in range(3):
        bough.solve(lm, PROBLEM, strategy=BestOfN(n=1), reward="some/prm")
    assert loads == ["some/prm"]
    bough.solve(ChainBackend(), PROBLEM, strategy=BestOfN(n=1), reward="some/prm")
    assert len(loads) == 2
    del lm
    gc.collect()
    assert len(api._rewards) <= 1


def test_the_embedded_model_brings_its_reward_when_a_strategy_needs_it(monkeypatch):
    loads = []

    def load_reward(source, **overrides):
        loads.append(source)
        return ChainReward()

    monkeypatch.setattr(api, "load_reward", load_reward)
    lm = ChainBackend()
    lm.name = "bough/nano"
    bough.solve(lm, PROBLEM, strategy="self-consistency")
    assert loads == []
    bough.solve(lm, PROBLEM, strategy=BestOfN(n=2))
    assert loads == ["bough/nano-prm"]
    bough.solve(lm, PROBLEM, strategy=bough.search.SelfConsistency(n=2, weighted=True))
    assert loads == ["bough/nano-prm"]


def test_the_same_seed_gives_the_same_answer_and_another_seed_another():
    def texts(seed):
        answer = bough.solve(ChainBackend(), PROBLEM, strategy=BestOfN(n=8), reward=ChainReward(), seed=seed)
        return [record["text"] for record in answer.trace if record["type"] == "sampled"]

    assert sorted(texts(1)) == sorted(texts(1))
    assert sorted(texts(1)) != sorted(texts(2))


def test_a_budget_ends_the_run_with_the_best_so_far():
    answer = bough.solve(
        ChainBackend(), PROBLEM, strategy=BestOfN(n=8), reward=ChainReward(), budget=Budget(reward_calls=3)
    )
    assert answer.ledger.reward_calls == 3
    assert answer.branch is not None
    assert "reward_calls" in answer.stopped_by


def test_events_are_seen_as_they_are_traced():
    seen = []
    answer = bough.solve(ChainBackend(), PROBLEM, reward=ChainReward(), on_event=seen.append)
    kinds = [record["type"] for record in answer.trace if record["type"] != "run"]
    assert [event.kind for event in seen] == kinds
    assert kinds[0] == "root"
    assert kinds[-1] == "finished"
    assert len(bough.solve(ChainBackend(), PROBLEM, reward=ChainReward(), trace=False).trace) == 1


def test_solve_works_where_a_loop_runs_already():
    async def notebook():
        return bough.solve(ChainBackend(), PROBLEM, strategy=Greedy()).text

    assert asyncio.run(notebook()) == solution(PROBLEM.prompt.strip())


def test_many_runs_share_one_backend():
    lm = ChainBackend()
    problems = [get_task("arithmetic").problem("test", index, level=1) for index in range(6)]

    async def all_at_once():
        return await asyncio.gather(
            *(bough.solve_async(lm, problem, strategy=AStar(), reward=ChainReward()) for problem in problems)
        )

    together = bough.run(all_at_once())
    alone = [bough.solve(lm, problem, strategy=AStar(), reward=ChainReward()) for problem in problems]
    assert [answer.text for answer in together] == [answer.text for answer in alone]


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"prompt": ""}, InvalidInput, "the prompt is empty"),
        ({"prompt": []}, InvalidInput, "the prompt is empty"),
        ({"prompt": PROMPT * 60}, InvalidInput, "context of 256"),
        ({"prompt": [1, 2, 999]}, InvalidInput, "token id 999 at position 2"),
        ({"strategy": "alphago"}, InvalidInput, "there is no technique 'alphago'"),
        ({"strategy": AStar}, InvalidInput, "neither a Strategy instance"),
        ({"task": "sudoku"}, InvalidInput, "sudoku"),
        ({"reward": None}, UnsupportedError, "astar needs a reward, and chains comes with none"),
        ({"reward": 3}, InvalidInput, "reward=3 is neither"),
        ({"reward": ""}, InvalidInput, "name is empty"),
        ({"reward": "http://host/v1"}, UnsupportedError, "endpoint"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(change, error, says):
    lm = ChainBackend()
    given = {"prompt": PROBLEM, "strategy": "astar", "reward": ChainReward(), **change}
    with pytest.raises(error, match=says):
        bough.solve(lm, **given)
    assert not lm.used


def test_a_missing_capability_is_refused_by_name():
    lm = ChainBackend()
    lm.capabilities = frozenset({Capability.SCORE})
    with pytest.raises(UnsupportedError, match="greedy needs draw continuations"):
        bough.solve(lm, PROBLEM, strategy=Greedy())


@pytest.mark.parametrize("bad", [lambda text: float("nan"), lambda text: "good", lambda text: 1 / 0])
def test_a_reward_that_gives_no_number_is_an_error_and_the_backend_goes_on(bad):
    lm = ChainBackend()
    with pytest.raises(RewardError):
        bough.solve(lm, PROBLEM, strategy=BestOfN(n=2), reward=bad)
    assert bough.solve(lm, PROBLEM, strategy=Greedy()).text == solution(PROBLEM.prompt.strip())


@dataclass(frozen=True)
class Raises(Strategy):
    """Finds an answer, then fails; not in the registry, so no contract test walks it."""

    info: ClassVar[TechniqueInfo]

    async def __call__(self, prompt: Branch, run: Run) -> Branch | None:
        run.propose((await prompt.sample(temperature=0))[0])
        raise ZeroDivisionError


Raises.info = TechniqueInfo(
    "raises", Raises, "test", "", Promise.APPROXIMATE, frozenset({Capability.SAMPLE}), needs_reward=False
)


def test_a_strategy_that_raises_loses_nothing_it_had_found():
    lm = ChainBackend()
    with pytest.raises(StrategyError, match="raises raised ZeroDivisionError") as caught:
        bough.solve(lm, PROBLEM, strategy=Raises())
    assert caught.value.best.completion == solution(PROBLEM.prompt.strip())
    assert bough.solve(lm, PROBLEM, strategy=Greedy()).text
