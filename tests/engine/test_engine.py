"""The engine computes what the plain model computes, draws from it, and shares everything that can be shared."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import torch

import bough.core as core
from bough.core import Branch, Sampling
from bough.models import Decoder, dense_attend
from tiny import EOS, tiny_decoder, tiny_lm

PROMPT = "the prompt, long enough to be cut into chunks"
# Each of these executes the same work in another way; none may change a single token.
WAYS = {
    "plain": {},
    "chunked prefill": {"max_pass": 7},
    "everything shared": {"share_from": 1},
    "nothing shared": {"share_from": 1 << 60},
    "two rows at a time": {"max_batch": 2},
    "memory for little more than one row": {"kv_tokens": 90},
}


def dense_logprobs(decoder: Decoder, tokens: list[int]) -> torch.Tensor:
    """``[T, V]`` by one plain forward pass, without an engine."""
    ids = torch.tensor(tokens)
    with torch.inference_mode():
        hidden = decoder(ids, torch.arange(len(ids)), dense_attend([len(ids)])).last
        return decoder.logits(hidden).log_softmax(-1)


def drawn_logprobs(decoder: Decoder, branch: Branch) -> np.ndarray:
    """Log-probabilities of a leaf's own tokens by one plain forward pass."""
    tokens = branch.tokens
    start = len(tokens) - len(branch.appended)
    return dense_logprobs(decoder, tokens)[range(start - 1, len(tokens) - 1), list(branch.appended)].numpy()


async def grow(root: Branch) -> list[Branch]:
    """A small search: two generations of children, some branches longer than others."""
    first = await root.sample(4, max_tokens=9)
    texts = [child + " and" for child in first if not child.finished]
    nested = await asyncio.gather(*[child.sample(3, max_tokens=5 + i) for i, child in enumerate(texts)])
    return [*first, *(leaf for leaves in nested for leaf in leaves)]


def test_logits_are_those_of_a_plain_forward_pass() -> None:
    with tiny_lm() as lm:
        root = lm.branch(PROMPT)
        logits = torch.from_numpy(lm.logits(root)).log_softmax(-1)
        torch.testing.assert_close(logits, dense_logprobs(lm.decoder, root.tokens), atol=1e-4, rtol=0)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_executing_gives_the_same_tokens_and_log_probabilities(way: str) -> None:
    decoder = tiny_decoder()
    with tiny_lm(decoder=decoder) as plain, tiny_lm(decoder=decoder, **WAYS[way]) as lm:
        expected = core.run(grow(plain.branch(PROMPT, seed=5)))
        leaves = core.run(grow(lm.branch(PROMPT, seed=5)))
        assert [leaf.tokens for leaf in leaves] == [leaf.tokens for leaf in expected]
        for leaf in leaves:
            np.testing.assert_allclose(leaf.logprobs, drawn_logprobs(decoder, leaf), atol=1e-4)
        if way.startswith("memory"):
            assert lm.engine.stats.preempted > 0, "the pool was meant to be too small"


