"""Decoders and tokenizers from Hugging Face checkpoints."""

from .attention import Attend, AttentionSpec, dense_attend
from .config import LayerSpec, ModelConfig
from .decoder import Decoder, Hidden
from .hub import resolve
from .tokenizer import Tokenizer, load_tokenizer
from .weights import load_decoder, save_decoder

__all__ = [
    "Attend",
    "AttentionSpec",
    "Decoder",
    "Hidden",
    "LayerSpec",
    "ModelConfig",
    "Tokenizer",
    "dense_attend",
    "load_decoder",
    "load_tokenizer",
    "resolve",
    "save_decoder",
]
