"""A results file: a JSON line per finished trial, appended as it finishes, so that a killed bench resumes."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bough.core import InvalidInput

Record = dict[str, Any]

# What names a trial, beside its "stop" where it has a stopping rule. A file never holds two records that agree in
# all of these.
KEY = ("task", "level", "split", "index", "seed", "strategy", "params", "budget", "model", "reward")

_SYNC_SECONDS = 1.0
_SAMPLE = 1 << 20


def key(record: Mapping[str, Any]) -> str:
    """What names a trial, as one string."""
    named = [record[name] for name in KEY]
    return json.dumps([*named, record["stop"]] if "stop" in record else named, sort_keys=True)


class Results:
    """The records of one file, in order, and a place to append more.

    Opening repairs what a kill can do: a last line without its end is dropped, so its trial runs again. Each
    record is with the operating system before `append` returns (a killed process loses none), and on the disk
    about a second later (a power cut loses that second).

    Attributes:
        records: all of them, the appended ones included.

    Raises:
        InvalidInput: another process is appending to the file, or a line inside it is damaged.
        OSError: the file cannot be opened or written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115
        try:
            self._lock()
            self.records: list[Record] = self._load()
        except BaseException:
            self._file.close()
            raise
        self._keys = {key(record) for record in self.records}
        self._synced = time.monotonic()

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows: two benches on one file are then the user's to avoid
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidInput(
                f"another process is writing {self.path}; wait for it, or choose another folder"
            ) from None
        except OSError:  # a file system without locks
            return

    def _load(self) -> list[Record]:
        self._file.seek(0)
        whole, newline, _ = self._file.read().rpartition(b"\n")
        self._size = len(whole) + len(newline)
        self._file.truncate(self._size)
        records = []
        for number, line in enumerate(whole.split(b"\n") if newline else [], 1):
            try:
                record = json.loads(line)
                key(record)
            except (ValueError, KeyError, TypeError):
                raise InvalidInput(
                    f"{self.path}, line {number}, is no record of a trial; delete it or choose another folder"
                ) from None
            records.append(record)
        return records

    def __contains__(self, record: Mapping[str, Any]) -> bool:
        """Whether this trial is done."""
        return key(record) in self._keys

    def append(self, record: Record) -> None:
        """Add a record; when this raises, the file is as it was."""
        line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        try:
            written = 0
            while written < len(line):
                written += self._file.write(line[written:]) or 0
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        except OSError:
            self._file.truncate(self._size)
            raise
        self._size += len(line)
        self.records.append(record)
        self._keys.add(key(record))

    def close(self) -> None:
        """Bring everything to the disk and let others write."""
        if not self._file.closed:
            try:
                os.fsync(self._file.fileno())
            finally:
                self._file.close()

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def fingerprint(folder: Path) -> str:
    """Eight hexadecimal digits that change when a folder's weights do; "" for a folder without weights.

    Samples each file (its size, its first and last MiB): training changes every tensor.
    """
    files = sorted(folder.glob("*.safetensors"))
    digest = hashlib.blake2b(digest_size=4)
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(_SAMPLE))
            file.seek(max(0, size - _SAMPLE))
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest() if files else ""
