"""A*-decoding: what its derivation claims, checked on trees small enough to see whole."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bough.core import Answer, Branch, Budget, FreeText, InvalidInput, RewardError, Run, run
from bough.search import AStar
from bough.search.astar import Node
from toy import EOS, SYMBOLS, ToyBackend, ToyReward, judged, solutions, toy_model

PROMPT = "ab?"
ROOT = tuple(SYMBOLS.index(character) for character in PROMPT)
NEVER = 9.0  # a cost of drawing again that is never worth it

Score = Callable[[Sequence[int]], float]


def coarse(tokens: Sequence[int], seed: int = 0) -> float:
    """A reward of three values, so that nearly every comparison is a tie."""
    return round(2 * judged(tokens, seed)) / 2


class Outcome(NamedTuple):
    answer: Answer
    events: list[Any]
    run: Run

    @property
    def expanded(self) -> list[Any]:
        return [event for event in self.events if event.kind == "expanded"]


class DawdlingReward(ToyReward):
    """Takes its time, another one for each call."""

    def __init__(self, score: Score, seed: int) -> None:
        super().__init__(score)
        self.random = random.Random(seed)

    async def __call__(self, branches: Sequence[Branch], run: Run) -> list[float]:
        for _ in range(self.random.randrange(12)):
            await asyncio.sleep(0)
        return await super().__call__(branches, run)


def search(
    strategy: AStar, score: Score = judged, seed: int = 0, timing: int | None = None, task: Any = None, **limits: Any
) -> Outcome:
    """One search; ``timing`` seeds the order in which draws are served and how long each reward takes."""
    events: list[Any] = []
    reward = ToyReward(score) if timing is None else DawdlingReward(score, timing)
    made = Run(task=task, reward=reward, budget=Budget(**limits), on_event=events.append)
    backend = ToyBackend() if timing is None else ToyBackend(slots=1 + timing % 7, shuffle=timing)
    answer = run(made.execute(strategy, backend.branch(PROMPT, seed=seed)))
    assert backend.idle
    return Outcome(answer, events, made)


# The costs -----------------------------------------------------------------------------------------------------


def deterioration(hs: Sequence[float]) -> float:
    return sum(max(0.0, after - before) for before, after in zip(hs, hs[1:], strict=False))


F: dict[Any, Callable[[Sequence[float]], float]] = {
    "deterioration": deterioration,
    "worst": max,
    "none": lambda hs: hs[-1],
}


@pytest.mark.parametrize("cost", list(F))
def test_f_is_what_the_derivation_says(cost: Any) -> None:
    found = search(AStar(width=2, cost=cost, revisit_cost=NEVER, parallel=1), coarse, seed=3)
    states = {event.node: event for event in found.events if event.kind == "sampled"}
    scores = {event.node: event.score for event in found.events if event.kind == "scored"}
    checked = 0
    for event in found.expanded:
        hs, node = [], event.node
        while node in states:
            hs.append(1 - scores[node])
            node = states[node].parent
        hs = [0.0, *hs[::-1]]
        assert event.f == pytest.approx(F[cost](hs))
        assert event.h == hs[-1] and event.g == pytest.approx(event.f - event.h)
        if cost == "deterioration":
            assert event.g == pytest.approx(sum(max(0.0, a - b) for a, b in zip(hs, hs[1:], strict=False)))
        checked += len(hs) > 2
    assert checked > 0


@pytest.mark.parametrize("cost", ["deterioration", "worst"])
def test_f_never_falls_along_a_path_nor_in_the_order_of_expansion(cost: Any) -> None:
    for seed in range(20):
        found = search(AStar(width=2, cost=cost, parallel=1, revisit_cost=0.15), seed=seed)
        parents = {event.node: event.parent for event in found.events if event.kind == "sampled"}
        order = [event.f for event in found.expanded]
        assert order == sorted(order)
        first: dict[str, float] = {}
        for event in found.expanded:
            first.setdefault(event.node, event.f)
            parent = parents.get(event.node)
            if parent is not None:
                assert event.f >= first[parent]


def test_without_a_cost_f_does_fall() -> None:
    falls = 0
    for seed in range(20):
        order = [
            event.f
            for event in search(AStar(width=4, cost="none", parallel=1, revisit_cost=NEVER), seed=seed).expanded
        ]
        falls += order != sorted(order)
    assert falls > 10


# The result ----------------------------------------------------------------------------------------------------


def goals(state: Branch, width: int, score: Score, cost: str) -> list[tuple[Any, Branch]]:
    """Every goal of the whole sampled tree below a state, with its f and the order of ties; nothing is searched."""
    found = []

    def walk(node: Branch, hs: list[float], path: tuple[tuple[float, int], ...]) -> None:
        seen = set()
        for index, child in enumerate(run(node.sample(width, stop="\n"))):
            if child.appended in seen:
                continue
            seen.add(child.appended)
            h = 1 - score(child.tokens)
            at = (*hs, h), (*path, (h, index))
            if child.finished:
                found.append(((F[cost](at[0]), at[1]), child))
            else:
                walk(child, list(at[0]), at[1])

    walk(state, [0.0], ())
    return found


@pytest.mark.parametrize("cost", ["deterioration", "worst"])
@pytest.mark.parametrize("score", [judged, coarse], ids=["judged", "coarse"])
def test_it_finds_the_least_of_all_goals_in_the_sampled_tree(cost: Any, score: Score) -> None:
    expansions = []
    for seed in range(12):
        strategy = AStar(width=3, cost=cost, revisit_cost=NEVER, parallel=1)
        everything = goals(ToyBackend().branch(PROMPT, seed=seed), 3, score, cost)
        least = min(everything, key=lambda goal: goal[0])[1]
        found = search(strategy, score, seed)
        assert found.answer.branch is not None and found.answer.branch.key == least.key
        expansions.append(len(found.expanded))
    assert sum(expansions) < 12 * 8, "it should not have to expand most of the tree"


def test_with_all_continuations_drawn_it_finds_the_least_of_all_solutions_there_are() -> None:
    """Enough samples per expansion are every possible step; the optimum is then that of the language."""

    def f(tokens: tuple[int, ...]) -> float:
        ends = [end for end in range(len(ROOT) + 1, len(tokens) + 1) if tokens[end - 1] in (EOS, SYMBOLS.index("\n"))]
        return deterioration([0.0, *(1 - judged(tokens[:end]) for end in ends)])

    best = min((tokens for tokens, _ in solutions(toy_model, ROOT)), key=f)
    found = search(AStar(width=400, revisit_cost=NEVER, max_expansions=10_000))
    assert found.answer.branch is not None and tuple(found.answer.branch.tokens) == best


@settings(max_examples=60)
@given(
    seed=st.integers(0, 1000),
    timing=st.integers(0, 1000),
    width=st.integers(1, 4),
    parallel=st.integers(2, 8),
    doubt=st.sampled_from([0.0, 0.3, 0.7]),
    cost=st.sampled_from(["deterioration", "worst"]),
    revisit_cost=st.sampled_from([0.02, 0.2, NEVER]),
    score=st.sampled_from([judged, coarse]),
)
@example(
    seed=0, timing=3, width=2, parallel=8, doubt=0.0, cost="deterioration", revisit_cost=0.05, score=coarse
)  # fmt: skip
def test_expanding_several_at_once_in_any_order_of_arrival_finds_the_same(
    seed: int, timing: int, width: int, parallel: int, doubt: float, cost: Any, revisit_cost: float, score: Score
) -> None:
    one = AStar(width=width, parallel=1, cost=cost, revisit_cost=revisit_cost)
    many = AStar(width=width, parallel=parallel, doubt=doubt, cost=cost, revisit_cost=revisit_cost)
    alone, crowd = search(one, score, seed), search(many, score, seed, timing)
    if len(alone.expanded) == one.max_expansions or len(crowd.expanded) == many.max_expansions:
        return  # ended by its own limit, which a crowd reaches earlier
    assert alone.answer.branch is not None and crowd.answer.branch is not None
    assert crowd.answer.branch.key == alone.answer.branch.key
    assert crowd.answer.score == alone.answer.score == score(alone.answer.branch.tokens)
    # What one at a time expands is what must be expanded; the rest is speculation.
    needed = Counter(event.node for event in alone.expanded)
    assert needed <= Counter(event.node for event in crowd.expanded)


@pytest.mark.parametrize(("tie_break", "order"), [("path", "p p1 x"), ("deepest", "p1 p x"), ("reward", "p x p1")])
def test_nodes_of_equal_f_come_in_the_order_of_the_tie_break(tie_break: Any, order: str) -> None:
    strategy, root = AStar(tie_break=tie_break, cost="worst"), ToyBackend().branch(PROMPT)

    def child(parent: Any, h: float, index: int) -> Any:
        return strategy._child(parent, root, h, index, False)

    start = Node(root, depth=0, h=0.0, f=0.0, born=0.0, path=(), key=(0.0,))
    doubted = child(start, 0.5, 0)
    nodes = {"x": child(doubted, 0.4, 0), "p": child(doubted, 0.3, 1)}
    nodes["p1"] = child(nodes["p"], 0.5, 0)
    assert {node.f for node in nodes.values()} == {0.5}
    assert " ".join(sorted(nodes, key=nodes.__getitem__)) == order


# The work ------------------------------------------------------------------------------------------------------


def test_identical_siblings_are_judged_once_and_expanded_once() -> None:
    found = search(AStar(width=30, revisit_cost=NEVER, parallel=1))
    drawn = [event for event in found.events if event.kind == "sampled"]
    distinct = {(event.parent, event.text, event.finish) for event in drawn}
    scored = [event for event in found.events if event.kind == "scored"]
    merged = [event for event in found.events if event.kind == "pruned" and "sibling" in event.reason]
    assert len(scored) == len(distinct) < len(drawn) == len(scored) + len(merged)
    assert found.answer.ledger.reward_calls == len(scored)
    assert len(found.expanded) == len({event.node for event in found.expanded})


def test_expansions_do_not_wait_for_each_other() -> None:
    """One expansion's reward does not come back before three others were judged; a barrier would never end."""
    released = asyncio.Event()
    stuck: list[Branch] = []
    others: list[Branch] = []

    async def reward(branches: Sequence[Branch], run: Run) -> list[float]:
        if branches[0].depth == 2 and not stuck:
            stuck.append(branches[0])
            await asyncio.wait_for(released.wait(), 10)
        elif branches[0].depth == 2:
            others.append(branches[0])
            if len(others) == 3:
                released.set()
        # Deeper is worse, so every state of a level is expanded before the next level, and before any goal.
        return [0.5 - 0.1 * branch.depth for branch in branches]

    judge: Any = partial(reward)
    judge.name = "slow once"
    strategy = AStar(width=20, parallel=2, doubt=0.0)
    answer = run(Run(reward=judge).execute(strategy, ToyBackend().branch(PROMPT, seed=1)))
    assert stuck and len(others) >= 3 and answer.branch is not None


