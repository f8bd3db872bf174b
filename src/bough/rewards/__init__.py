"""Rewards: what tells good branches from bad ones."""

from .formats import ChatTurns, StepEnd, StepFormat, StepLabel, StepReject, StepTag
from .process import FORMATS, ProcessReward, RejectionReward, from_backend
from .verifier import Oracle, Verifier

__all__ = [
    "FORMATS", "ChatTurns", "Oracle", "ProcessReward", "RejectionReward", "StepEnd", "StepFormat", "StepLabel",
    "StepReject", "StepTag", "Verifier", "from_backend",
]  # fmt: skip
