"""Tasks from files: a JSONL file of your own, or GSM8K, MATH, AIME, HumanEval and MBPP as they are published.

Your own file has one JSON object a line, with a final answer (compared by `answers.equivalent`) or with tests (code,
run in a sandbox):

    {"prompt": "What is 17*23?", "answer": "391"}
    {"prompt": "Write add(a, b).", "tests": ["assert add(1, 2) == 3"], "entry_point": "add"}

and where you like ``id`` (its name), ``solution`` (a worked one) and ``setup`` (code that runs before the answer's);
other fields are left alone. All lines have an ``answer``, or all have ``tests``. Files end in .jsonl, .jsonl.gz, .csv
or .csv.gz. The published formats are recognised by their fields:

| format | fields |
|---|---|
| gsm8k | question, answer (its last line is ``#### 18``) |
| math, aime | problem, answer (or only a solution with a \\boxed{} answer); also Problem, Answer |
| humaneval | task_id, prompt, test, entry_point, canonical_solution |
| mbpp | text or prompt, code, test_list, test_setup_code |
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bough.core.errors import InvalidInput

from . import answers
from .base import Problem, Task
from .sandbox import run_tests

_SUFFIXES = (".jsonl", ".jsonl.gz", ".json.gz", ".csv", ".csv.gz")
_BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
_HASHES = "Please reason step by step, and write your final answer on a line of its own, after ####."


_CLOSED = re.compile(r"^[ \t]*```[^\n]*\n.*?^[ \t]*```[ \t]*$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Item:
    """What a line says of its problem.

    Attributes:
        prompt: the question; for code, what the model sees of it.
        answer: the right final answer; "" for code.
        solution: a worked solution; "" where none is given.
        tests: statements that raise where the code is wrong; empty for a final answer.
        setup: code that runs before the answer's; a completion may also go on where it ends.
        entry_point: the function that is asked for, where it has a name.
        id: its name in the file.
    """

    prompt: str
    answer: str = ""
    solution: str = ""
    tests: tuple[str, ...] = ()
    setup: str = ""
    entry_point: str | None = None
    id: str = ""


class FileTask(Task):
    """The problems of one file, by their index.

    A file has no splits and no levels: whichever split is asked for, its problems are those of the file, and say
    so (``split="file"``). The name has a digest of the contents: another version's results are another task's.
    """

    def __init__(self, name: str, items: list[Item], *, instruction: str, step_stop: str) -> None:
        self.name = name
        self.size = len(items)
        self.items = items
        self.instruction = instruction
        self.step_stop = step_stop

    def problem(self, split: str, index: int, level: int | None = None) -> Problem:
        """The problem on the ``index``-th line that is not blank, from 0.

        Raises InvalidInput for an index that the file does not have, and for a level.
        """
        if level is not None:
            raise InvalidInput(f"level={level}: the file of task {self.name!r} has no levels; leave it out")
        if not 0 <= index < len(self.items):
            raise InvalidInput(
                f"there is no problem {index} in {self.name!r}, which has {len(self.items)}; count from 0"
            )
        item = self.items[index]
        return Problem(self.name, None, "file", index, item.prompt, item.answer, item.solution, item.id)

    def item(self, problem: Problem) -> Item:
        """What the file says of a problem."""
        if problem.task != self.name:
            raise InvalidInput(f"a problem of task {problem.task!r} was given to the judge of {self.name!r}")
        return self.items[problem.index]

    def prompt(self, problem: Problem, chat: bool) -> str | list[dict[str, str]]:
        """A user's message, or text for a model that has no chat template."""
        content = self.request(self.item(problem), chat)
        return [{"role": "user", "content": content}] if chat else content

    @abstractmethod
    def request(self, item: Item, chat: bool) -> str:
        """What the model is asked."""


