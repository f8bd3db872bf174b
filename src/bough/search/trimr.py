"""TrimR: cut a model's thoughts short where they repeat what was found, run in circles, or lead nowhere.

Paper: Lin et al. 2025, arXiv:2505.17155. Nothing is trained: thoughts are split at the words where a model turns
(wait, hmm, alternatively), and a light verifier looks at them while the model thinks on. Pays where a model goes on
thinking after it has found the answer. Costs nothing where answers can be compared exactly, otherwise one question to
the verifier for each thought. Three things end the thinking, after which the model is made to answer:

- Overthinking: `agreements` times in a row, a thought reaches the same answer as the one before it. Thoughts without
  an answer are passed over.
- Underthinking: after `patience` thoughts, or `max_thought_tokens`, that has not happened.
- Repetition: the text ends with `repeats` copies of the same passage; all but the first are dropped.

The verifier is whoever can tell whether two thoughts reach the same answer. Where the task finds the final answer in
a text, answers are extracted and compared exactly (`bough.tasks.answers`), as the paper's verifier is asked to do in
words. For other text, a second model is asked, and says yes with some probability.

Verdicts come late. Generation is never held up for one, and one that ends the thinking holds for the place it is
about: what was generated after that place is cut off, and has been paid for. Verdicts are acted on in the order of
the thoughts, so the answer depends on no timing, only the tokens spent do.

The paper makes a model answer by a sentence that says why it should (`overthinking`, `underthinking`); a model that
was not trained on such sentences does better with the mere end of its thoughts, which is the default.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from bough.core import Branch, Capability, InvalidInput, Promise, Run, technique
from bough.rewards import SelfEvaluation
from bough.tasks.answers import equivalent

from .steps import cancel, require_positive
from .thinking import ThinkingSearch, thinking_of

SAME = (
    "Question: {prompt}\n\n{completion}\n\nDo both solutions reach the same final answer?\n(A) Yes\n(B) No\n"
    "Reply with the letter alone, A or B. The letter is: ("
)
_LONGEST = 1024  # characters of a passage that is searched for


@dataclass(frozen=True)
class Thought:
    """One thought: the branch that ends with it, and its text without the cue that ends it."""

    end: Branch
    text: str


@technique(
    "trimr", paper="arXiv:2505.17155", promise=Promise.APPROXIMATE,
    requires=(Capability.SAMPLE, Capability.CONTINUE, Capability.THINKING),
)  # fmt: skip
@dataclass(frozen=True)
class TrimR(ThinkingSearch):
    """Think aloud until thoughts only repeat what was found, run in circles or lead nowhere; then answer.

    Attributes:
        agreements: consecutive pairs of thoughts that must agree to end the thinking.
        patience: thoughts, at most.
        repeats: copies of a passage, one after the other, that end the thinking.
        passage: characters of such a passage, at least.
        verifier: the name of the model (``solve(..., models=...)``) that is asked whether two thoughts reach the
            same answer; None compares the answers that the task finds in them.
        certainty: the probability of a yes from which the verifier is believed.
        overthinking: what is written before the thoughts' end where they agree; None for nothing.
        underthinking: the same where they do not.
    """

    agreements: int = 1
    patience: int = 32
    repeats: int = 3
    passage: int = 16
    verifier: str | None = None
    certainty: float = 0.5
    overthinking: str | None = None
    underthinking: str | None = None

    tune_space: ClassVar[Mapping[str, Sequence[Any]]] = {"agreements": (1, 2, 3), "patience": (2, 4, 8, 32)}

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "agreements", "patience", "repeats", "passage")
        if self.repeats < 2:
            raise InvalidInput(f"repeats={self.repeats}: a text ends with one copy of anything; give 2 at least")
        if not 0 <= self.certainty < 1:
            raise InvalidInput(f"certainty={self.certainty} must be a probability below 1")

    async def __call__(self, prompt: Branch, run: Run) -> Branch | None:
        thoughts: list[Thought] = []
        verdicts: list[asyncio.Future[bool | None]] = []
        judge = self._judge(prompt, run)
        news = asyncio.Event()
        known, streak = 0, 0

        def follow(future: asyncio.Future[Any]) -> None:
            future.add_done_callback(lambda _: news.set())

        def cut() -> Branch | None:
            """Where the thoughts are to end, if that is known: verdicts count in the order of the thoughts."""
            nonlocal known, streak
            while streak < self.agreements and known < len(verdicts) and verdicts[known].done():
                agrees = verdicts[known].result()
                streak = streak if agrees is None else streak + 1 if agrees else 0
                known += 1
            return thoughts[known - 1].end if streak == self.agreements else None

        def offer(thought: Thought) -> bool:
            """A thought ends at a cue: keep its answer as the best so far, ask about it; whether to go on."""
            thoughts.append(thought)
            _restate(thoughts, run)
            if len(thoughts) < self.patience:
                verdicts.append(judge(tuple(thoughts)))
                follow(verdicts[-1])
            return cut() is None

        writing = asyncio.ensure_future(self._write(prompt, run, offer))
        follow(writing)
        try:
            while True:
                news.clear()
                if (end := cut()) is not None:
                    await cancel([writing])
                    return await self.reply(_told(end, self.overthinking), run)
                if writing.done() and (known == len(verdicts) or writing.exception() is not None):
                    return writing.result()
                await news.wait()
        finally:
            await cancel([writing, *verdicts])

    # Writing -----------------------------------------------------------------------------------------------

    async def _write(self, prompt: Branch, run: Run, offer: Callable[[Thought], bool]) -> Branch:
        """Thought after thought, and the answer; it waits for no verdict."""
        thinking, node = thinking_of(prompt), self.opened(prompt)
        start, seen = node.length, 0
        stop = [thinking.cue, thinking.closing.strip(), self._in_circles]
        while seen < self.patience and (left := self.max_thought_tokens - (node.length - start)) > 0:
            node = await self._draw(node, run, stop=stop, max_tokens=left)
            text = node.appended_text
            if thinking.closing.strip() in text or node.finished:
                return await self.reply(node, run)
            cue = thinking.cue.search(text)
            if cue is None:
                node = self._without_copies(node, text)
                break
            if not offer(Thought(node, text[: cue.start()])):
                return node
            seen += 1
        return await self.reply(_told(node, self.underthinking), run)

    def _in_circles(self, text: str) -> bool:
        return repeated(text, self.repeats, self.passage) > 0

    def _without_copies(self, node: Branch, text: str) -> Branch:
        """A thought without all but the first copy of what the end of its text repeats."""
        copies = repeated(text, self.repeats, self.passage)
        if not copies:
            return node
        assert node.parent is not None
        tokens = list(node.appended)
        while len(node.backend.decode(tokens)) > len(text) - copies:
            tokens.pop()
        return node.parent + tokens

    # Judging -----------------------------------------------------------------------------------------------

    def _judge(self, prompt: Branch, run: Run) -> Callable[[Sequence[Thought]], asyncio.Future[bool | None]]:
        """Who says whether the last of some thoughts reaches the answer of the one before it (None: it has none)."""
        if self.verifier is None:

            def compare(thoughts: Sequence[Thought]) -> asyncio.Future[bool | None]:
                verdict = asyncio.get_running_loop().create_future()
                answers = [run.task.extract(thought.text) for thought in thoughts]
                found = [answer for answer in answers if answer is not None]
                agrees = len(found) > 1 and equivalent(found[-2], found[-1])
                verdict.set_result(None if answers[-1] is None else agrees)
                return verdict

            return compare
        backend = run.model(self.verifier, prompt.backend)
        verifier, problem = SelfEvaluation(backend, template=SAME), backend.branch(prompt.text)

        async def ask(thoughts: Sequence[Thought]) -> bool | None:
            if len(thoughts) < 2:
                return False
            one, two = (thought.text.strip() for thought in thoughts[-2:])
            both = problem + f"Solution 1:\n{one}\n\nSolution 2:\n{two}"
            return (await verifier([both], run))[0] > self.certainty

        return lambda thoughts: asyncio.ensure_future(ask(thoughts))


def _told(thoughts: Branch, why: str | None) -> Branch:
    """Thoughts with a sentence that says why they end."""
    return thoughts if why is None else thoughts + why


def _restate(thoughts: Sequence[Thought], run: Run) -> None:
    """Offer the last thought as the answer, with the number of thoughts that reach the same one as its score."""
    answers = [run.task.extract(thought.text) for thought in thoughts]
    if (last := answers[-1]) is not None:
        end, text = thoughts[-1].end, thoughts[-1].text.strip() + run.task.step_stop
        votes = sum(answer is not None and equivalent(answer, last) for answer in answers)
        run.propose(end + f"\n{thinking_of(end).closing}{text}", float(votes))


def repeated(text: str, times: int, passage: int) -> int:
    """How much of a text's end repeats what stands before it: 0, or the characters of all copies but the first.

    Args:
        text: the text.
        times: copies, one after the other, that count.
        passage: characters of one copy, at least.
    """
    longest = min(_LONGEST, len(text) // times)
    if longest < passage:
        return 0
    tail = text[-passage:]
    at = len(text) - passage
    # Copies that are so far apart have their ends so far apart.
    while (at := text.rfind(tail, 0, at + passage - 1)) >= 0 and (size := len(text) - passage - at) <= longest:
        if size >= passage and text.endswith(text[-size:] * times):
            return size * (times - 1)
    return 0


__all__ = ["TrimR", "repeated"]
