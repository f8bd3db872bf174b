"""Monte Carlo tree search (PUCT): visit the steps that look good, are likely, or were hardly tried.

Paper: Silver et al. 2017, arXiv:1712.01815 (AlphaZero; its pseudocode has c_puct = 1.25). Pays when the reward of a
partial solution is noisy: a node is trusted for the mean of all that was found below it, not for its own score
alone. Costs ``simulations`` times ``width`` steps, and keeps spending them when the first solution was right
already.

Steps are the actions. A simulation walks from the prompt to the child of largest

    Q(s, a) + c_puct * P(s, a) * sqrt(N(s)) / (1 + n(s, a))

until it comes to a state that was not expanded. There it samples ``width`` steps, merges identical ones, evaluates
them, and adds the highest value to every node on the way back. The prior P is the children's probability under the
sampling distribution, normalised over the siblings that were found. Q is the mean of a child's own value and of all
values that were backed up through it.

Three things differ from a game. The actions of a state are not known but sampled. What was not found yet is known
by its probability, U = 1 - sum of p(child): so with ``widening`` *another step* is one more arm of the node, with
the prior U, the node's mean as its Q and the draws made for it as its n, and the children's priors are their
probabilities as they are. Where the model is all but sure of a step nothing is drawn twice; where it has much to
say, a node that is visited often gets more children (as by progressive widening, Coulom 2007, whose number of
children follows from the visits alone). A child's evaluation is known before it is visited, where the process
reward gives it, so it stands for Q from the beginning. And values are probabilities in [0, 1], all to one player's
gain.

Several simulations are under way at once. Each counts as ``virtual_loss`` visits of value 0 on its path, so that
the next goes elsewhere. Their results are taken in the order in which they were started, whichever arrives first:
what the k-th one sees in the tree when it starts are the results of the first k - m, where the m under way are at
most ``parallel`` and follow from the tree alone. So a search is a function of its seed and its parameters, whatever
the timing. It is a sliding window, not a barrier: a straggler delays only what starts ``parallel`` simulations
later.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from bough.core import Branch, BudgetExhausted, Capability, InvalidInput, Promise, Run, technique

from .steps import State, StepSearch, answered, cancel, judge, require_positive, require_probabilities

Evaluation = Literal["reward", "rollout"]
Choice = Literal["value", "visits"]

# Rollouts are children with noise of their own: no step has an index like this.
_ROLLOUT = 1 << 30
# A node of which no more than this is unexplored has no other children: what is left is rounding.
_LEAST = 1e-5


@dataclass(eq=False)
class Node(State):
    """A state and what was found below it. All but its draws changes only when a simulation's result is taken.

    Attributes:
        prior: its probability under the sampling distribution, given its parent.
        goal: whether it is a whole solution.
        dead: whether nothing that could be an answer was found below it.
        value: its evaluation; None before it was evaluated.
        visits: simulations whose value was backed up through it.
        total: the sum of these values.
        under_way: simulations on their way through it.
        busy: whether one of them ends here and is not back.
        children: those that are known, in the order in which they were drawn.
        memory: steps from elsewhere that may help its children (`bough.search.CoAT`).
    """

    prior: float = 1.0
    goal: bool = False
    dead: bool = False
    value: float | None = None
    visits: int = 0
    total: float = 0.0
    under_way: int = 0
    busy: bool = False
    children: list[Node] = field(default_factory=list)
    memory: tuple[tuple[int, ...], ...] = ()

    def nodes(self) -> Iterator[Node]:
        """This node and all below it."""
        yield self
        for child in self.children:
            yield from child.nodes()


@dataclass(frozen=True)
class Found:
    """What a simulation found: the value to back up (None: nothing new), and new children of the node it ended at."""

    value: float | None
    children: tuple[Node, ...] = ()


@technique(
    "mcts", paper="arXiv:1712.01815", promise=Promise.APPROXIMATE,
    requires=(Capability.SAMPLE, Capability.CONTINUE, Capability.LOGPROBS), needs_reward=True,
)  # fmt: skip
@dataclass(frozen=True)
class MCTS(StepSearch):
    """Monte Carlo tree search over steps: PUCT selection, sampled expansion, backup of the reward.

    Attributes:
        simulations: walks from the prompt to a leaf.
        width: steps drawn when a leaf is expanded.
        c_puct: weight of the prior and of being hardly tried.
        widening: whether a state that was expanded may be drawn from again.
        parallel: simulations under way at the same time, at most.
        virtual_loss: visits of value 0 that one under way counts as.
        evaluation: a partial solution's value is its process "reward", or the reward of a "rollout" to its end.
        choice: the answer is the whole solution of highest "value", or the one of most "visits".
    """

    simulations: int = 32
    width: int = 4
    c_puct: float = 1.25
    widening: bool = True
    parallel: int = 4
    virtual_loss: int = 1
    evaluation: Evaluation = "reward"
    choice: Choice = "value"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "simulations", "width", "parallel", "virtual_loss")
        for name, choices in (("evaluation", get_args(Evaluation)), ("choice", get_args(Choice))):
            if getattr(self, name) not in choices:
                raise InvalidInput(f"{name}={getattr(self, name)!r} is not one of {', '.join(choices)}")
        if not 0 <= self.c_puct < math.inf:
            raise InvalidInput(f"c_puct={self.c_puct} must be a number of at least 0; 0 never explores")

    async def __call__(self, prompt: Branch, run: Run) -> Branch | None:
        root = Node(prompt, depth=0)
        try:
            await self._grow(root, run)
        finally:
            partial = [node for node in root.nodes() if node.depth and node.value is not None]
            if run.best is None and partial:
                run.propose(max(partial, key=lambda node: (node.value or 0.0, node.depth)).branch)
        goals = [node for node in root.nodes() if node.goal]
        if self.choice == "visits" and goals:
            return max(goals, key=lambda goal: (goal.visits, goal.value or 0.0, -goal.branch.key)).branch
        return run.best

    async def _grow(self, root: Node, run: Run) -> None:
        """All simulations, whose results are taken in the order in which they were started."""
        under_way: deque[tuple[list[Node], asyncio.Task[Found]]] = deque()
        started = 0
        try:
            while started < self.simulations or under_way:
                free = started < self.simulations and len(under_way) < self.parallel
                # What leads to a node that another one is busy with has to wait for it.
                if free and not (path := self._walk(root))[-1].busy:
                    for node in path:
                        node.under_way += 1
                    path[-1].busy = not path[-1].goal
                    under_way.append((path, asyncio.ensure_future(self._visit(path, run))))
                    started += 1
                    continue
                path, task = under_way[0]
                found = await task
                under_way.popleft()
                self._back_up(path, found)
        except BudgetExhausted:
            await asyncio.wait([task for _, task in under_way])  # what they have drawn may still be judged
            raise
        finally:
            await cancel(task for _, task in under_way)

    def _walk(self, root: Node) -> list[Node]:
        """The path of the next simulation."""
        path = [root]
        while (node := path[-1]).children and (child := self.select(node)) is not None:
            path.append(child)
        return path

    def select(self, node: Node) -> Node | None:
        """The child of largest Q + U; of equals, the first drawn. None: to draw another one is better than each."""
        visits = self.c_puct * math.sqrt(max(1, self._count(node)))
        mean = node.total / node.visits if node.visits else 0.0
        unexplored = max(0.0, 1 - node.explored) if self.widening and self.temperature and not node.busy else 0.0
        priors = 1.0 if self.widening else sum(child.prior for child in node.children) or 1.0

        def puct(child: Node) -> float:
            # Its own value is one more visit; what is under way adds to the visits, but not to the values.
            own = mean if child.value is None else child.value
            return (own + child.total + visits * child.prior / priors) / (1 + self._count(child))

        best = max(node.children, key=puct)
        if unexplored > _LEAST and mean + visits * unexplored / (1 + node.drawn - self.width) > puct(best):
            return None
        return best

    def _count(self, node: Node) -> int:
        return node.visits + self.virtual_loss * node.under_way

    async def _visit(self, path: Sequence[Node], run: Run) -> Found:
        """What a simulation does at the end of its walk. It changes nothing that other walks can see."""
        node = path[-1]
        if node.goal or node.dead:
            return Found(node.value if node.goal else 0.0)
        if node.value is None and node.depth:
            return Found(await self._roll_out(node, run))
        run.expanded(node.branch)
        width = 1 if node.drawn else self.width
        drawn = await self.draw_new(node, width, run)
        children = tuple(
            Node(branch, node.depth + 1, prior=math.exp(branch.sample_logprobs.sum()), goal=goal)
            for _, branch, goal in drawn
        )
        await self.evaluate(node, children, run)
        if not children:
            return Found(None if node.children else 0.0)
        likeliest = max(children, key=lambda child: child.prior)
        if all(child.value is None for child in children):
            likeliest.value = await self._roll_out(likeliest, run)
        return Found(max(child.value for child in children if child.value is not None), children)

    async def evaluate(self, node: Node, children: Sequence[Node], run: Run) -> None:
        """Give values to new children of a node; where rollouts give them, only to whole solutions."""
        judged = [child for child in children if child.goal or self.evaluation == "reward"]
        scores = await judge([child.branch for child in judged], run)
        require_probabilities(scores, self.info.name)
        for child, score in zip(judged, scores, strict=True):
            child.value = score

    async def _roll_out(self, node: Node, run: Run) -> float:
        """The value of a node from one whole solution below it; one without an answer is worth nothing."""
        [leaf] = await node.branch.sample(
            first=_ROLLOUT,
            stop=run.task.answer_stop,
            max_tokens=self.max_step_tokens * (self.max_steps - node.depth),
            temperature=self.temperature,
            top_p=self.top_p,
        )
        if not answered(leaf, run):
            run.propose(leaf)
            return 0.0
        scores = await judge([leaf], run)
        require_probabilities(scores, self.info.name)
        return scores[0]

    def _back_up(self, path: Sequence[Node], found: Found) -> None:
        leaf = path[-1]
        leaf.busy = False
        leaf.children += found.children
        if leaf.depth and leaf.value is None:
            leaf.value = found.value
        leaf.dead = not leaf.goal and leaf.drawn > 0 and not leaf.children
        for node in path:
            node.under_way -= 1
            if found.value is not None:
                node.visits += 1
                node.total += found.value
