"""Archon: layers of inference-time techniques, each of which takes the candidates of the one before.

Paper: Saad-Falcon et al. 2024, arXiv:2409.15254. Pays where one model's samples differ and another look at them, by a
reward, by the model itself or by a vote, tells which is right; which layers pay is for a search over architectures to
find out (`bough.bench.architectures`). Costs what its layers cost.

From `critique` on, layers ask the model in words (the templates below, as chat messages where the model has a
chat format); this takes a model that follows instructions. The first candidate of the last layer is the answer.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from bough.core import (
    Backend,
    Branch,
    InvalidInput,
    Promise,
    Run,
    Sampling,
    Strategy,
    UnsupportedError,
    technique,
    techniques,
)
from bough.core.noise import token_key

from .steps import answered, draw_whole, judge, require_positive, settle
from .vote import tally

_CRITIQUE = """Task:
{task}

Answer:
{answer}

Name the strengths and the weaknesses of this answer in a few sentences. Point out every error."""
_RANK = """Task:
{task}

{candidates}

Order the answers from best to worst. Reply with their numbers only, best first, separated by commas."""
_FUSE = """Task:
{task}

{candidates}

Some of these answers may be wrong. Write one answer to the task that is better than each of them, in the same form.
"""
_VERIFY = """Task:
{task}

Answer:
{answer}

Check this answer step by step. End with the line "Verdict: correct" or "Verdict: incorrect"."""
_TESTS = """Task:
{task}

Write {count} statements that are true of a right answer to this task and can be checked, one per line, and nothing
else."""
_TEST = """Task:
{task}

Answer:
{answer}

