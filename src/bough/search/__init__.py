"""Inference-time search: spend more computation on a problem, where it helps.

Importing this room registers its techniques.
"""

from .astar import AStar
from .beam_search import BeamSearch
from .best_of_n import BestOfN
from .greedy import Greedy
from .particle_filter import ParticleFilter
from .particle_gibbs import ParticleGibbs
from .power_mh import PowerMH
from .power_smc import PowerSMC
from .scalable_power import ScalablePower
from .self_consistency import SelfConsistency

__all__ = [
    "AStar",
    "BeamSearch",
    "BestOfN",
    "Greedy",
    "ParticleFilter",
    "ParticleGibbs",
    "PowerMH",
    "PowerSMC",
    "ScalablePower",
    "SelfConsistency",
]
