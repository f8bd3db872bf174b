"""Every family computes what ``transformers`` computes on the same checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import transformers
from torch import Tensor

from bough.models import Decoder, dense_attend, load_decoder
from checkpoints import FAMILIES, make_checkpoint

# Weight by weight the same, in float32; only the order of additions differs.
TOLERANCE = 1e-4
LENGTH = 80
families = pytest.mark.parametrize("family", FAMILIES)


class Pair(NamedTuple):
    folder: Path
    reference: transformers.PreTrainedModel
    decoder: Decoder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    """family -> a checkpoint, as transformers loads it and as bough does."""

    @cache
    def make(family: str) -> Pair:
        folder = tmp_path_factory.mktemp(family)
        reference = make_checkpoint(folder, family)
        # With dynamic scaling the regime is that of one pass over exactly `context` tokens.
        return Pair(folder, reference, load_decoder(folder, context=LENGTH if "dynamic" in family else 128))

    return make


def logits(decoder: Decoder, tokens: Tensor) -> Tensor:
    return decoder.logits(decoder(tokens, torch.arange(len(tokens)), dense_attend([len(tokens)])).last)


@families
@torch.inference_mode()
def test_logits_equal(pair, tokens, family):
    _, reference, decoder = pair(family)
    expected = reference(tokens[None]).logits[0]
    assert expected.std() > 0.5  # not a degenerate checkpoint
    torch.testing.assert_close(logits(decoder, tokens), expected, rtol=0, atol=TOLERANCE)


@families
@torch.inference_mode()
def test_prefill_equals_chunked_prefill_equals_token_by_token(pair, tokens, stream, family):
    decoder = pair(family).decoder
    whole = logits(decoder, tokens)
    for sizes in ([LENGTH], [30, 1, 33, 16], [1] * LENGTH):
        feed = stream(decoder)
        pieces = torch.cat([feed(piece) for piece in tokens.split(sizes)])
        torch.testing.assert_close(pieces, whole, rtol=0, atol=TOLERANCE)


@families
@torch.inference_mode()
def test_64_greedy_tokens_equal(pair, tokens, stream, family):
    _, reference, decoder = pair(family)
    # 48 tokens: past the original length, so that transformers too is in longrope's long regime throughout.
    prompt = tokens[: LENGTH - 64 if "dynamic" in family else 48]
    feed = stream(decoder)
    ours = [int(feed(prompt)[-1].argmax())]
    while len(ours) < 64:
        ours.append(int(feed(torch.tensor(ours[-1:]))[-1].argmax()))
    if "dynamic" in family:
        # Its base depends on the length of each pass, so only a pass over all tokens is in our regime.
        everything = torch.tensor([*prompt.tolist(), *ours])
        predicted = reference(everything[None]).logits[0].argmax(-1)
        assert ours == predicted[len(prompt) - 1 : -1].tolist()
        return
    theirs: list[int] = []
    step, past = prompt[None], None
    while len(theirs) < 64:
        output = reference(step, past_key_values=past, use_cache=True)
        step, past = output.logits[:, -1].argmax(-1, keepdim=True), output.past_key_values
        theirs.append(int(step))
    assert ours == theirs


@pytest.mark.parametrize("family", ["llama-dynamic", "phi3-longrope", "phi4-mini"])
@torch.inference_mode()
def test_without_a_context_the_regime_is_that_of_the_original_length(pair, tokens, family):
    folder = pair(family).folder
    decoder = load_decoder(folder)
    assert decoder.config.context == 32
    short = tokens[:32]
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder)  # has seen nothing longer yet
    expected = reference(short[None]).logits[0]
    torch.testing.assert_close(logits(decoder, short), expected, rtol=0, atol=TOLERANCE)
    long = load_decoder(folder, context=LENGTH)
    assert (logits(long, short) - logits(decoder, short)).abs().max() > 0.01


@families
@torch.inference_mode()
def test_a_flat_batch_of_sequences_equals_each_alone(pair, tokens, family):
    decoder = pair(family).decoder
    parts = tokens.split([50, 7, 23])
    positions = torch.cat([torch.arange(len(part)) for part in parts])
    flat = decoder.logits(decoder(tokens, positions, dense_attend([50, 7, 23])).last)
    alone = torch.cat([logits(decoder, part) for part in parts])
    torch.testing.assert_close(flat, alone, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("family", "biases"),
    [
        *((family, ["attention_bias"]) for family in ("qwen3", "gemma2", "gemma3", "olmo2", "qwen3-moe", "olmoe")),
        ("granite", ["attention_bias", "mlp_bias"]),
        ("smollm3", ["attention_bias", "mlp_bias"]),
    ],
)
@torch.inference_mode()
def test_biases_where_the_config_asks_for_them(tmp_path, tokens, family, biases):
    reference = make_checkpoint(tmp_path, family, **dict.fromkeys(biases, True))
    decoder = load_decoder(tmp_path)
    assert decoder.layers[0].attention.qkv.bias is not None
    expected = reference(tokens[None]).logits[0]
    torch.testing.assert_close(logits(decoder, tokens), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("family", ["qwen2", "llama2", "mixtral"])
@torch.inference_mode()
def test_token_classification_heads(tmp_path, tokens, family):
    reference = make_checkpoint(tmp_path, family, head="ForTokenClassification", num_labels=3)
    decoder = load_decoder(tmp_path)
    assert decoder.head_kind == "classification"
    expected = reference(tokens[None]).logits[0]
    assert expected.shape == (LENGTH, 3)
    torch.testing.assert_close(logits(decoder, tokens), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("family", ["llama3", "gemma3"])
@torch.inference_mode()
def test_sequence_classification_heads_score_every_token(tmp_path, tokens, family):
    reference = make_checkpoint(tmp_path, family, head="ForSequenceClassification", num_labels=1)
    decoder = load_decoder(tmp_path)
    expected = reference(tokens[None]).logits[0]  # of the last token only
    torch.testing.assert_close(logits(decoder, tokens)[-1], expected, rtol=0, atol=TOLERANCE)


@torch.inference_mode()
def test_process_reward_head(tmp_path, tokens):
    reference = make_checkpoint(tmp_path, "qwen2", head="ForProcessRewardModel")
    decoder = load_decoder(tmp_path)
    assert decoder.head_kind == "classification"
    expected = reference(tokens[None]).logits[0]
    assert expected.shape == (LENGTH, 2)
    torch.testing.assert_close(logits(decoder, tokens), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama3", "gemma3", "qwen3-moe", "olmo2"])
@torch.inference_mode()
def test_half_precision_is_close_to_float32(pair, tokens, family, dtype):
    folder, reference, decoder = pair(family)
    half = load_decoder(folder, dtype=dtype, context=LENGTH)
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    ours, exact = logits(half, tokens), logits(decoder, tokens)
    assert ours.dtype == torch.float32
    theirs = type(reference).from_pretrained(folder, dtype=dtype)(tokens[None]).logits[0].float()
    # No further from float32 than transformers is in the same type, with room for the luck of rounding.
    assert (ours - exact).abs().mean() < 1.5 * (theirs - exact).abs().mean() + 1e-3
