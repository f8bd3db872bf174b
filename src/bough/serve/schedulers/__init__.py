"""Who goes first where more continuations wait than fit in the model's batch: one file for each way to decide."""

from bough.core import InvalidInput

from .base import Job, Scheduler
from .fcfs import FirstComeFirstServed
from .priority import Priority
from .skip_join_mlfq import SkipJoinMLFQ

SCHEDULERS: dict[str, type[Scheduler]] = {kind.name: kind for kind in (FirstComeFirstServed, Priority, SkipJoinMLFQ)}


def make_scheduler(name: str) -> Scheduler:
    """The scheduler of that name, with its defaults.

    Raises:
        InvalidInput: there is none.
    """
    if name not in SCHEDULERS:
        raise InvalidInput(f"there is no scheduler {name!r}; there are {', '.join(SCHEDULERS)}")
    return SCHEDULERS[name]()


__all__ = ["SCHEDULERS", "FirstComeFirstServed", "Job", "Priority", "Scheduler", "SkipJoinMLFQ", "make_scheduler"]
