"""English word problems about who has how many of what, with worked steps.

Prompt: `Story: Tom has 12 pears. Mia has 3 fewer pears than Tom. Tom finds 7 pears. How many pears does Tom have?`

Solution: `So Tom has 12+7=19 pears.`, `answer 19`.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field

from .base import DONE, Draw, GeneratedTask, Problem, apply

NAMES = tuple(
    [
        "Tom",
        "Anna",
        "Ben",
        "Mia",
        "Sam",
        "Lucy",
        "Max",
        "Ella",
        "Leo",
        "Nora",
        "Jack",
        "Ruby",
        "Omar",
        "Zoe",
        "Ivan",
        "Lily",
    ]
)
THINGS = [
    "apples",
    "pears",
    "books",
    "coins",
    "cards",
    "eggs",
    "pens",
    "shells",
    "stamps",
    "stones",
    "balls",
    "cakes",
    "nuts",
    "beads",
    "keys",
    "toys",
]
BOXES = ("boxes", "bags", "packs", "jars")
ASIDES = (
    "It is a sunny day.",
    "The shop opens at {n}.",
    "{name} is {n} years old.",
    "{name} has {n} {other}.",
    "{name} walks {n} miles to school.",
    "The {other} cost {n} dollars.",
)
_TIMES = {2: "twice", 3: "three times", 4: "four times"}
# steps in the solution, people, sentences that tell of other things, largest number given
_LEVELS = {
    1: ((1, 1), 2, 0, 20),
    2: ((2, 2), 2, 0, 30),
    3: ((3, 3), 2, 1, 30),
    4: ((4, 4), 3, 1, 40),
    5: ((5, 6), 3, 1, 50),
    6: ((7, 8), 3, 2, 50),
}
_LIMIT = 199
_STEP = re.compile(r"So (.+?) (\d+)([-+*/])(\d+)=(\d+) (.+)\.", re.ASCII)


@dataclass
class _Quantity:
    """A number that the story fixes, and the step that works it out (None when it is given)."""

    value: int
    step: str | None = None
    needs: list[_Quantity] = field(default_factory=list)


class Stories(GeneratedTask):
    """Levels 1 to 6 need 1, 2, 3, 4, 5-6 and 7-8 steps, with more people and asides.

    A line is right when it works out a quantity that the worked solution needs, from the right two numbers
    (in either order for + and *) with the right result; the lines of one person must keep their order, those
    of different people need not. A line about anything else is wrong.
    """

    name = "stories"
    levels = tuple(_LEVELS)
    default_level = 3

    def draw(self, rng: random.Random, level: int) -> Draw:
        (fewest, most), people, asides, largest = _LEVELS[level]
        while True:
            story = _Story(rng, people, largest)
            for _ in range(rng.randint(max(1, fewest - 2), most + 1)):
                story.event()
            question, asked = story.question()
            needed = _needed(asked)
            steps = [quantity.step for quantity in story.order if id(quantity) in needed]
            if fewest <= len(steps) <= most and asked.value > 0:
                break
        for _ in range(asides):
            story.sentences.insert(rng.randint(0, len(story.sentences)), story.aside())
        prompt = " ".join(["Story:", *story.sentences, question]) + "\n"
        solution = "".join(f"{step}\n" for step in steps) + f"answer {asked.value}\n"
        return Draw(prompt, prompt, str(asked.value), solution)

    def start(self, problem: Problem) -> dict[str, list[str]]:
        """For each subject, the steps still to come, in order."""
        pending: dict[str, list[str]] = {}
        for line in problem.solution.split("\n")[:-2]:
            subject, step = _parse(line)
            pending.setdefault(subject, []).append(step)
        return pending

    def advance(self, problem: Problem, state: dict[str, list[str]], line: str) -> dict[str, list[str]] | None:
        if line == f"answer {problem.answer}":
            return DONE if not any(state.values()) else None
        try:
            subject, step = _parse(line)
        except ValueError:
            return None
        pending = state.get(subject, [])
        return {**state, subject: pending[1:]} if pending[:1] == [step] else None


class _Story:
    """A story in the making: who has how many, and every quantity the sentences imply."""

    def __init__(self, rng: random.Random, people: int, largest: int) -> None:
        self.rng, self.largest = rng, largest
        self.people = rng.sample(NAMES, people)
        self.thing, self.other = rng.sample(THINGS, 2)
        self.sentences: list[str] = []
        self.order: list[_Quantity] = []  # those worked out, as the story tells them
        self.has: dict[str, _Quantity] = {}
        for person in rng.sample(self.people, people):
            self.introduce(person)

    def step(self, subject: str, left: _Quantity, op: str, right: _Quantity, tail: str = "") -> _Quantity:
        value = apply(left.value, op, right.value)
        text = f"So {subject} {left.value}{op}{right.value}={value} {tail}{self.thing}."
        self.order.append(_Quantity(value, text, [left, right]))
        return self.order[-1]

    def amount(self, most: int) -> _Quantity:
        return _Quantity(self.rng.randint(2, max(2, most)))

    def introduce(self, person: str) -> None:
        rng, known = self.rng, list(self.has)
        kind = rng.choice(("more", "fewer", "times", "half", "given")) if known else "given"
        model = rng.choice(known) if known else person
        base = self.has.get(model, _Quantity(0))
        if kind == "more":
            k = self.amount(20)
            self.sentences.append(f"{person} has {k.value} more {self.thing} than {model}.")
            self.has[person] = self.step(f"{person} has", base, "+", k)
        elif kind == "fewer" and base.value > 4:
            k = self.amount(min(20, base.value - 2))
            self.sentences.append(f"{person} has {k.value} fewer {self.thing} than {model}.")
            self.has[person] = self.step(f"{person} has", base, "-", k)
        elif kind == "times" and base.value <= 30:
            k = _Quantity(rng.randint(2, 4))
            self.sentences.append(f"{person} has {_TIMES[k.value]} as many {self.thing} as {model}.")
            self.has[person] = self.step(f"{person} has", base, "*", k)
        elif kind == "half" and base.value % 2 == 0:
            self.sentences.append(f"{person} has half as many {self.thing} as {model}.")
            self.has[person] = self.step(f"{person} has", base, "/", _Quantity(2))
        else:
            n = self.amount(self.largest)
            self.sentences.append(f"{person} has {n.value} {self.thing}.")
            self.has[person] = n

    def event(self) -> None:
        rng, thing = self.rng, self.thing
        who, *rest = rng.sample(self.people, len(self.people))
        has = self.has[who]
        kind = rng.choice(("gain", "lose", "give", "boxes", "share", "half", "double"))
        if kind == "gain" and has.value < _LIMIT - 50:
            k = self.amount(self.largest)
            verb = rng.choice(("buys {} more", "finds {}", "picks up {}", "wins {}", "gets {} more"))
            self.sentences.append(f"{who} {verb.format(k.value)} {thing}.")
            self.has[who] = self.step(f"{who} has", has, "+", k)
        elif kind == "lose" and has.value > 4:
            k = self.amount(min(self.largest, has.value - 1))
            verb = rng.choice(("loses {}", "sells {}", "gives away {}", "drops {}", "uses {}"))
            self.sentences.append(f"{who} {verb.format(k.value)} {thing}.")
            self.has[who] = self.step(f"{who} has", has, "-", k)
        elif kind == "give" and rest and has.value > 4:
            k = self.amount(min(self.largest, has.value - 1))
            to = rest[0]
            self.sentences.append(f"{who} gives {k.value} {thing} to {to}.")
            self.has[who] = self.step(f"{who} has", has, "-", k)
            self.has[to] = self.step(f"{to} has", self.has[to], "+", k)
        elif kind == "boxes" and has.value < _LIMIT - 50:
            m, k, box = _Quantity(rng.randint(2, 6)), _Quantity(rng.randint(2, 9)), rng.choice(BOXES)
            self.sentences.append(f"{who} buys {m.value} {box} of {k.value} {thing} each.")
            inside = self.step(f"the {box} hold", m, "*", k)
            self.has[who] = self.step(f"{who} has", has, "+", inside)
        elif kind == "share" and (parts := [m for m in (3, 4, 5) if has.value % m == 0 and has.value > m]):
            m = _Quantity(rng.choice(parts))
            self.sentences.append(f"{who} shares all the {thing} with {m.value - 1} cousins, equally.")
            self.has[who] = self.step(f"{who} has", has, "/", m)
        elif kind == "half" and rest and has.value % 2 == 0 and has.value > 2:
            to = rest[0]
            self.sentences.append(f"{who} gives half of the {thing} to {to}.")
            half = self.has[who] = self.step(f"{who} has", has, "/", _Quantity(2))
            self.has[to] = self.step(f"{to} has", self.has[to], "+", half)
        elif kind == "double" and has.value <= 50:
            self.sentences.append(f"Then {who} doubles the number of {thing}.")
            self.has[who] = self.step(f"{who} has", has, "*", _Quantity(2))

    def question(self) -> tuple[str, _Quantity]:
        rng, thing = self.rng, self.thing
        a, b = rng.sample(self.people, 2)
        kind = rng.choice(("one", "total", "more"))
        if kind == "total" and self.has[a].value + self.has[b].value <= 2 * _LIMIT:
            ending = rng.choice(("in total", "together"))
            total = self.step("together they have", self.has[a], "+", self.has[b])
            return f"How many {thing} do {a} and {b} have {ending}?", total
        if kind == "more" and self.has[a].value > self.has[b].value:
            more = self.step(f"{a} has", self.has[a], "-", self.has[b], "more ")
            return f"How many more {thing} does {a} have than {b}?", more
        return f"How many {thing} does {a} have {rng.choice(('now', 'in the end'))}?", self.has[a]

    def aside(self) -> str:
        name, n = self.rng.choice(self.people), self.rng.randint(6, 12)
        return self.rng.choice(ASIDES).format(name=name, n=n, other=self.other)


def _needed(asked: _Quantity) -> set[int]:
    """The identities of the quantities that this one depends on, its own included."""
    return {id(asked)}.union(*(_needed(quantity) for quantity in asked.needs))


def _parse(line: str) -> tuple[str, str]:
    """A line's subject and its step in a normal form; ValueError when it is not a step."""
    match = _STEP.fullmatch(line)
    if match is None:
        raise ValueError(f"not a step: {line!r}")
    subject, left, op, right, result, tail = match.groups()
    if op in "+*":
        left, right = sorted((left, right))
    return subject, f"{left}{op}{right}={result} {tail}"