FAMILIES = {
    "sliding window": {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 8},
    "windows and soft-caps": {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "head_dim": 8,
        "sliding_window": 8,
        "query_pre_attn_scalar": 8,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 30.0,
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
    },
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("share_from", [1, 1 << 60])
def test_windows_and_soft_caps_hold_across_shared_prefixes(family: str, share_from: int) -> None:
    decoder = tiny_decoder(**FAMILIES[family])
    with tiny_lm(decoder=decoder, share_from=share_from, max_pass=16) as lm:
        for leaf in core.run(grow(lm.branch(PROMPT, seed=2))):
            np.testing.assert_allclose(leaf.logprobs, drawn_logprobs(decoder, leaf), atol=1e-4)


def test_a_branch_gives_the_same_tokens_alone_in_company_after_eviction_and_after_a_restart() -> None:
    decoder = tiny_decoder()
    with tiny_lm(decoder=decoder, kv_tokens=4000) as lm:
        root = lm.branch(PROMPT, seed=11)
        alone = lm.generate(root, max_tokens=30)[0].tokens

        async def company() -> Branch:
            others = [lm.branch(f"other prompt {i}", seed=i) for i in range(63)]
            leaves = await asyncio.gather(
                root.sample(1, max_tokens=30), *[o.sample(1, max_tokens=30) for o in others]
            )
            return leaves[0][0]

        assert core.run(company()).tokens == alone
        lm.engine.settle()
        lm.engine.tree.evict(lm.engine.pool.total)
        assert lm.engine.tree.cached == 0
        assert lm.generate(root, max_tokens=30)[0].tokens == alone
    with tiny_lm(decoder=decoder) as restarted:
        assert restarted.generate(restarted.branch(PROMPT, seed=11), max_tokens=30)[0].tokens == alone
        assert restarted.generate(restarted.branch(PROMPT, seed=12), max_tokens=30)[0].tokens != alone


def test_children_are_functions_of_their_index() -> None:
    with tiny_lm() as lm:
        root = lm.branch(PROMPT)
        four = lm.generate(root, n=4, max_tokens=12)
        later = lm.generate(root, n=2, first=2, max_tokens=12)
        assert [b.tokens for b in later] == [b.tokens for b in four[2:]]
        # A branch that stands twice in a sequence gets two different children: resampled particles part ways.
        twice = core.run(core.Branches([root, root]).sample(max_tokens=12))
        assert [b.tokens for b in twice] == [b.tokens for b in four[:2]]
        assert len({tuple(b.tokens) for b in four}) == 4


def test_draws_follow_the_models_distribution() -> None:
    with tiny_lm() as lm:
        root = lm.branch("x", seed=1)
        exact = np.exp(lm.next_token(root))
        draws = np.array([b.appended[0] for b in lm.generate(root, n=20_000, max_tokens=1)])
        observed = np.bincount(draws, minlength=len(exact))
        expected = exact * len(draws)
        large = expected >= 10
        chi_square = ((observed - expected)[large] ** 2 / expected[large]).sum()
        # Mean k - 1, standard deviation sqrt(2 (k - 1)): five of them away is one chance in a million.
        assert abs(chi_square - large.sum()) < 5 * np.sqrt(2 * large.sum())


def test_the_occupancy_counts_every_drawn_token_and_every_pass() -> None:
    with tiny_lm(max_batch=8) as lm:
        before = lm.occupancy()
        leaves = lm.generate(lm.branch(PROMPT, seed=5), n=6, max_tokens=9)
        lm.engine.settle()
        now = lm.occupancy()
        tokens = [len(leaf.appended) for leaf in leaves]
        # The prompt's pass draws each row's first token, so there are as many passes as the longest row has tokens.
        assert now.passes - before.passes == max(tokens)
        assert now.drawn - before.drawn == sum(tokens)
        assert now.fill(before) == sum(tokens) / (8 * max(tokens))
        assert now.fill(now) == 0


def test_scoring_agrees_with_sampling_and_takes_one_pass() -> None:
    with tiny_lm() as lm:
        root = lm.branch(PROMPT, seed=3)
        leaves = lm.generate(root, n=64, max_tokens=6)
        passes = lm.engine.stats.passes
        scores = lm.score(root, [leaf.appended for leaf in leaves])
        assert lm.engine.stats.passes == passes + 1
        for leaf, score in zip(leaves, scores, strict=True):
            np.testing.assert_allclose(score, leaf.logprobs, atol=1e-4)
        np.testing.assert_allclose(lm.score(root, ["a"])[0][0], lm.next_token(root)[ord("a") - 33], atol=1e-4)


def test_other_tokens_are_scored_at_every_place_of_a_continuation() -> None:
    with tiny_lm() as lm:
        root, others = lm.branch(PROMPT, seed=3), [7, 9]
        leaves = lm.generate(root, n=2, max_tokens=4)

        async def compared() -> list[np.ndarray]:
            return await lm.submit_score(root, [leaf.appended for leaf in leaves], others)

        for leaf, found in zip(leaves, core.run(compared()), strict=True):
            assert found.shape == (len(leaf.appended), 3)
            np.testing.assert_allclose(found[:, 0], leaf.logprobs, atol=1e-4)
            for place, row in enumerate(found):
                before = root + leaf.appended[:place] if place else root
                np.testing.assert_allclose(row[1:], lm.next_token(before)[others], atol=1e-4)


def test_next_token_is_the_whole_distribution() -> None:
    with tiny_lm() as lm:
        root = lm.branch(PROMPT)
        distribution = lm.next_token(root)
        assert distribution.shape == (257,)
        np.testing.assert_allclose(np.exp(distribution).sum(), 1, atol=1e-5)
        np.testing.assert_allclose(distribution, dense_logprobs(lm.decoder, root.tokens)[-1], atol=1e-4)


def test_the_distribution_that_tokens_were_drawn_from_is_recorded() -> None:
    with tiny_lm() as lm:
        root = lm.branch(PROMPT, seed=4)
        [leaf] = lm.generate(root, max_tokens=8, temperature=0.5)
        model = dense_logprobs(lm.decoder, leaf.tokens)
        start = root.length
        sharpened = (model / 0.5).log_softmax(-1)
        expected = sharpened[range(start - 1, leaf.length - 1), list(leaf.appended)]
        np.testing.assert_allclose(leaf.sample_logprobs, expected, atol=1e-4)
        np.testing.assert_allclose(leaf.logprobs, drawn_logprobs(lm.decoder, leaf), atol=1e-4)
        assert leaf.sample_logprob == pytest.approx(float(expected.sum()), abs=1e-3)
        [greedy] = lm.generate(root, max_tokens=8, temperature=0)
        assert list(greedy.appended) == dense_logprobs(lm.decoder, greedy.tokens).argmax(-1)[start - 1 : -1].tolist()
        assert (greedy.sample_logprobs == 0).all()


def test_memory_holds_each_unique_token_once() -> None:
    with tiny_lm() as lm:
        root = lm.branch(PROMPT * 4, seed=3)
        leaves = lm.generate(root, n=32, max_tokens=16, stop=core.Stop(eos=False))
        # The last token of a leaf was never computed: nothing needs its keys yet.
        unique = root.length + sum(len(leaf.appended) - 1 for leaf in leaves)
        assert lm.engine.pool.peak <= unique
        lm.engine.settle()
        assert lm.engine.pool.free + lm.engine.tree.cached == lm.engine.pool.total


def test_a_prefix_is_computed_once_even_by_requests_that_arrive_together() -> None:
    with tiny_lm() as lm:
        prompts = [lm.branch(PROMPT * 3 + tail, seed=1) for tail in "abcdefgh"]

        async def all_at_once() -> None:
            await asyncio.gather(*[prompt.sample(1, max_tokens=1) for prompt in prompts])

        core.run(all_at_once())
        assert lm.engine.stats.tokens == prompts[0].length - 1 + len(prompts)


def test_a_cut_prompt_and_its_cache_are_charged_to_the_run() -> None:
    with tiny_lm() as lm:
        lm.generate(lm.branch(PROMPT), max_tokens=1)
        run = core.Run()
        core.run(lm.branch(PROMPT).with_run(run).sample(2, max_tokens=5, stop=core.Stop(eos=False)))
        assert (run.ledger.tokens, run.ledger.passes) == (10, 5)
        assert run.ledger.cached_tokens == len(PROMPT) - 1
        assert run.ledger.computed_tokens == 1 + 2 * 4


def test_streaming_yields_the_tokens_of_sampling_one_by_one() -> None:
    async def stream(root: Branch) -> list[Branch]:
        return [node async for node in root.stream(max_tokens=10)]

    with tiny_lm() as lm:
        root = lm.branch(PROMPT, seed=9)
        nodes = core.run(stream(root))
        [leaf] = lm.generate(root, max_tokens=10)
        assert [node.appended[0] for node in nodes] == list(leaf.appended)
        assert nodes[-1].tokens == leaf.tokens and nodes[-1].finish == leaf.finish


def test_results_arrive_as_they_complete() -> None:
    async def lengths(root: Branch) -> list[int]:
        wanted = [root + "a" * i for i in range(1, 4)]
        done = []
        tasks = [asyncio.create_task(b.sample(1, max_tokens=m)) for b, m in zip(wanted, (30, 3, 12), strict=True)]
        for task in asyncio.as_completed(tasks):
            done.append(len((await task)[0].appended))
        return done

    with tiny_lm() as lm:
        assert core.run(lengths(lm.branch(PROMPT, seed=1))) == [3, 12, 30]

        async def ordered() -> list[Branch]:
            return [b async for b in lm.branch(PROMPT).sample_as_completed(5, max_tokens=4)]

        expected = {b.key for b in lm.generate(lm.branch(PROMPT), n=5, max_tokens=4)}
        assert {b.key for b in core.run(ordered())} == expected


def test_greedy_sampling_ignores_the_seed() -> None:
    with tiny_lm() as lm:
        options = {"sampling": Sampling(temperature=0), "max_tokens": 10}
        a, b = (lm.generate(lm.branch(PROMPT, seed=seed), **options)[0] for seed in (0, 1))
        assert a.appended == b.appended


def test_eos_ends_a_branch_for_good() -> None:
    with tiny_lm() as lm:
        root = lm.branch(PROMPT)
        [leaf] = lm.generate(root, logit_bias={EOS: 100.0})
        assert leaf.finish == "eos" and leaf.finished and leaf.appended == (EOS,)
        with pytest.raises(core.InvalidInput, match="end-of-text"):
            lm.generate(leaf)
        [on] = lm.generate(root, logit_bias={EOS: 100.0}, stop=core.Stop(eos=False), max_tokens=3)
        assert on.finish == "length" and len(on.appended) == 3
