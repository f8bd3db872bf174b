"""Hidden states, and steering: what the engine computes against the decoder's own forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from bough.core import Branch, InvalidInput, Steering, run
from bough.engine import NativeBackend
from bough.models import dense_attend
from tiny import tiny_decoder

SIZES = {"vocab_size": 301, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
PROMPT = [5, 17, 230, 8, 8, 91, 40, 3, 77, 12]


@pytest.fixture(params=["torch", "compiled"])
def lm(request: pytest.FixtureRequest) -> Iterator[NativeBackend]:
    compiled = request.param == "compiled"
    decoder = tiny_decoder(**SIZES).bfloat16()
    with NativeBackend(decoder if compiled else decoder.float(), compiled=compiled or None, max_pass=16) as made:
        yield made


def reference(steerings: list[Steering | None], tokens: list[int]) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    """Logits and residual streams at every position, where each token has its steering."""
    decoder = tiny_decoder(**SIZES).bfloat16().float()

    def edit(layer: int, x: torch.Tensor) -> torch.Tensor:
        rows = []
        for row, steering in zip(x, steerings, strict=True):
            vector = None if steering is None else steering.vectors.get(layer)
            after = row if vector is None else row + torch.tensor(vector)
            if vector is not None and steering is not None and steering.rescale:
                after = after * row.norm() / after.norm()
            rows.append(after)
        return torch.stack(rows)

    with torch.inference_mode():
        hidden = decoder(
            torch.tensor(tokens), torch.arange(len(tokens)), dense_attend([len(tokens)]), capture=[0, 1, 2], edit=edit
        )
        return decoder.logits(hidden.last), hidden.captured


def close(found: np.ndarray, exact: torch.Tensor, lm: NativeBackend) -> bool:
    """To rounding: of float32, or of bfloat16, which is hundredths of the values' spread."""
    error = float(np.sqrt(np.mean((found - exact.numpy()) ** 2)) / exact.std())
    return error < (0.06 if lm.decoder.embed.weight.dtype == torch.bfloat16 else 1e-4)


