"""From tokens to the text that a client may see by now."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Token(NamedTuple):
    """A token of a response.

    Attributes:
        id: in the vocabulary.
        logprob: its log-probability under the model; None for the first of a text, which nothing predicts.
        top: the likeliest tokens in its place and their log-probabilities; None where they were not asked for.
        offset: of its first character in the text.
    """

    id: int
    logprob: float | None = None
    top: Sequence[tuple[int, float]] | None = None
    offset: int = 0


class TextStream:
    """Turns the tokens of one continuation into text, up to the first stop string.

    Text is held back as long as it may turn out to begin a stop string, or its last character is incomplete. A token
    comes out with the last character that it completes. Bytes that are no UTF-8 become U+FFFD.

    Attributes:
        count: tokens taken.
        stopped: whether a stop string was found; whatever is pushed then is ignored.
    """

    def __init__(self, token_bytes: Callable[[int], bytes], stops: Sequence[str] = ()) -> None:
        self._bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = tuple(stops)
        self._held = ""
        self._shown = 0
        self._pending: deque[tuple[Token, int]] = deque()  # each token, and the offset of its end
        self._ended = False
        self.count = 0
        self.stopped = False

    def push(self, token: Token) -> None:
        """Take the next token."""
        if self.stopped:
            return
        self.count += 1
        start = self._shown + len(self._held)
        self._held += self._decoder.decode(self._bytes(token.id))
        self._pending.append((token._replace(offset=start), self._shown + len(self._held)))
        self._look_for_stops()

    def end(self) -> None:
        """There are no more tokens: nothing is held back any longer."""
        if not self.stopped:
            self._held += self._decoder.decode(b"", final=True)
            self._look_for_stops()
        self._ended = True

    def take(self) -> tuple[str, list[Token]]:
        """The text and the tokens that can be shown and were not yet."""
        whole = self._ended or self.stopped
        ready = len(self._held) if whole else len(self._held) - self._uncertain()
        text, self._held = self._held[:ready], self._held[ready:]
        self._shown += ready
        tokens = []
        while self._pending and (whole or self._pending[0][1] <= self._shown):
            tokens.append(self._pending.popleft()[0])
        return text, tokens

    def _look_for_stops(self) -> None:
        found = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if not found:
            return
        self.stopped = True
        self._held = self._held[: min(found)]
        cut = self._shown + len(self._held)
        while self._pending and self._pending[-1][0].offset >= cut:
            self._pending.pop()

    def _uncertain(self) -> int:
        """How many characters at the end may begin a stop string."""
        longest = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:size]):
                    longest = size
                    break
        return longest
