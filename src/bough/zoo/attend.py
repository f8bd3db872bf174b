"""Attention for training: padded rectangles.

Query heads that share a key head are folded into rows of one matrix product, which on a CPU in bf16 is four
times as fast, backward pass included, as the fused kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bough.models import AttentionSpec


class RectangleAttend:
    """Causal attention over B right-padded rows of length L, given flat as [B * L, heads, D].

    Padding needs no mask: it comes after every token that counts.
    """

    def __init__(self, rows: int, length: int) -> None:
        self.rows, self.length = rows, length
        self.mask = torch.full((length, length), float("-inf")).triu(1)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec) -> Tensor:
        heads, kv_heads, dim = q.shape[1], k.shape[1], q.shape[2]
        rows, length = self.rows, self.length

        def per_head(x: Tensor) -> Tensor:  # [B * L, H, D] -> [B * kv heads, groups * L, D]
            return x.view(rows, length, -1, dim).transpose(1, 2).reshape(rows * kv_heads, -1, dim)

        q, k, v = per_head(q), per_head(k), per_head(v)
        mask = self.mask.to(q.dtype).tile(heads // kv_heads, 1)
        if mask.dim() == 3:  # each row has its own
            mask = mask.repeat_interleave(kv_heads, 0)
        weights = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=spec.scale).softmax(-1).to(v.dtype)
        out = torch.bmm(weights, v).view(rows, heads, length, dim)
        return out.transpose(1, 2).reshape(rows * length, heads, dim)
