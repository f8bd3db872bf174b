"""Problems from files: published formats by their fields, one's own, errors that name file, line and field."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

import bough
from bough import api
from bough.bench import Arm, evaluate, trials
from bough.core import InvalidInput, Run
from bough.search import Greedy, SelfConsistency
from bough.tasks import AnswerFile, CodeFile, Problem, files, get_task, load
from chains import ChainBackend
from toy import ToyBackend

GSM8K = {"question": "Ann has 3 bags of 6 pears. How many?", "answer": "3*6=<<3*6=18>>18 pears.\n#### 1,018"}
MATH = {
    "problem": "Compute $\\frac12+0$.", "solution": "It is $\\boxed{\\frac{1}{2}}$.", "answer": "\\frac{1}{2}",
    "subject": "Algebra", "level": 1, "unique_id": "test/algebra/1.json",
}  # fmt: skip
HUMANEVAL = {
    "task_id": "HumanEval/0", "entry_point": "double", "canonical_solution": "    return two() * x\n",
    "prompt": 'def two():\n    return 2\n\n\ndef double(x: int) -> int:\n    """ Double.\n    >>> double(2)\n    4\n    """\n',  # noqa: E501
    "test": "\n\nMETADATA = {}\n\n\ndef check(candidate):\n    assert candidate(2) == 4\n    assert candidate(5) == 10\n",  # noqa: E501
}  # fmt: skip
MBPP = {
    "task_id": 2, "text": "Write a function to add.", "code": "def add(a, b):\n    return a + b", "test_setup_code": "",  # noqa: E501
    "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"],
}  # fmt: skip


def write(path: Path, *records: Any) -> Path:
    text = "".join(json.dumps(record) + "\n" for record in records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def first(path: Path, **options: Any) -> tuple[Any, Problem]:
    task = load(path, **options)
    return task, task.problem("test", 0)


def test_gsm8k(tmp_path: Path) -> None:
    task, problem = first(write(tmp_path / "gsm8k.jsonl.gz", GSM8K, GSM8K))
    assert isinstance(task, AnswerFile) and task.size == 2 and task.step_stop == "\n"
    assert (problem.prompt, problem.answer, problem.split, problem.level) == (
        GSM8K["question"],
        "1,018",
        "file",
        None,
    )
    assert task.check(problem, GSM8K["answer"])
    assert task.check(problem, "The answer is $1018.00.")
    assert task.check(problem, "so \\boxed{1018}\n\nQuestion: Another?\nThe answer is 5.")
    assert not task.check(problem, "#### 1019\n") and not task.check(problem, "1018")
    assert task.extract("#### 1,018.0") == "1018" and task.extract("1018") is None
    assert task.is_complete("a\n#### 5\n") and not task.is_complete("a\n#### 5")
    assert task.prompt(problem, chat=False).startswith("Question: Ann") and "####" in task.prompt(problem, chat=False)
    assert task.prompt(problem, chat=True) == [
        {"role": "user", "content": f"{GSM8K['question']}\n\n{task.instruction}"}
    ]  # fmt: skip
    assert not hasattr(task, "step_labels")


@pytest.mark.parametrize(
    "record",
    [
        MATH,
        {"problem": MATH["problem"], "answer": MATH["answer"]},
        {"problem": MATH["problem"], "solution": MATH["solution"], "type": "Algebra", "level": "Level 1"},
        {"ID": "2024-I-1", "Problem": MATH["problem"], "Answer": "0.5"},
    ],
)
def test_math_and_aime(tmp_path: Path, record: dict[str, Any]) -> None:
    task, problem = first(write(tmp_path / "math.jsonl", record))
    assert task.step_stop == "\n\n"
    assert task.check(problem, "Thus \\(\\boxed{\\dfrac12}\\).") and not task.check(problem, "\\boxed{2}")
    assert task.extract("\\boxed{\\tfrac{2}{4}}") == "1/2"
    assert task.is_complete("Thus \\boxed{3}.") and not task.is_complete("Thus \\boxed{3")
    assert problem.id in ("test/algebra/1.json", "2024-I-1", "")
    assert "\\boxed{}" in task.prompt(problem, chat=True)[0]["content"]


def test_aime_as_a_table(tmp_path: Path) -> None:
    path = tmp_path / "aime.csv"
    path.write_text('ID,Problem,Answer\n2024-I-4,"Find $m+n$,\nplease.",116\n2024-I-5,Find it.,073\n')
    task = load(path)
    assert task.size == 2
    assert task.problem("test", 0).prompt == "Find $m+n$,\nplease."
    assert task.check(task.problem("test", 1), "\\boxed{73}")


BODY = "    return 2 * x\n"
WHOLE = "def double(x):\n    y = x\n    return y + x\n"


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        (BODY, True),
        (BODY + "\n\ndef other():\n    broken(\n", True),
        (BODY + "\nif __name__ == '__main__':\n    exit()\n", True),
        (WHOLE, True),
        (f"Sure! Here it is:\n\n```python\n{WHOLE}```\nIt doubles.\n```python\nassert double(1) == 3\n```\n", True),
        (f"```python\n{BODY}```", True),
        (f"```\n{WHOLE}", True),
        ("    return two() + x\n", False),
        ("    return 4\n", False),
        ("    import os\n    os._exit(0)\n", False),
        ("    return (\n", False),
        ("", False),
        ("\n", False),
    ],
)
def test_humaneval(tmp_path: Path, completion: str, right: bool) -> None:
    task, problem = first(write(tmp_path / "he.jsonl", HUMANEVAL))
    assert isinstance(task, CodeFile) and problem.id == "HumanEval/0"
    assert task.check(problem, completion) == right


def test_humaneval_s_own_solutions_and_prompts(tmp_path: Path) -> None:
    task, problem = first(write(tmp_path / "he.jsonl.gz", HUMANEVAL))
    assert task.check(problem, problem.solution)
    assert task.prompt(problem, chat=False) == HUMANEVAL["prompt"]
    assert "```python\ndef two" in task.prompt(problem, chat=True)[0]["content"]
    assert not task.is_complete(BODY) and task.is_complete(BODY + "\ndef other")
    assert not task.is_complete("Sure:\n```python\n" + WHOLE) and task.is_complete(f"Sure:\n```python\n{WHOLE}```\n")
    assert task.extract(BODY + "\nprint(1)\n") == BODY.rstrip()


def test_mbpp_and_code_of_one_s_own(tmp_path: Path) -> None:
    own = {"prompt": "Write add.", "tests": "assert add(1, k) == 3", "setup": "k = 2", "entry_point": "add"}
    for record in (MBPP, own):
        task, problem = first(write(tmp_path / "code.jsonl", record))
        assert task.check(problem, "```python\ndef add(a, b):\n    return b + a\n```")
        assert not task.check(problem, "```python\ndef add(a, b):\n    return a\n```")
    assert "assert add(1, 2) == 3" in load(write(tmp_path / "mbpp.jsonl", MBPP)).problem("test", 0).prompt


def test_a_file_of_one_s_own(tmp_path: Path) -> None:
    task, problem = first(write(tmp_path / "own.jsonl", {"prompt": "17*23?", "answer": 391, "id": 7, "note": [1]}))
    assert (problem.prompt, problem.answer, problem.id) == ("17*23?", "391", "7")
    assert task.prompt(problem, chat=False) == "17*23?"
    for right in ("391", "391.0\n", "Let us see.\nThe answer is 391.", "\\boxed{391}"):
        assert task.check(problem, right)
    for wrong in ("392", "It could be\n391", ""):
        assert not task.check(problem, wrong)
    asked = load(tmp_path / "own.jsonl", instruction="Answer in a box.", step_stop=". ")
    assert asked.prompt(problem_of(asked), chat=False) == "17*23?\n\nAnswer in a box." and asked.step_stop == ". "


def problem_of(task: Any) -> Problem:
    return task.problem("test", 0)


def test_a_task_is_named_after_its_file_and_contents(tmp_path: Path) -> None:
    path = write(tmp_path / "own.jsonl", {"prompt": "a", "answer": "b"})
    task = load(path)
    assert task.name.startswith("own@") and len(task.name) == len("own@") + 8
    assert get_task(task.name) is task and get_task(str(path)) is task
    assert load(path, instruction="Think.").name != task.name
    write(path, {"prompt": "a", "answer": "c"})
    assert load(path).name != task.name
    with pytest.raises(InvalidInput, match="was given to the judge of"):
        load(path).check(task.problem("test", 0), "b")


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (['{"prompt": "a"}'], r"line 1: its fields \('prompt'\) are of no known format; give 'prompt' and 'answer'"),
        (['{"prompt": "a", "answer": "b"}', "", '{"prompt": "a"}'], r"line 3: field 'answer' is missing; add it"),
        (
            ['{"prompt": "a", "answer": "b"}', '{"prompt": "", "answer": "b"}'],
            r"line 2: field 'prompt' is \"\"; it must",
        ),
        (['{"prompt": "a", "answer": ["b"]}'], r"field 'answer' is \[\"b\"\]; it must be text"),
        (['{"prompt": "a", "tests": []}'], r"field 'tests' is \[\]; it must be a list of statements"),
        (
            ['{"prompt": "a", "tests": ["x"], "entry_point": "f("}'],
            r"field 'entry_point' is 'f\('; it must be the name",
        ),
        (['{"prompt": "a", "answer": "b"}', '{"prompt": "a", "tests": ["x"]}'], "line 2: some lines have an answer"),
        (
            ['{"question": "a", "answer": "5"}'],
            r"field 'answer' has no line '#### x'; end it with one \(format gsm8k\)",
        ),
        (['{"problem": "a", "solution": "5"}'], r"there is no 'solution' with a \\boxed\{\} answer"),
        (['{"prompt": '], "line 1, is not JSON"),
        (["[1]"], "line 1, is a JSON list; each line must be one object"),
        ([""], "has no problems; give it at least one line"),
    ],
)
def test_errors_name_file_line_field_and_remedy(tmp_path: Path, lines: list[str], says: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(InvalidInput, match=says) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_files_that_cannot_be_read_say_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        load(tmp_path / "none.jsonl")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "a", "answer": "b"}')[:-9])
    with pytest.raises(InvalidInput, match="cannot be read"):
        load(tmp_path / "cut.jsonl.gz")
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "a", "answer": "b"}\n{"prompt": "\xe9"}\n')
    with pytest.raises(InvalidInput, match="line 2, is not UTF-8"):
        load(tmp_path / "latin.jsonl")
    with pytest.raises(InvalidInput, match="must end in .jsonl"):
        load(tmp_path / "own.txt")
    with pytest.raises(InvalidInput, match="format='maths' is not one of"):
        load(tmp_path / "own.jsonl", format="maths")
    with pytest.raises(InvalidInput, match="or give a file"):
        get_task("sudoku")


def test_a_format_can_be_told(tmp_path: Path) -> None:
    path = write(tmp_path / "both.jsonl", {**GSM8K, "prompt": "Own?", "problem": "x"})
    assert load(path).step_stop == "\n" and load(path).items[0].answer == "1,018"
    assert load(path, format="own").items[0].prompt == "Own?"
    assert get_task(f"math:{path}").items[0].prompt == "x"  # type: ignore[attr-defined]
    assert files.split_format("C:/own.jsonl") == (None, "C:/own.jsonl")


def test_there_are_no_levels_and_no_more_problems_than_lines(tmp_path: Path) -> None:
    task = load(write(tmp_path / "own.jsonl", {"prompt": "a", "answer": "b"}))
    assert task.problem("validation", 0) == task.problem("test", 0)
    with pytest.raises(InvalidInput, match="no problem 1 in .* which has 1"):
        task.problem("test", 1)
    with pytest.raises(InvalidInput, match="level=2: .* has no levels"):
        task.problem("test", 0, 2)


def test_votes_merge_answers_that_are_equal(tmp_path: Path) -> None:
    from bough.search.vote import winner

    task = load(write(tmp_path / "math.jsonl", MATH))
    texts = ["\\boxed{2}", "\\boxed{0.5}", "\\boxed{\\frac12}", "\\boxed{1/2}", "\\boxed{2.0}"]
    assert winner([task.extract(text) for text in texts]) == (1, 3.0)


# With a model ------------------------------------------------------------------------------------------------


def test_the_problem_reaches_the_model_as_text_or_as_a_chat(tmp_path: Path) -> None:
    task, problem = first(write(tmp_path / "own.jsonl", {"prompt": "ab?", "answer": "b"}))
    backend = ToyBackend()
    assert api.prepare(backend, problem, strategy=Greedy()).root.text == "ab?"
    backend.tokenizer.chat_template = "there is one"  # type: ignore[attr-defined]
    backend.tokenizer.chat = lambda messages, **_: [5, *backend.encode(messages[0]["content"])]  # type: ignore[method-assign]  # noqa: E501
    assert api.prepare(backend, problem, strategy=Greedy()).root.text == "cab?"
    assert api.prepare(backend, problem, strategy=Greedy()).run.task is task


def test_a_bench_judges_by_the_file(tmp_path: Path) -> None:
    arithmetic = [get_task("arithmetic").problem("test", index, 1) for index in range(6)]
    records = [{"prompt": p.prompt, "answer": p.answer if i % 2 else "-1", "id": i} for i, p in enumerate(arithmetic)]
    task = load(write(tmp_path / "own.jsonl", *records), step_stop="\n")
    problems = [task.problem("test", index) for index in range(task.size or 0)]
    found = evaluate(ChainBackend(), trials([Arm(Greedy())], problems))
    texts = [
        bough.solve(ChainBackend(), problem.prompt, strategy=Greedy(), task="arithmetic").text
        for problem in arithmetic
    ]
    ended = [get_task("arithmetic").extract(text) for text in texts]
    right = [answer == record["answer"] for answer, record in zip(ended, records, strict=True)]
    assert [record["correct"] for record in found] == right and set(right) == {True, False}
    assert {(record["task"], record["split"], record["level"]) for record in found} == {(task.name, "file", None)}
    assert Run(task=task).step_stops == ["\n"]
    answer = bough.solve(ChainBackend(), problems[1], strategy=SelfConsistency(n=3))
    assert answer.text
