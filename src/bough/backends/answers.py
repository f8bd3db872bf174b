"""What endpoints answer, read into one form: pieces of text with their log-probabilities.

Two ways to write log-probabilities are in use, and some servers answer either request in either way: parallel lists
(``tokens``, ``token_logprobs``, of `/v1/completions`) and a list of objects (``content``, of `/v1/chat/completions`).
A piece that is less than a character is written as U+FFFD or as nothing, unless its bytes are given too; such pieces
are joined until they spell characters, and the log-probabilities are added. What cannot be matched with the text has
no log-probability here (NaN), never a number that stands for one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bough.core import EndpointError

LOST = "�"


class Piece(NamedTuple):
    """A token as an endpoint reports it: spelling, log-probability (NaN) and id (None), where it reports them."""

    spelling: bytes
    logprob: float
    id: int | None = None


@dataclass(frozen=True)
class Choice:
    """One continuation, or a part of it that was streamed.

    Attributes:
        text: as the endpoint gives it, which may leave out a stop string.
        pieces: what was drawn, as far as that is reported; with a stop string and end-of-text token, where they are.
        reason: why it ended ("stop", "length"), or None.
        matched: the stop string or token that the endpoint says it ended at, or None.
        best: the log-probability of the likeliest first token, NaN where that is not reported.
    """

    text: str
    pieces: list[Piece]
    reason: str | None
    matched: str | int | None
    best: float = math.nan


def choices(answer: Mapping[str, Any]) -> list[Choice]:
    """The choices of an answer, by their index.

    Raises:
        EndpointError: it has none, or one without text.
    """
    found = answer.get("choices")
    if not isinstance(found, list) or not all(isinstance(choice, dict) for choice in found):
        raise EndpointError(f"the endpoint answered {str(answer)[:200]}, which has no choices")
    return [_choice(choice) for choice in sorted(found, key=lambda choice: choice.get("index") or 0)]


def _choice(raw: Mapping[str, Any]) -> Choice:
    text = raw.get("text")
    if text is None:
        message = raw.get("message") or raw.get("delta") or {}
        text = message.get("content") or ""
    if not isinstance(text, str):
        raise EndpointError(f"the endpoint's choice has {str(text)[:200]!r} for a text")
    pieces, best = _pieces(raw.get("logprobs"), raw.get("token_ids"))
    matched = raw.get("stop_reason")
    reason = raw.get("finish_reason")
    return Choice(text, pieces, reason, matched if isinstance(matched, (str, int)) else None, best)


def _pieces(logprobs: object, ids: object) -> tuple[list[Piece], float]:
    entries: list[tuple[Any, Any, Any, Any]] = []
    best = math.nan
    if isinstance(logprobs, dict) and isinstance(logprobs.get("content"), list):
        entries = [(e.get("token"), e.get("logprob"), e.get("bytes"), e.get("id")) for e in logprobs["content"]]
        if entries and (top := logprobs["content"][0].get("top_logprobs")):
            best = max(_number(other.get("logprob")) for other in top)
    elif isinstance(logprobs, dict) and isinstance(logprobs.get("tokens"), list):
        values = logprobs.get("token_logprobs") or [None] * len(logprobs["tokens"])
        entries = [(token, value, None, None) for token, value in zip(logprobs["tokens"], values, strict=False)]
        if (top := logprobs.get("top_logprobs")) and top[0]:
            best = max(map(_number, top[0].values()))
    if isinstance(ids, list) and len(ids) >= len(entries):
        padded = entries + [("", None, None, None)] * (len(ids) - len(entries))
        entries = [(token, value, spelling, id) for (token, value, spelling, _), id in zip(padded, ids, strict=True)]
    pieces = []
    for token, value, spelling, id in entries:
        token = token if isinstance(token, str) else ""
        if id is None and token.startswith("token_id:") and token[9:].isdigit():
            token, id = "", int(token[9:])
        exact = bytes(spelling) if isinstance(spelling, list) else token.encode()
        pieces.append(Piece(exact, _number(value), id if isinstance(id, int) else None))
    return pieces, best


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def aligned(text: str, pieces: Sequence[Piece]) -> tuple[list[Piece], list[Piece]] | None:
    """The pieces that spell a text, those of less than a character joined; and those that come after it.

    None where they do not spell it.
    """
    goal = text.encode()
    inside: list[Piece] = []
    held: list[Piece] = []
    at = 0
    for number, piece in enumerate(pieces):
        spelling = piece.spelling
        # A piece of nothing after the whole text is an end-of-text token, before it the beginning of a character.
        if at == len(goal):
            return (inside, list(pieces[number:])) if not held else None
        whole = is_whole(piece)
        if not held and whole and goal.startswith(spelling, at):
            inside.append(piece)
            at += len(spelling)
        elif not held and whole and spelling.startswith(goal[at:]):
            # The text was cut inside of the piece, at a stop string.
            return inside, list(pieces[number:])
        elif whole:
            return None
        else:
            held.append(piece)
            end = _end_of_held(goal, at, held, pieces[number + 1 :])
            if end is not None:
                inside.append(Piece(goal[at:end], sum(piece.logprob for piece in held)))
                held, at = [], end
    return (inside, []) if at == len(goal) and not held else None


def _end_of_held(goal: bytes, at: int, held: Sequence[Piece], later: Sequence[Piece]) -> int | None:
    """Where in the text the pieces that are no characters of their own end; None: not yet."""
    exact = b"".join(piece.spelling for piece in held)
    if goal.startswith(exact, at) and exact and _is_text(exact) and LOST.encode() not in exact:
        return at + len(exact)
    following = next((piece.spelling for piece in later if piece.spelling), b"")
    if later and (not following or LOST.encode() in following or not _is_text(following)):
        return None
    if later and later[0].spelling != following:
        return None
    end = goal.find(following, at + 1) if following else len(goal)
    return end if end > at else None


def is_whole(piece: Piece) -> bool:
    """Whether a piece is one or more whole characters, all of them told."""
    return piece.spelling != b"" and LOST.encode() not in piece.spelling and _is_text(piece.spelling)


def _is_text(spelling: bytes) -> bool:
    try:
        spelling.decode()
    except UnicodeDecodeError:
        return False
    return True


def spans(text: str, pieces: Sequence[Piece], borders: Sequence[int]) -> np.ndarray | None:
    """The log-probabilities of spans of a text, from those of its pieces: float32 ``[len(borders) - 1]``.

    Args:
        text: which the pieces spell.
        pieces: of it.
        borders: ascending byte offsets; each two that follow each other are a span.

    None where a border lies inside of a piece: what it is there has no probability of its own.
    """
    found = aligned(text, pieces)
    if found is None:
        return None
    ends = np.cumsum([len(piece.spelling) for piece in found[0]])
    sums = np.concatenate([[0.0], np.cumsum([0.0 if math.isnan(p.logprob) else p.logprob for p in found[0]])])
    known = np.concatenate([[0], np.cumsum([math.isnan(piece.logprob) for piece in found[0]])])
    places = [0 if border == 0 else int(np.searchsorted(ends, border)) + 1 for border in borders]
    for border, place in zip(borders, places, strict=True):
        if border and (place > len(ends) or ends[place - 1] != border):
            return None
    values = np.array([sums[b] - sums[a] for a, b in zip(places, places[1:], strict=False)], np.float32)
    values[[known[b] > known[a] for a, b in zip(places, places[1:], strict=False)]] = np.nan
    return values
