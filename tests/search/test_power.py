"""The samplers of p(y) ** alpha against that law, written down for a language of 121 texts."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import scipy.stats

from bough.core import Branch, FreeText, InvalidInput, Run, Strategy, run
from bough.search import PowerMH, PowerSMC, ScalablePower
from bough.search.power import PowerSearch, answer_stop_after, cut, drawn, graft
from executing import execute
from tiny_language import Text, power_law, texts, tiny_model
from toy import EOS, SYMBOLS, ToyBackend

PROMPT = "a?"
ROOT: Text = tuple(SYMBOLS.index(character) for character in PROMPT)
ALPHA = 2.0


def sampled(strategy: Strategy, runs: int) -> Counter[Text]:
    """How often each text was the answer."""
    backend = ToyBackend(tiny_model)

    async def together() -> list[Text]:
        found = await asyncio.gather(*(execute(strategy, backend, PROMPT, seed) for seed in range(runs)))
        return [tuple(answer.branch.tokens) for answer, _ in found if answer.branch is not None]

    return Counter(run(together()))


def distance(found: Counter[Text], law: Mapping[Text, float]) -> float:
    """Total variation between what was found and a law."""
    total = sum(found.values())
    return sum(abs(found[text] / total - law.get(text, 0.0)) for text in {*found, *law}) / 2


def follows(found: Counter[Text], law: Mapping[Text, float]) -> bool:
    """Chi-squared test, at 1e-4; rare texts are counted together."""
    total = sum(found.values())
    common = [text for text, p in law.items() if p * total >= 5]
    expected = [law[text] * total for text in common]
    counts = [found[text] for text in common]
    expected.append(total - sum(expected))
    counts.append(total - sum(counts))
    return bool(scipy.stats.chisquare(counts, expected).pvalue > 1e-4)


def low_temperature(alpha: float) -> dict[Text, float]:
    """The law of decoding at temperature 1 / alpha."""

    def sharpened(tokens: Text) -> np.ndarray:
        weights: np.ndarray = tiny_model(tokens) ** alpha
        return weights / weights.sum()

    return dict(texts(ROOT, sharpened))


def test_the_power_law_is_neither_plain_nor_low_temperature_decoding() -> None:
    law, _ = power_law(ROOT, ALPHA)
    assert apart(law, dict(texts(ROOT))) > 0.3 and apart(law, low_temperature(ALPHA)) > 0.3


# Power-SMC -------------------------------------------------------------------------------------------------------


def test_the_answer_of_power_smc_approaches_the_power_law() -> None:
    law, _ = power_law(ROOT, ALPHA)
    errors = [distance(sampled(PowerSMC(n=n, alpha=ALPHA, block=1), 250), law) for n in (1, 16)]
    # 250 draws from the law itself are about 0.09 from it.
    assert errors[0] > 0.25 and errors[1] < 0.15


def test_one_particle_is_low_temperature_decoding() -> None:
    found = sampled(PowerSMC(n=1, alpha=3.0, block=1), 1000)
    assert follows(found, low_temperature(3.0)) and not follows(found, power_law(ROOT, 3.0)[0])


def test_a_vote_takes_the_answer_of_most_weight() -> None:
    law, _ = power_law(ROOT, ALPHA)
    task, totals = FreeText(), Counter[str]()
    for text, p in law.items():
        answer = task.extract("".join(SYMBOLS[token] for token in text[len(ROOT) :]))
        if answer is not None:
            totals[answer] += p  # type: ignore[assignment]
    backend = ToyBackend(tiny_model)
    answers = [
        run(execute(PowerSMC(n=200, alpha=ALPHA, block=1, answer="vote"), backend, PROMPT, seed))[0]
        for seed in range(8)
    ]
    [(mode, share)] = totals.most_common(1)
    assert all(task.extract(answer.text) == mode for answer in answers)
    assert np.mean([answer.score or 0.0 for answer in answers]) == pytest.approx(share, abs=0.05)


def test_power_smc_stops_at_the_length_limit_and_at_the_answer_stop() -> None:
    backend = ToyBackend(tiny_model)
    short = run(execute(PowerSMC(n=8, block=1, max_tokens=2), backend, PROMPT))[0]
    assert short.branch is not None and short.branch.length <= len(ROOT) + 2

    @dataclass(frozen=True)
    class Stopping(FreeText):
        answer_stop: str | None = "\n"

    for strategy in (PowerSMC(n=8, block=1), PowerMH(block=1, steps=2), ScalablePower(block=3)):
        for seed in range(10):
            answer = run(Run(task=Stopping()).execute(strategy, backend.branch(PROMPT, seed=seed)))
            assert answer.text.count("\n") <= 1 and answer.text.find("\n") in (-1, len(answer.text) - 1)


# Metropolis-Hastings ---------------------------------------------------------------------------------------------


def state_of(backend: ToyBackend, prompt: Branch, text: Text, alpha: float) -> Branch:
    """A text as a branch that was drawn at temperature 1 / alpha."""
    logprobs, sharpened = [], []
    for end in range(len(ROOT), len(text)):
        row = tiny_model(text[:end])
        logprobs.append(np.log(row[text[end]]))
        sharpened.append(np.log(row[text[end]] ** alpha / (row**alpha).sum()))
    return graft(prompt, text[len(ROOT) :], np.array(logprobs, np.float32), np.array(sharpened, np.float32))


def after_steps(strategy: PowerMH, start: Mapping[Text, float], runs: int, steps: int) -> Counter[Text]:
    """The law after some steps, from texts drawn exactly from the law ``start``."""
    backend, rng = ToyBackend(tiny_model), np.random.default_rng(5)
    chosen = [list(start)[i] for i in rng.choice(len(start), size=runs, p=np.array(list(start.values())))]

    async def one(seed: int) -> Text:
        made = Run()
        prompt = backend.branch(PROMPT, seed=seed).with_run(made)
        state = state_of(backend, prompt, chosen[seed], strategy.alpha)
        for count in range(1, steps + 1):
            state = await strategy.step(state, prompt, made, strategy.max_tokens, count)
        return tuple(state.tokens)

    async def together() -> list[Text]:
        return list(await asyncio.gather(*map(one, range(runs))))

    return Counter(run(together()))


def test_a_step_of_metropolis_hastings_leaves_the_power_law_invariant() -> None:
    law, _ = power_law(ROOT, ALPHA)
    assert follows(after_steps(PowerMH(alpha=ALPHA), law, runs=2000, steps=2), law)


@pytest.mark.parametrize("mutation", ["length", "density", "exponent"])
def test_a_wrong_acceptance_ratio_would_be_noticed(mutation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import bough.search.power_mh as module

    law, _ = power_law(ROOT, ALPHA)
    if mutation == "length":
        monkeypatch.setattr(module.math, "log", lambda x: 0.0 if isinstance(x, int) else float(np.log(x)))
    elif mutation == "density":
        monkeypatch.setattr(module, "drawn", lambda *args: (drawn(*args)[0], np.zeros(1)))
    strategy = PowerMH(alpha=ALPHA * (1.3 if mutation == "exponent" else 1.0))
    assert not follows(after_steps(strategy, law, runs=1500, steps=3), law)


def test_metropolis_hastings_forgets_where_it_began() -> None:
    law, _ = power_law(ROOT, ALPHA)
    start = low_temperature(ALPHA)
    errors = [distance(after_steps(PowerMH(alpha=ALPHA), start, 300, steps), law) for steps in (0, 25)]
    assert errors[0] > 0.25 and errors[1] < 0.15
    assert distance(sampled(PowerMH(alpha=ALPHA, block=3, steps=15), 250), law) < 0.17


# Scalable power sampling -----------------------------------------------------------------------------------------


def exact_law(strategy: ScalablePower) -> dict[Text, float]:
    """The answer's law with futures known exactly: infinitely many rollouts of the strategy's horizon."""

    def zeta(text: Text, left: int) -> float:
        if left == 0 or text[-1] == EOS:
            return 1.0
        row = tiny_model(text)
        return sum(row[v] ** strategy.alpha * zeta((*text, int(v)), left - 1) for v in np.flatnonzero(row))

    def next_token(text: Text) -> np.ndarray:
        row = tiny_model(text)
        weights = np.zeros_like(row)
        for v in np.argsort(-row)[: strategy.candidates]:
            if row[v] >= strategy.min_p * row.max() and row[v] > 0:
                weights[v] = row[v] ** strategy.alpha * zeta((*text, int(v)), strategy.horizon)
        return weights / weights.sum()

    return dict(texts(ROOT, next_token))


def apart(one: Mapping[Text, float], other: Mapping[Text, float]) -> float:
    """Total variation between two laws."""
    return sum(abs(one.get(text, 0.0) - other.get(text, 0.0)) for text in {*one, *other}) / 2


def test_with_a_long_horizon_the_tokens_follow_the_power_law() -> None:
    """The decomposition itself, by enumeration; a shorter horizon is further away, but ahead of none."""
    law, _ = power_law(ROOT, ALPHA)
    errors = [
        apart(exact_law(ScalablePower(alpha=ALPHA, horizon=horizon, min_p=0.0, block=1)), law)
        for horizon in (5, 2, 1)
    ]
    assert errors[0] < 1e-12
    assert 0.01 < errors[1] < errors[2] < apart(low_temperature(ALPHA), law)


@pytest.mark.parametrize("block", [1, 3])
def test_scalable_power_is_close_to_the_power_law(block: int) -> None:
    law, _ = power_law(ROOT, ALPHA)
    strategy = ScalablePower(alpha=ALPHA, horizon=5, rollouts=6, min_p=0.0, block=block)
    found = sampled(strategy, 250)
    assert distance(found, law) < 0.15
    assert distance(found, low_temperature(ALPHA)) > 0.25


def test_scalable_power_is_restricted_to_its_candidates() -> None:
    strategy = ScalablePower(alpha=ALPHA, horizon=5, candidates=2, rollouts=6, min_p=0.2, block=1)
    found, law = sampled(strategy, 200), exact_law(strategy)
    assert distance(found, law) < 0.15
    assert all(law[text] > 0 for text in found) and len([text for text in law if law[text] > 0]) < 32


def test_the_jackknife_removes_the_bias_of_first_order() -> None:
    """Two candidates whose rollouts weigh 1 or 1/10: the expectation over all outcomes of 2 M coins."""
    chances = (0.8, 0.3)
    zeta = [chance + 0.1 * (1 - chance) for chance in chances]

    def bias(jackknife: bool, rollouts: int) -> float:
        strategy, expected = ScalablePower(jackknife=jackknife), 0.0
        for coins in itertools.product((True, False), repeat=2 * rollouts):
            heads = np.array(coins).reshape(2, rollouts)
            probability = math.prod(chances[k] if heads[k, m] else 1 - chances[k] for k, m in np.ndindex(heads.shape))
            law = strategy.law(np.log([0.5, 0.5]), np.where(heads, 0.0, np.log(0.1)))
            assert law.sum() == pytest.approx(1)
            expected += probability * float(law[0])
        return abs(expected - zeta[0] / sum(zeta))

    assert bias(True, 4) < 0.5 * bias(False, 4)
    assert bias(False, 4) > 0.4 * bias(False, 2), "plain: about 1 / M"


def test_the_distance_from_the_power_law_is_what_is_stated() -> None:
    """The answer's law from the mean law of every next token, over rollouts drawn by their exact probabilities."""
    law, _ = power_law(ROOT, ALPHA)

    def error(jackknife: bool) -> float:
        rng, strategy = np.random.default_rng(0), ScalablePower(alpha=ALPHA, rollouts=2, jackknife=jackknife)

        @cache
        def next_token(text: Text) -> np.ndarray:
            row = tiny_model(text)
            tokens = np.flatnonzero(row)
            log_futures = np.zeros((600, len(tokens), 2))
            for index, token in enumerate(tokens):
                futures = np.array([p for _, p in texts((*text, int(token)))])
                log_futures[:, index] = (ALPHA - 1) * np.log(rng.choice(futures, size=(600, 2), p=futures))
            laws = [strategy.law(ALPHA * np.log(row[tokens]), drawn) for drawn in log_futures]
            mean = np.zeros_like(row)
            mean[tokens] = np.mean(laws, axis=0)
            return mean

        return apart(dict(texts(ROOT, next_token)), law)

    assert error(True) < 0.022 < error(False) < 0.045


