"""Votes that weigh solutions by what the model thought of them, against closed forms and exact enumeration."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from bough.core import Budget, Capability, FreeText, InvalidInput, Run, UnsupportedError, run
from bough.search import RPC, AdaptiveConsistency, SelfConsistency
from bough.search.rpc import fit_mixture, fit_weibull, path_weights, pruned
from bough.search.vote import confidence, most_sure, tally, winner
from executing import execute
from toy import SYMBOLS, ToyBackend, solutions, toy_model

PROMPT = "ab?"
ROOT = tuple(SYMBOLS.index(character) for character in PROMPT)


class LastLine(FreeText):
    """The answer is the last line's first letter: three answers that many solutions reach."""

    def extract(self, text: str) -> str | None:
        lines = text.strip().splitlines()
        return lines[-1][0] if lines else None


SMALL = partial(toy_model, lines=1)  # twelve solutions


def answer_law(model: Callable[[tuple[int, ...]], np.ndarray]) -> dict[str, float]:
    law = Counter[str]()
    for tokens, probability in solutions(model, ROOT):
        text = "".join(SYMBOLS[token] for token in tokens[len(ROOT) :])
        law[str(LastLine().extract(text))] += probability
    return dict(law)


# Confidence ----------------------------------------------------------------------------------------------------


def test_confidence_is_the_geometric_mean_of_a_window() -> None:
    rng = np.random.default_rng(0)
    for length, window in itertools.product((1, 2, 7, 30), (1, 3, 7, 100)):
        logprobs = -rng.gamma(1.0, size=length)
        size = min(window, length)
        groups = [math.exp(logprobs[i : i + size].mean()) for i in range(length - size + 1)]
        assert confidence(logprobs, "bottom", window) == pytest.approx(min(groups))
        assert confidence(logprobs, "tail", window) == pytest.approx(groups[-1])
        assert confidence(logprobs, "mean", window) == pytest.approx(math.exp(logprobs.mean()))
        assert confidence(logprobs, "none", window) == 1.0


def test_the_least_sure_lose_their_vote() -> None:
    weights = [0.2, 0.9, 0.5, 0.9]
    assert most_sure(weights, 1.0) == weights
    assert most_sure(weights, 0.5) == [0.0, 0.9, 0.0, 0.9]
    assert most_sure(weights, 0.25) == [0.0, 0.9, 0.0, 0.0], "of equals, the first"
    assert most_sure(weights, 0.01) == [0.0, 0.9, 0.0, 0.0], "at least one"


@pytest.mark.parametrize("kind", ["mean", "bottom", "tail"])
@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_the_confident_vote_is_the_one_that_enumeration_says(kind: Any, keep: float) -> None:
    """Every solution weighs its confidence times how often it was drawn."""
    backend, n = ToyBackend(), 24
    for seed in range(8):
        strategy = SelfConsistency(n=n, confidence=kind, window=2, keep=keep)
        made = Run(task=LastLine())
        answer = run(made.execute(strategy, backend.branch(PROMPT, seed=seed)))
        leaves = run(backend.branch(PROMPT, seed=seed).sample(n))
        groups = []
        for leaf in leaves:
            model, tokens = [], list(ROOT)
            for token in leaf.appended:
                model.append(math.log(toy_model(tuple(tokens))[token]))
                tokens.append(token)
            means = [sum(model[i : i + 2]) / 2 for i in range(len(model) - 1)]
            mean = {"mean": sum(model) / len(model), "bottom": min(means), "tail": means[-1]}
            groups.append((LastLine().extract(leaf.completion), math.exp(mean[kind])))
        kept = sorted(groups, key=lambda group: -group[1])[: round(n * keep)]
        totals = tally([a for a, _ in kept], [w for _, w in kept])
        best = max(totals, key=lambda a: totals[a])
        assert LastLine().extract(answer.text) == best
        assert answer.score == pytest.approx(totals[best] / n)


def test_confidence_needs_log_probabilities_and_no_reward() -> None:
    backend = ToyBackend()
    backend.capabilities = frozenset({Capability.SAMPLE})
    assert run(Run().execute(SelfConsistency(n=2), backend.branch(PROMPT))).text
    with pytest.raises(UnsupportedError, match="log-prob"):
        run(Run().execute(SelfConsistency(n=2, confidence="mean"), backend.branch(PROMPT)))
    with pytest.raises(InvalidInput, match="choose one"):
        SelfConsistency(weighted=True, confidence="mean")


# Perplexity consistency ----------------------------------------------------------------------------------------


