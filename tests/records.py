"""A record of a trial, as a bench writes it."""

from __future__ import annotations


def record(index=0, seed=0, *, strategy="astar", n=4, budget=None, task="arithmetic", correct=True, tokens=100):
    return {
        "task": task, "level": 4, "split": "test", "index": index, "seed": seed, "strategy": strategy,
        "params": {"n": n, "temperature": 1.0}, "budget": budget or {}, "model": "toy@1234", "reward": "prm",
        "correct": correct, "score": 0.5, "tokens": tokens, "computed_tokens": 2 * tokens, "passes": 10,
        "reward_calls": 0 if strategy == "greedy" else tokens // 10, "reward_tokens": 7, "seconds": 0.5,
        "stopped_by": "tokens" if budget else None, "answer": "1", "text": "answer 1\n",
    }  # fmt: skip
