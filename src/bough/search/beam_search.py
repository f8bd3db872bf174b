"""Step-level beam search: at every step keep the most promising partial solutions and continue each several times.

Paper: Snell et al. 2024, arXiv:2408.03314 (section 5: N beams of which the N / M best are kept and continued M
times each; here ``width`` = N / M and ``expand`` = M). Pays on hard problems at small budgets; costs ``width *
expand`` steps and reward calls per level, and follows the reward so greedily that it exploits its errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from bough.core import Branch, Branches, Capability, Promise, Run, technique

from .steps import StepSearch, judge, require_positive


@technique(
    "beam-search", paper="arXiv:2408.03314", promise=Promise.APPROXIMATE,
    requires=(Capability.SAMPLE, Capability.CONTINUE), needs_reward=True,
)  # fmt: skip
@dataclass(frozen=True)
class BeamSearch(StepSearch):
    """Keep the ``width`` partial solutions of highest process reward and continue each ``expand`` times.

    Finished solutions stay in the beam as long as their reward keeps them there. The search ends when every beam
    is finished; the answer is the solution of highest reward.

    Attributes:
        width: beams kept after each step.
        expand: continuations drawn of each; the first level draws ``width * expand`` from the prompt.
    """

    width: int = 4
    expand: int = 4

    tune_space: ClassVar[Mapping[str, Sequence[Any]]] = {"width": (2, 4, 8), "expand": (2, 4, 8)}

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "width", "expand")

    async def __call__(self, prompt: Branch, run: Run) -> Branch | None:
        beams: list[tuple[Branch, float]] = []
        states = Branches([prompt] * (self.width * self.expand))
        try:
            for _ in range(self.max_steps):
                for state in dict.fromkeys(states):
                    run.expanded(state)
                children = await self.draw_steps(states, run)
                finished = [beam for beam in beams if run.is_solution(beam[0])]
                candidates = finished + list(zip(children, await judge(children, run), strict=True))
                candidates.sort(key=lambda beam: -beam[1])  # stable: of equals, the first drawn
                beams = candidates[: self.width]
                for branch, _ in beams:
                    run.selected(branch)
                for branch, score in candidates[self.width :]:
                    run.pruned(branch, f"reward {score:.3g} is not among the {self.width} highest")
                unfinished = [branch for branch, _ in beams if not run.is_solution(branch)]
                if not unfinished:
                    break
                states = Branches(branch for branch in unfinished for _ in range(self.expand))
        finally:
            if run.best is None and beams:
                run.propose(beams[0][0])  # cut off before anything was whole
        return run.best
