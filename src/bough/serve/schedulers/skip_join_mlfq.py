"""Skip-join multi-level feedback queue: short jobs overtake long ones, though nobody knows which are short.

Paper: FastServe, Wu et al. 2023, arXiv:2305.05920. Queues have growing quanta, and the jobs of the first queue that
has any run. A job that has used up its quantum moves one queue down, so that what has run long makes room for what
has not. How long a job will be is not known, but what its first token costs is, from the length of its prompt: it
joins the first queue whose quantum that fits in, and skips the ones above, which it would only be demoted through. A
job that has waited too long is promoted to the first queue.

Pays where the lengths of answers differ widely; costs a little, for jobs that are all alike, and a pause in the
streams of those that make room. Service is counted in tokens drawn. The paper moves the keys and values of waiting
jobs to the host's memory, and back ahead of time; here they stay in the model's cache for as long as there is room,
and are computed again afterwards.
"""

from __future__ import annotations

import heapq
import math

from bough.core import InvalidInput

from .base import Job, Scheduler


class SkipJoinMLFQ(Scheduler):
    """Jobs run for quanta that grow from queue to queue.

    Args:
        quantum: tokens that a job of the first queue may draw.
        ratio: of each quantum to the one before.
        levels: queues; in the last one jobs run to their end.
        prefill: what a token of the prompt costs, in tokens drawn.
        starvation: seconds that a job waits before it is promoted to the first queue.

    Raises:
        InvalidInput: one of them is out of its range.
    """

    name = "skip-join-mlfq"
    preemptive = True

    def __init__(
        self, quantum: int = 16, ratio: int = 2, levels: int = 8, prefill: float = 1 / 16, starvation: float = 10.0
    ) -> None:
        if quantum < 1 or ratio < 2 or levels < 1 or prefill < 0 or not starvation > 0:
            raise InvalidInput(
                f"quantum={quantum} must be at least 1, ratio={ratio} at least 2, levels={levels} at least 1, "
                f"prefill={prefill} at least 0 and starvation={starvation} above 0"
            )
        self._quanta = [quantum * ratio**level for level in range(levels - 1)] + [math.inf]
        self._prefill, self._starvation = prefill, starvation
        self._queues: dict[Job, tuple[int, int]] = {}  # each job's queue, and its place there
        self._waiting: dict[Job, float] = {}  # since when
        self._places = 0

    def level(self, job: Job) -> int:
        """The queue that a job is in, from 0."""
        return self._queues[job][0]

    def add(self, job: Job, now: float) -> None:
        first = job.prompt * self._prefill + 1
        self._enqueue(job, next(level for level, quantum in enumerate(self._quanta) if first <= quantum), first - 1)
        self._waiting[job] = now

    def remove(self, job: Job) -> None:
        del self._queues[job]
        self._waiting.pop(job, None)

    def used_up(self, job: Job, now: float) -> None:
        self._enqueue(job, min(self.level(job) + 1, len(self._quanta) - 1))

    def choose(self, slots: int, now: float) -> list[Job]:
        for job, since in self._waiting.items():
            if now - since >= self._starvation and self.level(job):
                self._enqueue(job, 0)
        chosen = heapq.nsmallest(slots, self._queues, key=self._queues.__getitem__)
        running = set(chosen)
        self._waiting = {job: self._waiting.get(job, now) for job in self._queues if job not in running}
        return chosen

    def wake(self, now: float) -> float | None:
        starving = [since for job, since in self._waiting.items() if self.level(job)]
        return min(starving) + self._starvation if starving else None

    def _enqueue(self, job: Job, level: int, spent: float = 0.0) -> None:
        self._places += 1
        self._queues[job] = (level, self._places)
        job.until = job.served + max(1.0, self._quanta[level] - spent)
