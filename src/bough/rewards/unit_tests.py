"""Unit tests as a reward: the share of tests that a branch's code passes, run in a sandbox (`bough.tasks.sandbox`).

Without tests of its own it takes the examples that the prompt shows (``>>> f(2)`` with its result, and ``assert``
lines), as AlphaCode filters its samples (Li et al. 2022, arXiv:2203.07814); where a prompt has none, code that runs
scores 1. It never sees a task's hidden tests. Pays where a program is easier to test than to write; costs a
process per program.
"""

from __future__ import annotations

import ast
import asyncio
import doctest
import re
from collections.abc import Sequence

from bough.core import Branch, InvalidInput, Run
from bough.tasks import answers
from bough.tasks.files import assemble, code_of
from bough.tasks.sandbox import Limits, run_tests

_END = re.compile(r"^[ \t]*(?:\"\"\"|''')", re.MULTILINE)
_ASSERTION = re.compile(r"^[ \t]*(assert .+)$", re.MULTILINE)


class UnitTests:
    """The share of the tests that the code of a branch passes, in [0, 1]; 0 for one without code.

    Programs run at the same time, as many as there are cores; each once, however often it is asked about.

    Args:
        tests: statements that raise where the code is wrong; default, the examples in the prompt.
        setup: code that the completion goes on with or stands below; default, the Python in the prompt.
        entry_point: the function asked for; default, the last one in the setup.
        limits: what a program may use.
        memory: how many programs' scores are remembered.

    Attributes:
        executed: how many programs were run.
    """

    name = "unit-tests"

    def __init__(
        self,
        tests: Sequence[str] | None = None,
        *,
        setup: str | None = None,
        entry_point: str | None = None,
        limits: Limits | None = None,
        memory: int = 1 << 14,
    ) -> None:
        if isinstance(tests, str) or (tests is not None and not tests):
            raise InvalidInput(f"tests={tests!r} must be a list of at least one statement, or None for the prompt's")
        if memory < 1:
            raise InvalidInput(f"memory={memory} must be at least 1 score")
        self.tests = None if tests is None else tuple(tests)
        self.setup = setup
        self.entry_point = entry_point
        self.limits = limits or Limits()
        self.memory = memory
        self.executed = 0
        self._scores: dict[tuple[str, tuple[str, ...]], float] = {}

    async def __call__(self, branches: Sequence[Branch], run: Run) -> list[float]:
        """One share per branch."""
        jobs = [self._job(branch) for branch in branches]
        new = [job for job in dict.fromkeys(jobs) if job is not None and job not in self._scores]
        self.executed += len(new)
        found = await asyncio.gather(*(asyncio.to_thread(run_tests, *job, self.limits) for job in new))
        known = {job: self._scores[job] for job in jobs if job is not None and job in self._scores}
        known.update((job, sum(one.passes) / len(one.passes)) for job, one in zip(new, found, strict=True))
        self._scores.update(known)
        while len(self._scores) > self.memory:
            del self._scores[next(iter(self._scores))]
        return [0.0 if job is None else known[job] for job in jobs]

    def _job(self, branch: Branch) -> tuple[str, tuple[str, ...]] | None:
        """Program and tests."""
        code = code_of(branch.answer)
        if code is None:
            return None
        prompt = branch.root.text
        setup = code_in(prompt) if self.setup is None else self.setup
        names = re.findall(r"^(?:async )?def (\w+)", setup, re.MULTILINE)
        entry = self.entry_point or (names[-1] if names else None)
        shown = examples(code_in(prompt) or prompt)
        tests = (shown or ("pass",)) if self.tests is None else self.tests
        return assemble(setup, code, entry), tests


def code_in(prompt: str) -> str:
    """The Python of a prompt: its code block, else all of it if it is a program, else nothing."""
    block = answers.code(prompt)
    if block is not None:
        return block
    return prompt if _parses(prompt, "exec") else ""


def examples(prompt: str) -> tuple[str, ...]:
    """The examples of a prompt as tests: each ``>>>`` with its result, and each ``assert`` line."""
    try:
        shown = doctest.DocTestParser().get_examples(prompt)
    except ValueError:  # badly indented
        shown = []
    tests = []
    for one in shown:
        # The last result of a docstring is followed by the line that ends it.
        source, want = one.source.strip(), _END.split(one.want, maxsplit=1)[0].strip()
        if want and _parses(source, "eval"):
            same = f" or _value == ({want})" if _parses(want, "eval") else ""
            tests.append(f"_value = ({source})\nassert repr(_value) == {want!r}{same}")
        elif not want and _parses(source, "exec"):
            tests.append(source)
    return (*tests, *(line for line in _ASSERTION.findall(prompt) if _parses(line, "exec")))


def _parses(code: str, mode: str) -> bool:
    try:
        ast.parse(code, mode=mode)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
