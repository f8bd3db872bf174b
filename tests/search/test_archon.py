"""Archon's layers, on a model that replies by a script, and on the toy language."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from bough.core import (
    Answer,
    Backend,
    Branch,
    Capability,
    Draw,
    InvalidInput,
    OnToken,
    Reward,
    Run,
    SampleSpec,
    UnsupportedError,
    run,
)
from bough.rewards import Verifier
from bough.search import Archon, BestOfN
from executing import execute
from tiny import byte_tokenizer
from toy import ToyBackend, ToyReward

ANSWERS = ["it is 4", "it is 5", "I say 4", "perhaps 6"]


class Scripted(Backend):
    """A model whose reply is a function of the prompt's text and of which child it is."""

    name = "scripted"
    capabilities = frozenset((Capability.SAMPLE,))
    context = 4096
    vocab_size = 257

    def __init__(self, reply: Callable[[str, int], str]) -> None:
        self.tokenizer = byte_tokenizer()
        self.reply = reply
        self.asked: list[str] = []

    def submit_sample(
        self, draws: Sequence[Draw], spec: SampleSpec, on_token: OnToken | None = None
    ) -> list[asyncio.Future[Branch]]:
        futures = []
        for draw in draws:
            text = draw.parent.text
            self.asked.append(text)
            reply = self.reply(text, sum(asked == text for asked in self.asked) - 1)
            tokens = self.encode(reply)[: spec.max_tokens]
            future = asyncio.get_running_loop().create_future()
            values = np.zeros(len(tokens), np.float32)
            future.set_result(Branch(self, draw.parent, tokens, draw.key, logprobs=values, finish="eos"))
            futures.append(future)
        return futures

    def submit_score(self, *_: Any) -> Any:
        raise AssertionError("nothing is scored")

    submit_next_token = submit_logits = submit_score


class Numbers:
    """The task of saying a number."""

    name, step_stop, answer_stop = "numbers", "\n", None

    def extract(self, text: str) -> str | None:
        return found[-1] if (found := re.findall(r"\d", text)) else None

    def is_complete(self, text: str) -> bool:
        return False


def model(**replies: Callable[[str], str]) -> Scripted:
    """Answers the bare question by ANSWERS, and each kind of question about answers as told."""
    marks = {
        "critique": "Name the strengths", "rank": "Order the answers", "fuse": "Write one answer",
        "verify": "Check this answer", "tests": "statements that are true", "test": "Is the statement true",
    }  # fmt: skip

    def reply(text: str, child: int) -> str:
        for name, mark in marks.items():
            if mark in text:
                return replies[name](text)
        return ANSWERS[child % len(ANSWERS)]

    return Scripted(reply)


def solve(lm: Backend, *layers: str, reward: Reward | None = None, **models: Backend) -> Answer:
    made = Run(task=Numbers(), reward=reward, models=models)
    return run(made.execute(Archon(layers=layers), lm.branch("What is 2+2?", seed=0)))


def answer_in(text: str) -> str:
    return re.findall(r"Answer:\n(.*?)\n\n", text, re.DOTALL)[0]


def test_one_layer_is_plain_sampling() -> None:
    assert solve(model(), "generate:3").text == "it is 4"


def test_the_reward_keeps_the_best() -> None:
    assert (
        solve(model(), "generate:4", "reward:1", reward=Verifier(lambda text: float("6" in text))).text == "perhaps 6"
    )


def test_the_vote_keeps_the_most_frequent_answer() -> None:
    answer = solve(model(), "generate:4", "vote:1")
    assert answer.text == "it is 4" and answer.ledger.reward_calls == 0


def test_the_model_orders_the_candidates() -> None:
    lm = model(rank=lambda text: "2, 4, 9, 2")
    assert solve(lm, "generate:4", "rank:2").text == "it is 5"
    assert all(f"Answer {i}:\n{answer}" in lm.asked[-1] for i, answer in enumerate(ANSWERS, 1))
    assert solve(model(rank=lambda text: "no idea"), "generate:4", "rank:2").text == "it is 4"


