"""How full the engine's batch stays while step lengths are spread 10 to 1: A* and the particle filter, no barriers.

    python studies/batch_fill.py                    # about a minute on 2 cores

bough/nano computes, but the lengths of its steps are forced: each step of each branch is 4, 5, ... or 40 tokens long,
drawn evenly by the branch's key, and a solution is over after `LENGTH` tokens. The reward is drawn by the branch's
key too, so that A* goes back as often as it would with a reward it cannot trust, and the particles are resampled.
Trials begin as `bough.bench.evaluate` begins them: either as many at once as it takes to fill the passes (the
default), or a fixed number.

The fill is the number of branches that got a token, over the places for them, in all passes from the first until no
trial was left to begin: after that there is no work to fill the batch with. The summary goes to
`studies/results/batch_fill.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import bough
from bough.bench import Arm, evaluate, trials
from bough.core import Branch, Budget, Draw, OnToken, SampleSpec, Stop, Strategy
from bough.core.noise import child_key
from bough.engine import NativeBackend
from bough.search import AStar, ParticleFilter
from bough.tasks import Problem, get_task

HERE = Path(__file__).parent
SHORTEST, LONGEST = 4, 40
LENGTH = 120  # tokens of a whole solution
STRATEGIES: dict[str, Strategy] = {"astar": AStar(), "particle-filter": ParticleFilter()}


def uniform(key: int, what: int) -> float:
    """A number in [0, 1) that follows from a branch's key."""
    return (child_key(key, what) >> 11) / 2**53


class Forced:
    """Stands before a backend: steps end after so many tokens, whatever they say."""

    def __init__(self, lm: NativeBackend) -> None:
        self.lm = lm
        self.lengths: list[int] = []
        self._submit = lm.submit_sample
        lm.submit_sample = self.submit  # type: ignore[method-assign]

    def submit(
        self, draws: Sequence[Draw], spec: SampleSpec, on_token: OnToken | None = None
    ) -> list[asyncio.Future[Branch]]:
        """Draw each child with a length of its own."""
        found = []
        for draw in draws:
            length = SHORTEST + int(uniform(draw.key, -1) * (LONGEST - SHORTEST + 1))
            self.lengths.append(length)
            found += self._submit([draw], SampleSpec(length, Stop(eos=False), sampling=spec.sampling), on_token)
        return found


class Long:
    """The task: a solution is over when it is long enough, and every one is an answer."""

    name, step_stop, answer_stop = "arithmetic", "\n", None

    def __init__(self, lm: NativeBackend) -> None:
        self.lm = lm

    def extract(self, text: str) -> str | None:
        return text or None

    def is_complete(self, text: str) -> bool:
        return len(self.lm.encode(text)) >= LENGTH

    def check(self, problem: Problem, completion: str) -> bool:
        return self.is_complete(completion)


class Drawn:
    """A reward that knows nothing: a number drawn by the branch's key."""

    name = "drawn"

    async def __call__(self, branches: Sequence[Branch], run: Any) -> list[float]:
        return [uniform(branch.key, -2) for branch in branches]


class Watch:
    """The occupancy when the first trial begins, and when the last one has begun."""

    def __init__(self, lm: NativeBackend, total: int) -> None:
        self.lm, self.total, self.most = lm, total, 0
        self.begun = self.ended = 0
        self.before = self.after = lm.occupancy()

    def begin(self) -> None:
        self.begun += 1
        self.most = max(self.most, self.begun - self.ended)
        if self.begun == self.total:
            self.after = self.lm.occupancy()

    def end(self, record: Any) -> None:
        self.ended += 1


def measure(strategy: Strategy, at_once: int | None, args: argparse.Namespace) -> dict[str, Any]:
    """The fill of one strategy, with so many trials at once."""
    lm = bough.load("bough/nano", max_batch=args.max_batch, threads=args.threads)
    assert isinstance(lm, NativeBackend)
    with lm:
        forced = Forced(lm)
        task = get_task("arithmetic")
        problems = [task.problem("validation", index) for index in range(args.problems)]
        watch = Watch(lm, len(problems))
        branch = lm.branch

        def begin(*given: Any, **options: Any) -> Branch:
            watch.begin()
            return branch(*given, **options)

        arm = Arm(strategy, Budget(tokens=args.tokens))
        todo = trials([arm], problems)
        branch("1+1\n").backend.generate(branch("1+1\n"), n=2, max_tokens=2)  # compiled before the clock runs
        watch.total += 1  # a bench prepares each arm once before anything runs
        watch.before = lm.occupancy()
        forced.lengths.clear()
        lm.branch = begin  # type: ignore[method-assign]
        evaluate(lm, todo, reward=Drawn(), tasks={"arithmetic": Long(lm)}, concurrency=at_once, on_record=watch.end)
        steps = forced.lengths
    return {
        "strategy": strategy.info.name, "at_once": at_once, "most_at_once": watch.most - 1,
        "fill": round(watch.after.fill(watch.before), 3), "passes": watch.after.passes - watch.before.passes,
        "step_tokens": {q: float(np.percentile(steps, p)) for q, p in (("min", 0), ("median", 50), ("max", 100))},
    }  # fmt: skip


def main() -> None:
    """Run, print, and keep the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=250)
    parser.add_argument("--max-batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=400, help="budget of each trial")
    parser.add_argument(
        "--fixed", type=int, default=4, help="trials at once to compare with; of 256 places, 32 is the same share"
    )
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "batch_fill.json")
    args = parser.parse_args()
    rows = []
    for strategy in STRATEGIES.values():
        for at_once in (None, args.fixed):
            rows.append(measure(strategy, at_once, args))
            print(json.dumps(rows[-1]), flush=True)
    summary = {
        "max_batch": args.max_batch, "problems": args.problems, "tokens": args.tokens, "length": LENGTH,
        "steps": [SHORTEST, LONGEST], "rows": rows,
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
