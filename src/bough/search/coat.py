"""Chain of associated thoughts: Monte Carlo tree search in which every new step is followed by an association.

Paper: Pan et al. 2025, arXiv:2502.02390. Pays for models that can use a remark in their context: what comes to mind
at one step (a rule, a fact, a result found elsewhere) is there for those that follow. Costs what
`bough.search.MCTS` costs, and an association for each step. A model whose format has no place for foreign lines,
such as the embedded ones, is thrown off by them, and loses accuracy.

At the expansion of a node, each new step gets associated content, which is appended to the context below it, and
the node's value is

    V = F_g(step) + beta * F_a(association)

with F_g the process reward. All else is MCTS. In the paper both terms are a language model's judgements. F_a is
here what any model can tell: how well the association fits, the geometric mean of its tokens' probabilities given
the step, in [0, 1]. V is divided by 1 + beta, so that it stays a probability; where nothing comes to mind it is
F_g.

What is associated comes from one of two sources. "model" asks the model itself: a cue is appended to the step, and
what the model says next, up to the end of a step, is the association; the cue stays in the context with it.
"search" is the memory of the run: the highest-valued step that another branch had found when the expansion began,
and that is not on this path already. It needs no instructions. Steps that end a solution are no associations: they
would give its answer away.
"""

from __future__ import annotations

import math
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from bough.core import Branch, Capability, InvalidInput, Promise, Run, technique

from .mcts import MCTS, Found, Node
from .steps import require_positive, settle

Source = Literal["search", "model"]

_CUE = "A related fact that helps: "


@technique(
    "coat", paper="arXiv:2502.02390", promise=Promise.APPROXIMATE,
    requires=(Capability.SAMPLE, Capability.CONTINUE, Capability.LOGPROBS, Capability.SCORE), needs_reward=True,
)  # fmt: skip
@dataclass(frozen=True)
class CoAT(MCTS):
    """Monte Carlo tree search with associative memory: each step is followed by an associated one.

    Attributes:
        source: associations come from the memory of the "search", or from the "model" itself.
        beta: weight of the association in a node's value.
        cue: text that asks the model for an association; None is a default. Only for source="model".
        association_tokens: length limit of an association by the model.
    """

    source: Source = "search"
    beta: float = 0.1
    cue: str | None = None
    association_tokens: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "association_tokens")
        if self.source not in get_args(Source):
            raise InvalidInput(f"source={self.source!r} is not one of {', '.join(get_args(Source))}")
        if not 0 <= self.beta < math.inf:
            raise InvalidInput(f"beta={self.beta} must be a number of at least 0; 0 does not value associations")
        if self.source == "model":
            needed = self.info.requires - {Capability.SCORE}
            object.__setattr__(self, "info", replace(self.info, requires=needed))

    def _visit(self, path: Sequence[Node], run: Run) -> Coroutine[Any, Any, Found]:
        # What is known now, not when the task gets its turn: the tree may have grown by then.
        path[-1].memory = self.recall(path) if self.source == "search" else ()
        return super()._visit(path, run)

    def recall(self, path: Sequence[Node]) -> tuple[tuple[int, ...], ...]:
        """The steps found off this path, the highest-valued first; of equals, the first found."""
        here = set(map(id, path))
        known = [
            (node.value, own_step(node.branch))
            for node in path[0].nodes()
            if id(node) not in here and node.depth and node.value is not None and not (node.goal or node.dead)
        ]
        ranked = sorted(known, key=lambda fact: -fact[0])
        return tuple(dict.fromkeys(step for _, step in ranked))

    async def evaluate(self, node: Node, children: Sequence[Node], run: Run) -> None:
        """Values of new children as in MCTS, then an association for each that is not whole."""
        await super().evaluate(node, children, run)
        await settle(self._associate(node, child, run) for child in children if not child.goal)

    async def _associate(self, node: Node, child: Node, run: Run) -> None:
        if self.source == "model":
            found = await self._asked(child.branch, run)
        else:
            found = await self._remembered(child.branch, node.memory)
        if found is None:
            return
        child.branch, fit = found
        if child.value is not None:
            child.value = (child.value + self.beta * fit) / (1 + self.beta)

    async def _asked(self, step: Branch, run: Run) -> tuple[Branch, float] | None:
        """The step with what the model says to the cue, and how sure it was."""
        asked = step + (_CUE if self.cue is None else self.cue)
        if asked.length + 1 >= asked.backend.context:
            return None
        [said] = await asked.sample(
            stop=run.step_stops,
            max_tokens=self.association_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
        )
        # What ends the text would end the solution; what was cut off is no remark.
        return None if said.finish != "stop" else (said, math.exp(float(np.mean(said.logprobs))))

    async def _remembered(self, step: Branch, memory: Sequence[tuple[int, ...]]) -> tuple[Branch, float] | None:
        """The step with the best remembered one that its path does not have, and how well it fits."""
        own = {node.appended for node in step.path}
        fact = next((fact for fact in memory if fact not in own), None)
        if fact is None or step.length + len(fact) + 1 >= step.backend.context:
            return None
        [logprobs] = await step.score([fact])
        return step + fact, math.exp(float(np.mean(logprobs)))


def own_step(branch: Branch) -> tuple[int, ...]:
    """The last step that was drawn, without what was associated with it."""
    return next(node.appended for node in reversed(branch.path) if node.finish is not None)
