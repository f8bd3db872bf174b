"""A thread with an event loop of its own, where a backend's connections live.

Connections belong to the loop that opened them, and whoever uses a backend may have one loop after another: each call
from synchronous code has its own.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Loop:
    """Runs coroutines until it is stopped."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._last: list[Callable[[], Awaitable[None]]] = []
        self._thread = threading.Thread(target=self._run, name="bough-endpoint", daemon=True)
        self._thread.start()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Start a coroutine; cancelling the future cancels it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def at_end(self, closing: Callable[[], Awaitable[None]]) -> None:
        """Have something awaited when the loop stops, after all else is cancelled."""
        self._last.append(closing)

    def stop(self) -> None:
        """Cancel what runs and end the thread; a second time does nothing."""
        with contextlib.suppress(RuntimeError):  # it is closed already
            self._loop.call_soon_threadsafe(self._loop.stop)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self._close())
        finally:
            self._loop.close()

    async def _close(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for closing in self._last:
            await closing()
