"""The thread that all engines of one device share.

Torch gives every thread that calls it worker threads of its own. With more of them than cores, OpenMP's workers stop
waiting actively and are woken from sleep at each parallel region, hundreds of times a pass: a model and its reward,
each with a thread, both ran at about half their speed. So the passes of all engines of a device run in one thread, in
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
    """Runs the engines of one device, in one thread that is never ended: it sleeps when they rest."""

    _drivers: dict[torch.device, Driver] = {}

    def __init__(self) -> None:
        self._engines: list[Driven] = []
        self._inbox: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="bough-engine", daemon=True)

    @classmethod
    def of(cls, device: torch.device) -> Driver:
        """The device's driver."""
        made = cls()
        driver = cls._drivers.setdefault(
            device, made
        )  # atomic: a lock could be held while a finalizer closes an engine
        if driver is made:
            driver._thread.start()
        return driver

    def run(self, engine: Driven) -> None:
        """Run an engine from now on."""
        self._inbox.put(partial(self._engines.append, engine))

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
            while True:
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


os.register_at_fork(after_in_child=Driver._drivers.clear)  # threads do not survive a fork
