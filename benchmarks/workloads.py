"""The workloads: what every contender must produce, and what that costs at the least.

Each workload is a value: its sizes and a seed, from which its prompts, arrival times and resampling follow, the same
for every contender. `phases` states the bytes that must move and the operations that must be done: the weights once a
pass, each unique key and value once a pass, two operations for each weight and token, four for each query, key and
dimension. `bough`'s and everybody else's caches may do more; none can do less.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

WEIGHT_BYTES = {"bf16": 2.0, "int8": 1.0, "int4": 0.5}
"""Bytes of one weight in a matrix; scales are left out, so the bound holds for any grouping."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama-architecture model, from its ``config.json``."""

    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool = False

    @classmethod
    def of(cls, config: dict) -> Shape:
        heads = config["num_attention_heads"]
        return cls(
            config["vocab_size"],
            config["hidden_size"],
            config["intermediate_size"],
            config["num_hidden_layers"],
            heads,
            config["num_key_value_heads"],
            config.get("head_dim") or config["hidden_size"] // heads,
            config.get("tie_word_embeddings", False),
        )

    @property
    def products(self) -> list[tuple[int, int]]:
        """(outputs, inputs) of each matrix of one layer: fused q, k, v; attention output; fused gate, up; down."""
        width = self.heads * self.head_dim
        return [
            (width + 2 * self.kv_heads * self.head_dim, self.hidden),
            (self.hidden, width),
            (2 * self.intermediate, self.hidden),
            (self.hidden, self.intermediate),
        ]

    @property
    def layer_weights(self) -> int:
        """Weights in the matrices of all layers."""
        return self.layers * sum(outputs * inputs for outputs, inputs in self.products)

    @property
    def head_weights(self) -> int:
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """Embedding, head (where it is not the embedding), layers and norms."""
        outside = self.head_weights * (1 if self.tied else 2)
        return outside + self.layer_weights + (2 * self.layers + 1) * self.hidden

    @property
    def kv_bytes(self) -> int:
        """Bytes of one token's keys and values in bf16."""
        return 2 * self.layers * self.kv_heads * self.head_dim * 2

    @property
    def attention_operations(self) -> int:
        """Operations of one query and one key: a product and a weighted sum, in all layers and heads."""
        return 4 * self.layers * self.heads * self.head_dim


@dataclass(frozen=True)
class Phase:
    """Some passes of a workload, alike enough to be counted together.

    Attributes:
        passes: how many times the weights are read.
        tokens: tokens that go through the layers.
        heads: places whose logits are needed.
        pairs: (query, key) pairs of attention.
        keys: keys and values read, each unique one once a pass.
    """

    passes: int
    tokens: int
    heads: int
    pairs: int
    keys: int

    def operations(self, shape: Shape) -> float:
        linear = 2.0 * (self.tokens * shape.layer_weights + self.heads * shape.head_weights)
        return linear + float(self.pairs) * shape.attention_operations

    def bytes(self, shape: Shape, precision: str) -> float:
        weights = (shape.layer_weights + shape.head_weights) * WEIGHT_BYTES[precision]
        return self.passes * weights + (self.keys + self.tokens) * float(shape.kv_bytes)


