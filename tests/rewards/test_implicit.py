"""The implicit reward of a pair of models: the log-ratio of two enumerable ones, by its definition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest

from bough.core import Branch, Capability, InvalidInput, Run, UnsupportedError, run
from bough.rewards import ImplicitReward
from bough.search import TreeBoN
from executing import execute, native_backend
from toy import ToyBackend, ToyReward, ToyTokenizer, noise_model

PROMPT = "a?"
policy_model, reference_model = partial(noise_model, seed=1), partial(noise_model, seed=2)


class Model(ToyBackend):
    """Remembers what it was asked: each prefix with what follows it."""

    def __init__(self, model: Any, name: str) -> None:
        super().__init__(model)
        self.name = name
        self.asked: list[tuple[str, str]] = []

    def submit_score(self, branch: Branch, continuations: Sequence[Sequence[int]], others: Sequence[int] = ()) -> Any:
        self.asked += [(branch.text, self.decode(tokens)) for tokens in continuations]
        return super().submit_score(branch, continuations, others)


def pair() -> tuple[Model, Model]:
    return Model(policy_model, "policy"), Model(reference_model, "reference")


def written(text: str) -> Branch:
    root = ToyBackend().branch(PROMPT)
    return root + text if text else root


def ratios(text: str) -> list[float]:
    tokens, start = ToyTokenizer().encode(PROMPT + text), len(PROMPT)
    return [
        math.log(policy_model(tuple(tokens[:end]))[tokens[end]] / reference_model(tuple(tokens[:end]))[tokens[end]])
        for end in range(start, len(tokens))
    ]


def test_it_is_the_log_ratio_of_what_was_written() -> None:
    texts = ["ab\nc", "c\n", "", "ab\nc"]
    policy, reference = pair()
    found = run(ImplicitReward(policy, reference, beta=0.3)([written(text) for text in texts], Run()))
    assert found == pytest.approx([0.3 * sum(ratios(text)) for text in texts], rel=1e-5)
    assert policy.asked == reference.asked == [("a?", "ab\nc"), ("a?", "c\n")], "the same text is asked once"
    each = run(ImplicitReward(policy, reference, beta=0.3).tokens(written("ab\nc"), Run()))
    assert each == pytest.approx(0.3 * np.array(ratios("ab\nc")), rel=1e-5)


def test_inverse_weights_divide_by_the_place() -> None:
    reward = ImplicitReward(*pair(), beta=1.0, weights="inverse")
    expected = sum(ratio / place for place, ratio in enumerate(ratios("cab\nb"), start=1))
    assert run(reward([written("cab\nb")], Run())) == pytest.approx([expected], rel=1e-5)
    # Also where the places before were judged earlier.
    again = ImplicitReward(*pair(), beta=1.0, weights="inverse")
    run(again([written("cab\n")], Run()))
    assert run(again([written("cab\n") + "b"], Run())) == pytest.approx([expected], rel=1e-5)


def test_a_longer_branch_costs_its_own_tokens_only_and_memory_is_bounded() -> None:
    policy, reference = pair()
    reward = ImplicitReward(policy, reference, memory=2)
    branch = written("")
    for text in ("ab", "\nc", "\n"):
        branch = branch + text
        [score] = run(reward([branch], Run()))
    assert policy.asked == reference.asked == [("a?", "ab"), ("a?ab", "\nc"), ("a?ab\nc", "\n")]
    assert score == pytest.approx(0.1 * sum(ratios("ab\nc\n")), rel=1e-5)
    assert len(reward._sums) == 2
    run(reward([written("ab")], Run()))
    assert policy.asked[-1] == ("a?", "ab"), "it was forgotten, and is asked again"


def test_a_prompt_that_ends_elsewhere_is_another_text() -> None:
    reward = ImplicitReward(*pair(), weights="inverse", beta=1.0)
    longer = ToyBackend().branch("a?b") + "c\n"
    shorter = ToyBackend().branch("a?") + "bc\n"
    found = run(reward([longer, shorter], Run()))
    all_three = ratios("bc\n")
    assert found[1] == pytest.approx(all_three[0] + all_three[1] / 2 + all_three[2] / 3, rel=1e-5)
    assert found[0] == pytest.approx(all_three[1] + all_three[2] / 2, rel=1e-5)


def test_what_the_policy_drew_itself_is_not_computed_again() -> None:
    reference = Model(reference_model, "reference")
    policy = Model(ToyBackend().model, "policy")
    [leaf] = run(policy.branch(PROMPT).sample())
    made = Run()
    [score] = run(ImplicitReward(policy, reference, beta=1.0)([leaf], made))
    assert not policy.asked and len(reference.asked) == 1
    tokens = leaf.tokens
    expected = sum(
        math.log(policy.model(tuple(tokens[:end]))[tokens[end]] / reference_model(tuple(tokens[:end]))[tokens[end]])
        for end in range(len(PROMPT), len(tokens))
    )
    assert score == pytest.approx(expected, rel=1e-4)


def test_on_the_engine_it_is_the_same_whatever_is_cached_and_is_charged_to_the_reward() -> None:
    with native_backend(None) as policy, native_backend(1) as reference, native_backend(None) as generator:
        leaves = run(generator.branch(PROMPT).sample(4, max_tokens=6))
        made = Run()
        reward = ImplicitReward(policy, reference)
        # The three are the same model, so every log-ratio is zero: but for rounding.
        assert run(reward(leaves, made)) == pytest.approx([0.0] * 4, abs=1e-5)
        assert made.ledger.reward_tokens > 0 and made.ledger.tokens == made.ledger.computed_tokens == 0
        scored = policy.score(leaves[0].root, [leaves[0].appended])[0]
        assert scored == pytest.approx(leaves[0].logprobs, abs=1e-5)


def test_whole_solutions_can_have_another_judge() -> None:
    reward = ImplicitReward(*pair(), final=ToyReward(lambda tokens: 7.0))
    whole = written("a\n") + [0]
    ended = Branch(whole.backend, whole.parent, whole.appended, whole.key, finish="eos")
    found = run(reward([written("a\n"), ended], Run()))
    assert found == pytest.approx([0.1 * sum(ratios("a\n")), 7.0], rel=1e-5)


def test_it_guides_a_tree_search() -> None:
    reward = ImplicitReward(*pair(), weights="inverse", final=ToyReward())
    answer, _ = run(execute(TreeBoN(n=8, max_tokens=12), ToyBackend(), reward=reward))
    assert answer.branch is not None and answer.branch.finished and answer.score is not None


def test_what_cannot_be_a_pair_is_refused() -> None:
    policy, reference = pair()
    for bad in ({"beta": 0.0}, {"beta": math.nan}, {"weights": "linear"}, {"memory": 0}):
        with pytest.raises(InvalidInput, match=str(next(iter(bad.values())))):
            ImplicitReward(policy, reference, **bad)  # type: ignore[arg-type]
    reference.vocab_size += 1
    with pytest.raises(UnsupportedError, match=r"reference and policy .*vocabular"):
        ImplicitReward(policy, reference)
    policy.capabilities = frozenset({Capability.SAMPLE})
    with pytest.raises(UnsupportedError, match="policy.*SCORE"):
        ImplicitReward(policy, reference)
