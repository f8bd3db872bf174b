"""Each search against the law it should follow, computed exactly on a language small enough to enumerate."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import scipy.stats

from bough.core import Answer, Branches, Budget, FreeText, InvalidInput, Run, Strategy, UnsupportedError, run
from bough.search import BeamSearch, BestOfN, ParticleFilter, SelfConsistency
from bough.search.particle_filter import log_odds
from bough.search.resampling import RESAMPLING, uniforms
from bough.search.smc import Population
from bough.search.vote import tally, winner
from executing import execute
from toy import EOS, SYMBOLS, ToyBackend, ToyReward, judged, solutions, steps, toy_model

PROMPT = "ab?"
ROOT = tuple(SYMBOLS.index(character) for character in PROMPT)


def answers(strategy: Strategy, seeds: range, backend: ToyBackend | None = None, **options: Any) -> list[Answer]:
    """The answers of independent runs, executed together."""
    backend = backend or ToyBackend()

    async def all_of_them() -> list[Answer]:
        runs = [execute(strategy, backend, PROMPT, seed, **options) for seed in seeds]
        return [answer for answer, _ in await asyncio.gather(*runs)]

    return run(all_of_them())


def follows(observed: Counter[Any], law: dict[Any, float]) -> bool:
    """Chi-squared test, at 1e-4, of counts against probabilities; rare outcomes are counted together."""
    total = sum(observed.values())
    common = [key for key, p in law.items() if p * total >= 5]
    expected = [law[key] * total for key in common]
    counts = [observed[key] for key in common]
    rest = total - sum(expected)
    if rest > 1e-6 * total:
        expected.append(rest)
        counts.append(total - sum(counts))
    elif sum(counts) != total:
        return False
    return scipy.stats.chisquare(counts, np.array(expected) * total / sum(expected)).pvalue > 1e-4


# Best-of-N -----------------------------------------------------------------------------------------------------


def test_best_of_n_draws_from_the_law_of_the_best_of_n() -> None:
    """P(best = x) = F(x)^n - F(x-)^n, F the distribution function of the reward of one sample."""
    n = 5
    ranked = sorted(solutions(toy_model, ROOT), key=lambda solution: judged(solution[0]))
    below = np.cumsum([0.0, *(p for _, p in ranked)]) ** n
    law = {tokens: below[i + 1] - below[i] for i, (tokens, _) in enumerate(ranked)}
    found = Counter(tuple(a.branch.tokens) for a in answers(BestOfN(n=n), range(1500)) if a.branch)
    assert follows(found, law)
    one = dict(solutions(toy_model, ROOT))
    assert not follows(found, one), "the test could not tell best-of-5 from a single sample"


def test_best_of_n_at_temperature_zero_is_greedy_decoding() -> None:
    [answer] = answers(BestOfN(n=3, temperature=0.0), range(1))
    tokens = ROOT
    while tokens[-1] != EOS:
        tokens = (*tokens, int(np.argmax(toy_model(tokens))))
    assert answer.branch is not None and tuple(answer.branch.tokens) == tokens


class Extracting(FreeText):
    """Free text whose answer is what follows the last c; without a c there is none."""

    def extract(self, text: str) -> str | None:
        return text.rpartition("c")[2] if "c" in text else None


@pytest.mark.parametrize("strategy", [BestOfN(), SelfConsistency(), BeamSearch(), ParticleFilter()], ids=str)
def test_a_solution_without_an_answer_never_beats_one_with_an_answer(strategy: Strategy) -> None:
    """Though the reward of a whole solution is against it: it prefers texts without any c."""
    reward = ToyReward(lambda tokens: (0.1 if SYMBOLS.index("c") in tokens else 0.9) if tokens[-1] == EOS else 0.5)
    backend, found = ToyBackend(), 0
    for seed in range(10):
        made = Run(task=Extracting(), reward=reward)
        answer = run(made.execute(strategy, backend.branch(PROMPT, seed=seed)))
        drawn = "c" in answer.text
        assert drawn == (answer.score is not None)
        found += drawn
    assert found > 0


def test_best_of_n_asks_for_no_reward_where_there_is_no_answer() -> None:
    made = Run(task=Extracting(), reward=ToyReward())
    run(made.execute(BestOfN(n=40), ToyBackend().branch(PROMPT)))
    leaves = run(ToyBackend().branch(PROMPT).sample(40))
    with_answer = sum("c" in leaf.completion for leaf in leaves)
    assert 0 < made.ledger.reward_calls == with_answer < 40


# Self-consistency ----------------------------------------------------------------------------------------------


def answer_law(weigh: Callable[[Sequence[int]], float] = lambda tokens: 1.0) -> dict[str, float]:
    """Total weight of each final answer (the last line) over all solutions."""
    totals: Counter[str] = Counter()
    for tokens, probability in solutions(toy_model, ROOT):
        text = "".join(SYMBOLS[token] for token in tokens[len(ROOT) :])
        totals[text.strip().splitlines()[-1]] += probability * weigh(tokens)
    return dict(totals)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_vote_converges_to_the_answer_of_most_weight(weighted: bool) -> None:
    law = answer_law(partial(judged, seed=5) if weighted else lambda tokens: 1.0)
    mode = max(law, key=lambda answer: law[answer])
    reward = ToyReward(score=partial(judged, seed=5))
    shares = []
    for n in (1, 16, 256):
        found = answers(SelfConsistency(n=n, weighted=weighted), range(20), reward=reward)
        shares.append(np.mean([answer.text.strip().splitlines()[-1] == mode for answer in found]))
    assert shares[0] < 0.9 and shares[-1] == 1.0
    scores = [answer.score for answer in found]
    assert np.mean([s for s in scores if s is not None]) == pytest.approx(law[mode], abs=0.02)


def test_weights_can_overturn_the_majority() -> None:
    plain, weighted = answer_law(), answer_law(lambda tokens: 0.9 if "c" in SYMBOLS[tokens[-3]] else 0.01)
    assert max(plain, key=lambda a: plain[a]) != max(weighted, key=lambda a: weighted[a])
    reward = ToyReward(score=lambda tokens: 0.9 if "c" in SYMBOLS[tokens[-3]] else 0.01)
    [answer] = answers(SelfConsistency(n=200, weighted=True), range(1), reward=reward)
    assert answer.text.strip().splitlines()[-1] == max(weighted, key=lambda a: weighted[a])


def test_a_weighted_vote_needs_a_reward_and_a_plain_one_does_not() -> None:
    backend = ToyBackend()
    with pytest.raises(UnsupportedError, match="reward"):
        run(Run().execute(SelfConsistency(weighted=True), backend.branch(PROMPT)))
    assert not backend.used
    assert run(Run().execute(SelfConsistency(), backend.branch(PROMPT))).text


def test_votes_are_counted_in_order_of_appearance() -> None:
    assert tally(["x", None, "y", "x"]) == {"x": 2.0, "y": 1.0}
    assert winner(["y", "x", "x", "y"]) == (0, 2.0)
    assert winner(["y", "x", "y"], [0.2, 0.9, 0.3]) == (1, 0.9)
    assert winner(["y", "x", "y"], [0.5, 0.9, 0.6]) == (2, 1.1)
    assert winner(["b", "a", "a", "b"], [0.1, 0.2, 0.1, 0.2]) == (3, pytest.approx(0.3)), "equal but for rounding"
    assert winner([None, None]) is None


def test_a_vote_that_is_cut_off_counts_what_was_in() -> None:
    [whole] = answers(SelfConsistency(n=32), range(1))
    budget = Budget(tokens=whole.ledger.tokens // 2)
    [cut] = answers(SelfConsistency(n=32), range(1), budget=budget)
    assert cut.stopped_by is not None and cut.branch is not None
    assert cut.score is not None and whole.score is not None and 0 < cut.score <= whole.score


# Beam search ---------------------------------------------------------------------------------------------------


def brute_force_beams(width: int, reward: Callable[[Sequence[int]], float]) -> list[tuple[int, ...]]:
    """Beam search over the whole tree: every continuation of every beam, none sampled."""
    beams: list[tuple[int, ...]] = [ROOT]
    while any(beam[-1] != EOS for beam in beams):
        pool = [beam for beam in beams if beam[-1] == EOS]
        pool += [longer for beam in beams if beam[-1] != EOS for longer, _ in steps(toy_model, beam)]
        beams = sorted(pool, key=reward, reverse=True)[:width]
    return beams


def test_with_enough_samples_beam_search_is_beam_search_over_the_whole_tree() -> None:
    """At width 1, many samples per beam are all continuations there are."""
    [best] = brute_force_beams(1, judged)
    found = answers(BeamSearch(width=1, expand=400), range(5))
    assert {tuple(answer.branch.tokens) for answer in found if answer.branch} == {best}


def test_beam_search_keeps_the_best_and_says_what_it_gives_up() -> None:
    events: list[Any] = []
    made = Run(reward=ToyReward(), on_event=events.append)
    run(made.execute(BeamSearch(width=2, expand=3), ToyBackend().branch(PROMPT)))
    scores = {event.node: event.score for event in events if event.kind == "scored"}
    kept = [scores[event.node] for event in events if event.kind == "selected"][:2]
    lost = [scores[event.node] for event in events if event.kind == "pruned"][:4]
    assert len(kept) == 2 and len(lost) == 4 and min(kept) >= max(lost)


# Particle filter -----------------------------------------------------------------------------------------------


def filtered_law(strategy: ParticleFilter, levels: int) -> dict[tuple[int, ...], float]:
    """The exact law of the weighted population after some steps, from the derivation in the module's docstring."""
    law = {ROOT: 1.0}
    for level in range(levels):
        moved: dict[tuple[int, ...], float] = {}
        for tokens, weight in law.items():
            odds = judged(tokens) / (1 - judged(tokens)) if level else 1.0
            weight *= odds ** (1 / strategy.softmax_temperature)
            for longer, p in [(tokens, 1.0)] if tokens[-1] == EOS else steps(toy_model, tokens):
                moved[longer] = weight * p
        law = moved
    total = sum(law.values())
    return {tokens: weight / total for tokens, weight in law.items()}


