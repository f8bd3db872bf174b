"""Rewards: what tells good branches from bad ones."""

from .formats import ChatTurns, StepEnd, StepFormat, StepLabel, StepReject, StepTag
from .implicit import ImplicitReward
from .loading import FORMATS, from_backend
from .process import ProcessReward
from .rejection import RejectionReward
from .verifier import Oracle, Verifier

__all__ = [
    "FORMATS", "ChatTurns", "ImplicitReward", "Oracle", "ProcessReward", "RejectionReward", "StepEnd", "StepFormat",
    "StepLabel", "StepReject", "StepTag", "Verifier", "from_backend",
]  # fmt: skip
