"""How published process reward models are asked: what they read up to the end of a step, and where the score is.

Each format turns the first k steps of a solution into the tokens after whose last one the model says how good the
k-th step is. The tokens for k steps begin with those for k - 1, so that what was computed for one step is reused
for the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bough.core import RewardError, TokenizerLike, UnsupportedError


class StepFormat(Protocol):
    """A process reward model's format."""

    def prefix(self, tokenizer: TokenizerLike, prompt: str, steps: Sequence[str]) -> list[int]:
        """The tokens after which the last of ``steps`` (at least one) is judged."""
        ...

    def read(self, tokenizer: TokenizerLike, logprobs: np.ndarray) -> np.ndarray:
        """The judgement, float64 ``[n]`` in [0, 1], from next-token (or label) log-probabilities ``[n, V]``."""
        ...


@dataclass(frozen=True)
class GoodBad:
    """Base of the causal formats: the score is softmax over the logits of two tokens, ``good`` and ``bad``."""

    good: str | int = "+"
    bad: str | int = "-"

    def read(self, tokenizer: TokenizerLike, logprobs: np.ndarray) -> np.ndarray:
        good, bad = single_token(tokenizer, self.good), single_token(tokenizer, self.bad)
        return _logistic(logprobs[:, good] - logprobs[:, bad])


@dataclass(frozen=True)
class AtStepEnd:
    """Base of the formats that insert nothing, so that the generator's own tokens can be used.

    Attributes:
        tag: what ends a step; a token of its own.
    """

    tag: str = "\n"

    def prefix(self, tokenizer: TokenizerLike, prompt: str, steps: Sequence[str]) -> list[int]:
        return _up_to_tag(tokenizer, prompt + "".join(step + self.tag for step in steps), self.tag)


@dataclass(frozen=True)
class StepEnd(AtStepEnd, GoodBad):
    """The score of two tokens, ``good`` and ``bad``, stands where a step ends anyway."""


@dataclass(frozen=True)
class StepReject(AtStepEnd):
    """Every token of the solution is held against one that rejects it: see `bough.rewards.RejectionReward`.

    Attributes:
        reject: the token that no text has.
        offset: what is added to its log-probability. A model that also generates was trained with one so large that
            it hardly ever draws the token.
    """

    reject: str | int = "<reject>"
    offset: float = 0.0

    def read(self, tokenizer: TokenizerLike, logprobs: np.ndarray) -> np.ndarray:
        """The probabilities ``[n]`` of written tokens to stand, from theirs and the rejection's ``[n, 2]``."""
        return _logistic(logprobs[:, 0] - logprobs[:, 1] - self.offset)


@dataclass(frozen=True)
class StepForesee(StepReject):
    """One more token, the query, says behind an unfinished solution how it will end.

    See `bough.rewards.ForeseeingReward`.

    Attributes:
        query: the token after which the answer stands.
        good: the answer that the solution will end right if it is right so far.
        bad: that it will not.
    """

    query: str | int = "?"
    good: str | int = "+"
    bad: str | int = "-"

    def foresee(self, tokenizer: TokenizerLike, logprobs: np.ndarray) -> np.ndarray:
        """The probabilities ``[n]`` of the good answer, from next-token log-probabilities ``[n, V]``."""
        return GoodBad(self.good, self.bad).read(tokenizer, logprobs)


@dataclass(frozen=True)
class StepTag(GoodBad):
    """A tag token is inserted after every step, and the score stands there.

    Math-Shepherd (Wang et al. 2023, arXiv:2312.08935): ``"{question} {step 1} ки\\n{step 2} ки"``.
    """

    tag: str = "ки"

    def prefix(self, tokenizer: TokenizerLike, prompt: str, steps: Sequence[str]) -> list[int]:
        body = "\n".join(f"{step.replace(self.tag, '')} {self.tag}" for step in steps)
        return _up_to_tag(tokenizer, f"{prompt.strip()} {body}", self.tag)


