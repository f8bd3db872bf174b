"""What every technique owes its users, whatever it does. Registration alone puts a technique under these tests."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import json
import math
import random
import re
import sys
import time
import typing
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest
import scipy.stats

from bough.core import (
    Answer,
    Backend,
    Branch,
    Budget,
    Capability,
    InvalidInput,
    Promise,
    RewardError,
    Run,
    Strategy,
    StrategyError,
    UnsupportedError,
    run,
)
from executing import PROMPTS, STRATEGIES, Bench, Recorded, execute, idle, toy_backend
from toy import ToyBackend, ToyReward, solutions, toy_model

# What it is --------------------------------------------------------------------------------------------------


def test_it_is_a_frozen_dataclass_of_typed_plain_values(strategy: Strategy) -> None:
    cls = type(strategy)
    assert dataclasses.is_dataclass(cls)
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        assert field.name in hints
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(strategy, field.name, getattr(strategy, field.name))
    assert json.loads(json.dumps(strategy.describe()))["name"] == strategy.info.name
    assert cls(**dataclasses.asdict(strategy)) == strategy  # type: ignore[call-overload]


def test_it_says_what_it_does_and_where_it_comes_from(strategy: Strategy) -> None:
    info = strategy.info
    assert info.cls is type(strategy)
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", info.name)
    assert re.search(r"arXiv:(\d{4}\.\d{4,5}|[a-z-]+/\d{7})|https?://|\b(19|20)\d\d\b", info.paper)
    assert 20 < len(info.summary) < 120 and info.summary.endswith(".")
    assert info.paper in (sys.modules[info.cls.__module__].__doc__ or "")
    assert len(inspect.getsource(sys.modules[info.cls.__module__]).splitlines()) < 300


def test_it_refuses_hyper_parameters_that_make_no_sense(strategy: Strategy) -> None:
    nonsense = {int: [0, -1], float: [math.nan, -1.0], str: ["nonsense"]}
    for field in dataclasses.fields(strategy):  # type: ignore[arg-type]
        for value in nonsense.get(type(getattr(strategy, field.name)), []):
            with pytest.raises(InvalidInput, match=re.escape(str(value))):
                dataclasses.replace(strategy, **{field.name: value})  # type: ignore[type-var]


def test_it_uses_no_capability_that_it_does_not_declare(strategy: Strategy) -> None:
    backend = toy_backend(None)
    run(execute(strategy, backend))
    assert backend.used <= strategy.info.requires


def test_it_is_refused_up_front_where_a_capability_is_missing(strategy: Strategy) -> None:
    for capability in strategy.info.requires:
        backend = toy_backend(None)
        backend.capabilities = frozenset(Capability) - {capability}
        with pytest.raises(UnsupportedError, match=re.escape(capability.value)):
            run(execute(strategy, backend))
        assert not backend.used


def test_it_needs_a_reward_exactly_if_it_says_so(strategy: Strategy, backend: Backend) -> None:
    made = Run()
    executing = made.execute(strategy, backend.branch("ab?"))
    if strategy.info.needs_reward:
        with pytest.raises(UnsupportedError, match="reward"):
            run(executing)
        assert made.ledger.tokens == 0
    else:
        assert run(executing).branch is not None
        assert made.ledger.reward_calls == 0


# What it finds -----------------------------------------------------------------------------------------------


def test_it_answers_with_what_it_generated_below_the_prompt(strategy: Strategy, backend: Backend) -> None:
    answer, _ = run(execute(strategy, backend))
    assert answer.stopped_by is None
    assert answer.branch is not None and answer.branch.root.text == "ab?"
    assert answer.text == answer.branch.answer and answer.branch.completion != ""
    assert answer.score is not None or not strategy.info.needs_reward
    assert answer.score is None or math.isfinite(answer.score)
    drawn = sum(int(np.isfinite(node.logprobs).sum()) for node in answer.branch.path)
    assert answer.ledger.tokens >= drawn > 0
    assert idle(backend)


def outcome(answer: Answer) -> tuple[Any, ...]:
    assert answer.branch is not None
    return answer.branch.key, answer.branch.tokens, answer.score


def test_the_same_seed_gives_the_same_answer_whatever_shares_the_batch(strategy: Strategy, bench: Bench) -> None:
    async def together(backend: Backend) -> list[Answer]:
        runs = [execute(strategy, backend, prompt, seed=index) for index, prompt in enumerate(PROMPTS)]
        return [answer for answer, _ in await asyncio.gather(*runs)]

    with bench.backend() as backend:
        alone = [run(execute(strategy, backend, prompt, seed=i))[0] for i, prompt in enumerate(PROMPTS)]
    for crowded in bench.crowds:
        with bench.backend(crowded) as backend:
            shared = run(together(backend))
        assert list(map(outcome, shared)) == list(map(outcome, alone))


def test_another_seed_gives_other_samples_unless_it_draws_none(strategy: Strategy, backend: Backend) -> None:
    def varied(prompt: str) -> bool:
        answers = [run(execute(strategy, backend, prompt, seed))[0] for seed in range(6)]
        return len({(answer.text, answer.score) for answer in answers}) > 1

    # A strategy that sharpens may be all but certain of one prompt's answer.
    assert any(map(varied, PROMPTS)) == (not strategy.info.deterministic)


# What it spends ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["tokens", "passes", "reward_calls"])
def test_it_never_spends_more_than_its_budget(strategy: Strategy, backend: Backend, limit: str) -> None:
    unlimited, _ = run(execute(strategy, backend))
    free = getattr(unlimited.ledger, limit)
    for allowed in sorted({1, 2, 3, 5, 8, max(1, free // 2), max(1, free - 1)}):
        answer, recorded = run(execute(strategy, backend, budget=Budget(**{limit: allowed})))
        assert getattr(answer.ledger, limit) <= allowed
        # What happens to arrive together shares passes, so the same work may be done within fewer of them. That the
        # limit holds is asserted above in any case.
        done = limit == "passes" and answer.stopped_by is None and outcome(answer) == outcome(unlimited)
        if allowed < free and not done:
            assert answer.stopped_by is not None and limit in answer.stopped_by
        check_best_so_far(answer, recorded)
    assert idle(backend)


def test_a_budget_that_is_large_enough_changes_nothing(strategy: Strategy, backend: Backend) -> None:
    unlimited, _ = run(execute(strategy, backend))
    spent = unlimited.ledger
    budget = Budget(tokens=spent.tokens + 1, passes=spent.passes * 2 + 50, reward_calls=spent.reward_calls + 1)
    limited, _ = run(execute(strategy, backend, budget=budget))
    assert limited.stopped_by is None
    assert outcome(limited) == outcome(unlimited)


class SlowReward(ToyReward):
    async def __call__(self, branches: Sequence[Branch], run: Run) -> list[float]:
        await asyncio.sleep(0.03)
        return await super().__call__(branches, run)


def test_it_stops_when_its_time_is_over(strategy: Strategy, backend: Backend) -> None:
    started = time.perf_counter()
    answer, recorded = run(execute(strategy, backend, reward=SlowReward(), budget=Budget(seconds=0.05)))
    assert time.perf_counter() - started < 2
    assert answer.stopped_by is None or "seconds" in answer.stopped_by
    check_best_so_far(answer, recorded)
    assert idle(backend)


def check_best_so_far(answer: Answer, recorded: Recorded) -> None:
    """What was found before the end is the answer: the last proposal, which is the one of highest score."""
    if not recorded.proposals:
        assert answer.branch is None and answer.text == ""
        return
    scores = [proposal.score for proposal in recorded.proposals if proposal.score is not None]
    if answer.stopped_by is not None:
        assert answer.branch is not None and answer.branch.id == recorded.proposals[-1].node
        assert answer.score == (max(scores) if scores else None)


def test_cut_off_at_any_moment_it_keeps_the_best_so_far(strategy: Strategy, backend: Backend) -> None:
    free = run(execute(strategy, backend))[0].ledger.tokens
    rng, found = random.Random(0), 0
    for _ in range(10):
        answer, recorded = run(execute(strategy, backend, budget=Budget(tokens=rng.randint(1, free))))
        check_best_so_far(answer, recorded)
        found += answer.branch is not None
    assert found >= 5, "hardly anything of what was generated was kept"


def test_cancelled_at_any_moment_it_lets_go_of_everything(strategy: Strategy, backend: Backend) -> None:
    async def cancelled_after(ticks: int) -> Recorded:
        recorded = Recorded()
        task = asyncio.ensure_future(recorded.execute(strategy, backend.branch("ab?")))
        for _ in range(ticks):
            await asyncio.sleep(0)
        if task.cancel():  # else it was done already
            with pytest.raises(asyncio.CancelledError):
                await task
        assert asyncio.all_tasks() - {asyncio.current_task(), getattr(backend, "_driver", None)} == set()
        return recorded

    rng = random.Random(1)
    for _ in range(8):
        recorded = run(cancelled_after(rng.randint(0, 20)))
        if recorded.proposals:
            assert recorded.best is not None and recorded.best.id == recorded.proposals[-1].node
        assert idle(backend)
    assert run(execute(strategy, backend))[0].branch is not None


# What it survives --------------------------------------------------------------------------------------------


class FailingReward(ToyReward):
    """A reward that works at first."""

    def __init__(self, failure: Any, after: int) -> None:
        super().__init__()
        self.failure, self.after = failure, after

    async def __call__(self, branches: Sequence[Branch], run: Run) -> list[float]:
        scores = await super().__call__(branches, run)
        return scores if self.calls <= self.after else self.failure(scores)


def _raise(scores: list[float]) -> list[float]:
    raise ZeroDivisionError("the reward's own bug")


FAILURES = {
    "raises": (_raise, "ZeroDivisionError"),
    "nan": (lambda scores: [math.nan, *scores[1:]], "nan"),
    "infinite": (lambda scores: [*scores[:-1], math.inf], "inf"),
    "too few": (lambda scores: scores[:-1], "scores for"),
    "too many": (lambda scores: [*scores, 0.5], "scores for"),
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("after", [0, 6])
def test_a_broken_reward_is_named_and_breaks_nothing_else(
    strategy: Strategy, backend: Backend, failure: str, after: int
) -> None:
    function, said = FAILURES[failure]
    healthy = run(execute(strategy, backend))[0]
    recorded = Recorded(FailingReward(function, min(after, healthy.ledger.reward_calls - 1)))
    if healthy.ledger.reward_calls == 0:
        assert outcome(run(recorded.execute(strategy, backend.branch("ab?")))) == outcome(healthy)
        return
    with pytest.raises(RewardError, match=said) as caught:
        run(recorded.execute(strategy, backend.branch("ab?")))
    assert "toy-reward" in str(caught.value)
    assert caught.value.best is recorded.best
    assert idle(backend)
    assert outcome(run(execute(strategy, backend))[0]) == outcome(healthy)


# What it promises --------------------------------------------------------------------------------------------


async def plain(backend: Backend, prompt: str, seed: int) -> list[int]:
    """The tokens of plain decoding below a prompt."""
    [leaf] = await backend.branch(prompt, seed=seed).sample()
    return leaf.tokens


def keeps_exact(strategy: Strategy, backend: Backend) -> bool:
    """Whether the answers are, token for token, those of plain decoding under the same seed."""

    async def same(prompt: str, seed: int) -> bool:
        answer, _ = await execute(strategy, backend, prompt, seed)
        return answer.branch is not None and answer.branch.tokens == await plain(backend, prompt, seed)

    return all(run(same(prompt, seed)) for seed, prompt in enumerate(PROMPTS))


def keeps_unbiased(strategy: Strategy, samples: int = 1000) -> bool:
    """Whether the answers' distribution is that of plain decoding: chi-squared against exact enumeration."""
    backend = ToyBackend()
    root = tuple(backend.branch("ab?").tokens)
    exact = dict(solutions(toy_model, root))

    async def draw() -> list[Answer]:
        return [answer for answer, _ in await asyncio.gather(*(execute(strategy, backend, seed=s) for s in seeds))]

    seeds = range(samples)
    seen = Counter(tuple(answer.branch.tokens) for answer in run(draw()) if answer.branch is not None)
    common = [tokens for tokens, p in exact.items() if p * samples >= 5]
    expected = np.array([exact[tokens] * samples for tokens in common])
    observed = np.array([seen[tokens] for tokens in common])
    rest = samples - expected.sum()
    statistic = ((observed - expected) ** 2 / expected).sum() + (samples - observed.sum() - rest) ** 2 / rest
    return bool(scipy.stats.chi2.sf(statistic, len(common)) > 1e-4)


