"""Reach a target with every number used exactly once; each line is an operation and what is left.

Prompt: `3 7 5 2 -> 12`. Solution: `7-3=4 left 5 2 4`, `5-2=3 left 4 3`, `4*3=12 left 12`, `answer 12`.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from functools import lru_cache
from itertools import combinations

from .base import DONE, Draw, GeneratedTask, Problem, apply, is_number

_LINE = re.compile(r"(\d+)([-+*])(\d+)=(\d+) left (\d+(?: \d+)*)", re.ASCII)
_LEVELS = {1: (3, 9), 2: (3, 20), 3: (4, 9), 4: (4, 20), 5: (5, 9), 6: (5, 20)}  # how many, how large
_LIMIT = 99


class Countdown(GeneratedTask):
    """Levels 1 to 6 have 3, 3, 4, 4, 5, 5 numbers, up to 9 at odd levels and up to 20 at even ones.

    Operations are + - * with positive results. A line is right when its operation is on two of the numbers
    left and correct, what it says is left is so (in any order), and the target can still be reached, which
    is decided by exhaustive search. The answer line is right once only the target is left.
    """

    name = "countdown"
    levels = tuple(_LEVELS)
    default_level = 2

    def draw(self, rng: random.Random, level: int) -> Draw:
        count, largest = _LEVELS[level]
        numbers = [rng.randint(2, largest) for _ in range(count)]
        left = list(numbers)
        lines: list[str] = []
        while len(left) > 1:
            i, j = sorted(rng.sample(range(len(left)), 2))
            a, b = left[i], left[j]
            if a < b and rng.random() < 0.5:
                a, b = b, a
            ops = [op for op in "+-*" if 1 <= apply(a, op, b) <= _LIMIT]
            if not ops:  # too large to go on from here: start again
                left, lines = list(numbers), []
                continue
            op = rng.choice(ops)
            left = [number for k, number in enumerate(left) if k not in (i, j)] + [apply(a, op, b)]
            lines.append(f"{a}{op}{b}={left[-1]} left {_join(left)}\n")
        target = left[0]
        solution = "".join(lines) + f"answer {target}\n"
        key = f"{_join(sorted(numbers))} -> {target}"
        return Draw(key, f"{_join(numbers)} -> {target}\n", str(target), solution)

    def start(self, problem: Problem) -> tuple[int, ...]:
        return tuple(sorted(int(number) for number in problem.prompt.split(" ->")[0].split(" ")))

    def advance(self, problem: Problem, state: tuple[int, ...], line: str) -> tuple[int, ...] | None:
        target = int(problem.answer)
        if line == f"answer {target}":
            return DONE if state == (target,) else None
        match = _LINE.fullmatch(line)
        if match is None or not all(is_number(text) for text in (*match.group(1, 3, 4), *match[5].split(" "))):
            return None
        a, op, b, value = int(match[1]), match[2], int(match[3]), int(match[4])
        left = Counter(state) - Counter((a, b))
        if len(state) - left.total() != 2 or apply(a, op, b) != value or value < 1:
            return None
        after = tuple(sorted([*left.elements(), value]))
        stated = tuple(sorted(int(number) for number in match[5].split(" ")))
        return after if stated == after and reachable(after, target) else None


@lru_cache(maxsize=200_000)
def reachable(numbers: tuple[int, ...], target: int) -> bool:
    """Whether + - * with positive results can turn all of the (sorted) numbers into the target."""
    if len(numbers) == 1:
        return numbers[0] == target
    for i, j in combinations(range(len(numbers)), 2):
        small, large = numbers[i], numbers[j]
        rest = [number for k, number in enumerate(numbers) if k not in (i, j)]
        for value in {small + large, small * large, large - small} - {0}:
            if reachable(tuple(sorted([*rest, value])), target):
                return True
    return False


def _join(numbers: list[int]) -> str:
    return " ".join(map(str, numbers))