Statement: {test}
Is the statement true of this answer? Reply with "yes" or "no"."""


class Candidate(NamedTuple):
    """A solution, and what a critic said of it."""

    branch: Branch
    critique: str = ""


class Layer(NamedTuple):
    """A layer as it is written: ``name:count@model``."""

    name: str
    size: int
    model: str | None

    @classmethod
    def parse(cls, text: str) -> Layer:
        """Read a layer.

        Raises:
            InvalidInput: it is not of that form.
        """
        match = re.fullmatch(r"([a-z][a-z0-9-]*)(?::([1-9][0-9]*))?(?:@(\S+))?", text)
        if match is None:
            raise InvalidInput(f"layer {text!r} is not of the form name, name:count or name:count@model")
        return cls(match[1], int(match[2] or 1), match[3])


@technique("archon", paper="arXiv:2409.15254", promise=Promise.APPROXIMATE, needs_reward=True)
@dataclass(frozen=True)
class Archon(Strategy):
    """Pass candidates through layers that generate, rank, fuse, criticise, verify or test them.

    A layer is written ``name:count``, or ``name:count@model`` for another model than the prompt's
    (``solve(models=...)``):

        generate:n   n whole solutions; the first layer, or further ones beside those that are there
        STRATEGY:n   n runs of any strategy of the gallery with its defaults, each with noise of its own
        reward:k     keep the k candidates of highest reward
        vote:k       keep one candidate for each of the k answers that most candidates reach
        critique     the model notes strengths and weaknesses of each candidate, for the layers that follow
        rank:k       the model orders the candidates; keep the first k
        fuse:n       n new candidates, which the model writes from all the candidates
        verify       the model checks each candidate; keep those that it finds correct, or all if there are none
        tests:m      the model writes m tests of a right answer and judges each candidate by each; those that pass
                     most come first

    Attributes:
        layers: as above, in order; the first one generates.
        max_tokens: length limit of a solution; one that is longer is cut there.
        asked_tokens: length limit of what the model writes about candidates.
        temperature: of the sampling distribution; judgements are greedy.
        top_p: nucleus of the sampling distribution.
    """

    layers: tuple[str, ...] = ("generate:16", "reward:1")
    max_tokens: int = 2048
    asked_tokens: int = 1024
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        require_positive(self, "max_tokens", "asked_tokens")
        Sampling(temperature=self.temperature, top_p=self.top_p)
        object.__setattr__(self, "layers", tuple(self.layers))
        layers = [Layer.parse(text) for text in self.layers]
        strategies = {name: info for name, info in techniques().items() if issubclass(info.cls, Strategy)}
        for layer in layers:
            if layer.name not in (*_STEPS, "generate", *strategies) or layer.name == self.info.name:
                known = ", ".join((*_STEPS, "generate", *(set(strategies) - {self.info.name})))
                raise InvalidInput(f"there is no layer {layer.name!r}; there are {known}")
        if not layers or layers[0].name in _STEPS:
            raise InvalidInput(f"layers={self.layers}: the first one has to generate candidates, as generate:16 does")
        used = [strategies[layer.name] for layer in layers if layer.name in strategies]
        scored = any(info.needs_reward for info in used) or any(layer.name == "reward" for layer in layers)
        needs = frozenset(self.info.requires.union(*(info.requires for info in used)))
        object.__setattr__(self, "info", replace(self.info, needs_reward=scored, requires=needs))

    async def __call__(self, prompt: Branch, run: Run) -> Branch | None:
        candidates: list[Candidate] = []
        for depth, layer in enumerate(map(Layer.parse, self.layers)):
            backend = run.model(layer.model, prompt.backend)
            asker = _Asker(self, prompt, run, backend, depth)
            if layer.name in _STEPS:
                candidates = await _STEPS[layer.name](asker, candidates, layer.size)
            else:
                root = prompt if backend is prompt.backend else asker.root(prompt.text, plain=True)
                candidates = candidates + await self._generate(layer, root.fork(1)[0] if depth else root, run)
            if not candidates:
                return run.best
        run.selected(candidates[0].branch)
        return candidates[0].branch

    async def _generate(self, layer: Layer, prompt: Branch, run: Run) -> list[Candidate]:
        async def sample(index: int) -> Branch | None:
            sampling = Sampling(temperature=self.temperature, top_p=self.top_p)
            leaf = await draw_whole(prompt, run, index, self.max_tokens, sampling)
            run.propose(leaf)
            return leaf

        async def search(branch: Branch) -> Branch | None:
            return await run.nested(techniques()[layer.name].cls(), branch)

        if layer.name == "generate":
            found = await settle(sample(index) for index in range(layer.size))
        else:
            found = await settle(search(branch) for branch in prompt.fork(layer.size))
        return [Candidate(leaf) for leaf in found if leaf is not None]


@dataclass(frozen=True)
class _Asker:
    """Asks a model about candidates, in one layer of a run."""

    strategy: Archon
    prompt: Branch
    run: Run
    backend: Backend
    depth: int

    def root(self, text: str, plain: bool = False) -> Branch:
        """The text as a prompt, as a chat message where the model has a chat format."""
        seed = token_key(self.prompt.key, (self.depth,))
        try:
            root = self.backend.branch(text if plain else [{"role": "user", "content": text}], seed=seed)
        except InvalidInput:
            if plain:
                raise
            root = self.backend.branch(text, seed=seed)
        return root.with_run(self.run)

    async def ask(
        self, template: str, *, n: int = 1, greedy: bool = False, tokens: int = 0, **parts: object
    ) -> list[Branch]:
        """What the model replies to a filled-in template, n times."""
        root = self.root(template.format(task=self.prompt.text.strip(), **parts))
        temperature = 0.0 if greedy else self.strategy.temperature
        limit = min(tokens or self.strategy.asked_tokens, self.backend.context - root.length)
        if limit < 1:
            raise UnsupportedError(
                f"the candidates take {root.length} tokens, which leaves no room for a reply in the context of "
                f"{self.backend.context} of {self.backend.name}; keep fewer of them, with reward:k before this layer"
            )
        return list(await root.sample(n, max_tokens=limit, temperature=temperature, top_p=self.strategy.top_p))

    async def ask_all(self, template: str, candidates: Sequence[Candidate], **options: object) -> list[str]:
        """What the model replies about each candidate."""
        replies = [self.ask(template, answer=_text(c), **options) for c in candidates]  # type: ignore[arg-type]
        return [reply[0].answer for reply in await settle(replies)]


def _text(candidate: Candidate) -> str:
    return candidate.branch.answer.strip()


def _listed(candidates: Sequence[Candidate]) -> str:
    parts = []
    for number, candidate in enumerate(candidates, 1):
        remark = f"\nCritique of answer {number}:\n{candidate.critique}" if candidate.critique else ""
        parts.append(f"Answer {number}:\n{_text(candidate)}{remark}")
    return "\n\n".join(parts)


async def _reward(asker: _Asker, candidates: list[Candidate], count: int) -> list[Candidate]:
    whole = [c for c in candidates if answered(c.branch, asker.run)] or candidates
    scores = await judge([c.branch for c in whole], asker.run)
    order = sorted(range(len(whole)), key=lambda i: -scores[i])
    return [whole[i] for i in order[:count]]


async def _vote(asker: _Asker, candidates: list[Candidate], count: int) -> list[Candidate]:
    answers = [asker.run.task.extract(c.branch.answer) for c in candidates]
    totals = tally(answers)
    most = sorted(totals, key=lambda answer: -totals[answer])[:count]
    return [candidates[answers.index(answer)] for answer in most] or candidates[:count]


async def _critique(asker: _Asker, candidates: list[Candidate], count: int) -> list[Candidate]:
    remarks = await asker.ask_all(_CRITIQUE, candidates)
    return [c._replace(critique=remark.strip()) for c, remark in zip(candidates, remarks, strict=True)]


async def _rank(asker: _Asker, candidates: list[Candidate], count: int) -> list[Candidate]:
    (reply,) = await asker.ask(_RANK, candidates=_listed(candidates), greedy=True)
    named = [int(number) - 1 for number in re.findall(r"[0-9]+", reply.answer)]
    order = dict.fromkeys([*(i for i in named if 0 <= i < len(candidates)), *range(len(candidates))])
    return [candidates[i] for i in order][:count]


async def _fuse(asker: _Asker, candidates: list[Candidate], count: int) -> list[Candidate]:
    fused = await asker.ask(_FUSE, n=count, candidates=_listed(candidates), tokens=asker.strategy.max_tokens)
    for branch in fused:
        asker.run.propose(branch)
    return [Candidate(branch) for branch in fused]


async def _verify(asker: _Asker, candidates: list[Candidate], count: int) -> list[Candidate]:
    verdicts = await asker.ask_all(_VERIFY, candidates, greedy=True)
    passed = [
        candidate
        for candidate, verdict in zip(candidates, verdicts, strict=True)
        if (found := re.findall(r"verdict:\W*(correct|incorrect)", verdict.lower())) and found[-1] == "correct"
    ]
    return passed or candidates


async def _tests(asker: _Asker, candidates: list[Candidate], count: int) -> list[Candidate]:
    (reply,) = await asker.ask(_TESTS, count=count)
    tests = [line.strip() for line in reply.answer.splitlines() if line.strip()][:count]
    verdicts = await settle(asker.ask_all(_TEST, candidates, test=test, greedy=True, tokens=16) for test in tests)
    passed = [
        sum(re.search(r"\byes\b", verdict.lower()) is not None for verdict in column)
        for column in zip(*verdicts, strict=True)
    ] or [0] * len(candidates)
    order = sorted(range(len(candidates)), key=lambda i: -passed[i])
    return [candidates[i] for i in order]


_Step = Callable[[_Asker, list[Candidate], int], Awaitable[list[Candidate]]]
_STEPS: dict[str, _Step] = {
    "reward": _reward, "vote": _vote, "critique": _critique, "rank": _rank, "fuse": _fuse, "verify": _verify,
    "tests": _tests,
}  # fmt: skip
