"""The weighting calculus: every weighted strategy against exact enumeration, and that a wrong weight is noticed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import scipy.stats

from bough.core import Branch, Branches, InvalidInput, Run, run, techniques
from bough.search import ParticleFilter, ParticleGibbs, PowerSMC
from bough.search.particle_filter import log_odds
from bough.search.power import graft
from bough.search.resampling import RESAMPLING
from bough.search.smc import Population, Weighted
from tiny_language import Text, texts, tiny_model
from toy import EOS, NEWLINE, SYMBOLS, ToyBackend, ToyReward, judged

PROMPT = "a?"
ROOT: Text = tuple(SYMBOLS.index(character) for character in PROMPT)
FUNCTIONS: tuple[Callable[[Text], float], ...] = (
    lambda text: 1.0,  # the evidence
    lambda text: float(len(text) > 5),
    lambda text: float(text[2] == 3),
    partial(judged, seed=7),
)


def tamed(text: Sequence[int]) -> float:
    """A process reward that is sure of nothing, so that few texts do not weigh as much as all others."""
    return 0.15 + 0.7 * judged(text)


def posterior(tau: float, text: Text, p: float) -> float:
    """p times the odds, to the power 1 / tau, of every prefix that ends a step."""
    odds = 1.0
    for end in range(len(ROOT) + 1, len(text) + 1):
        if text[end - 1] in (NEWLINE, EOS):
            odds *= tamed(text[:end]) / (1 - tamed(text[:end]))
    return float(p * odds ** (1 / tau))


def power(alpha: float, text: Text, p: float) -> float:
    return p**alpha


@dataclass(frozen=True)
class Case:
    """A weighted strategy, and its unnormalised target computed from a text and its probability alone."""

    strategy: Weighted
    target: Callable[[Text, float], float]


def smc(**fields: Any) -> PowerSMC:
    return PowerSMC(n=4, alpha=3.0, block=1, **fields)


def filtered(**fields: Any) -> ParticleFilter:
    return ParticleFilter(n=4, recount=False, **fields)


CASES: dict[str, Case] = {
    "power-smc": Case(smc(), partial(power, 3.0)),
    "power-smc every step": Case(smc(ess_threshold=1.0, resampling="multinomial"), partial(power, 3.0)),
    "power-smc never": Case(smc(ess_threshold=0.0), partial(power, 3.0)),
    "power-smc bridged": Case(smc(ramp=3, ess_threshold=0.9), partial(power, 3.0)),
    "power-smc bridged beyond the end": Case(smc(ramp=9, ess_threshold=0.9), partial(power, 3.0)),
    "power-smc blocks": Case(PowerSMC(n=3, alpha=2.0, block=2, ramp=3, ess_threshold=0.9), partial(power, 2.0)),
    "power-smc flattened": Case(PowerSMC(n=4, alpha=0.5, block=1, ess_threshold=0.9), partial(power, 0.5)),
    "particle-filter": Case(filtered(), partial(posterior, 1.0)),
    "particle-filter seldom": Case(filtered(ess_threshold=0.7, resampling="systematic"), partial(posterior, 1.0)),
    "particle-filter never": Case(filtered(ess_threshold=0.0), partial(posterior, 1.0)),
    "particle-filter tempered": Case(
        filtered(tempering=3, softmax_temperature=0.7, resampling="residual"), partial(posterior, 0.7)
    ),
    "particle-filter tempered and seldom": Case(
        filtered(tempering=9, ess_threshold=0.9, resampling="stratified"), partial(posterior, 1.0)
    ),
}


def populations(strategy: Weighted, runs: int) -> list[Population]:
    backend = ToyBackend(tiny_model)

    async def one(seed: int) -> Population:
        made = Run(reward=ToyReward(tamed))
        return await strategy.population(backend.branch(PROMPT, seed=seed).with_run(made), made)

    async def together() -> list[Population]:
        return list(await asyncio.gather(*map(one, range(runs))))

    return run(together())


def deviations(strategy: Weighted, target: Callable[[Text, float], float], runs: int = 300) -> list[float]:
    """How many standard errors the mean of Z-hat times the average of f is from its exact value, for each f."""
    found = populations(strategy, runs)
    scores = []
    for function in FUNCTIONS:
        exact = sum(target(text, p) * function(text) for text, p in texts(ROOT))
        estimates = np.array(
            [
                np.exp(population.log_evidence)
                * population.average(np.array([function(tuple(branch.tokens)) for branch in population.branches]))
                for population in found
            ]
        )
        error = estimates.std(ddof=1) / np.sqrt(runs)
        scores.append(float((estimates.mean() - exact) / max(error, 1e-12)))
    return scores


def properly_weighted(strategy: Weighted, target: Callable[[Text, float], float]) -> bool:
    return max(map(abs, deviations(strategy, target))) < 4.0


@pytest.mark.parametrize("name", CASES)
def test_every_weighted_strategy_is_properly_weighted_for_its_target(name: str) -> None:
    """E[Z-hat] = Z, and E[Z-hat times the weighted average of f] = Z times the expectation of f."""
    assert properly_weighted(CASES[name].strategy, CASES[name].target)


def test_no_weighted_strategy_is_left_out() -> None:
    weighted = {name for name, info in techniques().items() if issubclass(info.cls, Weighted)}
    assert {case.strategy.info.name for case in CASES.values()} == weighted


# Wrong weights ---------------------------------------------------------------------------------------------------


class Perturbed(Population):
    """A population whose increments are changed before they count."""

    change: Callable[[np.ndarray], np.ndarray]

    def moved(self, branches: Branches, increments: np.ndarray) -> Population:
        made = super().moved(branches, type(self).change(increments))
        return type(self)(made.branches, made.log_weights, made.log_scale)

    def resampled(self, *args: Any) -> Any:
        made, survivors = super().resampled(*args)
        return type(self)(made.branches, made.log_weights, made.log_scale), survivors


class Forgetful(Perturbed):
    """Loses what was learnt of the evidence when it resamples."""

    change = staticmethod(lambda increments: increments)

    def resampled(self, *args: Any) -> Any:
        made, survivors = super().resampled(*args)
        return type(self)(made.branches, made.log_weights, 0.0), survivors


class Unweighted(Perturbed):
    change = staticmethod(np.zeros_like)


class Halved(Perturbed):
    change = staticmethod(lambda increments: increments / 2)


class Stale(Perturbed):
    """Keeps the weights that the resampling has already paid out."""

    change = staticmethod(lambda increments: increments)

    def resampled(self, *args: Any) -> Any:
        made, survivors = super().resampled(*args)
        return type(self)(made.branches, self.log_weights[survivors], self.log_scale), survivors


@pytest.mark.parametrize("broken", [Forgetful, Unweighted, Halved, Stale])
def test_a_wrong_weight_would_be_noticed(broken: type[Population], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bough.search.power_smc.Population", broken)
    strategy = CASES["power-smc every step"].strategy
    assert not properly_weighted(strategy, CASES["power-smc every step"].target)


def test_another_exponent_or_a_forgotten_bridge_would_be_noticed() -> None:
    assert not properly_weighted(CASES["power-smc"].strategy, partial(power, 3.1))

    class NoBridge(PowerSMC):
        async def population(self, prompt: Any, run: Any) -> Population:
            """With less than the whole last reweighting, to the final exponent."""
            found = [population async for population in self.populations(prompt, run)]
            increments = (self.alpha - self.exponent(5)) * (found[-1].branches.logprob - prompt.logprob)
            return found[-1].reweighted(-increments)

    bridged = CASES["power-smc bridged beyond the end"].strategy
    assert isinstance(bridged, PowerSMC)
    lost = NoBridge(n=bridged.n, alpha=3.0, block=1, ramp=9, ess_threshold=0.9)
    assert not properly_weighted(lost, partial(power, 3.0))


def test_a_recounted_reward_is_another_target() -> None:
    """The paper's filter, which is the default, weighs finished solutions again while others go on."""
    assert not properly_weighted(ParticleFilter(n=4), partial(posterior, 1.0))


