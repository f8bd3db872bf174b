"""TreeBoN against a plain re-enactment of its layers, and against best-of-N."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from bough.core import Answer, Branch, Budget, InvalidInput, Run, Strategy, run
from bough.search import BestOfN, TreeBoN
from toy import EOS, ToyBackend, ToyReward, judged, solutions, toy_model

PROMPT = "ab?"
ROOT = (3, 4, 2)


def search(strategy: Strategy, seed: int = 0, **options: Any) -> Answer:
    return run(Run(reward=ToyReward(), **options).execute(strategy, ToyBackend().branch(PROMPT, seed=seed)))


def reenacted(strategy: TreeBoN, seed: int) -> tuple[list[int], int]:
    """The answer and the generated tokens, by the paper's description, one candidate after the other."""
    parents: list[Branch] = [ToyBackend().branch(PROMPT, seed=seed)]
    width, tokens, found = strategy.n, 0, []
    for layer in range(strategy.layers):
        candidates = []
        for parent in parents:
            for index in range(width):
                limit = strategy.max_tokens - (parent.length - 3)
                if layer + 1 < strategy.layers:
                    limit = min(limit, strategy.max_tokens // strategy.layers)
                [child] = run(parent.sample(first=index, max_tokens=limit))
                tokens += len(child.appended)
                (found if child.finished else candidates).append(child)
        candidates.sort(key=lambda branch: -judged(branch.tokens))
        parents, width = candidates[: strategy.n // strategy.children], strategy.children
    return max((branch.tokens for branch in found), key=judged), tokens


@pytest.mark.parametrize("seed", range(5))
def test_it_does_what_the_paper_says(seed: int) -> None:
    strategy = TreeBoN(n=12, children=3, layers=4, max_tokens=12)
    answer = search(strategy, seed)
    assert answer.branch is not None
    assert (answer.branch.tokens, answer.ledger.tokens) == reenacted(strategy, seed)
    assert answer.score == judged(answer.branch.tokens)


def test_with_one_layer_it_is_best_of_n() -> None:
    for seed in range(5):
        tree, flat = search(TreeBoN(n=8, layers=1), seed), search(BestOfN(n=8), seed)
        assert tree.branch is not None and flat.branch is not None
        assert (tree.branch.key, tree.score, tree.ledger.tokens) == (flat.branch.key, flat.score, flat.ledger.tokens)


@lru_cache(None)
def prophet(whole: tuple[int, ...]) -> float:
    """What becomes of a text on average, by a reward of whole ones: the best judge of partial texts there is."""
    if whole[-1] == EOS:
        return judged(whole, 3)
    return sum(p * judged(solution, 3) for solution, p in solutions(toy_model, whole))


def test_with_a_reward_that_sees_ahead_it_beats_best_of_n_at_equal_tokens() -> None:
    wins, spent = [], []
    for seed in range(60):
        found = {}
        for strategy in (TreeBoN(n=24, children=4, max_tokens=12, layers=3), BestOfN(n=38)):
            made = Run(reward=ToyReward(lambda tokens: prophet(tuple(tokens))))
            found[type(strategy)] = run(made.execute(strategy, ToyBackend().branch(PROMPT, seed=seed)))
        tree, flat = found[TreeBoN], found[BestOfN]
        assert tree.score is not None and flat.score is not None
        wins.append(0.5 + 0.5 * np.sign(tree.score - flat.score))
        spent.append([tree.ledger.tokens, flat.ledger.tokens])
    tokens = np.mean(spent, axis=0)
    assert np.mean(wins) > 0.6 and tokens[0] <= tokens[1]


@pytest.mark.parametrize("steps", [1, 2])
def test_a_segment_can_be_steps(steps: int) -> None:
    strategy = TreeBoN(n=8, children=2, layers=3, segment_steps=steps)
    depths = set()
    for seed in range(6):
        answer = search(strategy, seed)
        assert answer.branch is not None and answer.branch.finished
        nodes = answer.branch.path[1:]
        depths.add(len(nodes))
        for node in nodes[:-1]:
            assert node.appended_text.count("\n") == steps and node.appended_text.endswith("\n")
    assert max(depths) > 1


def test_every_layer_has_n_candidates_and_says_what_it_gives_up() -> None:
    events: list[Any] = []
    search(TreeBoN(n=12, children=3, max_tokens=12), on_event=events.append)
    sampled = [event for event in events if event.kind == "sampled"]
    kept = [event.node for event in events if event.kind == "selected"]
    scores = {event.node: event.score for event in events if event.kind == "scored"}
    lost = [event.node for event in events if event.kind == "pruned"]
    assert len([event for event in sampled if event.depth == 1]) == 12
    assert len([event for event in sampled if event.parent in kept]) == 3 * len(kept)
    first = [event.node for event in sampled if event.depth == 1]
    kept_first, lost_first = ([scores[node] for node in nodes if node in first] for nodes in (kept, lost))
    assert len(kept_first) == 4 and min(kept_first) >= max(lost_first)


def test_a_solution_is_never_longer_than_allowed() -> None:
    for steps in (None, 1):
        strategy = TreeBoN(n=8, children=2, layers=2, max_tokens=3, segment_steps=steps)
        answer = search(strategy)
        assert answer.branch is not None and answer.branch.length - 3 <= 3
    cut = search(replace(strategy, n=64), budget=Budget(tokens=70))
    assert cut.stopped_by is not None and cut.ledger.tokens <= 70


def test_bad_hyper_parameters_are_refused() -> None:
    for bad in ({"n": 10, "children": 4}, {"layers": 200}, {"segment_steps": 0}, {"children": 0}):
        with pytest.raises(InvalidInput, match=str(next(iter(bad.values())))):
            TreeBoN(**bad)  # type: ignore[arg-type]
