"""Problems are right, their judges exact, their splits disjoint; answers agree with independent solvers."""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from functools import reduce

import pytest

from bough.core.errors import InvalidInput
from bough.tasks import SPLITS, TASKS, Problem, Task, get_task

DIGESTS = {
    "arithmetic": "1a04d70d252f3e3c",
    "countdown": "eaedc232180c4da5",
    "stories": "15cc46675cb6f46e",
    "logic": "fd4ce6f2c8c75b09",
}
EACH = pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))


def some(task: Task, count: int = 25, split: str = "train") -> list[Problem]:
    return [task.problem(split, index, level) for level in task.levels for index in range(count)]


@EACH
def test_worked_solutions_are_right_in_every_step(task: Task) -> None:
    for problem in some(task, 50):
        assert task.check(problem, problem.solution), problem
        assert task.check(problem, problem.solution.rstrip("\n")), "the last newline is optional"
        assert task.step_labels(problem, problem.solution) == [True] * problem.solution.count("\n")
        assert task.extract(problem.solution) == problem.answer


@EACH
def test_a_changed_digit_anywhere_makes_the_solution_wrong_from_that_line_on(task: Task) -> None:
    rng = random.Random(0)
    for problem in some(task):
        lines = problem.solution.splitlines(keepends=True)
        for at, line in enumerate(lines):
            digits = [i for i, character in enumerate(line) if character.isdigit()]
            if not digits:
                continue
            i = rng.choice(digits)
            other = rng.choice([digit for digit in "0123456789" if digit != line[i]])
            changed = "".join([*lines[:at], line[:i] + other + line[i + 1 :], *lines[at + 1 :]])
            labels = task.step_labels(problem, changed)
            assert labels == [True] * at + [False] * (len(lines) - at), changed
            assert not task.check(problem, changed)


@EACH
def test_a_line_left_out_repeated_or_added_is_noticed(task: Task) -> None:
    for problem in some(task):
        lines = problem.solution.splitlines(keepends=True)
        for at in range(len(lines)):
            assert not task.check(problem, "".join(lines[:at] + lines[at + 1 :]))
            assert not task.check(problem, "".join(lines[: at + 1] + lines[at:]))
        assert not task.check(problem, problem.solution + "\n")
        assert not task.check(problem, problem.solution + "and so on")
        assert not task.check(problem, "")


@EACH
def test_unfinished_lines_have_no_label(task: Task) -> None:
    problem = task.problem("train", 0)
    for length in range(len(problem.solution) + 1):
        labels = task.step_labels(problem, problem.solution[:length])
        assert labels == [True] * problem.solution[:length].count("\n")


@EACH
def test_problems_are_deterministic_and_mostly_different(task: Task) -> None:
    assert some(task) == some(task)
    prompts = Counter(task.problem("train", index).prompt for index in range(300))
    assert len(prompts) > 250


@EACH
def test_splits_share_no_problem(task: Task) -> None:
    def same(prompt: str) -> str:  # the order in which countdown gives its numbers does not matter
        numbers, arrow, target = prompt.partition(" ->")
        return " ".join(sorted(numbers.split())) + arrow + target

    seen = {split: {same(problem.prompt) for problem in some(task, 60, split)} for split in SPLITS}
    assert not seen["train"] & seen["validation"]
    assert not seen["train"] & seen["test"]
    assert not seen["validation"] & seen["test"]


@EACH
def test_prompts_end_in_a_newline_and_solutions_in_an_answer_line(task: Task) -> None:
    for problem in some(task):
        assert problem.prompt.endswith("\n") and problem.prompt.count("\n") == 1
        assert problem.solution.endswith(f"\nanswer {problem.answer}\n")


@EACH
def test_problems_stay_the_same_across_versions(task: Task) -> None:
    """Published accuracies are on these very problems; a change to a generator must be deliberate."""
    text = "".join(problem.prompt + problem.solution for problem in some(task, 5, "test"))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == DIGESTS[task.name]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("1+1=2\nanswer 2\n", "2"),
        ("answer true", "true"),
        ("1+1=2\n", None),
        ("", None),
        ("answer 2\n3\n", None),
    ],
)
def test_the_answer_is_what_the_last_line_says(text: str, answer: str | None) -> None:
    assert get_task("arithmetic").extract(text) == answer


