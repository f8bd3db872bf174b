"""Diverse prefixes: who is read below which prefix, that nobody writes one, and what is chosen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bough.core import Answer, Branch, Capability, CheckpointError, InvalidInput, Run, UnsupportedError, run
from bough.engine import NativeBackend
from bough.models import Decoder, load_prefixes, pack_decoder, save_prefixes
from bough.search import DiversePrefixes
from executing import execute
from tiny import byte_tokenizer, tiny_decoder
from toy import EOS, SYMBOLS, ToyBackend, ToyReward

WIDTH = 32


def prefixed(k: int = 2, m: int = 3, seed: int = 0, decoder: Decoder | None = None) -> NativeBackend:
    rows = torch.randn(k, m, WIDTH, generator=torch.Generator().manual_seed(seed))
    return NativeBackend(decoder or tiny_decoder(), byte_tokenizer(), name="tiny", prefixes=rows)


# On the engine -----------------------------------------------------------------------------------------------


def test_a_prefix_is_read_as_the_embeddings_that_it_is() -> None:
    """What the engine says below a prefix is what the decoder says of the same embeddings, put in by hand."""
    lm, plain = prefixed(), tiny_decoder()
    with lm:
        for number, ids in enumerate(lm.prefixes):
            branch = lm.branch("a+b") + ids
            got = run(branch.next_token())
            rows = torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(0))[number]
            # The same tokens with three bytes' embeddings replaced.
            other = tiny_decoder()
            other.embed.weight.data[[1, 2, 3]] = rows
            with NativeBackend(other, byte_tokenizer(), name="by hand") as by_hand:
                want = run((by_hand.branch(list(lm.branch("a+b").tokens)) + [1, 2, 3]).next_token())
            np.testing.assert_allclose(got, want, atol=1e-5)
    assert plain.inputs == 257


@pytest.mark.parametrize("tied", [False, True])
def test_logits_and_checkpoint_are_those_of_the_vocabulary(tied: bool) -> None:
    decoder = tiny_decoder(tie_word_embeddings=tied)
    before = decoder.logits(torch.ones(2, WIDTH))
    from bough.models.weights import tensor_views

    views = {name: view.clone() for name, view in tensor_views(decoder).items()}
    assert decoder.add_inputs(torch.randn(5, WIDTH)) == range(257, 262)
    assert decoder.inputs == 262
    assert torch.equal(decoder.logits(torch.ones(2, WIDTH)), before)
    assert all(torch.equal(view, views[name]) for name, view in tensor_views(decoder).items())


def test_a_packed_tied_head_has_no_logits_for_what_is_only_read() -> None:
    decoder = tiny_decoder(tie_word_embeddings=True).to(torch.bfloat16)
    decoder.add_inputs(torch.randn(4, WIDTH))
    assert pack_decoder(decoder, "bf16").logits(torch.ones(1, WIDTH, dtype=torch.bfloat16)).shape == (1, 257)


def test_prefixes_cannot_be_drawn_scored_or_biased_but_read() -> None:
    with prefixed() as lm:
        first = lm.prefixes[0][0]
        assert first == lm.vocab_size == 257 and lm.prefixes[-1][-1] == 262
        assert (lm.branch([first, *lm.encode("a")]) + [first + 1]).text == "a"
        for work in (
            lambda: run(lm.branch("a").score([[first]])),
            lambda: run(lm.branch("a").sample(logit_bias={first: 1.0})),
            lambda: run(lm.branch("a").sample(stop=first)),
            lambda: lm.branch("a") + [263],
        ):
            with pytest.raises(InvalidInput, match="outside"):
                work()
        (leaf,) = run((lm.branch("a") + lm.prefixes[0]).sample(max_tokens=8, repetition_penalty=1.3))
        assert leaf.completion == leaf.appended_text


def test_embeddings_of_another_width_are_refused() -> None:
    for rows in (torch.randn(2, WIDTH + 1), torch.full((2, WIDTH), torch.nan)):
        with pytest.raises(InvalidInput, match="embeddings"):
            tiny_decoder().add_inputs(rows)


def test_prefixes_are_kept_in_a_small_file(tmp_path: Path) -> None:
    rows = torch.randn(4, 3, WIDTH)
    save_prefixes(rows, tmp_path / "p.safetensors")
    assert torch.equal(load_prefixes(tmp_path / "p.safetensors"), rows)
    save_prefixes(rows[0], tmp_path / "flat.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    for name in ("flat", "bad", "missing"):
        with pytest.raises(CheckpointError, match=name):
            load_prefixes(tmp_path / f"{name}.safetensors")


# The strategy ------------------------------------------------------------------------------------------------

PREFIXES = ((len(SYMBOLS),), (len(SYMBOLS) + 1,))


def by_prefix(tokens: tuple[int, ...]) -> np.ndarray:
    """Below the first prefix the model says a, below the second b, and then ends the line and the text."""
    law = np.zeros(len(SYMBOLS))
    letter = {PREFIXES[0][0]: "a", PREFIXES[1][0]: "b"}.get(tokens[-1])
    law[SYMBOLS.index(letter) if letter else SYMBOLS.index("\n") if tokens[-1] in (3, 4) else EOS] = 1
    return law


def solve(strategy: DiversePrefixes, **options: object) -> Answer:
    backend = ToyBackend(by_prefix)
    backend.prefixes = PREFIXES
    backend.capabilities |= {Capability.PREFIXES}
    return run(execute(strategy, backend, "c?", **options))[0]  # type: ignore[arg-type]


class Seen(ToyReward):
    """Prefers b, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    async def __call__(self, branches: list[Branch], run: Run) -> list[float]:  # type: ignore[override]
        self.texts += [branch.completion for branch in branches]
        return [float("b" in branch.completion) for branch in branches]


def test_solutions_are_drawn_below_each_prefix_in_turn() -> None:
    reward = Seen()
    answer = solve(DiversePrefixes(n=5, choose="reward"), reward=reward)
    assert sorted(reward.texts) == ["a\n"] * 3 + ["b\n"] * 2
    assert answer.text == "b\n" and answer.score == 1


def test_the_vote_counts_all_prefixes() -> None:
    answer = solve(DiversePrefixes(n=5))
    assert answer.text == "a\n" and answer.score == 3 / 5
    assert answer.ledger.tokens == 5 * 3, "reading a prefix is not generating it"


def test_a_model_without_prefixes_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="prefixes.*toy"):
        run(execute(DiversePrefixes(), ToyBackend()))


def test_a_choice_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidInput, match="luck"):
        DiversePrefixes(choose="luck")  # type: ignore[arg-type]
