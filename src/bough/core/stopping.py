"""Stopping rules: when a run has seen enough whole solutions. A policy that composes with any strategy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NamedTuple

from .errors import InvalidInput
from .technique import TechniqueInfo


class Solution(NamedTuple):
    """What a rule knows of a whole solution: its final answer, if it has one, and its score, if it was scored."""

    answer: str | None
    score: float | None = None


@dataclass(frozen=True)
class StoppingRule(ABC):
    """Decides from the whole solutions that a run has found whether it has found enough.

    A rule is a pure function of the solutions, in their order; it draws nothing and remembers nothing. A strategy
    needs not know of it: every whole solution that it reports (`Run.propose`, `Run.report`) reaches the rule, and
    when that says so the run ends as with a spent budget. The best so far is the answer.

    The order matters. Solutions that are drawn at the same time arrive shortest first, so a rule that is asked at
    each arrival stops on an early majority of short solutions: the answer is biased towards what is said in few
    words, and depends on timing. Strategies that draw independent solutions therefore show them in the order of
    their index, and keep a window of draws in flight meanwhile; what they answer then has exactly the law of drawing
    one after the other. Searches whose solutions have no such order show them as they come.

    Attributes:
        parallel: independent solutions in flight at the same time, at most. More takes fewer passes one after the
            other; what the later ones have drawn when the rule stops is spent for nothing.
    """

    parallel: int = field(default=4, kw_only=True)

    info: ClassVar[TechniqueInfo]

    def __post_init__(self) -> None:
        if not isinstance(self.parallel, int) or self.parallel < 1:
            raise InvalidInput(
                f"{type(self).__name__}(parallel={self.parallel!r}): must be a whole number of at least 1"
            )

    @abstractmethod
    def __call__(self, seen: Sequence[Solution]) -> str | None:
        """Why these solutions, in this order, are enough; None if they are not.

        Asked after each solution; one answer of "enough" ends the run.
        """

    def stops_at(self, solutions: Iterable[Solution]) -> int:
        """How many of these solutions, in this order, a run sees before it stops; all of them if never."""
        seen: list[Solution] = []
        for solution in solutions:
            seen.append(solution)
            if self(seen) is not None:
                break
        return len(seen)

    def describe(self) -> dict[str, Any]:
        """Name and hyper-parameters, as plain values."""
        return {"name": self.info.name, **{f.name: getattr(self, f.name) for f in fields(self)}}


__all__ = ["Solution", "StoppingRule"]