def prefill(tokens: int) -> Phase:
    """A prompt in one pass, logits at its end."""
    return Phase(1, tokens, 1, tokens * (tokens + 1) // 2, tokens)


def decode(rows: int, steps: int, prefix: int, unique: int) -> Phase:
    """``steps`` passes of ``rows`` rows that begin after ``prefix`` tokens each, ``unique`` among them all."""
    steps_sum = steps * (steps + 1) // 2
    return Phase(
        steps, rows * steps, rows * steps, rows * (steps * prefix + steps_sum), steps * unique + rows * steps_sum
    )


def _ids(rng: np.random.Generator, vocab: int, count: int) -> list[int]:
    return rng.integers(3, vocab, count).tolist()


@dataclass(frozen=True)
class Workload:
    """What all workloads share: a vocabulary and a seed, which a repetition changes."""

    letter: ClassVar[str]
    title: ClassVar[str]
    unit: ClassVar[str] = "tokens/s"

    vocab: int
    seed: int = 0

    @cached_property
    def prompt(self) -> list[int]:
        return _ids(np.random.default_rng(self.seed), self.vocab, self.prompt_tokens)

    @property
    def prompt_tokens(self) -> int:
        raise NotImplementedError

    @property
    def produced(self) -> int:
        """Tokens that the rate counts."""
        raise NotImplementedError

    @property
    def context(self) -> int:
        """The longest branch."""
        raise NotImplementedError

    def phases(self) -> list[Phase]:
        """What has to be done, one after the other."""
        raise NotImplementedError


@dataclass(frozen=True)
class OneStream(Workload):
    """(a) One continuation of a short prompt, temperature 1, prompt included."""

    letter: ClassVar[str] = "a"
    title: ClassVar[str] = "one stream"
    prompt_tokens: int = 32
    tokens: int = 256

    @property
    def produced(self) -> int:
        return self.tokens

    @property
    def context(self) -> int:
        return self.prompt_tokens + self.tokens

    def phases(self) -> list[Phase]:
        # The first token is drawn from the prompt's logits; the last one is never computed.
        return [prefill(self.prompt_tokens), decode(1, self.tokens - 1, self.prompt_tokens, self.prompt_tokens)]


@dataclass(frozen=True)
class Branching(Workload):
    """(b) Many continuations of one long prompt, prompt included."""

    letter: ClassVar[str] = "b"
    title: ClassVar[str] = "branching"
    prompt_tokens: int = 1024
    branches: int = 64
    tokens: int = 64

    @property
    def produced(self) -> int:
        return self.branches * self.tokens

    @property
    def context(self) -> int:
        return self.prompt_tokens + self.tokens

    def phases(self) -> list[Phase]:
        prompt = self.prompt_tokens
        return [prefill(prompt), decode(self.branches, self.tokens - 1, prompt, prompt)]


@dataclass(frozen=True)
class StepSearch(Workload):
    """(c) A step-level search with scoring.

    Each level draws ``kept * width`` children of ``step`` tokens (the first level: all of the root), scores each by
    the mean log-probability of one fixed continuation, and keeps the best ``kept``.
    """

    letter: ClassVar[str] = "c"
    title: ClassVar[str] = "step search"
    prompt_tokens: int = 512
    depth: int = 12
    kept: int = 8
    width: int = 8
    step: int = 12
    scored_tokens: int = 8

    @property
    def children(self) -> int:
        return self.kept * self.width

    @property
    def produced(self) -> int:
        return self.depth * self.children * self.step

    @property
    def context(self) -> int:
        return self.prompt_tokens + self.depth * self.step + self.scored_tokens

    @cached_property
    def continuation(self) -> list[int]:
        return _ids(np.random.default_rng(self.seed + 1_000_003), self.vocab, self.scored_tokens)

    def phases(self) -> list[Phase]:
        phases = [prefill(self.prompt_tokens)]
        for level in range(self.depth):
            prefix = self.prompt_tokens + level * self.step
            phases.append(decode(self.children, self.step - 1, prefix, prefix))
            # The child's last token and all but the last of the continuation, logits at each.
            queries = self.children * self.scored_tokens
            phases.append(
                Phase(1, queries, queries, queries * (prefix + self.step), prefix + self.children * self.step)
            )
        return phases


@dataclass(frozen=True)
class Request:
    """One request of `Serving`: when it comes, its prompt, and how many tokens it wants."""

    arrival: float
    prompt: list[int]
    tokens: int


@dataclass(frozen=True)
class Serving(Workload):
    """(d) Requests that arrive at random (exponential gaps); half of them share a long prefix."""

    letter: ClassVar[str] = "d"
    title: ClassVar[str] = "serving"
    count: int = 32
    gap: float = 0.05
    """Mean seconds between arrivals."""
    prefix_tokens: int = 256
    longest: int = 512
    shortest: int = 32
    most: int = 128
    fewest: int = 16

    @cached_property
    def requests(self) -> list[Request]:
        rng = np.random.default_rng(self.seed)
        prefix = _ids(rng, self.vocab, self.prefix_tokens)
        arrivals = np.cumsum(rng.exponential(self.gap, self.count)) - self.gap
        made = []
        for i, arrival in enumerate(arrivals):
            length = int(rng.integers(self.shortest, self.longest + 1))
            if i % 2:
                own = max(length - self.prefix_tokens, 16)
                prompt = prefix + _ids(rng, self.vocab, own)
            else:
                prompt = _ids(rng, self.vocab, length)
            made.append(Request(max(float(arrival), 0.0), prompt, int(rng.integers(self.fewest, self.most + 1))))
        return made

    @property
    def produced(self) -> int:
        return sum(request.tokens for request in self.requests)

    @property
    def context(self) -> int:
        return self.longest + self.most

    def phases(self) -> list[Phase]:
        # At the least as many passes as the longest request needs; the shared prefix once.
        phases, seen = [], 0
        for i, request in enumerate(self.requests):
            cached = seen if i % 2 else 0
            seen = self.prefix_tokens if i % 2 else seen
            length = len(request.prompt)
            pairs = (length * (length + 1) - cached * (cached + 1)) // 2
            phases.append(Phase(0, length - cached, 1, pairs, length))
            rows = decode(1, request.tokens - 1, length, 0)
            phases.append(Phase(0, rows.tokens, rows.heads, rows.pairs, rows.keys))
        total = [sum(getattr(phase, name) for phase in phases) for name in ("tokens", "heads", "pairs", "keys")]
        return [Phase(max(request.tokens for request in self.requests), *total)]


@dataclass(frozen=True)
class Prefill(Workload):
    """(e) The next-token distribution of a long prompt."""

    letter: ClassVar[str] = "e"
    title: ClassVar[str] = "prefill"
    prompt_tokens: int = 4096

    @property
    def produced(self) -> int:
        return self.prompt_tokens

    @property
    def context(self) -> int:
        return self.prompt_tokens + 1

    def phases(self) -> list[Phase]:
        return [prefill(self.prompt_tokens)]


@dataclass(frozen=True)
class Particles(Workload):
    """(f) A particle filter: all particles advance together and are resampled every few tokens."""

    letter: ClassVar[str] = "f"
    title: ClassVar[str] = "particles"
    prompt_tokens: int = 256
    particles: int = 256
    tokens: int = 64
    every: int = 16

    @property
    def produced(self) -> int:
        return self.particles * self.tokens

    @property
    def context(self) -> int:
        return self.prompt_tokens + self.tokens

    def resamplings(self) -> Iterator[np.ndarray]:
        """int64 ``[particles]``, sorted: whose copies go on, after each ``every`` tokens but the last."""
        rng = np.random.default_rng(self.seed + 2_000_003)
        for _ in range(self.tokens // self.every - 1):
            weights = rng.exponential(size=self.particles)
            yield np.sort(rng.choice(self.particles, self.particles, p=weights / weights.sum()))

    def phases(self) -> list[Phase]:
        phases = [prefill(self.prompt_tokens)]
        for start in range(0, self.tokens, self.every):
            # A resampled particle's last token is computed in the next stretch, the very last one never.
            steps = self.every - (start == 0)
            prefix = self.prompt_tokens + start
            phases.append(decode(self.particles, steps, prefix, self.prompt_tokens))
        return phases


WORKLOADS: dict[str, type[Workload]] = {
    cls.letter: cls for cls in (OneStream, Branching, StepSearch, Serving, Prefill, Particles)
}