def test_the_distinct_solutions_sum_up_to_the_answer_exponentially_fast() -> None:
    """The sum misses each solution y with (1 - p(y)) ** n; the share of the votes has the variance of a binomial."""
    law, backend, exact = answer_law(SMALL), ToyBackend(SMALL), dict(solutions(SMALL, ROOT))
    target = max(law, key=lambda a: law[a])
    of_target = [p for tokens, p in exact.items() if SYMBOLS[tokens[len(ROOT)]] == target]
    assert sum(of_target) == pytest.approx(law[target]) and len(exact) == 12
    error: dict[int, tuple[float, float]] = {}
    for n in (10, 60):
        summed, voted = [], []
        for seed in range(150):
            leaves = run(backend.branch(PROMPT, seed=seed).sample(n))
            logprobs = [leaf.logprob for leaf in leaves]
            answers = [LastLine().extract(leaf.completion) for leaf in leaves]
            weights = path_weights([leaf.appended for leaf in leaves], logprobs, prune=False)
            summed.append(tally(answers, weights).get(target, 0.0) * math.exp(max(logprobs)))
            voted.append(answers.count(target) / n)
        expected = sum(p * (1 - (1 - p) ** n) for p in of_target)
        assert np.mean(summed) == pytest.approx(expected, abs=4 * np.std(summed) / math.sqrt(150) + 1e-6)
        error[n] = float(np.mean((np.array(summed) - law[target]) ** 2)), float(np.var(voted))
        assert error[n][1] == pytest.approx(law[target] * (1 - law[target]) / n, rel=0.35)
    assert error[60][0] < error[60][1] / 5
    assert error[10][0] / error[60][0] > 3 * error[10][1] / error[60][1], "faster than with 1 / n"


def test_repeats_weigh_nothing_and_any_offset_cancels() -> None:
    paths, logprobs = ["u", "v", "u", "w"], [-1.0, -2.0, -1.0, -3.0]
    weights = path_weights(paths, logprobs, prune=False)
    assert weights == pytest.approx([1.0, math.exp(-1), 0.0, math.exp(-2)])
    assert path_weights(paths, [p - 5000 for p in logprobs], prune=False) == pytest.approx(weights)
    assert winner(["x", "y", "x", "y"], weights) == (0, 1.0)
    assert path_weights(["u"], [-3.0]) == [1.0]
    assert path_weights(["u", "u"], [-3.0, -3.0]) == [1.0, 0.0]


# Reasoning pruning ---------------------------------------------------------------------------------------------


def test_a_weibull_is_fitted_as_scipy_does() -> None:
    rng = np.random.default_rng(1)
    for shape, scale in ((0.7, 0.2), (1.5, 3.0), (6.0, 1e-3)):
        x = scale * rng.weibull(shape, 400)
        k, log_scale = fit_weibull(np.log(x), np.ones(400))
        expected = scipy.stats.weibull_min.fit(x, floc=0)
        assert k == pytest.approx(expected[0], rel=1e-3)
        assert math.exp(log_scale) == pytest.approx(expected[2], rel=1e-3)
    weights = rng.integers(0, 4, 400).astype(float)
    assert fit_weibull(np.log(x), weights) == pytest.approx(
        fit_weibull(np.log(np.repeat(x, weights.astype(int))), np.ones(int(weights.sum())))
    )


def test_em_recovers_a_mixture_and_says_which_point_is_of_which() -> None:
    rng = np.random.default_rng(2)
    high = rng.random(3000) < 0.4
    x = np.where(high, 0.8 * rng.weibull(8.0, 3000), 0.1 * rng.weibull(1.2, 3000)) + 1e-12
    fitted = fit_mixture(x)
    assert fitted.shares == pytest.approx([0.4, 0.6], abs=0.02)
    assert fitted.shapes == pytest.approx([8.0, 1.2], rel=0.08)
    assert fitted.scales == pytest.approx([0.8, 0.1], rel=0.05)
    assert ((fitted.responsibilities > 0.5) == high).mean() > 0.99


