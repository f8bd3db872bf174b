"""The thread that all engines of one device share.

Torch gives every thread that calls it worker threads of its own. With more of them than cores, OpenMP's workers stop
waiting actively and are woken from sleep at each parallel region, of which a pass has hundreds: a model and its
reward, each with a thread, would slow each other down. So the passes of all engines of a device run in one thread, in
turn.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch


class Driven(Protocol):
    """What a driver runs. All calls come from its thread."""

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do."""
        ...

    def receive(self, item: Any) -> None:
        """Take what was posted."""
        ...

    def step(self) -> None:
        """One pass."""
        ...

    def rest(self) -> None:
        """Called when there is nothing to do, before the thread may sleep."""
        ...

    def end(self) -> None:
        """The last call."""
        ...


class Driver:
    """Runs the engines of one device in one thread, which ends with the last of them."""

    _drivers: dict[torch.device, Driver] = {}
    _lock = threading.Lock()

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._engines: list[Driven] = []
        self._inbox: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="bough-engine", daemon=True)

    @classmethod
    def start(cls, engine: Driven, device: torch.device) -> Driver:
        """Run an engine from now on; returns its driver."""
        with cls._lock:
            driver = cls._drivers.get(device) or cls(device)
            driver._inbox.put(partial(driver._engines.append, engine))
            if device not in cls._drivers:
                cls._drivers[device] = driver
                driver._thread.start()
        return driver

    def post(self, engine: Driven, item: Any) -> None:
        """Have an engine receive an item, after those that were posted before."""
        self._inbox.put(partial(engine.receive, item))

    def end(self, engine: Driven) -> bool:
        """Run an engine no more. Whether it has ended by now: not if a pass of its own asks."""
        ended = threading.Event()

        def end() -> None:
            engine.end()
            self._engines.remove(engine)
            ended.set()

        self._inbox.put(end)
        return not self.is_current and ended.wait()

    @property
    def is_current(self) -> bool:
        """Whether it is the driver's thread that asks."""
        return threading.current_thread() is self._thread

    def _run(self) -> None:
        with torch.inference_mode():
            while not self._retired():
                wait = not self._step()
                try:
                    while True:
                        self._inbox.get(wait)()
                        wait = False
                except queue.Empty:
                    pass

    def _step(self) -> bool:
        """One pass of every engine that has work; whether any still has."""
        for engine in self._engines:
            if engine.busy:
                engine.step()
            if not engine.busy:
                engine.rest()
        return any(engine.busy for engine in self._engines)

    def _retired(self) -> bool:
        """Whether there is nothing left to run, and no way to get anything."""
        # Whoever holds the lock may be waiting for this thread: a finalizer can close an engine anywhere. So this
        # thread never waits for the lock; it stays, and asks again when it has ended another engine.
        if self._engines or not self._lock.acquire(blocking=False):
            return False
        try:
            if self._inbox.empty():
                del self._drivers[self._device]
                return True
            return False
        finally:
            self._lock.release()


def _after_fork() -> None:
    """Threads do not survive a fork, nor does the lock one of them may hold."""
    Driver._drivers, Driver._lock = {}, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
