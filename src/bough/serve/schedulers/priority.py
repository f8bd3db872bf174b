"""Priority: the jobs with the smallest priority run, and others make room for them at the next token.

Of equal priority, those that came first. Nothing keeps urgent jobs from starving the others: who may ask for which
priority is the operator's to decide.
"""

from __future__ import annotations

import heapq

from .base import Job, Scheduler


class Priority(Scheduler):
    """The most urgent jobs run."""

    name = "priority"
    preemptive = True

    def __init__(self) -> None:
        self._jobs: dict[Job, None] = {}

    def add(self, job: Job, now: float) -> None:
        self._jobs[job] = None

    def remove(self, job: Job) -> None:
        del self._jobs[job]

    def choose(self, slots: int, now: float) -> list[Job]:
        return heapq.nsmallest(slots, self._jobs, key=lambda job: (job.priority, job.number))
