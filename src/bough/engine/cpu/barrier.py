"""Where the threads of a team meet."""

from __future__ import annotations

from numba import njit

from .simd import atomic_add, atomic_get, give_way, pause

# Looks at a flag before a waiting thread offers its core to others: about 20 microseconds.
PATIENCE = 1000


@njit
def meet(team, threads):  # type: ignore[no-untyped-def]
    """Wait until all threads are here. ``team``: the address of a counter that starts at 0 and only grows."""
    if threads == 1:
        return
    arrived = atomic_add(team, 1) + 1
    everyone = (arrived + threads - 1) // threads * threads
    looks = 0
    while atomic_get(team) < everyone:
        looks += 1
        if looks < PATIENCE:
            pause()
        else:
            give_way()
