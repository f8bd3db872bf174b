"""Small random checkpoints of every family, written by ``transformers`` in the real format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

# 96 positions at most, windows of 16, pre-training lengths of 32: sequences of 80 go past both.
_SIZES = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_MOE = {"num_experts_per_tok": 2, "num_hidden_layers": 2}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_GEMMA = {"head_dim": 24, "query_pre_attn_scalar": 20, "sliding_window": 16}


def _longrope(pairs: int) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "short_factor": [1.0 + 0.1 * i for i in range(pairs)],
        "long_factor": [1.5 + 0.7 * i for i in range(pairs)],
    }


def _rope(theta: float = 10_000.0, **scaling: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": theta, "rope_type": "default", **scaling}}


# family -> (prefix of the transformers classes, what differs from the sizes above)
FAMILIES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("Llama", {"num_key_value_heads": 4, **_rope()}),
    "llama3": ("Llama", {"tie_word_embeddings": True, **_rope(500_000.0, **_LLAMA3)}),
    "llama-biased": ("Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 24, **_rope()}),
    "llama-linear": ("Llama", _rope(rope_type="linear", factor=2.5)),
    "llama-yarn": ("Llama", _rope(rope_type="yarn", factor=3.0, original_max_position_embeddings=32)),
    "llama-yarn-mscale": (
        "Llama",
        _rope(
            100.0,  # so that the ramp lies within the 8 pairs of a head, and not at whole ones
            rope_type="yarn",
            factor=3.0,
            original_max_position_embeddings=32,
            mscale=0.7,
            mscale_all_dim=1.3,
            beta_fast=2.0,
            beta_slow=0.5,
            truncate=False,
        ),
    ),
    "llama-dynamic": ("Llama", {"max_position_embeddings": 32, **_rope(rope_type="dynamic", factor=2.0)}),
    "mistral": ("Mistral", {"sliding_window": 16, **_rope(1_000_000.0)}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True, **_rope(1_000_000.0)}),
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 24, **_rope(1_000_000.0)}),
    "gemma2": ("Gemma2", {**_GEMMA, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0}),
    "gemma3": (
        "Gemma3Text",
        {
            **_GEMMA,
            "num_hidden_layers": 7,  # the sixth is global
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5_000.0},
            },
        },
    ),
    "phi3": ("Phi3", {"sliding_window": 16, **_rope()}),
    "phi3-longrope": (
        "Phi3",
        {"original_max_position_embeddings": 32, **_rope(**_longrope(8))},
    ),
    "phi4-mini": (
        "Phi3",
        {
            "original_max_position_embeddings": 32,
            "tie_word_embeddings": True,
            **_rope(partial_rotary_factor=0.75, **_longrope(6)),
        },
    ),
    "olmo2": ("Olmo2", _rope(500_000.0)),
    "smollm2": ("Llama", {"tie_word_embeddings": True, **_rope(100_000.0)}),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 5, **_rope(2_000_000.0)}),
    "granite": (
        "Granite",
        {
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.4,
            "logits_scaling": 2.0,
            "attention_bias": True,
        },
    ),
    "mixtral": ("Mixtral", {"num_local_experts": 4, **_MOE}),
    "qwen3-moe": (
        "Qwen3Moe",
        {
            "head_dim": 24,
            "num_experts": 6,
            "moe_intermediate_size": 40,
            "norm_topk_prob": True,
            **_MOE,
            "num_hidden_layers": 3,
            "mlp_only_layers": [1],
        },
    ),
    "olmoe": ("Olmoe", {"num_experts": 6, "num_key_value_heads": 4, "clip_qkv": 1.5, **_MOE}),
}


def make_checkpoint(
    folder: Path, family: str, seed: int = 0, head: str = "ForCausalLM", **overrides: Any
) -> transformers.PreTrainedModel:
    """Write a random checkpoint of ``family`` to ``folder``; returns the model ``transformers`` wrote.

    ``head`` may be ``"ForTokenClassification"``, or, for Qwen 2, ``"ForProcessRewardModel"``. ``overrides``
    replace values of its config. Norms and biases are random too, so none can be forgotten.
    """
    prefix, settings = FAMILIES[family]
    config_class = getattr(transformers, f"{prefix}Config")
    if head == "ForProcessRewardModel":
        model_class: Any = Qwen2ForProcessRewardModel
    else:
        causal_gemma3 = prefix == "Gemma3Text" and head == "ForCausalLM"
        model_class = getattr(transformers, ("Gemma3" if causal_gemma3 else prefix) + head)
    model = model_class(config_class(**{**_SIZES, **settings, **overrides}))
    randomise(model, seed)
    model.save_pretrained(folder)
    return model.eval()


class Qwen2ForProcessRewardModel(transformers.Qwen2PreTrainedModel):
    """The format of Qwen2.5-Math-PRM: two logits a token from a head with one hidden layer."""

    def __init__(self, config: transformers.Qwen2Config) -> None:
        super().__init__(config)
        self.model = transformers.Qwen2Model(config)
        width = config.hidden_size
        self.score = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.ReLU(), torch.nn.Linear(width, 2))
        self.post_init()

    def forward(self, input_ids: torch.Tensor) -> transformers.modeling_outputs.TokenClassifierOutput:
        hidden = self.model(input_ids).last_hidden_state
        return transformers.modeling_outputs.TokenClassifierOutput(logits=self.score(hidden))


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Give every parameter values that matter: matrices that keep the scale, norms around their centre."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.add_(0.3 * noise)
            elif parameter.dim() > 1:
                parameter.copy_(noise * (0.3 if "embed" in name else 1.5 * parameter.shape[-1] ** -0.5))
            else:
                parameter.copy_(0.5 * noise)


CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' + message['role']) }}{% endif %}\n"
    "    {{- '<|' + message['role'] + '|>' }}{{ message['content'] | tojson }}{{ eos_token }}\n"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def make_tokenizer(folder: Path, kind: str, **settings: Any) -> None:
    """Write a small tokenizer to ``folder``.

    ``kind``: ``"bytes"`` (byte-level, as GPT-2 and most models), ``"prepend"`` or ``"metaspace"``
    (sentencepiece pieces with byte fallback; a space before every stretch of text as in Llama 2, or before
    the first). ``settings`` go to tokenizer_config.json. All have the special tokens ``<s>`` and ``</s>`` and
    the added, not special, token ``<think>``.
    """
    corpus = ["the sum of 23 and 48 is 71\n", "over the hills and far away\n"] * 20
    if kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet))
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        if kind == "prepend":
            steps = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
            tokenizer.normalizer = normalizers.Sequence(steps)
        else:
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        spaces = decoders.Replace("\u2581", " ")
        tokenizer.decoder = decoders.Sequence(
            [spaces, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        first = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
        tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=330, special_tokens=first))
        # The trainer makes special tokens of the byte tokens; in a sentencepiece vocabulary they are not.
        tokenizer = Tokenizer.from_str(json.dumps({**json.loads(tokenizer.to_str()), "added_tokens": []}))
        tokenizer.add_special_tokens(["<unk>"])
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**special, **settings}))
