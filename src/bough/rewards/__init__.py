"""Rewards: what tells good branches from bad ones."""

from collections.abc import Callable

from bough.core import Reward

from .calibration import Calibrated, platt
from .combine import Cached, Converted, LogLinear, Product, Threshold
from .foreseeing import ForeseeingReward
from .formats import ChatTurns, StepEnd, StepForesee, StepFormat, StepLabel, StepReject, StepTag
from .implicit import ImplicitReward
from .loading import FORMATS, from_backend
from .perplexity import Perplexity
from .process import ProcessReward
from .rejection import RejectionReward
from .self_evaluation import SelfEvaluation
from .unit_tests import UnitTests
from .verifier import Oracle, Verifier
from .vote import Vote

# Those that need no checkpoint, by the name that `bough.load_reward` and ``--reward`` know them by.
NAMED: dict[str, Callable[..., Reward]] = {
    "perplexity": Perplexity,
    "self-evaluation": SelfEvaluation,
    "unit-tests": UnitTests,
    "vote": Vote,
}

__all__ = [
    "Cached", "Calibrated", "ChatTurns", "Converted", "FORMATS", "ForeseeingReward", "ImplicitReward",
    "LogLinear", "NAMED", "Oracle", "Perplexity", "ProcessReward", "Product", "RejectionReward", "SelfEvaluation",
    "StepEnd", "StepForesee", "StepFormat", "StepLabel", "StepReject", "StepTag", "Threshold", "UnitTests",
    "Verifier", "Vote", "from_backend", "platt",
]  # fmt: skip
