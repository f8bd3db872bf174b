"""What a pass is told, as records that compiled code reads: addresses are int64, memory is as the comments say."""

from __future__ import annotations

import numpy as np


def _record(integers: str, floats: str = "") -> np.dtype:
    return np.dtype([(name, np.int64) for name in integers.split()] + [(name, np.float32) for name in floats.split()])


# A packed linear layer; bias is 0 or the address of float32 [panels * 16].
LINEAR = _record("codes scales bits group inputs outputs panels bias")

# A decoder layer; a norm's weights are float32, 0 where there is none. cos and sin are float32 [context, head_dim],
# rotated dimensions come first. A window of 0 is none; so is a softcap of 0.
LAYER = _record("norm post_norm mlp_norm mlp_post_norm query_norm key_norm cos sin rotated window", "scale softcap")

# A decoder. layers, linears (qkv, out, gate_up, down of each layer, then the head): records. embed: bfloat16 [V, H].
MODEL = _record(
    "layers linears depth hidden heads kv_heads head_dim intermediate activation embed head norm pool pool_slots",
    "eps embed_scale residual_scale",
)

# Tokens to draw. logits: float32, rows `row` bytes apart; places (rows of the logits), keys, positions: int64
# [count]; temperatures: float32 [count]. Results: tokens int64, logprobs and sample_logprobs float32 [count].
DRAW = _record("logits row vocabulary places keys positions temperatures count tokens logprobs sample_logprobs")

# A pass of `count` tokens, and then what is drawn. tokens, positions, slots: int64 [count]. parts: records. wanted:
# int64 [wanted_count], the places whose logits are wanted. columns: one for each query of a key head (`plan.columns`).
# visible: int32 [columns], the depth of the query in each column. draws: 0, or the address of a DRAW.
PASS = _record("tokens positions slots count columns visible parts part_count wanted wanted_count draws")

# Queries first_column..last_column attend to keys at depths start..end, which lie in slots[depth]; `masked` where a
# key may lie beyond a query, or outside of its window. weight: the work, in units of its own.
PART = _record("slots first_column last_column start end masked weight")

# Working memory: residual x and y, hidden: float32 [count, H]; wide: float32 [count, the widest projection];
# narrow: inputs of products, [count, ...] bytes; scales, starts: of quantised inputs; query: bfloat16 pairs
# [kv_heads, head_dim / 2, columns, 2]; out: float32 [threads, kv_heads, head_dim, columns]; top, mass: [threads,
# kv_heads, columns]; mine: per thread. logits: float32 [wanted_count, head.panels * 16].
MEMORY = _record(
    "x y hidden wide wide_row narrow narrow_row scales starts groups query out top mass mine mine_bytes logits"
)
