"""What a task is: problems with checkable answers; generated ones also have an exact judge of every line."""

from __future__ import annotations

import hashlib
import random
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from bough.core.errors import InvalidInput

SPLITS = ("train", "validation", "test")
DONE: Any = "done"  # the state of a solution whose answer line has been accepted
_HELD_OUT = {0: "validation", 1: "test"}  # of 16 hash classes, two are held out


@dataclass(frozen=True)
class Problem:
    """One problem: the prompt, the final answer, and one worked solution (empty where none is known).

    ``level`` is None, and ``split`` "file", for a problem that was read from a file; ``id`` is its name there.
    """

    task: str
    level: int | None
    split: str
    index: int
    prompt: str
    answer: str
    solution: str
    id: str = ""


@dataclass(frozen=True)
class Draw:
    """What a generator returns; `key` is equal for problems that are the same up to presentation."""

    key: str
    prompt: str
    answer: str
    solution: str


class Task(ABC):
    """Problems with checkable answers.

    Attributes:
        name: what it is called on the command line and in records.
        size: how many problems there are; None where there is no end of them.
        step_stop: what ends a step.
        answer_stop: what ends a solution; None where the model ends the text itself.
    """

    name: str
    size: int | None = None
    step_stop: str = "\n"
    answer_stop: str | None = None

    @abstractmethod
    def problem(self, split: str, index: int, level: int | None = None) -> Problem:
        """The problem with this index; the same arguments always give the same problem.

        Raises InvalidInput for what there is not.
        """

    @abstractmethod
    def extract(self, text: str) -> str | None:
        """The final answer of a completion, or None if there is none."""

    @abstractmethod
    def is_complete(self, text: str) -> bool:
        """Whether a completion is a whole solution although the text has not ended."""

    @abstractmethod
    def check(self, problem: Problem, completion: str) -> bool:
        """Whether a completion solves the problem."""

    def prompt(self, problem: Problem, chat: bool) -> str | list[dict[str, str]]:
        """What a model is given: text, or messages where it has a chat template and the task wants it used."""
        return problem.prompt


class GeneratedTask(Task):
    """A family of problems without end, whose solutions are written in steps, one per line.

    Every solution ends with the line `answer ...`. A solution is *right* when every one of its lines is: a
    lucky answer after a wrong line does not count. A problem belongs to a split by a hash of its key, so the
    three splits cannot overlap, whatever indices are drawn.
    """

    levels: ClassVar[tuple[int, ...]]
    default_level: ClassVar[int]

    @abstractmethod
    def draw(self, rng: random.Random, level: int) -> Draw:
        """One random problem of a level."""

    @abstractmethod
    def start(self, problem: Problem) -> Any:
        """The judge's state before the first line; never None."""

    @abstractmethod
    def advance(self, problem: Problem, state: Any, line: str) -> Any | None:
        """The state after a line, DONE after a right answer line, None when the line is wrong."""

    def problem(self, split: str, index: int, level: int | None = None) -> Problem:
        """The problem with this index; the same arguments always give the same problem.

        Raises InvalidInput for an unknown split or level, or a negative index.
        """
        level = self.default_level if level is None else level
        if split not in SPLITS:
            raise InvalidInput(f"unknown split {split!r}: choose from {', '.join(SPLITS)}")
        if level not in self.levels:
            raise InvalidInput(f"task {self.name!r} has no level {level!r}: choose from {list(self.levels)}")
        if index < 0:
            raise InvalidInput(f"problem index {index} is negative: indices start at 0")
        rng = random.Random(f"{self.name}/{level}/{split}/{index}")
        while True:
            draw = self.draw(rng, level)
            if split_of(self.name, draw.key) == split:
                return Problem(self.name, level, split, index, draw.prompt, draw.answer, draw.solution)

    def extract(self, text: str) -> str | None:
        """The final answer of a completion: what its last line `answer ...` says, or None."""
        last = text.rstrip("\n").rsplit("\n", 1)[-1]
        return match[1] if (match := re.fullmatch(r"answer (\S+)", last)) else None

    def is_complete(self, text: str) -> bool:
        """Whether a completion ends with a finished answer line, after which only the end of the text can follow."""
        return text.endswith("\n") and self.extract(text) is not None

    def check(self, problem: Problem, completion: str) -> bool:
        """Whether a completion is a whole right solution: every line right, and the answer exact."""
        lines = completion.split("\n")
        if lines[-1] == "":
            lines.pop()
        return self._states(problem, lines)[-1:] == [DONE]

    def step_labels(self, problem: Problem, completion: str) -> list[bool]:
        """For every finished line (one that ends in a newline): is the solution still right so far?"""
        return [state is not None for state in self._states(problem, completion.split("\n")[:-1])]

    def _states(self, problem: Problem, lines: list[str]) -> list[Any]:
        if problem.task != self.name:
            raise InvalidInput(f"a problem of task {problem.task!r} was given to the judge of {self.name!r}")
        states, state = [], self.start(problem)
        for line in lines:
            state = None if state is None or state is DONE else self.advance(problem, state, line)
            states.append(state)
        return states


def split_of(task: str, key: str) -> str:
    """The split that a problem with this key belongs to: 1/16 validation, 1/16 test, the rest train."""
    digest = hashlib.blake2b(f"{task}\0{key}".encode(), digest_size=1).digest()
    return _HELD_OUT.get(digest[0] % 16, "train")


def is_number(text: str) -> bool:
    """A natural number as the generators write it: ASCII digits, no leading zero, at most nine digits."""
    return re.fullmatch(r"0|[1-9][0-9]{0,8}", text) is not None


def apply(left: int, op: str, right: int) -> int:
    """left op right for op in + - * and exact / (ValueError otherwise)."""
    if op == "+":
        return left + right
    if op == "-":
        return left - right
    if op == "*":
        return left * right
    if op == "/" and right and left % right == 0:
        return left // right
    raise ValueError(f"{left}{op}{right} is not a whole number")
