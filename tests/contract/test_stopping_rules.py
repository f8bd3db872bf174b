"""What every registered stopping rule owes, whatever it decides by, and with whatever strategy it is used."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import inspect
import json
import math
import random
import re
import sys
import typing

import pytest

from bough.core import Answer, Backend, Budget, InvalidInput, Solution, StoppingRule, Strategy, run, techniques
from bough.search import BestOfN, SelfConsistency
from executing import STRATEGIES, execute, idle, native_backend, toy_backend

RULES = {name: info for name, info in techniques().items() if issubclass(info.cls, StoppingRule)}


@pytest.fixture(params=RULES)
def rule(request: pytest.FixtureRequest) -> StoppingRule:
    made: StoppingRule = RULES[request.param].cls()
    return made


def test_there_are_rules() -> None:
    assert len(RULES) >= 4
    assert all(info.family == "stopping" and not issubclass(info.cls, Strategy) for info in RULES.values())


def test_it_is_a_frozen_dataclass_of_typed_plain_values(rule: StoppingRule) -> None:
    cls = type(rule)
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        assert field.name in hints
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(rule, field.name, getattr(rule, field.name))
    assert json.loads(json.dumps(rule.describe()))["name"] == rule.info.name
    assert cls(**dataclasses.asdict(rule)) == rule


def test_it_says_what_it_does_and_where_it_comes_from(rule: StoppingRule) -> None:
    info = rule.info
    assert info.cls is type(rule)
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", info.name)
    assert re.search(r"arXiv:(\d{4}\.\d{4,5}|[a-z-]+/\d{7})|https?://|\b(19|20)\d\d\b", info.paper)
    assert 20 < len(info.summary) < 120 and info.summary.endswith(".")
    assert info.paper in (sys.modules[info.cls.__module__].__doc__ or "")
    assert len(inspect.getsource(sys.modules[info.cls.__module__]).splitlines()) < 300


def test_it_refuses_hyper_parameters_that_make_no_sense(rule: StoppingRule) -> None:
    nonsense = {int: [0, -1], float: [math.nan, -1.0], str: ["nonsense"]}
    for field in dataclasses.fields(rule):
        for value in nonsense.get(type(getattr(rule, field.name)), []):
            with pytest.raises(InvalidInput, match=re.escape(str(value))):
                dataclasses.replace(rule, **{field.name: value})


def solutions(seed: int, length: int) -> list[Solution]:
    rng = random.Random(seed)
    return [
        Solution(rng.choice(["x", "y", "z", None]), rng.choice([None, 0.0, 1.0, rng.random()])) for _ in range(length)
    ]


def test_it_is_a_pure_function_of_what_was_seen(rule: StoppingRule) -> None:
    for seed in range(200):
        seen = solutions(seed, 1 + seed % 40)
        before = copy.deepcopy(seen)
        said = rule(seen)
        assert said is None or (isinstance(said, str) and said)
        assert seen == before
        assert rule(tuple(seen)) == type(rule)()(seen) == said
        stops = rule.stops_at(seen)
        assert 1 <= stops <= len(seen)
        assert all(rule(seen[:k]) is None for k in range(1, stops))
        assert stops == len(seen) or rule(seen[:stops]) is not None


def test_it_stops_some_runs_and_not_all_at_once(rule: StoppingRule) -> None:
    """On solutions that all agree and score 1 it stops early; where none has an answer or a score, it does not."""
    assert 1 <= rule.stops_at([Solution("x", 1.0)] * 64) < 64
    if rule.info.name != "patience":
        assert rule.stops_at([Solution(None)] * 64) == 64


def outcome(answer: Answer) -> object:
    return answer.branch and (answer.branch.key, answer.branch.tokens), answer.score, answer.stopped_by


@pytest.mark.parametrize("name", STRATEGIES)
def test_it_composes_with_every_strategy(rule: StoppingRule, name: str) -> None:
    strategy: Strategy = STRATEGIES[name].cls()
    backend = toy_backend(None)
    free, _ = run(execute(strategy, backend))
    answer, _ = run(execute(strategy, backend, stop=rule))
    assert answer.branch is not None and answer.text == answer.branch.answer
    if answer.stopped_by is None:
        assert outcome(answer)[:2] == outcome(free)[:2]  # type: ignore[index]
    else:
        assert answer.stopped_by.startswith(f"stop: {rule.info.name}: ")
        assert answer.ledger.tokens <= free.ledger.tokens
    assert "stopped" not in answer.ledger.to_dict()
    assert idle(backend)
    # A spent budget ends it as without the rule.
    short, _ = run(execute(strategy, backend, stop=rule, budget=Budget(tokens=2)))
    assert short.ledger.tokens <= 2 and short.stopped_by is not None
    assert idle(backend)


@pytest.mark.parametrize("strategy", [BestOfN(n=12), SelfConsistency(n=12)], ids=lambda s: s.info.name)
@pytest.mark.parametrize("make", [toy_backend, native_backend])
def test_independent_solutions_give_the_same_answer_whatever_shares_the_batch(
    rule: StoppingRule, strategy: Strategy, make: typing.Callable[[int | None], Backend]
) -> None:
    """... and whatever the window."""

    async def together(backend: Backend, stop: StoppingRule) -> list[Answer]:
        runs = [execute(strategy, backend, seed=seed, stop=stop) for seed in range(5)]
        return [answer for answer, _ in await asyncio.gather(*runs)]

    with make(None) as backend:
        alone = [run(execute(strategy, backend, seed=seed, stop=rule))[0] for seed in range(5)]
    for crowd, parallel in ((1, rule.parallel), (2, 1), (3, 12)):
        with make(crowd) as backend:
            shared = run(together(backend, dataclasses.replace(rule, parallel=parallel)))
            assert idle(backend)
        assert list(map(outcome, shared)) == list(map(outcome, alone))
