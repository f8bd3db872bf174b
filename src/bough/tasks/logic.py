"""Deduction chains over if-then rules, with dead ends, and a true / false / unknown answer.

Prompt: `Facts: Mia is red. Tom is old. If red then tall. If tall then not kind. If old then kind. Is Mia kind?`

Solution: `If red then tall.`, `If tall then not kind.`, `answer false`. A line repeats the rule that it applies,
so that a word has the same tokens wherever it stands.
"""

from __future__ import annotations

import random
import re
from itertools import pairwise
from typing import NamedTuple

from bough.core.errors import InvalidInput

from .base import DONE, Draw, GeneratedTask, Problem

NAMES = ["Tom", "Mia", "Ben", "Zoe", "Max", "Eva", "Sam", "Lea", "Jim", "Amy"]
PROPERTIES = [
    "red",
    "blue",
    "green",
    "tall",
    "small",
    "round",
    "kind",
    "rude",
    "brave",
    "calm",
    "cold",
    "warm",
    "quick",
    "slow",
    "rich",
    "poor",
    "young",
    "old",
    "loud",
    "quiet",
    "wise",
    "shy",
    "proud",
    "clean",
    "happy",
    "sad",
    "fair",
    "sharp",
    "soft",
    "strong",
    "big",
    "thin",
    "dark",
    "light",
    "new",
    "hard",
    "deep",
    "wild",
    "neat",
    "odd",
]

_RULE = re.compile(r"If ((?:not )?\w+) then ((?:not )?\w+)\.")


class _Shape(NamedTuple):
    depth: int  # rules between a fact and the literal asked about
    dead_ends: int  # branches that leave the path and lead nowhere
    strays: int  # chains that start from what is not known of the one asked about


_LEVELS = {
    1: _Shape(1, 1, 1),
    2: _Shape(2, 1, 1),
    3: _Shape(3, 2, 1),
    4: _Shape(3, 3, 2),
    5: _Shape(4, 3, 2),
    6: _Shape(5, 4, 2),
}


class Logic(GeneratedTask):
    """Levels 1 to 6 have longer chains and more dead ends; the three answers are equally likely.

    A derivation is one chain: its first line starts from a fact about the one asked about, and every further
    line from the conclusion before it. A line is right when its rule is given and the literal asked about
    can still be reached by the chain (for `unknown`, where it never can, any rule that follows is right).
    `true` and `false` are right once the chain has reached the literal or its negation; `unknown` is right
    at the end of a chain that no rule continues.
    """

    name = "logic"
    levels = tuple(_LEVELS)
    default_level = 1

    def draw(self, rng: random.Random, level: int) -> Draw:
        shape = _LEVELS[level]
        answer = rng.choice(("true", "false", "unknown"))
        names = rng.sample(NAMES, 3)
        fresh = iter(rng.sample(PROPERTIES, len(PROPERTIES)))

        def literal() -> str:
            return ("not " if rng.random() < 0.15 else "") + next(fresh)

        path = [literal() for _ in range(shape.depth)]
        path.append(("not " if answer == "false" else "") + next(fresh))
        rules = list(pairwise(path))
        facts = [(names[0], path[0])]
        ends = {path[0]: path}
        for _ in range(shape.dead_ends):
            at = rng.randrange(shape.depth)
            # As long as the rest of the path, give or take one, so that length does not give it away.
            length = max(1, shape.depth - at + rng.randint(-1, 0))
            chain = [path[at], *(literal() for _ in range(length))]
            rules += pairwise(chain)
            ends[chain[-1]] = path[:at] + chain
        stray_ends = []
        for index in range(shape.strays):
            chain = [literal() for _ in range(rng.randint(2, max(2, shape.depth)))]
            rules += pairwise(chain)
            stray_ends.append(chain[-1])
            facts.append((names[1 + index], chain[0]))
        asked = path[-1]
        if answer == "unknown":
            asked = rng.choice(stray_ends)
            path = rng.choice(list(ends.values()))
        elif rng.random() < 0.3:
            rules.append((path[-1], literal()))
        rng.shuffle(facts)
        rng.shuffle(rules)
        sentences = [f"{name} is {fact}." for name, fact in facts] + [f"If {a} then {b}." for a, b in rules]
        question = f"Is {names[0]} {asked.removeprefix('not ')}?"
        lines = [f"If {a} then {b}.\n" for a, b in pairwise(path)]
        prompt = " ".join(["Facts:", *sentences, question]) + "\n"
        return Draw(prompt, prompt, answer, "".join(lines) + f"answer {answer}\n")

    def start(self, problem: Problem) -> frozenset[str]:
        """The literals that the next line may start from: at first the facts."""
        name = re.search(r"Is (\w+) \w+\?", problem.prompt)
        if name is None:
            raise InvalidInput(f"no question in the prompt {problem.prompt!r}")
        return frozenset(re.findall(rf"\b{name[1]} is ((?:not )?\w+)\.", problem.prompt))

    def advance(self, problem: Problem, state: frozenset[str], line: str) -> frozenset[str] | None:
        rules = set(_RULE.findall(problem.prompt))
        asked = re.findall(r"(\w+)\?", problem.prompt)[-1]
        goal = {"true": asked, "false": f"not {asked}"}.get(problem.answer)
        if line.startswith("answer "):
            ended = goal in state if goal else not any(a in state for a, _ in rules)
            return DONE if ended and line == f"answer {problem.answer}" else None
        match = _RULE.fullmatch(line)
        if match is None or match[1] not in state or match.groups() not in rules:
            return None
        return frozenset([match[2]]) if goal is None or _leads(rules, match[2], goal) else None


def _leads(rules: set[tuple[str, str]], start: str, goal: str) -> bool:
    seen, frontier = {start}, [start]
    while frontier:
        at = frontier.pop()
        if at == goal:
            return True
        new = [b for a, b in rules if a == at and b not in seen]
        seen.update(new)
        frontier += new
    return False
