"""From the parts of a stream to whole tokens: a part may hold back half a character, or half of what spells one."""

from __future__ import annotations

import math

from .answers import Choice, Piece, aligned, is_whole


class Assembler:
    """Puts streamed text and streamed pieces together, token by token."""

    def __init__(self) -> None:
        self._text = b""
        self._pieces: list[Piece] = []

    def take(self, part: Choice) -> list[Piece]:
        """What is complete with this part; a part without pieces is one, of unknown log-probability."""
        self._text += part.text.encode()
        self._pieces += part.pieces
        if not self._pieces:
            text, self._text = self._text, b""
            return [Piece(text, math.nan)] if text else []
        if all(piece.id is not None for piece in self._pieces):
            ready, self._pieces, self._text = self._pieces, [], b""
            return ready
        ready = []
        while self._pieces and is_whole(self._pieces[0]) and self._text.startswith(self._pieces[0].spelling):
            ready.append(self._pieces.pop(0))
            self._text = self._text[len(ready[-1].spelling) :]
        if self._pieces and self._text and (found := aligned(self._text.decode(), self._pieces)) is not None:
            inside, self._pieces = found
            self._text = b""
            ready += inside
        return ready

    def rest(self) -> tuple[list[Piece], list[Piece]]:
        """At the end: what is left of the text, and the pieces behind it."""
        text, pieces = self._text, self._pieces
        self._text, self._pieces = b"", []
        found = aligned(text.decode(), pieces)
        if found is not None:
            return found
        return [Piece(text, math.nan)], []
