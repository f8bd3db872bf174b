"""From tokens to text: stop strings and characters that span tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bough.serve.text import TextStream, Token


def shown(text: str, size: int, stops: list[str]) -> tuple[list[str], TextStream]:
    """What is shown, token by token, of a text whose tokens have so many bytes each."""
    data = text.encode()
    stream = TextStream(lambda place: data[place : place + size], stops)
    pieces = []
    for place in range(0, len(data), size):
        stream.push(Token(place))
        pieces.append(stream.take()[0])
    stream.end()
    return [*pieces, stream.take()[0]], stream


@given(st.text("abé☃", max_size=30), st.integers(1, 4), st.lists(st.text("abé", min_size=1, max_size=4), max_size=3))
def test_what_is_shown_is_the_text_before_the_first_stop_string(text, size, stops):
    pieces, stream = shown(text, size, stops)
    found = "".join(pieces)
    if not any(stop in text for stop in stops):
        assert found == text and not stream.stopped
    else:
        assert stream.stopped
        assert text.startswith(found)
        assert any(text[len(found) :].startswith(stop) for stop in stops)
        assert not any(stop in found for stop in stops)


def test_nothing_that_may_begin_a_stop_string_is_shown_early():
    assert shown("one END two", 1, ["END"])[0][:8] == ["o", "n", "e", " ", "", "", "", ""]
    assert "".join(shown("one ENd two", 1, ["END"])[0]) == "one ENd two"


def test_a_character_is_shown_when_it_is_whole():
    assert shown("a☃b", 1, [])[0] == ["a", "", "", "☃", "b", ""]


def test_bytes_that_are_no_text_become_replacement_characters():
    stream = TextStream(lambda token: b"\xe2\x98")
    stream.push(Token(0))
    assert stream.take() == ("", [Token(0)])
    stream.end()
    assert stream.take() == ("\N{REPLACEMENT CHARACTER}", [])


@pytest.mark.parametrize("size", [1, 2, 3])
def test_tokens_come_with_the_text_that_they_complete(size):
    text, stops = "abcabcEND", ["END"]
    data = text.encode()
    stream = TextStream(lambda place: data[place : place + size], stops)
    length, tokens = 0, []
    for place in range(0, len(data), size):
        stream.push(Token(place))
        more, new = stream.take()
        length += len(more)
        tokens += new
        assert all(token.offset <= length for token in tokens)
    assert [token.offset for token in tokens] == list(range(0, 6, size))
    assert stream.stopped
