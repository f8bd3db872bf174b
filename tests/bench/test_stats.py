"""Intervals against closed forms, scipy, and their own coverage."""

import itertools

import numpy as np
import pytest
import scipy.stats

from bough.bench.stats import accuracy, holm, paired_bootstrap, sign_flip_test, wilson
from bough.core import InvalidInput


@pytest.mark.parametrize(("successes", "n"), [(0, 7), (1, 7), (7, 7), (53, 100), (399, 400)])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_wilson_is_scipys(successes, n, confidence):
    ours = wilson(successes, n, confidence)
    theirs = scipy.stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert ours.estimate == successes / n
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_one_trial_per_problem_is_plain_wilson():
    right = np.arange(200) % 3 == 0
    assert accuracy(range(200), right) == wilson(right.sum(), 200)


def test_seeds_that_always_agree_add_nothing():
    right = np.arange(60) % 4 == 0
    one = accuracy(range(60), right)
    five = accuracy(np.repeat(np.arange(60), 5), np.repeat(right, 5))
    assert five.estimate == one.estimate
    assert (five.low, five.high) == pytest.approx((one.low, one.high), rel=0.02)


def test_independent_seeds_count_in_full():
    rng = np.random.default_rng(0)
    right = rng.random(4000) < 0.4
    clustered = accuracy(np.repeat(np.arange(1000), 4), right)
    plain = wilson(right.sum(), 4000)
    assert clustered.high - clustered.low == pytest.approx(plain.high - plain.low, rel=0.06)


def test_an_accuracy_of_one_counts_each_problem_once():
    assert accuracy(np.repeat(np.arange(20), 3), np.ones(60)) == wilson(20, 20)


def test_clustered_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    problems = np.repeat(np.arange(80), 3)
    hits = 0
    for _ in range(400):
        difficulty = rng.beta(0.5, 0.5, size=80)  # mean 0.5, seeds of a problem nearly agree
        interval = accuracy(problems, rng.random(240) < np.repeat(difficulty, 3))
        hits += interval.low <= 0.5 <= interval.high
    assert 0.92 <= hits / 400 <= 0.98


def test_bootstrap_difference_is_scipys_when_each_problem_has_one_trial():
    rng = np.random.default_rng(2)
    a, b = rng.normal(1, 1, 150), rng.normal(0.5, 2, 150)
    ours = paired_bootstrap(range(150), a, b, resamples=20_000)
    theirs = scipy.stats.bootstrap(
        (a, b), lambda x, y, axis: (x - y).mean(axis), paired=True, method="percentile", n_resamples=20_000,
        vectorized=True, rng=3,
    ).confidence_interval  # fmt: skip
    assert ours.estimate == pytest.approx((a - b).mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_bootstrap_ratio_is_scipys():
    rng = np.random.default_rng(3)
    b = rng.gamma(4, 100, 150)
    a = b * rng.uniform(0.2, 0.4, 150)
    ours = paired_bootstrap(range(150), a, b, "ratio", resamples=20_000)
    theirs = scipy.stats.bootstrap(
        (a, b), lambda x, y, axis: x.mean(axis) / y.mean(axis), paired=True, method="percentile",
        n_resamples=20_000, vectorized=True, rng=4,
    ).confidence_interval  # fmt: skip
    assert ours.estimate == pytest.approx(a.mean() / b.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.002)


def test_bootstrap_moves_the_seeds_of_a_problem_together():
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=100), rng.normal(size=100)
    one = paired_bootstrap(range(100), a, b)
    copied = paired_bootstrap(np.repeat(np.arange(100), 8), np.repeat(a, 8), np.repeat(b, 8))
    assert (copied.low, copied.high) == pytest.approx((one.low, one.high))


def test_pairing_cancels_what_problems_have_in_common():
    rng = np.random.default_rng(5)
    hard = rng.normal(0, 10, 200)
    a, b = hard + 1 + rng.normal(0, 0.1, 200), hard
    paired = paired_bootstrap(range(200), a, b)
    assert paired.low > 0.9
    assert paired.high < 1.1


def test_bootstrap_is_reproducible_and_chunks_do_not_matter(monkeypatch):
    rng = np.random.default_rng(6)
    a, b = rng.random(50), rng.random(50)
    whole = paired_bootstrap(range(50), a, b, resamples=1000)
    monkeypatch.setattr("bough.bench.stats._CHUNK", 50 * 130)
    assert paired_bootstrap(range(50), a, b, resamples=1000) == whole


