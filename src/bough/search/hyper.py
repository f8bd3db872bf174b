"""HyPER: a pool of hypotheses that expands where the model is in doubt, reduces where it is not, and votes.

Paper: HyPER: Bridging Exploration and Exploitation, 2026 (in full: "... for Scalable LLM Reasoning with Hypothesis
Path Expansion and Reduction"). Training-free, needs no reward. Pays against self-consistency where many of its
samples say the same again; costs about one solution where the model is sure, and up to ``n`` where it is not.

The paper writes for mixtures of experts, where the variants of a token are its routings. This is the same control
for any model, derived from what its samples tell. Self-consistency spends n samples in proportion to the
probability of each path, on what is known already too. Here a path is drawn once: its log-probability says what its
share is. Let w_i be the share of hypothesis i in the pool and U_i = 1 - p(the step it drew). Of n samples, n w_i
U_i would be going elsewhere at this step. A round:

- *Continue.* Each hypothesis draws one step.
- *Expand*, exploration. Hypothesis i draws floor(n w_i U_i e) more. The mass that leaves the drawn step at its t-th
  token is p(tokens before t) (1 - p(token t)), which adds up to U_i; so each place gets its part of the draws, which
  keep the tokens before it. Each different result is a hypothesis of its own.
- *Refine*, token-level exploitation. Where that is none, but the least confident token has a probability below
  ``refine``, ``variants`` continuations are drawn from it, and the likeliest of all takes the place of what was
  drawn. No path is resampled for it.
- *Reduce.* Identical hypotheses are one. Those with less than 1/n of the leader's weight, which n samples would
  hardly have seen, are dropped, and so are all but the n heaviest.

The controller's e goes from exploration to exploitation as the pool evolves: e = 1 - the share of the leading
answer among all hypotheses, whole or not. When no other answer could overtake it, the search ends.

The vote is aware of length and confidence: a hypothesis weighs exp(log-probability / length**``length_power``).
With 0 this is its probability, and the vote an estimate of the answer's whole probability; with 1 the geometric
mean of its tokens', which does not favour what is short. The same weights make the shares w_i.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bough.core import Branch, Branches, Capability, InvalidInput, Promise, Run, technique
from bough.core.noise import token_key

from .steps import StepSearch, answered, require_positive, settle
from .vote import tally, winner

_PAPER = "HyPER: Bridging Exploration and Exploitation, 2026"


@dataclass(frozen=True)
class Pool:
    """Hypotheses, whole ones and others, with their weights relative to the heaviest."""

    branches: tuple[Branch, ...]
    weights: tuple[float, ...]

    @property
    def shares(self) -> list[float]:
        total = sum(self.weights)
        return [weight / total for weight in self.weights]


@technique(
    "hyper", paper=_PAPER, promise=Promise.APPROXIMATE,
    requires=(Capability.SAMPLE, Capability.CONTINUE, Capability.LOGPROBS),
)  # fmt: skip
@dataclass(frozen=True)
class HyPER(StepSearch):
    """Expand a pool of hypotheses where the model is in doubt, reduce it where not, and vote by confidence.

    The answer's score is its share of the vote.

    Attributes:
        n: samples of self-consistency that the search stands for; also the most hypotheses.
        refine: a token of lower probability is drawn again where there is no expansion; None never does.
        variants: continuations drawn then.
        length_power: of the length that divides a hypothesis' log-probability; None is 0.
    """

    n: int = 16
    refine: float | None = 0.5
    variants: int = 2
    length_power: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "n", "variants")
        for name in ("refine", "length_power"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise InvalidInput(f"{name}={value} must be in (0, 1], or None")

    async def __call__(self, prompt: Branch, run: Run) -> Branch | None:
        pool = Pool((prompt,), (1.0,))
        try:
            for _ in range(self.max_steps):
                explore = 1 - self._lead(pool, run)[0]
                moves = [
                    self._advance(branch, share * explore, run)
                    for branch, share in zip(pool.branches, pool.shares, strict=True)
                ]
                pool = self._reduce([branch for moved in await settle(moves) for branch in moved], run)
                lead, rest = self._lead(pool, run)
                if lead > rest or all(map(run.is_solution, pool.branches)):
                    break
        finally:
            self._vote(pool, run)
        return run.best

    async def _advance(self, branch: Branch, share: float, run: Run) -> list[Branch]:
        """A hypothesis after one more step, in as many versions as its share of the exploration allows."""
        if run.is_solution(branch):
            return [branch]
        run.expanded(branch)
        [step] = await branch.sample(
            stop=run.step_stops, max_tokens=self.max_step_tokens, temperature=self.temperature, top_p=self.top_p
        )
        p = np.exp(step.sample_logprobs.astype(np.float64))
        leaving = np.cumprod([1.0, *p[:-1]]) * (1 - p)  # [tokens]; sums to all that was not drawn
        if draws := math.floor(self.n * share * leaving.sum()):
            # Each place gets its part of the draws, so that every other step can be found.
            edges = np.floor(draws * np.cumsum(leaving) / leaving.sum() + 0.5).astype(int)
            places = enumerate(np.diff(edges, prepend=0).tolist())
            found = await settle(self._redraw(step, place, count, run) for place, count in places if count)
            return [step, *(other for others in found for other in others)]
        doubt = int(np.argmin(p))
        if self.refine is None or p[doubt] >= self.refine:
            return [step]
        versions = [step, *await self._redraw(step, doubt, self.variants, run)]
        best = max(versions, key=lambda version: version.logprob)  # of equals, the first drawn
        for version in versions:
            if version is not best:
                run.pruned(version, "another version of this step is likelier")
        return [best]

    async def _redraw(self, step: Branch, place: int, draws: int, run: Run) -> Branches:
        """The same step drawn again from one of its tokens on."""
        assert step.parent is not None
        kept = step.appended[:place]
        head = step.backend.decode(kept)
        cut = Branch(
            step.backend, step.parent, kept, token_key(step.key, kept),
            logprobs=step.logprobs[:place], sample_logprobs=step.sample_logprobs[:place],
        )  # fmt: skip
        return await cut.sample(
            draws, max_tokens=self.max_step_tokens - place,
            stop=lambda text: any(stop in head + text for stop in run.step_stops),
            temperature=self.temperature, top_p=self.top_p,
        )  # fmt: skip

    def _reduce(self, branches: Sequence[Branch], run: Run) -> Pool:
        """The heaviest hypotheses, each once; what is whole without an answer is offered and dropped."""
        different = list({tuple(branch.tokens): branch for branch in reversed(branches)}.values())[::-1]
        useful = []
        for branch in different:
            if run.is_solution(branch) and not answered(branch, run):
                run.propose(branch)
                run.pruned(branch, "it ended without an answer")
            else:
                useful.append(branch)
        scores = [self.confidence(branch) for branch in useful]
        order = sorted(range(len(useful)), key=lambda index: -scores[index])  # stable: of equals, the first
        leader = scores[order[0]] if order else 0.0
        kept = [index for index in order[: self.n] if scores[index] >= leader - math.log(self.n)]
        for index in sorted(set(order) - set(kept)):
            run.pruned(useful[index], "too light a hypothesis")
        return Pool(tuple(useful[index] for index in kept), tuple(math.exp(scores[index] - leader) for index in kept))

    def confidence(self, branch: Branch) -> float:
        """The logarithm of a hypothesis' weight."""
        length = max(1, branch.length - branch.root.length)
        return branch.logprob / length ** (self.length_power or 0.0)

    def _lead(self, pool: Pool, run: Run) -> tuple[float, float]:
        """The leading answer's share, and the most that another answer could get of what is there."""
        answers = [run.task.extract(b.answer) if run.is_solution(b) else None for b in pool.branches]
        totals = sorted(tally(answers, pool.shares).values(), reverse=True)
        lead = totals[0] if totals else 0.0
        open_ended = sum(share for share, answer in zip(pool.shares, answers, strict=True) if answer is None)
        return lead, open_ended + (totals[1] if len(totals) > 1 else 0.0)

    def _vote(self, pool: Pool, run: Run) -> None:
        whole = [index for index, branch in enumerate(pool.branches) if run.is_solution(branch)]
        answers = [run.task.extract(pool.branches[index].answer) for index in whole]
        won = winner(answers, [pool.shares[index] for index in whole])
        if won is not None:
            # The last digits of log-probabilities depend on what shares the batch.
            run.propose(pool.branches[whole[won[0]]], round(won[1], 3))
        elif run.best is None and pool.branches and pool.branches[0].depth:
            run.propose(pool.branches[0])
