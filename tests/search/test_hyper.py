"""HyPER: its pool against enumeration, its vote against the exact law of the answers, its cost against certainty."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest

from bough.core import Answer, Branch, InvalidInput, Run, run
from bough.search import HyPER, SelfConsistency
from bough.search.hyper import Pool
from toy import EOS, SYMBOLS, ToyBackend, solutions, toy_model

PROMPT = "ab?"
ROOT = tuple(SYMBOLS.index(character) for character in PROMPT)
small_model = partial(toy_model, lines=2, letters=2)


@dataclass(frozen=True)
class Watched(HyPER):
    """Keeps its pools."""

    pools: list[Pool] = field(default_factory=list, compare=False)

    def _reduce(self, branches: Sequence[Branch], run: Run) -> Pool:
        self.pools.append(super()._reduce(branches, run))
        return self.pools[-1]


def search(strategy: Any, seed: int = 0, model: Any = toy_model, **options: Any) -> Answer:
    return run(Run(**options).execute(strategy, ToyBackend(model).branch(PROMPT, seed=seed)))


def last_line(tokens: Sequence[int]) -> str:
    return "".join(SYMBOLS[token] for token in tokens[len(ROOT) :]).strip().splitlines()[-1]


@pytest.mark.parametrize("power", [None, 1.0])
def test_with_a_large_pool_the_vote_is_the_weight_of_all_solutions(power: float | None) -> None:
    totals: Counter[str] = Counter()
    for tokens, p in solutions(small_model, ROOT):
        totals[last_line(tokens)] += math.exp(math.log(p) / (len(tokens) - len(ROOT)) ** (power or 0.0))
    mode = max(totals, key=lambda answer: totals[answer])
    share = totals[mode] / sum(totals.values())
    for seed in range(3):
        answer = search(HyPER(n=1000, length_power=power, refine=None), seed, small_model)
        assert answer.branch is not None and last_line(answer.branch.tokens) == mode
        # It ends as soon as the leader is certain, when little is left of the others' weight.
        assert answer.score == pytest.approx(share, abs=0.1)


def test_the_pool_holds_each_hypothesis_once_with_the_models_own_probability() -> None:
    strategy = Watched(n=12)
    for seed in range(6):
        search(strategy, seed)
    redrawn = 0
    for pool in strategy.pools:
        tokens = [tuple(branch.tokens) for branch in pool.branches]
        assert 0 < len(tokens) <= 12 and len(set(tokens)) == len(tokens)
        assert sum(pool.shares) == pytest.approx(1.0) and list(pool.weights) == sorted(pool.weights, reverse=True)
        assert min(pool.weights) >= 1 / 12 - 1e-9
        for branch, weight in zip(pool.branches, pool.weights, strict=True):
            exact = np.prod([toy_model(tuple(branch.tokens[:t]))[branch.tokens[t]] for t in range(3, branch.length)])
            assert branch.logprob == pytest.approx(math.log(exact), abs=1e-4)
            leader = pool.branches[0].logprob
            assert weight == pytest.approx(math.exp(branch.logprob - leader), rel=1e-3)
            redrawn += any(not node.appended_text.endswith("\n") for node in branch.path[1:-1])
            # Wherever a step was drawn again, it still ends where steps end.
            assert branch.finished or branch.text.endswith("\n")
    assert redrawn > 3


def sure_model(tokens: tuple[int, ...], power: float = 8.0) -> np.ndarray:
    """The same language, spoken with more confidence."""
    sharp: np.ndarray = toy_model(tokens) ** power
    return sharp / sharp.sum()


def test_it_costs_one_solution_where_the_model_is_sure_and_more_where_it_is_not() -> None:
    def cost(model: Any) -> float:
        hyper = [search(HyPER(), seed, model).ledger.tokens for seed in range(20)]
        votes = [search(SelfConsistency(), seed, model).ledger.tokens for seed in range(20)]
        return float(np.mean(hyper) / np.mean(votes))

    sure, unsure = cost(partial(sure_model, power=30.0)), cost(toy_model)
    assert sure < 0.15 and sure < unsure / 2 and unsure < 1


def test_it_finds_the_mode_more_often_than_self_consistency_with_fewer_tokens() -> None:
    totals: Counter[str] = Counter()
    for tokens, p in solutions(small_model, ROOT):
        totals[last_line(tokens)] += p
    mode = max(totals, key=lambda answer: totals[answer])
    found, spent = {}, {}
    for strategy in (HyPER(), SelfConsistency()):
        answers = [search(strategy, seed, small_model) for seed in range(60)]
        name = strategy.info.name
        found[name] = np.mean([last_line(a.branch.tokens) == mode for a in answers if a.branch])
        spent[name] = np.mean([a.ledger.tokens for a in answers])
    assert found["hyper"] >= found["self-consistency"] and spent["hyper"] < 0.75 * spent["self-consistency"]


def test_exploration_draws_what_the_samples_would_have_spent_elsewhere() -> None:
    """floor(n w U e) more in the first round, where w = e = 1; all from the least confident token on."""
    for seed in range(8):
        events: list[Any] = []
        search(HyPER(n=20, max_steps=1), seed, on_event=events.append)
        sampled = [event for event in events if event.kind == "sampled"]
        first = sampled[0]
        p = [math.exp(piece[2]) for piece in first.tokens]
        draws = math.floor(20 * (1 - math.prod(p)))
        place = int(np.argmin(p))
        assert len(sampled) == 1 + (draws or 2 * (min(p) < 0.5))
        written = [first.tokens[:place] for _ in sampled[1:]]
        assert all([*head, *event.tokens][-1][0] == "\n" for head, event in zip(written, sampled[1:], strict=True))


def test_refinement_keeps_the_likeliest_version() -> None:
    better = 0
    for seed in range(30):
        plain, refined = (search(HyPER(n=1, refine=refine, variants=6), seed) for refine in (None, 0.9))
        assert plain.branch is not None and refined.branch is not None
        better += refined.branch.logprob - plain.branch.logprob > 1e-6
    assert better > 10


def test_it_ends_when_no_answer_could_overtake_the_leading_one() -> None:
    """One line is all but certain to be the whole solution; the rest is never followed up."""

    def model(tokens: tuple[int, ...]) -> np.ndarray:
        probabilities = np.zeros(len(SYMBOLS))
        if tokens[-1] == 2:
            probabilities[[3, 4]] = 0.9, 0.1
        elif tokens[-1] == 3 or len(tokens) > 30:
            probabilities[EOS] = 1.0
        else:
            probabilities[[4, 1]] = 0.5, 0.5
        return probabilities

    for seed in range(10):
        answer = search(HyPER(n=32), seed, model)
        assert answer.text == "a" and answer.ledger.passes < 20
        assert answer.score is not None and answer.score > 0.5


def test_a_text_without_an_answer_has_no_vote_but_is_better_than_nothing() -> None:
    class Task:
        name, step_stop, answer_stop = "c", "\n", None

        def extract(self, text: str) -> str | None:
            return text.rpartition("c")[2] if "c" in text else None

        def is_complete(self, text: str) -> bool:
            return False

    kinds = set()
    for seed in range(12):
        answer = search(HyPER(n=2), seed, task=Task())
        assert answer.branch is not None and ("c" in answer.text) == (answer.score is not None)
        kinds.add("c" in answer.text)
    assert kinds == {True, False}


def test_bad_hyper_parameters_are_refused() -> None:
    for bad in ({"refine": 0.0}, {"refine": 1.5}, {"length_power": -1.0}, {"n": 0}, {"variants": 0}):
        with pytest.raises(InvalidInput, match=str(next(iter(bad.values())))):
            HyPER(**bad)  # type: ignore[arg-type]
