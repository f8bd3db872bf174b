"""Process rewards on a toy reward model: what is asked, where, and how often."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from bough.core import Branch, Budget, Capability, InvalidInput, RewardError, Run, UnsupportedError, run
from bough.rewards import ChatTurns, ProcessReward, StepEnd, StepLabel, StepTag, from_backend
from bough.rewards.process import same_vocabulary
from bough.search import AStar, BestOfN
from toy import EOS, NEWLINE, SYMBOLS, ToyBackend, ToyTokenizer, noise_model

PLUS, MINUS = SYMBOLS.index("+"), SYMBOLS.index("-")


class RewardModel(ToyBackend):
    """A reward model that remembers what it was asked, one list of token sequences per submission."""

    name = "toy-prm"

    def __init__(self, **options: Any) -> None:
        super().__init__(noise_model, **options)
        self.asked: list[list[tuple[int, ...]]] = []

    def submit_next_token(self, branches: Sequence[Branch]) -> Any:
        self.asked.append([tuple(branch.tokens) for branch in branches])
        return super().submit_next_token(branches)


def good(tokens: Sequence[int]) -> float:
    """What the reward model says after these tokens, by the definition of the format."""
    p = noise_model(tuple(tokens))
    return float(p[PLUS] / (p[PLUS] + p[MINUS]))


def ids(text: str) -> list[int]:
    return ToyTokenizer().encode(text)


def written(text: str, prompt: str = "a?", generator: ToyBackend | None = None) -> Branch:
    """A branch with a text below the prompt."""
    return (generator or ToyBackend()).branch(prompt) + text if text else (generator or ToyBackend()).branch(prompt)


def reward_of(model: ToyBackend, **options: Any) -> ProcessReward:
    return ProcessReward(model, StepEnd(), **options)


# Scores --------------------------------------------------------------------------------------------------------


def test_a_step_is_judged_by_the_logits_of_good_and_bad_at_its_tag() -> None:
    model = RewardModel()
    [score] = run(reward_of(model)([written("ab\nc\n")], Run()))
    assert score == pytest.approx(good(ids("a?ab\nc\n")))
    assert model.asked == [[tuple(ids("a?ab\nc\n"))]]


def test_all_branches_of_a_call_go_in_one_submission() -> None:
    model = RewardModel()
    texts = ["a\n", "b\n", "a\nb\n", "a\n"]
    scores = run(reward_of(model)([written(text) for text in texts], Run()))
    assert scores == pytest.approx([good(ids("a?" + text)) for text in texts])
    assert len(model.asked) == 1 and len(model.asked[0]) == 3, "the same text is asked once"


@pytest.mark.parametrize(("aggregate", "function"), [("last", lambda s: s[-1]), ("min", min), ("prod", math.prod)])
def test_aggregates_are_of_the_scores_of_all_steps(aggregate: Any, function: Any) -> None:
    reward = reward_of(RewardModel(), aggregate=aggregate)
    branch = written("ab\nc\nb\n")
    expected = [good(ids("a?ab\n")), good(ids("a?ab\nc\n")), good(ids("a?ab\nc\nb\n"))]
    assert run(reward.steps(branch, Run())) == pytest.approx(expected)
    assert run(reward([branch], Run())) == pytest.approx([function(expected)])


@pytest.mark.parametrize("aggregate", ["min", "prod"])
def test_earlier_steps_are_remembered_so_each_step_costs_one_evaluation(aggregate: Any) -> None:
    model = RewardModel()
    reward = reward_of(model, aggregate=aggregate)
    branch = written("")
    for line in ("ab\n", "c\n", "b\n", "a\n"):
        branch = branch + line
        run(reward([branch], Run()))
    assert [len(call) for call in model.asked] == [1, 1, 1, 1]
    run(reward([branch], Run()))
    assert len(model.asked) == 4


def test_memory_is_bounded_and_forgetting_changes_no_score() -> None:
    model = RewardModel()
    reward = reward_of(model, memory=2)
    branches = [written(text) for text in ("a\n", "b\n", "c\n", "ab\n")]
    first = run(reward(branches, Run()))
    assert len(reward._scores) == 2
    assert run(reward(branches, Run())) == first
    assert len(model.asked) == 2


def test_a_step_that_is_not_over_is_judged_as_if_it_ended_there() -> None:
    model = RewardModel()
    unfinished, over = run(reward_of(model)([written("ab\nc"), written("ab\nc\n")], Run()))
    assert unfinished == over == pytest.approx(good(ids("a?ab\nc\n")))


def test_the_end_of_the_text_is_no_step() -> None:
    generator = ToyBackend()
    state = written("ab\n", generator=generator)
    [ended] = [leaf for leaf in run(state.sample(50, stop="\n")) if leaf.appended == (EOS,)][:1]
    cut_short = written("c", generator=generator) + [EOS]
    model = RewardModel()
    reward = reward_of(model)
    assert run(reward([ended], Run())) == run(reward([state], Run())) == pytest.approx([good(ids("a?ab\n"))])
    assert run(reward([cut_short], Run())) == pytest.approx([good(ids("a?c\n"))])


def test_blank_lines_are_no_steps() -> None:
    reward = reward_of(RewardModel())
    assert len(run(reward.steps(written("a\n\n\nb\n\n"), Run()))) == 2


def test_without_any_step_there_is_nothing_wrong() -> None:
    model = RewardModel()
    reward = reward_of(model, aggregate="prod")
    assert run(reward([written("")], Run())) == [1.0]
    assert run(reward.steps(written(""), Run())) == []
    assert not model.asked


def test_newlines_of_the_prompt_are_no_steps() -> None:
    model = RewardModel()
    run(reward_of(model, aggregate="min")([written("b\n", prompt="a\nc\n?")], Run()))
    assert model.asked == [[tuple(ids("a\nc\n?b\n"))]]


# Tokens --------------------------------------------------------------------------------------------------------


class ShiftedTokenizer(ToyTokenizer):
    """Other ids for the same characters."""

    def encode(self, text: str, add_special: bool = False) -> list[int]:
        return [(SYMBOLS.index(character) + 3) % 8 for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(SYMBOLS[(token - 3) % 8] for token in ids)

    def token_bytes(self, token: int) -> bytes:
        return self.decode([token]).encode()


def test_tokenizers_are_compared_by_what_their_ids_mean() -> None:
    assert same_vocabulary(ToyTokenizer(), ToyTokenizer())
    assert not same_vocabulary(ToyTokenizer(), ShiftedTokenizer())
    assert not same_vocabulary(None, ToyTokenizer())


def test_another_tokenizer_is_reached_through_text() -> None:
    generator, model = ToyBackend(), RewardModel()
    generator.tokenizer = ShiftedTokenizer()
    assert run(reward_of(model)([written("ab\nc\n", generator=generator)], Run())) == pytest.approx(
        [good(ids("a?ab\nc\n"))]
    )
    assert model.asked == [[tuple(ids("a?ab\nc\n"))]]


def test_with_the_same_tokenizer_the_generated_tokens_are_used_unchanged() -> None:
    """No tokenizer would ever write this sequence, so it did not go through text."""
    model = RewardModel()
    branch = written("") + [3, EOS, 4, NEWLINE]
    run(reward_of(model)([branch], Run()))
    assert model.asked == [[(*ids("a?"), 3, EOS, 4, NEWLINE)]]


def test_a_trained_prefix_is_left_out_of_what_is_judged() -> None:
    model, generator = RewardModel(), ToyBackend()
    generator.prefixes = ((len(SYMBOLS), len(SYMBOLS) + 1),)
    branch = generator.branch([len(SYMBOLS), *ids("a?")]) + generator.prefixes[0] + "ab\n"
    run(reward_of(model)([branch], Run()))
    assert model.asked == [[tuple(ids("a?ab\n"))]]


def test_an_inserted_tag_stands_after_every_step() -> None:
    class Spaced(ToyTokenizer):
        def encode(self, text: str, add_special: bool = False) -> list[int]:
            return super().encode(text.replace(" ", ""))

    model = RewardModel()
    model.tokenizer = Spaced()
    reward = ProcessReward(model, StepTag(tag="?"), aggregate="min")
    run(reward([written("ab\nc\n", prompt="b")], Run()))
    assert model.asked == [[tuple(ids("bab?")), tuple(ids("bab?\nc?"))]]
    run(reward([written("a?b\n", prompt="c")], Run()))
    assert model.asked[1] == [tuple(ids("cab?"))], "a tag that the generator wrote itself is no tag"


def test_chat_turns_repeat_the_praise_of_earlier_steps() -> None:
    class Chatty(ToyTokenizer):
        def encode(self, text: str, add_special: bool = False) -> list[int]:
            return super().encode(text.replace(" ", ""))

        def chat(self, messages: Any, add_generation_prompt: bool = True) -> list[int]:
            marks = {"user": "a", "assistant": "b"}
            text = "".join(marks[m["role"]] + m["content"] + "\n" for m in messages)
            return self.encode(text + ("b" if add_generation_prompt else ""))

    model = RewardModel()
    model.tokenizer = Chatty()
    reward = ProcessReward(model, ChatTurns(), aggregate="min")
    scores = run(reward.steps(written("ab\nc\n", prompt="c?"), Run()))
    prefixes = [ids("ac?ab\nb"), ids("ac?ab\nb+\nac\nb")]
    assert model.asked == [[tuple(tokens) for tokens in prefixes]]
    assert scores == pytest.approx([good(tokens) for tokens in prefixes])


def test_labels_are_probabilities_of_one_label() -> None:
    logprobs = np.log(np.array([[0.2, 0.8], [0.7, 0.3]], np.float32))
    assert StepLabel().read(ToyTokenizer(), logprobs) == pytest.approx([0.8, 0.3])
    assert StepLabel(label=0).read(ToyTokenizer(), logprobs) == pytest.approx([0.2, 0.7])
    with pytest.raises(RewardError, match="label=2.*2 labels"):
        StepLabel(label=2).read(ToyTokenizer(), logprobs)


def test_extreme_logits_stay_probabilities() -> None:
    logprobs = np.full((2, 8), -1e4, np.float32)
    logprobs[0, PLUS] = logprobs[1, MINUS] = 0.0
    assert StepEnd().read(ToyTokenizer(), logprobs).tolist() == [1.0, 0.0]


# Costs ---------------------------------------------------------------------------------------------------------


def test_the_rewards_work_is_charged_to_reward_tokens_only() -> None:
    made = Run(reward=reward_of(RewardModel()), budget=Budget(tokens=10_000))
    answer = run(made.execute(AStar(), ToyBackend().branch("ab?")))
    assert answer.ledger.reward_tokens > answer.ledger.reward_calls > 0
    alone = Run(reward=reward_of(RewardModel()))
    leaves = run(ToyBackend().branch("ab?").with_run(alone).sample(3))
    before = alone.ledger.to_dict()
    run(alone.reward(leaves))
    after = alone.ledger.to_dict()
    assert (after["tokens"], after["passes"], after["computed_tokens"]) == tuple(
        before[name] for name in ("tokens", "passes", "computed_tokens")
    )


# Limits --------------------------------------------------------------------------------------------------------


def test_a_solution_longer_than_the_rewards_context_is_an_error_that_says_so() -> None:
    reward = reward_of(RewardModel(context=6))
    assert run(reward([written("abc\n")], Run())) == pytest.approx([good(ids("a?abc\n"))])
    with pytest.raises(InvalidInput, match="7 tokens.*context of 6"):
        run(reward([written("abca\n")], Run()))


def test_a_text_cut_by_its_own_context_scores_zero_where_no_tag_fits() -> None:
    generator = ToyBackend(context=6)
    branch = written("abca", generator=generator)
    assert branch.finished
    assert run(reward_of(RewardModel(context=6))([branch], Run())) == [0.0]


def test_best_of_n_rises_with_a_process_reward_that_knows() -> None:
    """Through the whole chain: a reward model that says + after texts without b makes those win."""

    def knows(tokens: tuple[int, ...], seed: int = 0) -> np.ndarray:
        p = np.full(8, 0.01)
        p[MINUS if SYMBOLS.index("b") in tokens[2:] else PLUS] = 0.93
        return p

    model = RewardModel()
    model.model = knows
    for seed in range(5):
        made = Run(reward=reward_of(model))
        answer = run(made.execute(BestOfN(n=30), ToyBackend().branch("a?", seed=seed)))
        leaves = run(ToyBackend().branch("a?", seed=seed).sample(30))
        assert any("b" in leaf.completion for leaf in leaves)
        assert ("b" in answer.text) == all("b" in leaf.completion for leaf in leaves)


# Choosing the format -------------------------------------------------------------------------------------------


def test_the_config_says_how_its_reward_is_read() -> None:
    nano = {"architectures": ["LlamaForCausalLM"], "process_reward": {"step_tag": "\n", "good": "+", "bad": "-"}}
    reward = from_backend(RewardModel(), nano)
    assert reward.format == StepEnd(good="+", bad="-", tag="\n") and reward.aggregate == "last"
    assert from_backend(RewardModel(), nano, aggregate="min", bad="a").format == StepEnd(bad="a")


def test_a_tag_that_is_no_whitespace_is_inserted() -> None:
    assert from_backend(RewardModel(), {}, step_tag="?").format == StepTag(tag="?")
    assert from_backend(RewardModel(), {}, format="step-end", step_tag="?").format == StepEnd(tag="?")
    assert from_backend(RewardModel(), {}, format="chat-turns", good="a").format == ChatTurns(good="a")


@pytest.mark.parametrize("architecture", ["Qwen2ForProcessRewardModel", "LlamaForTokenClassification"])
def test_a_classifier_is_asked_for_its_label(architecture: str) -> None:
    config = {"architectures": [architecture]}
    assert from_backend(RewardModel(), config, step_tag="?", label=0).format == StepLabel(tag="?", label=0)
    with pytest.raises(UnsupportedError, match=r"'a\?' is 2 tokens"):
        from_backend(RewardModel(), config, step_tag="a?")


def test_where_nothing_says_how_the_error_lists_the_choices() -> None:
    with pytest.raises(UnsupportedError, match=r"LlamaForCausalLM.*step_tag='ки'.*chat-turns"):
        from_backend(RewardModel(), {"architectures": ["LlamaForCausalLM"]})
    with pytest.raises(InvalidInput, match="step-end, step-tag, chat-turns, step-label"):
        from_backend(RewardModel(), {}, format="regression")
    with pytest.raises(InvalidInput, match="no setting label.*bad, good, tag"):
        from_backend(RewardModel(), {}, step_tag="\n", label=1)


def test_what_is_not_one_token_is_refused_when_the_reward_is_made() -> None:
    with pytest.raises(UnsupportedError, match=r"'\+\+' is 2 tokens"):
        from_backend(RewardModel(), {}, step_tag="\n", good="++")
    assert from_backend(RewardModel(), {}, step_tag="\n", good=3).format == StepEnd(good=3)


def test_a_backend_that_cannot_judge_is_refused() -> None:
    silent = RewardModel()
    silent.capabilities = frozenset({Capability.SAMPLE})
    with pytest.raises(UnsupportedError, match="next-token"):
        reward_of(silent)
    wordless = RewardModel()
    wordless.tokenizer = None
    with pytest.raises(UnsupportedError, match="tokenizer"):
        reward_of(wordless)
    with pytest.raises(InvalidInput, match="mean"):
        reward_of(RewardModel(), aggregate="mean")
    with pytest.raises(InvalidInput, match="memory=0"):
        reward_of(RewardModel(), memory=0)
