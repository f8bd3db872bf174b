"""Random programs of fork, sample, append, score, drop and cancel, on a pool too small to hold them."""

from __future__ import annotations

import asyncio

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bough.core as core
from bough.core import Branch
from bough.engine import NativeBackend
from tiny import tiny_decoder, tiny_lm

DECODER = tiny_decoder()
PROMPTS = ["one prompt", "one prompt, and more of it", "another"]

operation = st.one_of(
    st.tuples(st.just("sample"), st.integers(0, 99), st.integers(1, 4), st.integers(1, 12)),
    st.tuples(st.just("append"), st.integers(0, 99), st.sampled_from(["x", " and so", "\n"])),
    st.tuples(st.just("fork"), st.integers(0, 99), st.integers(1, 3)),
    st.tuples(st.just("score"), st.integers(0, 99), st.lists(st.sampled_from(["a", "bcd", " and"]), min_size=1)),
    st.tuples(st.just("next"), st.integers(0, 99)),
    st.tuples(st.just("drop"), st.integers(0, 99)),
    st.tuples(st.just("cancel"), st.integers(0, 99), st.integers(1, 4), st.integers(0, 3)),
    st.tuples(st.just("together"), st.lists(st.integers(0, 99), min_size=1, max_size=4), st.integers(1, 8)),
)
Record = list[object]


async def execute(lm: NativeBackend, program: list[tuple]) -> Record:  # type: ignore[type-arg]
    """What a program computed: tokens exactly, numbers rounded beyond the noise of batching."""
    live: list[Branch] = [lm.branch(prompt, seed=i) for i, prompt in enumerate(PROMPTS)]
    record: Record = []

    def keep(leaves: core.Branches) -> None:
        live.extend(leaf for leaf in leaves if not leaf.finished and leaf.length < 60)
        record.extend(tuple(leaf.tokens) for leaf in leaves)
        record.extend(round(leaf.logprob, 2) for leaf in leaves)

    for name, target, *rest in program:
        if name == "together":
            chosen = [live[i % len(live)] for i in target]
            results = await asyncio.gather(*[b.sample(2, max_tokens=rest[0]) for b in chosen])
            for leaves in results:
                keep(leaves)
            continue
        branch = live[target % len(live)]
        if name == "sample":
            keep(await branch.sample(rest[0], max_tokens=rest[1]))
        elif name == "append":
            live.append(branch + rest[0])
        elif name == "fork":
            live.extend(branch.fork(rest[0]))
        elif name == "score":
            record.extend(np.round(s, 2).tolist() for s in await branch.score(rest[0]))
        elif name == "next":
            record.append(int((await branch.next_token()).argmax()))
        elif name == "drop" and len(live) > len(PROMPTS):
            live.remove(branch)
        elif name == "cancel":
            task = asyncio.create_task(branch.sample(rest[0], max_tokens=30))
            for _ in range(rest[1]):
                await asyncio.sleep(0.001)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    return record


def close_to(a: Record, b: Record) -> bool:
    """Equal tokens; log-probabilities within what another batch shape does to float32."""
    if len(a) != len(b):
        return False
    for x, y in zip(a, b, strict=True):
        if isinstance(x, tuple) or isinstance(y, tuple):
            if x != y:
                return False
        elif not np.allclose(x, y, atol=0.03):  # type: ignore[arg-type]
            return False
    return True


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(program=st.lists(operation, min_size=3, max_size=14), share=st.sampled_from([1, 1 << 60]))
def test_a_tiny_pool_computes_what_an_unlimited_one_does(program: list[tuple], share: int) -> None:  # type: ignore[type-arg]
    with tiny_lm(decoder=DECODER) as roomy, tiny_lm(decoder=DECODER, kv_tokens=96, share_from=share) as cramped:
        expected = core.run(execute(roomy, program))
        assert close_to(core.run(execute(cramped, program)), expected)
        for lm in (roomy, cramped):
            lm.engine.settle()
            assert lm.engine.pool.free + lm.engine.tree.cached == lm.engine.pool.total
            assert not any(node.locks for node in lm.engine.tree._nodes())
            held = np.concatenate([n.slots for n in lm.engine.tree._nodes()] + [np.zeros(0, np.int64)])
            free = lm.engine.pool._free[: lm.engine.pool.free]
            assert sorted([*held.tolist(), *free.tolist()]) == list(range(lm.engine.pool.total))
