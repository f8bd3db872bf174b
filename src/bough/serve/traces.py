"""The traces of the last searches, for their clients to look at."""

from __future__ import annotations

import secrets
from collections import OrderedDict

from bough.core import Trace


class Traces:
    """A bounded store: when it is full, the oldest traces go.

    A trace's name cannot be guessed, and it is shown to the owner of the key alone that paid for the search.

    Args:
        count: traces to keep at most.
        records: in all of them, at most; the newest is kept even where it has more.
    """

    def __init__(self, count: int, records: int) -> None:
        self._count, self._records = count, records
        self._kept: OrderedDict[str, tuple[Trace, str | None]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, trace: Trace, owner: str | None) -> str:
        """Keep a trace, which may still grow; returns its name."""
        name = secrets.token_hex(16)
        self._kept[name] = (trace, owner)
        self.trim()
        return name

    def trim(self) -> None:
        """Let go of the oldest, until what is left fits."""
        while len(self._kept) > 1 and (
            len(self._kept) > self._count or sum(len(trace) for trace, _ in self._kept.values()) > self._records
        ):
            self._kept.popitem(last=False)

    def get(self, name: str, owner: str | None) -> Trace | None:
        """The trace of that name, if it is there and theirs."""
        trace, theirs = self._kept.get(name, (None, None))
        return trace if theirs == owner else None