def vectors(seed: int, *layers: int, scale: float = 0.5) -> dict[int, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {layer: scale * generator.normal(size=64).astype(np.float32) for layer in layers}


def logprobs(branch: Branch) -> np.ndarray:
    return run(branch.next_token())


def test_hidden_states_are_those_of_the_forward_pass(lm: NativeBackend) -> None:
    _, captured = reference([None] * len(PROMPT), PROMPT)
    root = lm.branch(PROMPT[:6])
    branches = [root, root + PROMPT[6:8], root + PROMPT[6:]]
    for layer in (0, 1, 2):

        async def ask(layer: int = layer) -> np.ndarray:
            return await lm.submit_hidden(branches, layer)

        for found, end in zip(run(ask()), (6, 8, 10), strict=True):
            assert found.shape == (64,) and found.dtype == np.float32
            assert close(found, captured[layer][end - 1], lm)
    assert np.array_equal(run(root.hidden()), run(root.hidden(2)))


def test_hidden_states_come_with_whatever_else_the_pass_is_for(lm: NativeBackend) -> None:
    _, captured = reference([None] * len(PROMPT), PROMPT)

    async def all_at_once() -> list[Any]:
        import asyncio

        root = lm.branch(PROMPT)
        return await asyncio.gather(
            root.sample(5, max_tokens=7), root.hidden(0), root.next_token(), root.hidden(1), root.score([[1, 2]])
        )

    leaves, first, _, second, _ = run(all_at_once())
    assert len(leaves) == 5
    assert close(first, captured[0][-1], lm) and close(second, captured[1][-1], lm)


@pytest.mark.parametrize("rescale", [False, True])
def test_a_steered_prompt_is_read_under_its_steering(lm: NativeBackend, rescale: bool) -> None:
    steering = Steering(vectors(1, 0, 2), rescale=rescale)
    plain, _ = reference([None] * 10, PROMPT)
    steered, captured = reference([steering] * 10, PROMPT)
    # One after the other and again: what is cached of one must not be read by the other.
    for _ in range(2):
        assert close(logprobs(lm.branch(PROMPT)), plain[-1].log_softmax(-1), lm)
        assert close(logprobs(lm.branch(PROMPT, steering=steering)), steered[-1].log_softmax(-1), lm)
    assert not close(steered[-1].log_softmax(-1).numpy(), plain[-1].log_softmax(-1), lm)
    assert close(run(lm.branch(PROMPT, steering=steering).hidden(1)), captured[1][-1], lm)


def test_below_a_branch_other_steerings_begin_and_end(lm: NativeBackend) -> None:
    one, two = Steering(vectors(1, 1)), Steering(vectors(2, 0, 1, 2))
    branch = ((lm.branch(PROMPT[:4]).steered(one) + PROMPT[4:7]).steered(two) + PROMPT[7:8]).steered(None)
    branch = branch + PROMPT[8:]
    assert branch.tokens == PROMPT and branch.steering is None
    exact, _ = reference([None] * 4 + [one] * 3 + [two] + [None] * 2, PROMPT)
    assert close(logprobs(branch), exact[-1].log_softmax(-1), lm)
    # The first four tokens are cached for the plain prompt as well.
    root = lm.branch(PROMPT)
    plain, _ = reference([None] * 10, PROMPT)
    assert close(logprobs(root), plain[-1].log_softmax(-1), lm)


def test_what_is_drawn_and_scored_below_is_steered_too(lm: NativeBackend) -> None:
    steering = Steering(vectors(3, 0, 1, scale=1.0))
    root = lm.branch(PROMPT, steering=steering)
    leaves = lm.generate(root, 3, max_tokens=6)
    for leaf in leaves:
        assert all(0 <= token < 301 for token in leaf.tokens)
        exact, _ = reference([steering] * leaf.length, leaf.tokens)
        expected = exact[9:-1].log_softmax(-1).gather(1, torch.tensor(leaf.appended)[:, None])[:, 0]
        assert close(leaf.logprobs, expected, lm)
        assert close(lm.score(root, [leaf.appended])[0], expected, lm)
        after = exact[-1].log_softmax(-1)
        assert close(logprobs(leaf), after, lm)
    assert {leaf.appended for leaf in lm.generate(lm.branch(PROMPT), 3, max_tokens=6)} != {
        leaf.appended for leaf in leaves
    }


def test_steered_and_plain_rows_share_their_passes(lm: NativeBackend) -> None:
    steering = Steering(vectors(4, 1))
    roots = [lm.branch(PROMPT, steering=s) for s in (None, steering, steering * 2.0, None)]
    alone = [lm.generate(root, 2, max_tokens=5) for root in roots]

    async def together() -> list[Any]:
        import asyncio

        return await asyncio.gather(*(root.sample(2, max_tokens=5) for root in roots))

    for apart, shared in zip(alone, run(together()), strict=True):
        assert [leaf.tokens for leaf in apart] == [leaf.tokens for leaf in shared]
    lm.engine.settle()
    assert lm.engine.pool.free + lm.engine.tree.cached == lm.engine.pool.total


def test_a_steering_that_does_not_fit_is_refused(lm: NativeBackend) -> None:
    with pytest.raises(InvalidInput, match="layer 3: the model has layers 0 to 2"):
        lm.generate(lm.branch(PROMPT, steering=Steering(vectors(0, 3))))
    with pytest.raises(InvalidInput, match="5 entries.*64"):
        lm.generate(lm.branch(PROMPT, steering=Steering({0: np.ones(5)})))
    with pytest.raises(InvalidInput, match="at least"):
        Steering({})
    with pytest.raises(InvalidInput, match="not finite"):
        Steering({0: np.full(64, np.nan)})
    with pytest.raises(InvalidInput, match="shapes"):
        Steering({0: np.ones(5), 1: np.ones(6)})
    for layer in (3, -4):
        with pytest.raises(InvalidInput, match="layers 0 to 2"):
            run(lm.branch(PROMPT).hidden(layer))


def test_steerings_are_values() -> None:
    one, same = Steering(vectors(1, 0)), Steering(vectors(1, 0))
    assert one == same and hash(one) == hash(same)
    assert one != Steering(vectors(1, 0), rescale=True) and one != one * 2
    named = Steering(vectors(1, 0), name="deeper")
    assert named == one and named.key != one.key and named.key == Steering(vectors(2, 0), name="deeper").key
    assert (named * 2).key == (Steering(vectors(2, 0), name="deeper") * 2).key != named.key
    np.testing.assert_allclose((one * 2).vectors[0], 2 * one.vectors[0])
    with pytest.raises(ValueError, match="read-only"):
        one.vectors[0][0] = 1


def test_only_the_steerings_used_last_are_kept(lm: NativeBackend) -> None:
    """A server meets a new steering with every request; what they need must not add up."""
    lm.engine.steerings._most = 4
    first = Steering(vectors(0, 1))
    exact, _ = reference([first] * 10, PROMPT)
    for seed in range(12):
        lm.generate(lm.branch(PROMPT, steering=Steering(vectors(seed, 1))), 1, max_tokens=3)
        lm.generate(lm.branch(PROMPT, steering=first), 1, max_tokens=3)
    assert len(lm.engine.steerings.known) == 4
    assert len(getattr(lm.engine.runner, "_steering_records", ())) <= 5
    assert lm.engine.steerings.mark(first) >> 32 == 1, "what is in use keeps its number"
    assert close(logprobs(lm.branch(PROMPT, steering=first)), exact[-1].log_softmax(-1), lm)
    again = Steering(vectors(1, 1))  # forgotten meanwhile: another number, the same steering
    exact, _ = reference([again] * 10, PROMPT)
    assert close(logprobs(lm.branch(PROMPT, steering=again)), exact[-1].log_softmax(-1), lm)
