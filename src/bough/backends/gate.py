"""How many requests are in flight, in which order, for how many tokens and for how much money."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from bough.core import Branch, BudgetExhausted, InvalidInput, Run

_PASSED_OVER = 64


@dataclass(frozen=True)
class Price:
    """What tokens cost, in any currency.

    Attributes:
        prompt: of a token that is sent. A discount for cached ones is not counted on.
        completion: of a token that is generated.
    """

    prompt: float
    completion: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < float("inf"):
                raise InvalidInput(f"price {name}={value} must be a number of at least 0, per token")

    def of(self, prompt: int, completion: int) -> float:
        """Of a request."""
        return self.prompt * prompt + self.completion * completion


@dataclass
class Statistics:
    """What a backend has asked its endpoint for.

    Attributes:
        requests: that were answered, those that learnt what the endpoint can do included.
        retries: attempts that were made again.
        cancelled: requests that were closed before their end: at a stop condition or because nobody wanted it any
            more.
        prompt_tokens: that were sent, as the endpoint counts them; requests that it does not say it of count none.
        cached_tokens: of these, the ones that it had cached; None if it has never said.
        completion_tokens: that were generated.
        cost: by the price given; a request that was closed early counts as what it could have cost at most.
    """

    requests: int = 0
    retries: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    cached_tokens: int | None = None
    completion_tokens: int = 0
    cost: float = 0.0

    @property
    def cached_share(self) -> float | None:
        """Of the tokens sent, the share that the endpoint had cached; None if it does not say."""
        if self.cached_tokens is None or not self.prompt_tokens:
            return None
        return self.cached_tokens / self.prompt_tokens


class Gate:
    """At most so many requests at once; of those waiting, the one that shares most with the last one sent goes.

    An endpoint keeps what it has computed of recent prompts. Siblings in a tree of branches share almost all of
    theirs: sent one after the other, each finds it cached. No request is passed over more than 64 times.
    """

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._last: Sequence[object] = ""
        self._waiting: list[_Waiting] = []

    @contextlib.asynccontextmanager
    async def enter(self, prompt: Sequence[object]) -> AsyncIterator[None]:
        """Hold a place; ``prompt`` is the text or the token ids that will be sent."""
        if self._free > 0 and not self._waiting:
            self._free -= 1
            self._last = prompt
        else:
            waiting = _Waiting(prompt, asyncio.get_running_loop().create_future())
            self._waiting.append(waiting)
            self._admit()
            try:
                await waiting.admitted
            except asyncio.CancelledError:
                if waiting.admitted.done() and not waiting.admitted.cancelled():
                    self._leave()
                else:
                    self._waiting.remove(waiting)
                raise
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        self._free += 1
        self._admit()

    def _admit(self) -> None:
        while self._free > 0 and self._waiting:
            overdue = self._waiting[0].passed_over >= _PASSED_OVER
            chosen = (
                self._waiting[0]
                if overdue
                else max(self._waiting, key=lambda waiting: shared_prefix(waiting.prompt, self._last))
            )
            for waiting in self._waiting[: self._waiting.index(chosen)]:
                waiting.passed_over += 1
            self._waiting.remove(chosen)
            self._free -= 1
            self._last = chosen.prompt
            chosen.admitted.set_result(None)


@dataclass(eq=False)
class _Waiting:
    prompt: Sequence[object]
    admitted: asyncio.Future[None]
    passed_over: int = 0


def shared_prefix(one: Sequence[object], other: Sequence[object]) -> int:
    """The length of what two texts, or two lists of token ids, have in common from their beginning on."""
    if type(one) is not type(other):
        return 0
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        # What is shared up to `low` need not be compared again.
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class Allowance:
    """Tokens that requests in flight may still generate, held back from their runs' budgets; and money likewise.

    A request is told its limit before it begins, so what it may use at most is held until it is over.
    """

    def __init__(self, price: Price | None, limit: float | None, statistics: Statistics) -> None:
        self.price = price
        self.limit = limit
        self._statistics = statistics
        self._tokens: weakref.WeakKeyDictionary[Run, int] = weakref.WeakKeyDictionary()
        self._money = 0.0
        self._watching: list[asyncio.Future[None]] = []

    def left(self, run: Run | None) -> float:
        """Tokens of a run's budget that nobody holds."""
        return float("inf") if run is None else run.ledger.tokens_left - self._tokens.get(run, 0)

    def held(self, run: Run | None) -> int:
        return 0 if run is None else self._tokens.get(run, 0)

    async def changed(self) -> None:
        """Wait until something held was given back."""
        future = asyncio.get_running_loop().create_future()
        self._watching.append(future)
        await future

    def _notify(self) -> None:
        watching, self._watching = self._watching, []
        for future in watching:
            if not future.done():
                future.set_result(None)

    @contextlib.asynccontextmanager
    async def tokens(self, run: Run | None, count: int) -> AsyncIterator[None]:
        """Hold so many tokens of a run's budget; the caller has seen that they are `left`."""
        if run is not None:
            self._tokens[run] = self._tokens.get(run, 0) + count
        try:
            yield
        finally:
            if run is not None:
                self._tokens[run] -= count
                self._notify()

    async def affordable(self, prompt: int, completion: int, each: int) -> int:
        """Of ``completion`` tokens, how many a request can be allowed; waits for what others hold to come free.

        Args:
            prompt: tokens that are sent, at most.
            completion: tokens wanted, over all continuations.
            each: continuations.

        Raises:
            BudgetExhausted: there is not the money for one token each.
        """
        if self.price is None or self.limit is None:
            return completion
        while True:
            left = self.limit - self._statistics.cost - self._money
            if self.price.of(prompt, completion) <= left:
                return completion
            if not self._money:
                break
            await self.changed()
        spare = left - self.price.of(prompt, 0)
        count = int(spare / self.price.completion) if self.price.completion else completion
        if spare < 0 or count < each:
            raise self.exceeded(())
        return count

    def exceeded(self, partial: Sequence[Branch]) -> BudgetExhausted:
        """The error that says so; ``partial`` is what was cut short by it."""
        return BudgetExhausted(
            f"the spending limit of {self.limit:g} would be exceeded, {self._statistics.cost:g} of it is spent; "
            "raise spending_limit=",
            tuple(partial),
        )

    @contextlib.asynccontextmanager
    async def money(self, prompt: int, completion: int) -> AsyncIterator[_Bill]:
        """Hold what a request may cost at most; that is what it costs unless the bill is settled."""
        bill = _Bill(self.price.of(prompt, completion) if self.price is not None else 0.0, self.price)
        self._money += bill.amount
        held = bill.amount
        try:
            yield bill
        finally:
            self._money = max(0.0, self._money - held)
            self._statistics.cost += bill.amount
            self._notify()


class _Bill:
    def __init__(self, amount: float, price: Price | None) -> None:
        self.amount = amount
        self._price = price

    def settle(self, prompt: int, completion: int) -> None:
        """It has cost this instead."""
        if self._price is not None:
            self.amount = self._price.of(prompt, completion)
