"""One way to ask an endpoint for text: `/v1/completions` or `/v1/chat/completions`, and what that way offers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from bough.core import Capability, InvalidInput, Sampling

from .units import Messages

# Options that are not OpenAI's. A server has defaults of its own for them, and these are the values that change
# nothing: a number of tokens larger than any vocabulary keeps all of them.
_ALL = 1_000_000
_NEUTRAL = {"top_k": _ALL, "min_p": 0.0, "repetition_penalty": 1.0, "repeat_penalty": 1.0}


class Prompt(NamedTuple):
    """What is sent for a branch.

    Attributes:
        text: the text of the branch; below messages, what the assistant has said so far.
        ids: the token ids instead, where the endpoint takes them.
        messages: the chat that it goes on, or None.
    """

    text: str
    ids: tuple[int, ...] | None = None
    messages: Messages | None = None

    @property
    def order(self) -> Sequence[object]:
        """What requests are ordered by: those that share a prefix of it go one after the other."""
        if self.ids is not None:
            return self.ids
        return self.text if self.messages is None else f"{self.messages}{self.text}"

    @property
    def most_tokens(self) -> int:
        """As how many tokens an endpoint may count it at most: a token is at least one byte."""
        if self.ids is not None:
            return len(self.ids) + 1
        chat = sum(len(str(message).encode()) + 16 for message in self.messages or ())
        return len(self.text.encode()) + chat + 16


@dataclass(frozen=True)
class Route:
    """What one way of asking offers, as found by asking.

    Attributes:
        path: ``completions`` or ``chat/completions``.
        options: whether it takes sampling options that are not OpenAI's.
        logprobs: whether each drawn token comes with its log-probability.
        of_the_model: whether that is at temperature 1 with nothing filtered, whatever the tokens were drawn with.
        end: how the log-probability of the end of a text is known: the endpoint reports it as a token's, or it can be
            asked for afterwards, or not at all.
        score: how given texts are scored: their prompt is echoed, or reported as ``prompt_logprobs``, or not at all.
        ids: whether it takes and gives token ids.
        seeded: whether the same seed has given the same tokens, and another one others.
        several: whether it draws ``n`` continuations in one request.
        streams: whether it streams.
        shows_stop: whether what is drawn is reported with the stop string that ended it.
        continues: what to add to a request that goes on with a partial answer; None: it begins a new one.
        limit: the name of the option that limits the tokens.
    """

    path: str
    options: bool = False
    logprobs: bool = False
    of_the_model: bool = False
    end: Literal["reported", "scored"] | None = None
    score: Literal["echo", "prompt_logprobs"] | None = None
    ids: bool = False
    seeded: bool = False
    several: bool = False
    streams: bool = False
    shows_stop: bool = False
    continues: Mapping[str, Any] | None = None
    limit: str = "max_tokens"

    @property
    def chat(self) -> bool:
        return self.path == "chat/completions"

    @property
    def capabilities(self) -> frozenset[Capability]:
        found = {
            Capability.SAMPLE: True,
            Capability.CONTINUE: self.continues is not None,
            Capability.LOGPROBS: self.logprobs and self.end is not None,
            Capability.SCORE: self.score is not None,
            Capability.SEEDED: self.seeded,
        }
        return frozenset(capability for capability, offered in found.items() if offered)

    def body(
        self,
        model: str,
        prompt: Prompt,
        *,
        max_tokens: int,
        sampling: Sampling | None = None,
        seed: int | None = None,
        n: int = 1,
        stop: Sequence[str] = (),
        logprobs: bool | None = None,
        stream: bool = False,
    ) -> dict[str, Any]:
        """A request's JSON. Without ``sampling`` it is greedy; ``logprobs`` defaults to whether they are offered.

        Every option that a server may have a default for is said, so that tokens are drawn from the distribution that
        was asked for.
        """
        sampling = sampling or Sampling(temperature=0)
        found: dict[str, Any] = {"model": model}
        if self.chat:
            messages = [*(prompt.messages or ())]
            if prompt.text:
                messages.append({"role": "assistant", "content": prompt.text})
                found.update(self.continues or {})
            found["messages"] = messages
        else:
            found["prompt"] = prompt.text if prompt.ids is None else list(prompt.ids)
        found[self.limit] = max_tokens
        found["temperature"] = sampling.temperature
        found["top_p"] = sampling.top_p
        if self.options:
            found.update(_NEUTRAL)
            if sampling.top_k:
                found["top_k"] = sampling.top_k
            if sampling.min_p:
                found["min_p"] = sampling.min_p
        if sampling.logit_bias:
            found["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
        if seed is not None:
            found["seed"] = seed
        if n > 1:
            found["n"] = n
        if stop:
            found["stop"] = list(stop)
        if self.logprobs if logprobs is None else logprobs:
            found.update({"logprobs": True, "top_logprobs": 1} if self.chat else {"logprobs": 1})
        if self.ids:
            found.update(return_tokens_as_token_ids=True, return_token_ids=True)
        if stream:
            found["stream"] = True
            if self.options:
                found["stream_options"] = {"include_usage": True}
        return found

    def check(self, sampling: Sampling, knows_ids: bool) -> None:
        """Refuse options that the endpoint would ignore or take for something else.

        Args:
            sampling: the options.
            knows_ids: whether token ids here are the endpoint's.

        Raises:
            InvalidInput: names the option.
        """
        if not self.options:
            for name in ("top_k", "min_p"):
                if value := getattr(sampling, name):
                    raise InvalidInput(f"{name}={value}: the endpoint's {self.path} does not take it; use top_p")
        if sampling.repetition_penalty != 1:
            raise InvalidInput(
                f"repetition_penalty={sampling.repetition_penalty}: endpoints differ in what they penalise; "
                "leave it out"
            )
        if sampling.logit_bias and not knows_ids:
            raise InvalidInput(
                "logit_bias is by token id, which this endpoint does not give; leave it out, or give tokenizer="
            )
