"""PETS: how many samples a vote needs until it agrees with that of infinitely many.

    python studies/samples.py --unjudged --validation-seeds 3      # first: draws the pools, 192 samples per question
    python studies/allocations.py                                  # some minutes; results/allocations.{json,csv,svg}

The self-consistency rate is the share of questions whose vote agrees with the infinite one. An allocation *needs* the
least number of samples per question, on average, from which on the rate is at least 0.99.

The infinite vote is not known, and what stands for it decides what an allocation seems to need. Two readings:

- ``fresh``: the shares of the answers in a question's pool are taken for the model's, and samples are fresh draws
  from them, with replacement. The infinite vote is then known (the pool's leader; where several lead, any of them),
  and no number of samples uses up what defines it.
- ``pool``: the paper's: the pool's own vote is the target, and samples are drawn from the pool without replacement.
  A vote of nearly all of the pool agrees with it because it is nearly the same vote, so that nothing can need more.

Allocations, each over all numbers of samples:

- uniform: the same number for every question.
- offline: `bough.search.allocation` stopped at any total. Its index is a question's own, so that what it has drawn of
  each when the largest falls below some value is what the question alone would draw until its index does.
- online: `bough.search.PETS`, with the budgets that `plan` makes for any average from the validation questions.
- adaptive consistency: `AdaptiveConsistency` at any confidence, which is no allocation, but a rule for one question.
- clairvoyant: the best fixed number for each question by one who knows its shares, though not what will be drawn: the
  greedy allocation by their rates, as the normal approximation has them. It bounds what an allocation can do by
  difficulty, however difficulty is told; a rule that looks at the votes themselves may do better.

How many first samples tell the difficulty, and how many samples offline allocation gives a question at most, are
chosen on the validation questions. Intervals are percentiles of a bootstrap over questions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import NormalDist

import numpy as np
from common import Row, arguments, panels, show, write
from samples import ANSWERS, N, load_answers

from bough.search.allocation import gain
from bough.search.pets import plan
from bough.zoo.parts import run_parts

RATE = 0.99
READINGS = ("fresh", "pool")
LENGTH = 1024  # samples of a question that are looked at
REPEATS = 16
FIRSTS = (4, 8, 16, 32)
LIMITS = (64, 128, 256, 512, 1024)
AVERAGES = np.geomspace(6, 512, 28)
LEVELS = np.geomspace(0.2, 1e-5, 120)
DOUBTS = np.geomspace(0.3, 1e-4, 40)
CLOSE = (0.02, 0.05, 0.1)
START = 2  # samples of every question, offline
Curve = tuple[np.ndarray, np.ndarray]  # samples spent and whether the vote agreed, ``[questions, settings]``


@dataclass(frozen=True)
class Draws:
    """Samples of every question, some sequences of each, and the votes that they make one after the other.

    Attributes:
        agrees: bool ``[questions, repeats, length]``, whether the vote of the first k + 1 is the infinite one.
        votes: int ``[2, questions, repeats, length]``, of the two answers that lead among them.
        answers: int ``[questions, repeats, length]``, numbered in order of appearance; -1 for none.
    """

    agrees: np.ndarray
    votes: np.ndarray
    answers: np.ndarray

    @property
    def length(self) -> int:
        return self.agrees.shape[-1]


def draw(pools: np.ndarray, fresh: bool, repeats: int, seed: int) -> Draws:
    """Sequences of samples from the pools, ``[questions, n]``."""
    rng = np.random.default_rng(seed)
    length = LENGTH if fresh else pools.shape[1]
    shape = (len(pools), repeats, length)
    agrees, votes, answers = np.zeros(shape, bool), np.zeros((2, *shape), np.int16), np.zeros(shape, np.int16)
    for question, pool in enumerate(pools):
        named, counts = np.unique(pool[pool >= 0], return_counts=True)
        if not len(named):
            agrees[question], answers[question] = True, -1  # nobody ever votes
            continue
        leading = set(named[counts == counts.max()].tolist())
        for repeat in range(repeats):
            drawn = rng.choice(pool, length) if fresh else rng.permutation(pool)
            agrees[question, repeat], votes[:, question, repeat], answers[question, repeat] = _count(drawn, leading)
    return Draws(agrees, votes, answers)


def _count(drawn: np.ndarray, leading: set[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of one sequence: agreement, the two largest numbers of votes, and the answers in order of appearance."""
    named, first, codes = np.unique(drawn, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(np.where(named < 0, len(drawn), first)))  # no answer comes last, and has no votes
    codes, names = order[codes], named[np.argsort(order)]
    voters = int((names >= 0).sum())
    ones = codes[:, None] == np.arange(voters)
    tallies = np.cumsum(ones, 0, dtype=np.int16)
    # Of equals the first that appeared wins, as in every vote.
    agrees = np.isin(names[:voters], list(leading))[tallies.argmax(1)] & (tallies.max(1) > 0)
    top = np.partition(np.pad(tallies, ((0, 0), (0, 2))), -2, axis=1)[:, -2:]
    return agrees, top.T[::-1], np.where(codes < voters, codes, -1)


