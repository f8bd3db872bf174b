"""Reading traces back: JSON lines to a `Trace`, and a trace to typed events in time."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bough.core.errors import InvalidInput
from bough.core.events import Event, Trace

VERSION = 1


class TruncatedTrace(UserWarning):
    """The last line of a trace file is incomplete: the program or the disk stopped in the middle of it."""


def load(path: str | Path) -> Trace:
    """Read a trace saved as JSON lines.

    A last line that was cut off, by a crash or a full disk, is left out with a `TruncatedTrace` warning.

    Raises:
        InvalidInput: the file is not a trace, is damaged before its last line, or has a newer version.
        OSError: the file could not be read.
    """
    path = Path(path)
    lines = path.read_bytes().split(b"\n")
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        last = not any(rest.strip() for rest in lines[number:])
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record.get("type"), str):
                raise ValueError("not an object with a type")
        except ValueError as error:
            if last and records:
                warnings.warn(
                    f"{path}: line {number} is cut off; the {len(records):,} records before it were read",
                    TruncatedTrace,
                    stacklevel=2,
                )
                break
            raise InvalidInput(
                f"{path}: line {number} is not a trace record ({error}); a trace has one JSON object per line, "
                "as written by Trace.save('….jsonl')"
            ) from None
        records.append(record)
    if not records or records[0]["type"] != "run":
        raise InvalidInput(
            f"{path}: not a trace: its first line is not a record of type 'run'; write traces with Trace.save"
        )
    version = records[0].get("version")
    if version != VERSION:
        raise InvalidInput(
            f"{path}: trace version {version!r}, but this bough reads version {VERSION}; use the bough that wrote it"
        )
    trace = Trace()
    trace.records = records
    return trace


def replay(trace: Trace | str | Path, *, speed: float | None = None) -> Iterator[tuple[float, Event]]:
    """The events of a trace as they were emitted, each with its seconds since the start.

    Args:
        trace: a trace, or the path of one saved as JSON lines.
        speed: 1 waits between events as long as the run took, 10 a tenth of that; None does not wait.

    Raises:
        InvalidInput: ``speed`` is not positive, or a record is not one of the known events.
    """
    if speed is not None and not speed > 0:
        raise InvalidInput(f"speed={speed!r} must be positive, or None to replay without waiting")
    if not isinstance(trace, Trace):
        trace = load(trace)
    kinds = {kind.kind: kind for kind in Event.__subclasses__()}
    start = time.perf_counter()
    for record in trace.records[1:]:
        fields = {name: value for name, value in record.items() if name not in ("type", "t")}
        try:
            event = kinds[record["type"]](**fields)
        except (KeyError, TypeError):
            raise InvalidInput(
                f"record {record['type']!r} with fields {sorted(fields)} is none of the events {sorted(kinds)}"
            ) from None
        seconds = float(record.get("t", 0.0))
        if speed is not None:
            time.sleep(max(0.0, start + seconds / speed - time.perf_counter()))
        yield seconds, event
