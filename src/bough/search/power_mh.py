"""Metropolis-Hastings power sampling: improve an answer by redrawing its end, accepting what p(y) ** alpha prefers.

Paper: Karan and Du 2025, arXiv:2510.14901 ("Reasoning with Sampling: Your Base Model is Smarter Than You Think").
Pays where answers that are likely as a whole are right more often, needs no reward, and can be run for as long as
one likes; costs steps one after the other, each half an answer on average.

The stages. Stage k draws ``block`` more tokens at temperature 1 / alpha and then takes ``steps`` steps of a Markov
chain that leaves p(y) ** alpha over texts of at most k blocks invariant. A step chooses one of the text's L tokens
with equal probabilities and redraws it and all that follows, at temperature 1 / alpha, up to the stage's length.
With q the density of the redrawn end, the proposal is accepted with probability

    min(1, (p(new) / p(old)) ** alpha * q(old) / q(new) * L / L'),

all of them of the part that was redrawn. The last factor is of the choice of the place: the new text has L' tokens,
and the way back has to choose the same one among them.

The paper stops at the first stage whose text has ended. That conditions on ending early, which no number of steps
repairs. Here, when the text has ended, one more stage of as many steps follows, in which a redrawn end may be as
long as an answer may be. Its chain leaves p(y) ** alpha over whole answers invariant, so the law of the answer
tends to that as the steps grow. The paper's block is a 16th of the longest answer, 192 of 3,072 tokens."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from bough.core import Branch, Branches, Capability, Promise, Run, technique

from .power import PowerSearch, answer_stop_after, cut, drawn, extend
from .resampling import uniforms
from .steps import require_positive


@technique(
    "power-mh", paper="arXiv:2510.14901", promise=Promise.APPROXIMATE,
    requires=(Capability.SAMPLE, Capability.CONTINUE, Capability.LOGPROBS),
)  # fmt: skip
@dataclass(frozen=True)
class PowerMH(PowerSearch):
    """Sample from the model's power distribution by redrawing ends of an answer, accepted or rejected.

    Attributes:
        steps: Metropolis-Hastings steps after each block.
    """

    steps: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "steps")

    async def __call__(self, prompt: Branch, run: Run) -> Branch | None:
        state, length, counts = prompt, 0, itertools.count(1)

        async def improve(state: Branch, length: int) -> Branch:
            for count in itertools.islice(counts, self.steps):
                state = await self.step(state, prompt, run, length, count)
            return state

        try:
            while not self.ended(state, prompt, run):
                length = min(length + self.block, self.max_tokens)
                state = await self._draw(state, prompt, run, length, 0)
                state = await improve(state, length)
            run.propose(state)
            if length < self.max_tokens:
                state = await improve(state, self.max_tokens)
        finally:
            if run.best is None and state is not prompt:
                run.propose(state)
        run.propose(state)
        return state

    async def step(self, state: Branch, prompt: Branch, run: Run, length: int, count: int) -> Branch:
        """The state after the ``count``-th step, over texts of at most ``length`` tokens below the prompt."""
        place, accept = uniforms(prompt, count, 2)
        size = state.length - prompt.length
        start = prompt.length + int(place * size)
        new = await self._draw(cut(state, start), prompt, run, length, count)
        (old_p, old_q), (new_p, new_q) = drawn(state, start), drawn(new, start)
        ratio = self.alpha * (new_p.sum() - old_p.sum()) + old_q.sum() - new_q.sum()
        ratio += math.log(size) - math.log(new.length - prompt.length)
        if math.log(accept) < ratio:
            run.pruned(state, f"replaced at an acceptance ratio of {math.exp(min(ratio, 0)):.3g}")
            return new
        run.pruned(new, f"rejected at an acceptance ratio of {math.exp(ratio):.3g}")
        return state

    async def _draw(self, head: Branch, prompt: Branch, run: Run, length: int, count: int) -> Branch:
        """The head continued up to the length; a child that no other step has drawn."""
        run.expanded(head)
        [longer] = await extend(
            Branches([head]), run, first=count, stop=answer_stop_after(head, run), temperature=1 / self.alpha,
            max_tokens=prompt.length + length - head.length,
        )  # fmt: skip
        return longer
