"""Adaptive inference-time compute: how many solutions it draws, which it gives up, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from bough.core import Answer, Branch, InvalidInput, Run, run
from bough.search import AdaptiveITC
from executing import Recorded, execute
from toy import EOS, ToyBackend, ToyReward, toy_model


class Fixed(ToyReward):
    """Gives the scores of a list, one after the other."""

    def __init__(self, *scores: float) -> None:
        super().__init__()
        self.left = list(scores)

    async def __call__(self, branches: Sequence[Branch], run: Run) -> list[float]:
        self.calls += len(branches)
        return [self.left.pop(0) for _ in branches]


def solve(strategy: AdaptiveITC, *scores: float) -> tuple[Answer, Recorded]:
    return run(execute(strategy, ToyBackend(), "ab?", reward=Fixed(*scores)))


def whole(threshold: float, n: int = 8) -> AdaptiveITC:
    """Without giving up anything halfway: one score per solution."""
    return AdaptiveITC(n=n, threshold=threshold, prune=1.0)


def test_a_solution_that_is_surely_right_is_enough() -> None:
    # (1 - 0.99) * min((1 + 0.99) / 3, 1 / 2) = 0.005
    answer, _ = solve(whole(0.99), 0.99)
    assert answer.ledger.reward_calls == 1 and answer.score == 0.99


def test_a_hopeless_problem_is_given_up_like_a_solved_one() -> None:
    """With scores of 0, P(fresh is right) = 1 / (2 + n), the same as 1 / (n + 1) but for the prior."""
    answer, _ = solve(whole(0.78), *[0.0] * 8)
    # 1 * min(1 / (2 + n), 1 / (n + 1)) <= 0.22 first at n = 3
    assert answer.ledger.reward_calls == 3


def test_where_scores_stay_alike_the_next_is_best_ever_less_often() -> None:
    # (1 - 0.6) * min(q, 1 / (n + 1)) <= 0.06: q > 1/2, and 0.4 / (n + 1) <= 0.06 first at n = 6
    answer, _ = solve(whole(0.94, n=16), *[0.6] * 16)
    assert answer.ledger.reward_calls == 6


def test_the_best_so_far_counts_not_the_last() -> None:
    answer, _ = solve(whole(0.9), 0.1, 0.95)
    assert answer.ledger.reward_calls == 2 and answer.score == 0.95


def test_it_never_draws_more_than_n() -> None:
    answer, _ = solve(whole(1.0, n=5), *[0.5] * 5)
    assert answer.ledger.reward_calls == 5


def test_the_first_solution_is_greedy_and_temperatures_rise() -> None:
    tokens = tuple(ToyBackend().branch("ab?").tokens)
    while tokens[-1] != EOS:
        probabilities = toy_model(tokens)
        tokens = (*tokens, int(probabilities.argmax()))
    answer, _ = solve(whole(0.5), 1.0)
    assert answer.branch is not None and tuple(answer.branch.tokens) == tokens
    texts = {run(execute(AdaptiveITC(n=1, anneal=False), ToyBackend(), seed=seed))[0].text for seed in range(8)}
    assert len(texts) > 1, "without annealing the first solution is drawn too"


def test_an_unfinished_solution_that_starting_over_beats_is_given_up() -> None:
    strategy = AdaptiveITC(n=2, threshold=0.999, prune=0.45, probe_tokens=2)
    # After two tokens: (1 - 0.05) * 1/2 > 0.45, given up. Then a good one, judged at every second token.
    answer, _ = solve(strategy, 0.05, *[0.9] * 20)
    assert answer.score == 0.9 and answer.ledger.reward_calls > 2
    # Never given up where starting over is not likelier to be right: (1 - 0.2) * 1/2 < 0.45.
    kept, _ = solve(strategy, *[0.2] * 40)
    assert kept.score == 0.2


def test_if_everything_was_given_up_the_most_promising_is_the_answer() -> None:
    strategy = AdaptiveITC(n=2, threshold=0.999, prune=0.3, probe_tokens=2)
    answer, _ = solve(strategy, 0.1, 0.05)
    assert answer.score is None and answer.branch is not None and len(answer.branch.appended) == 2
    assert answer.ledger.tokens == 4


def test_a_window_draws_several_at_once() -> None:
    answer, _ = solve(AdaptiveITC(n=8, threshold=0.9, prune=1.0, parallel=4), 0.1, 0.2, 0.99, 0.3)
    assert answer.ledger.reward_calls == 4 and answer.score == 0.99


class Foreseeing(Fixed):
    """The first score is the bare prompt's."""

    foresees = True


def test_a_reward_that_foresees_is_asked_what_a_fresh_solution_is_worth() -> None:
    """From 0.04: after a score of 0, q = 2 * 0.04 / 3 < 0.05, and the problem is given up; from 1/2, q is 1/3."""
    hopeless, _ = run(execute(whole(0.95), ToyBackend(), "ab?", reward=Foreseeing(0.04, *[0.0] * 8)))
    assert hopeless.ledger.reward_calls == 1 + 1
    blind, _ = run(execute(whole(0.95), ToyBackend(), "ab?", reward=Fixed(*[0.0] * 8)))
    assert blind.ledger.reward_calls == 8


def test_the_prior_weighs_as_many_solutions_as_it_says() -> None:
    strategy = AdaptiveITC(prior=6.0)
    assert strategy.fresh([1.0, 0.0], 0.25) == pytest.approx((6 * 0.25 + 1) / (6 + 2))
    assert strategy.fresh([], 0.25) == 0.25


def test_an_unfinished_solution_is_held_against_what_the_prompt_promised() -> None:
    # (1 - 0.1) * 0.9 > 0.4 gives the first up; (1 - 0.1) * 0.2 does not.
    strategy = AdaptiveITC(n=1, prune=0.4, probe_tokens=2)
    given_up, _ = run(execute(strategy, ToyBackend(), "ab?", reward=Foreseeing(0.9, *[0.1] * 20)))
    kept, _ = run(execute(strategy, ToyBackend(), "ab?", reward=Foreseeing(0.2, *[0.1] * 20)))
    assert given_up.score is None and kept.score == 0.1


@pytest.mark.parametrize(
    "settings", [{"threshold": 0.0}, {"threshold": 1.5}, {"prune": -0.1}, {"probe_tokens": 0}, {"prior": 0.0}]
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(settings))):
        AdaptiveITC(**settings)  # type: ignore[arg-type]
