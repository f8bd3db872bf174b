"""Threads that run one compiled function together, and meet at barriers in it.

The caller's thread is the first of the team. The others wait inside compiled code, without Python's lock, so handing
them a pass takes less than a microsecond while they are awake. They stay awake for a short time after a pass, giving
way to any other thread that wants the core, and then sleep until the next one.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numba import int64, njit

from .barrier import PATIENCE
from .forward import forward
from .simd import atomic_add, atomic_get, atomic_swap, get_i64, give_way, pause, put_i64

# How often a waiting thread then offers its core, before it goes to sleep: some milliseconds.
_VIGIL = 5000

# The team's memory, int64: the barrier's counter; the number of the latest pass, and its three records; whether the
# team is dismissed; then for each thread whether it sleeps.
COUNTER, LATEST, MODEL_AT, PASS_AT, MEMORY_AT, DISMISSED, ASLEEP = (8 * i for i in range(7))


def _sources() -> int:
    """A number that changes with any of the files that are compiled; Numba's cache looks at one file alone."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return zlib.crc32(b"".join(file.read_bytes() for file in files))


def _compiled(sources: int) -> Any:
    @njit(nogil=True, cache=True)
    def take_part(thread, threads, team, seen):  # type: ignore[no-untyped-def]
        """A thread's part of the passes to come; returns the number of the last one.

        The first thread, which announced it, takes part in one pass. The others stay until there have been none for a
        while.
        """
        version = sources  # part of what the cache is looked up by
        looks = 0
        while version:
            if atomic_get(team + LATEST) != seen:
                seen += 1
                if get_i64(team + DISMISSED):
                    return seen
                forward(
                    thread,
                    threads,
                    team,
                    get_i64(team + MODEL_AT),
                    get_i64(team + PASS_AT),
                    get_i64(team + MEMORY_AT),
                )
                if thread == 0:
                    return seen
                looks = 0
            looks += 1
            if looks < PATIENCE:
                pause()
            elif looks < PATIENCE + _VIGIL:
                give_way()
            else:
                atomic_swap(team + ASLEEP + 8 * thread, 1)
                # A pass may have begun meanwhile. Whoever takes the mark away first decides: if it is the caller, a
                # wake-up call is on its way.
                if atomic_get(team + LATEST) == seen or atomic_swap(team + ASLEEP + 8 * thread, 0) == 0:
                    return seen
                looks = 0

    return take_part


take_part = _compiled(_sources())


@njit(cache=True)
def announce(threads, team, model, shape, memory):  # type: ignore[no-untyped-def]
    """Begin a pass; returns a bit mask of the threads that have to be woken."""
    put_i64(team + MODEL_AT, model)
    put_i64(team + PASS_AT, shape)
    put_i64(team + MEMORY_AT, memory)
    atomic_add(team + LATEST, 1)
    asleep = 0
    for thread in range(1, threads):
        asleep |= atomic_swap(team + ASLEEP + 8 * thread, 0) << thread
    return asleep


def compile_all() -> None:
    """Compile, or find in the cache, what a team runs; says so where that takes a while."""
    notice = threading.Timer(
        2, print, ["bough: compiling for this CPU, once (some ten seconds)"], {"file": sys.stderr}
    )
    notice.daemon = True
    notice.start()
    try:
        take_part.compile((int64,) * 4)
        announce.compile((int64,) * 5)
    finally:
        notice.cancel()


class Team:
    """Runs passes on a number of threads, the caller's among them; one pass at a time, whoever asks.

    Args:
        threads: how many.
    """

    _teams: weakref.WeakValueDictionary[int, Team] = weakref.WeakValueDictionary()

    def __init__(self, threads: int) -> None:
        compile_all()
        self.threads = threads
        self._lock = threading.Lock()
        self._passes = 0
        self._state = np.zeros(8 + threads, np.int64)
        self._address = self._state.ctypes.data
        self._calls = [threading.Semaphore(0) for _ in range(threads)]
        for thread in range(1, threads):
            arguments = thread, threads, self._state, self._calls[thread]
            threading.Thread(target=_attend_passes, args=arguments, name=f"bough-{thread}", daemon=True).start()
        weakref.finalize(self, _dismiss, threads, self._state, self._calls)

    @classmethod
    def shared(cls, threads: int) -> Team:
        """The team of so many threads. Passes on one device follow each other, whoever asks for them."""
        team = cls._teams.get(threads)
        if team is None:
            team = cls._teams[threads] = cls(threads)
        return team

    def run(self, model: int, shape: int, memory: int) -> None:
        """One pass; the arguments are addresses of records (`bough.engine.cpu.records`)."""
        team = self._address
        with self._lock:
            asleep = announce(self.threads, team, model, shape, memory)
            for thread in range(1, self.threads):
                if asleep >> thread & 1:
                    self._calls[thread].release()
            self._passes = take_part(0, self.threads, team, self._passes)


def _attend_passes(thread: int, threads: int, state: np.ndarray, call: threading.Semaphore) -> None:
    """What a thread other than the first does."""
    seen = 0
    while not state[DISMISSED // 8]:
        seen = take_part(thread, threads, state.ctypes.data, seen)
        if not state[DISMISSED // 8]:
            call.acquire()


def _dismiss(threads: int, state: np.ndarray, calls: list[threading.Semaphore]) -> None:
    """End the other threads; no pass is running, and none follows."""
    state[DISMISSED // 8] = 1
    announce(threads, state.ctypes.data, 0, 0, 0)
    for call in calls:
        call.release()


def _after_fork() -> None:
    """Threads do not survive a fork."""
    Team._teams = weakref.WeakValueDictionary()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
