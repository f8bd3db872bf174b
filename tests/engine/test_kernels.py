"""The compiled pass's building blocks against closed forms and slow loops, and its threads."""

from __future__ import annotations

import multiprocessing
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from numba import njit

from bough.core import noise
from bough.engine.cpu.draw import gumbel
from bough.engine.cpu.products import linear_rows, narrow_row
from bough.engine.cpu.records import LINEAR, MEMORY
from bough.engine.cpu.simd import exp2, load, log, start_noise, store, uniform
from bough.engine.cpu.support import missing_instructions
from bough.engine.cpu.team import Team
from bough.engine.cpu.tiles import dots
from bough.models.packed import PackedLinear, round_activations
from tiny import tiny_decoder, tiny_lm

pytestmark = pytest.mark.skipif(
    bool(missing_instructions()), reason=f"the CPU lacks {', '.join(missing_instructions())}"
)


@njit
def apply_exp2(x, out, count):  # type: ignore[no-untyped-def]
    for i in range(0, 4 * count, 64):
        store(out + i, exp2(load(x + i)))


@njit
def apply_log(x, out, count):  # type: ignore[no-untyped-def]
    for i in range(0, 4 * count, 64):
        store(out + i, log(load(x + i)))


@njit
def make_noise(key, position, raw, shaped, count):  # type: ignore[no-untyped-def]
    start = start_noise(key, position)
    for i in range(0, count, 16):
        store(raw + 4 * i, uniform(start, i))
        store(shaped + 4 * i, gumbel(start, i))


def test_exponentials_are_right_to_a_few_millionths_and_reach_zero() -> None:
    x = np.concatenate([np.linspace(-125, 125, 4000), np.linspace(-1, 1, 80)]).astype(np.float32)
    out = np.empty_like(x)
    apply_exp2(x.ctypes.data, out.ctypes.data, len(x))
    np.testing.assert_allclose(out, np.exp2(x.astype(np.float64)), rtol=4e-6)
    x[:] = -np.inf
    x[:16] = np.nan
    apply_exp2(x.ctypes.data, out.ctypes.data, len(x))
    assert np.isnan(out[:16]).all() and (out[16:] == 0).all()


def test_logarithms_are_right_to_float32() -> None:
    x = np.concatenate([np.geomspace(1e-37, 1e37, 4000), np.linspace(0.5, 2, 80)]).astype(np.float32)
    out = np.empty_like(x)
    apply_log(x.ctypes.data, out.ctypes.data, len(x))
    np.testing.assert_allclose(out, np.log(x.astype(np.float64)), rtol=3e-7, atol=1e-7)


@pytest.mark.parametrize("key", [0, 1, (1 << 63) + 12345, (1 << 64) - 1])
def test_noise_is_that_of_the_core(key: int) -> None:
    raw, shaped = np.empty((2, 1 << 14), np.float32)
    signed = key - (1 << 64) if key >> 63 else key
    make_noise(signed, 17, raw.ctypes.data, shaped.ctypes.data, len(raw))
    assert np.array_equal(raw, noise.uniform([key], [17], len(raw))[0].numpy())
    np.testing.assert_allclose(shaped, noise.gumbel([key], [17], len(raw))[0].numpy(), atol=2e-6)


@njit
def scores_of(lines, x, steps, out):  # type: ignore[no-untyped-def]
    store(out, dots(lines, x, steps))


@pytest.mark.parametrize("size", [32, 64, 128])
def test_sixteen_dot_products_at_once(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    rows = torch.randn(16, size, generator=generator).bfloat16()
    x = torch.randn(size, generator=generator).bfloat16()
    lines = np.array([row.data_ptr() for row in rows])
    out = np.empty(16, np.float32)
    scores_of(lines.ctypes.data, x.data_ptr(), size // 32, out.ctypes.data)
    np.testing.assert_allclose(out, (rows.double() @ x.double()).numpy(), atol=1e-4)


@njit
def multiply(linears, memories, x, rows, first, last, out, out_row):  # type: ignore[no-untyped-def]
    for r in range(rows):
        narrow_row(linears[0], x + r * linears[0].inputs * 4, r, memories[0])
    linear_rows(linears[0], memories[0], rows, first, last, out, out_row)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, 13, 64])
