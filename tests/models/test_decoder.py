"""The decoder's arguments: attention, layer choice, capture; gradients; keys that move."""

from __future__ import annotations

import pytest
import torch

from bough.core.errors import InvalidInput
from bough.models import AttentionSpec, Decoder, ModelConfig, dense_attend, load_decoder
from checkpoints import FAMILIES, make_checkpoint

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "initializer_range": 0.3,
}


@pytest.fixture
def decoder() -> Decoder:
    return Decoder.from_config(LLAMA, seed=0)


def run(decoder, tokens, **arguments):
    return decoder(tokens, torch.arange(len(tokens)), dense_attend([len(tokens)]), **arguments)


def test_fresh_weights_depend_on_the_seed_only():
    first, again, other = (Decoder.from_config(LLAMA, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embed.weight"], other["embed.weight"])
    assert first["layers.0.mlp.down.weight"].std() == pytest.approx(0.3, rel=0.05)


@torch.inference_mode()
def test_captured_layers_are_the_hidden_states_of_transformers(tmp_path, tokens):
    reference = make_checkpoint(tmp_path, "gemma2", num_hidden_layers=4)
    expected = reference(tokens[None], output_hidden_states=True).hidden_states  # [0]: embeddings, [-1]: normed
    hidden = run(load_decoder(tmp_path), tokens, capture=[0, 2])
    assert set(hidden.captured) == {0, 2}
    for layer in (0, 2):
        torch.testing.assert_close(hidden.captured[layer], expected[layer + 1][0], rtol=0, atol=1e-4)
    torch.testing.assert_close(hidden.last, expected[-1][0], rtol=0, atol=1e-4)


@torch.inference_mode()
def test_layers_run_as_chosen_and_in_order(decoder, tokens):
    seen: list[int] = []
    dense = dense_attend([80])

    def attend(layer, q, k, v, spec):
        seen.append(layer)
        return dense(layer, q, k, v, spec)

    positions = torch.arange(80)
    hidden = decoder(tokens, positions, attend, layers=[2, 0, 3], capture=[0, 3])
    assert seen == [2, 0, 3]
    # The same by hand: an early exit after [2, 0], then a capture is the final norm's input.
    exit_ = decoder(tokens, positions, dense, layers=[2, 0])
    assert torch.equal(decoder.norm(hidden.captured[0]), exit_.last)
    assert torch.equal(decoder.norm(hidden.captured[3]), hidden.last)
    assert not torch.allclose(hidden.last, run(decoder, tokens).last)
    assert torch.equal(decoder(tokens, positions, dense, layers=range(4)).last, run(decoder, tokens).last)


@torch.inference_mode()
def test_no_layers_leave_the_embedding(decoder, tokens):
    assert torch.equal(run(decoder, tokens, layers=[]).last, decoder.norm(decoder.embed(tokens)))


@torch.inference_mode()
def test_attention_gets_what_it_is_promised_and_decides_what_comes_back(tokens):
    settings = {**LLAMA, "head_dim": 24, "model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    decoder = Decoder.from_config({**settings, "sliding_window": 5})
    calls = []

    def attend(layer, q, k, v, spec):
        calls.append((layer, tuple(q.shape), tuple(k.shape), tuple(v.shape), spec))
        return torch.zeros_like(q)

    blind = decoder(tokens, torch.arange(80), attend)
    spec = AttentionSpec(scale=24**-0.5, window=5, softcap=None)
    assert calls == [(layer, (80, 4, 24), (80, 2, 24), (80, 2, 24), spec) for layer in range(4)]
    # With nothing attended to, a token's output depends on that token alone.
    alone = decoder(tokens[7:8], torch.tensor([0]), attend)
    torch.testing.assert_close(blind.last[7:8], alone.last)


@pytest.mark.parametrize("family", ["llama3", "gemma2", "olmo2", "qwen3-moe", "granite"])
def test_gradients_equal(tmp_path, tokens, family):
    reference = make_checkpoint(tmp_path, family)
    decoder = load_decoder(tmp_path, context=96).requires_grad_(True)
    theirs = reference(tokens[None, :40]).logits[0]
    ours = decoder.logits(run(decoder, tokens[:40]).last)
    for logits in (theirs, ours):
        torch.nn.functional.cross_entropy(logits, tokens[1:41]).backward()
    expected = reference.get_input_embeddings().weight.grad
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(decoder.embed.weight.grad, expected, rtol=0, atol=1e-5)
    assert all(parameter.grad is not None for parameter in decoder.parameters())


@torch.inference_mode()
def test_dense_attention_never_looks_at_another_sequence(decoder, tokens):
    positions = torch.cat([torch.arange(30), torch.arange(50)])
    changed = torch.cat([tokens[:30].flip(0), tokens[30:]])
    attend = dense_attend([30, 50])
    before, after = decoder(tokens, positions, attend).last, decoder(changed, positions, attend).last
    assert torch.equal(before[30:], after[30:])
    assert not torch.equal(before[:30], after[:30])


def test_dense_attention_checks_its_lengths(decoder, tokens):
    with pytest.raises(InvalidInput, match="80 tokens, but lengths add up to 79"):
        decoder(tokens, torch.arange(80), dense_attend([40, 39]))
    with pytest.raises(InvalidInput, match="positive"):
        dense_attend([4, 0])


@pytest.mark.parametrize(
    ("token", "position", "message"),
    [
        (160, 0, "token id 160 is outside the vocabulary, 0 .. 159"),
        (-1, 0, "token id -1 is outside"),
        (0, 96, "position 96 is outside the context of 96 tokens"),
        (0, -1, "position -1 is outside"),
    ],
)
def test_indices_out_of_range_are_named(decoder, token, position, message):
    with pytest.raises(InvalidInput, match=message):
        decoder(torch.tensor([1, token]), torch.tensor([0, position]), dense_attend([2]))


def test_layers_out_of_range_are_named(decoder, tokens):
    with pytest.raises(InvalidInput, match="layer 4 is outside 0 .. 3"):
        run(decoder, tokens, layers=[0, 4])
    with pytest.raises(InvalidInput, match="layer 2 is to be captured, but the pass does not run it"):
        run(decoder, tokens, layers=[0, 1], capture=[2])


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_cached_keys_can_be_read_at_another_offset(tmp_path, tokens, family):
    make_checkpoint(tmp_path, family)
    decoder = load_decoder(tmp_path, context=80)
    ropes = {spec.rope: layer for layer, spec in enumerate(decoder.config.layers)}  # one layer of each kind
    steps = torch.randint(-9, 40, (40,), generator=torch.Generator().manual_seed(2)).clamp(min=-9)
    depths = torch.arange(9, 49).clamp(max=40)
    for layer in ropes.values():
        for delta in (0, 7, -9, steps):
            keys = []

            def keep(index, q, k, v, spec, keys=keys):
                keys.append(k)
                return torch.zeros_like(q)

            # Run this layer alone, so that its keys depend on token and position only.
            decoder(tokens[:40], depths, keep, layers=[layer])
            decoder(tokens[:40], (depths + delta).clamp(max=79), keep, layers=[layer])
            moved = decoder.rotate_keys(keys[0], (depths + delta).clamp(max=79) - depths, layer)
            torch.testing.assert_close(moved, keys[1], rtol=0, atol=1e-5)
            if isinstance(delta, int):
                torch.testing.assert_close(decoder.rotate_keys(keys[0], delta, layer), keys[1], rtol=0, atol=1e-5)
                rotated = decoder.config.layers[layer].rope is not None
                assert torch.equal(keys[0], keys[1]) == (not rotated or delta == 0)


def test_few_torch_calls_per_layer(tokens):
    """Small models are bound by the number of calls; the attention itself is not counted."""
    with torch.inference_mode():
        two, six = (Decoder.from_config({**LLAMA, "num_hidden_layers": n}) for n in (2, 6))
        counts = []
        for decoder in (two, six):
            decoder(tokens, torch.arange(80), lambda layer, q, k, v, spec: q)
            with torch.profiler.profile() as profile:
                decoder(tokens, torch.arange(80), lambda layer, q, k, v, spec: q)
            top = [event for event in profile.events() if event.cpu_parent is None]
            counts.append(len(top))
    assert (counts[1] - counts[0]) / 4 <= 25


def test_config_describes_each_layer():
    config = ModelConfig.from_dict(
        {
            **LLAMA,
            "architectures": ["SmolLM3ForCausalLM"],
            "model_type": "smollm3",
            "use_sliding_window": True,
            "sliding_window": 8,
        }
    )
    assert [layer.rope for layer in config.layers] == [0, 0, 0, None]
    assert [layer.attention.window for layer in config.layers] == [None, None, None, 8]
    assert config.tied