def test_critiques_are_shown_to_the_layers_that_follow() -> None:
    lm = model(critique=lambda text: f"I doubt <{answer_in(text)}>", rank=lambda text: "3")
    assert solve(lm, "generate:4", "critique", "rank:1").text == "I say 4"
    for number, answer in enumerate(ANSWERS, 1):
        assert f"Critique of answer {number}:\nI doubt <{answer}>" in lm.asked[-1]


def test_candidates_are_fused() -> None:
    answer = solve(model(fuse=lambda text: "all in all 4"), "generate:4", "fuse:2")
    assert answer.text == "all in all 4"


def test_candidates_that_fail_verification_are_dropped_unless_all_do() -> None:
    def verify(text: str) -> str:
        return f"Let me see. Verdict: {'correct' if '5' in answer_in(text) else 'incorrect'}"

    assert solve(model(verify=verify), "generate:4", "verify").text == "it is 5"
    assert solve(model(verify=lambda text: "Verdict: incorrect"), "generate:4", "verify").text == "it is 4"


def test_candidates_that_pass_most_tests_come_first() -> None:
    def test(text: str) -> str:
        statement = re.findall(r"Statement: (.*)", text)[0]
        return "Yes." if statement.split()[-1] in answer_in(text) else "no"

    lm = model(tests=lambda text: "It contains 6\nIt contains perhaps\nIt contains it", test=test)
    assert solve(lm, "generate:4", "tests:3").text == "perhaps 6"


def test_other_models_take_part_by_name() -> None:
    other = Scripted(lambda text, child: "the other says 7")
    answer = solve(
        model(), "generate:2", "generate:1@other", "reward:1", reward=Verifier(lambda t: "7" in t), other=other
    )
    assert answer.text == "the other says 7" and other.asked == ["What is 2+2?"]
    with pytest.raises(InvalidInput, match="no model 'big'.*other"):
        solve(model(), "generate:1@big", other=other)


def test_a_prompt_that_leaves_no_room_names_the_remedy() -> None:
    lm = model(rank=lambda text: "1")
    lm.context = 120
    with pytest.raises((UnsupportedError, InvalidInput), match="120"):
        solve(lm, "generate:4", "rank:1")


def test_any_strategy_of_the_gallery_is_a_layer() -> None:
    backend = ToyBackend()
    answer, recorded = run(execute(Archon(layers=("best-of-n:3", "reward:1")), backend))
    own = [run(execute(BestOfN(), backend, "ab?", seed))[0].score for seed in range(1)]
    assert answer.score is not None and own[0] is not None
    assert answer.ledger.reward_calls == 3 * 16 + 3
    # The answer is the best of the three runs' answers.
    assert answer.score == max(p.score for p in recorded.proposals if p.score is not None)


def test_runs_of_one_strategy_have_noise_of_their_own() -> None:
    async def texts() -> list[str]:
        made = Run(reward=ToyReward())
        prompt = ToyBackend().branch("ab?", seed=0).with_run(made)
        found = [await made.nested(BestOfN(n=1), branch) for branch in prompt.fork(8)]
        return [leaf.completion for leaf in found if leaf is not None]

    assert len(set(run(texts()))) > 1


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ((), "first one"),
        (("reward:1",), "first one has to generate"),
        (("generate:0",), "generate:0"),
        (("generate:2", "dream"), "no layer 'dream'"),
        (("archon",), "no layer 'archon'"),
        (("Generate 2",), "name:count"),
    ],
)
def test_architectures_that_make_no_sense_are_refused(layers: tuple[str, ...], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        Archon(layers=layers)


def test_it_needs_what_its_layers_need() -> None:
    assert not Archon(layers=("generate:2", "vote:1")).info.needs_reward
    assert Archon(layers=("generate:2", "reward:1")).info.needs_reward
    assert Archon(layers=("astar:2", "vote:1")).info.needs_reward
    assert Capability.LOGPROBS in Archon(layers=("astar:2", "vote:1")).info.requires
