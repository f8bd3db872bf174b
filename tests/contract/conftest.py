"""Every registered technique, on two backends that share nothing: an enumerable toy and the native engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bough.core import Backend, Strategy
from bough.search import MCTS, RPC, AStar, HyPER, ParticleFilter, PowerSMC, ScalablePower, SelfConsistency, TreeBoN
from executing import STRATEGIES, Bench, native_backend, toy_backend

BENCHES = {"toy": Bench(toy_backend, crowds=(1, 2, 3)), "native": Bench(native_backend)}
# Hyper-parameters that take other paths through the code; on the toy only, to save time.
VARIANTS = {
    "self-consistency-weighted": SelfConsistency(weighted=True),
    "self-consistency-confident": SelfConsistency(confidence="bottom", window=2, keep=0.5),
    "rpc-mean": RPC(probability="mean", prune=False),
    "astar-speculating": AStar(doubt=0.0, cost="worst", revisit_cost=0.2, width=2),
    "particle-filter-weighted": ParticleFilter(ess_threshold=0.5, tempering=3, recount=False, resampling="residual"),
    "power-smc-bridged": PowerSMC(n=8, block=2, ramp=5, answer="vote"),
    "scalable-power-tokens": ScalablePower(block=1, horizon=3, min_p=0.0),
    "treebon-layers": TreeBoN(n=8, max_tokens=8),
    "treebon-steps": TreeBoN(n=8, segment_steps=1),
    "mcts-rollouts": MCTS(evaluation="rollout", parallel=8, simulations=12),
    "hyper-by-length": HyPER(n=8, refine=None, length_power=1.0),
    "mcts-visits": MCTS(choice="visits", simulations=8),
}
CASES = {
    **{f"{name}-{kind}": (info.cls(), BENCHES[kind]) for name, info in STRATEGIES.items() for kind in BENCHES},
    **{f"{name}-toy": (strategy, BENCHES["toy"]) for name, strategy in VARIANTS.items()},
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Strategy, Bench]:
    return CASES[request.param]


@pytest.fixture
def strategy(case: tuple[Strategy, Bench]) -> Strategy:
    return case[0]


@pytest.fixture
def bench(case: tuple[Strategy, Bench]) -> Bench:
    return case[1]


@pytest.fixture
def backend(bench: Bench) -> Iterator[Backend]:
    with bench.backend() as made:
        yield made