class AnswerFile(FileTask):
    """Problems with a final answer, which counts as right in any way to write it (`answers.equivalent`)."""

    def __init__(
        self, name: str, items: list[Item], *, instruction: str, step_stop: str, plain: bool = False
    ) -> None:
        super().__init__(name, items, instruction=instruction, step_stop=step_stop)
        self._plain = plain
        # A model that was trained on text alone goes on to the next question.
        self.answer_stop = None if plain else "\n\nQuestion:"

    def request(self, item: Item, chat: bool) -> str:
        """The question and how to answer it."""
        if chat or self._plain:
            return f"{item.prompt}\n\n{self.instruction}" if self.instruction else item.prompt
        return f"Question: {item.prompt}\n{self.instruction}\nAnswer:"

    def written(self, text: str) -> str | None:
        """The final answer of a completion as it is written, or None."""
        if self.answer_stop is not None:
            text = text.split(self.answer_stop)[0]
        found = answers.extract(text)
        # A prompt of one's own may ask for the answer alone.
        if found is None and self._plain and len(text.strip().splitlines()) == 1:
            return text.strip()
        return found

    def extract(self, text: str) -> str | None:
        """The final answer in its canonical form, so that votes count equal answers together."""
        found = self.written(text)
        return None if found is None else answers.canonical(found)

    def is_complete(self, text: str) -> bool:
        """Whether a completion has a \\boxed{} answer, or a whole line `#### x`."""
        return (
            answers.boxed(text) is not None or re.search(r"^[ \t]*####[ \t]*\S.*\n", text, re.MULTILINE) is not None
        )

    def check(self, problem: Problem, completion: str) -> bool:
        """Whether the final answer is right."""
        right, found = self.item(problem).answer, self.written(completion)
        return found is not None and answers.equivalent(found, right)


class CodeFile(FileTask):
    """Programming problems: a completion is right when its code passes the tests (`sandbox.run_tests`)."""

    answer_stop = "\nif __name__"

    def request(self, item: Item, chat: bool) -> str:
        """The question; in a chat, a function to complete is in a code block."""
        if chat and item.prompt == item.setup:
            return f"{self.instruction}\n\n```python\n{item.prompt.strip()}\n```"
        return f"{item.prompt}\n\n{self.instruction}" if chat and self.instruction else item.prompt

    def extract(self, text: str) -> str | None:
        """The code of a completion: what its code block has, or the text up to where the function is over."""
        return code_of(text)

    def is_complete(self, text: str) -> bool:
        """Whether a code block is closed, or the function that a completion goes on with is over."""
        if "```" in text:
            return _CLOSED.search(text) is not None
        return len(_body(text)) < len(text)

    def program(self, problem: Problem, completion: str) -> str | None:
        """What is run before the tests; None where the completion has no code."""
        item, found = self.item(problem), self.extract(completion)
        if found is None:
            return None
        return assemble(item.setup, found, item.entry_point)

    def check(self, problem: Problem, completion: str) -> bool:
        """Whether the code passes all tests; takes as long as they do."""
        program = self.program(problem, completion)
        return program is not None and run_tests(program, self.item(problem).tests).passed


def assemble(setup: str, code: str, entry_point: str | None) -> str:
    """The program of a setup and a completion's code.

    Code that defines the entry point stands below the setup (a redefinition wins); other code goes on where it ends.
    """
    name = r"\w+" if entry_point is None else re.escape(entry_point)
    defines = re.search(rf"^(?:async def|def|class) {name}\b|^{name}\s*=", code, re.MULTILINE) is not None
    return setup + ("\n" if setup and defines else "") + code + "\n"


def code_of(text: str) -> str | None:
    """The code of a completion: what its code block has, else the text up to where the function is over; or None."""
    found = answers.code(text)
    return (_body(text) if found is None else found).strip("\n").rstrip() or None


def _body(text: str) -> str:
    """A completion without code blocks, up to where something else begins; Chen et al. 2021, arXiv:2107.03374.

    A text that begins at the margin is a program of its own, in which only a main part or a test is something else.
    """
    at_margin = re.match(r"\s*\n\S|\S", text) is not None
    ends = r"\n(?:if __name__|print\(|assert |```)" if at_margin else r"\n(?:class |def |@|#|if |print\(|assert |```)"
    return re.split(ends, text, maxsplit=1)[0]


# Formats -----------------------------------------------------------------------------------------------------


class _Missing(Exception):
    """A field is missing or wrong; the message says which and what to do."""


def _text(record: Mapping[str, Any], *names: str) -> str:
    """The first of these fields, which must hold some text or a number."""
    name = next((name for name in names if record.get(name) is not None), None)
    if name is None:
        raise _Missing(f"field {names[0]!r} is missing; add it, as text")
    value = record[name]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise _Missing(f"field {name!r} is {json.dumps(value)[:60]}; it must be text that is not empty")
    return value


