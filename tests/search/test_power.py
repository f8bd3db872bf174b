"""The samplers of p(y) ** alpha against that law, written down for a language of 121 texts."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.stats

from bough.core import Branch, FreeText, InvalidInput, Run, Strategy, run
from bough.search import PowerMH, PowerSMC
from bough.search.power import PowerSearch, answer_stop_after, cut, drawn, graft
from executing import execute
from tiny_language import Text, power_law, texts, tiny_model
from toy import SYMBOLS, ToyBackend

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
    for other in (dict(texts(ROOT)), low_temperature(ALPHA)):
        assert sum(abs(law[text] - other[text]) for text in law) / 2 > 0.1


# Power-SMC -------------------------------------------------------------------------------------------------------


def test_the_answer_of_power_smc_approaches_the_power_law() -> None:
    law, _ = power_law(ROOT, ALPHA)
    errors = [distance(sampled(PowerSMC(n=n, alpha=ALPHA, block=1), 1500), law) for n in (1, 32)]
    # 1,500 draws from the law itself are about 0.05 from it.
    assert errors[0] > 0.12 and errors[1] < 0.08


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

    for strategy in (PowerSMC(n=8, block=1), PowerMH(block=1, steps=2)):
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
    assert follows(after_steps(PowerMH(alpha=ALPHA), law, runs=4000, steps=2), law)


@pytest.mark.parametrize("mutation", ["length", "density", "exponent"])
def test_a_wrong_acceptance_ratio_would_be_noticed(mutation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import bough.search.power_mh as module

    law, _ = power_law(ROOT, ALPHA)
    if mutation == "length":
        monkeypatch.setattr(module.math, "log", lambda x: 0.0 if isinstance(x, int) else float(np.log(x)))
    elif mutation == "density":
        monkeypatch.setattr(module, "drawn", lambda *args: (drawn(*args)[0], np.zeros(1)))
    strategy = PowerMH(alpha=ALPHA * (1.3 if mutation == "exponent" else 1.0))
    assert not follows(after_steps(strategy, law, runs=4000, steps=4), law)


def test_metropolis_hastings_forgets_where_it_began() -> None:
    law, _ = power_law(ROOT, ALPHA)
    start = low_temperature(ALPHA)
    errors = [distance(after_steps(PowerMH(alpha=ALPHA), start, 1200, steps), law) for steps in (0, 12)]
    assert errors[0] > 0.12 and errors[1] < 0.08
    assert distance(sampled(PowerMH(alpha=ALPHA, block=2, steps=12), 1200), law) < 0.08


# The parts -------------------------------------------------------------------------------------------------------


def test_a_branch_is_cut_at_any_place_and_keeps_what_is_known_of_it() -> None:
    backend = ToyBackend(tiny_model)

    async def grow() -> Branch:
        branch = backend.branch(PROMPT, seed=3)
        for _ in range(2):
            [branch] = await branch.sample(max_tokens=2, temperature=0.5)
        return branch

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
    ],
)
def test_bad_hyper_parameters_are_refused(make: Callable[[], PowerSearch]) -> None:
    with pytest.raises(InvalidInput):
        make()
