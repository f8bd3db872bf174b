"""The pool of key/value slots. A slot holds one token's keys and values in every layer.

Pages of one token make forks free at any depth: two branches share exactly the tokens they have in common, no page
is ever copied, and none is partly empty.
"""

from __future__ import annotations

import math
import os

import numpy as np
import torch
from torch import Tensor

from bough.core import CapacityError
from bough.models.memory import empty


def _memory(device: torch.device) -> int:
    """Bytes of memory that a device has in all."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not on every system
        return 1 << 62


def _too_large(slots: int, needed: int, limit: int) -> str:
    return (
        f"kv_tokens={slots} needs {needed / 2**30:.1f} GiB for keys and values, and there are "
        f"{limit / 2**30:.1f} GiB of memory in all; set kv_tokens to {slots * limit // (2 * needed)} or less"
    )


class Pool:
    """``data`` is ``[layer, 2, slot, kv_head, head_dim]``, keys at 0 and values at 1; keys are rotated already.

    Args:
        layers: number of layers.
        slots: number of token slots.
        kv_heads: key/value heads of a layer.
        head_dim: size of one head.

    Attributes:
        token_bytes: what one token's keys and values take.
    """

    def __init__(
        self, layers: int, slots: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (layers, 2, slots, kv_heads, head_dim)
        needed = math.prod(shape) * dtype.itemsize
        limit = _memory(device)
        if needed > limit:
            raise CapacityError(_too_large(slots, needed, limit))
        try:
            self.data = empty(shape, dtype, device)
        except (MemoryError, RuntimeError) as error:  # numpy's and torch's
            raise CapacityError(_too_large(slots, needed, limit)) from error
        self.token_bytes = self.data[:, :, 0].numel() * self.data.element_size()
        self.total = slots
        self.peak = 0
        self.reset()

    def reset(self) -> None:
        """Every slot free."""
        self._free = np.arange(self.total, dtype=np.int64)[::-1].copy()  # a stack: slots come off its end, ascending
        self.free = self.total

    def release(self) -> None:
        """Give the memory back; the pool is of no use afterwards."""
        self.data = self.data.new_empty(0)

    def take(self, count: int) -> np.ndarray:
        """``count`` free slots, int64; there must be that many."""
        if count > self.free:
            raise RuntimeError(f"{count} slots were taken with {self.free} free")
        self.free -= count
        self.peak = max(self.peak, self.total - self.free)
        return self._free[self.free : self.free + count][::-1].copy()

    def give(self, slots: np.ndarray) -> None:
        """Return slots."""
        self._free[self.free : self.free + len(slots)] = slots[::-1]
        self.free += len(slots)

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store ``[T, kv_head, head_dim]`` keys and values in these slots ``[T]``."""
        self.data[layer, 0].index_copy_(0, slots, keys)
        self.data[layer, 1].index_copy_(0, slots, values)