def test_one_seed_makes_the_sign_flip_test_mcnemars():
    rng = np.random.default_rng(7)
    for n in (1, 10, 60, 2000):
        a, b = rng.random(n) < 0.7, rng.random(n) < 0.6
        only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
        exact = scipy.stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
        assert sign_flip_test(range(n), a, b) == pytest.approx(exact, rel=1e-9)


def test_the_sign_flip_test_counts_every_sign_pattern():
    rng = np.random.default_rng(8)
    problems = np.repeat(np.arange(9), 3)
    for _ in range(20):
        a, b = rng.random(27) < 0.6, rng.random(27) < 0.4
        sums = np.bincount(problems, a.astype(int) - b.astype(int))
        totals = [abs(np.dot(signs, sums)) for signs in itertools.product((-1, 1), repeat=9)]
        share = np.mean([total >= abs(sums.sum()) for total in totals])
        assert sign_flip_test(problems, a, b) == pytest.approx(share)
        assert sign_flip_test(problems, b, a) == pytest.approx(share)


def test_copied_seeds_are_no_evidence():
    rng = np.random.default_rng(9)
    a, b = rng.random(40) < 0.7, rng.random(40) < 0.5
    copied = sign_flip_test(np.repeat(np.arange(40), 5), np.repeat(a, 5), np.repeat(b, 5))
    assert copied == pytest.approx(sign_flip_test(range(40), a, b))


def test_p_values_too_small_to_sample_are_still_told_apart():
    assert sign_flip_test(range(200), np.ones(200), np.zeros(200)) == pytest.approx(2.0**-199)


@pytest.mark.parametrize(
    ("p", "corrected"),
    [
        ([], []),
        ([0.03], [0.03]),
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),  # Holm's steps 3 x .01, 2 x .03, and never less than before
        ([0.6, 0.5], [1.0, 1.0]),
        ([0.04, 0.005, 0.03, 0.001], [0.06, 0.015, 0.06, 0.004]),
    ],
)
def test_holms_correction_by_hand(p, corrected):
    assert holm(p) == pytest.approx(corrected)


def test_false_findings_among_all_pairs_are_as_rare_as_they_say():
    """Five equally good methods, ten pairs, seeds that nearly agree: a false winner in at most 5 % of tables."""
    rng = np.random.default_rng(10)
    problems = np.repeat(np.arange(60), 3)
    false = 0
    for _ in range(400):
        easy = np.repeat(rng.beta(0.7, 0.7, 60), 3)
        right = rng.random((5, 180)) < easy
        found = holm([sign_flip_test(problems, a, b) for a, b in itertools.combinations(right, 2)])
        false += min(found) <= 0.05
    assert false / 400 <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 400)


def test_a_real_difference_is_found_among_all_pairs():
    rng = np.random.default_rng(11)
    right = rng.random((5, 400)) < np.array([[0.5], [0.5], [0.5], [0.5], [0.7]])
    pairs = list(itertools.combinations(range(5), 2))
    found = holm([sign_flip_test(range(400), right[a], right[b]) for a, b in pairs])
    assert [pair for pair, p in zip(pairs, found, strict=True) if p <= 0.05] == [(0, 4), (1, 4), (2, 4), (3, 4)]


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: wilson(1, 0), "n=0"),
        (lambda: wilson(5, 4), "5 successes of 4"),
        (lambda: wilson(1, 2, confidence=1.0), "confidence=1.0"),
        (lambda: accuracy([], []), "n=0"),
        (lambda: accuracy([1, 2], [1]), "one outcome per trial"),
        (lambda: paired_bootstrap([0], [1.0, 2.0], [1.0]), "of one length"),
        (lambda: sign_flip_test([0], [1, 0], [1]), "of one length"),
        (lambda: sign_flip_test([], [], []), "not empty"),
        (lambda: paired_bootstrap([0, 1], [1.0, 2.0], [1.0, 0.0], "ratio"), "denominator is 0"),
    ],
)
def test_what_has_no_interval_is_refused(call, names):
    with pytest.raises(InvalidInput, match=names):
        call()
