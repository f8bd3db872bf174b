"""Checkpoints of the Llama architecture as GGUF files, from the same weights, for llama.cpp.

Every matrix is stored in the precision asked for, embedding and head included: bf16 as it is, int8 as ``Q8_0``
(blocks of 32 weights and a scale), int4 as ``Q4_0`` (the same, and the type that llama.cpp repacks for CPUs).
"""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
from safetensors import safe_open

TYPES = {
    "bf16": gguf.GGMLQuantizationType.BF16,
    "int8": gguf.GGMLQuantizationType.Q8_0,
    "int4": gguf.GGMLQuantizationType.Q4_0,
}
_FILE_TYPES = {
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "int8": gguf.LlamaFileType.MOSTLY_Q8_0,
    "int4": gguf.LlamaFileType.MOSTLY_Q4_0,
}
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def name_in_gguf(name: str) -> str:
    """The GGUF name of a checkpoint's tensor, e.g. ``model.layers.3.mlp.up_proj.weight``."""
    stem = name.removesuffix(".weight")
    if stem in _OUTSIDE:
        return f"{_OUTSIDE[stem]}.weight"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{_LAYER[part]}.weight"


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """A query or key projection ``[heads * D, H]`` with each head's rows in the order that llama.cpp rotates.

    Checkpoints rotate dimension ``i`` with ``i + D/2``, llama.cpp's Llama rotates neighbours.
    """
    outputs, inputs = weight.shape
    halves = weight.reshape(heads, 2, outputs // heads // 2, inputs)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(outputs, inputs)


def convert(folder: Path, precision: str, path: Path) -> Path:
    """Write the checkpoint in ``folder`` to ``path``; without a tokenizer, since token ids are all that is given.

    Raises:
        KeyError: it has a tensor that a plain Llama has not.
        ValueError: the model is not of the Llama architecture.
    """
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] != "llama":
        raise ValueError(f"{folder} is of type {config['model_type']!r}; only llama checkpoints can be converted")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    rope = config.get("rope_parameters") or config
    writer.add_rope_freq_base(rope.get("rope_theta", 10000.0))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(_FILE_TYPES[precision])
    writer.add_tokenizer_model("none")
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (not a dict)
                if name == "lm_head.weight" and config.get("tie_word_embeddings"):
                    continue
                weight = tensors.get_tensor(name).float().numpy()
                if weight.ndim == 1:
                    writer.add_tensor(name_in_gguf(name), weight)
                    continue
                if name.endswith(("q_proj.weight", "k_proj.weight")):
                    weight = interleaved(weight, heads if "q_proj" in name else kv_heads)
                packed = gguf.quants.quantize(weight, TYPES[precision])
                writer.add_tensor(name_in_gguf(name), packed, raw_dtype=TYPES[precision])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
