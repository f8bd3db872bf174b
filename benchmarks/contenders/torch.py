"""The bare matrix products of a prefill in torch: what a perfect implementation on torch would still have to do."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from workloads import Prefill, Shape

from . import Contender, Outcome

BLOCK = 512
"""Queries at a time: each block attends to the keys up to its end, so little more than half the square is done."""


class Products(Contender):
    """Every layer's linear products at ``M = prompt`` and attention's two causal products; no softmax, no norms."""

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.shape = Shape.of(json.loads((folder / "config.json").read_text()))

        def weights(outputs: int, inputs: int) -> torch.Tensor:
            return torch.randn(outputs, inputs).to(torch.bfloat16)

        self.layers = [
            [weights(outputs, inputs) for outputs, inputs in self.shape.products] for _ in range(self.shape.layers)
        ]
        self.head = weights(self.shape.vocab, self.shape.hidden)

    @staticmethod
    def version() -> str:
        return f"torch {torch.__version__}"

    @torch.inference_mode()
    def prefill(self, work: Prefill) -> Outcome:
        shape, T = self.shape, work.prompt_tokens
        inputs = {size: torch.randn(T, size).to(torch.bfloat16) for _, size in shape.products}
        group = shape.heads // shape.kv_heads
        q = torch.randn(shape.kv_heads, group, T, shape.head_dim).to(torch.bfloat16)
        k, v = torch.randn(2, shape.kv_heads, T, shape.head_dim).to(torch.bfloat16)
        started = time.perf_counter()
        for layer in self.layers:
            for weight in layer:
                F.linear(inputs[weight.shape[1]], weight)
            for start in range(0, T, BLOCK):
                end = min(start + BLOCK, T)
                queries = q[:, :, start:end].reshape(shape.kv_heads, -1, shape.head_dim)
                weights = queries @ k[:, :end].transpose(1, 2)
                weights @ v[:, :end]  # noqa: B018  (the product is the work)
        F.linear(inputs[shape.hidden][-1:], self.head)
        return Outcome(time.perf_counter() - started, T)
