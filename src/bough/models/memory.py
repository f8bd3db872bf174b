"""Memory for what is large and stays."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

_ALIGNMENT = 64  # bytes: what one instruction reads


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An unset tensor; on a CPU in numpy's memory, aligned to 64 bytes.

    numpy asks the system for large pages: fewer to get at first use, and fewer addresses to translate at every use.
    """
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    buffer = np.empty(size + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return torch.from_numpy(buffer[start : start + size]).view(dtype).view(shape)
