"""How many counted samples 10 of SCOPE or REACH are worth, by outcome.

    python studies/outcomes.py                                  # about 45 minutes on 2 cores
    python studies/outcomes.py --problems 20 --seeds 1          # a quick look
    python studies/outcomes.py --split validation               # where the outcomes were chosen

For every outcome, problem and seed: 32 texts up to the event, which are counted (Monte Carlo) and along which the
hazards are added up (SCOPE), and 32 that are drawn as if it never happened (REACH). All three are unbiased, so that
the mean squared error of n samples is their variance over n, and n samples of one are worth n Var(counting) /
Var(it) counted ones, with variances summed over problems and intervals from a bootstrap over problems. Beside it
stands the error itself: of the first 10 samples of a seed, against REACH's mean over the other seeds' samples.

Outcomes were chosen to be of both kinds: some strike on the spur of the moment, while others are settled by what was
written long before they show. Finished parts are kept under `build/outcomes`, and a run that was stopped goes on from
there. The summary goes to `studies/results/outcomes.{json,csv,svg}`.
"""

from __future__ import annotations

import argparse
import asyncio
import re
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from common import Row, arguments, embedded, interval, panels, show, write

import bough
from bough.core import Backend
from bough.stats import Outcome, Reach
from bough.tasks import Problem, get_task
from bough.tasks.base import apply
from bough.zoo.parts import run_parts

N = 32  # texts of each kind
AS_MANY = 10  # samples of the error that is matched
_HORIZON = 256
_UNDER_WAY = 8  # problems
_RESULT = re.compile(r"(?:^|\n|[a-z] )(\d{1,4})([-+*/])(\d{1,4})=(\d*)\Z")

Ids = Callable[[str], int]


def _token(ids: Ids, *texts: str) -> frozenset[int]:
    return frozenset(map(ids, texts))


def _uses(ids: Ids, problem: Problem, operation: str) -> Outcome:
    return Outcome(_token(ids, operation), max_tokens=_HORIZON)


def _slip(ids: Ids, problem: Problem) -> Outcome:
    """A result that is not that of its own line's operation, at its first wrong digit."""
    digits = {digit: ids(digit) for digit in "0123456789"}

    def event(text: str) -> Collection[int]:
        match = _RESULT.search(text)
        if match is None:
            return ()
        try:
            value = str(apply(int(match[1]), match[2], int(match[3])))
        except ValueError:
            return ()
        if not value.isdigit() or not value.startswith(match[4]):
            return ()  # nothing that a result could say here is right
        due = value[len(match[4]) :][:1]
        return [token for digit, token in digits.items() if digit != due]

    return Outcome(event, max_tokens=_HORIZON)


def _first_digit_is_wrong(ids: Ids, problem: Problem) -> Outcome:
    """An answer that does not begin as the right one does."""
    wrong = [ids(digit) for digit in "0123456789" if digit != problem.answer[0]]
    return Outcome(lambda text: wrong if text.endswith("answer ") else (), max_tokens=_HORIZON)


def _three_digits(ids: Ids, problem: Problem) -> Outcome:
    """An answer of 100 or more."""
    digits = list(map(ids, "0123456789"))
    return Outcome(lambda text: digits if re.search(r"answer \d\d\Z", text) else (), max_tokens=_HORIZON)


OUTCOMES: dict[str, dict[str, Callable[[Ids, Problem], Outcome]]] = {
    "arithmetic": {
        "a slip in some result": _slip,
        "the answer's first digit is wrong": _first_digit_is_wrong,
    },
    "countdown": {
        "the solution multiplies": lambda ids, problem: _uses(ids, problem, "*"),
        "the first line subtracts": lambda ids, problem: Outcome(
            _token(ids, "-"), until=_token(ids, "\n"), max_tokens=_HORIZON
        ),
        "the answer's first digit is wrong": _first_digit_is_wrong,
    },
    "stories": {
        "a slip in some result": _slip,
        "the solution divides": lambda ids, problem: _uses(ids, problem, "/"),
        "the answer is 100 or more": _three_digits,
    },
    "logic": {
        "the answer is unknown": lambda ids, problem: Outcome(_token(ids, " unknown"), max_tokens=_HORIZON),
        "a step negates something": lambda ids, problem: Outcome(_token(ids, " not"), max_tokens=_HORIZON),
    },
}


async def _measure(lm: Backend, task: str, name: str, problem: Problem, seed: int) -> Row:
    """The values of each estimator below one prompt, and the tokens that they took."""

    def ids(text: str) -> int:
        (token,) = lm.encode(text)
        return token

    outcome = OUTCOMES[task][name](ids, problem)
    prompt = lm.branch(problem.prompt, seed=seed)
    texts = await outcome.trajectories(prompt, N)
    happened = [text[-1] in outcome.events(prompt, text)[-1] for text in texts]
    along = [float(row.sum()) for row in await outcome.hazards(prompt, texts)]
    reach = await Reach(n=N)(prompt, outcome, first=N)  # other texts, so that its mean judges the others' error
    return {
        "counting": [float(x) for x in happened], "scope": along, "reach": reach.values.tolist(),
        "tokens": sum(map(len, texts)), "reach_tokens": int(reach.tokens.sum()),
    }  # fmt: skip


