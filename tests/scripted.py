"""A model that writes what a script says, character by character: for methods that act on what is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from bough.core import Capability, Thinking
from chains import CHARACTERS, ChainTokenizer
from toy import EOS, ToyBackend

THINKING = Thinking(opening="think\n", closing="done\n", cues=r"wait")
Script = Callable[[str], str]


class ScriptedBackend(ToyBackend):
    """Writes one text for certain.

    Args:
        script: the rest of the text, from the text so far, prompt included; where it is used up, the text ends.
        thinking: how it marks its thoughts.
    """

    name = "scripted"
    vocab_size = len(CHARACTERS)

    def __init__(
        self, script: Script, *, thinking: Thinking | None = THINKING, context: int = 2048, slots: int = 1_000
    ) -> None:
        super().__init__(self._next, context=context, slots=slots)
        self.tokenizer = ChainTokenizer()
        self.thinking = thinking
        if thinking is not None:
            self.capabilities |= {Capability.THINKING}
        self._script = script

    def _next(self, tokens: tuple[int, ...]) -> np.ndarray:
        rest = self._script(self.decode(tokens))
        following = self.encode(rest[0])[0] if rest else EOS
        return np.eye(self.vocab_size)[following]


def thinker(
    prompt: str, thoughts: str, answers: Mapping[str, str] | None = None, default: str = "answer 0\n"
) -> Script:
    """A script: these thoughts, and after them an answer.

    Args:
        prompt: what the text begins with.
        thoughts: what is thought, after the opening; the closing belongs to them, if they are ever closed.
        answers: the answer by the end of the thoughts before the closing, whoever wrote it.
        default: the answer to all others.
    """

    def script(text: str) -> str:
        written = text[len(prompt) :]
        if not written.startswith(THINKING.opening):
            return (THINKING.opening + thoughts)[len(written) :]
        thought, closed, answer = written[len(THINKING.opening) :].partition(THINKING.closing)
        if not closed:
            return thoughts[len(thought) :]
        right = next((a for end, a in (answers or {}).items() if thought.strip().endswith(end)), default)
        return right[len(answer) :]

    return script