def test_bad_arguments_name_the_choices() -> None:
    with pytest.raises(InvalidInput, match="arithmetic, countdown, stories, logic"):
        get_task("sudoku")
    task = get_task("arithmetic")
    with pytest.raises(InvalidInput, match="train, validation, test"):
        task.problem("dev", 0)
    with pytest.raises(InvalidInput, match="no level 10.*1, 2, 3"):
        task.problem("test", 0, 10)
    with pytest.raises(InvalidInput, match="-1 is negative"):
        task.problem("test", -1)
    with pytest.raises(InvalidInput, match="'countdown' was given to the judge of 'arithmetic'"):
        task.check(get_task("countdown").problem("test", 0), "")


def test_arithmetic_agrees_with_python_on_the_bracketed_expression() -> None:
    for problem in some(get_task("arithmetic")):
        first, *rest = re.findall(r"[-+*]?\d+", problem.prompt)
        assert str(eval(reduce(lambda left, part: f"({left}){part}", rest, first))) == problem.answer


def reachable_values(numbers: tuple[int, ...]) -> set[int]:
    """Every value that all the numbers can make with + - * and positive results, by splitting into two sets."""
    table: dict[int, set[int]] = {}
    for chosen in range(1, 1 << len(numbers)):
        if chosen & (chosen - 1) == 0:
            table[chosen] = {numbers[chosen.bit_length() - 1]}
            continue
        values, part = set(), (chosen - 1) & chosen
        while part:
            for a in table[part]:
                for b in table[chosen ^ part]:
                    values |= {a + b, a * b} | ({a - b} if a > b else set())
            part = (part - 1) & chosen
        table[chosen] = values
    return table[(1 << len(numbers)) - 1]


def test_countdown_steps_are_right_exactly_when_brute_force_still_reaches_the_target() -> None:
    task, rng = get_task("countdown"), random.Random(0)
    labels = Counter()
    for problem in some(task, 40):
        numbers = [int(n) for n in problem.prompt.split(" ->")[0].split()]
        i, j = sorted(rng.sample(range(len(numbers)), 2), key=lambda k: -numbers[k])
        op = rng.choice("+-*")
        value = eval(f"{numbers[i]}{op}{numbers[j]}")
        left = [n for k, n in enumerate(numbers) if k not in (i, j)] + [value]
        rng.shuffle(left)
        line = f"{numbers[i]}{op}{numbers[j]}={value} left {' '.join(map(str, left))}\n"
        right = value > 0 and int(problem.answer) in reachable_values(tuple(left))
        assert task.step_labels(problem, line) == [right], (problem.prompt, line)
        labels[right] += 1
    assert min(labels.values()) > 20, "both kinds must have been tried"


def test_countdown_refuses_numbers_that_are_not_there_and_early_answers() -> None:
    task = get_task("countdown")
    problem = Problem("countdown", 1, "test", 0, "2 3 5 -> 10\n", "10", "")
    assert task.check(problem, "2+3=5 left 5 5\n5+5=10 left 10\nanswer 10\n")
    assert task.check(problem, "3+2=5 left 5 5\n5+5=10 left 10\nanswer 10\n")
    for wrong in (
        "5+5=10 left 2 3 10\n",  # one 5 only
        "2+3=5 left 5\n",  # a number lost
        "2+3=5 left 5 5 5\n",  # a number won
        "2+3=05 left 5 5\n",
        "2*3=6 left 5 6\n",  # 10 is out of reach of 5 and 6
        "answer 10\n",
        "2+3=5 left 5 5 \n",
    ):
        assert task.step_labels(problem, wrong) == [False], wrong


def truth(prompt: str) -> str:
    """The answer by forward closure from the facts of the one asked about."""
    name, asked = re.findall(r"Is (\w+) (\w+)\?", prompt)[0]
    known = set(re.findall(rf"\b{name} is ((?:not )?\w+)\.", prompt))
    rules = re.findall(r"If ((?:not )?\w+) then ((?:not )?\w+)\.", prompt)
    while new := {b for a, b in rules if a in known} - known:
        known |= new
    return "true" if asked in known else "false" if f"not {asked}" in known else "unknown"


def test_logic_answers_agree_with_the_forward_closure_and_are_balanced() -> None:
    task = get_task("logic")
    problems = [task.problem("test", index) for index in range(600)]
    assert all(truth(problem.prompt) == problem.answer for problem in problems)
    assert min(Counter(problem.answer for problem in problems).values()) > 160


