"""Inference-time search: spend more computation on a problem, where it helps.

Importing this room registers its techniques.
"""

from .astar import AStar
from .beam_search import BeamSearch
from .best_of_n import BestOfN
from .coat import CoAT
from .dvts import DVTS
from .greedy import Greedy
from .hyper import HyPER
from .mcts import MCTS
from .particle_filter import ParticleFilter
from .self_consistency import SelfConsistency
from .treebon import TreeBoN

__all__ = [
    "AStar", "BeamSearch", "BestOfN", "CoAT", "DVTS", "Greedy", "HyPER", "MCTS", "ParticleFilter", "SelfConsistency",
    "TreeBoN",
]  # fmt: skip