@pytest.mark.parametrize(
    ("bits", "group", "inputs"), [(16, None, 96), (8, None, 96), (8, 128, 256), (4, 32, 96), (4, 128, 256)]
)
def test_products_are_the_references(bits: int, group: int | None, inputs: int, rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    outputs = 16 * 13 - 5
    packed = PackedLinear.pack(torch.randn(outputs, inputs, generator=generator), None, bits, group)
    x = torch.randn(rows, inputs, generator=generator)
    x[0, :40] = 0  # a group of zeros
    scales, starts = torch.empty(rows, inputs // 32), torch.empty(rows, inputs // 32, dtype=torch.int32)
    narrow = torch.empty(rows, inputs, dtype=torch.bfloat16)
    linear, memory = np.zeros(1, LINEAR), np.zeros(1, MEMORY)
    panels = len(packed.codes)
    weights, scaled = packed.codes.data_ptr(), 0 if packed.scales is None else packed.scales.data_ptr()
    linear[0] = (weights, scaled, bits, packed.group, inputs, outputs, panels, 0)
    for name, tensor in (("narrow", narrow), ("scales", scales), ("starts", starts)):
        memory[0][name] = tensor.data_ptr()
    memory[0]["narrow_row"], memory[0]["groups"] = 2 * inputs, inputs // 32
    out = torch.full((rows, 16 * panels), torch.nan)
    split = panels // 3  # as if two threads shared the panels
    for first, last in ((0, split), (split, panels)):
        multiply(linear, memory, x.data_ptr(), rows, first, last, out.data_ptr(), 64 * panels)
    rounded = x.bfloat16().double() if bits == 16 else round_activations(x, packed.group).double()
    expected = rounded @ packed.dense().double().T
    torch.testing.assert_close(out[:, :outputs].double(), expected, atol=2e-5 * float(expected.abs().max()), rtol=0)


def test_a_team_sleeps_and_wakes() -> None:
    with tiny_lm(decoder=decoder(), threads=2) as lm:
        root = lm.branch("to be or not")
        first = [leaf.tokens for leaf in lm.generate(root, n=4, max_tokens=8)]
        for pause in (0.0, 0.02, 0.2):
            time.sleep(pause)
            assert [leaf.tokens for leaf in lm.generate(root, n=4, max_tokens=8)] == first


def test_the_threads_of_a_team_end_with_it() -> None:
    before = set(threading.enumerate())
    team = Team(3)
    # Others may be ending at this moment: of earlier tests, or the one that would say that it compiles.
    own = {thread for thread in set(threading.enumerate()) - before if thread.name.startswith("bough-")}
    assert len(own) == 2
    del team
    deadline = time.monotonic() + 20
    while any(thread.is_alive() for thread in own) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(thread.is_alive() for thread in own)


def decoder() -> Any:
    return tiny_decoder(hidden_size=64, intermediate_size=96).bfloat16()


def _tokens(queue: Any) -> None:
    torch.set_num_threads(1)  # torch's OpenMP hangs in the fork of a process that has used it; a team must not
    with tiny_lm(decoder=decoder(), threads=2) as lm:
        queue.put(lm.generate(lm.branch("to be"), max_tokens=8)[0].tokens)


def test_a_fork_has_a_team_of_its_own() -> None:
    with tiny_lm(decoder=decoder(), threads=2) as lm:
        expected = lm.generate(lm.branch("to be"), max_tokens=8)[0].tokens
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        child = context.Process(target=_tokens, args=(queue,))
        child.start()
        assert queue.get(timeout=60) == expected
        child.join(60)
