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

How many first samples tell the difficulty is chosen on the validation questions. Intervals are percentiles of a
bootstrap over questions.
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

from bough.search.pets import majority, plan
from bough.search.stopping import ahead
from bough.zoo.parts import run_parts

RATE = 0.99
READINGS = ("fresh", "pool")
EACH = 64  # samples that are looked at one by one; later ones in batches of a 20th of what there is
LENGTH = 16_384  # samples of a question at most
REPEATS = 16
FIRSTS = (4, 8, 16, 32, 64)
AVERAGES = np.geomspace(6, LENGTH / 2, 28)
LEVELS = np.geomspace(0.2, 1e-5, 120)
DOUBTS = np.geomspace(0.3, 1e-5, 60)
CLOSE = (0.02, 0.05, 0.1)
START = 2  # samples of every question, offline
Curve = tuple[np.ndarray, np.ndarray]  # samples spent and how often the vote agreed, ``[questions, settings]``


@dataclass(frozen=True)
class Draws:
    """Votes on every question, in some sequences of samples each.

    Attributes:
        sizes: int ``[s]``, how many samples have been drawn where the votes are looked at.
        agrees: bool ``[questions, repeats, s]``, whether the vote of so many samples is the infinite one.
        votes: int ``[2, questions, repeats, s]``, of the two answers that lead among them.
    """

    sizes: np.ndarray
    agrees: np.ndarray
    votes: np.ndarray


def draw(pools: np.ndarray, fresh: bool, seed: int) -> Draws:
    """Sequences of samples from the pools, ``[questions, n]``."""
    rng = np.random.default_rng(seed)
    length = LENGTH if fresh else pools.shape[1]
    sizes = list(range(1, min(EACH, length) + 1))
    while sizes[-1] < length:
        sizes.append(min(length, sizes[-1] + sizes[-1] // 20))
    shape = (len(pools), REPEATS, len(sizes))
    agrees, votes = np.zeros(shape, bool), np.zeros((2, *shape), np.int16)
    for question, pool in enumerate(pools):
        named, codes, counts = np.unique(pool, return_inverse=True, return_counts=True)
        voting = named >= 0
        leading = voting & (counts == counts[voting].max(initial=0))
        for repeat in range(REPEATS):
            drawn = rng.choice(codes, EACH) if fresh else rng.permutation(codes)
            tallies = np.cumsum(drawn[:, None] == np.arange(len(named)), 0)
            if fresh:
                batches = rng.multinomial(np.diff(sizes[EACH - 1 :]), counts / len(pool))
                tallies = np.concatenate([tallies, tallies[-1] + np.cumsum(batches, 0)])
            else:
                tallies = tallies[np.array(sizes) - 1]
            # Of equals the first that appeared wins, as in every vote; it comes first in this order.
            order = np.lexsort(-tallies[EACH - 1 :: -1])
            order = order[voting[order]]
            own = np.pad(tallies[:, order], ((0, 0), (0, 2)))
            agrees[question, repeat] = np.append(leading[order], [not len(order)] * 2)[own.argmax(1)]
            votes[:, question, repeat] = np.partition(own, -2, axis=1)[:, :-3:-1].T
    return Draws(np.array(sizes), agrees, votes)


@cache
def log_factorials() -> np.ndarray:
    """Logarithms of 0! to (LENGTH + 2)!."""
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, LENGTH + 3)))])


def gains(votes: np.ndarray) -> np.ndarray:
    """`bough.search.allocation.gain`, of arrays."""
    first, second = votes.astype(np.int64)
    logs, n = log_factorials(), first + second + 1
    return np.exp(logs[n] - logs[first + 1] - logs[second] - (n + 1) * math.log(2))


