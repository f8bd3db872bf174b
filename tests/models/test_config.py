"""config.json: both schemas mean the same, and nothing in it is ignored quietly."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest

from bough.core.errors import ConfigError
from bough.models import ModelConfig
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
}


def older(config: dict[str, Any]) -> dict[str, Any]:
    """The config as transformers 4 wrote it: rope_theta and rope_scaling, with "type"."""
    config = dict(config)
    rope = config.pop("rope_parameters")
    if "full_attention" in rope:
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    rope = dict(rope)
    config["rope_theta"] = rope.pop("rope_theta")
    for key in ("partial_rotary_factor", "original_max_position_embeddings"):
        if key in config or key == "partial_rotary_factor":
            value = rope.pop(key, None)
            config.update({key: value} if value is not None else {})
    kind = rope.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    config["torch_dtype"] = config.pop("dtype")
    return config


@pytest.mark.parametrize("family", FAMILIES)
def test_both_schemas_say_the_same(tmp_path, family):
    make_checkpoint(tmp_path, family)
    newer = json.loads((tmp_path / "config.json").read_text())
    assert "rope_parameters" in newer and "rope_theta" not in newer
    assert ModelConfig.from_dict(older(newer)) == ModelConfig.from_dict(newer)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_key_left_out_means_what_transformers_takes_it_to_mean(tmp_path, family):
    transformers_config = type(make_checkpoint(tmp_path, family).config)
    raw = json.loads((tmp_path / "config.json").read_text())
    compared = 0
    for key in raw.keys() - {"architectures", "model_type", "dtype"}:
        less = {name: value for name, value in raw.items() if name != key}
        try:
            ours = ModelConfig.from_dict(less)
        except ConfigError:
            continue  # required, or the default contradicts what is left: no wrong answer either way
        filled = json.loads(transformers_config.from_dict(deepcopy(less)).to_json_string())
        assert ours == ModelConfig.from_dict({**filled, "architectures": raw["architectures"]}), key
        compared += 1
    assert compared > 10


def read(**changes: Any) -> ModelConfig:
    return ModelConfig.from_dict({**LLAMA, **changes})


def of_type(prefix: str, model_type: str, **changes: Any) -> ModelConfig:
    return read(architectures=[f"{prefix}ForCausalLM"], model_type=model_type, **changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architectures": ["MambaForCausalLM"], "model_type": "mamba"}, "MambaForCausalLM"),
        ({"architectures": ["MyLlamaForCausalLM"]}, "MyLlamaForCausalLM"),  # no matching by substring
        ({"architectures": ["LlamaForCausalLM", "Other"]}, "Other"),
        ({"architectures": None, "model_type": "rwkv"}, "rwkv"),
        ({"architectures": ["LlamaForQuestionAnswering"]}, "LlamaForQuestionAnswering"),
        ({"model_type": "mistral"}, "mistral"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"attention_bias": "no"}, "attention_bias"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3"),
        ({"hidden_act": "swish7"}, "swish7"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"clip_qkv": 8.0}, "clip_qkv"),
        ({"sliding_window": 4096}, "sliding_window"),
        ({"residual_multiplier": 0.5}, "residual_multiplier"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"a_new_knob": 1}, "a_new_knob"),
        ({"rope_scaling": {"type": "mystery", "factor": 2.0}}, "mystery"),
        ({"rope_scaling": {"type": "linear"}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "twist": 1}}, "twist"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "high_freq_factor"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "full_attention"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}},
            "rope_scaling",
        ),
    ],
)
def test_what_is_not_executed_is_refused_by_name(changes, named):
    with pytest.raises(ConfigError, match=named):
        read(**changes)


@pytest.mark.parametrize(
    ("prefix", "model_type", "changes", "named"),
    [
        ("Gemma3", "gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("Gemma3", "gemma3_text", {"rope_parameters": {"rope_type": "default"}}, "by layer type"),
        ("Mistral", "mistral", {"sliding_window": 0}, "sliding_window must be a positive integer, got 0"),
        ("Phi3", "phi3", {"partial_rotary_factor": 0.6}, "9 of 16 dimensions"),
        ("Gemma2", "gemma2", {"layer_types": ["full_attention"]}, "layer_types has 1 entries"),
        ("Gemma2", "gemma2", {"sliding_window": 8, "sliding_window_size": 9}, "sliding_window_size 9"),
        ("Qwen2", "qwen2", {"layer_types": ["sliding_attention"] * 4}, "no sliding_window"),
        ("Qwen2", "qwen2", {"layer_types": ["linear_attention"] * 4}, "linear_attention"),
        ("Mixtral", "mixtral", {}, "num_experts"),
        ("Mixtral", "mixtral", {"num_local_experts": 2, "num_experts_per_tok": 3}, "num_experts_per_tok 3"),
        ("Mixtral", "mixtral", {"num_local_experts": 2, "num_experts": 3}, "num_experts"),
        (
            "Phi3",
            "phi3",
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 7, "long_factor": [1.0] * 8}},
            "short_factor has 7 entries for 8",
        ),
        (
            "Phi3",
            "phi3",
            {
                "original_max_position_embeddings": 48,
                "rope_scaling": {
                    "type": "longrope",
                    "short_factor": [1.0] * 8,
                    "long_factor": [1.0] * 8,
                    "original_max_position_embeddings": 32,
                },
            },
            "original_max_position_embeddings",
        ),
    ],
)
def test_contradictions_within_a_family_are_refused_by_name(prefix, model_type, changes, named):
    with pytest.raises(ConfigError, match=named):
        of_type(prefix, model_type, **changes)


@pytest.mark.parametrize(
    ("prefix", "model_type", "published"),
    [
        # SmolLM2-135M
        ("Llama", "llama", {"is_llama_config": True, "rope_interleaved": False, "rope_theta": 100000}),
        # Phi-4-mini-instruct, with its 48 factors as 6
        (
            "Phi3",
            "phi3",
            {
                "_name_or_path": "Phi-4-mini-instruct",
                "attention_bias": False,
                "auto_map": {"AutoTokenizer": "Xenova/gpt-4o"},
                "embd_pdrop": 0.0,
                "full_attn_mod": 1,
                "interpolate_factor": 1,
                "lm_head_bias": False,
                "mlp_bias": False,
                "original_max_position_embeddings": 48,
                "partial_rotary_factor": 0.75,
                "rope_scaling": {"long_factor": [1] * 6, "short_factor": [1.0] * 6, "type": "longrope"},
                "rope_theta": 10000.0,
                "sliding_window": 262144,
                "tie_word_embeddings": True,
            },
        ),
        # gemma-2-9b
        (
            "Gemma2",
            "gemma2",
            {
                "attn_logit_softcapping": 50.0,
                "cache_implementation": "hybrid",
                "final_logit_softcapping": 30.0,
                "head_dim": 256,
                "hidden_act": "gelu_pytorch_tanh",
                "hidden_activation": "gelu_pytorch_tanh",
                "query_pre_attn_scalar": 256,
                "sliding_window": 4096,
                "sliding_window_size": 4096,
            },
        ),
        # Qwen2.5-1.5B
        (
            "Qwen2",
            "qwen2",
            {"max_window_layers": 28, "sliding_window": 131072, "use_sliding_window": False, "use_mrope": False},
        ),
    ],
)
def test_published_configs_are_understood(prefix, model_type, published):
    common = {"use_cache": True, "initializer_range": 0.02, "torch_dtype": "bfloat16"}
    assert of_type(prefix, model_type, **published, **common).num_layers == 4


def test_inert_keys_and_off_values_change_nothing():
    plain = read()
    assert plain == read(
        use_cache=False,
        attention_dropout=0.1,
        torch_dtype="bfloat16",
        pad_token_id=7,
        sliding_window=None,
        mlp_bias=False,
        rope_scaling=None,
        rope_interleaved=False,
        pretraining_tp=2,
        a_new_knob=None,
    )
    assert plain == read(architectures=None)  # model_type alone says a language model
    assert plain != read(rms_norm_eps=1e-3)


def test_left_out_keys_have_the_defaults_of_transformers():
    assert of_type("Mixtral", "mixtral", num_local_experts=4).ropes[0].theta == 1_000_000.0
    assert of_type("Gemma2", "gemma2").logit_softcap == 30.0
    assert of_type("Gemma2", "gemma2", final_logit_softcapping=None).logit_softcap is None
    assert of_type("Mistral", "mistral").layers[0].attention.window == 4096
    assert of_type("Mistral", "mistral", sliding_window=None).layers[0].attention.window is None
    assert of_type("Qwen3", "qwen3").head_dim == 128
    assert of_type("Qwen2", "qwen2", sliding_window=8).layers[-1].attention.window is None
    windows = [layer.attention.window for layer in of_type("Gemma3", "gemma3_text", num_hidden_layers=7).layers]
    assert windows == [4096] * 5 + [None, 4096]


def test_yarn_factor_defaults_to_the_ratio_of_lengths():
    scaling = {"type": "yarn", "original_max_position_embeddings": 32}
    assert read(rope_scaling=scaling).ropes[0].factor == 3.0


def test_labels_of_a_classification_head():
    architectures = ["LlamaForTokenClassification"]
    assert read(architectures=architectures).labels == 2
    config = read(architectures=architectures, id2label={"0": "a", "1": "b", "2": "c"})
    assert (config.labels, config.head_kind) == (3, "classification")
    assert read().head_kind == "lm"


def test_context_must_be_positive():
    with pytest.raises(ConfigError, match="got 0"):
        ModelConfig.from_dict(LLAMA, context=0)