def test_a_wrong_weight_of_a_filter_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not properly_weighted(filtered(softmax_temperature=1.2), partial(posterior, 1.0))
    for broken in (Forgetful, Stale):
        monkeypatch.setattr("bough.search.particle_filter.Population", broken)
        assert not properly_weighted(filtered(), partial(posterior, 1.0))


# Particle Gibbs --------------------------------------------------------------------------------------------------


def normalised(target: Callable[[Text, float], float]) -> dict[Text, float]:
    weights = {text: target(text, p) for text, p in texts(ROOT)}
    return {text: weight / sum(weights.values()) for text, weight in weights.items()}


def after_a_sweep(strategy: ParticleGibbs, start: dict[Text, float], runs: int) -> Counter[Text]:
    """The law of the kept solution after one conditional sweep, from solutions drawn exactly from ``start``."""
    backend, rng = ToyBackend(tiny_model), np.random.default_rng(11)
    chosen = [list(start)[i] for i in rng.choice(len(start), size=runs, p=list(start.values()))]

    async def one(seed: int) -> Text:
        made = Run(reward=ToyReward(tamed))
        prompt = backend.branch(PROMPT, seed=seed).with_run(made)
        kept, odds, begun = prompt, {}, len(ROOT)
        for end in range(len(ROOT) + 1, len(chosen[seed]) + 1):
            if chosen[seed][end - 1] in (NEWLINE, EOS):
                logprobs = [np.log(tiny_model(chosen[seed][:at])[chosen[seed][at]]) for at in range(begun, end)]
                kept = graft(kept, chosen[seed][begun:end], np.array(logprobs, np.float32))
                odds[kept] = float(log_odds(np.array([tamed(kept.tokens)]), strategy.softmax_temperature)[0])
                begun = end
        return tuple((await strategy.sweep(kept, prompt, made, odds, 1)).tokens)

    async def together() -> list[Text]:
        return list(await asyncio.gather(*map(one, range(runs))))

    return Counter(run(together()))


