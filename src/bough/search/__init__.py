"""Inference-time search: spend more computation on a problem, where it helps.

Importing this room registers its techniques.
"""

from .allocation import allocate
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
    "PETS", "RPC", "AStar", "AdaptiveConsistency", "BeamSearch", "BestOfN", "EarlyStoppingConsistency", "Greedy",
    "OptScale", "ParticleFilter", "Patience", "ScoreThreshold", "SelfConsistency",
    "allocate",
]  # fmt: skip