def test_it_speculates_only_where_it_doubts() -> None:
    def most_in_flight(strategy: AStar, score: Score) -> int:
        now = most = 0

        class Counting(AStar):
            async def _expand(self, *arguments: Any) -> Any:
                nonlocal now, most
                now += 1
                most = max(most, now)
                try:
                    return await super()._expand(*arguments)
                finally:
                    now -= 1

        counting = Counting(**{**vars(strategy)})
        run(Run(reward=ToyReward(score)).execute(counting, ToyBackend().branch(PROMPT)))
        return most

    def sure(tokens: Sequence[int]) -> float:
        return 0.9 - 0.01 * len(tokens)

    def unsure(tokens: Sequence[int]) -> float:
        return 0.3 - 0.01 * len(tokens)

    assert most_in_flight(AStar(parallel=3, doubt=0.5), sure) == 1
    assert most_in_flight(AStar(parallel=3, doubt=0.5), unsure) > 1
    assert most_in_flight(AStar(parallel=3, doubt=0.0), sure) == 3
    assert most_in_flight(AStar(parallel=1, doubt=0.0), unsure) == 1


def test_with_an_exact_reward_it_expands_right_states_only() -> None:
    """Right is a text without any b; the reward knows."""

    def exact(tokens: Sequence[int]) -> float:
        return float(SYMBOLS.index("b") not in tokens[len(ROOT) :])

    for seed in range(10):
        found = search(AStar(width=6, revisit_cost=0.1, parallel=1), exact, seed)
        assert "b" not in found.answer.text and found.answer.score == 1.0
        scores = {event.node: event.score for event in found.events if event.kind == "scored"}
        assert all(scores.get(event.node, 1.0) == 1.0 for event in found.expanded)
        assert found.answer.ledger.tokens < 6 * 3 * 4


