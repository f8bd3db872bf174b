"""CoAT: where associations come from, what they add to a value, and that the rest is Monte Carlo tree search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from bough.core import Answer, Branch, Capability, InvalidInput, Run, UnsupportedError, run
from bough.search import MCTS, CoAT
from bough.search.mcts import Found, Node
from toy import EOS, ToyBackend, ToyReward, _log, judged, toy_model

PROMPT = "ab?"


@dataclass(frozen=True)
class Watched(CoAT):
    """Keeps the simulations in the order in which their results were taken."""

    taken: list[tuple[list[Node], Found]] = field(default_factory=list, compare=False)

    def _back_up(self, path: Sequence[Node], found: Found) -> None:
        super()._back_up(path, found)
        self.taken.append((list(path), found))


def search(strategy: Any, seed: int = 0, backend: ToyBackend | None = None, **options: Any) -> Answer:
    made = Run(reward=ToyReward(), **options)
    return run(made.execute(strategy, (backend or ToyBackend()).branch(PROMPT, seed=seed)))


def probabilities(tokens: Sequence[int], start: int) -> list[float]:
    return [float(toy_model(tuple(tokens[:end]))[tokens[end]]) for end in range(start, len(tokens))]


def test_every_value_is_the_steps_plus_beta_times_the_associations() -> None:
    strategy = Watched(simulations=60, width=8, parallel=1, beta=0.5)
    search(strategy)
    associated = alone = 0
    for path, found in strategy.taken:
        known = {
            node.appended for at in path[0].nodes() for node in at.branch.path if node.finish is not None
        }  # every step drawn in the search
        for child in found.children:
            step = next(node for node in reversed(child.branch.path) if node.finish is not None)
            if child.branch is step:
                assert child.value == judged(step.tokens)
                alone += not child.goal
                continue
            assert not child.goal and child.branch.parent is step
            assert child.branch.appended in known, "it is a step of the search"
            assert child.branch.appended not in {node.appended for node in step.path}, "it is new on this path"
            assert EOS not in child.branch.appended, "it gives no answer away"
            fit = math.exp(np.mean(_log(np.array(probabilities(child.branch.tokens, step.length)))))
            assert child.value == pytest.approx((judged(step.tokens) + 0.5 * fit) / 1.5, rel=1e-4)
            associated += 1
    assert associated > 10 and alone > 0


def test_an_association_is_the_highest_valued_step_of_another_branch_when_the_expansion_began() -> None:
    strategy = Watched(simulations=60, width=8, parallel=1)
    search(strategy, 3)
    checked = 0
    nodes: list[Node] = []
    for path, found in strategy.taken:
        others = [n for n in nodes if n not in path and not n.goal]
        own = [n.branch for n in others]
        steps = [next(b.appended for b in reversed(branch.path) if b.finish is not None) for branch in own]
        ranked = [step for _, step in sorted(zip(others, steps, strict=True), key=lambda pair: -(pair[0].value or 0))]
        for child in found.children:
            step = next(node for node in reversed(child.branch.path) if node.finish is not None)
            if child.branch is not step:
                on_path = {node.appended for node in step.path}
                assert child.branch.appended == next(fact for fact in ranked if fact not in on_path)
                checked += 1
        nodes += found.children
        assert not any(node.dead for node in nodes)
    assert checked > 10


def test_the_same_search_whatever_arrives_first() -> None:
    alone, crowded = Watched(simulations=24, parallel=6), Watched(simulations=24, parallel=6)
    search(alone), search(crowded, backend=ToyBackend(slots=2, shuffle=4))
    assert [path[-1].branch.tokens for path, _ in alone.taken] == [
        path[-1].branch.tokens for path, _ in crowded.taken
    ]
    assert [found.value for _, found in alone.taken] == [found.value for _, found in crowded.taken]


def test_where_nothing_comes_to_mind_it_is_monte_carlo_tree_search() -> None:
    """A context that is too short for anything but the solution itself."""

    @dataclass(frozen=True)
    class Forgetful(CoAT):
        def recall(self, path: Sequence[Node]) -> tuple[tuple[int, ...], ...]:
            return ()

    for seed in range(4):
        one, other = search(Forgetful(), seed), search(MCTS(), seed)
        assert one.branch is not None and other.branch is not None
        assert (one.branch.key, one.score, one.ledger.tokens) == (other.branch.key, other.score, other.ledger.tokens)


def test_the_model_can_be_asked_for_associations() -> None:
    strategy = Watched(source="model", cue="+", simulations=30, parallel=1, beta=0.25)
    answer = search(strategy)
    said = 0
    for path, found in strategy.taken:
        for child in found.children:
            nodes = child.branch.path[-3:]
            if child.goal or nodes[-2].appended_text != "+":
                continue
            step, _, association = nodes
            assert association.appended_text.endswith("\n") and step.finish == "stop"
            fit = math.exp(np.mean(np.log(probabilities(association.tokens, step.length + 1))))
            assert child.value == pytest.approx((judged(step.tokens) + 0.25 * fit) / 1.25, rel=1e-4)
            said += 1
            assert path[-1].branch in child.branch.path, "it stays in the context of what follows"
    assert said > 10 and answer.branch is not None


def test_only_what_is_used_is_required() -> None:
    backend = ToyBackend()
    backend.capabilities = frozenset(Capability) - {Capability.SCORE}
    assert search(CoAT(source="model", cue="+", simulations=4), backend=backend).branch is not None
    with pytest.raises(UnsupportedError, match="CoAT|coat"):
        search(CoAT(), backend=backend)


def test_nothing_is_appended_where_the_context_has_no_room() -> None:
    backend = ToyBackend(context=12)
    strategy = Watched(simulations=40, parallel=1)
    answer = search(strategy, backend=backend)
    assert answer.branch is not None
    nodes: list[Branch] = [child.branch for _, found in strategy.taken for child in found.children]
    assert all(branch.length < 12 or branch.finish is not None for branch in nodes)


def test_bad_hyper_parameters_are_refused() -> None:
    for bad in ({"beta": math.inf}, {"source": "web"}, {"association_tokens": 0}):
        with pytest.raises(InvalidInput, match=str(next(iter(bad.values())))):
            CoAT(**bad)  # type: ignore[arg-type]