@pytest.mark.parametrize("resampling", ["multinomial", "stratified", "systematic"])
@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_the_population_approaches_the_exact_posterior(resampling: Any, tau: float) -> None:
    """Its mean of a bounded function errs by about 1 / sqrt(n), and no more than that at n = 4,000."""
    strategy = ParticleFilter(n=4000, resampling=resampling, softmax_temperature=tau)

    async def populations() -> list[Branches]:
        made = Run(reward=ToyReward())
        prompt = ToyBackend(context=64).branch(PROMPT, seed=1).with_run(made)
        return [particles async for particles, _ in strategy.populations(prompt, made)]

    for level, particles in enumerate(run(populations()), start=1):
        law = filtered_law(strategy, level)
        for function in (partial(judged, seed=11), lambda tokens: tokens[3] == 4, lambda tokens: tokens[-1] == EOS):
            exact = sum(p * function(tokens) for tokens, p in law.items())
            estimate = np.mean([function(tuple(particle.tokens)) for particle in particles])
            assert estimate == pytest.approx(exact, abs=0.05), (level, function)
        plain = filtered_law(ParticleFilter(softmax_temperature=1e9), level)
        if level == 3:
            moved = sum(abs(law.get(tokens, 0) - p) for tokens, p in plain.items()) / 2
            assert moved > 0.2, "the rewards hardly matter, so this could not fail"


