"""What votes and stopping rules save, on a bank of stored samples.

    python studies/samples.py         # first: draws the bank
    python studies/votes.py           # minutes; results/votes.json
    python studies/votes.py --fit     # prints OptScale's prior, from validation samples

The functions that decide here are those that decide in a run: rules are asked after each sample, in the order of
their index, and the votes are those of the strategies. Whatever has to be chosen is chosen on the validation
problems, as the cheapest setting that loses no more than ``TOLERATED`` there; the numbers are of the test problems.
Differences are paired, with a bootstrap over problems.

- RPC against self-consistency, by the number of samples.
- Stopping rules: best-of-16 and self-consistency of 16, against the same with a rule.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from samples import SCRATCH, TASKS, Samples, load_samples

from bough.bench.stats import accuracy, paired_bootstrap
from bough.core import Solution, StoppingRule
from bough.search import AdaptiveConsistency, EarlyStoppingConsistency, OptScale, Patience, ScoreThreshold
from bough.search.optscale import fit_prior
from bough.search.rpc import distinct, pruned
from bough.search.vote import winner

HERE = Path(__file__).parent
SIZES = (4, 8, 16, 32, 64)
FIXED = 16
TOLERATED = 0.005  # on validation, where the claim allows 0.01


def named(answers: Sequence[int]) -> list[str | None]:
    """Answers as votes take them."""
    return [None if answer < 0 else str(answer) for answer in answers]


# Votes ---------------------------------------------------------------------------------------------------------


def voted(bank: Samples, n: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Whether the vote of the first n samples is right, bool ``[problems]``."""
    right = []
    for row, answers in enumerate(bank.answer):
        won = winner(named(answers[:n]), None if weights is None else weights[row].tolist())
        right.append(bank.right[row, 0 if won is None else won[0]])
    return np.array(right)


def rpc_weights(bank: Samples, n: int, prune: bool, mean: bool) -> np.ndarray:
    """What each of the first n samples weighs in RPC's vote, ``[problems, n]``."""
    logprob = (bank.logprob / bank.tokens if mean else bank.logprob)[:, :n]
    first = np.array([distinct(row) for row in bank.path[:, :n].tolist()])
    relative = logprob - logprob.max(-1, keepdims=True)
    kept = first & ~pruned(relative, first) if prune else first
    return np.where(kept, np.exp(relative), 0.0)


VOTES: dict[str, Callable[[Samples, int], np.ndarray | None]] = {
    "self-consistency": lambda bank, n: None,
    "rpc": lambda bank, n: rpc_weights(bank, n, prune=True, mean=False),
    "rpc prune=False": lambda bank, n: rpc_weights(bank, n, prune=False, mean=False),
    "rpc probability=mean": lambda bank, n: rpc_weights(bank, n, prune=True, mean=True),
    "confidence=mean": lambda bank, n: np.exp(bank.logprob / bank.tokens)[:, :n],
    "confidence=tail window=16": lambda bank, n: np.exp(bank.tail_logprob)[:, :n],
    "confidence=bottom window=1": lambda bank, n: np.exp(bank.min_logprob)[:, :n],
}


def votes(banks: Sequence[Samples]) -> dict[str, Any]:
    """Accuracy of every vote at every size, and RPC with half of the samples against self-consistency."""
    problems = problem_of(banks)
    right = {
        (name, n): np.concatenate([voted(bank, n, weigh(bank, n)) for bank in banks])
        for name, weigh in VOTES.items()
        for n in SIZES
    }
    cells = {f"{name}, {n}": accuracy(problems, column).to_dict() for (name, n), column in right.items()}
    against = right["self-consistency", 64]
    differences = {
        f"{name}, {n} less self-consistency, 64": paired_bootstrap(problems, column, against).to_dict()
        for (name, n), column in right.items()
        if name.startswith("rpc") and n >= 8
    }
    return {"accuracy": cells, "differences": differences}


# Stopping ------------------------------------------------------------------------------------------------------


def best_of(bank: Samples, counts: Sequence[int]) -> np.ndarray:
    """Whether the best of so many samples of each problem is right, as `BestOfN` chooses."""
    right = []
    for row, n in enumerate(counts):
        best = max(range(n), key=lambda i: (bank.answer[row, i] >= 0, bank.score[row, i], -int(bank.key[row, i])))
        right.append(bank.right[row, best])
    return np.array(right)


def vote_of(bank: Samples, counts: Sequence[int]) -> np.ndarray:
    """The same of a vote."""
    right = []
    for row, n in enumerate(counts):
        won = winner(named(bank.answer[row, :n]))
        right.append(bank.right[row, 0 if won is None else won[0]])
    return np.array(right)


