"""What a scheduler is: a rule that says which of the jobs that are there should run now.

It is told what happens and keeps no clock of its own, so that the same object schedules a server and a simulation.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar


class Job:
    """A continuation that is to be drawn.

    Attributes:
        number: of its arrival; later ones have larger numbers.
        prompt: tokens that it goes on from.
        priority: as its client gave it; the smallest goes first.
        served: tokens that it has been given.
        until: when ``served`` reaches this, the scheduler wants to be told (`Scheduler.used_up`).
    """

    def __init__(self, number: int, prompt: int, priority: int = 0) -> None:
        self.number, self.prompt, self.priority = number, prompt, priority
        self.served = 0
        self.until: float = math.inf


class Scheduler(ABC):
    """Decides which jobs run. Times are seconds of any one clock.

    Attributes:
        name: as ``--scheduler`` knows it.
        preemptive: whether a job that runs may have to make room for another before it is done.
    """

    name: ClassVar[str]
    preemptive: ClassVar[bool]

    @abstractmethod
    def add(self, job: Job, now: float) -> None:
        """A job has arrived."""

    @abstractmethod
    def remove(self, job: Job) -> None:
        """A job is done, or was given up."""

    @abstractmethod
    def choose(self, slots: int, now: float) -> list[Job]:
        """The jobs that should run now, at most ``slots``, the most urgent first. The others wait or make room."""

    def used_up(self, job: Job, now: float) -> None:  # noqa: B027  (most schedulers never ask)
        """A job has been served as far as its ``until``."""

    def wake(self, now: float) -> float | None:
        """When to choose again although nothing has happened; None for never."""
        return None