def test_a_rollout_that_outweighs_all_others_leaves_a_law() -> None:
    law = ScalablePower().law(np.array([-1.0, -400.0]), np.array([[-3.0, -900.0, -900.0], [-1.0, -1.0, -1.0]]))
    assert law == pytest.approx([1.0, 0.0])


def test_one_candidate_is_greedy_decoding() -> None:
    strategy = ScalablePower(alpha=ALPHA, candidates=1, rollouts=1, horizon=1, block=1)
    text = ROOT
    while text[-1] != EOS:
        text = (*text, int(np.argmax(tiny_model(text))))
    assert set(sampled(strategy, 5)) == {text}


# The parts -------------------------------------------------------------------------------------------------------


def test_a_branch_is_cut_at_any_place_and_keeps_what_is_known_of_it() -> None:
    backend = ToyBackend(tiny_model)

    async def grow() -> Branch:
        for seed in range(100):
            [middle] = await backend.branch(PROMPT, seed=seed).sample(max_tokens=2, temperature=0.5)
            if not middle.finished:
                return (await middle.sample(max_tokens=2, temperature=0.5))[0]
        raise AssertionError("every text ended at once")

    branch = run(grow())
    logprobs, sharpened = drawn(branch, len(ROOT))
    assert len(logprobs) == len(sharpened) == branch.length - len(ROOT)
    assert logprobs.sum() == pytest.approx(branch.logprob) and sharpened.sum() == pytest.approx(branch.sample_logprob)
    for length in range(len(ROOT), branch.length + 1):
        part = cut(branch, length)
        assert part.tokens == branch.tokens[:length]
        kept, tail = drawn(part, len(ROOT)), drawn(branch, length)
        for whole, first, second in zip((logprobs, sharpened), kept, tail, strict=True):
            assert np.concatenate([first, second]) == pytest.approx(whole)
        assert part.finished == (length == branch.length and branch.finished)
    assert cut(branch, branch.length) is branch and cut(branch, len(ROOT)) is branch.root


def test_an_answer_stop_is_seen_across_the_cut() -> None:
    @dataclass(frozen=True)
    class Stopping(FreeText):
        answer_stop: str | None = "ab"

    head = ToyBackend(tiny_model).branch(PROMPT) + "ba"
    stop = answer_stop_after(head, Run(task=Stopping()))
    assert stop.when is not None and stop.when("b") and not stop.when("ab".replace("ab", "c"))


@pytest.mark.parametrize(
    "make",
    [
        lambda: PowerSMC(alpha=0.0),
        lambda: PowerSMC(ramp=0),
        lambda: PowerSMC(ess_threshold=1.5),
        lambda: PowerSMC(answer="best"),  # type: ignore[arg-type]
        lambda: PowerMH(steps=0),
        lambda: PowerMH(block=-1),
        lambda: ScalablePower(block=9, horizon=7),
        lambda: ScalablePower(min_p=-0.1),
    ],
)
def test_bad_hyper_parameters_are_refused(make: Callable[[], PowerSearch]) -> None:
    with pytest.raises(InvalidInput):
        make()
