"""Inference-time search: spend more computation on a problem, where it helps.

Importing this room registers its techniques.
"""

from .adaptive_itc import AdaptiveITC
from .archon import Archon
from .astar import AStar
from .beam_search import BeamSearch
from .best_of_n import BestOfN
from .greedy import Greedy
from .optscale import OptScale
from .particle_filter import ParticleFilter
from .pets import PETS
from .rpc import RPC
from .self_consistency import SelfConsistency
from .stopping import AdaptiveConsistency, EarlyStoppingConsistency, Patience, ScoreThreshold

__all__ = [
    "AStar", "AdaptiveConsistency", "AdaptiveITC", "Archon", "BeamSearch", "BestOfN", "EarlyStoppingConsistency",
    "Greedy", "OptScale", "PETS", "ParticleFilter", "Patience", "RPC", "ScoreThreshold", "SelfConsistency",
]  # fmt: skip
