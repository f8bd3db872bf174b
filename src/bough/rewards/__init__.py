"""Rewards: what tells good branches from bad ones."""

from .formats import ChatTurns, StepEnd, StepFormat, StepLabel, StepTag
from .process import FORMATS, ProcessReward, from_backend
from .verifier import Oracle, Verifier

__all__ = [
    "FORMATS", "ChatTurns", "Oracle", "ProcessReward", "StepEnd", "StepFormat", "StepLabel", "StepTag", "Verifier",
    "from_backend",
]  # fmt: skip