def counts_of(bank: Samples, rule: StoppingRule) -> list[int]:
    """How many samples the rule sees of each problem."""
    return [
        rule.stops_at(
            Solution(answer, score if answer is not None else None)
            for answer, score in zip(named(row[:FIXED]), scores[:FIXED].tolist(), strict=True)
        )
        for row, scores in zip(bank.answer, bank.score, strict=True)
    ]


TARGETS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
RULES: dict[str, tuple[Callable[[Samples, Sequence[int]], np.ndarray], list[StoppingRule]]] = {
    "optscale": (best_of, [OptScale(t, c) for t in TARGETS for c in (0.8, 0.95)]),
    "optscale reached=False": (best_of, [OptScale(t, c, reached=False) for t in TARGETS for c in (0.5, 0.8, 0.95)]),
    "score-threshold": (best_of, [ScoreThreshold(t) for t in TARGETS]),
    "patience": (best_of, [Patience(k) for k in (1, 2, 3, 4, 6, 8)]),
    "adaptive-consistency": (vote_of, [AdaptiveConsistency(c) for c in (0.7, 0.8, 0.9, 0.95, 0.99)]),
    "early-stopping-consistency": (vote_of, [EarlyStoppingConsistency(w) for w in (2, 3, 4, 5, 8)]),
}


def stopping(test: Sequence[Samples], validation: Samples) -> dict[str, Any]:
    """Each rule's cheapest setting by validation, on the test problems against 16 samples."""
    problems = problem_of(test)
    found: dict[str, Any] = {"oracles": oracles(test)}
    for name, (choose, rules) in RULES.items():
        full = choose(validation, [FIXED] * len(validation.answer)).mean()
        tried = [(float(np.mean(c)), i) for i, c in enumerate(counts_of(validation, rule) for rule in rules)]
        fine = [
            (spent, i)
            for spent, i in tried
            if choose(validation, counts_of(validation, rules[i])).mean() >= full - TOLERATED
        ]
        if not fine:
            found[name] = {"none is within the tolerance on validation": True}
            continue
        rule = rules[min(fine)[1]]
        counts = [counts_of(bank, rule) for bank in test]
        ours = np.concatenate([choose(bank, c) for bank, c in zip(test, counts, strict=True)])
        fixed = np.concatenate([choose(bank, [FIXED] * len(bank.answer)) for bank in test])
        spent = np.concatenate(counts)
        tokens = np.concatenate(
            [
                np.cumsum(bank.tokens, 1)[np.arange(len(c)), np.array(c) - 1]
                for bank, c in zip(test, counts, strict=True)
            ]
        )
        whole = np.concatenate([bank.tokens[:, :FIXED].sum(1) for bank in test])
        found[name] = {
            "rule": rule.describe(),
            "accuracy": float(ours.mean()),
            "of 16": float(fixed.mean()),
            "difference": paired_bootstrap(problems, ours, fixed).to_dict(),
            "samples": float(spent.mean()),
            "share of samples": paired_bootstrap(problems, spent, np.full(len(spent), FIXED), "ratio").to_dict(),
            "share of tokens": paired_bootstrap(problems, tokens, whole, "ratio").to_dict(),
        }
    return found


def oracles(test: Sequence[Samples]) -> dict[str, float]:
    """Samples that one would need who knew what is right, with 16 for a problem that none of its 16 solves."""
    first = np.concatenate([np.where(b.right[:, :FIXED].any(1), b.right.argmax(1) + 1, FIXED) for b in test])
    solved = np.concatenate([bank.right[:, :FIXED].any(1) for bank in test])
    return {
        "first that is right, else 16": float(first.mean()),
        "first that is right, else 1": float(np.where(solved, first, 1).mean()),
        "solved by 16": float(solved.mean()),
    }


def problem_of(banks: Sequence[Samples]) -> np.ndarray:
    """The problem of each trial, over all seeds."""
    return np.concatenate([np.arange(len(bank.answer)) for bank in banks])


def main() -> None:
    """Print, and keep the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--parts", nargs="+", default=["votes", "stopping"])
    parser.add_argument("--folder", type=Path, default=SCRATCH)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "votes.json")
    parser.add_argument("--fit", action="store_true", help="print OptScale's prior and leave")
    args = parser.parse_args()
    if args.fit:
        scores = {task: load_samples(task, "validation", 0, args.folder).score for task in args.tasks}
        for task, rows in scores.items():
            print(task, fit_prior(rows))
        print("all", fit_prior(np.concatenate(list(scores.values()))))
        return
    results: dict[str, Any] = {}
    for task in args.tasks:
        test = [load_samples(task, "test", seed, args.folder) for seed in range(args.seeds)]
        validation = load_samples(task, "validation", 0, args.folder)
        results[task] = {}
        if "votes" in args.parts:
            results[task]["votes"] = votes(test)
        if "stopping" in args.parts:
            results[task]["stopping"] = stopping(test, validation)
        print(task, json.dumps(results[task], indent=1), flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
