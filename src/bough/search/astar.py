"""A*-decoding: always continue the partial solution whose path has deteriorated least, and stop at the first goal.

Paper: Chatziveroglou 2025, arXiv:2505.13672. Pays when a process reward is good at telling where a solution goes
wrong: tokens then go where they can still help, and an easy problem costs little more than one solution.

The search space. A state s is a partial solution that ends at a step boundary; its successors are ``width``
sampled continuations of one step; goals are finished solutions that have an answer. The process reward r(s) in
[0, 1] is the probability that s is right so far, and h(s) = 1 - r(s) the heuristic: what is believed to be wrong
with s already. The empty solution is right for certain, so h(prompt) = 0 and costs no reward call.

The cost. Let c(s, s') = max(0, h(s) - h(s')) be the cost of a step and g its sum along the path. Then

    h(s) <= c(s, s') + h(s')                                      (h is consistent, by the definition of c)
    f(s') = g(s') + h(s') = g(s) + max(h(s), h(s')) = f(s) + max(0, h(s') - h(s)) >= f(s),

so f never falls along a path, and with h(prompt) = 0 it is the sum of all rises of h: f(s) adds up how much the
path has deteriorated, forgives nothing, and is at least the largest h on the path. Ordering by f prefers a path
that was trusted all along to one that was doubted and then trusted again.

Its weakness is noise. A reward that wavers about a right path makes f grow with the path's length, without bound,
while a path that went wrong at once and for good stays at f = 1. ``cost="worst"`` takes the largest h on the path
instead of the sum of its rises, f(s') = max(f(s), h(s')) (pathmax, Mero 1984): consistent too, and bounded. With
``cost="none"``, f = h: greedy best-first search, which forgives everything and is not consistent.

Drawing again. A node has not only the children that were drawn but all that could be. After an expansion it goes
back to the frontier at a higher f, and when everything else looks worse, it is sampled again, for another ``width``
continuations. What it costs to find something new there is known: the children drawn so far have log-probabilities,
so with U = 1 - sum of p(child) over the different ones, a draw is new with probability U, and the next new child
takes 1 / U draws on average. And with each alternative that was found the next is less likely to be the one that
was missing. So a node with n different children waits at

    f + revisit_cost * n / U.

Where the model is all but sure of a step, U is small and the node is left alone until there is little else; where
it has many things to say, drawing again is cheap. A repeated child, which says nothing new, changes nothing; where
U = 0, as at temperature 0, there is nothing to come back for. The price follows from the node's own draws alone,
whatever else the search does. Small costs spend tokens where the search is in doubt; a large one leaves a node to a
frontier that has nothing else. A larger width takes fewer passes, one after the other, and more tokens.

Ties are common: while the reward only rises, f stays the same. ``tie_break="path"`` orders nodes of equal f like
a depth-first walk that visits siblings in order of reward: first the whole subtree of the better one. A node comes
before its descendants in this order, so the pair (f, path) grows strictly along every path, and the search has one
well-defined result, the goal with the smallest pair. That is what makes expanding several nodes at once safe:

    When a goal is at the head of the frontier and every expansion in flight is of a node behind it, whatever is
    not generated yet descends from nodes behind that goal. It is the smallest, and the search ends. If an
    expansion in flight is of a node ahead of it, the search waits for that one alone, starts nothing new, and
    gives up the expansions behind the goal.

So ``parallel`` changes how long a search takes and what it speculates on, never what it finds. Expansions do not
wait for each other; only siblings do, because identical ones are merged (judged once, expanded once), and which
of them survives must not depend on which arrived first.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from bough.core import Branch, BudgetExhausted, Capability, InvalidInput, Promise, Run, technique

from .steps import State, StepSearch, cancel, judge, require_positive, require_probabilities

Cost = Literal["deterioration", "worst", "none"]
TieBreak = Literal["path", "deepest", "reward"]

# A node of which no more than this is unexplored has no other children: what is left is rounding.
_LEAST = 1e-5


@dataclass(eq=False)
class Node(State):
    """A state: its costs, and its place in the frontier.

    Its f is the one it was `born` with until it is expanded, and then the price of drawing again is added.
    """

    h: float
    f: float
    born: float
    path: tuple[tuple[float, int], ...]  # (h, index among siblings) from the first step on
    key: tuple[Any, ...]
    goal: bool = False

    def __lt__(self, other: Node) -> bool:
        return self.key < other.key


@technique(
    "astar", paper="arXiv:2505.13672", promise=Promise.APPROXIMATE,
    requires=(Capability.SAMPLE, Capability.CONTINUE, Capability.LOGPROBS), needs_reward=True,
)  # fmt: skip
@dataclass(frozen=True)
class AStar(StepSearch):
    """Continue the partial solution whose process reward has deteriorated least; stop at the first goal.

    Every goal is offered with its reward as soon as it is generated, so a run that is cut off answers with the best
    of them, or with the partial solution of least f if there is none.

    Attributes:
        width: continuations sampled per expansion (one at temperature 0, where all are the same).
        parallel: expansions in flight at the same time, at most.
        doubt: the next node is expanded while others are in flight only if these are all wrong with at least this
            probability (the product of their h); 0 always fills up to ``parallel``.
        cost: how f follows from h: its "deterioration" along the path, the "worst" on it, or "none" of the past.
        revisit_cost: what a draw that may be new adds to the f of a node that was expanded before, as above.
        tie_break: order among nodes of equal f: "path" as above; "deepest" first, then by reward; by "reward",
            then deepest. With all but "path", and with cost="none", the result of a parallel search depends on
            the order in which expansions complete.
        max_expansions: the search ends after so many.
    """

    width: int = 1
    parallel: int = 4
    doubt: float = 0.9
    cost: Cost = "worst"
    revisit_cost: float = 0.02
    tie_break: TieBreak = "path"
    max_expansions: int = 256

    tune_space: ClassVar[Mapping[str, Sequence[Any]]] = {
        "width": (1, 2),
        "revisit_cost": (0.005, 0.01, 0.02, 0.04, 0.08),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "width", "parallel", "max_expansions")
        for name, choices in (("cost", get_args(Cost)), ("tie_break", get_args(TieBreak))):
            if getattr(self, name) not in choices:
                raise InvalidInput(f"{name}={getattr(self, name)!r} is not one of {', '.join(choices)}")
        if not 0 <= self.doubt <= 1:
            raise InvalidInput(f"doubt={self.doubt} must be a probability; 0 speculates always, 1 almost never")
        if not 0 < self.revisit_cost < float("inf"):
            raise InvalidInput(f"revisit_cost={self.revisit_cost} must be a positive number; 9 is practically never")

    async def __call__(self, prompt: Branch, run: Run) -> Branch | None:
        frontier = [Node(prompt, depth=0, h=0.0, f=0.0, born=0.0, path=(), key=(0.0,))]
        in_flight: dict[asyncio.Task[list[Node]], Node] = {}
        started = 0
        try:
            while True:
                while frontier and not frontier[0].goal and started < self.max_expansions:
                    if in_flight and not self._may_speculate(in_flight.values()):
                        break
                    node = heapq.heappop(frontier)
                    in_flight[asyncio.ensure_future(self._expand(node, run))] = node
                    started += 1
                if frontier and frontier[0].goal:
                    behind = {task for task, node in in_flight.items() if frontier[0] < node}
                    in_flight = {task: node for task, node in in_flight.items() if task not in behind}
                    await cancel(behind)
                    if not in_flight:
                        run.selected(frontier[0].branch)
                        return frontier[0].branch
                if not in_flight:
                    return run.best
                done, _ = await asyncio.wait(in_flight, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    for child in task.result():
                        heapq.heappush(frontier, child)
                    node = in_flight.pop(task)
                    if 1 - node.explored > _LEAST:
                        node.f = node.born + self.price(node)
                        node.key = (node.f, *node.key[1:])
                        heapq.heappush(frontier, node)
        except BudgetExhausted:
            await asyncio.wait(in_flight)  # what the other expansions have drawn may still be judged
            raise
        finally:
            await cancel(in_flight)
            partial = [node for node in (*frontier, *in_flight.values()) if node.depth]
            if run.best is None and partial:
                run.propose(min(partial, key=lambda node: (node.f, -node.depth, node.path)).branch)

    def price(self, node: Node) -> float:
        """What is added to the f of a node that was expanded, until it is expanded again."""
        return self.revisit_cost * len(node.steps) / (1 - node.explored)

    def _may_speculate(self, ahead: Collection[Node]) -> bool:
        return len(ahead) < self.parallel and math.prod(node.h for node in ahead) >= self.doubt

    async def _expand(self, node: Node, run: Run) -> list[Node]:
        """The new distinct children of a node, judged."""
        run.expanded(node.branch, node.f - node.h, node.h, node.f)
        children = await self.draw_new(node, self.width, run)
        scores = await judge([branch for _, branch, _ in children], run)
        require_probabilities(scores, self.info.name)
        return [
            self._child(node, branch, 1 - score, index, whole)
            for (index, branch, whole), score in zip(children, scores, strict=True)
        ]

    def _child(self, node: Node, branch: Branch, h: float, index: int, goal: bool) -> Node:
        depth, path = node.depth + 1, (*node.path, (h, index))
        f = {"deterioration": node.f + max(0.0, h - node.h), "worst": max(node.f, h), "none": h}[self.cost]
        tie: dict[TieBreak, tuple[Any, ...]] = {
            "path": path,
            "deepest": (-depth, h, path),
            "reward": (h, -depth, path),
        }
        return Node(branch, depth, h, f, f, path, (f, *tie[self.tie_break]), goal)
