"""The calls that a route is made of: continuations, streamed or not, and the scores of given text."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from bough.core import EndpointError, UnsupportedError
from bough.models import Tokenizer

from .answers import Choice, Piece, aligned, choices, spans
from .client import Client
from .gate import Statistics
from .route import Prompt, Route


class Usage(NamedTuple):
    """Tokens of a request as the endpoint counts them; None where it does not say."""

    prompt: int | None = None
    completion: int | None = None
    cached: int | None = None

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Usage:
        """From an answer's ``usage``."""
        usage = answer.get("usage")
        if not isinstance(usage, dict):
            return cls()
        details = usage.get("prompt_tokens_details") or {}
        counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"), details.get("cached_tokens"))
        return cls(*(count if isinstance(count, int) and count >= 0 else None for count in counts))


class Caller:
    """Asks one model of one endpoint, and counts.

    Args:
        client: how it is reached.
        model: its name there.
        tokenizer: whose ids the endpoint's are, where a route gives ids.
        statistics: to count in.
    """

    def __init__(self, client: Client, model: str, tokenizer: Tokenizer | None, statistics: Statistics) -> None:
        self.client = client
        self.model = model
        self.tokenizer = tokenizer
        self.statistics = statistics

    async def complete(
        self, route: Route, prompt: Prompt, *, trying: bool = False, **options: Any
    ) -> tuple[list[Choice], Usage]:
        """Continuations, all at once. Options as `Route.body` takes them."""
        body = route.body(self.model, prompt, **options)
        answer = await self._post(route, body, trying)
        return [self._spelled(route, choice) for choice in choices(answer)], Usage.of(answer)

    async def stream(
        self, route: Route, prompt: Prompt, **options: Any
    ) -> AsyncGenerator[tuple[Choice | None, Usage], None]:
        """A continuation in parts, as they come."""
        body = route.body(self.model, prompt, stream=True, **options)
        over = False
        try:
            async with aclosing(self.client.stream(route.path, body)) as events:
                async for event in events:
                    usage = Usage.of(event)
                    if usage != Usage():
                        self._count(usage)
                    if event.get("choices"):
                        (choice, *_) = choices(event)
                        over = over or choice.reason is not None
                        yield self._spelled(route, choice), usage
                    else:
                        yield None, usage
            if not over:
                raise EndpointError(f"{self.client.url}/{route.path} ended its stream without a finish_reason")
        except (asyncio.CancelledError, GeneratorExit):
            self.statistics.cancelled += not over
            raise
        finally:
            self.statistics.requests += over
            self.statistics.retries = self.client.retried

    async def score(self, route: Route, prompt: Prompt, borders: Sequence[int]) -> np.ndarray:
        """Log-probabilities of the spans of a prompt between borders: float32 ``[len(borders) - 1]``.

        Args:
            route: one that scores.
            prompt: its text is what is scored.
            borders: ascending offsets, in tokens where ids are sent and else in bytes of the text.

        Raises:
            UnsupportedError: the endpoint reads one token across a border.
            EndpointError: it reports something else than the tokens of the prompt.
        """
        text, pieces = await self._read(route, prompt, prompt.text)
        if prompt.ids is not None:
            values = np.array([piece.logprob for piece in pieces], np.float32)
            return np.array([values[a:b].sum() for a, b in zip(borders, borders[1:], strict=False)], np.float32)
        if aligned(text, pieces) is None:
            raise EndpointError(f"{self.client.url} echoes tokens that do not spell the prompt, so it scores nothing")
        found = spans(text, pieces, borders)
        if found is None:
            edges = ", ".join(repr(text.encode()[max(0, b - 8) : b + 8].decode("utf-8", "replace")) for b in borders)
            raise UnsupportedError(
                f"the endpoint reads a token across a border of what is to be scored (around {edges}), so that "
                "it has no log-probability of its own; score text that begins and ends at a token's border, such as "
                "a word with the space before it"
            )
        return found

    async def end(self, route: Route, prompt: Prompt, literal: str) -> float:
        """The log-probability that a prompt's text ends, asked for by what the end-of-text token is written as.

        NaN where the endpoint does not read that as one token.
        """
        _, pieces = await self._read(route, prompt._replace(text=prompt.text + literal), prompt.text)
        at, size = 0, len(prompt.text.encode())
        for piece in pieces:
            if at >= size:
                # An end-of-text token has no text, or is written out.
                alone = at == size and piece.spelling in (b"", literal.encode())
                return piece.logprob if alone else math.nan
            at += len(piece.spelling)
        return math.nan

    async def _read(self, route: Route, prompt: Prompt, begin: str) -> tuple[str, list[Piece]]:
        """A prompt's text and its pieces, which begin by spelling ``begin``; it may take another token to ask."""
        body = route.body(self.model, prompt, max_tokens=1, logprobs=True)
        body.update({"echo": True} if route.score == "echo" else {"prompt_logprobs": 0})
        answer = await self._post(route, body)
        (choice, *_) = [self._spelled(route, choice) for choice in choices(answer)]
        if route.score == "echo":
            return choice.text, without_begin(begin, choice.pieces)
        reported = answer["choices"][0].get("prompt_logprobs") or answer.get("prompt_logprobs")
        if not isinstance(reported, list):
            raise EndpointError(f"{self.client.url}/{route.path} gave no prompt_logprobs, which it has given before")
        pieces = [_prompt_piece(entry) for entry in reported]
        # The first token has no log-probability, and with it no spelling: it is what the others leave.
        rest = len(prompt.text.encode()) - sum(len(piece.spelling) for piece in pieces[1:])
        if prompt.ids is None and pieces and rest >= 0:
            pieces[0] = Piece(prompt.text.encode()[:rest], math.nan)
        return prompt.text, pieces

    async def _post(self, route: Route, body: Mapping[str, Any], trying: bool = False) -> dict[str, Any]:
        try:
            answer = await self.client.post(route.path, body, trying=trying)
        except asyncio.CancelledError:
            self.statistics.cancelled += 1
            raise
        finally:
            self.statistics.retries = self.client.retried
        self.statistics.requests += 1
        self._count(Usage.of(answer))
        return answer

    def _count(self, usage: Usage) -> None:
        statistics = self.statistics
        statistics.prompt_tokens += usage.prompt or 0
        statistics.completion_tokens += usage.completion or 0
        if usage.cached is not None:
            statistics.cached_tokens = (statistics.cached_tokens or 0) + usage.cached

    def _spelled(self, route: Route, choice: Choice) -> Choice:
        """The choice with its token ids spelled."""
        if not route.ids or self.tokenizer is None or any(piece.id is None for piece in choice.pieces):
            return choice
        spell = self.tokenizer.token_bytes
        return replace(
            choice, pieces=[Piece(spell(p.id), p.logprob, p.id) for p in choice.pieces if p.id is not None]
        )


def without_begin(text: str, pieces: list[Piece]) -> list[Piece]:
    """The pieces of an echoed text without the begin-of-text token that some servers report."""
    spelled = b"".join(piece.spelling for piece in pieces)
    if not pieces or not math.isnan(pieces[0].logprob):
        return pieces
    textless = not pieces[0].spelling  # and told by its id
    return pieces[1:] if textless or not spelled.startswith(text.encode()) else pieces


def _prompt_piece(entry: object) -> Piece:
    """An entry of ``prompt_logprobs``: None, or a token id with what is known of it."""
    if not isinstance(entry, dict) or not entry:
        return Piece(b"", math.nan)
    (known, *_) = entry.values()
    return Piece(str(known.get("decoded_token") or "").encode(), float(known.get("logprob", math.nan)))