def follows(found: Counter[Text], law: dict[Text, float]) -> bool:
    """Chi-squared test, at 1e-4; rare texts are counted together."""
    total = sum(found.values())
    common = [text for text, p in law.items() if p * total >= 5]
    counts = [found[text] for text in common]
    expected = [law[text] * total for text in common]
    test = scipy.stats.chisquare([*counts, total - sum(counts)], [*expected, total - sum(expected)])
    return bool(test.pvalue > 1e-4)


@pytest.mark.parametrize("ancestor_sampling", [True, False])
def test_a_sweep_of_particle_gibbs_leaves_the_posterior_invariant(ancestor_sampling: bool) -> None:
    strategy = ParticleGibbs(n=2, softmax_temperature=0.7, ancestor_sampling=ancestor_sampling)
    law = normalised(partial(posterior, 0.7))
    assert follows(after_a_sweep(strategy, law, 800), law)
    # Two particles are too few to forget where they began, and a filter of two is far from the posterior.
    plain = dict(texts(ROOT))
    assert not follows(after_a_sweep(strategy, plain, 400), law)


def test_ancestors_are_drawn_by_their_weight_and_what_the_rest_is_worth_below_them() -> None:
    """Against the joint density, computed from the texts; a beginning that is over has none."""
    strategy, made = ParticleGibbs(n=4, softmax_temperature=0.7), Run(reward=ToyReward(tamed))
    prompt = ToyBackend(tiny_model).branch(PROMPT).with_run(made)

    def node(parent: Branch, *tokens: int) -> Branch:
        before = tuple(parent.tokens)
        logprobs = [np.log(tiny_model((*before, *tokens[:i]))[token]) for i, token in enumerate(tokens)]
        return graft(parent, tokens, np.array(logprobs, np.float32))

    beginnings = [node(prompt, 4, EOS), node(prompt, 3, NEWLINE), node(prompt, 4, 4, NEWLINE), node(prompt, NEWLINE)]
    steps = [beginnings[-1], node(beginnings[-1], NEWLINE)]
    steps.append(node(steps[-1], EOS))
    log_weights = np.array([3.0, 0.2, 1.5, -0.4])

    def density(beginning: Branch) -> float:
        whole = (*beginning.tokens, NEWLINE, EOS)
        if whole not in dict(texts(ROOT)):
            return 0.0
        first = posterior(0.7, tuple(beginning.tokens), dict(probabilities)[tuple(beginning.tokens)])
        return posterior(0.7, whole, dict(texts(ROOT))[whole]) / first

    probabilities = {tuple(branch.tokens): float(np.exp(branch.logprob)) for branch in beginnings}
    exact = np.exp(log_weights) * [density(beginning) for beginning in beginnings]
    assert exact[0] == 0 and (exact[1:] > 0.02 * exact.sum()).all()

    async def chosen(u: float) -> int:
        odds = {
            step: float(log_odds(np.array([tamed(step.tokens)]), strategy.softmax_temperature)[0]) for step in steps
        }
        found = await strategy._reattached(steps, 1, Population(Branches(beginnings), log_weights), made, odds, u)
        assert [step.appended for step in found[1:]] == [(NEWLINE,), (EOS,)] and found[-1].finished
        assert all(step in odds for step in found[1:])
        return beginnings.index(found[0])

    async def grid() -> list[int]:
        return list(await asyncio.gather(*(chosen((i + 0.5) / 400) for i in range(400))))

    counts = np.bincount(run(grid()), minlength=4)
    assert counts / 400 == pytest.approx(exact / exact.sum(), abs=1 / 400)