class Rare(FreeText):
    """Free text of which few have an answer: one that ends in c."""

    def extract(self, text: str) -> str | None:
        return text if text.endswith("c\n") else None


def test_where_every_path_is_a_dead_end_it_draws_again() -> None:
    redrawn = 0
    for seed in range(8):
        found = search(AStar(width=1, revisit_cost=NEVER), seed=seed, task=Rare())
        assert found.answer.text.endswith("c\n") and found.answer.score is not None
        assert found.answer.stopped_by is None
        redrawn += max(Counter(event.node for event in found.expanded).values()) > 1
        dead = {event.node for event in found.events if event.kind == "pruned" and "answer" in event.reason}
        assert not dead & {event.node for event in found.events if event.kind == "scored"}
    assert redrawn > 3


def test_a_small_cost_of_drawing_again_widens_where_children_disappoint() -> None:
    def disappointing(tokens: Sequence[int]) -> float:
        return 0.1 + 0.01 * judged(tokens)

    def draws(revisit_cost: float, score: Score) -> int:
        found = search(AStar(width=2, revisit_cost=revisit_cost, parallel=1), score)
        root = found.expanded[0].node
        return sum(event.node == root for event in found.expanded)

    assert draws(0.2, disappointing) > 2
    assert draws(NEVER, disappointing) == 1
    assert draws(0.2, lambda tokens: 0.95) == 1