def _optional(record: Mapping[str, Any], name: str) -> str:
    return _text(record, name) if record.get(name) not in (None, "") else ""


def _statements(record: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = record.get(name)
    if value is None:
        raise _Missing(f"field {name!r} is missing; add it, as a list of statements such as 'assert f(1) == 2'")
    found = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else ()
    if not found or not all(isinstance(one, str) and one.strip() for one in found):
        raise _Missing(f"field {name!r} is {json.dumps(value)[:60]}; it must be a list of statements, none empty")
    return found


def _gsm8k(record: Mapping[str, Any]) -> Item:
    solution = _text(record, "answer")
    answer = answers.after_hashes(solution)
    if answer is None:
        raise _Missing("field 'answer' has no line '#### x'; end it with one")
    return Item(_text(record, "question"), answer, solution, id=_optional(record, "id"))


def _math(record: Mapping[str, Any]) -> Item:
    record = {name.lower(): value for name, value in record.items()}
    solution = _optional(record, "solution")
    answer = _optional(record, "answer") or answers.boxed(solution)
    if not answer:
        raise _Missing(
            "field 'answer' is missing, and there is no 'solution' with a \\boxed{} answer; add one of them"
        )
    name = record.get("unique_id") or record.get("id") or ""
    return Item(_text(record, "problem"), answer, solution, id=str(name))


def _humaneval(record: Mapping[str, Any]) -> Item:
    prompt, entry = _text(record, "prompt"), _text(record, "entry_point")
    tests = (f"{_text(record, 'test')}\ncheck({entry})",)
    if not entry.isidentifier():
        raise _Missing(f"field 'entry_point' is {entry!r}; it must be the name of a function")
    solution = _optional(record, "canonical_solution")
    return Item(prompt, "", solution, tests, prompt, entry, _text(record, "task_id"))


def _mbpp(record: Mapping[str, Any]) -> Item:
    tests = _statements(record, "test_list")
    examples = "\n".join(tests)
    prompt = f"{_text(record, 'text', 'prompt')} Your code should pass these tests:\n\n{examples}\n"
    setup = _optional(record, "test_setup_code")
    return Item(
        prompt, "", _optional(record, "code"), tests, setup and setup + "\n", None, _optional(record, "task_id")
    )


def _own(record: Mapping[str, Any]) -> Item:
    solution, name = _optional(record, "solution"), _optional(record, "id")
    if "tests" not in record:
        if record.get("answer") is None:
            raise _Missing("field 'answer' is missing; add it, or 'tests' for code")
        return Item(_text(record, "prompt"), _text(record, "answer"), solution, id=name)
    setup, entry = _optional(record, "setup"), _optional(record, "entry_point") or None
    if entry is not None and not entry.isidentifier():
        raise _Missing(f"field 'entry_point' is {entry!r}; it must be the name of a function")
    prompt = _text(record, "prompt")
    return Item(prompt, "", solution, _statements(record, "tests"), setup, entry, name)


@dataclass(frozen=True)
class Format:
    """How a file's lines are read and its problems asked.

    Attributes:
        read: a line's record as an `Item`.
        fields: a line that has one of each group is in this format.
        instruction: what is asked of the model beside the question.
        step_stop: what ends a step.
    """

    read: Callable[[Mapping[str, Any]], Item]
    fields: tuple[tuple[str, ...], ...]
    instruction: str = ""
    step_stop: str = "\n"


_CODE = "Give the whole code, with its imports, in one Python code block."
_COMPLETE = "Complete this Python function. Give the whole function, with its imports, in one Python code block."
_MATH = Format(_math, (("problem", "Problem"), ("answer", "Answer", "solution", "Solution")), _BOXED, "\n\n")

# In the order in which they are tried.
FORMATS: dict[str, Format] = {
    "humaneval": Format(_humaneval, (("task_id",), ("prompt",), ("test",), ("entry_point",)), _COMPLETE),
    "mbpp": Format(_mbpp, (("text", "prompt"), ("test_list",)), _CODE),
    "gsm8k": Format(_gsm8k, (("question",), ("answer",)), _HASHES),
    "math": _MATH,
    "aime": _MATH,
    "own": Format(_own, (("prompt",), ("answer", "tests"))),
}


def load(
    path: str | Path, *, format: str | None = None, instruction: str | None = None, step_stop: str | None = None
) -> FileTask:
    """The task in a file.

    Args:
        path: .jsonl or .csv, as it is or compressed (.gz).
        format: one of `FORMATS`; default, what the fields of the first line say.
        instruction: what the model is asked to do beside answering the question; default, the format's.
        step_stop: what ends a step of a solution; default, a blank line for MATH and AIME, else a line's end.

    Raises:
        InvalidInput: the file cannot be read, or a line is not what the format wants; the message names file, line
            and field.
    """
    path = Path(path)
    if format is not None and format not in FORMATS:
        raise InvalidInput(f"format={format!r} is not one of {', '.join(FORMATS)}")
    data = _bytes(path)
    items: list[Item] = []
    chosen = format
    for number, record in _records(path, data):
        where = f"{path}, line {number}"
        chosen = chosen or _recognise(record, where)
        try:
            item = FORMATS[chosen].read(record)
        except _Missing as error:
            raise InvalidInput(f"{where}: {error} (format {chosen})") from None
        if items and bool(item.tests) != bool(items[0].tests):
            raise InvalidInput(f"{where}: some lines have an answer and others tests; give them in two files")
        items.append(item)
    if not items or chosen is None:
        raise InvalidInput(f"{path} has no problems; give it at least one line")
    made = FORMATS[chosen]
    asked = made.instruction if instruction is None else instruction
    stop = made.step_stop if step_stop is None else step_stop
    if not stop:
        raise InvalidInput("step_stop is empty, so a step would never end; give some text")
    digest = hashlib.blake2b(repr((chosen, asked, stop)).encode() + data, digest_size=4).hexdigest()
    stem = path.name
    for suffix in sorted(_SUFFIXES, key=len, reverse=True):
        stem = stem.removesuffix(suffix)
    name = f"{stem}@{digest}"
    if items[0].tests:
        return CodeFile(name, items, instruction=asked or _CODE, step_stop=stop)
    return AnswerFile(name, items, instruction=asked, step_stop=stop, plain=chosen == "own")


def names_a_file(name: str) -> bool:
    """Whether a task's name is that of a file, with or without a format before it (``math:problems.jsonl``)."""
    path = split_format(name)[1]
    return path.endswith((*_SUFFIXES, ".json")) or "/" in path or "\\" in path


def split_format(name: str) -> tuple[str | None, str]:
    """The format and the path of ``format:path``; of any other text None and itself."""
    before, colon, after = name.partition(":")
    return (before, after) if colon and before in FORMATS else (None, name)


def _recognise(record: Mapping[str, Any], where: str) -> str:
    for name, format in FORMATS.items():
        if all(any(field in record for field in group) for group in format.fields):
            return name
    raise InvalidInput(
        f"{where}: its fields ({', '.join(map(repr, record)) or 'none'}) are of no known format; give 'prompt' and "
        f"'answer' (or 'tests'), or name the format: {', '.join(FORMATS)}"
    )


def _bytes(path: Path) -> bytes:
    if not path.name.endswith(_SUFFIXES):
        raise InvalidInput(f"{path} is no file of problems by its name; it must end in {', '.join(_SUFFIXES)}")
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, ValueError) as error:
        raise InvalidInput(f"{path} cannot be read ({error}); check the path and the file") from None


def _records(path: Path, data: bytes) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Line numbers, from 1, and what they say."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        broken = data[: error.start].count(b"\n") + 1
        raise InvalidInput(f"{path}, line {broken}, is not UTF-8 text; save it as UTF-8") from None
    if ".csv" in path.suffixes:
        reader = csv.DictReader(io.StringIO(text))
        for row in reader:
            yield reader.line_num, {field: value for field, value in row.items() if field is not None}
        return
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InvalidInput(
                f"{path}, line {number}, is not JSON ({error}); each line must be one object"
            ) from None
        if not isinstance(record, dict):
            raise InvalidInput(
                f"{path}, line {number}, is a JSON {type(record).__name__}; each line must be one object"
            )
        yield number, record
