"""How a model that thinks aloud marks its thoughts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from .errors import InvalidInput

if TYPE_CHECKING:
    from .backend import TokenizerLike

OPENING, CLOSING = "<think>", "</think>"
"""The tokens that mark thoughts in the checkpoints of DeepSeek-R1, Qwen3 and those that follow them."""


@dataclass(frozen=True)
class Thinking:
    """What opens and closes a model's thoughts, and the words at which they turn.

    A text is ``opening``, thoughts, ``closing``, answer. Writing the closing oneself makes the model answer at once.

    Attributes:
        opening: what the model, or its chat template, writes before the thoughts.
        closing: what it writes after them.
        cues: regular expression of the words at which a model turns to another thought (arXiv:2512.05325).
    """

    opening: str = f"{OPENING}\n"
    closing: str = f"{CLOSING}\n\n"
    cues: str = r"(?i)\b(wait|hmm|alternatively)\b"

    def __post_init__(self) -> None:
        for name in ("opening", "closing"):
            if not getattr(self, name).strip():
                raise InvalidInput(f"{name}={getattr(self, name)!r} marks nothing; give {OPENING!r}")
        try:
            re.compile(self.cues)
        except re.error as error:
            raise InvalidInput(f"cues={self.cues!r} is no regular expression: {error}") from None

    @classmethod
    def of(cls, tokenizer: TokenizerLike | None) -> Thinking | None:
        """The usual marks, if a tokenizer has a token for each; None: its model does not think aloud."""
        if tokenizer is None or any(len(tokenizer.encode(mark)) != 1 for mark in (OPENING, CLOSING)):
            return None
        return cls()

    @cached_property
    def cue(self) -> re.Pattern[str]:
        """The cues, compiled."""
        return re.compile(self.cues)

    def answer(self, completion: str, opened: bool = False) -> str:
        """What is left of a completion without the thoughts; nothing while they last.

        Args:
            completion: the text after the prompt.
            opened: whether the prompt itself ends in open thoughts.
        """
        thoughts, closed, answer = completion.partition(self.closing.strip())
        if closed:
            return answer.lstrip("\n")
        return "" if opened or self.opening.strip() in thoughts else completion

    def open_at_end(self, text: str) -> bool:
        """Whether a text ends within thoughts."""
        return text.rfind(self.opening.strip()) > text.rfind(self.closing.strip())