def test_weights_are_the_softmax_of_the_log_odds() -> None:
    def weights(rewards: list[float], temperature: float = 1.0) -> np.ndarray:
        return Population(Branches(), log_odds(np.array(rewards), temperature)).weights

    assert weights([0.5, 0.75, 0.9]) == pytest.approx(np.array([1.0, 3.0, 9.0]) / 13)
    assert weights([0.5, 0.8], temperature=2.0) == pytest.approx(np.array([1.0, 2.0]) / 3)
    assert weights([0.0, 1.0, 1.0]) == pytest.approx([0.0, 0.5, 0.5], abs=1e-6)


@pytest.mark.parametrize("scheme", list(RESAMPLING))
def test_resampling_is_unbiased_and_never_picks_a_weight_of_zero(scheme: str) -> None:
    weights = np.array([0.0, 0.5, 0.15, 0.0, 0.35, 0.0])
    root = ToyBackend().branch(PROMPT)
    counts = np.array(
        [np.bincount(RESAMPLING[scheme](weights, uniforms(root, step, 7)), minlength=6) for step in range(3000)]
    )
    assert counts.sum(1).tolist() == [7] * 3000
    assert counts.mean(0) == pytest.approx(7 * weights, abs=0.1)
    assert not counts[:, weights == 0].any()
    spread = counts.std(0)[weights > 0]
    if scheme == "multinomial":
        assert spread == pytest.approx(np.sqrt(7 * weights * (1 - weights))[weights > 0], rel=0.1)
    if scheme == "systematic":
        assert (abs(counts - 7 * weights) < 1).all()


