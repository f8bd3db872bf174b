"""What methods that act on a model's thoughts share: which model thinks aloud, and how it is made to answer."""

from __future__ import annotations

from bough.core import Branch, UnsupportedError
from bough.core.thinking import Thinking


def require_thinking(prompt: Branch, needed_by: str) -> Thinking:
    """How the prompt's model marks its thoughts.

    Raises:
        UnsupportedError: it does not think aloud.
    """
    thinking = prompt.backend.thinking
    if thinking is None:
        raise UnsupportedError(f"{needed_by} needs a model that thinks aloud, which {prompt.backend.name} does not")
    return thinking


def opened(prompt: Branch, thinking: Thinking) -> Branch:
    """The prompt with thoughts open at its end, where a chat template may have opened them already."""
    return prompt if thinking.open_at_end(prompt.text) else prompt + thinking.opening


def leave(node: Branch, thinking: Thinking, guidance: str | None = None) -> Branch:
    """A branch whose open thoughts are closed, after a sentence that says why, if any."""
    return node + f"{guidance or ''}\n{thinking.closing}"
