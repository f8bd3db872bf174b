"""The embedded model, served on the loopback interface."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

import bough
from bough.serve import KeyRing, Limits, Scheduled, Server, Service
from serving import Listening, listening


@pytest.fixture(scope="session")
def nano():
    lm = bough.load("bough/nano")
    yield lm
    lm.close()


@pytest.fixture(scope="session")
def served(nano) -> Iterator[Listening]:
    """The embedded model, served as `bough serve` does."""
    with listening(Server(Service(Scheduled(nano)))) as made:
        yield made


@pytest.fixture
def serve(nano):
    """Serves the embedded model, or another, in another way for one test."""
    with contextlib.ExitStack() as stack:

        def start(lm=None, limits: Limits | None = None, keys: KeyRing | None = None) -> Listening:
            return stack.enter_context(listening(Server(Service(lm or nano, limits=limits), keys)))

        yield start
