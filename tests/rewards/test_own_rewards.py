"""Rewards without a checkpoint: self-evaluation, perplexity, votes and unit tests, against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bough import api
from bough.core import Capability, InvalidInput, RewardError, Run, UnsupportedError, run
from bough.rewards import NAMED, Perplexity, SelfEvaluation, UnitTests, Vote
from bough.rewards.unit_tests import code_in, examples
from bough.search import BestOfN
from executing import execute, native_backend
from toy import SYMBOLS, ToyBackend, noise_model, toy_model

TEMPLATE = "{prompt}+{completion}+"


def test_self_evaluation_is_the_normalised_probability_of_yes() -> None:
    backend = ToyBackend(noise_model)
    root = backend.branch("ab?")
    leaves = [root + "a\n", root + "b\n", root + "a\n"]
    reward, spent = SelfEvaluation(template=TEMPLATE, good="a", bad="b"), Run()
    scores = run(reward(leaves, spent))
    for leaf, score in zip(leaves, scores, strict=True):
        row = noise_model(tuple(backend.encode(f"ab?+{leaf.completion.strip()}+")))
        assert score == pytest.approx(row[3] / (row[3] + row[4]), rel=1e-5)
    assert scores[0] == scores[2] != scores[1]
    assert spent.ledger.reward_tokens == 2 * len("ab?+a+"), "equal questions are asked once"
    assert spent.ledger.tokens == spent.ledger.passes == 0


def test_self_evaluation_asks_in_a_chat_where_there_is_a_template() -> None:
    backend = ToyBackend(noise_model)
    backend.tokenizer.chat_template = "there is one"  # type: ignore[attr-defined]
    backend.tokenizer.chat = lambda messages, **_: [6, *backend.encode(messages[0]["content"]), 7]  # type: ignore[method-assign]
    leaf = backend.branch("ab?") + "a\n"
    row = noise_model((6, *backend.encode("ab?+a+"), 7))
    assert run(SelfEvaluation(template=TEMPLATE, good="a", bad="b")([leaf], Run())) == pytest.approx(
        [row[3] / (row[3] + row[4])], rel=1e-5
    )
    assert run(SelfEvaluation(template=TEMPLATE, good="a", bad="b", chat=False)([leaf], Run())) != pytest.approx(
        [row[3] / (row[3] + row[4])], rel=1e-5
    )


def test_another_model_may_be_asked() -> None:
    other = ToyBackend(lambda tokens: noise_model(tokens, seed=1))
    leaf = ToyBackend(noise_model).branch("ab?") + "a\n"
    row = noise_model(tuple(other.encode("ab?+a+")), seed=1)
    scores = run(SelfEvaluation(other, template=TEMPLATE, good="a", bad="b")([leaf], Run()))
    assert scores == pytest.approx([row[3] / (row[3] + row[4])], rel=1e-5)


def test_self_evaluation_refuses_what_cannot_work() -> None:
    with pytest.raises(InvalidInput, match="no {completion}"):
        SelfEvaluation(template="{prompt}")
    with pytest.raises(InvalidInput, match="the same answer"):
        SelfEvaluation(good="a", bad="a")
    backend = ToyBackend()
    leaf = backend.branch("ab?") + "a\n"
    reward = SelfEvaluation(template=TEMPLATE, good="ab", bad="c")
    with pytest.raises(UnsupportedError, match="'ab' is 2 tokens"):
        run(reward([leaf], Run()))
    with pytest.raises(InvalidInput, match="more than the 64"):
        run(SelfEvaluation(template="{completion}" * 80, good="a", bad="b")([leaf], Run()))
    backend.capabilities = frozenset(Capability) - {Capability.NEXT_TOKEN}
    with pytest.raises(UnsupportedError, match="cannot evaluate itself"):
        run(SelfEvaluation(template=TEMPLATE, good="a", bad="b")([leaf], Run()))


def logprob(tokens: list[int], start: int) -> list[float]:
    return [math.log(toy_model(tuple(tokens[:end]))[tokens[end]]) for end in range(start, len(tokens))]


def test_perplexity_of_drawn_tokens_costs_nothing() -> None:
    backend = ToyBackend()
    leaves = list(run(backend.branch("ab?").sample(5)))
    backend.used.clear()
    means, sums = (run(Perplexity(over)(leaves, Run())) for over in ("mean", "sum"))  # type: ignore[arg-type]
    for leaf, mean, total in zip(leaves, means, sums, strict=True):
        exact = logprob(leaf.tokens, 3)
        assert total == pytest.approx(sum(exact), rel=1e-5) == pytest.approx(leaf.logprob, rel=1e-5)
        assert mean == pytest.approx(np.mean(exact), rel=1e-5)
    assert not backend.used


@pytest.mark.parametrize("make", [ToyBackend, lambda: native_backend(None)])
def test_given_tokens_are_scored_as_drawn_ones_are(make) -> None:  # type: ignore[no-untyped-def]
    with make() as backend:
        root = backend.branch("ab?")
        drawn = list(run(root.sample(4, max_tokens=6)))
        given = [root + leaf.tokens[root.length :] for leaf in drawn]
        mixed = [*given, backend.branch("b?") + "a", drawn[0]]
        scores, spent = run(Perplexity("sum")(mixed, made := Run())), made
        assert scores[:4] == pytest.approx(run(Perplexity("sum")(drawn, Run())), rel=1e-4)
        assert scores[5] == pytest.approx(scores[0], rel=1e-4)
        assert spent.ledger.tokens == spent.ledger.computed_tokens == 0
        assert run(Perplexity()([root], Run())) == [0.0]


def test_perplexity_stays_finite_and_refuses_what_cannot_work() -> None:
    backend = ToyBackend()
    impossible = backend.branch("ab?") + [SYMBOLS.index("+")]
    assert run(Perplexity("sum")([impossible], Run())) == [-100.0]
    with pytest.raises(InvalidInput, match="over='max'"):
        Perplexity("max")  # type: ignore[arg-type]
    backend.capabilities = frozenset((Capability.SAMPLE,))
    with pytest.raises(UnsupportedError, match="does not offer"):
        run(Perplexity()([impossible], Run()))


def test_a_vote_is_the_share_of_the_others_that_agree() -> None:
    root = ToyBackend().branch("ab?")
    leaves = [root + text for text in ("a\n", "b\na\n", "b\n", "\n")]
    assert run(Vote()(leaves, Run())) == pytest.approx([1 / 3, 1 / 3, 0, 0])
    with pytest.raises(RewardError, match="at least 2 in one call"):
        run(Vote()(leaves[:1], Run()))


PROMPT = '''def double(x):
    """ Twice.
    >>> double(2)
    4
    >>> double('a')
    "aa"
    """
'''


class Text:
    """A branch, as far as a reward of texts looks at one."""

    def __init__(self, prompt: str, completion: str) -> None:
        self.root = type("Root", (), {"text": prompt})
        self.answer = completion


def score(reward: UnitTests, *completions: str, prompt: str = PROMPT) -> list[float]:
    return run(reward([Text(prompt, text) for text in completions], Run()))  # type: ignore[arg-type]


def test_unit_tests_are_the_prompt_s_examples() -> None:
    reward = UnitTests()
    double, four = "    return x + x\n", "    return 4\n"
    fenced = "```python\ndef double(x):\n    return 2 * x\n```"
    assert score(reward, double, four, fenced, "    return\n", "", double) == [1.0, 0.5, 1.0, 0.0, 0.0, 1.0]
    assert reward.executed == 4
    score(reward, double)
    assert reward.executed == 4, "a program runs once"
    in_chat = f"<user>Complete it.\n\n```python\n{PROMPT}```\n<assistant>"
    assert score(reward, fenced, "```\ndef double(x):\n    return 4\n```", prompt=in_chat) == [1.0, 0.5]


def test_unit_tests_may_be_given_or_none() -> None:
    reward = UnitTests(["assert f(1) == 1", "assert f(2) == 4"], entry_point="f")
    assert score(reward, "def f(x):\n    return x * x\n", "def f(x):\n    return 1\n", prompt="Square it") == [
        1.0,
        0.5,
    ]
    assert score(UnitTests(), "def f(x):\n    return 1\n", "def f(x:\n", prompt="Square it.") == [1.0, 0.0]
    for tests in ([], "assert 1"):
        with pytest.raises(InvalidInput, match="at least one statement"):
            UnitTests(tests)


def test_examples_are_read_without_being_run() -> None:
    shown = "Do it.\n>>> import os\n>>> f(1)\n2\n>>> f(\n3\n  assert f(2) == 3\n>>> g()\nTraceback (most\n"
    assert examples(shown)[0] == "import os"
    assert "assert f(2) == 3" in examples(shown)
    assert all("f(\n" not in test for test in examples(shown))
    assert examples("nothing") == ()
    assert code_in("x = 1") == "x = 1" and code_in("Write f.") == ""


def test_rewards_are_known_by_name() -> None:
    for name, cls in NAMED.items():
        assert isinstance(api.load_reward(name), cls) and api.load_reward(name).name == name  # type: ignore[arg-type]
    assert api.load_reward("perplexity", over="sum").over == "sum"  # type: ignore[attr-defined]
    with pytest.raises(InvalidInput, match="reward 'perplexity' cannot be made from"):
        api.load_reward("perplexity", temperature=1)


def test_best_of_n_by_perplexity_is_the_most_probable_sample() -> None:
    for seed in range(5):
        answer, _ = run(execute(BestOfN(n=10), ToyBackend(), seed=seed, reward=Perplexity("sum")))
        leaves = run(ToyBackend().branch("ab?", seed=seed).sample(10))
        assert answer.score == pytest.approx(max(leaf.logprob for leaf in leaves), rel=1e-5)
