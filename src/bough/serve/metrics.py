"""What a server counts, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counts of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "bough_requests", "Requests by endpoint and HTTP status; 499 is a client that left.",
            ("endpoint", "status"), registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "bough_request_seconds", "From a request's arrival to its end.",
            ("endpoint",), registry=self.registry, buckets=_SECONDS,
        )  # fmt: skip
        self.first = Histogram(
            "bough_first_token_seconds", "From a request's arrival to the first token of a stream.",
            registry=self.registry, buckets=_SECONDS,
        )  # fmt: skip
        self.prompt_tokens = Counter("bough_prompt_tokens", "Tokens of prompts.", registry=self.registry)
        self.cached_tokens = Counter(
            "bough_cached_prompt_tokens",
            "Tokens of prompts that did not have to be computed.",
            registry=self.registry,
        )
        self.completion_tokens = Counter(
            "bough_completion_tokens", "Tokens generated, those of whole searches included.", registry=self.registry
        )

    def gauge(self, name: str, description: str, value: Callable[[], float]) -> None:
        """A number that is asked for when the metrics are read."""
        Gauge(name, description, registry=self.registry).set_function(value)

    def used(self, usage: dict[str, int]) -> None:
        """Count what a request used, from its ``usage``."""
        self.prompt_tokens.inc(usage["prompt_tokens"])
        self.completion_tokens.inc(usage["completion_tokens"])
        self.cached_tokens.inc(usage["prompt_tokens_details"]["cached_tokens"])  # type: ignore[index]

    def text(self) -> bytes:
        """All of them."""
        return generate_latest(self.registry)