@cache
def tables(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Of v1 >= v2 votes: the knowledge gradient's index, and the probability that the leader is behind, by v1, v2."""
    gains = np.zeros((size + 1, size + 1))
    for second in range(size // 2 + 1):
        for first in range(second, size - second + 1):
            gains[first, second] = gain(first, second)
    # P(ahead) is a half at v, v, and each vote for the leader adds what it gains.
    ahead = 0.5 + np.cumsum(gains, 0) - gains
    return gains, 1 - ahead


def until(draws: Draws, stops: np.ndarray, least: int, limit: int) -> Curve:
    """Each question by itself until ``stops``, ``[questions, repeats, length]``, says so: one setting."""
    stops = stops[..., :limit].copy()
    stops[..., : least - 1] = False
    stops[..., limit - 1] = True
    spent = stops.argmax(-1) + 1
    agreed = np.take_along_axis(draws.agrees, spent[..., None] - 1, -1)[..., 0]
    return spent.mean(1), agreed.mean(1)


def stacked(curves: Sequence[Curve]) -> Curve:
    """One curve of several settings."""
    spent, agreed = zip(*curves, strict=True)
    return np.stack(spent, 1), np.stack(agreed, 1)


def uniform(draws: Draws) -> Curve:
    """The same number for every question."""
    agreed = draws.agrees.mean(1)
    return np.broadcast_to(np.arange(1, draws.length + 1.0), agreed.shape), agreed


def offline(draws: Draws, limit: int) -> Curve:
    """The knowledge gradient, stopped at any total."""
    limit = min(limit, draws.length)
    index = tables(LENGTH)[0][draws.votes[0], draws.votes[1]]
    return stacked([until(draws, index < level, START, limit) for level in LEVELS])


def adaptive(draws: Draws, limit: int) -> Curve:
    """Adaptive consistency at any confidence."""
    behind = tables(LENGTH)[1][draws.votes[0], draws.votes[1]]
    return stacked([until(draws, behind <= doubt, 1, min(limit, draws.length)) for doubt in DOUBTS])


def online(draws: Draws, known: Draws, first: int) -> Curve:
    """PETS, with budgets planned on other questions."""
    answers = known.answers.transpose(1, 0, 2)[:2].reshape(-1, known.length)
    curves = []
    leaders = draws.votes[0, :, :, first - 1]
    for average in AVERAGES[(first < AVERAGES) & (known.length >= AVERAGES)]:
        budgets = np.array(plan(answers, float(average), first, shuffles=1))
        spent = budgets[leaders]
        agreed = np.take_along_axis(draws.agrees, spent[..., None] - 1, -1)[..., 0]
        curves.append((spent.mean(1), agreed.mean(1)))
    return stacked(curves)


def clairvoyant(draws: Draws, pools: np.ndarray) -> Curve:
    """The best number for each question, by the normal approximation of its rate, Phi(gap sqrt(k) / deviation)."""
    roots, cdf = np.sqrt(np.arange(1, draws.length + 1)), np.vectorize(NormalDist().cdf)
    gains = np.zeros((len(pools), draws.length))
    for question, (first, second) in enumerate(shares(pools)):
        gap = first - second
        if first < 1 and gap > 0:  # what is unanimous needs one sample, and where two lead any will do
            gains[question, :-1] = np.diff(cdf(gap / math.sqrt(first + second - gap**2) * roots))
    curves = []
    for level in LEVELS / 10:
        given = 1 + (gains >= level).sum(1)  # the gains fall
        agreed = draws.agrees[np.arange(len(pools)), :, given - 1].mean(1)
        curves.append((given.astype(float), agreed))
    return stacked(curves)


def shares(pools: np.ndarray) -> list[tuple[float, float]]:
    """The two leading answers of each question, as shares of its samples."""
    found = []
    for pool in pools:
        counts = np.sort(np.unique(pool[pool >= 0], return_counts=True)[1])[::-1] / len(pool)
        found.append(((*counts, 0.0, 0.0)[0], (*counts, 0.0, 0.0)[1]))
    return found


def needed(spent: np.ndarray, rates: np.ndarray) -> float:
    """The least spent from which on the rate is at least `RATE`; infinite if it never is."""
    order = np.argsort(spent, kind="stable")
    spent, rates = spent[order], rates[order]
    below = np.flatnonzero(rates < RATE)
    if not len(below):
        return float(spent[0])
    last = int(below[-1])
    if last + 1 == len(spent):
        return math.inf
    share = (RATE - rates[last]) / (rates[last + 1] - rates[last])
    return float(spent[last] + share * (spent[last + 1] - spent[last]))


def of(curve: Curve, chosen: np.ndarray | slice = slice(None)) -> float:
    """What an allocation needs on some of the questions."""
    return needed(curve[0][chosen].mean(0), curve[1][chosen].mean(0))


def choose(options: dict[int, Curve]) -> int:
    """The option that needs least, or if none gets there the one with the highest rate."""
    return min(options, key=lambda option: (of(options[option]), -options[option][1].mean(0).max()))


def part(task: str, reading: str, seeds: int, problems: int, folder: Path) -> Row:
    """One task under one reading."""
    fresh = reading == "fresh"
    pools = {split: load_answers(task, split, seeds, folder)[:problems] for split in ("validation", "test")}
    # Plans and choices are made of other draws than they are tried on.
    known = draw(pools["validation"], fresh, REPEATS, seed=0)
    tried = draw(pools["validation"], fresh, REPEATS, seed=1)
    test = draw(pools["test"], fresh, REPEATS, seed=2)
    limits = [limit for limit in LIMITS if limit <= test.length] or [test.length]
    limit = choose({limit: offline(tried, limit) for limit in limits})
    first = choose({first: online(tried, known, first) for first in FIRSTS})
    cap = choose({limit: adaptive(tried, limit) for limit in limits})
    curves: dict[str, Curve] = {
        "uniform": uniform(test),
        "offline": offline(test, limit),
        "online": online(test, known, first),
        "online, 4 first": online(test, known, 4),
        "adaptive consistency": adaptive(test, cap),
        "clairvoyant": clairvoyant(test, pools["test"]),
    }
    rng, count = np.random.default_rng(0), len(pools["test"])
    resampled = [rng.integers(count, size=count) for _ in range(500)]
    rows = []
    for name, curve in curves.items():
        needs = np.array([of(curve, chosen) for chosen in resampled])
        against = np.array([of(curves["uniform"], chosen) for chosen in resampled])
        with np.errstate(invalid="ignore"):
            saved = 1 - needs / against
        rows.append(
            {
                "task": task,
                "samples": reading,
                "allocation": name,
                "setting": {"offline": f"limit={limit}", "online": f"first={first}",
                            "adaptive consistency": f"limit={cap}"}.get(name, ""),
                "needs": round(of(curve), 1),
                "low": _quantile(needs, 0.025),
                "high": _quantile(needs, 0.975),
                "saves": round(1 - of(curve) / of(curves["uniform"]), 3),
                "saves, low": _quantile(saved, 0.025),
                "saves, high": _quantile(saved, 0.975),
                "best rate": round(float(curve[1].mean(0).max()), 4),
            }
        )  # fmt: skip
    return {
        "rows": rows,
        "curves": {name: _thinned(curve) for name, curve in curves.items()},
        "task": {"task": task, "leaders closer than": close(pools["test"]), "halves agree": halves(pools["test"])},
    }


def close(pools: np.ndarray) -> dict[str, float]:
    """Shares of the questions whose two leading answers are that close, as shares of the samples."""
    gaps = np.array([first - second for first, second in shares(pools)])
    return {str(gap): round(float(np.mean(gaps <= gap)), 4) for gap in CLOSE}


def halves(pools: np.ndarray) -> float:
    """How often the votes of two halves of a pool agree."""
    draws = draw(pools, fresh=False, repeats=REPEATS, seed=3)
    middle = draws.length // 2
    agreed = [_leader(row[:middle]) == _leader(row[middle:]) for repeats in draws.answers for row in repeats]
    return round(float(np.mean(agreed)), 4)


def _leader(answers: np.ndarray) -> int:
    votes = np.bincount(answers[answers >= 0])
    return int(votes.argmax()) if len(votes) else -1


def _quantile(values: np.ndarray, level: float) -> float:
    """Also of values that are infinite; NaN where the ratio of two such is asked for."""
    kept = np.sort(values[~np.isnan(values)])
    return round(float(kept[int(level * (len(kept) - 1) + 0.5)]), 3) if len(kept) else math.nan


def _thinned(curve: Curve) -> list[tuple[float, float]]:
    spent, rates = curve[0].mean(0), curve[1].mean(0)
    kept = np.unique(np.geomspace(1, len(spent), 48).astype(int)) - 1
    return [(round(float(spent[k]), 2), round(float(rates[k]), 4)) for k in kept]


def main() -> None:
    """Count, print, and keep the results."""
    parser = arguments(__doc__, "allocations")
    parser.add_argument("--folder", type=Path, default=ANSWERS, help="of python studies/samples.py --unjudged")
    args = parser.parse_args()
    parts = {
        f"{task}-{reading}-{args.problems}-{args.seeds}": (task, reading, args.seeds, args.problems, args.folder)
        for task in args.tasks
        for reading in READINGS
    }
    found = list(run_parts(part, parts, args.scratch).values())
    rows = [row for result in found for row in result["rows"]]
    settings = {"problems": args.problems, "samples in a pool": args.seeds * N, "rate": RATE, "repeats": REPEATS}
    write(args.out, {**settings, "tasks": [result["task"] for result in found[:: len(READINGS)]], "rows": rows}, rows)
    show(rows)
    with panels(args.out, args.tasks, "self-consistency rate", "samples per question") as axes:
        for result in found[:: len(READINGS)]:
            axis = axes[result["task"]["task"]]
            for name, curve in result["curves"].items():
                axis.plot(*zip(*curve, strict=True), label=name)
            axis.axhline(RATE, color="grey", lw=0.8, ls=":")
            axis.set(xscale="log", ylim=(0.8, 1.003))


if __name__ == "__main__":
    main()