async def _all(lm: Backend, task: str, name: str, problems: list[Problem], seed: int) -> list[Row]:
    gate = asyncio.Semaphore(_UNDER_WAY)

    async def one(problem: Problem) -> Row:
        async with gate:
            return await _measure(lm, task, name, problem, seed)

    return list(await asyncio.gather(*map(one, problems)))


def part(task: str, name: str, split: str, seed: int, count: int) -> list[Row]:
    """One outcome under one seed."""
    problems = [get_task(task).problem(split, index) for index in range(count)]
    with embedded() as (lm, _):
        return bough.run(_all(lm, task, name, problems, seed))


def worth(counting: np.ndarray, other: np.ndarray) -> float:
    """How many counted samples have the error of 10 of the other kind, from variances per problem."""
    return AS_MANY * counting.sum() / other.sum() if other.sum() > 1e-12 else np.nan  # no error at all


def summarise(task: str, name: str, seeds: list[list[Row]]) -> Row:
    """One outcome: its probability, its spontaneity, and what 10 samples of each kind are worth."""
    values = {
        what: np.array([[row[what] for row in rows] for rows in seeds]) for what in ("counting", "scope", "reach")
    }
    pooled = {what: np.concatenate(list(array), axis=1) for what, array in values.items()}  # [problems, seeds * N]
    variance = {what: array.var(axis=1, ddof=1) for what, array in pooled.items()}
    reach = pooled["reach"]
    left_open = float((reach * (1 - reach)).mean(axis=1).sum())
    bias = pooled["scope"].mean(axis=1) - reach.mean(axis=1), pooled["counting"].mean(axis=1) - reach.mean(axis=1)
    tokens = [sum(row[what] for rows in seeds for row in rows) for what in ("tokens", "reach_tokens")]
    found: Row = {
        "task": task, "outcome": name, "problems": len(reach), "probability": round(float(reach.mean()), 4),
        "spontaneity": round(left_open / (left_open + float(variance["reach"].sum())), 3),
    }  # fmt: skip
    for what in ("scope", "reach"):
        gain = interval(worth, variance["counting"], variance[what])
        found |= {what: round(gain["estimate"], 1), f"{what}_low": round(gain["low"], 1)}
        found[f"{what}_high"] = round(gain["high"], 1)
    found["reach_per_token"] = round(found["reach"] * tokens[0] / tokens[1], 1)
    for what, array in values.items():
        found[f"{what}_rmse"] = round(float(np.sqrt(_squared_error(array, values["reach"]))), 4)
    for what, gap in zip(("scope", "counting"), bias, strict=True):
        error = gap.std(ddof=1) / np.sqrt(len(gap))
        found[f"{what}_bias_z"] = round(float(gap.mean() / error), 2) if error else 0.0
    return found


def _squared_error(values: np.ndarray, reference: np.ndarray) -> float:
    """Of the first 10 values of a seed against the other seeds' mean of REACH; with one seed, its other values'."""
    errors = []
    for seed in range(len(values)):
        rest = np.delete(reference, seed, axis=0) if len(values) > 1 else reference[:, :, AS_MANY:]
        errors.append((values[seed, :, :AS_MANY].mean(axis=1) - rest.mean(axis=(0, 2))) ** 2)
    return float(np.mean(errors))


def plot(rows: list[Row], args: argparse.Namespace) -> None:
    """What 10 samples are worth against spontaneity."""
    with panels(args.out, ["worth of 10 samples"], "counted samples of the same error", "spontaneity") as axes:
        (axis,) = axes.values()
        shares = np.linspace(0, 0.995, 200)
        axis.plot(shares, AS_MANY / (1 - shares), color="grey", lw=1, label="10 / (1 - spontaneity)")
        for what, marker in (("reach", "o"), ("scope", "x")):
            points = [(row["spontaneity"], row[what]) for row in rows]
            bars = [(max(0.0, row[what] - row[f"{what}_low"]), row[f"{what}_high"] - row[what]) for row in rows]
            axis.errorbar(*np.transpose(points), yerr=np.transpose(bars), fmt=marker, ms=5, lw=0.8, label=what)
        axis.axhline(5 * AS_MANY, color="grey", ls=":", lw=1)
        axis.set(yscale="log")


def main() -> None:
    """Run, print, and keep the summary."""
    parser = arguments(__doc__, "outcomes", list(OUTCOMES))
    parser.add_argument("--split", default="test")
    args = parser.parse_args()
    cells = [(task, name) for task in args.tasks for name in OUTCOMES[task]]
    parts = {
        f"{task}-{re.sub('[^a-z0-9]+', '-', name)}-{args.split}-{seed}-{args.problems}": (
            task, name, args.split, seed, args.problems,
        )
        for task, name in cells
        for seed in range(args.seeds)
    }  # fmt: skip
    found: dict[str, Any] = run_parts(part, parts, args.scratch)
    by_cell: dict[tuple[str, str], list[list[Row]]] = {cell: [] for cell in cells}
    for (task, name, *_), rows in zip(parts.values(), found.values(), strict=True):
        by_cell[task, name].append(rows)
    table = [summarise(task, name, seeds) for (task, name), seeds in by_cell.items()]
    table.sort(key=lambda row: -row["reach"])
    write(args.out, {"split": args.split, "seeds": args.seeds, "texts": N, "rows": table}, table)
    plot(table, args)
    show(table)


if __name__ == "__main__":
    main()