def behind(votes: np.ndarray) -> np.ndarray:
    """The probability that a leader is not, 1 - `ahead`, of arrays; of many votes by the normal approximation."""
    table = np.full((EACH + 1, EACH + 1), np.nan)
    for second in range(EACH // 2 + 1):
        for first in range(second, EACH - second + 1):
            table[first, second] = 1 - ahead(first, second)
    first, second = votes.astype(np.int64)
    few = first + second <= EACH
    deviations = np.round((first - second) / np.sqrt(first + second + 1), 3)
    values, at = np.unique(deviations, return_inverse=True)
    normal = np.array([NormalDist().cdf(-value) for value in values])[at].reshape(deviations.shape)
    return np.where(few, table[np.where(few, first, 0), np.where(few, second, 0)], normal)


def until(draws: Draws, stops: np.ndarray, least: int) -> Curve:
    """Each question by itself until ``stops``, ``[questions, repeats, s]``, says so: one setting."""
    stops = stops.copy()
    stops[..., : least - 1] = False
    stops[..., -1] = True
    return taken(draws, stops.argmax(-1))


def taken(draws: Draws, at: np.ndarray) -> Curve:
    """What was spent and agreed at those places, ``[questions, repeats]``."""
    agreed = np.take_along_axis(draws.agrees, at[..., None], -1)[..., 0]
    return draws.sizes[at].mean(1), agreed.mean(1)


def stacked(curves: Sequence[Curve]) -> Curve:
    """One curve of several settings."""
    spent, agreed = zip(*curves, strict=True)
    return np.stack(spent, 1), np.stack(agreed, 1)


def uniform(draws: Draws) -> Curve:
    """The same number for every question."""
    agreed = draws.agrees.mean(1)
    return np.broadcast_to(draws.sizes.astype(float), agreed.shape), agreed


def offline(draws: Draws) -> Curve:
    """The knowledge gradient, stopped at any total."""
    index = gains(draws.votes)
    return stacked([until(draws, index < level, START) for level in LEVELS])


def adaptive(draws: Draws) -> Curve:
    """Adaptive consistency at any confidence."""
    doubts = behind(draws.votes)
    return stacked([until(draws, doubts <= doubt, 1) for doubt in DOUBTS])


def online(draws: Draws, known: np.ndarray, first: int) -> Curve:
    """PETS, with budgets planned on the pools of other questions, ``[questions, n]``."""
    leaders, limit, curves = draws.votes[0, :, :, first - 1], int(draws.sizes[-1]), []
    for average in AVERAGES[(first < AVERAGES) & (limit >= AVERAGES)]:
        budgets = np.array(plan(known, float(average), first, limit=limit))
        curves.append(taken(draws, np.searchsorted(draws.sizes, budgets)[leaders]))
    return stacked(curves)


def clairvoyant(draws: Draws, pools: np.ndarray) -> Curve:
    """The best number for each question, by the normal approximation of its rate, Phi(gap sqrt(k) / deviation)."""
    roots, cdf = np.sqrt(draws.sizes), np.vectorize(NormalDist().cdf)
    slopes = np.zeros((len(pools), len(draws.sizes)))
    for question, pool in enumerate(pools):
        own = shares(pool)
        first, second = own[0], own[own < own[0]].max(initial=0.0)  # of those that lead any will do
        variance = first + second - (first - second) ** 2
        if variance > 0:  # what is unanimous needs one sample
            rates = cdf((first - second) / math.sqrt(variance) * roots)
            slopes[question, :-1] = np.diff(rates) / np.diff(draws.sizes)
    curves = []
    for level in LEVELS / 100:
        at = (slopes >= level).sum(1)  # the slopes fall
        curves.append(taken(draws, np.repeat(at[:, None], REPEATS, 1)))
    return stacked(curves)


def shares(pool: np.ndarray) -> np.ndarray:
    """The answers' shares of a question's samples, the largest first; at least two numbers."""
    counts = np.unique(pool[pool >= 0], return_counts=True)[1]
    return np.pad(np.sort(counts)[::-1] / len(pool), (0, max(0, 2 - len(counts))))


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
    """The option that needs least; if none gets there, the one with the highest rate."""
    return min(options, key=lambda option: (of(options[option]), -options[option][1].mean(0).max()))


def part(task: str, reading: str, seeds: int, problems: int, folder: Path) -> Row:
    """One task under one reading."""
    fresh = reading == "fresh"
    pools = {split: load_answers(task, split, seeds, folder)[:problems] for split in ("validation", "test")}
    tried, test = (draw(pools[split], fresh, seed) for seed, split in enumerate(pools, start=1))
    known = pools["validation"]
    first = choose({first: online(tried, known, first) for first in FIRSTS})
    curves: dict[str, Curve] = {
        "uniform": uniform(test),
        "offline": offline(test),
        "online": online(test, known, first),
        "online, 4 first": online(test, known, 4),
        "adaptive consistency": adaptive(test),
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
                "setting": f"{first} first" if name == "online" else "",
                "needs": round(of(curve), 1),
                "low": _quantile(needs, 0.025),
                "high": _quantile(needs, 0.975),
                "saves": round(1 - of(curve) / of(curves["uniform"]), 3),
                "saves, low": _quantile(saved, 0.025),
                "saves, high": _quantile(saved, 0.975),
                "best rate": round(float(curve[1].mean(0).max()), 4),
            }
        )
    return {
        "rows": rows,
        "curves": {name: _thinned(curve) for name, curve in curves.items()},
        "task": {"task": task, "leaders closer than": close(pools["test"]), "halves agree": halves(pools["test"])},
    }


def close(pools: np.ndarray) -> dict[str, float]:
    """Shares of the questions whose two leading answers are that close, as shares of the samples."""
    gaps = np.array([own[0] - own[1] for own in map(shares, pools)])
    return {str(gap): round(float(np.mean(gaps <= gap)), 4) for gap in CLOSE}


def halves(pools: np.ndarray) -> float:
    """How often the votes of two halves of a pool agree, in any order of it."""
    rng, agreed = np.random.default_rng(0), []
    for pool in pools:
        for _ in range(REPEATS):
            mixed = rng.permutation(pool).tolist()
            agreed.append(majority(mixed[::2]) == majority(mixed[1::2]))
    return round(float(np.mean(agreed)), 4)


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
