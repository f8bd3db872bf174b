"""Tiny random models for tests: real decoders and tokenizers, nothing trained."""

from __future__ import annotations

from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from bough.engine import NativeBackend
from bough.models import Decoder, Tokenizer

EOS = 256


def byte_tokenizer() -> Tokenizer:
    """One token per byte, and an end-of-text token."""
    alphabet = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<eos>"])
    assert tokenizer.token_to_id("<eos>") == EOS
    return Tokenizer(tokenizer, eos_ids=frozenset([EOS]))


def tiny_decoder(seed: int = 0, scale: float = 3.0, **overrides: Any) -> Decoder:
    """A two-layer Llama in fp32 with grouped queries; ``scale`` widens the logits, so that text is not uniform."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 257,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
    }
    decoder = Decoder.from_config({**config, **overrides}, seed=seed).eval().requires_grad_(False)
    if decoder.head is not None:
        decoder.head.weight.mul_(scale / decoder.head.weight.std() / 32**0.5)
    return decoder


def tiny_lm(seed: int = 0, text: bool = True, decoder: Decoder | None = None, **options: Any) -> NativeBackend:
    """A backend over `tiny_decoder`."""
    decoder = decoder if decoder is not None else tiny_decoder(seed)
    return NativeBackend(decoder, byte_tokenizer() if text else None, name="tiny", **options)