def test_resampling_depends_on_the_seed_and_the_step_only() -> None:
    backend = ToyBackend()
    one, other = backend.branch(PROMPT, seed=1), backend.branch(PROMPT, seed=2)
    assert (uniforms(one, 3, 8) == uniforms(ToyBackend().branch(PROMPT, seed=1), 3, 8)).all()
    assert not (uniforms(one, 3, 8) == uniforms(one, 4, 8)).any()
    assert not (uniforms(one, 3, 8) == uniforms(other, 3, 8)).any()


def test_finished_particles_stay_in_the_pool() -> None:
    sizes = []

    async def populations() -> None:
        made = Run(reward=ToyReward())
        strategy, prompt = ParticleFilter(n=12), ToyBackend().branch(PROMPT, seed=3).with_run(made)
        async for particles, rewards in strategy.populations(prompt, made):
            sizes.append((len(particles), sum(particle.finished for particle in particles)))
            assert rewards == pytest.approx([judged(particle.tokens) for particle in particles])

    run(populations())
    assert {size for size, _ in sizes} == {12}
    assert 0 < sizes[1][1] < 12 and sizes[-1][1] == 12


# Rewards that are none -----------------------------------------------------------------------------------------


def test_log_odds_need_probabilities() -> None:
    from bough.core import RewardError

    with pytest.raises(RewardError, match=r"particle-filter.*\[0, 1\].*1\.5"):
        answers(ParticleFilter(), range(1), reward=ToyReward(score=lambda tokens: 1.5))
    with pytest.raises(RewardError, match="never negative"):
        answers(SelfConsistency(weighted=True), range(1), reward=ToyReward(score=lambda tokens: -1.0))


# Limits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [BeamSearch(max_steps=1), ParticleFilter(max_steps=1)], ids=str)
def test_without_a_whole_solution_the_best_partial_one_is_the_answer(strategy: Strategy) -> None:
    [answer] = answers(strategy, range(1))
    assert answer.text.count("\n") == 1 and answer.score is None
    root = ToyBackend().branch(PROMPT)
    n = 16
    drawn = [judged(leaf.tokens) for leaf in run(root.sample(n, stop="\n"))]
    assert answer.branch is not None and judged(answer.branch.tokens) == max(drawn)


def test_a_step_that_is_too_long_is_taken_as_it_is() -> None:
    [answer] = answers(BeamSearch(max_step_tokens=1), range(1))
    assert answer.branch is not None and answer.branch.finished
    assert {len(node.appended) for node in answer.branch.path[1:]} == {1}


@pytest.mark.parametrize(
    "make",
    [
        lambda: BestOfN(n=0),
        lambda: BestOfN(temperature=-1.0),
        lambda: SelfConsistency(max_tokens=0),
        lambda: BeamSearch(width=0),
        lambda: BeamSearch(top_p=0.0),
        lambda: ParticleFilter(softmax_temperature=0.0),
        lambda: ParticleFilter(resampling="killing"),  # type: ignore[arg-type]
        lambda: ParticleFilter(n=2.5),  # type: ignore[arg-type]
    ],
)
def test_bad_hyper_parameters_are_refused_when_the_strategy_is_made(make: Callable[[], Strategy]) -> None:
    with pytest.raises(InvalidInput):
        make()


def test_the_reward_is_asked_for_the_solutions_that_a_spent_budget_left_whole() -> None:
    """When tokens run out in the middle of a level, solutions that were drawn whole are still judged."""
    cut_with_solutions = 0
    for allowed in range(20, 120, 3):
        events: list[Any] = []
        made = Run(reward=ToyReward(), budget=Budget(tokens=allowed), on_event=events.append)
        answer = run(made.execute(BeamSearch(), ToyBackend().branch(PROMPT)))
        whole = {event.node for event in events if event.kind == "sampled" and event.finish == "eos"}
        scores = [event.score for event in events if event.kind == "scored" and event.node in whole]
        assert len(scores) == len(whole)
        assert answer.score == (max(scores) if scores else None)
        cut_with_solutions += answer.stopped_by is not None and bool(scores)
    assert cut_with_solutions > 3
