"""Outcome rewards from code."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bough.core import Branch, InvalidInput, RewardError, Run, run
from bough.rewards import Oracle, Verifier
from bough.search import BestOfN
from bough.tasks import get_task
from executing import execute
from toy import ToyBackend


def branches(*texts: str) -> list[Branch]:
    root = ToyBackend().branch("a?")
    return [root + text for text in texts]


def test_verdicts_are_numbers() -> None:
    def has_b(text: str) -> bool:
        return "b" in text

    verifier = Verifier(has_b)
    assert verifier.name == "has_b"
    assert run(verifier(branches("ab\n", "c\n"), Run())) == [1.0, 0.0]
    assert run(Verifier(lambda text: len(text) / 10)(branches("ab\n", "c\n"), Run())) == [0.3, 0.2]


def test_a_check_may_ask_for_the_branch() -> None:
    assert run(Verifier(lambda branch: branch.length, on="branch", name="length")(branches("ab\n"), Run())) == [5.0]


def test_checks_that_wait_wait_together() -> None:
    waiting = 0
    all_here = asyncio.Event()

    async def check(text: str) -> bool:
        nonlocal waiting
        waiting += 1
        if waiting == 3:
            all_here.set()
        await asyncio.wait_for(all_here.wait(), 5)
        return text == "b\n"

    assert run(Verifier(check)(branches("a\n", "b\n", "c\n"), Run())) == [0.0, 1.0, 0.0]


def test_a_verdict_that_is_no_number_is_an_error() -> None:
    with pytest.raises(RewardError, match="check says.*return True, False or a number"):
        run(Verifier(lambda text: None, name="says")(branches("a\n"), Run()))  # type: ignore[arg-type, return-value]
    with pytest.raises(InvalidInput, match="tokens"):
        Verifier(bool, on="tokens")  # type: ignore[arg-type]


def test_best_of_n_with_a_verifier_finds_what_verifies() -> None:
    for seed in range(5):
        answer, _ = run(execute(BestOfN(n=30), ToyBackend(), seed=seed, reward=Verifier(lambda text: "cc" in text)))
        leaves = run(ToyBackend().branch("ab?", seed=seed).sample(30))
        possible = any("cc" in leaf.completion for leaf in leaves)
        assert ("cc" in answer.text) == possible and answer.score == float(possible)


class Spelling(ToyBackend):
    """A backend for any text, a byte a token."""

    vocab_size = 256

    class Bytes:
        vocab_size, bos_id, eos_ids = 256, None, frozenset((0,))

        def encode(self, text: str, add_special: bool = False) -> list[int]:
            return list(text.encode())

        def decode(self, ids: Any) -> str:
            return bytes(token for token in ids if token).decode()

        def token_bytes(self, token: int) -> bytes:
            return bytes([token] if token else [])

        def chat(self, messages: Any, add_generation_prompt: bool = True) -> list[int]:
            raise NotImplementedError

    def __init__(self) -> None:
        super().__init__(context=500)
        self.tokenizer = self.Bytes()  # type: ignore[assignment]


@pytest.mark.parametrize("name", ["arithmetic", "countdown", "stories", "logic"])
def test_the_oracle_follows_a_solution_step_by_step(name: str) -> None:
    task = get_task(name)
    problem = task.problem("validation", 0)
    oracle, made = Oracle(task, problem), Run(task=task)
    state = Spelling().branch(problem.prompt)
    for line in problem.solution.splitlines(keepends=True):
        state = state + line
        assert run(oracle([state], made)) == [1.0]
    assert run(oracle([state + [0]], made)) == [1.0], "unfinished branches of a whole solution"
    wrong = Spelling().branch(problem.prompt) + "nonsense\n"
    assert run(oracle([wrong, wrong + problem.solution], made)) == [0.0, 0.0]
