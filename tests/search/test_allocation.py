"""How many samples a question gets: OptScale's bound and PETS' allocations, against closed forms and brute force."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from bough.core import FreeText, InvalidInput, RewardError, Solution, run
from bough.search import PETS, BestOfN, OptScale, SelfConsistency
from bough.search.allocation import KnowledgeGradient, allocate, gain, self_consistency_rate
from bough.search.optscale import Prior, estimate, fit_prior, samples_needed
from bough.search.pets import majority, plan
from bough.search.stopping import ahead, leaders
from executing import execute, idle
from toy import ToyBackend


def truncated(mu: float, sigma: float) -> Any:
    return scipy.stats.truncnorm(-mu / sigma, (1 - mu) / sigma, mu, sigma)


# OptScale ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mu", "sigma"), [(0.5, 0.2), (0.9, 0.05), (-0.3, 0.4), (1.4, 0.5), (0.2, 1.5)])
@pytest.mark.parametrize("target", [0.3, 0.9, 0.99])
@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_the_bound_is_the_smallest_number_that_is_enough(
    mu: float, sigma: float, target: float, confidence: float
) -> None:
    needed, below = samples_needed(mu, sigma, target, confidence), truncated(mu, sigma).cdf(target)
    if below > 1 - 1e-12:
        assert needed > 1e9
        return
    assert 1 - below**needed >= confidence - 1e-9
    assert needed == 1 or 1 - below ** (needed - 1) < confidence + 1e-9


def test_the_far_tail_is_neither_zero_nor_everything() -> None:
    assert samples_needed(0.1, 0.1, 0.95, 0.95) == pytest.approx(
        math.log(0.05) / truncated(0.1, 0.1).logcdf(0.95), rel=1e-3
    )
    assert samples_needed(-1.0, 0.05, 0.9, 0.95) > 1e100
    assert samples_needed(2.0, 0.005, 0.9, 0.95) == 1


def test_the_bound_is_a_number_wherever_an_estimate_may_lie() -> None:
    for mu in np.linspace(-1, 2, 40):
        needed = [samples_needed(mu, sigma, 0.9, 0.95) for sigma in np.geomspace(0.005, 2, 40)]
        assert all(number >= 1 for number in needed)
        if mu <= 0.5:
            assert needed == sorted(needed, reverse=True), "the more they vary, the sooner one is high"


def test_estimates_are_those_of_greatest_likelihood() -> None:
    for seed, (mu, sigma) in enumerate([(0.6, 0.2), (0.9, 0.3), (0.1, 0.1)]):
        scores = truncated(mu, sigma).rvs(200, random_state=seed)
        found = estimate(scores)
        best = scipy.optimize.minimize(
            lambda v, scores=scores: -truncated(v[0], math.exp(v[1])).logpdf(scores).sum(),
            [mu, math.log(sigma)],
            method="Nelder-Mead",
        )
        assert found == pytest.approx((best.x[0], math.exp(best.x[1])), rel=0.08, abs=0.02)  # the grid's resolution


def test_the_prior_decides_without_data_and_gives_way_to_it() -> None:
    prior = Prior(0.4, 0.05, 0.1, 0.2)
    scores = truncated(0.8, 0.3).rvs(3000, random_state=0)
    assert estimate(scores, prior) == pytest.approx(estimate(scores), rel=0.15)
    mu, sigma = estimate(scores[:1], prior)
    assert abs(mu - 0.4) < 0.2 and 0.07 < sigma < 0.2


def test_the_prior_is_that_of_the_problems_it_was_fitted_to() -> None:
    rng = np.random.default_rng(0)
    mus, sigmas = rng.normal(0.5, 0.15, 150), np.exp(rng.normal(math.log(0.1), 0.3, 150))
    rows = [truncated(m, s).rvs(64, random_state=rng) for m, s in zip(mus, sigmas, strict=True)]
    assert fit_prior(np.array(rows)) == pytest.approx((0.5, 0.15, 0.1, 0.3), rel=0.25)


def test_stopped_samples_reach_the_target_as_often_as_promised() -> None:
    """On problems from the prior: of those that stop before the limit, at least about the confidence."""
    rng = np.random.default_rng(1)
    prior = Prior(0.7, 0.2, 0.2, 0.3)
    rule = OptScale(0.85, 0.9, reached=False, **prior._asdict())
    reached, drawn = [], []
    for _ in range(250):
        mu = rng.normal(prior.mean, prior.mean_spread)
        sigma = prior.deviation * math.exp(rng.normal(0, prior.deviation_spread))
        scores = truncated(mu, sigma).rvs(64, random_state=rng)
        seen = rule.stops_at(Solution(None, score) for score in scores)
        drawn.append(seen)
        if seen < 64:
            reached.append(scores[:seen].max() >= 0.85)
    assert len(reached) > 150 and np.mean(drawn) < 32
    assert np.mean(reached) > 0.85


def test_what_reaches_the_target_is_enough_and_what_is_hopeless_goes_on() -> None:
    rule = OptScale(0.9)
    assert rule.stops_at([Solution("x", 0.2), Solution("x", 0.95), Solution("x", 0.1)]) == 2
    assert OptScale(0.9, reached=False).stops_at([Solution("x", 0.99)] * 10) == 3
    low = OptScale(0.9, mean=0.2, mean_spread=0.1, deviation=0.05, deviation_spread=0.1)
    assert low.stops_at([Solution("x", 0.1), Solution(None)] * 32) == 64
    with pytest.raises(RewardError, match=r"1\.5"):
        rule([Solution("x", 1.5)])
    answer, _ = run(execute(BestOfN(n=32), ToyBackend(), stop=OptScale(0.9, parallel=1)))
    assert answer.stopped_by is not None and "optscale" in answer.stopped_by


# PETS, the gradient --------------------------------------------------------------------------------------------


def test_the_gain_is_the_best_that_the_next_answer_can_do() -> None:
    for leader in range(12):
        for runner_up in range(leader + 1):
            now = scipy.stats.beta(leader + 1, runner_up + 1).sf(0.5)
            for_leader = scipy.stats.beta(leader + 2, runner_up + 1).sf(0.5)
            against = max(leader, runner_up + 1), min(leader, runner_up + 1)
            assert gain(leader, runner_up) == pytest.approx(for_leader - now)
            assert gain(leader, runner_up) >= ahead(*against) - now - 1e-12, "optimistic"


def test_close_votes_come_first_and_limits_hold() -> None:
    chooser = KnowledgeGradient(3, first=2, limit=5)
    told: Sequence[str] = ["aaaaa", "ababa", "bbbbb"]
    order = []
    while (question := chooser.next()) is not None:
        index = len(chooser.answers[question]) - 1
        chooser.told(question, index, told[question][index])
        order.append(question)
    assert sorted(order[:6]) == [0, 0, 1, 1, 2, 2], "each gets the first ones"
    assert order[6] == 1, "a tie is what another sample helps most"
    assert [order.count(question) for question in range(3)] == [5, 5, 5]


def test_what_is_under_way_is_not_asked_for_again() -> None:
    chooser = KnowledgeGradient(4, first=1)
    for question in range(4):
        assert chooser.next() == question
    first_four = {chooser.next() for _ in range(4)}
    assert len(first_four) == 4


def simulated(seed: int, questions: int, n: int) -> np.ndarray:
    """Answers ``[questions, n]``: half of the questions are easy, half are close."""
    rng = np.random.default_rng(seed)
    laws = [[0.9, 0.06, 0.04] if q % 2 else [0.55, 0.3, 0.15] for q in range(questions)]
    return np.array([rng.choice(3, size=n, p=law) for law in laws])


def test_the_estimated_rate_is_how_often_the_vote_is_that_of_infinitely_many() -> None:
    """Of questions whose shares are uniform, which is the posterior's prior."""
    rng, agreed, votes = np.random.default_rng(0), [], []
    for p in rng.random(4000):
        ones = rng.binomial(9, p)
        votes.append((max(ones, 9 - ones), min(ones, 9 - ones)))
        agreed.append((ones > 4.5) == (p > 0.5))
    assert self_consistency_rate(votes) == pytest.approx(np.mean(agreed), abs=0.015)


