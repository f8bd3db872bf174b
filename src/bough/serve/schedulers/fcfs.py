"""First come, first served: jobs run in the order of their arrival, to their end.

The fairest where all jobs are alike. A long one holds up whatever came after it.
"""

from __future__ import annotations

from itertools import islice

from .base import Job, Scheduler


class FirstComeFirstServed(Scheduler):
    """The jobs that came first run to their end."""

    name = "fcfs"
    preemptive = False

    def __init__(self) -> None:
        self._jobs: dict[Job, None] = {}

    def add(self, job: Job, now: float) -> None:
        self._jobs[job] = None

    def remove(self, job: Job) -> None:
        del self._jobs[job]

    def choose(self, slots: int, now: float) -> list[Job]:
        return list(islice(self._jobs, slots))
