"""The recipe of diverse prefixes: its likelihoods, its two losses, and what it learns."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from bough.models import Decoder
from bough.tasks import TASKS
from bough.zoo import prefixes
from bough.zoo.attend import RectangleAttend
from bough.zoo.prefixes import (
    Known,
    Prefixed,
    Recipe,
    coverage_loss,
    known_logprobs,
    partition_loss,
    right_solutions,
    train_prefixes,
)
from tiny import tiny_decoder

WIDTH = 32
BATCH = [
    Known([0, 5, 9, 33, 77, 8], [[40, 50, 60, 1], [41, 1]]),
    Known([0, 5, 9], [[45, 1]]),
    Known([0, 7, 7, 9], [[3, 1], [4, 4, 1], [5, 1]]),
]


@pytest.fixture
def decoder() -> Decoder:
    return tiny_decoder(scale=1.0)


@pytest.fixture
def embed(decoder: Decoder) -> Prefixed:
    soft = torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(1))
    made = Prefixed(decoder.embed.weight.data, soft)
    decoder.embed = made  # type: ignore[assignment]
    return made


@torch.no_grad()
def one_by_one(decoder: Decoder, prompt: list[int], prefix: int, solution: list[int]) -> float:
    """The log-probability of one solution below one prefix, in one plain pass."""
    ids = [*prompt, *range(257 + 3 * prefix, 260 + 3 * prefix), *solution]
    tokens = torch.tensor(ids)
    logits = decoder.logits(decoder(tokens, torch.arange(len(ids)), RectangleAttend(1, len(ids))).last)
    start = len(ids) - len(solution)
    own = logits[start - 1 : -1].log_softmax(-1).gather(1, tokens[start:, None])
    return float(own.sum())


def test_many_solutions_at_once_are_as_likely_as_one_by_one(decoder: Decoder, embed: Prefixed) -> None:
    for known, found in zip(BATCH, known_logprobs(decoder, embed, BATCH), strict=True):
        assert found.shape == (2, len(known.solutions))
        for prefix in range(2):
            for place, solution in enumerate(known.solutions):
                want = one_by_one(decoder, known.prompt, prefix, solution)
                assert found[prefix, place].item() == pytest.approx(want, abs=0.05 * len(solution))  # bf16 products


def test_the_coverage_loss_is_the_probability_that_all_miss(decoder: Decoder, embed: Prefixed) -> None:
    loss, right = coverage_loss(decoder, embed, BATCH)
    logprobs = [own.detach().exp().sum(1).tolist() for own in known_logprobs(decoder, embed, BATCH)]
    assert loss.item() == pytest.approx(sum(math.prod(1 - p for p in own) for own in logprobs) / 3, rel=1e-4)
    torch.testing.assert_close(right, torch.tensor(logprobs), rtol=1e-4, atol=0.0)


def test_a_prefix_is_paid_for_what_the_others_miss(decoder: Decoder, embed: Prefixed) -> None:
    """The gradient by one prefix is that of its own probability, times the probability that the others are wrong."""
    coverage_loss(decoder, embed, BATCH[:1])[0].backward()
    (found,) = torch.autograd.grad(known_logprobs(decoder, embed, BATCH[:1])[0][0].logsumexp(0).exp(), embed.soft)
    others = 1 - float(known_logprobs(decoder, embed, BATCH[:1])[0][1].detach().logsumexp(0).exp())
    assert embed.soft.grad is not None
    torch.testing.assert_close(embed.soft.grad[0], -others * found[0], rtol=0.05, atol=1e-7)


def test_each_solution_teaches_the_prefix_below_which_it_is_likeliest(decoder: Decoder, embed: Prefixed) -> None:
    loss, _ = partition_loss(decoder, embed, BATCH)
    each = torch.cat(known_logprobs(decoder, embed, BATCH), 1).detach()
    chosen = (each - each.mean(1, keepdim=True)).argmax(0)
    assert 0 < chosen.sum() < each.shape[1], "one prefix gets everything"
    assert loss.item() == pytest.approx(-float(each[chosen, torch.arange(each.shape[1])].mean()), rel=1e-4)


def test_prefixes_learn_to_write_different_solutions() -> None:
    """One problem, two right solutions that the model hardly ever writes: each prefix comes to write one of them."""
    decoder = tiny_decoder(scale=6.0)
    before = decoder.embed.weight.clone()
    known = [Known([0, 5, 9], [[40], [60]])]
    recipe = Recipe(prefixes=2, tokens=2, batch=1, partition=40, steps=60, rate=0.3)
    found, log = train_prefixes(decoder, known, recipe)
    assert torch.equal(decoder.embed.weight, before) and found.shape == (2, 2, WIDTH)
    assert log[-1]["missed by all"] < 0.01 < log[0]["missed by all"]
    decoder.embed = Prefixed(decoder.embed.weight.data, found)  # type: ignore[assignment]
    first, second = known_logprobs(decoder, decoder.embed, known)[0].exp().tolist()  # type: ignore[arg-type]
    assert (first[0] > first[1]) != (second[0] > second[1])


def test_a_run_that_was_interrupted_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "EVERY", 2)
    decoder, recipe = tiny_decoder(), Recipe(prefixes=2, tokens=2, batch=1, partition=3, steps=6)
    want, log = train_prefixes(decoder, BATCH, recipe)
    calls = 0

    def failing(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return coverage_loss(*arguments)

    with monkeypatch.context() as broken:
        broken.setattr(prefixes, "coverage_loss", failing)
        with pytest.raises(KeyboardInterrupt):
            train_prefixes(decoder, BATCH, recipe, tmp_path / "state")
    found, again = train_prefixes(decoder, BATCH, recipe, tmp_path / "state")
    assert torch.equal(found, want) and again == log


def test_right_solutions_are_those_the_judge_accepts_most_frequent_first() -> None:
    problem = TASKS["arithmetic"].problem("train", 0)
    lines = problem.solution
    assert right_solutions(problem, ["nonsense", lines + "answer 1\n"]) == [lines]
    assert right_solutions(problem, [lines, "answer 0\n", lines]) == [lines]