@dataclasses.dataclass(frozen=True)
class Probe(Strategy):
    """A strategy that does what a test says."""

    behave: Callable[[Branch, Run], Awaitable[Branch]]
    info = dataclasses.replace(STRATEGIES["best-of-n"], name="probe", needs_reward=False)

    async def __call__(self, prompt: Branch, run: Run) -> Branch:
        return await self.behave(prompt, run)


async def honest(prompt: Branch, run: Run) -> Branch:
    return (await prompt.sample())[0]


async def another_sample(prompt: Branch, run: Run) -> Branch:
    return (await prompt.sample(first=1))[0]


async def likelier(prompt: Branch, run: Run) -> Branch:
    return max(await prompt.sample(2), key=lambda leaf: leaf.logprob)


def test_it_keeps_its_promise(strategy: Strategy, backend: Backend) -> None:
    promise = strategy.info.promise
    if promise is Promise.EXACT:
        assert keeps_exact(strategy, backend)
    elif promise is Promise.UNBIASED:
        assert keeps_unbiased(strategy)
    else:
        # Another distribution on purpose: it had better not be plain decoding under another name.
        assert promise is Promise.APPROXIMATE and not keeps_exact(strategy, backend)


def test_a_broken_promise_would_be_noticed() -> None:
    backend = ToyBackend()
    assert keeps_exact(Probe(honest), backend) and keeps_unbiased(Probe(honest))
    assert not keeps_exact(Probe(another_sample), backend) and keeps_unbiased(Probe(another_sample))
    assert not keeps_unbiased(Probe(likelier))


def test_a_bug_in_a_strategy_is_told_from_other_failures() -> None:
    async def buggy(prompt: Branch, run: Run) -> Branch:
        run.propose((await prompt.sample())[0], 0.25)
        raise KeyError("oops")

    with ToyBackend() as backend, pytest.raises(StrategyError, match="probe.*oops") as caught:
        run(execute(Probe(buggy), backend))
    assert caught.value.best is not None and caught.value.best.completion
    assert idle(backend)