def test_em_ends_at_a_maximum_of_the_likelihood() -> None:
    rng = np.random.default_rng(3)
    x = np.concatenate([rng.weibull(3.0, 60), 0.2 * rng.weibull(1.0, 60)]) + 1e-9
    fitted = fit_mixture(x)

    def cost(v: np.ndarray) -> float:
        parts = [s * scipy.stats.weibull_min.pdf(x, k, scale=c) for s, k, c in zip(*v.reshape(3, 2), strict=True)]
        return -float(np.log(sum(parts)).sum())

    ours = np.concatenate([fitted.shares, fitted.shapes, fitted.scales])
    bounds = [(0.2, 0.8)] * 2 + [(0.05, 20)] * 2 + [(1e-6, None)] * 2
    best = scipy.optimize.minimize(
        cost, ours, bounds=bounds, constraints={"type": "eq", "fun": lambda v: v[0] + v[1] - 1}
    )
    assert cost(ours) - best.fun < 0.05


def test_rows_are_fitted_by_themselves_and_repeats_break_nothing() -> None:
    rng = np.random.default_rng(4)
    rows = np.log(rng.weibull(1.0, (5, 16)))
    rows[1] = 0.0
    rows[2, :12] = rows[2].max()
    rows[3, 0] = -2000
    counted = rng.random(rows.shape) < 0.8
    counted[np.arange(5), rows.argmax(-1)] = True
    together = pruned(rows, counted)
    assert together.any()
    for row, mask, gone in zip(rows, counted, together, strict=True):
        assert list(pruned(row[mask], mask[mask])) == list(gone[mask]), "what is not counted changes nothing"
    assert not together[np.arange(5), rows.argmax(-1)].any(), "the likeliest stays"
    assert not together[1].any()


def test_what_is_pruned_is_improbable_by_both_rules() -> None:
    rng = np.random.default_rng(5)
    logprobs = np.concatenate([np.log(rng.weibull(9.0, 20)), np.log(0.01 * rng.weibull(1.0, 20))])
    gone = pruned(logprobs, np.ones(40, bool))
    assert gone[20:].all() and not gone[:20].any()
    x = np.exp(logprobs - logprobs.max())
    assert (x[gone] < x.mean()).all() and (fit_mixture(x).responsibilities[gone] < 0.5).all()


# The strategy --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [RPC(n=64), RPC(n=64, prune=False), RPC(n=64, probability="mean")], ids=str)
def test_rpc_votes_as_its_functions_say(strategy: RPC) -> None:
    backend = ToyBackend()
    for seed in range(5):
        answer = run(Run(task=LastLine()).execute(strategy, backend.branch(PROMPT, seed=seed)))
        leaves = run(backend.branch(PROMPT, seed=seed).sample(64))
        lengths = [len(leaf.appended) if strategy.probability == "mean" else 1 for leaf in leaves]
        logprobs = [leaf.logprob / length for leaf, length in zip(leaves, lengths, strict=True)]
        weights = path_weights([leaf.appended for leaf in leaves], logprobs, strategy.prune)
        won = winner([LastLine().extract(leaf.completion) for leaf in leaves], weights)
        assert won is not None and answer.branch is not None
        assert answer.branch.key == leaves[won[0]].key
        assert answer.score == pytest.approx(won[1] / sum(weights), abs=1e-4)


def test_rpc_finds_the_most_probable_answer_with_half_the_samples_of_a_vote() -> None:
    """Where two answers are close, of the languages of twelve solutions that were tried."""
    models = [partial(toy_model, seed=seed, lines=1) for seed in range(20)]
    laws = [answer_law(model) for model in models]
    gap = [float(np.diff(sorted(law.values()))[-1]) for law in laws]
    closest = int(np.argmin(gap))
    mode = max(laws[closest], key=lambda a: laws[closest][a])
    backend = ToyBackend(models[closest])

    async def rate(strategy: Any) -> float:
        roots = [backend.branch(PROMPT, seed=seed) for seed in range(120)]
        answers = await asyncio.gather(*(Run(task=LastLine()).execute(strategy, root) for root in roots))
        return float(np.mean([LastLine().extract(answer.text) == mode for answer in answers]))

    assert run(rate(RPC(n=32, prune=False))) > run(rate(SelfConsistency(n=64))) + 0.1


def test_rpc_that_is_cut_off_or_stopped_counts_what_was_in() -> None:
    backend = ToyBackend()
    whole, _ = run(execute(RPC(n=32), backend))
    cut, _ = run(execute(RPC(n=32), backend, budget=Budget(tokens=whole.ledger.tokens // 2)))
    assert cut.stopped_by is not None and cut.branch is not None and cut.score is not None
    stopped, _ = run(execute(RPC(n=64), backend, stop=AdaptiveConsistency(0.6, parallel=2)))
    assert stopped.stopped_by is not None and stopped.stopped_by.startswith("stop: adaptive")
    assert stopped.score is not None and 0 < stopped.score <= 1
