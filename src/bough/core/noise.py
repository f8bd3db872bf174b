"""Counter-based randomness, keyed by (seed, path in the tree, position).

A branch carries a 64-bit key that is a hash of the seed, the root's tokens and the path of child indices and
appended tokens that leads to it. The noise of vocabulary entry ``v`` at position ``t`` is a hash of
``(key, t, v)``, so it depends on nothing else: not on the batch, not on the order of the calls, not on the
engine. The mixing function is the finaliser of SplitMix64 (Steele, Lea and Flood, 2014), whose output passes
BigCrush when it is fed a counter.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def mix(value: int) -> int:
    """SplitMix64's finaliser on a 64-bit integer."""
    value = (value ^ (value >> 30)) * _MULTIPLIERS[0] & _MASK
    value = (value ^ (value >> 27)) * _MULTIPLIERS[1] & _MASK
    return value ^ (value >> 31)


def child_key(key: int, index: int) -> int:
    """Key of the ``index``-th child drawn from the branch with this key."""
    return mix((key + (index + 1) * _GOLDEN) & _MASK)


def token_key(key: int, tokens: Sequence[int] | np.ndarray) -> int:
    """Key of the branch that appends these given tokens to the branch with this key."""
    data = key.to_bytes(8, "little") + struct.pack(f"<{len(tokens)}q", *tokens)
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _signed(value: int) -> int:
    """The int64 with the same 64 bits, which is how torch takes it."""
    return value - (1 << 64) if value >> 63 else value


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift of int64 (torch's is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix_tensor(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _signed(_MULTIPLIERS[0])
    x = (x ^ _shift_right(x, 27)) * _signed(_MULTIPLIERS[1])
    return x ^ _shift_right(x, 31)


# Blocks of this many entries stay in a CPU's second-level cache, which is worth a factor of five.
_BLOCK = 1 << 16


def uniform(keys: Sequence[int], positions: Sequence[int], size: int, device: torch.device | str = "cpu") -> Tensor:
    """Uniform noise in (0, 1), one row per (key, position).

    Args:
        keys: B branch keys.
        positions: B positions (depths in the tree, in tokens).
        size: V, the vocabulary.
        device: where to make it; the values are the same on every device.

    Returns:
        ``[B, V]`` float32; entry ``[b, v]`` depends on ``(keys[b], positions[b], v)`` alone.
    """
    rows = [_signed(child_key(key, position)) for key, position in zip(keys, positions, strict=True)]
    starts = torch.tensor(rows, dtype=torch.int64, device=device)[:, None]
    counters = torch.arange(1, size + 1, dtype=torch.int64, device=device) * _signed(_GOLDEN)
    out = torch.empty(len(rows), size, dtype=torch.float32, device=device)
    step = max(1, _BLOCK // size)
    for start in range(0, len(rows), step):
        bits = _mix_tensor(starts[start : start + step] + counters)
        # 40 bits keep float32's relative precision near zero, the end that decides an argmax (see `gumbel`).
        out[start : start + step] = (_shift_right(bits, 24).to(torch.float32) + 0.5) * 2.0**-40
    return out.clamp_(max=1 - 2.0**-24)


def gumbel(keys: Sequence[int], positions: Sequence[int], size: int, device: torch.device | str = "cpu") -> Tensor:
    """Standard Gumbel noise ``[B, V]``: ``argmax(logits + gumbel)`` is a draw from ``softmax(logits)``."""
    exponential = uniform(keys, positions, size, device).neg_().log1p_().neg_()
    return exponential.log_().neg_()
