"""The reward of a model with a token that rejects: the probability that nothing written is rejected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from bough.core import Branch, Capability, Run, UnsupportedError, run
from bough.rewards import RejectionReward, StepReject, from_backend
from bough.search import AStar
from toy import EOS, SYMBOLS, ToyBackend, ToyTokenizer, noise_model

REJECT = SYMBOLS.index("-")


class RewardModel(ToyBackend):
    """A reward model that remembers what it was asked: each prefix with what follows it."""

    name = "toy-reject"

    def __init__(self, **options: Any) -> None:
        super().__init__(noise_model, **options)
        self.asked: list[tuple[str, str]] = []

    def submit_score(self, branch: Branch, continuations: Sequence[Sequence[int]], others: Sequence[int] = ()) -> Any:
        self.asked += [(branch.text, self.decode(tokens)) for tokens in continuations]
        return super().submit_score(branch, continuations, others)


def kept(text: str, prompt: str = "a?") -> float:
    """The reward of a text below a prompt, by its definition."""
    tokens, start, product = ToyTokenizer().encode(prompt + text), len(prompt), 1.0
    for end in range(start, len(tokens)):
        p = noise_model(tuple(tokens[:end]))
        product *= p[tokens[end]] / (p[tokens[end]] + p[REJECT])
    return float(product)


def reward_of(model: ToyBackend, **options: Any) -> RejectionReward:
    return RejectionReward(model, StepReject(reject="-"), **options)


def written(text: str, prompt: str = "a?") -> Branch:
    root = ToyBackend().branch(prompt)
    return root + text if text else root


def test_it_is_the_product_over_all_tokens_of_the_solution() -> None:
    texts = ["ab\n", "ab\nc\n", "c\nb\n", "ab\n"]
    model = RewardModel()
    assert run(reward_of(model)([written(text) for text in texts], Run())) == pytest.approx([kept(t) for t in texts])
    assert len(model.asked) == 3, "the same text is asked once"


def test_an_open_step_is_judged_by_the_tokens_that_it_has() -> None:
    texts = ["ab\nc", "ab\n", "a"]
    found = run(reward_of(RewardModel(), open_ended=True)([written(text) for text in texts], Run()))
    assert found == pytest.approx([kept(text) for text in texts])
    as_if_ended = run(reward_of(RewardModel())([written(text) for text in texts], Run()))
    assert as_if_ended == pytest.approx([kept("ab\nc\n"), kept("ab\n"), kept("a\n")])


def test_every_step_has_a_score_and_none_is_above_the_one_before() -> None:
    scores = run(reward_of(RewardModel()).steps(written("ab\nc\nb\n"), Run()))
    assert scores == pytest.approx([kept("ab\n"), kept("ab\nc\n"), kept("ab\nc\nb\n")])
    assert scores == sorted(scores, reverse=True)


def test_a_new_step_costs_its_own_tokens_only() -> None:
    model = RewardModel()
    reward = reward_of(model)
    branch = written("")
    for line in ("ab\n", "c\n", "b\n"):
        branch = branch + line
        run(reward([branch], Run()))
    assert model.asked == [("a?", "ab\n"), ("a?ab\n", "c\n"), ("a?ab\nc\n", "b\n")]
    assert run(reward([branch], Run())) == pytest.approx([kept("ab\nc\nb\n")])
    assert len(model.asked) == 3


def test_memory_is_bounded_and_forgetting_changes_no_score() -> None:
    reward = reward_of(RewardModel(), memory=2)
    branches = [written(text) for text in ("a\nc\n", "b\n", "c\n", "ab\n", "a\n")]
    first = run(reward(branches, Run()))
    assert len(reward._scores) == 2
    assert run(reward(branches, Run())) == pytest.approx(first)


def test_without_any_step_there_is_nothing_to_reject() -> None:
    model = RewardModel()
    assert run(reward_of(model)([written("")], Run())) == [1.0]
    assert not model.asked


def test_an_unfinished_step_is_judged_as_if_it_ended_there_and_the_end_of_text_is_none() -> None:
    reward = reward_of(RewardModel())
    assert run(reward([written("ab\nc"), written("c\n") + [EOS]], Run())) == pytest.approx(
        [kept("ab\nc\n"), kept("c\n")]
    )


def test_another_tokenizer_is_reached_through_text() -> None:
    class Shifted(ToyTokenizer):
        def encode(self, text: str, add_special: bool = False) -> list[int]:
            return [(token + 3) % 8 for token in super().encode(text)]

        def decode(self, ids: Sequence[int]) -> str:
            return super().decode([(token - 3) % 8 for token in ids])

        def token_bytes(self, token: int) -> bytes:
            return self.decode([token]).encode()

    generator = ToyBackend()
    generator.tokenizer = Shifted()
    branch = generator.branch("a\n") + "ab\nc\n"
    assert run(reward_of(RewardModel())([branch], Run())) == pytest.approx([kept("ab\nc\n", prompt="a\n")])


def test_a_text_cut_by_its_own_context_scores_zero_where_no_step_end_fits() -> None:
    branch = ToyBackend(context=6).branch("a?") + "abca"
    assert run(reward_of(RewardModel(context=6))([branch], Run())) == [0.0]
    assert run(reward_of(RewardModel(context=1))([branch], Run())) == [0.0], "not even the prompt fits"


def test_the_work_is_charged_to_reward_tokens_and_a_search_runs_on_it() -> None:
    made = Run(reward=reward_of(RewardModel()))
    answer = run(made.execute(AStar(), ToyBackend().branch("ab?")))
    assert answer.ledger.reward_calls > 0
    assert answer.score == pytest.approx(kept(answer.text, prompt="ab?"))


def test_probabilities_survive_extreme_logits() -> None:
    pairs = np.array([[0.0, -1e4], [-1e4, 0.0], [-1e4, -1e4]], np.float32)
    assert StepReject().read(ToyTokenizer(), pairs).tolist() == [1.0, 0.0, 0.5]


def test_the_config_names_the_token_and_what_cannot_score_is_refused() -> None:
    config = {"architectures": ["LlamaForCausalLM"], "process_reward": {"step_tag": "\n", "reject": "-"}}
    reward = from_backend(RewardModel(), config)
    assert isinstance(reward, RejectionReward) and reward.format == StepReject(tag="\n", reject="-")
    with pytest.raises(UnsupportedError, match=r"'\+\+' is 2 tokens"):
        from_backend(RewardModel(), {}, reject="++")
    silent = RewardModel()
    silent.capabilities = frozenset({Capability.SAMPLE, Capability.NEXT_TOKEN})
    with pytest.raises(UnsupportedError, match="log-probabilities of given continuations"):
        reward_of(silent)
