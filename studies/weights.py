"""What rounding the weights costs: perplexity of held-out text with bf16, int8 and int4 weights, against fp32.

    python studies/weights.py                     # about three minutes on one core
    python studies/weights.py --problems 10       # a quick look

The text is the worked solutions of validation problems, given their prompts. All precisions read the same tokens, so
that differences are per token; intervals are 95 %, from a bootstrap over problems. The Kullback-Leibler divergence
from fp32's distribution at each token says more than the perplexity where the text is nearly certain. The summary
goes to `studies/results/weights.json`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import bough
from bough.bench.stats import paired_bootstrap
from bough.core import Backend
from bough.tasks import TASKS, Problem, get_task

HERE = Path(__file__).parent
REFERENCE = "fp32"
PRECISIONS = ("bf16", "int8", "int4")


def log_probabilities(lm: Backend, problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of a problem's solution and of its end ``[T]``, and the log-probabilities there ``[T, V]``."""
    assert lm.tokenizer is not None
    prompt = lm.branch(problem.prompt).tokens
    solution = [*lm.tokenizer.encode(problem.solution), min(lm.tokenizer.eos_ids)]
    logits = lm.logits(lm.branch([*prompt, *solution]))[len(prompt) - 1 : -1].astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    return np.array(solution), logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def measure(lm: Backend, exact: Backend, problems: Sequence[Problem]) -> list[dict[str, np.ndarray]]:
    """For each problem and token: the losses [T] of both in nats, the divergence, and whether the likeliest agree."""
    rows = []
    for problem in problems:
        tokens, p = log_probabilities(exact, problem)
        _, q = log_probabilities(lm, problem)
        at = np.arange(len(tokens)), tokens
        rows.append(
            {
                "exact": -p[at],
                "loss": -q[at],
                "divergence": (np.exp(p) * (p - q)).sum(-1),
                "agrees": p.argmax(-1) == q.argmax(-1),
            }
        )
    return rows


def summarise(rows: Sequence[dict[str, np.ndarray]]) -> dict[str, Any]:
    """Perplexities, and their ratio with its interval, from the paired differences of the tokens' losses."""
    problems = np.repeat(np.arange(len(rows)), [len(row["loss"]) for row in rows])
    loss, exact, divergence, agrees = (
        np.concatenate([row[name] for row in rows]) for name in ("loss", "exact", "divergence", "agrees")
    )
    difference = paired_bootstrap(problems, loss, exact).to_dict()
    return {
        "tokens": len(loss),
        "perplexity": round(float(np.exp(loss.mean())), 5),
        "exact_perplexity": round(float(np.exp(exact.mean())), 5),
        "perplexity_ratio": {name: round(float(np.exp(value)), 5) for name, value in difference.items()},
        "divergence": {
            name: round(value, 6)
            for name, value in paired_bootstrap(problems, divergence, np.zeros_like(divergence)).to_dict().items()
        },
        "agreement": round(float(agrees.mean()), 5),
    }


def main() -> None:
    """Measure, print, and keep the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--problems", type=int, default=400, help="validation problems of each task")
    parser.add_argument("--model", default="bough/nano")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "weights.json")
    args = parser.parse_args()
    problems = [get_task(name).problem("validation", index) for name in args.tasks for index in range(args.problems)]
    summary: dict[str, Any] = {"model": args.model, "tasks": args.tasks, "problems": args.problems}
    with bough.load(args.model, weights=REFERENCE, device="cpu") as exact:
        for weights in PRECISIONS:
            with bough.load(args.model, weights=weights, device="cpu") as lm:
                rows = measure(lm, exact, problems)
            summary[weights] = {"all": summarise(rows)}
            for name in args.tasks:
                own = [row for row, problem in zip(rows, problems, strict=True) if problem.task == name]
                summary[weights][name] = summarise(own)
            for name, found in summary[weights].items():
                ratio = "{estimate:.4f} [{low:.4f}, {high:.4f}]".format(**found["perplexity_ratio"])
                print(
                    f"{weights:5} {name:11} {found['tokens']:6} tokens, perplexity {found['perplexity']:.4f}, "
                    f"ratio {ratio}, divergence {found['divergence']['estimate']:.5f}, "
                    f"agreement {found['agreement']:.2%}",
                    flush=True,
                )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
