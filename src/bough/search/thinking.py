"""What methods share that watch a model think aloud, and may make it answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from bough.core import Branch, BudgetExhausted, Run, Sampling, Strategy, Thinking

from .steps import require_positive


@dataclass(frozen=True)
class ThinkingSearch(Strategy):
    """Base of the methods that follow a model's thoughts from cue to cue.

    Attributes:
        max_thought_tokens: thoughts that are longer are cut there, and the model answers.
        max_tokens: length limit of the answer.
        temperature: of the sampling distribution.
        top_p: nucleus of the sampling distribution.
    """

    max_thought_tokens: int = 16_384
    max_tokens: int = 2048
    temperature: float = 1.0
    top_p: float = 1.0

    tune_space: ClassVar[Mapping[str, Sequence[Any]]] = {"max_thought_tokens": (128, 512, 2048, 16_384)}

    def __post_init__(self) -> None:
        require_positive(self, "max_thought_tokens", "max_tokens")
        Sampling(temperature=self.temperature, top_p=self.top_p)

    def opened(self, prompt: Branch) -> Branch:
        """The prompt with thoughts opened, where its chat template has not done that already."""
        thinking = thinking_of(prompt)
        return prompt if thinking.open_at_end(prompt.text) else prompt + thinking.opening

    async def think(self, thoughts: Branch, run: Run, opened: Branch) -> Branch:
        """The thoughts with one piece more: up to the next cue, their end, or the limit.

        Raises:
            BudgetExhausted: after the thoughts so far were offered, unscored: better than nothing.
        """
        thinking = thinking_of(thoughts)
        left = self.max_thought_tokens - (thoughts.length - opened.length)
        return await self._draw(thoughts, run, stop=[thinking.cue, thinking.closing.strip()], max_tokens=left)

    def may_go_on(self, thoughts: Branch, opened: Branch) -> bool:
        """Whether the model has neither ended its thoughts nor reached their limit."""
        unended = not thoughts.finished and thinking_of(thoughts).open_at_end(thoughts.text)
        return unended and thoughts.length - opened.length < self.max_thought_tokens

    async def reply(self, thoughts: Branch, run: Run) -> Branch:
        """The whole solution below thoughts, which are closed here where they are open; offered, unscored."""
        thinking = thinking_of(thoughts)
        if thoughts.finish == "eos" and thinking.open_at_end(thoughts.text):
            assert thoughts.parent is not None
            thoughts = thoughts.parent + thoughts.appended[:-1]  # the text ended within thoughts: as if it had not
        if not thoughts.finished and thinking.open_at_end(thoughts.text):
            thoughts = thoughts + ("" if thoughts.text.endswith("\n") else "\n") + thinking.closing
        leaf = thoughts
        if not leaf.finished:
            leaf = await self._draw(thoughts, run, stop=run.task.answer_stop, max_tokens=self.max_tokens)
        run.propose(leaf)
        return leaf

    async def _draw(self, branch: Branch, run: Run, **options: Any) -> Branch:
        sampling = Sampling(temperature=self.temperature, top_p=self.top_p)
        try:
            return (await branch.sample(sampling=sampling, **options))[0]
        except BudgetExhausted as spent:
            for leaf in spent.partial:
                run.propose(leaf)
            raise


def thinking_of(branch: Branch) -> Thinking:
    """How the branch's model marks its thoughts; a strategy that asks requires `Capability.THINKING`."""
    thinking = branch.backend.thinking
    assert thinking is not None
    return thinking
