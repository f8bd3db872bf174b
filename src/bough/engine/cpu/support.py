"""What the compiled pass can run, asked without importing Numba, which takes half a second."""

from __future__ import annotations

import torch
from llvmlite.binding import get_host_cpu_features

from bough.models.config import ModelConfig

_NEEDED = ("avx512f", "avx512dq", "avx512bw", "avx512bf16", "avx512vnni")

SILU, GELU_TANH, RELU = range(3)
ACTIVATIONS = {"silu": SILU, "gelu_new": GELU_TANH, "gelu_pytorch_tanh": GELU_TANH, "relu": RELU}


def missing_instructions() -> list[str]:
    """The sets of instructions that compiled passes need and this CPU lacks."""
    try:
        features = get_host_cpu_features()
    except RuntimeError:  # LLVM does not know this kind of CPU
        features = {}
    return [name for name in _NEEDED if not features.get(name)]


def unsupported(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why the compiled pass cannot run such a model here; None if it can."""
    if device.type != "cpu":
        return f"the model is on {device}"
    if dtype != torch.bfloat16:
        return f"the model is in {dtype}"
    if missing := missing_instructions():
        return f"the CPU lacks {', '.join(missing)}"
    if any(layer.sparse for layer in config.layers):
        return "it is a mixture of experts"
    if config.traits.qk_norm == "full" or config.qkv_clip is not None:
        return "its queries and keys are normalised over all heads together, or clipped"
    if config.activation not in ACTIVATIONS:
        return f"its activation is {config.activation}"
    sizes = (config.hidden_size, config.intermediate_size, config.head_dim, config.num_heads * config.head_dim)
    if any(size % 16 for size in sizes):
        return f"its sizes {sizes} are not multiples of 16"
    return None
