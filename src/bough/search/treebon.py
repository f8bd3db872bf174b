"""TreeBoN: best-of-N that looks at its candidates on the way, drops the poor ones, and branches the good ones.

Paper: Qiu et al. 2024, arXiv:2410.16033. Pays where a reward can tell from the first part of a solution how the
rest will be; then the tokens of the candidates that are dropped are spent on more continuations of the others.
Costs what best-of-N costs: about ``n`` whole solutions, and ``layers`` times its reward calls.

The first layer draws ``n`` candidates of one segment. After each layer the ``n / children`` unfinished ones of
highest reward become parents, and each has ``children`` candidates in the next; the last layer runs to the end. The
answer is the whole solution of highest reward in any layer. A solution that is finished early is offered with its
reward at once and takes no parent's place. A segment is ``max_tokens / layers`` tokens, as in the paper, or some of
the task's steps, for rewards that can judge finished steps only.

The paper judges partial responses by the token-level reward of a DPO pair of models and whole ones by a reward
model: that is ``reward=bough.rewards.ImplicitReward(policy, reference, weights="inverse", final=...)``. Any other
reward judges both.
"""

from __future__ import annotations

from dataclasses import dataclass

from bough.core import Branch, Branches, Capability, InvalidInput, Promise, Run, Sampling, Stop, Strategy, technique

from .steps import draw_judging, judge, require_positive, settle


@technique(
    "treebon", paper="arXiv:2410.16033", promise=Promise.APPROXIMATE,
    requires=(Capability.SAMPLE, Capability.CONTINUE), needs_reward=True,
)  # fmt: skip
@dataclass(frozen=True)
class TreeBoN(Strategy):
    """Draw n candidates segment by segment; after each, the best are continued several times each.

    Attributes:
        n: candidates in each layer.
        children: continuations of each parent; so ``n / children`` parents are kept.
        layers: segments, the last of which runs to the end.
        max_tokens: length limit of a solution.
        segment_steps: steps in a segment; None for ``max_tokens / layers`` tokens, whatever they are.
        temperature: of the sampling distribution.
        top_p: nucleus of the sampling distribution.
    """

    n: int = 128
    children: int = 4
    layers: int = 4
    max_tokens: int = 192
    segment_steps: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        require_positive(self, "n", "children", "layers", "max_tokens")
        if self.segment_steps is not None:
            require_positive(self, "segment_steps")
        if self.layers > self.max_tokens:
            raise InvalidInput(
                f"layers={self.layers} is more than max_tokens={self.max_tokens}; a segment has a token"
            )
        if self.n % self.children:
            raise InvalidInput(
                f"n={self.n} candidates are not a multiple of children={self.children}; so many have each parent"
            )
        Sampling(temperature=self.temperature, top_p=self.top_p)

    async def __call__(self, prompt: Branch, run: Run) -> Branch | None:
        parents, each = [prompt], self.n
        best: Branch | None = None
        try:
            for layer in range(1, self.layers + 1):
                segments = await settle(self._segment(parent, each, layer, run) for parent in parents)
                drawn = [branch for segment in segments for branch in segment]
                scores = await judge(drawn, run)
                pool = [pair for pair in zip(drawn, scores, strict=True) if not run.is_solution(pair[0])]
                pool.sort(key=lambda pair: -pair[1])  # stable: of equals, the first drawn
                best = pool[0][0] if pool else best
                kept, each = self.n // self.children, self.children
                parents = [branch for branch, _ in pool[:kept] if self._room(branch)]
                for parent in parents:
                    run.selected(parent)
                for branch, score in pool[kept:]:
                    run.pruned(branch, f"reward {score:.3g} is not among the {kept} highest")
                if not parents:
                    break
        finally:
            if run.best is None and best is not None:
                run.propose(best)  # cut off, or too long, before anything was whole
        return run.best

    def _room(self, branch: Branch) -> int:
        """Tokens that a solution may still have."""
        return self.max_tokens - (branch.length - branch.root.length)

    async def _segment(self, parent: Branch, width: int, layer: int, run: Run) -> Branches:
        """So many continuations of a parent, by one segment."""
        run.expanded(parent)
        stop = [Stop.of(run.task.answer_stop)]
        limit = self._room(parent)
        if layer < self.layers and self.segment_steps is None:
            limit = min(limit, -(-self.max_tokens // self.layers))
        elif layer < self.layers:
            stop.append(Stop(when=lambda text: text.count(run.task.step_stop) >= (self.segment_steps or 1)))
        return await draw_judging(
            Branches([parent] * width), run, max_tokens=limit, stop=Stop.of(stop),
            temperature=self.temperature, top_p=self.top_p,
        )  # fmt: skip
