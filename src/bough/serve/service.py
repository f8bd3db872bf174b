"""What a server serves: a model under its names, with limits and rewards, and the work that requests ask of it."""

from __future__ import annotations

import re
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bough.core import Backend, Branch, Capability, InvalidInput, Ledger, Reward, Run, UnsupportedError

from .bodies import ChatBody, CompletionBody, SamplingBody, ScoreBody
from .drawing import Delta, Drawing, Options, prompt_tokens
from .errors import ApiError
from .limits import Limits
from .text import TextStream, Token

DEFAULT_MAX_TOKENS = 16  # of /v1/completions, as OpenAI's


@dataclass(frozen=True)
class Progress:
    """How a search is going, for whoever watches: ``event`` is its JSON."""

    event: dict[str, Any]


class Work(ABC):
    """What one request asks of the model.

    Attributes:
        choices: continuations in the response.
        ledger: what it has spent.
    """

    choices: int
    ledger: Ledger

    @abstractmethod
    def deltas(self) -> AsyncIterator[Delta | Progress]:
        """What comes out, as it comes. Ending the iteration ends the work."""

    @abstractmethod
    def usage(self) -> dict[str, Any]:
        """OpenAI's ``usage``."""

    def extra(self) -> dict[str, Any]:
        """Fields of the response beyond OpenAI's."""
        return {}


