"""How thoughts are told from answers."""

import pytest

from bough.core import InvalidInput, Thinking

R1 = Thinking()


@pytest.mark.parametrize(
    ("completion", "opened", "answer"),
    [
        ("<think>\nmaybe 4\n</think>\n\n5", False, "5"),
        ("maybe 4\n</think>\n\n5", True, "5"),
        ("<think>\n\n</think>\n\n5", False, "5"),
        ("<think>\nmaybe 4", False, ""),
        ("maybe 4", True, ""),
        ("5", False, "5"),
        ("a</think>b</think>c", True, "b</think>c"),
    ],
)
def test_the_answer_is_what_follows_the_thoughts(completion: str, opened: bool, answer: str) -> None:
    assert R1.answer(completion, opened) == answer


@pytest.mark.parametrize(
    ("text", "open_"),
    [("q", False), ("q<think>\n", True), ("q<think>\n\n</think>\n\n", False), ("</think><think>", True)],
)
def test_a_prompt_may_end_within_thoughts(text: str, open_: bool) -> None:
    assert R1.open_at_end(text) is open_


@pytest.mark.parametrize("cue", ["Wait, no", "so. wait", "Hmm", "Alternatively,"])
def test_the_usual_cues_are_found_as_words(cue: str) -> None:
    assert R1.cue.search(cue)
    assert not R1.cue.search("the waiter awaits")


@pytest.mark.parametrize(("field", "value"), [("opening", " \n"), ("closing", ""), ("cues", "(")])
def test_a_format_that_marks_nothing_is_refused_by_name(field: str, value: str) -> None:
    with pytest.raises(InvalidInput, match=field):
        Thinking(**{field: value})
