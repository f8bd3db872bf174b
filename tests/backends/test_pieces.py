"""Reading what endpoints answer: pieces and texts, characters in parts, prefixes, chats."""

from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bough.backends.answers import Choice, Piece, aligned, choices, spans
from bough.backends.gate import Gate, shared_prefix
from bough.backends.pieces import Assembler
from bough.backends.units import Units
from bough.core import EndpointError, InvalidInput
from tiny import byte_tokenizer

TEXTS = st.text(st.sampled_from("ab é🌳\n"), max_size=12)


def reported(text: str, sizes: list[int], exact: bool) -> list[Piece]:
    """The text's bytes in pieces of these sizes as servers report them: exactly, or without what is no character."""
    data, pieces, at = text.encode(), [], 0
    while at < len(data):
        size = sizes[len(pieces) % len(sizes)]
        part = data[at : at + size]
        pieces.append(Piece(part if exact else part.decode("utf-8", "replace").encode(), -1.0))
        at += size
    return pieces


@given(TEXTS, st.lists(st.integers(1, 5), min_size=1, max_size=4), st.booleans())
def test_pieces_spell_the_text_and_no_log_probability_is_lost(text: str, sizes: list[int], exact: bool) -> None:
    pieces = reported(text, sizes, exact)
    found = aligned(text, pieces)
    if found is None:
        assert not exact  # lost characters may stand where they cannot be told apart
        return
    inside, after = found
    assert b"".join(piece.spelling for piece in inside).decode() == text and after == []
    assert sum(piece.logprob for piece in inside) == -len(pieces)


def test_what_follows_the_text_is_told_apart() -> None:
    a, b, end = Piece(b"a", -1.0), Piece(b"b\n", -2.0), Piece(b"", -3.0)
    assert aligned("ab\n", [a, b, end]) == ([a, b], [end])
    assert aligned("a", [a, b]) == ([a], [b])
    assert aligned("ab", [a, b]) == ([a], [b])  # cut inside of a piece, at a stop string
    assert aligned("xy", [a, b]) is None and aligned("abc", [a]) is None


def test_spans_have_the_sums_of_their_pieces_or_nothing() -> None:
    pieces = [Piece(b"ab", -1.0), Piece(b"c", -2.0), Piece(b"d", math.nan), Piece(b"e", -4.0)]
    assert spans("abcde", pieces, [0, 3]) == pytest.approx([-3.0])
    assert spans("abcde", pieces, [2, 3, 4, 5]) == pytest.approx([-2.0, math.nan, -4.0], nan_ok=True)
    assert spans("abcde", pieces, [0, 5]) == pytest.approx([math.nan], nan_ok=True)
    assert spans("abcde", pieces, [1, 3]) is None


@given(TEXTS, st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_a_stream_is_put_together_to_the_same_text(text: str, sizes: list[int]) -> None:
    """Pieces arrive at once, the text of a character with its last piece."""
    assembler, made, shown = Assembler(), b"", ""
    pieces, read = reported(text, sizes, True), b""
    for piece in pieces:
        read += piece.spelling
        whole = read.decode("utf-8", "ignore")
        for ready in assembler.take(Choice(whole[len(shown) :], [piece], None, None)):
            made += ready.spelling
        shown = whole
    inside, after = assembler.rest()
    assert (made + b"".join(piece.spelling for piece in inside)).decode() == text and not after


def test_both_ways_to_write_log_probabilities_are_read() -> None:
    lists = {
        "tokens": ["a", "token_id:7"],
        "token_logprobs": [None, -2],
        "top_logprobs": [{"a": -0.5, "b": -1}, None],
    }
    objects = {"content": [{"token": "?", "bytes": [97], "logprob": -1.5, "top_logprobs": [{"logprob": -0.25}]}]}
    one, other = choices(
        {
            "choices": [
                {"index": 1, "message": {"content": "a"}, "logprobs": objects, "finish_reason": "stop"},
                {"index": 0, "text": "a", "logprobs": lists, "stop_reason": "x"},
            ]
        }
    )
    assert math.isnan(one.pieces[0].logprob) and one.pieces[1] == Piece(b"", -2.0, 7)
    assert one.best == -0.5 and one.matched == "x" and one.reason is None
    assert other == Choice("a", [Piece(b"a", -1.5)], "stop", None, -0.25)
    with pytest.raises(EndpointError, match="no choices"):
        choices({"error": "nothing"})


def test_pieces_are_tokens_and_texts_are_themselves() -> None:
    plain, based = Units(), Units(byte_tokenizer())
    for units in (plain, based):
        ids = [*units.encode("ab?"), units.intern(b"xyz"), units.intern("é".encode()), units.end]
        assert units.decode(ids) == "ab?xyzé" and units.sent(ids) == (None, "ab?xyzé")
        assert units.intern(b"xyz") == ids[-3] and max(ids) < units.vocab_size
        with pytest.raises(InvalidInput, match="outside"):
            units.token_bytes(units.vocab_size)
    assert len(plain.encode("ab?")) == 1 and based.encode("ab?") == byte_tokenizer().encode("ab?")
    with pytest.raises(InvalidInput, match="not UTF-8"):
        based.sent(based.encode("é")[:1])


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_the_shared_prefix_is_as_long_as_it_is(one: list[int], other: list[int]) -> None:
    expected = next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
    assert shared_prefix(one, other) == expected


def test_nobody_waits_for_ever() -> None:
    """However many come that share more with what was sent last."""

    async def served() -> int:
        gate, order = Gate(1), []

        async def request(prompt: str) -> None:
            async with gate.enter(prompt):
                order.append(prompt)
                if len(order) < 300:
                    others.append(asyncio.ensure_future(request("aaa")))
                await asyncio.sleep(0)

        others = [asyncio.ensure_future(request(prompt)) for prompt in ("aaa", "aaa", "zzz", "aaa")]
        while not all(other.done() for other in others):
            await asyncio.sleep(0)
        return order.index("zzz")

    assert 5 < asyncio.run(served()) < 100
