"""What happens during a run, as typed events; a trace of them is JSON lines and can be replayed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from .errors import InvalidInput

NodeId = str


@dataclass(frozen=True)
class Event:
    """Base of all events. ``kind`` is the ``type`` field of its JSON line."""

    kind: ClassVar[str] = "event"

    def to_dict(self) -> dict[str, Any]:
        return {"type": self.kind, **asdict(self)}


@dataclass(frozen=True)
class Root(Event):
    """The prompt that a run starts from."""

    kind: ClassVar[str] = "root"
    node: NodeId
    text: str
    tokens: int


@dataclass(frozen=True)
class Sampled(Event):
    """A branch was drawn.

    ``tokens`` has (text, log-probability, log-probability under the proposal) each; None where that is not known.
    """

    kind: ClassVar[str] = "sampled"
    node: NodeId
    parent: NodeId
    tokens: list[tuple[str, float | None, float | None]]
    text: str
    finish: str | None
    depth: int


@dataclass(frozen=True)
class Appended(Event):
    """A branch was made from another by appending text, none for a fork."""

    kind: ClassVar[str] = "appended"
    node: NodeId
    parent: NodeId
    text: str


@dataclass(frozen=True)
class Scored(Event):
    """The reward judged a branch."""

    kind: ClassVar[str] = "scored"
    node: NodeId
    score: float
    reward: str


@dataclass(frozen=True)
class Expanded(Event):
    """A search expanded a branch; ``order`` counts expansions, g, h and f are its costs where it has any."""

    kind: ClassVar[str] = "expanded"
    node: NodeId
    order: int
    g: float | None = None
    h: float | None = None
    f: float | None = None


@dataclass(frozen=True)
class Pruned(Event):
    """A search gave a branch up."""

    kind: ClassVar[str] = "pruned"
    node: NodeId
    reason: str


@dataclass(frozen=True)
class Selected(Event):
    """A search kept a branch among its siblings (resampling, beams)."""

    kind: ClassVar[str] = "selected"
    node: NodeId


@dataclass(frozen=True)
class Proposed(Event):
    """A branch became the best answer so far."""

    kind: ClassVar[str] = "proposed"
    node: NodeId
    score: float | None


@dataclass(frozen=True)
class Finished(Event):
    """The run ended; ``stopped_by`` names the budget that ended it, or is None."""

    kind: ClassVar[str] = "finished"
    answer: NodeId | None
    text: str
    score: float | None
    ledger: dict[str, float]
    stopped_by: str | None = None


class Trace:
    """The events of one run, in order, each a dict with ``t`` seconds since the start and its ``type``.

    The first record is the header (``type: run``): strategy, model, seed, prompt, budget.
    """

    def __init__(self, header: Mapping[str, Any] | None = None) -> None:
        self._start = time.perf_counter()
        self.records: list[dict[str, Any]] = [{"type": "run", "version": 1, **(header or {})}]

    @property
    def header(self) -> dict[str, Any]:
        return self.records[0]

    def append(self, event: Event) -> None:
        self.records.append({"t": round(time.perf_counter() - self._start, 6), **event.to_dict()})

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def lines(self) -> Iterator[str]:
        """JSON lines, without line ends."""
        return (json.dumps(record, ensure_ascii=False) for record in self.records)

    # Set by bough.trace when it is imported, so that core knows no viewer: suffix -> writer.
    writers: ClassVar[dict[str, Callable[[Trace, Path], None]]] = {}

    def save(self, path: str | Path) -> Path:
        """Write the trace: ``.jsonl`` as JSON lines, ``.html`` as one self-contained page.

        The file appears whole or not at all, so a full disk loses neither the trace in memory nor an older file.

        Raises:
            InvalidInput: there is no writer for that suffix.
            OSError: the file could not be written.
        """
        path = Path(path)
        if path.suffix != ".jsonl" and path.suffix not in self.writers:
            known = ", ".join([".jsonl", *self.writers])
            raise InvalidInput(f"{path} has the suffix {path.suffix!r}; a trace is saved as {known}")
        scratch = path.with_name(f".{path.name}.part")
        writer = self.writers.get(path.suffix)
        try:
            if writer is not None:
                writer(self, scratch)
            else:
                scratch.write_text("".join(line + "\n" for line in self.lines()), encoding="utf-8")
            scratch.replace(path)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise
        return path
