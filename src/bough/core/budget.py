"""Limits on a run, and what it spent."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field, fields

from .errors import InvalidInput


@dataclass(frozen=True)
class Budget:
    """Limits of one run; ``None`` is no limit. The engine enforces them in the middle of a generation.

    Attributes:
        tokens: generated tokens, over all branches.
        passes: forward passes of the model in which the run took part.
        reward_calls: branches scored by the reward.
        seconds: wall-clock time since the run began.

    Raises:
        InvalidInput: a limit is not a positive number.
    """

    tokens: int | None = None
    passes: int | None = None
    reward_calls: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if value is not None and not (isinstance(value, (int, float)) and value > 0 and not math.isnan(value)):
                raise InvalidInput(
                    f"budget {limit.name}={value!r} must be a positive number; leave it out for no limit"
                )


@dataclass
class Ledger:
    """What a run spent, in the units of `Budget` and a few more.

    Attributes:
        tokens: generated tokens.
        passes: forward passes in which the run took part.
        reward_calls: branches scored by the reward.
        seconds: wall-clock seconds, frozen when the run ends.
        computed_tokens: tokens that went through the model, prompts and recomputation included.
        cached_tokens: prompt tokens that did not have to, because their keys and values were cached.
        reward_tokens: tokens that went through the reward's model.
        stopped: why a stopping rule has ended the run, or None; from then on nothing more may be spent.
    """

    budget: Budget = field(default_factory=Budget)
    tokens: int = 0
    passes: int = 0
    reward_calls: int = 0
    computed_tokens: int = 0
    cached_tokens: int = 0
    reward_tokens: int = 0
    stopped: str | None = None
    started: float = field(default_factory=time.perf_counter)
    ended: float | None = None

    @property
    def seconds(self) -> float:
        return (self.ended if self.ended is not None else time.perf_counter()) - self.started

    def close(self) -> None:
        """Stop the clock."""
        if self.ended is None:
            self.ended = time.perf_counter()

    @property
    def tokens_left(self) -> float:
        """Tokens that may still be generated (infinite without a limit)."""
        return math.inf if self.budget.tokens is None else self.budget.tokens - self.tokens

    @property
    def reward_calls_left(self) -> float:
        """Branches that may still be scored (infinite without a limit)."""
        if self.stopped is not None:
            return 0
        return math.inf if self.budget.reward_calls is None else self.budget.reward_calls - self.reward_calls

    def generation_stopped_by(self) -> str | None:
        """The limit or the rule that forbids another forward pass for generation, in words, or None."""
        if self.stopped is not None:
            return self.stopped
        for name, spent in (("tokens", self.tokens), ("passes", self.passes), ("seconds", None)):
            limit = getattr(self.budget, name)
            if limit is None:
                continue
            value = self.seconds if spent is None else spent
            if value >= limit:
                return f"{name}: {value:.6g} of {limit:.6g}"
        return None

    def to_dict(self) -> dict[str, float]:
        """Every count, as plain numbers."""
        counts = asdict(self)
        for name in ("budget", "started", "ended", "stopped"):
            del counts[name]
        return {**counts, "seconds": round(self.seconds, 6)}

    def __str__(self) -> str:
        return (
            f"{self.tokens:,} tokens generated, {self.reward_calls:,} reward calls, {self.passes:,} passes, "
            f"{self.seconds:.2f} s"
        )
