"""The transformations of the logits agree with the reference library's; draws have the right noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from bough.core import Sampling
from bough.core.noise import child_key, gumbel, token_key, uniform
from bough.engine.sampler import transform

REFERENCE = {
    "temperature": (Sampling(temperature=0.7), [TemperatureLogitsWarper(0.7)]),
    "top-k": (Sampling(top_k=5), [TopKLogitsWarper(5)]),
    "top-p": (Sampling(top_p=0.8), [TopPLogitsWarper(0.8)]),
    "min-p": (Sampling(min_p=0.1), [MinPLogitsWarper(0.1)]),
    "penalty": (Sampling(repetition_penalty=1.3), [RepetitionPenaltyLogitsProcessor(1.3)]),
    "all": (
        Sampling(temperature=1.4, top_k=20, top_p=0.9, min_p=0.02, repetition_penalty=0.8),
        [
            RepetitionPenaltyLogitsProcessor(0.8),
            TemperatureLogitsWarper(1.4),
            TopKLogitsWarper(20),
            TopPLogitsWarper(0.9),
            MinPLogitsWarper(0.02),
        ],
    ),
}


@pytest.mark.parametrize("name", REFERENCE)
def test_transformations_agree_with_the_reference(name: str) -> None:
    sampling, processors = REFERENCE[name]
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(50, 64, generator=generator)
    history = torch.randint(0, 64, (50, 12), generator=generator)
    expected = LogitsProcessorList(processors)(history, logits.clone()).softmax(-1)
    actual = transform(logits, sampling, history.tolist()).softmax(-1)
    torch.testing.assert_close(actual, expected)


def test_a_bias_is_added_before_everything_is_filtered() -> None:
    logits = torch.zeros(1, 4)
    out = transform(logits, Sampling(logit_bias={2: 5.0, 3: float("-inf")}, top_k=1))
    assert out.isfinite().tolist() == [[False, False, True, False]]


def test_noise_is_uniform_and_its_rows_and_positions_are_independent() -> None:
    keys = [child_key(token_key(0, [i]), j) for i in range(20) for j in range(20)]
    noise = uniform(keys, list(range(400)), 100).numpy()
    assert stats.kstest(noise.ravel(), "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(noise[:, :-1].ravel(), noise[:, 1:].ravel())[0, 1]) < 0.02
    same_key = uniform([7] * 400, list(range(400)), 100).numpy()
    assert abs(np.corrcoef(same_key[:-1].ravel(), same_key[1:].ravel())[0, 1]) < 0.02
    assert stats.kstest(gumbel(keys, [3] * 400, 100).numpy().ravel(), "gumbel_r").pvalue > 1e-4


def test_noise_depends_on_key_position_and_token_alone() -> None:
    whole = gumbel([1, 2, 3], [10, 20, 30], 1000)
    assert torch.equal(gumbel([2], [20], 1000)[0], whole[1])
    assert torch.equal(gumbel([3], [30], 70_000)[0, :1000], whole[2])
    assert not torch.equal(gumbel([2], [21], 1000)[0], whole[1])


def test_the_tail_of_the_noise_is_fine_enough_for_rare_tokens() -> None:
    """A token of probability 1e-9 must be able to win: its noise has to exceed 20.7 now and then."""
    smallest = torch.tensor(0.5 * 2.0**-40)
    assert -torch.log(-torch.log1p(-smallest)) > 28
    assert torch.isfinite(gumbel(list(range(100)), [0] * 100, 10_000)).all()
