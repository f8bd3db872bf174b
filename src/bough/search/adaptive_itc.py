"""Adaptive inference-time compute: draw another solution only where that is likely to be better.

Paper: Manvi, Singh and Ermon 2024, arXiv:2410.02725. The model judges its own solutions, also unfinished ones, by the
probability that starting over would give a better one, and this decides whether to go on with a solution, whether to
draw another, and which one to answer with. Pays where problems differ in difficulty: an easy one costs one solution.
Costs one reward call per solution, and one more per `probe_tokens` of each where solutions are given up early.

The probability. Let s be the probability that a solution is right, as far as it goes, and q that a fresh one is. A
fresh one is better where it is right and this one is not, so

    P(starting over is better) = (1 - s) q.

A self-evaluation in the paper's sense tells this at once, because it is trained on whether other samples won. A
reward tells s, and the rest follows from the solutions drawn so far. q is estimated by (w q_0 + sum s_i) / (w + n),
the mean of a Beta prior as heavy as w solutions, updated with their probabilities to be right: a hopeless problem (q
near 0) is given up as early as a solved one (s near 1), which sets this apart from a threshold on the score. q_0 is
what a reward that foresees (`bough.core.Reward`; bough/nano-eval's own is one) says of the bare prompt, and 1/2 with
any other. And the n solutions and the next are exchangeable, so the next has the highest score with probability
1 / (n + 1) at most, whatever the scores' distribution; where the reward cannot tell, more solutions do not help.
Drawing goes on while

    (1 - max s_i) min(q, 1 / (n + 1)) > 1 - threshold.

An unfinished solution is given up where (1 - s) q > prune, with q from the solutions before it. Where the reward does
not foresee, s is the probability that it is right so far: what it may still come to.

Temperatures rise from solution to solution, T_k = temperature * (1 - 2^-k) for k = 0, 1, 2 ...: the first is greedy,
later ones explore more.

The reward decides what "self" means: a reward model, or the generator itself where it was trained to judge as well,
as bough/nano-eval was (`bough solve -m bough/nano-eval --strategy adaptive-itc`). Its scores count as probabilities,
so calibrate one that is too sure or too modest (`bough.rewards.Calibrated`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bough.core import Branch, InvalidInput, Promise, Run, technique

from .steps import WholeSearch, answered, require_positive, require_probabilities, settle


@technique("adaptive-itc", paper="arXiv:2410.02725", promise=Promise.APPROXIMATE, needs_reward=True)
@dataclass(frozen=True)
class AdaptiveITC(WholeSearch):
    """Draw solutions until another one is unlikely to be better; give up unpromising ones halfway.

    Attributes:
        n: solutions at most.
        threshold: drawing ends when no further solution is better with at least this probability.
        prune: an unfinished solution is given up when starting over is better with more than this probability; 1
            gives up none, and spares the reward calls.
        probe_tokens: unfinished solutions are judged after so many tokens each.
        anneal: whether temperatures rise from 0 to `temperature`, from solution to solution.
        parallel: solutions drawn at the same time. More takes fewer passes one after the other, and more tokens.
        prior: how many solutions the probability that a fresh one is right weighs as much as before any is drawn.
    """

    threshold: float = 0.95
    prune: float = 0.4
    probe_tokens: int = 16
    anneal: bool = True
    parallel: int = 1
    prior: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "probe_tokens", "parallel")
        for name in ("threshold", "prune"):
            if not 0 < getattr(self, name) <= 1:
                raise InvalidInput(f"{name}={getattr(self, name)} must be a probability above 0; 1 never acts on it")
        if not 0 < self.prior < math.inf:
            raise InvalidInput(f"prior={self.prior} must be a finite number of solutions above 0")

    async def __call__(self, prompt: Branch, run: Run) -> Branch | None:
        scores: list[float] = []
        given_up: list[tuple[float, Branch]] = []
        expected = (await run.reward([prompt]))[0] if run.foresees else 0.5
        require_probabilities([expected], self.info.name)
        try:
            while len(scores) < self.n and not self.enough(run.best_score or 0.0, scores, expected):
                indices = range(len(scores), min(self.n, len(scores) + self.parallel))
                fresh = self.fresh(scores, expected)
                made = await settle(self._attempt(prompt, run, index, fresh) for index in indices)
                scores += [score for score, _ in made]
                given_up += [(score, leaf) for score, leaf in made if not run.is_solution(leaf)]
        finally:
            if run.best is None and given_up:
                run.propose(max(given_up, key=lambda pair: pair[0])[1])
        return run.best

    def enough(self, best: float, scores: Sequence[float], expected: float = 0.5) -> bool:
        """Whether another solution is unlikely to be better than the best, given those of all so far."""
        better = (1 - best) * min(self.fresh(scores, expected), 1 / (len(scores) + 1))
        return bool(scores) and better <= 1 - self.threshold

    def fresh(self, scores: Sequence[float], expected: float = 0.5) -> float:
        """The probability that a fresh solution is right, expected at first, and then from those drawn so far."""
        return (self.prior * expected + sum(scores)) / (self.prior + len(scores))

    async def _attempt(self, prompt: Branch, run: Run, index: int, fresh: float) -> tuple[float, Branch]:
        """Draw a solution in pieces, judged in between; the probability that it is right, as far as it went."""
        temperature = self.temperature * (1 - 0.5**index) if self.anneal else self.temperature
        piece = self.max_tokens if self.prune == 1 else self.probe_tokens
        leaf, child, left = prompt, index, self.max_tokens
        while True:
            leaf = await replace(self, max_tokens=min(piece, left), temperature=temperature).draw(leaf, run, child)
            child, left = 0, left - len(leaf.appended)
            whole = run.is_solution(leaf) or left == 0
            if whole and not answered(leaf, run):
                run.propose(leaf)
                run.pruned(leaf, "it ended without an answer")
                return 0.0, leaf
            (score,) = await run.reward([leaf])
            require_probabilities([score], self.info.name)
            if whole:
                run.propose(leaf, score)
                return score, leaf
            if (1 - score) * fresh > self.prune:
                run.pruned(leaf, f"starting over is better with probability {(1 - score) * fresh:.2g}")
                return score, leaf
