"""Problems with checkable answers: generators with levels, disjoint splits and exact step-by-step judges."""

from bough.tasks.arithmetic import Arithmetic
from bough.tasks.base import SPLITS, Problem, Task
from bough.tasks.countdown import Countdown
from bough.tasks.logic import Logic
from bough.tasks.stories import Stories

TASKS: dict[str, Task] = {task.name: task for task in (Arithmetic(), Countdown(), Stories(), Logic())}


def get_task(name: str) -> Task:
    """The task with this name; ValueError names the choices."""
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}: choose from {', '.join(TASKS)}")
    return TASKS[name]


__all__ = ["SPLITS", "TASKS", "Arithmetic", "Countdown", "Logic", "Problem", "Stories", "Task", "get_task"]