def rate_of(answers: np.ndarray, samples: int) -> float:
    chooser = KnowledgeGradient(len(answers), limit=answers.shape[1])
    for _ in range(samples):
        question = chooser.next()
        assert question is not None
        index = len(chooser.answers[question]) - 1
        chooser.told(question, index, str(answers[question, index]))
    return float(np.mean([majority(row) == "0" for row in chooser.answers]))


def test_the_gradient_beats_uniform_allocation() -> None:
    gained = []
    for seed in range(3):
        answers = simulated(seed, 100, 200)
        uniform = np.mean([majority(row[:12].tolist()) == 0 for row in answers])
        gained.append(rate_of(answers, 1200) - uniform)
    assert np.mean(gained) > 0.02


# PETS, one question after the other ----------------------------------------------------------------------------


def test_a_plan_spends_its_average_where_questions_are_close() -> None:
    answers = simulated(0, 200, 64)
    budgets = plan(answers, 16)
    assert len(budgets) == 5 and budgets[4] < budgets[2] and min(budgets) >= 4
    rule, fresh = PETS(budgets), simulated(1, 400, 64)
    seen = [rule.stops_at(Solution(str(a)) for a in row) for row in fresh]
    assert 12 < np.mean(seen) <= 17
    ours = np.mean([majority(row[:k].tolist()) == 0 for row, k in zip(fresh, seen, strict=True)])
    uniform = np.mean([majority(row[:17].tolist()) == 0 for row in fresh])
    assert ours > uniform


