"""Diverse verifier tree search: independent subtrees, each of which follows the reward greedily.

Paper: Beeching, Tunstall and Rush 2024, "Scaling test-time compute with open models",
https://huggingface.co/spaces/HuggingFaceH4/blogpost-scaling-test-time-compute. Pays at larger budgets, where beam
search has put all its beams on one idea; costs what a beam search of ``n`` does: ``n`` steps and reward calls a
level.

The n / m subtrees each draw m steps, keep the one of highest process reward, and go on from there until it is
whole. No subtree knows of another, so none waits for another. The answer is the whole solution of highest reward.
Every solution is offered when it is found, also one that a better sibling, whole or not, kept from being continued.
"""

from __future__ import annotations

from dataclasses import dataclass

from bough.core import Branch, Branches, Capability, InvalidInput, Promise, Run, technique

from .steps import StepSearch, judge, require_positive, settle

_URL = "https://huggingface.co/spaces/HuggingFaceH4/blogpost-scaling-test-time-compute"


@technique(
    "dvts", paper=_URL, promise=Promise.APPROXIMATE,
    requires=(Capability.SAMPLE, Capability.CONTINUE), needs_reward=True,
)  # fmt: skip
@dataclass(frozen=True)
class DVTS(StepSearch):
    """Grow n / m independent subtrees, each by the best of m sampled steps at every level.

    Attributes:
        n: steps drawn in each level over all subtrees.
        m: steps drawn of each subtree's state, the best of which is kept.
    """

    n: int = 16
    m: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "n", "m")
        if self.n % self.m:
            raise InvalidInput(f"n={self.n} is not a multiple of m={self.m}, the steps of each subtree")

    async def __call__(self, prompt: Branch, run: Run) -> Branch | None:
        reached: dict[int, tuple[float, Branch]] = {}

        async def grow(subtree: int) -> None:
            state = prompt
            for depth in range(self.max_steps):
                run.expanded(state)
                # Below the prompt, which all share, each has draws of its own.
                first = 0 if depth else subtree * self.m
                children = await self.draw_steps(Branches([state] * self.m), run, first=first)
                scores = await judge(children, run)
                best = max(range(self.m), key=scores.__getitem__)  # of equals, the first drawn
                for index, child in enumerate(children):
                    if index != best:
                        run.pruned(child, f"reward {scores[index]:.3g} is not the highest of {self.m}")
                state = children[best]
                run.selected(state)
                reached[subtree] = scores[best], state
                if run.is_solution(state):
                    return

        try:
            await settle(grow(subtree) for subtree in range(self.n // self.m))
        finally:
            if run.best is None and reached:
                run.propose(reached[max(reached, key=lambda subtree: (reached[subtree][0], -subtree))][1])
        return run.best