@dataclass(frozen=True)
class ChatTurns(GoodBad):
    """Every step is a user's turn that the assistant answers with ``good`` or ``bad``; the first has the question.

    RLHFlow (Dong et al. 2024, arXiv:2405.07863; process rewards in github.com/RLHFlow/RLHF-Reward-Modeling). What
    was said of earlier steps is always ``good``, as in its training.
    """

    def prefix(self, tokenizer: TokenizerLike, prompt: str, steps: Sequence[str]) -> list[int]:
        praise = self.good if isinstance(self.good, str) else tokenizer.decode([self.good])
        turns = [{"role": "user", "content": f"{prompt.strip()} {steps[0]}"}]
        for step in steps[1:]:
            turns += [{"role": "assistant", "content": praise}, {"role": "user", "content": step}]
        return tokenizer.chat(turns, add_generation_prompt=True)


@dataclass(frozen=True)
class StepLabel:
    """A token classifier labels the separator token after every step.

    Qwen2.5-Math-PRM (Zhang et al. 2025, arXiv:2501.07301): a conversation whose assistant turn is the steps, each
    followed by ``<extra_0>``. A checkpoint without a chat template gets prompt and steps as plain text.

    Attributes:
        tag: the separator, a token of its own.
        label: index of the label that means a good step.
        system: the system turn; None leaves it out.
    """

    tag: str = "<extra_0>"
    label: int = 1
    system: str | None = "Please reason step by step, and put your final answer within \\boxed{}."

    def prefix(self, tokenizer: TokenizerLike, prompt: str, steps: Sequence[str]) -> list[int]:
        body = "".join(step.replace(self.tag, "") + self.tag for step in steps)
        if getattr(tokenizer, "chat_template", None) is None:
            return _up_to_tag(tokenizer, prompt + body, self.tag)
        turns = [{"role": "user", "content": prompt.strip()}, {"role": "assistant", "content": body}]
        if self.system is not None:
            turns.insert(0, {"role": "system", "content": self.system})
        tokens, tag = tokenizer.chat(turns, add_generation_prompt=False), single_token(tokenizer, self.tag)
        if tag not in tokens:
            raise RewardError(f"the chat template drops the step separator {self.tag!r}, where the score would be")
        return tokens[: len(tokens) - tokens[::-1].index(tag)]

    def read(self, tokenizer: TokenizerLike, logprobs: np.ndarray) -> np.ndarray:
        if not 0 <= self.label < logprobs.shape[1]:
            raise RewardError(f"label={self.label}: the reward model has {logprobs.shape[1]} labels; count from 0")
        return np.exp(logprobs[:, self.label].astype(np.float64))


def _logistic(margin: np.ndarray) -> np.ndarray:
    # By tanh, which never overflows.
    return (1 + np.tanh(margin.astype(np.float64) / 2)) / 2


def single_token(tokenizer: TokenizerLike, text: str | int) -> int:
    """The id of a text that is one token (an id is taken as it is).

    Raises:
        UnsupportedError: it is not one token.
    """
    if isinstance(text, int):
        return text
    ids = tokenizer.encode(text)
    while len(ids) > 1 and not tokenizer.token_bytes(ids[0]).strip(b" "):
        del ids[0]  # the space that sentencepiece puts before every text
    if len(ids) != 1:
        raise UnsupportedError(
            f"{text!r} is {len(ids)} tokens {ids} for the reward model's tokenizer, but its score is read at one; "
            "this is not the checkpoint's format, or give the token's id instead of its text"
        )
    return ids[0]


def _up_to_tag(tokenizer: TokenizerLike, text: str, tag: str) -> list[int]:
    tokens = tokenizer.encode(text, add_special=True)
    # Some tokenizers also end a text with a special token.
    while tokens and not tokenizer.token_bytes(tokens[-1]) and tokens[-1] != single_token(tokenizer, tag):
        tokens.pop()
    if tokens[-1] != single_token(tokenizer, tag):
        raise RewardError(
            f"the step tag {tag!r} merged with the text before it ({text[-20:]!r}), so there is no place to read "
            "the score at; the reward model's tokenizer must keep its tag apart"
        )
    return tokens
