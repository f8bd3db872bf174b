"""Monte Carlo tree search: its formula recomputed from what it did, its answer against enumeration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import pytest

from bough.core import Branch, InvalidInput, RewardError, Run, run
from bough.search import MCTS
from bough.search.mcts import Found, Node
from toy import EOS, ToyBackend, ToyReward, judged, solutions, toy_model

PROMPT = "ab?"
small_model = partial(toy_model, lines=2, letters=1)  # 12 solutions


@dataclass(frozen=True)
class Watched(MCTS):
    """Keeps the simulations in the order in which their results were taken, and the tree."""

    taken: list[tuple[list[Node], Found]] = field(default_factory=list, compare=False)
    starts: list[tuple[int, list[Node]]] = field(default_factory=list, compare=False)

    def _walk(self, root: Node) -> list[Node]:
        path = super()._walk(root)
        self.starts.append((len(self.taken), path))
        return path

    def _back_up(self, path: Sequence[Node], found: Found) -> None:
        super()._back_up(path, found)
        self.taken.append((list(path), found))


def search(strategy: MCTS, seed: int = 0, backend: ToyBackend | None = None, **options: object) -> Run:
    made = Run(reward=ToyReward(), **options)  # type: ignore[arg-type]
    run(made.execute(strategy, (backend or ToyBackend()).branch(PROMPT, seed=seed)))
    return made


@pytest.mark.parametrize("seed", range(3))
def test_every_walk_follows_puct_recomputed_from_the_simulations_before_it(seed: int) -> None:
    strategy = Watched(simulations=40, width=8, parallel=1, widening=False, c_puct=0.7)
    search(strategy, seed)
    assert len(strategy.taken) == 40
    decisions = 0
    for done, path in strategy.starts:
        before = strategy.taken[:done]

        def through(node: Node, before: list[tuple[list[Node], Found]] = before) -> list[float]:
            return [found.value for path, found in before if node in path and found.value is not None]

        for node, chosen in zip(path, path[1:], strict=False):
            total = sum(math.exp(child.branch.sample_logprob - node.branch.sample_logprob) for child in node.children)
            scores = []
            for child in node.children:
                p = math.exp(child.branch.sample_logprob - node.branch.sample_logprob) / total
                values = [judged(child.branch.tokens), *through(child)]
                exploration = 0.7 * p * math.sqrt(max(1, len(through(node)))) / len(values)
                scores.append(sum(values) / len(values) + exploration)
            assert scores[node.children.index(chosen)] == pytest.approx(max(scores))
            decisions += len(scores) > 1
    assert decisions > 40


def test_a_simulation_backs_up_the_best_of_what_it_found() -> None:
    strategy = Watched(simulations=30, parallel=1, widening=False)
    search(strategy)
    kinds = set()
    for path, found in strategy.taken:
        kinds.add(path[-1].goal)
        new = [judged(child.branch.tokens) for child in found.children]
        assert found.value == (judged(path[-1].branch.tokens) if path[-1].goal else max(new))
    assert kinds == {True, False}
    root = strategy.taken[0][0][0]
    assert root.visits == 30 and not any(node.under_way or node.busy for node in root.nodes())


@pytest.mark.parametrize("parallel", [1, 4])
@pytest.mark.parametrize("evaluation", ["reward", "rollout"])
def test_with_enough_simulations_it_finds_the_best_solution_there_is(parallel: int, evaluation: str) -> None:
    best = max((tokens for tokens, _ in solutions(small_model, (3, 4, 2))), key=judged)
    strategy = MCTS(
        simulations=1000, width=150, c_puct=5.0, parallel=parallel,
        evaluation=evaluation,  # type: ignore[arg-type]
    )  # fmt: skip
    found = [search(strategy, seed, ToyBackend(small_model)) for seed in range(4)]
    assert {tuple(made.best.tokens) for made in found if made.best} == {best}
    few = [search(replace(strategy, simulations=2), seed, ToyBackend(small_model)) for seed in range(4)]
    assert {tuple(made.best.tokens) for made in few if made.best} != {best}, "any search would find it"


def test_simulations_under_way_spread_by_virtual_loss_and_are_taken_in_order() -> None:
    alone, together = Watched(simulations=40, parallel=1), Watched(simulations=40, parallel=8)
    slow, fast = search(alone), search(together)
    assert fast.ledger.passes < slow.ledger.passes / 2
    again = Watched(simulations=40, parallel=8)
    search(again, backend=ToyBackend(slots=3, shuffle=1))
    assert [path[-1].branch.tokens for path, _ in again.taken] == [
        path[-1].branch.tokens for path, _ in together.taken
    ]


def test_drawing_again_is_an_arm_whose_prior_is_what_was_not_found() -> None:
    strategy = Watched(simulations=80, parallel=1, c_puct=2.0)
    search(strategy)
    again = 0
    for done, path in strategy.starts:
        before = strategy.taken[:done]
        node = path[-1]
        # As they were when this simulation started: the children and draws of those before it.
        ended = [found for path, found in before if path[-1] is node]
        if node.goal or not ended:
            continue
        known = [child for found in ended for child in found.children]
        values = [found.value for path, found in before if node in path and found.value is not None]
        unexplored = 1 - sum(math.exp(child.branch.sample_logprobs.sum()) for child in known)
        visits = 2.0 * math.sqrt(len(values))
        best = -math.inf
        for child in known:
            below = [found.value for path, found in before if child in path and found.value is not None]
            total = judged(child.branch.tokens) + sum(below)
            p = math.exp(child.branch.sample_logprobs.sum())
            best = max(best, (total + visits * p) / (1 + len(below)))
        assert sum(values) / len(values) + visits * unexplored / len(ended) > best - 1e-5
        again += 1
    assert again > 5
    for node in strategy.taken[0][0][0].nodes():
        assert node.drawn == 0 or node.drawn >= 4
        steps = [child.branch.appended for child in node.children]
        assert len(set(steps)) == len(steps), "identical children are merged"
    plain = Watched(simulations=80, widening=False, parallel=1)
    search(plain)
    assert all(node.drawn in (0, 4) for node in plain.taken[0][0][0].nodes())


def test_at_temperature_zero_there_is_one_solution() -> None:
    made = search(MCTS(temperature=0.0, simulations=12))
    tokens = [3, 4, 2]
    while tokens[-1] != EOS:
        tokens.append(int(toy_model(tuple(tokens)).argmax()))
    assert made.best is not None and made.best.tokens == tokens and made.ledger.tokens == len(tokens) - 3


def test_a_rollout_is_worth_the_reward_of_where_it_ends() -> None:
    asked: list[tuple[int, ...]] = []

    def score(tokens: Sequence[int]) -> float:
        asked.append(tuple(tokens))
        return judged(tokens)

    made = Run(reward=ToyReward(score))
    strategy = Watched(simulations=20, evaluation="rollout", parallel=1)
    run(made.execute(strategy, ToyBackend().branch(PROMPT)))
    assert {tokens[-1] for tokens in asked} == {EOS}, "only whole solutions are judged"
    values = {judged(tokens) for tokens in asked}
    nodes = [node for node in strategy.taken[0][0][0].nodes() if node.value is not None]
    assert len(nodes) > 5 and {node.value for node in nodes} <= values
    assert made.best_score == max(values)


def test_the_answer_is_the_best_solution_or_the_one_most_visited() -> None:
    differ = 0
    for seed in range(6):
        strategy = Watched(simulations=40, choice="visits", c_puct=2.0)
        made = Run(reward=ToyReward())
        answer = run(made.execute(strategy, ToyBackend().branch(PROMPT, seed=seed)))
        goals = [node for node in strategy.taken[0][0][0].nodes() if node.goal]
        assert answer.branch is not None
        chosen = next(node for node in goals if node.branch is answer.branch)
        assert chosen.visits == max(node.visits for node in goals)
        assert answer.score == judged(answer.branch.tokens)
        best = search(MCTS(simulations=40, c_puct=2.0), seed)
        assert best.best_score == max(judged(node.branch.tokens) for node in goals)
        differ += best.best is not None and best.best.tokens != answer.branch.tokens
    assert differ > 0


class NoAnswer:
    """A task whose solutions never have an answer."""

    name, step_stop, answer_stop = "none", "\n", None

    def extract(self, text: str) -> str | None:
        return None

    def is_complete(self, text: str) -> bool:
        return False


@pytest.mark.parametrize("evaluation", ["reward", "rollout"])
def test_where_nothing_has_an_answer_it_ends_and_offers_what_there_is(evaluation: str) -> None:
    strategy = Watched(simulations=60, evaluation=evaluation)  # type: ignore[arg-type]
    made = search(strategy, backend=ToyBackend(small_model), task=NoAnswer())
    assert made.best is not None and made.best_score is None
    dead = [node for node in strategy.taken[0][0][0].nodes() if node.dead]
    assert dead and not any(node.goal for node in strategy.taken[0][0][0].nodes())


def test_values_must_be_probabilities_and_parameters_make_sense() -> None:
    made = Run(reward=ToyReward(lambda tokens: 2.0))
    with pytest.raises(RewardError, match=r"mcts.*\[0, 1\].*2"):
        run(made.execute(MCTS(), ToyBackend().branch(PROMPT)))
    for bad in ({"c_puct": math.inf}, {"simulations": 0}, {"choice": "mean"}):
        with pytest.raises(InvalidInput):
            MCTS(**bad)  # type: ignore[arg-type]


def test_without_a_whole_solution_the_best_partial_one_is_the_answer() -> None:
    made = search(MCTS(simulations=1, width=3))
    branch: Branch | None = made.best
    assert branch is not None and made.best_score is None and branch.text.count("\n") == 1
    drawn = run(ToyBackend().branch(PROMPT).sample(3, stop="\n"))
    assert judged(branch.tokens) == max(judged(leaf.tokens) for leaf in drawn)
