"""The limit: how fast this machine could do a workload at all.

A phase of a workload takes at the least the time in which its bytes can be read, or the time in which its operations
can be done, whichever is larger; phases follow one another. The two rates are measured here with all threads: reading
a buffer, and torch's bf16 matrix product, at their best sizes.

Weights that fit in the caches need not come from memory: the buffer has the size of the weights, so that the rate of
reading them is that of wherever they can stay. Operations are measured in bf16 for every precision: arithmetic on
8-bit integers can be faster, so for int8 and int4 the limit of a phase that is bound by operations may be passed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from workloads import WEIGHT_BYTES, Shape, Workload


@dataclass(frozen=True)
class Limit:
    """What a workload needs at the least.

    Attributes:
        bytes: that must move.
        operations: that must be done.
        seconds: the least time.
        bandwidth: bytes per second by which it was reckoned.
        rate: operations per second by which it was reckoned.
    """

    bytes: float
    operations: float
    seconds: float
    bandwidth: float
    rate: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def _best(run: Callable[[], object], amount: float, seconds: float = 0.3) -> float:
    """The highest rate among repetitions for some time."""
    run()
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        run()
        best = max(best, amount / (time.perf_counter() - started))
    return best


@cache
def bandwidth(size: int) -> float:
    """Bytes per second of reading a buffer of ``size`` bytes: the best of sums of all, of each row, and products.

    The buffer is numpy's, which asks for large pages; with small ones, address translation would be measured too.
    """
    columns = 4096
    buffer = torch.from_numpy(np.ones((max(size // 4 // columns, 1), columns), np.float32))
    amount = buffer.numel() * 4.0
    narrow = buffer.view(torch.bfloat16)
    product = partial(F.linear, torch.ones(1, narrow.shape[1], dtype=torch.bfloat16), narrow)
    return max(_best(run, amount, 1.0) for run in (buffer.sum, partial(buffer.sum, 1), product))


@cache
def matrix_rate() -> float:
    """Operations per second of torch's bf16 matrix product: the best of some sizes."""
    rates = []
    for rows, outputs, inputs in ((512, 4096, 1024), (2048, 2048, 2048), (4096, 3584, 1280), (4096, 4096, 4096)):
        left, right = torch.randn(rows, inputs).to(torch.bfloat16), torch.randn(outputs, inputs).to(torch.bfloat16)
        rates.append(_best(partial(F.linear, left, right), 2.0 * rows * outputs * inputs))
    return max(rates)


@torch.inference_mode()
def limit(work: Workload, shape: Shape, precision: str, threads: int) -> Limit:
    """The least time for a workload, from rates measured now (once a process)."""
    torch.set_num_threads(threads)
    phases = work.phases()
    weights = (shape.layer_weights + shape.head_weights) * WEIGHT_BYTES[precision]
    read, rate = bandwidth(int(weights)), matrix_rate()
    moved = [phase.bytes(shape, precision) for phase in phases]
    done = [phase.operations(shape) for phase in phases]
    seconds = sum(max(b / read, o / rate) for b, o in zip(moved, done, strict=True))
    return Limit(sum(moved), sum(done), seconds, read, rate)