def test_logic_counts_a_dead_end_as_wrong_and_unknown_only_at_the_end_of_a_chain() -> None:
    task = get_task("logic")
    rules = (
        "Facts: Mia is red. Tom is old. If red then tall. If red then shy. If tall then not kind. If old then kind. "
    )

    def labels(question: str, answer: str, completion: str) -> list[bool]:
        return task.step_labels(Problem("logic", 1, "test", 0, rules + question, answer, ""), completion)

    kind = ("Is Mia kind?\n", "false")
    assert labels(*kind, "If red then tall.\nIf tall then not kind.\nanswer false\n") == [True] * 3
    assert labels(*kind, "If red then shy.\nanswer false\n") == [False] * 2
    assert labels(*kind, "If red then tall.\nanswer false\n") == [True, False]
    assert labels(*kind, "If old then kind.\n") == [False], "a fact about someone else"
    assert labels(*kind, "If red then not kind.\n") == [False], "not a rule, though it follows"
    assert labels(*kind, "If red then tall.\nIf red then shy.\n") == [True, False], "not a chain"
    old = ("Is Mia old?\n", "unknown")
    assert labels(*old, "If red then shy.\nanswer unknown\n") == [True] * 2
    assert labels(*old, "If red then tall.\nanswer unknown\n") == [True, False]


NUMBER = {"twice": 2, "three times": 3, "four times": 4}


def read_story(prompt: str) -> int:
    """The answer to a story by acting out its sentences."""
    *sentences, question = re.findall(r"[^.?]+[.?]", prompt.removeprefix("Story:").replace("\n", ""))
    thing = re.findall(r"How many (?:more )?(\w+)", question)[0]
    has: dict[str, int] = {}
    for sentence in (text.strip() for text in sentences):
        if not re.search(rf"\b{thing}\b", sentence):
            continue
        number = int(found[0]) if (found := re.findall(r"\d+", sentence)) else 0
        who = sentence.removeprefix("Then ").split()[0]
        last = sentence.removesuffix(".").split()[-1]
        if match := re.fullmatch(r"\w+ has (twice|three times|four times|half) as many \w+ as \w+\.", sentence):
            has[who] = has[last] // 2 if match[1] == "half" else has[last] * NUMBER[match[1]]
        elif re.fullmatch(r"\w+ has \d+ more \w+ than \w+\.", sentence):
            has[who] = has[last] + number
        elif re.fullmatch(r"\w+ has \d+ fewer \w+ than \w+\.", sentence):
            has[who] = has[last] - number
        elif re.fullmatch(r"\w+ has \d+ \w+\.", sentence):
            has[who] = number
        elif match := re.fullmatch(r"\w+ buys (\d+) \w+ of (\d+) \w+ each\.", sentence):
            has[who] += int(match[1]) * int(match[2])
        elif match := re.fullmatch(r"\w+ gives (\d+|half of the) \w+ to \w+\.", sentence):
            moved = has[who] // 2 if match[1].startswith("half") else number
            has[who] -= moved
            has[last] += moved
        elif re.fullmatch(r"\w+ (buys|finds|picks up|wins|gets) \d+ (more )?\w+\.", sentence):
            has[who] += number
        elif re.fullmatch(r"\w+ (loses|sells|gives away|drops|uses) \d+ \w+\.", sentence):
            has[who] -= number
        elif re.fullmatch(r"\w+ shares all the \w+ with \d cousins, equally\.", sentence):
            assert has[who] % (number + 1) == 0
            has[who] //= number + 1
        elif re.fullmatch(r"Then \w+ doubles the number of \w+\.", sentence):
            has[who] *= 2
        else:
            raise AssertionError(f"cannot read {sentence!r}")
        assert has[who] > 0
    if match := re.fullmatch(r" How many \w+ do (\w+) and (\w+) have .+\?", question):
        return has[match[1]] + has[match[2]]
    if match := re.fullmatch(r" How many more \w+ does (\w+) have than (\w+)\?", question):
        return has[match[1]] - has[match[2]]
    return has[re.findall(r"does (\w+) have", question)[0]]


def test_stories_answers_agree_with_acting_out_the_sentences() -> None:
    for problem in some(get_task("stories"), 150):
        assert str(read_story(problem.prompt)) == problem.answer, problem.prompt


def test_stories_accept_another_order_of_operands_and_of_people() -> None:
    task = get_task("stories")
    solution = "So Tom has 3+4=7 nuts.\nSo Mia has 9-2=7 nuts.\nSo together they have 7+7=14 nuts.\nanswer 14\n"
    problem = Problem("stories", 3, "test", 0, "...\n", "14", solution)
    for right in (
        "So Mia has 9-2=7 nuts.\nSo Tom has 4+3=7 nuts.\nSo together they have 7+7=14 nuts.\nanswer 14\n",
        solution,
    ):
        assert task.check(problem, right)
    assert not task.check(problem, solution.replace("nuts", "keys"))
    assert not task.check(problem, solution.replace("Mia", "Zoe"))
    assert task.step_labels(problem, "So Tom has 7=7 nuts.\n") == [False]
