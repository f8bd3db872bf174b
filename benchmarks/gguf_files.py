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
    "fp32": gguf.GGMLQuantizationType.F32,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "int8": gguf.GGMLQuantizationType.Q8_0,
    "int4": gguf.GGMLQuantizationType.Q4_0,
}
_FILE_TYPES = {
    "fp32": gguf.LlamaFileType.ALL_F32,
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


def convert(folder: Path, precision: str, path: Path, tokenizer: bool = False) -> Path:
    """Write the checkpoint in ``folder`` to ``path``.

    Args:
        folder: in Hugging Face format.
        precision: a key of `TYPES`.
        path: of the new file.
        tokenizer: whether to write its tokenizer too, for a server; else token ids are all that can be given.

    Raises:
        KeyError: it has a tensor that a plain Llama has not.
        ValueError: the model is not of the Llama architecture, or its tokenizer not one of bytes and merges.
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
    if tokenizer:
        _add_tokenizer(writer, folder)
    else:
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


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path) -> None:
    """Write a byte-level BPE tokenizer.

    llama.cpp knows rules for splitting a text by name only. GPT-2's are written: where merges never span what the
    tokenizer's own rules split, as in one trained under them, coarser rules give the same tokens.
    """
    file = json.loads((folder / "tokenizer.json").read_text())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    model = file["model"]
    if model["type"] != "BPE" or file["decoder"]["type"] != "ByteLevel":
        raise ValueError(f"{folder} has a tokenizer of type {model['type']!r}, not of bytes and merges")
    ids = dict(model["vocab"])
    special = {entry["content"]: entry["id"] for entry in file["added_tokens"]}
    ids.update(special)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(ids, key=ids.__getitem__))
    kinds = [gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in ids]
    writer.add_token_types([kind for _, kind in sorted(zip(ids.values(), kinds, strict=True))])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    for name, add in (("bos_token", writer.add_bos_token_id), ("eos_token", writer.add_eos_token_id)):
        if settings.get(name) is not None:
            add(ids[settings[name]])
    writer.add_add_bos_token(bool(settings.get("add_bos_token")))
    if settings.get("chat_template"):
        writer.add_chat_template(settings["chat_template"])
