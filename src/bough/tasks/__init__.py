"""Problems with checkable answers: generators with levels, disjoint splits and exact step-by-step judges."""

from bough.core.errors import InvalidInput

from .arithmetic import Arithmetic
from .base import SPLITS, Problem, Task
from .countdown import Countdown
from .logic import Logic
from .stories import Stories

TASKS: dict[str, Task] = {task.name: task for task in (Arithmetic(), Countdown(), Stories(), Logic())}


def get_task(name: str) -> Task:
    """The task with this name; InvalidInput names the choices."""
    if name not in TASKS:
        raise InvalidInput(f"unknown task {name!r}: choose from {', '.join(TASKS)}")
    return TASKS[name]


__all__ = ["SPLITS", "TASKS", "Arithmetic", "Countdown", "Logic", "Problem", "Stories", "Task", "get_task"]
