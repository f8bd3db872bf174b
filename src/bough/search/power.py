"""Power sampling: what the samplers of p(y) ** alpha have in common.

The power distribution of a model p over whole texts y is pi(y) = p(y) ** alpha / Z. With alpha > 1 it favours texts
that are likely as a whole. Decoding at temperature 1 / alpha is not the same: it sharpens each token by itself, as
if a token's future did not matter, while pi multiplies the sharpened token by what its future weighs, zeta = sum
over futures of p(future) ** alpha, which is small where many futures share what probability there is.

A text ends with the model's end of the text, with the task's answer stop, or after ``max_tokens``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bough.core import Branch, Branches, BudgetExhausted, InvalidInput, Run, Stop, Strategy
from bough.core.events import Appended
from bough.core.noise import token_key

from .steps import require_positive


@dataclass(frozen=True)
class PowerSearch(Strategy):
    """Base of the samplers of p(y) ** alpha, which advance by blocks of tokens.

    Attributes:
        alpha: the exponent; 1 is plain decoding.
        block: tokens drawn at a time.
        max_tokens: length limit of the answer; one that is longer is cut there.
    """

    alpha: float = 4.0
    block: int = 8
    max_tokens: int = 2048

    def __post_init__(self) -> None:
        require_positive(self, "block", "max_tokens")
        if not 0 < self.alpha < float("inf"):
            raise InvalidInput(f"alpha={self.alpha} must be a positive number; 4 is the papers' choice")

    def ended(self, branch: Branch, prompt: Branch, run: Run) -> bool:
        """Whether the answer is over: the text has ended, the answer stop is in it, or it is as long as allowed."""
        if branch.finished or branch.length - prompt.length >= self.max_tokens:
            return True
        return run.task.answer_stop is not None and run.task.answer_stop in branch.answer


async def extend(branches: Branches, run: Run, **options: Any) -> Branches:
    """`Branches.sample`; what the budget cuts off is offered as the answer if there is none: better than nothing."""
    try:
        return await branches.sample(**options)
    except BudgetExhausted as spent:
        longest = max(spent.partial, key=lambda leaf: leaf.length)
        if run.best is None and longest.appended:
            run.propose(longest)
        raise


def answer_stop_after(head: Branch, run: Run) -> Stop:
    """The task's answer stop for a text that goes on from ``head``, also where it began in there."""
    stop, completion = run.task.answer_stop, head.completion
    return Stop() if stop is None else Stop(when=lambda text: stop in completion + text)


def drawn(branch: Branch, start: int) -> tuple[np.ndarray, np.ndarray]:
    """Both log-probabilities of each token from the ``start``-th on: float64 ``[branch.length - start]`` twice."""
    pieces: list[Branch] = []
    node: Branch | None = branch
    while node is not None and node.length > start:
        pieces.append(node)
        node = node.parent
    skipped = start - (node.length if node is not None else 0)
    both = [
        np.concatenate([np.zeros(0), *(getattr(piece, name) for piece in reversed(pieces))])[skipped:]
        for name in ("logprobs", "sample_logprobs")
    ]
    return both[0], both[1]


def cut(branch: Branch, length: int) -> Branch:
    """The branch of the first ``length`` tokens of this one, with their log-probabilities."""
    node = branch
    while node.parent is not None and node.parent.length >= length:
        node = node.parent
    if node.length == length:
        return node
    assert node.parent is not None
    kept = length - node.parent.length
    return graft(node.parent, node.appended[:kept], node.logprobs[:kept], node.sample_logprobs[:kept])


def graft(
    parent: Branch, tokens: tuple[int, ...], logprobs: np.ndarray, sample_logprobs: np.ndarray | None = None
) -> Branch:
    """The parent with known tokens appended, of which also the log-probabilities are known. Nothing is computed."""
    tokenizer = parent.backend.tokenizer
    over = tokenizer is not None and tokens[-1] in tokenizer.eos_ids
    child = Branch(
        parent.backend, parent, tokens, token_key(parent.key, tokens),
        logprobs=logprobs, sample_logprobs=sample_logprobs, finish="eos" if over else None,
    )  # fmt: skip
    if child.run is not None and child.run.observed:
        child.run.emit(Appended(child.id, parent.id, child.appended_text))
    return child
