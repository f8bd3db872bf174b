"""A model's own judgement: what it rejects of a solution so far, times what it foresees of the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from bough.core import Branch, Capability, InvalidInput, Run, UnsupportedError, run
from bough.rewards import ForeseeingReward, StepForesee, from_backend
from bough.search import AdaptiveITC
from executing import native_backend
from toy import EOS, SYMBOLS, ToyBackend, ToyTokenizer, noise_model

FORMAT = StepForesee(reject="-", offset=0.7, query="c", good="a", bad="b")
REJECT, GOOD, BAD = (SYMBOLS.index(symbol) for symbol in "-ab")


class Model(ToyBackend):
    """A model that remembers after which texts it was asked to foresee, one list per submission."""

    def __init__(self, **options: Any) -> None:
        super().__init__(noise_model, **options)
        self.asked: list[list[str]] = []
        self.scored = 0

    def submit_next_token(self, branches: Sequence[Branch]) -> Any:
        self.asked.append([branch.text for branch in branches])
        return super().submit_next_token(branches)

    def submit_score(self, branch: Branch, continuations: Sequence[Sequence[int]], others: Sequence[int] = ()) -> Any:
        self.scored += sum(map(len, continuations))
        return super().submit_score(branch, continuations, others)


def so_far(text: str) -> float:
    tokens, product = ToyTokenizer().encode("a?" + text), 1.0
    for end in range(2, len(tokens)):
        p = noise_model(tuple(tokens[:end]))
        product *= p[tokens[end]] / (p[tokens[end]] + np.exp(0.7) * p[REJECT])
    return float(product)


def ahead(text: str) -> float:
    p = noise_model(tuple(ToyTokenizer().encode("a?" + text + "c")))
    return float(p[GOOD] / (p[GOOD] + p[BAD]))


def written(model: ToyBackend, text: str) -> Branch:
    root = model.branch("a?")
    return root + text if text else root


def test_an_unfinished_solution_is_right_so_far_and_then_ends_right() -> None:
    model = Model()
    texts = ["", "ab\n", "ab\nc"]
    found = run(ForeseeingReward(model, FORMAT)([written(model, text) for text in texts], Run()))
    assert found == pytest.approx([so_far(text) * ahead(text) for text in texts])
    assert found[0] == pytest.approx(ahead("")), "of the bare prompt nothing can be rejected"


def test_of_a_finished_solution_nothing_is_ahead() -> None:
    model = Model()
    leaf = next(leaf for leaf in run(ToyBackend().branch("a?").sample(8)) if leaf.finished)
    text = leaf.completion
    assert leaf.tokens[-1] == EOS
    assert run(ForeseeingReward(model, FORMAT)([leaf], Run())) == pytest.approx([so_far(text)])
    assert model.asked == []


def test_all_branches_share_a_submission_and_each_place_is_asked_about_once() -> None:
    model = Model()
    reward, spent = ForeseeingReward(model, FORMAT), Run()
    branches = [written(model, text) for text in ("a\n", "b", "a\n", "")]
    first = run(reward(branches, spent))
    assert [sorted(texts) for texts in model.asked] == [["a?a\nc", "a?bc", "a?c"]]
    assert first[0] == first[2]
    scored, tokens = model.scored, spent.ledger.reward_tokens
    assert scored == len("a\n") + len("b")
    assert run(reward(branches[::-1], spent)) == first[::-1]
    assert len(model.asked) == 1 and model.scored == scored and spent.ledger.reward_tokens == tokens


def test_the_query_costs_one_token_beside_what_is_cached_and_is_no_part_of_the_branch() -> None:
    with native_backend(None) as backend:
        branch = run(backend.branch("a?").sample(1, max_tokens=6))[0]
        before, spent = branch.tokens, Run()
        reward = ForeseeingReward(backend, FORMAT)
        place = reward._place(branch, spent)
        run(reward._ahead([place], spent))
        assert place == [*before, SYMBOLS.index("c")] and branch.tokens == before
        # The last token drawn was never computed, and is so once, here.
        assert spent.ledger.reward_tokens == 2
        assert spent.ledger.tokens == spent.ledger.passes == spent.ledger.computed_tokens == 0


def test_the_read_out_is_the_models_own_distribution() -> None:
    with native_backend(None) as backend:
        branch = backend.branch("ab?") + "ab\nc"
        distribution = np.exp(run((branch + "c").next_token()))
        kept = 1.0
        for end in range(branch.root.length, branch.length):
            p = np.exp(run(backend.branch(branch.tokens[:end]).next_token()))
            kept *= p[branch.tokens[end]] / (p[branch.tokens[end]] + np.exp(0.7) * p[REJECT])
        expected = kept * distribution[GOOD] / (distribution[GOOD] + distribution[BAD])
        assert run(ForeseeingReward(backend, FORMAT)([branch], Run())) == pytest.approx([expected], rel=1e-3)


def test_a_solution_that_fills_its_context_is_finished_and_one_too_long_for_the_model_is_refused() -> None:
    model = Model(context=6)
    assert run(ForeseeingReward(model, FORMAT)([written(model, "abca")], Run())) == pytest.approx([so_far("abca")])
    assert model.asked == []
    with pytest.raises(InvalidInput, match="longer context"):
        run(ForeseeingReward(model, FORMAT)([written(ToyBackend(context=9), "abca")], Run()))


def test_a_search_asks_it_about_the_prompt_first() -> None:
    model = Model()
    made = Run(reward=ForeseeingReward(model, FORMAT))
    answer = run(made.execute(AdaptiveITC(n=2, threshold=1.0, prune=1.0), ToyBackend().branch("ab?")))
    assert model.asked == [["ab?c"]], "and about whole solutions not at all"
    assert answer.ledger.reward_calls == 3 and answer.ledger.reward_tokens > 0


def test_the_config_names_its_tokens_and_what_cannot_foresee_is_refused() -> None:
    declared = {"step_tag": "\n", "reject": "-", "offset": 0.7, "query": "c", "good": "a", "bad": "b"}
    reward = from_backend(Model(), {"process_reward": declared})
    assert isinstance(reward, ForeseeingReward) and reward.format == FORMAT and reward.open_ended
    with pytest.raises(UnsupportedError, match="'cc' is 2 tokens"):
        from_backend(Model(), {"process_reward": {**declared, "query": "cc"}})
    silent = Model()
    silent.capabilities = frozenset({Capability.SAMPLE, Capability.SCORE})
    with pytest.raises(UnsupportedError, match="cannot foresee"):
        ForeseeingReward(silent, FORMAT)
