"""TrimR: where thoughts are cut, what is answered then, and what the verifier is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from bough.core import Answer, Backend, Branch, Budget, InvalidInput, Run, UnsupportedError, run
from bough.search import TrimR
from bough.search.trimr import repeated
from bough.tasks import get_task
from scripted import ScriptedBackend, thinker
from toy import ToyBackend

PROMPT = "1+1\n"
TASK = get_task("arithmetic")


def solve(
    thoughts: str, strategy: TrimR | None = None, budget: Budget | None = None, models: Any = None, **script: Any
) -> Answer:
    lm = ScriptedBackend(thinker(PROMPT, thoughts, **script))
    made = Run(task=TASK, budget=budget, models=models)
    return run(made.execute(strategy or TrimR(), lm.branch(PROMPT)))


def thoughts_of(answer: Answer) -> str:
    assert answer.branch is not None
    return answer.branch.completion.partition("think\n")[2].partition("done\n")[0]


TWICE = "1+1=2\nanswer 2\nwait\n1+1=2\nanswer 2\nwait\n1+1=3\nanswer 3\ndone\n"


def test_it_stops_where_the_same_answer_is_reached_again() -> None:
    answer = solve(TWICE, default="1+1=2\nanswer 2\n")
    assert thoughts_of(answer) == "1+1=2\nanswer 2\nwait\n1+1=2\nanswer 2\nwait\n"
    assert answer.text == "1+1=2\nanswer 2\n"
    assert answer.ledger.tokens == len("1+1=2\nanswer 2\nwait" * 2) + 1 + len(answer.text) + 1, "nothing is wasted"


def test_thoughts_that_agree_less_often_than_asked_for_are_thought_to_the_end() -> None:
    answer = solve(TWICE, TrimR(agreements=2), default="answer 3\n")
    assert thoughts_of(answer) == TWICE.removesuffix("done\n") and answer.text == "answer 3\n"
    three = "answer 2\nwait\n" * 5 + "done\n"
    assert thoughts_of(solve(three, TrimR(agreements=2))) == "answer 2\nwait\n" * 3


def test_agreements_must_follow_each_other() -> None:
    mixed = "answer 2\nwait\nanswer 3\nwait\nanswer 2\nwait\nanswer 2\nwait\nanswer 2\nwait\ndone\n"
    assert thoughts_of(solve(mixed)).count("wait") == 4
    pairs = "answer 2\nwait\nanswer 2\nwait\nanswer 3\nwait\nanswer 3\nwait\nanswer 4\nwait\nanswer 4\ndone\n"
    assert thoughts_of(solve(pairs, TrimR(agreements=2))) == pairs.removesuffix("done\n")
    assert thoughts_of(solve(mixed, TrimR(agreements=2))).count("wait") == 5


def test_thoughts_without_an_answer_are_passed_over() -> None:
    mixed = "answer 2\nwait\n1+1=2\nwait\nanswer 2\nwait\nanswer 4\ndone\n"
    assert thoughts_of(solve(mixed)) == "answer 2\nwait\n1+1=2\nwait\nanswer 2\nwait\n"
    longer = "answer 2\nwait\nanswer 2\nwait\n1+1=2\nwait\nanswer 2\nwait\nanswer 4\ndone\n"
    assert thoughts_of(solve(longer, TrimR(agreements=2))).count("wait") == 4


def test_it_stops_where_thoughts_lead_nowhere() -> None:
    astray = "1+1=2\nwait\n" * 9 + "answer 2\ndone\n"
    answer = solve(astray, TrimR(patience=3), default="answer 7\n")
    assert thoughts_of(answer) == "1+1=2\nwait\n" * 3 and answer.text == "answer 7\n"


def test_it_stops_when_it_has_thought_for_too_long() -> None:
    answer = solve("1+1=2\nwait\n" * 9, TrimR(max_thought_tokens=15))
    assert thoughts_of(answer) == ("1+1=2\nwait\n" * 2)[:15] + "\n" and answer.text == "answer 0\n"


def test_it_stops_where_the_text_repeats_itself_and_keeps_one_copy() -> None:
    copy = "now i look at one plus one\n"
    answer = solve("so " + copy * 50, TrimR(repeats=4))
    assert thoughts_of(answer) == "so " + copy
    assert answer.ledger.tokens < len(copy) * 5


def test_what_ends_without_closing_its_thoughts_is_made_to_answer() -> None:
    answer = solve("1+1=2\n", default="answer 2\n")
    assert thoughts_of(answer) == "1+1=2\n" and answer.text == "answer 2\n"


def test_guidance_is_written_before_the_end_of_thoughts() -> None:
    strategy = TrimR(patience=3, overthinking="the same again", underthinking="it takes too long")
    assert thoughts_of(solve(TWICE, strategy)).endswith("waitthe same again\n")
    assert thoughts_of(solve("1+1=2\nwait\n" * 9, strategy)).endswith("waitit takes too long\n")


class SlowJudge(ToyBackend):
    """Says yes to a question that holds what it is given, each time after so many ticks of the event loop."""

    name = "judge"
    vocab_size = 128

    def __init__(self, yes: str, ticks: Sequence[int]) -> None:
        super().__init__(context=2048)
        self.tokenizer = Judged()
        self.yes, self.ticks = yes, list(ticks)
        self.asked: list[str] = []

    def submit_next_token(self, branches: Sequence[Branch]) -> asyncio.Future[np.ndarray]:
        questions = [self.decode(branch.tokens) for branch in branches]
        self.asked += questions
        for made in {branch.run for branch in branches if branch.run is not None}:
            made.ledger.computed_tokens += sum(map(len, questions))
        rows = np.full((len(branches), 128), -50, np.float32)
        for row, question in zip(rows, questions, strict=True):
            row[ord("A") if self.yes in question else ord("B")] = 0

        async def later() -> np.ndarray:
            for _ in range(self.ticks.pop(0)):
                await asyncio.sleep(0)
            return rows

        return asyncio.ensure_future(later())


class Judged:
    """ASCII."""

    vocab_size, bos_id, eos_ids, chat_template = 128, None, frozenset((0,)), None

    def encode(self, text: str, add_special: bool = False) -> list[int]:
        return [min(ord(character), 127) for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    def token_bytes(self, token: int) -> bytes:
        return chr(token).encode()


PROSE = "it is two\nwait\ni say two\nwait\nit is two so\nwait\nbut maybe not\nwait\nor is it\ndone\n"


def judged(ticks: Sequence[int], yes: str = "it is two\n\nSolution 2:\ni say two") -> tuple[Answer, SlowJudge]:
    judge = SlowJudge(yes, ticks)
    return solve(PROSE, TrimR(verifier="judge"), models={"judge": judge}), judge


def test_a_verifier_is_asked_about_consecutive_thoughts() -> None:
    answer, judge = judged([0] * 9)
    assert thoughts_of(answer) == "it is two\nwait\ni say two\nwait\n"
    assert PROMPT.strip() in judge.asked[0] and "same final answer" in judge.asked[0]
    assert answer.ledger.reward_tokens == sum(map(len, judge.asked))


def test_a_late_verdict_cuts_at_the_place_it_is_about_and_what_came_after_is_paid_for() -> None:
    early, _ = judged([0] * 9)
    late, _ = judged([30, 0, 0, 0])
    never_in_time, _ = judged([500, 0, 0, 0])
    for answer in (late, never_in_time):
        assert answer.branch is not None and early.branch is not None
        assert answer.branch.key == early.branch.key and answer.branch.tokens == early.branch.tokens
    needed = len("it is two\nwait\ni say two\nwait") + len("answer 0\n") + 1
    assert needed <= early.ledger.tokens <= needed + 8, "what is written on is let go as soon as the verdict is in"
    assert early.ledger.tokens < late.ledger.tokens < never_in_time.ledger.tokens
    assert never_in_time.ledger.tokens >= len(PROSE) + len("answer 0\n"), "generation was held up for the verdict"


def test_the_first_thought_to_be_cut_at_counts_not_the_first_verdict() -> None:
    judge = SlowJudge("Solution 2:\nit is two so", [0] * 9)
    at_once = solve(PROSE, TrimR(verifier="judge"), models={"judge": judge})
    assert thoughts_of(at_once).count("wait") == 3
    slow = SlowJudge("two", [300, 0, 0, 0])  # yes to the first two questions, the second comes in first
    answer = solve(PROSE, TrimR(verifier="judge"), models={"judge": slow})
    assert thoughts_of(answer).count("wait") == 2


def test_an_unsure_verifier_is_not_believed() -> None:
    class Unsure(SlowJudge):
        def submit_next_token(self, branches: Sequence[Branch]) -> asyncio.Future[np.ndarray]:
            async def torn() -> np.ndarray:
                return np.zeros((len(branches), 128), np.float32)

            return asyncio.ensure_future(torn())

    answer = solve(PROSE, TrimR(verifier="judge", certainty=0.6), models={"judge": Unsure("", [])})
    assert thoughts_of(answer) == PROSE.removesuffix("done\n")
    answer = solve(PROSE, TrimR(verifier="judge", certainty=0.4), models={"judge": Unsure("", [])})
    assert thoughts_of(answer).count("wait") == 2


def test_a_budget_that_ends_the_thinking_leaves_the_answer_that_most_thoughts_reached() -> None:
    mixed = "answer 4\nwait\nanswer 2\nwait\nanswer 3\nwait\nanswer 2\nwait\nanswer 5\nwait\nanswer 6\nwait\n"
    cut = solve(mixed, TrimR(agreements=3), Budget(tokens=60))
    assert cut.stopped_by is not None and "tokens" in cut.stopped_by
    assert cut.text == "answer 2\n" and cut.score == 2
    first = solve(mixed, TrimR(agreements=3), Budget(tokens=16))
    assert first.text == "answer 4\n" and first.score == 1
    assert solve(mixed, TrimR(agreements=3), Budget(tokens=5)).text == ""


def test_the_answer_does_not_depend_on_what_shares_the_batch() -> None:
    async def together() -> list[Answer]:
        lm = ScriptedBackend(thinker(PROMPT, TWICE), slots=1)
        runs = [Run(task=TASK).execute(TrimR(), lm.branch(PROMPT, seed=seed)) for seed in range(3)]
        return await asyncio.gather(*runs)

    for answer in run(together()):
        assert thoughts_of(answer).count("wait") == 2


def test_a_model_that_does_not_think_aloud_is_refused() -> None:
    lm: Backend = ScriptedBackend(lambda text: "", thinking=None)
    with pytest.raises(UnsupportedError, match="thoughts aloud.*scripted"):
        run(Run(task=TASK).execute(TrimR(), lm.branch(PROMPT)))


def test_a_passage_that_is_repeated_is_found_however_long() -> None:
    for passage in ("abcdefgh", "one two three one two\n", "x" * 8):
        for times in (2, 3):
            text = "so " + passage * times
            assert repeated(text, times, 8) == len(passage) * (times - 1)
            assert repeated(text[:-1] + "?", times, 8) == 0
            assert repeated(text, times + 1, 8) == 0
    assert repeated("ha" * 12, 3, 8) == 16 and repeated("ha" * 11, 3, 8) == 0
    assert repeated("", 2, 8) == 0


@pytest.mark.parametrize(
    "settings", [{"repeats": 1}, {"agreements": 0}, {"patience": 0}, {"certainty": 1.0}, {"passage": 0}]
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(settings))):
        TrimR(**settings)