def usage(prompt: int, completion: int, cached: int) -> dict[str, Any]:
    """OpenAI's ``usage``, from counts of tokens."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


class Sampled(Work):
    """Plain continuations of some prompts.

    Args:
        prompts: the roots, under one run.
        echoed: the texts to show before the continuations of each prompt ("" decodes its tokens); None shows none.
    """

    def __init__(self, run: Run, prompts: Sequence[Branch], n: int, options: Options, echoed: list[str] | None) -> None:
        self.ledger = run.ledger
        self.choices = len(prompts) * n
        self._n, self._options, self._echoed = n, options, echoed
        self._drawing = Drawing(prompts, n, options)

    async def deltas(self) -> AsyncIterator[Delta | Progress]:
        shift = [0] * self.choices
        if self._echoed is not None:
            for place, (prompt, text) in enumerate(zip(self._drawing.prompts, self._echoed, strict=True)):
                shown, tokens = await self._echo(prompt, text)
                for choice in range(place * self._n, (place + 1) * self._n):
                    shift[choice] = len(shown)
                    yield Delta(choice, shown, tokens)
        async for delta in self._drawing.deltas():
            ahead = shift[delta.choice]
            moved = [token._replace(offset=token.offset + ahead) for token in delta.tokens] if ahead else delta.tokens
            yield Delta(delta.choice, delta.text, moved, delta.finish)

    async def _echo(self, prompt: Branch, text: str) -> tuple[str, list[Token]]:
        tokenizer = prompt.backend.tokenizer
        assert tokenizer is not None
        stream = TextStream(tokenizer.token_bytes)
        known = list(map(Token, prompt.tokens)) if self._options.top is None else (
            await prompt_tokens(prompt, self._options.top)
        )  # fmt: skip
        for token in known:
            stream.push(token)
        stream.end()
        decoded, tokens = stream.take()
        # Some tokenizers put a space before every text, which the client did not send.
        before = len(decoded) - len(text) if text and decoded.endswith(text) else 0
        return decoded[before:], [token._replace(offset=max(0, token.offset - before)) for token in tokens]

    def usage(self) -> dict[str, Any]:
        prompts = sum(prompt.length for prompt in self._drawing.prompts)
        return usage(prompts, self._drawing.tokens, min(prompts, self.ledger.cached_tokens))


class Service:
    """A model under its names.

    Args:
        lm: the model.
        name: what clients call it; default, the model's own name, or the last part of its path.
        limits: of requests.
        rewards: that searches may use, by name. A client can name these alone: it cannot have others loaded.
        default_reward: the name of the one that a search uses which needs one and names none.

    Raises:
        InvalidInput: the model has no tokenizer, or there is no reward of the default's name.
        UnsupportedError: the model does not generate.
    """

    def __init__(
        self,
        lm: Backend,
        *,
        name: str | None = None,
        limits: Limits | None = None,
        rewards: Mapping[str, Reward] | None = None,
        default_reward: str | None = None,
    ) -> None:
        if lm.tokenizer is None:
            raise InvalidInput(f"{lm.name} has no tokenizer, so its tokens have no text; serve a model with one")
        if Capability.SAMPLE not in lm.capabilities:
            raise UnsupportedError(f"{lm.name} does not offer {Capability.SAMPLE.value}; serve a model that generates")
        self.lm = lm
        self.tokenizer = lm.tokenizer
        self.name = name or _served_name(lm.name)
        self.limits = limits or Limits()
        self.rewards = dict(rewards or {})
        if default_reward is not None and default_reward not in self.rewards:
            raise InvalidInput(f"default_reward={default_reward!r} is none of the rewards {sorted(self.rewards)}")
        self.default_reward = default_reward
        self.created = int(time.time())

    def check_model(self, asked: str | None) -> str | None:
        """The strategy in a model's name ("nano+astar"), or None.

        Raises:
            ApiError: there is no model of that name.
        """
        names = {self.name, self.name.rsplit("/", 1)[-1]}
        if asked is None or asked in names:
            return None
        model, plus, strategy = asked.rpartition("+")
        if plus and model in names:
            return strategy
        raise ApiError(
            404,
            f"there is no model {asked!r} here; this server has {self.name}, and {self.name}+STRATEGY for its searches",
            param="model",
            code="model_not_found",
        )

    def plain_model(self, asked: str | None) -> None:
        """Refuse any name but the model's own."""
        if self.check_model(asked) is not None:
            raise ApiError(400, "this endpoint runs no strategy; name the model alone", param="model")

    def seed(self, asked: int | None) -> int:
        """The seed asked for, or any."""
        return secrets.randbits(63) if asked is None else asked

    # Plain continuations -----------------------------------------------------------------------------------

    def completion(self, body: CompletionBody) -> Work:
        """The continuations of prompts."""
        self._check_count(len(body.prompt), body.n)
        run, prompts = self._roots(body.prompt, self.seed(body.seed))
        room = min(self.lm.context - prompt.length for prompt in prompts)
        asked = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
        if body.max_tokens is None:
            asked = min(asked, room)
        self._check_output("max_tokens", asked, room)
        if body.logprobs is not None:
            self._check_top("logprobs", body.logprobs)
            if body.echo and Capability.SCORE not in self.lm.capabilities:
                raise ApiError(400, f"{self.name} offers no {Capability.SCORE.value}", param="echo", code="unsupported")
        echoed = [text if isinstance(text, str) else "" for text in body.prompt] if body.echo else None
        return Sampled(run, prompts, body.n or 1, self._options(body, asked, body.logprobs), echoed)

    def chat(self, body: ChatBody) -> Work:
        """The continuations of a conversation."""
        self._check_count(1, body.n)
        run, prompts = self._roots([self.conversation(body)], self.seed(body.seed), "messages")
        room = self.lm.context - prompts[0].length
        name, asked = self.chat_max_tokens(body)
        if asked is None:
            asked = min(room, self.limits.output_tokens or room)
        self._check_output(name, asked, room)
        top = None
        if body.top_logprobs is not None and not body.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
        if body.logprobs:
            top = body.top_logprobs or 0
            self._check_top("top_logprobs", top)
        return Sampled(run, prompts, body.n or 1, self._options(body, asked, top), None)

    def chat_max_tokens(self, body: ChatBody) -> tuple[str, int | None]:
        """The limit of a chat's response, and the name of the parameter that sets it."""
        if body.max_tokens is not None and body.max_completion_tokens is not None:
            raise ApiError(400, "max_tokens is the old name of max_completion_tokens; give one", param="max_tokens")
        if body.max_tokens is not None:
            return "max_tokens", body.max_tokens
        return "max_completion_tokens", body.max_completion_tokens

    def conversation(self, body: ChatBody) -> list[int]:
        """The token ids of a conversation, up to where the model speaks."""
        return self.tokenizer.chat([message.plain() for message in body.messages])

    async def score(self, body: ScoreBody) -> dict[str, Any]:
        """The log-probabilities of each continuation of a prompt, in one pass."""
        self.plain_model(body.model)
        if len(body.prompt) != 1:
            raise ApiError(400, "prompt must be one prompt: scoring shares it", param="prompt")
        if Capability.SCORE not in self.lm.capabilities:
            raise ApiError(400, f"{self.name} offers no {Capability.SCORE.value}", code="unsupported")
        if len(body.continuations) > self.limits.choices:
            raise ApiError(
                400,
                f"{len(body.continuations)} continuations are more than {self.limits.choices}; send several requests",
                param="continuations",
            )
        run, (prompt,) = self._roots(body.prompt, 0)
        given = [self._ids(continuation, "continuations") for continuation in body.continuations]
        for place, tokens in enumerate(given):
            if prompt.length + len(tokens) > self.lm.context:
                raise self._too_long(f"continuations.{place}", prompt.length + len(tokens))
        found = await prompt.score(given)
        run.ledger.close()
        scores = [
            {
                "index": index,
                "tokens": tokens,
                "token_logprobs": logprobs.tolist(),
                "logprob": float(logprobs.sum(dtype="float64")),
            }
            for index, (tokens, logprobs) in enumerate(zip(given, found, strict=True))
        ]
        counts = usage(prompt.length, 0, min(prompt.length, run.ledger.cached_tokens))
        counts["scored_tokens"] = sum(map(len, given))
        return {"object": "list", "model": self.name, "data": scores, "usage": counts}

    # Checks ------------------------------------------------------------------------------------------------

    def _roots(self, prompts: Sequence[Any], seed: int, param: str = "prompt") -> tuple[Run, list[Branch]]:
        run = Run()
        roots = []
        for prompt in prompts:
            try:
                root = self.lm.branch(prompt, seed=seed)
            except InvalidInput as error:
                raise ApiError(400, str(error), param=param, code="invalid_prompt") from None
            self.check_prompt(root.length, param)
            roots.append(root.with_run(run))
        return run, roots

    def check_prompt(self, length: int, param: str) -> None:
        """Refuse a prompt that is longer than this server allows."""
        if length > (limit := self.limits.prompt_tokens or length):
            raise ApiError(
                400,
                f"the prompt has {length} tokens, more than the {limit} that this server allows; shorten it",
                param=param,
                code="context_length_exceeded",
            )

    def _ids(self, text: Any, param: str) -> list[int]:
        tokens = self.lm.encode(text) if isinstance(text, str) else self.lm.check_tokens(text)
        if not tokens:
            raise ApiError(400, "a continuation has no tokens to score; leave it out", param=param)
        return tokens

    def _check_count(self, prompts: int, n: int | None) -> None:
        count = prompts * (n or 1)
        if count > self.limits.choices:
            raise ApiError(
                400,
                f"{count} continuations (prompts times n) are more than the {self.limits.choices} that this server "
                "allows; send several requests",
                param="prompt" if n in (None, 1) else "n",
            )

    def _check_output(self, name: str, asked: int, room: int) -> None:
        limit = self.limits.output_tokens
        if limit is not None and asked > limit:
            raise ApiError(400, f"{name}={asked} is more than the {limit} that this server allows", param=name)
        if asked > room:
            raise self._too_long(name, self.lm.context - room + asked)

    def _too_long(self, param: str, needed: int) -> ApiError:
        return ApiError(
            400,
            f"{needed} tokens, prompt and {param} together, are more than the context of {self.lm.context}; shorten "
            "the prompt, or ask for less",
            param=param,
            code="context_length_exceeded",
        )

    def _check_top(self, name: str, top: int) -> None:
        if top > self.limits.logprobs:
            raise ApiError(400, f"{name}={top} is more than {self.limits.logprobs}", param=name)
        needed = Capability.NEXT_TOKEN if top else Capability.LOGPROBS
        if needed not in self.lm.capabilities:
            raise ApiError(400, f"{self.name} offers no {needed.value}", param=name, code="unsupported")

    def _options(self, body: SamplingBody, max_tokens: int, top: int | None) -> Options:
        stops = tuple(body.stop or ())
        if len(stops) > self.limits.stops:
            raise ApiError(400, f"{len(stops)} stop strings are more than {self.limits.stops}", param="stop")
        for token in body.logit_bias or {}:
            if token >= self.lm.vocab_size:
                raise ApiError(
                    400, f"token id {token} is outside [0, {self.lm.vocab_size}) of {self.name}", param="logit_bias"
                )
        return Options(body.sampling(), stops, max_tokens, top, bool(body.stream))


def _served_name(name: str) -> str:
    """A model's name without the folders that it was loaded from."""
    is_path = name.startswith((".", "/", "~")) or re.match(r"[A-Za-z]:\\", name)
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1] if is_path else name
