"""Inference-time search: spend more computation on a problem, where it helps.

Importing this room registers its techniques.
"""

from .adaptive_itc import AdaptiveITC
from .astar import AStar
from .beam_search import BeamSearch
from .best_of_n import BestOfN
from .greedy import Greedy
from .particle_filter import ParticleFilter
from .self_consistency import SelfConsistency
from .stopping import AdaptiveConsistency, EarlyStoppingConsistency, Patience, ScoreThreshold

__all__ = [
    "AStar", "AdaptiveConsistency", "AdaptiveITC", "BeamSearch", "BestOfN", "EarlyStoppingConsistency", "Greedy",
    "ParticleFilter",
    "Patience", "ScoreThreshold", "SelfConsistency",
]  # fmt: skip
