"""The engine's pages, chunks and shared prefixes give what a plain pass gives, for every family of checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import bough.core as core
from bough.core import Branch
from bough.engine import NativeBackend
from bough.models import dense_attend, load_decoder
from checkpoints import FAMILIES, make_checkpoint

PROMPT = [7 * i % 150 for i in range(24)]


async def grow(root: Branch) -> list[Branch]:
    first = await root.sample(3, max_tokens=12)
    return [leaf for leaves in [await child.sample(3, max_tokens=40) for child in first] for leaf in leaves]


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_in_a_tree_are_those_of_a_plain_pass(family: str, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, family)
    decoder = load_decoder(tmp_path, dtype=torch.float32, context=80)
    with NativeBackend(decoder, share_from=1, max_pass=10, kv_tokens=150) as lm, torch.inference_mode():
        leaves = core.run(grow(lm.branch(PROMPT, seed=1)))
        assert max(leaf.length for leaf in leaves) > 70
        for leaf in leaves:
            tokens = torch.tensor(leaf.tokens)
            hidden = decoder(tokens, torch.arange(len(tokens)), dense_attend([len(tokens)])).last
            plain = decoder.logits(hidden).log_softmax(-1).numpy()
            start = leaf.length - len(leaf.appended)
            expected = plain[range(start - 1, leaf.length - 1), list(leaf.appended)]
            np.testing.assert_allclose(leaf.logprobs, expected, atol=2e-4)
