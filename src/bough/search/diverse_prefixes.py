"""Diverse prefixes: parallel samples that differ by trained prefixes, so that they do not all fail alike.

Paper: EconProver, arXiv:2509.12603, where it goes with `bough.search.CoTSwitch`. Pays where one right
sample is enough and can be told from the others, as with a proof checker: k samples, one below each of k prefixes
that were trained to be right where the others are not, solve more problems than k samples of the plain model. Costs
nothing beyond the samples but reading the prefixes.

The prefixes come with the model (`Backend.prefixes`, ``bough.load(..., prefixes=file)``): short soft prompts, trained
with the model frozen. `bough.zoo.prefixes` is the recipe, with the objective. They follow the prompt, whose keys and
values are computed once for all of them; the paper's precede it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from bough.core import Branch, Capability, Promise, Run, technique

from .steps import Choice, WholeSearch, require_choice


@technique(
    "diverse-prefixes", paper="arXiv:2509.12603", promise=Promise.APPROXIMATE,
    requires=(Capability.SAMPLE, Capability.CONTINUE, Capability.PREFIXES),
)  # fmt: skip
@dataclass(frozen=True)
class DiversePrefixes(WholeSearch):
    """Draw solutions below different trained prefixes in turn; vote, or take the best.

    Attributes:
        n: how many solutions; the first k are below the k different prefixes.
        choose: the answer of most solutions ("vote"), or the solution of highest "reward".
    """

    n: int = 4
    choose: Choice = "vote"

    tune_space: ClassVar[Mapping[str, Sequence[Any]]] = {"n": (4, 8, 16)}

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(self)

    async def __call__(self, prompt: Branch, run: Run) -> Branch | None:
        return await self.draw_below([prompt + prefix for prefix in prompt.backend.prefixes], run, self.choose)
