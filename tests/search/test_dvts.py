"""Diverse verifier tree search against a re-enactment of each subtree on its own."""

from __future__ import annotations

from functools import partial
from itertools import zip_longest
from typing import Any

import numpy as np
import pytest

from bough.core import Answer, Branch, InvalidInput, Run, run
from bough.search import DVTS
from toy import EOS, SYMBOLS, ToyBackend, ToyReward, judged, steps, toy_model

PROMPT = "ab?"
ROOT = tuple(SYMBOLS.index(character) for character in PROMPT)


def search(strategy: DVTS, seed: int = 0, backend: ToyBackend | None = None, **options: Any) -> Answer:
    made = Run(reward=ToyReward(), **options)
    return run(made.execute(strategy, (backend or ToyBackend()).branch(PROMPT, seed=seed)))


@pytest.mark.parametrize("seed", range(4))
def test_each_subtree_follows_the_best_of_its_own_draws(seed: int) -> None:
    strategy = DVTS(n=12, m=3)
    whole: list[Branch] = []
    tokens = 0
    for subtree in range(4):
        state, first = ToyBackend().branch(PROMPT, seed=seed), subtree * 3
        while not state.finished:
            drawn = [run(state.sample(first=first + index, stop="\n"))[0] for index in range(3)]
            tokens += sum(len(child.appended) for child in drawn)
            whole += [child for child in drawn if child.finished]
            state, first = max(drawn, key=lambda child: judged(child.tokens)), 0
    answer = search(strategy, seed)
    assert answer.branch is not None and answer.ledger.tokens == tokens
    assert answer.branch.tokens == max((branch.tokens for branch in whole), key=judged)
    assert answer.score == judged(answer.branch.tokens)


def test_with_enough_draws_every_subtree_is_the_greedy_path_through_the_whole_tree() -> None:
    state: tuple[int, ...] = ROOT
    while state[-1] != EOS:
        state = max((longer for longer, _ in steps(toy_model, state)), key=judged)
    for seed in range(3):
        events: list[Any] = []
        answer = search(DVTS(n=800, m=400), seed, on_event=events.append)
        assert answer.branch is not None
        ends = {event.node for event in events if event.kind == "sampled" and event.finish == "eos"}
        chosen = [event.node for event in events if event.kind == "selected" and event.node in ends]
        scores = {event.node: event.score for event in events if event.kind == "scored"}
        assert [scores[node] for node in chosen] == [judged(state)] * 2
        assert answer.score is not None and answer.score >= judged(state)


def test_subtrees_do_not_wait_for_each_other() -> None:
    """Lines have up to 12 letters: a search with barriers would wait for the longest of all in every level."""
    model = partial(toy_model, letters=12)
    saved = []
    for seed in range(8):
        alone, levels = [], []
        for subtree in range(4):
            state, first, longest = ToyBackend(model).branch(PROMPT, seed=seed), subtree * 4, []
            while not state.finished:
                drawn = [run(state.sample(first=first + index, stop="\n"))[0] for index in range(4)]
                longest.append(max(len(child.appended) for child in drawn))
                state, first = max(drawn, key=lambda child: judged(child.tokens)), 0
            alone.append(sum(longest))
            levels.append(longest)
        barriers = sum(max(level) for level in zip_longest(*levels, fillvalue=0))
        passes = search(DVTS(n=16, m=4), seed, ToyBackend(model)).ledger.passes
        # While a subtree waits for its reward, passes of the others go by: a few in each level.
        assert max(alone) <= passes <= max(alone) + 4 * 3
        saved.append(barriers - passes)
    assert np.mean(saved) > 0


def test_without_a_whole_solution_the_best_partial_one_is_the_answer() -> None:
    answer = search(DVTS(n=8, m=2, max_steps=1))
    drawn = run(ToyBackend().branch(PROMPT).sample(8, stop="\n"))
    assert answer.branch is not None and answer.score is None
    assert judged(answer.branch.tokens) == max(judged(leaf.tokens) for leaf in drawn)


def test_bad_hyper_parameters_are_refused() -> None:
    for bad in ({"n": 6, "m": 4}, {"m": 0}, {"n": -4}):
        with pytest.raises(InvalidInput, match=str(next(iter(bad.values())))):
            DVTS(**bad)
