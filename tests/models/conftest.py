"""Shared by the tests of models: quiet transformers, a KV cache to test with, token ids."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import Tensor

from bough.models import AttentionSpec, Decoder

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


class CachedAttend:
    """Attention of one sequence that arrives in pieces, over keys and values kept from earlier pieces."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec) -> Tensor:
        if layer in self.kept:
            k, v = (torch.cat(pair) for pair in zip(self.kept[layer], (k, v), strict=True))
        self.kept[layer] = k, v
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        scores = torch.einsum("thd,nhd->htn", q, k) * spec.scale
        if spec.softcap is not None:
            scores = spec.softcap * (scores / spec.softcap).tanh()
        at = torch.arange(len(k))
        distance = at[-len(q) :, None] - at
        hidden = (distance < 0) | (distance >= (spec.window or len(k)))
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        return torch.einsum("htn,nhd->thd", weights, v)


class Stream:
    """Feeds a decoder one sequence in pieces; each call gives the piece's logits ``[T, V]``."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self.attend, self.length = decoder, CachedAttend(), 0

    def __call__(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(self.length, self.length + len(tokens))
        self.length += len(tokens)
        return self.decoder.logits(self.decoder(tokens, positions, self.attend).last)


@pytest.fixture
def stream() -> type[Stream]:
    return Stream


@pytest.fixture
def tokens() -> Tensor:
    """80 token ids below 160: longer than every window (16) and pre-training length (32) of the families."""
    return torch.randint(0, 160, (80,), generator=torch.Generator().manual_seed(1))
