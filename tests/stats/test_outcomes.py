"""Outcome estimators against exact enumeration of the toy language."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import scipy.stats

from bough.core import Capability, InvalidInput, run
from bough.stats import MonteCarlo, Outcome, Reach, Scope, spontaneity
from bough.stats.reach import risk
from executing import native_backend
from toy import EOS, NEWLINE, ToyBackend, toy_model

A, B, C = 3, 4, 5
OUTCOMES = {
    "a b anywhere": Outcome(frozenset({B})),
    "an a or a c in the first line": Outcome(frozenset({A, C}), until=frozenset({NEWLINE})),
    "a b within three tokens": Outcome(frozenset({B}), max_tokens=3),
    "the end within four tokens": Outcome(frozenset({EOS}), max_tokens=4),
    "any letter, which is certain": Outcome(frozenset({A, B, C})),
    "a b right after an a": Outcome(lambda text: {B} if text.endswith("a") else ()),
    "a c at the start of a later line": Outcome(lambda text: {C} if text.endswith("\n") else (), max_tokens=6),
    "a or b after c in the first line": Outcome(lambda t: {A, B} if t.endswith("c") else (), until=frozenset({1})),
}
PROMPTS = ("ab?", "ca?")


@pytest.fixture(params=OUTCOMES)
def outcome(request: pytest.FixtureRequest) -> Outcome:
    return OUTCOMES[request.param]


def texts(outcome: Outcome, prompt: tuple[int, ...], spared: bool) -> Iterator[tuple[tuple[int, ...], float, bool]]:
    """Every text up to the event or stop, with its probability, and whether the event happened, from the model."""
    letters = "".join(" \n?abc+-"[token] for token in prompt)  # the end of the text is never before the end
    todo: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
    while todo:
        text, probability = todo.pop()
        written = "".join(" \n?abc+-"[token] for token in prompt + text)[len(letters) :]
        event = outcome.event if isinstance(outcome.event, frozenset) else frozenset(outcome.event(written))
        row = toy_model(prompt + text)
        if spared and 0 < sum(row[token] for token in event) < 1 - 1e-12:
            row = row.copy()
            row[list(event)] = 0
            row /= row.sum()
        for token in np.flatnonzero(row):
            longer, chance = (*text, int(token)), probability * row[token]
            if token in event or token in outcome.until or token == EOS or len(longer) == outcome.max_tokens:
                yield longer, chance, token in event
            else:
                todo.append((longer, chance))


@pytest.mark.parametrize("prompt", PROMPTS)
def test_scope_and_reach_are_unbiased_by_enumeration_and_reach_varies_least(outcome: Outcome, prompt: str) -> None:
    backend = ToyBackend()
    root = backend.branch(prompt)
    plain = list(texts(outcome, tuple(root.tokens), spared=False))
    spared = list(texts(outcome, tuple(root.tokens), spared=True))
    assert sum(p for _, p, _ in plain) == pytest.approx(1) and sum(p for _, p, _ in spared) == pytest.approx(1)
    exact = sum(p for _, p, happened in plain if happened)

    async def values() -> tuple[list[float], list[float]]:
        along = await outcome.hazards(root, [text for text, _, _ in plain])
        anticipated = await outcome.hazards(root, [text for text, _, _ in spared])
        return [float(row.sum()) for row in along], [risk(row) for row in anticipated]

    scope, reach = run(values())
    chances, spared_chances = np.array([p for _, p, _ in plain]), np.array([p for _, p, _ in spared])
    assert chances @ scope == pytest.approx(exact, abs=1e-6)
    assert spared_chances @ reach == pytest.approx(exact, abs=1e-6)
    variance = {
        "counting": exact * (1 - exact),
        "scope": chances @ (np.array(scope) - exact) ** 2,
        "reach": spared_chances @ (np.array(reach) - exact) ** 2,
    }
    assert variance["reach"] <= min(variance["counting"], variance["scope"]) + 1e-6
    left_open = spared_chances @ (np.array(reach) * (1 - np.array(reach)))
    assert variance["counting"] == pytest.approx(variance["reach"] + left_open, abs=1e-6)


@pytest.mark.parametrize("spared", [False, True])
def test_the_texts_are_drawn_from_the_law_that_the_estimators_need(outcome: Outcome, spared: bool) -> None:
    root = ToyBackend().branch("ab?", seed=3)
    drawn = Counter(map(tuple, run(outcome.trajectories(root, 2_000, spared=spared))))
    law = {text: p for text, p, _ in texts(outcome, tuple(root.tokens), spared)}
    assert set(drawn) <= set(law)
    common = [text for text, p in law.items() if p * 2_000 >= 5]
    observed = [*(drawn[text] for text in common), sum(n for text, n in drawn.items() if text not in common)]
    expected = np.array([*(law[text] for text in common), sum(p for t, p in law.items() if t not in common)])
    kept = expected > 0
    if kept.sum() > 1:
        counts = np.array(observed)[kept]
        assert scipy.stats.chisquare(counts, expected[kept] / expected[kept].sum() * counts.sum()).pvalue > 1e-3


def test_estimates_agree_with_the_exact_probability_within_their_errors(outcome: Outcome) -> None:
    root = ToyBackend().branch("ca?", seed=1)
    exact = sum(p for _, p, happened in texts(outcome, tuple(root.tokens), spared=False) if happened)
    for estimator in (MonteCarlo(n=400), Scope(n=400), Reach(n=400)):
        estimate = run(estimator(root, outcome))
        assert abs(estimate.mean - exact) <= 4 * estimate.standard_error + 1e-6
        assert estimate.values.shape == estimate.tokens.shape == (400,)
        assert (estimate.tokens >= 1).all()


def test_another_first_child_gives_other_texts_and_the_same_one_the_same() -> None:
    root, outcome = ToyBackend().branch("ab?"), OUTCOMES["a b right after an a"]
    drawn = run(outcome.trajectories(root, 6))
    assert run(outcome.trajectories(root, 4, first=2)) == drawn[2:]
    crowded = ToyBackend(slots=3, shuffle=5)
    assert run(outcome.trajectories(crowded.branch("ab?"), 6)) == drawn


def test_an_event_may_also_be_a_function_that_always_says_the_same() -> None:
    root = ToyBackend().branch("ab?")
    named, computed = Outcome(frozenset({B})), Outcome(lambda text: {B})
    texts = run(named.trajectories(root, 20))
    for fixed, stepped in zip(run(named.hazards(root, texts)), run(computed.hazards(root, texts)), strict=True):
        np.testing.assert_array_equal(fixed, stepped)


def test_estimates_are_the_same_on_an_engine_as_from_its_whole_distributions() -> None:
    with native_backend(None) as backend:
        root, outcome = backend.branch("ab?"), Outcome(frozenset({A, B}), frozenset({NEWLINE}), max_tokens=8)
        texts = run(outcome.trajectories(root, 5, spared=True))
        for text, hazards in zip(texts, run(outcome.hazards(root, texts)), strict=True):
            assert not {A, B} & set(text)
            rows = [np.exp(backend.next_token(root + text[:end] if end else root)) for end in range(len(text))]
            np.testing.assert_allclose(hazards, [row[A] + row[B] for row in rows], atol=1e-5)


def test_an_outcome_that_no_text_comes_near_has_no_hazard() -> None:
    root = ToyBackend().branch("ab?")
    estimate = run(Reach(n=3)(root, Outcome(lambda text: {B} if len(text) > 20 else ())))
    assert estimate.values.tolist() == [0, 0, 0]


def test_spontaneity_is_one_where_every_text_runs_the_same_risk_and_zero_where_the_text_decides() -> None:
    assert spontaneity(np.full(4, 0.3)) == 1
    assert spontaneity(np.array([0.0, 1.0, 1.0, 0.0])) == 0
    for hopeless in ([0.5], [0.0, 0.0], [1.0, 1.0]):
        with pytest.raises(InvalidInput):
            spontaneity(np.array(hopeless))


def test_nonsense_is_refused() -> None:
    for bad in (0, -1, 1.5):
        with pytest.raises(InvalidInput, match=str(bad)):
            Reach(n=bad)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="max_tokens=0"):
        Outcome(frozenset({A}), max_tokens=0)
    with pytest.raises(InvalidInput, match="never happens"):
        Outcome(frozenset())


def test_they_are_in_the_gallery_with_what_they_need() -> None:
    for cls in (Scope, Reach):
        assert cls.info.requires == {Capability.SAMPLE, Capability.SCORE} and cls.info.family == "stats"  # type: ignore[attr-defined]
