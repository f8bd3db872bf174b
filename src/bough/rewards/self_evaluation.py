"""Self-evaluation: the model is asked whether its own answer is right, and says with which probability.

Paper: Kadavath et al. 2022, arXiv:2207.05221, P(True): the proposed answer is put back before the model as a question
with the choices (A) True and (B) False. Pays where the model is large enough to know what it knows; costs one
pass over problem and answer, in which nothing is generated. Instruction tuning costs calibration, not order.
"""

from __future__ import annotations

from collections.abc import Sequence

from bough.core import Backend, Branch, Capability, InvalidInput, Run, TokenizerLike, UnsupportedError
from bough.core.noise import token_key

from .formats import GoodBad, single_token

TEMPLATE = (
    "Question: {prompt}\nProposed Answer: {completion}\nIs the proposed answer:\n (A) True\n (B) False\n"
    "The proposed answer is: ("
)
CHAT_TEMPLATE = (
    "Question: {prompt}\n\nProposed answer: {completion}\n\nIs the proposed answer:\n(A) True\n(B) False\n"
    "Reply with the letter alone, A or B."
)


class SelfEvaluation:
    """The probability of a "yes" to "is this right?", against that of a "no": p(good) / (p(good) + p(bad)).

    A partial solution is judged as it is. All branches of a call are asked in one submission, equal texts once.

    Args:
        backend: who is asked; default, each branch's own model.
        template: the question, with ``{prompt}`` and ``{completion}``; default, Kadavath's, as a chat message
            where the model has a chat template.
        good: the answer that counts, one token (a text or an id).
        bad: the other one.
        chat: whether the question is a chat message; default, where the model has a chat template.
    """

    name = "self-evaluation"

    def __init__(
        self,
        backend: Backend | None = None,
        *,
        template: str | None = None,
        good: str | int = "A",
        bad: str | int = "B",
        chat: bool | None = None,
    ) -> None:
        if template is not None and "{completion}" not in template:
            raise InvalidInput(f"template={template!r} has no {{completion}}, so every answer would be judged alike")
        if good == bad:
            raise InvalidInput(f"good={good!r} and bad={bad!r} are the same answer; give two")
        self.backend = backend
        self.template = template
        self.chat = chat
        self._read = GoodBad(good, bad)

    async def __call__(self, branches: Sequence[Branch], run: Run) -> list[float]:
        """One probability per branch.

        Raises:
            UnsupportedError: the model has no tokenizer or no next-token distribution, or an answer is not one token.
            InvalidInput: a question is longer than the model's context.
        """
        scores: dict[int, float] = {}
        for backend in dict.fromkeys(self.backend or branch.backend for branch in branches):
            own = [i for i, branch in enumerate(branches) if (self.backend or branch.backend) is backend]
            asked = {i: tuple(self._question(backend, branches[i])) for i in own}
            different = list(dict.fromkeys(asked.values()))
            answers = dict(zip(different, await self._ask(backend, different, run), strict=True))
            scores.update((i, answers[question]) for i, question in asked.items())
        return [scores[i] for i in range(len(branches))]

    async def _ask(self, backend: Backend, questions: Sequence[tuple[int, ...]], run: Run) -> list[float]:
        meter = Run()  # so that the reward's work is charged to reward_tokens and not to the model's
        roots = [Branch(backend, None, tokens, token_key(0, tokens), run=meter) for tokens in questions]
        try:
            logprobs = await backend.submit_next_token(roots)
        finally:
            run.ledger.reward_tokens += meter.ledger.computed_tokens
        return [float(score) for score in self._read.read(_tokenizer(backend), logprobs)]

    def _question(self, backend: Backend, branch: Branch) -> list[int]:
        tokenizer = _tokenizer(backend)
        for word in (self._read.good, self._read.bad):
            single_token(tokenizer, word)
        has_template = getattr(tokenizer, "chat_template", None) is not None
        chat = has_template if self.chat is None else self.chat
        template = self.template or (CHAT_TEMPLATE if chat else TEMPLATE)
        # Not str.format: problems are full of braces.
        text = template.replace("{prompt}", "\0").replace("{completion}", branch.answer.strip())
        text = text.replace("\0", branch.root.text.strip())
        tokens = (
            tokenizer.chat([{"role": "user", "content": text}]) if chat else tokenizer.encode(text, add_special=True)
        )
        if len(tokens) > backend.context:
            raise InvalidInput(
                f"the question about a branch has {len(tokens)} tokens, more than the {backend.context} of "
                f"{backend.name}'s context; use shorter solutions (max_tokens), or another backend for {self.name}"
            )
        return tokens


def _tokenizer(backend: Backend) -> TokenizerLike:
    if backend.tokenizer is None or Capability.NEXT_TOKEN not in backend.capabilities:
        raise UnsupportedError(
            f"{backend.name} cannot evaluate itself: it needs a tokenizer and {Capability.NEXT_TOKEN.value}"
        )
    return backend.tokenizer
