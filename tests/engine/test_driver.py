"""Engines that share a thread: they come and go, fail alone, and cannot wait for each other."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import bough.core as core
from bough.core import Stop
from bough.engine import NativeBackend
from bough.engine.driver import Driver
from tiny import tiny_decoder, tiny_lm

PROMPT = "one thread"


def tokens(lm: NativeBackend) -> list[list[int]]:
    return [leaf.tokens for leaf in lm.generate(lm.branch(PROMPT, seed=3), n=3, max_tokens=12)]


def test_engines_share_one_thread_and_give_what_they_give_alone() -> None:
    with tiny_lm(0) as one, tiny_lm(1) as other:
        alone = tokens(one), tokens(other)

        async def both() -> list[core.Branches]:
            roots = [lm.branch(PROMPT, seed=3) for lm in (one, other)]
            return await asyncio.gather(*(root.sample(3, max_tokens=12) for root in roots))

        together = [[leaf.tokens for leaf in leaves] for leaves in core.run(both())]
        assert tuple(together) == alone
        assert alone[0] != alone[1]
        assert sum(thread.name == "bough-engine" for thread in threading.enumerate()) == 1


class Idle:
    """An engine that never has anything to do."""

    busy = False
    received = 0

    def receive(self, item: object) -> None:
        self.received += 1

    def step(self) -> None: ...
    def rest(self) -> None: ...
    def end(self) -> None: ...


def test_the_thread_ends_with_its_last_engine_and_another_begins_with_the_next() -> None:
    device = torch.device("meta")  # nobody else's
    for _ in range(200):
        first, second = Idle(), Idle()
        driver = Driver.start(first, device)
        assert Driver.start(second, device) is driver
        assert driver.end(first) and driver._thread.is_alive()
        driver.post(second, None)
        assert driver.end(second) and second.received == 1
        driver._thread.join(timeout=10)
        assert not driver._thread.is_alive() and device not in Driver._drivers


def test_engines_come_and_go_at_the_same_time() -> None:
    device = torch.device("meta")

    def come_and_go() -> int:
        received = 0
        for _ in range(200):
            engine = Idle()
            driver = Driver.start(engine, device)
            driver.post(engine, None)
            assert driver.end(engine)
            received += engine.received
        return received

    with ThreadPoolExecutor(4) as threads:
        found = [threads.submit(come_and_go) for _ in range(4)]
        assert [future.result(timeout=60) for future in found] == [200] * 4


def test_a_failing_engine_leaves_the_other_alone() -> None:
    decoder = tiny_decoder()
    with tiny_lm(decoder=decoder) as one, tiny_lm(1) as other:
        expected = tokens(other)
        decoder.layers[0].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("device lost")))

        async def both() -> tuple[object, core.Branches]:
            failing, fine = one.branch(PROMPT).sample(2), other.branch(PROMPT, seed=3).sample(3, max_tokens=12)
            return tuple(await asyncio.gather(failing, fine, return_exceptions=True))  # type: ignore[return-value]

        error, leaves = core.run(both())
        assert isinstance(error, RuntimeError)
        assert [leaf.tokens for leaf in leaves] == expected


def test_closing_one_engine_does_not_stop_the_other() -> None:
    with tiny_lm(1) as other:
        expected = tokens(other)

        async def close() -> core.Branches:
            one = tiny_lm(0)
            pending = asyncio.create_task(one.branch(PROMPT).sample(2, stop=Stop(eos=False)))
            fine = asyncio.create_task(other.branch(PROMPT, seed=3).sample(3, max_tokens=12))
            await asyncio.sleep(0)
            one.close()
            with pytest.raises(core.EngineClosed):
                await pending
            return await fine

        assert [leaf.tokens for leaf in core.run(close())] == expected
    with tiny_lm(1) as again:
        assert tokens(again) == expected


def test_a_callback_that_asks_a_model_gets_an_error_instead_of_waiting_for_ever() -> None:
    with tiny_lm(0) as one, tiny_lm(1) as other:

        def asks(text: str) -> bool:
            return bool(other.generate(other.branch(PROMPT), max_tokens=1))

        with pytest.raises(core.UnsupportedError, match="callback"):
            one.generate(one.branch(PROMPT), stop=asks)
        assert tokens(one) and tokens(other)


def test_an_engine_may_be_closed_by_a_callback_of_its_own_pass() -> None:
    lm = tiny_lm(0)

    def closes(text: str) -> bool:
        lm.close()
        return False

    with pytest.raises(core.EngineClosed):
        lm.generate(lm.branch(PROMPT), stop=Stop(when=closes, eos=False))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_has_a_thread_of_its_own() -> None:
    decoder = tiny_decoder(0)
    with tiny_lm(decoder=decoder) as lm:
        tokens(lm)
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # should it hang, it ends
            fresh = tiny_lm(decoder=decoder)
            os._exit(0 if len(tokens(fresh)) == 3 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