def test_drawing_again_costs_what_a_new_child_takes() -> None:
    """When a node is expanded again, its f has risen by cost x different children / unexplored probability."""
    compared = 0
    for seed in range(20):
        found = search(AStar(width=2, revisit_cost=0.03, parallel=1), seed=seed)
        born: dict[str, float] = {}
        children: dict[str, dict[str, float]] = {}
        for event in found.events:
            if event.kind == "sampled":
                probability = math.exp(sum(sample_logprob for *_, sample_logprob in event.tokens))
                children.setdefault(event.parent, {})[event.text] = probability
            elif event.kind == "expanded" and event.node in born:
                drawn = children[event.node]
                price = 0.03 * len(drawn) / (1 - sum(drawn.values()))
                assert event.f == pytest.approx(born[event.node] + price, rel=1e-4)
                compared += 1
            elif event.kind == "expanded":
                born[event.node] = event.f
    assert compared > 20


def test_a_node_whose_children_are_all_known_is_not_expanded_again() -> None:
    """With one token to choose from at a time, a state has one child, of probability 1."""
    found = search(AStar(width=1, top_p=1e-6, revisit_cost=0.001), lambda tokens: 0.01, task=Rare())
    assert max(Counter(event.node for event in found.expanded).values()) == 1


# Its ends ------------------------------------------------------------------------------------------------------


def test_it_returns_the_first_goal_popped_even_if_another_has_a_higher_reward() -> None:
    """Scores of goals drawn on the way are offered, for a run that is cut off; they do not win a finished search."""
    differ = 0
    for seed in range(40):
        found = search(AStar(width=4, cost="deterioration", revisit_cost=NEVER), seed=seed)
        offered = [event for event in found.events if event.kind == "proposed"]
        assert found.answer.branch is not None
        assert found.answer.score == judged(found.answer.branch.tokens)
        assert found.events[-1].kind == "finished" and found.events[-2].kind == "selected"
        differ += found.answer.branch.id != offered[-1].node
    assert differ > 0


def test_cut_off_it_answers_with_the_best_goal_or_the_partial_solution_of_least_f() -> None:
    partial_solutions = goals_found = 0
    for seed, tokens in product(range(20), range(9, 33, 3)):
        found = search(AStar(width=4, parallel=3, doubt=0.0), tokens=tokens, seed=seed)
        if found.answer.stopped_by is None:
            continue
        scored = {event.node: event.score for event in found.events if event.kind == "scored"}
        ended = {event.node for event in found.events if event.kind == "sampled" and event.finish == "eos"}
        reached = [score for node, score in scored.items() if node in ended]
        if reached:
            goals_found += 1
            assert found.answer.score == max(reached)
        elif scored:
            partial_solutions += 1
            assert found.answer.branch is not None and found.answer.branch.id in scored
            assert found.answer.score is None
    assert partial_solutions > 5 and goals_found > 5


def test_it_ends_after_max_expansions() -> None:
    free = max((search(AStar(width=2), seed=seed) for seed in range(10)), key=lambda found: len(found.expanded))
    seed = next(seed for seed in range(10) if len(search(AStar(width=2), seed=seed).expanded) == len(free.expanded))
    assert len(free.expanded) > 4
    found = search(AStar(width=2, max_expansions=3), seed=seed)
    assert len(found.expanded) == 3
    assert found.answer.branch is not None and found.answer.stopped_by is None


def test_an_unfinished_solution_is_given_up_after_max_steps() -> None:
    found = search(AStar(max_steps=1, max_expansions=4))
    assert found.answer.text.endswith("\n") and found.answer.score is None
    pruned = [event.reason for event in found.events if event.kind == "pruned"]
    assert any("unfinished after 1 steps" in reason for reason in pruned)
    assert max(event.depth for event in found.events if event.kind == "sampled") == 1


def test_at_temperature_zero_it_is_greedy_decoding_and_draws_everything_once() -> None:
    found = search(AStar(temperature=0.0))
    [plain] = run(ToyBackend().branch(PROMPT).sample(temperature=0.0))
    assert found.answer.text == plain.completion
    assert found.answer.ledger.tokens == len(plain.appended)


def test_a_reward_outside_zero_to_one_is_refused() -> None:
    with pytest.raises(RewardError, match=r"astar.*\[0, 1\].*-2"):
        search(AStar(), lambda tokens: -2.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width", 0),
        ("parallel", 0),
        ("cost", "length"),
        ("tie_break", "random"),
        ("revisit_cost", 0.0),
        ("revisit_cost", float("inf")),
        ("doubt", 1.5),
        ("max_step_tokens", 0),
    ],
)
def test_bad_hyper_parameters_are_refused_when_it_is_made(field: str, value: Any) -> None:
    with pytest.raises(InvalidInput, match=field):
        AStar(**{field: value})