def test_a_plan_may_spend_more_than_the_samples_it_was_made_from() -> None:
    answers = simulated(0, 200, 64)
    assert max(plan(answers, 60)) <= 64
    budgets = plan(answers, 60, limit=500)
    assert 64 < max(budgets) <= 500
    with pytest.raises(InvalidInput, match="average=501 .* and 500"):
        plan(answers, 501, limit=500)
    with pytest.raises(InvalidInput, match="more than the 64 samples given"):
        plan(answers, 80, first=65, limit=500)


def test_pets_counts_the_leader_of_the_first_samples() -> None:
    rule = PETS((9, 8, 7, 5, 4))
    assert rule.first == 4
    assert rule.stops_at(map(Solution, "xxxxyyyyyyyy")) == 4
    assert rule.stops_at(map(Solution, "xyxxyyyyyyyy")) == 5
    assert rule.stops_at(map(Solution, "xyzwyyyyyyyy")) == 8
    assert rule.stops_at([Solution(None)] * 20) == 9
    for wrong in ((3,), (2, 2, 1), (4, 4.5)):
        with pytest.raises(InvalidInput, match="budgets"):
            PETS(wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="average"):
        plan(simulated(0, 4, 16), 17)
    answer, _ = run(execute(SelfConsistency(n=64), ToyBackend(), stop=PETS((6, 6, 6, 6, 4))))
    assert answer.stopped_by is not None and "of the first 4 agree" in answer.stopped_by


# PETS, all questions at once -----------------------------------------------------------------------------------


class FirstLetter(FreeText):
    def extract(self, text: str) -> str | None:
        return text[0] if text[0] != "b" else None


PROMPTS = ["a?", "b?", "c?", "ab?", "ba?", "cab?"]


@pytest.mark.parametrize("parallel", [1, 4, 30])
def test_an_allocation_is_a_function_of_the_seed(parallel: int) -> None:
    async def one(backend: ToyBackend) -> Any:
        found, _ = await allocate(backend, PROMPTS, 60, task=FirstLetter(), seed=3, parallel=parallel)
        return [(vote.answer, vote.votes, vote.samples, vote.branch and vote.branch.key) for vote in found]

    alone = run(one(ToyBackend()))
    for crowd in (1, 2):
        backend = ToyBackend(slots=2 + crowd, shuffle=crowd)
        assert run(one(backend)) == alone
        assert idle(backend)
    assert sum(samples for _, _, samples, _ in alone) == 60
    assert len({samples for _, _, samples, _ in alone}) > 1, "not uniform"


def test_an_allocation_decides_as_the_gradient_does() -> None:
    backend = ToyBackend()
    votes, ledger = run(allocate(backend, PROMPTS, 50, task=FirstLetter(), parallel=1))
    pools = [run(backend.branch(prompt).sample(50)) for prompt in PROMPTS]
    chooser, spent = KnowledgeGradient(len(PROMPTS)), 0
    for _ in range(50):
        question = chooser.next()
        assert question is not None
        index = len(chooser.answers[question]) - 1
        leaf = pools[question][index]
        spent += len(leaf.appended)
        chooser.told(question, index, FirstLetter().extract(leaf.completion))
    assert ledger.tokens == spent
    for vote, answers in zip(votes, chooser.answers, strict=True):
        assert (vote.answer, vote.votes, vote.samples) == (majority(answers), leaders(answers), len(answers))
        assert (vote.branch is None) == (vote.answer is None)
        assert vote.branch is None or FirstLetter().extract(vote.branch.completion) == vote.answer


def test_an_allocation_ends_when_all_have_all_and_lets_go_when_cancelled() -> None:
    backend = ToyBackend()
    votes, _ = run(allocate(backend, PROMPTS, 1000, limit=3))
    assert [vote.samples for vote in votes] == [3] * 6

    async def cancelled() -> None:
        task = asyncio.ensure_future(allocate(backend, PROMPTS, 100))
        for _ in range(9):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(cancelled())
    assert idle(backend)
    for options, says in (({"samples": 0}, "samples=0"), ({"samples": 1, "limit": 0}, "limit=0")):
        with pytest.raises(InvalidInput, match=says):
            run(allocate(backend, PROMPTS, **options))
    with pytest.raises(InvalidInput, match="no questions"):
        run(allocate(backend, [], 3))