def test_a_wrong_ancestor_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    law, reattached = normalised(partial(posterior, 0.7)), ParticleGibbs._reattached

    async def broken(self: Any, steps: Any, level: int, population: Population, *rest: Any) -> Any:
        upside_down = Population(population.branches, -10 * population.log_weights)
        return await reattached(self, steps, level, upside_down, *rest)

    monkeypatch.setattr(ParticleGibbs, "_reattached", broken)
    assert not follows(after_a_sweep(ParticleGibbs(n=3, softmax_temperature=0.7), law, 800), law)


def test_particle_gibbs_forgets_a_bad_beginning_sooner_with_ancestor_sampling() -> None:
    """How often the kept solution's first step is another one after a sweep."""
    law = normalised(partial(posterior, 1.0))
    start = {text: 1.0 for text in law if text[len(ROOT) :] == (3, NEWLINE, NEWLINE, NEWLINE, EOS)}
    kept = []
    for ancestor_sampling in (True, False):
        found = after_a_sweep(ParticleGibbs(n=3, ancestor_sampling=ancestor_sampling), start, 150)
        kept.append(sum(count for text, count in found.items() if text[2:4] == (3, NEWLINE)) / 150)
    assert kept[0] < kept[1] - 0.1


# The calculus ----------------------------------------------------------------------------------------------------


def population(log_weights: list[float], log_scale: float = 0.0) -> Population:
    root = ToyBackend(tiny_model).branch(PROMPT)
    return Population(
        Branches(root + [3] * (i + 1) for i in range(len(log_weights))), np.array(log_weights), log_scale
    )


def test_weights_ess_and_evidence_by_hand() -> None:
    two = population([np.log(3.0), np.log(1.0)], log_scale=-1000.0)
    assert two.weights == pytest.approx([0.75, 0.25])
    assert two.ess == pytest.approx(1 / (0.75**2 + 0.25**2))
    assert two.log_evidence == pytest.approx(-1000 + np.log(2.0))
    assert two.average(np.array([1.0, 5.0])) == pytest.approx(2.0)
    assert population([-2000.0] * 5).ess == pytest.approx(5)
    assert population([-2000.0] * 5).log_evidence == pytest.approx(-2000)
    assert [two.draw(u) for u in (0.0, 0.74, 0.76, 1.0)] == [0, 0, 1, 1]


@pytest.mark.parametrize("scheme", list(RESAMPLING))
def test_resampling_keeps_the_evidence_and_levels_the_weights(scheme: str) -> None:
    before = population([0.0, -1.0, 2.0, -30.0], log_scale=3.0)
    after, survivors = before.resampled(scheme, np.array([0.1, 0.3, 0.6, 0.9]), Run())
    assert after.log_evidence == pytest.approx(before.log_evidence)
    assert after.ess == pytest.approx(4) and 3 not in survivors
    assert [branch.length for branch in after.branches] == [before.branches[i].length for i in survivors]


def test_residual_resampling_keeps_whole_shares_for_certain() -> None:
    weights = np.array([0.55, 0.25, 0.2])
    rng = np.random.default_rng(0)
    for _ in range(50):
        counts = np.bincount(RESAMPLING["residual"](weights, rng.random(4)), minlength=3)
        assert counts[0] >= 2 and counts[1] >= 1 and counts.sum() == 4
    assert RESAMPLING["residual"](np.array([0.5, 0.5]), rng.random(4)).tolist() == [0, 0, 1, 1]


def test_tokens_that_were_not_drawn_have_no_weight() -> None:
    start = population([0.0, 0.0])
    with pytest.raises(InvalidInput, match="nan"):
        start.moved(start.branches, np.array([0.0, np.nan]))


def test_the_tiny_language_is_what_it_says() -> None:
    law = dict(texts(ROOT))
    assert sum(law.values()) == pytest.approx(1.0) and len(law) == 121
    assert max(map(len, law)) == len(ROOT) + 5 and all(text[-1] == EOS for text in law)
    assert len({token for text in law for token in text[len(ROOT) :]}) == 4
