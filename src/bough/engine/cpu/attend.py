"""Attention of a pass's queries to keys in the pool: nothing is gathered, scores never leave a core's cache.

A lane is a query (of one head: query heads that share a key head are further queries of it), so the softmax over
keys runs down a vector and needs no sums across. Queries are laid out by columns, head_dim pairs apart, and keys are
read where they lie, through their slots. Keys come in blocks; a column keeps its largest score so far (`top`), the
sum of its weights (`mass`), and the weighted sum of values (`out`), both relative to `top` (online softmax; Milakov
and Gimelshein, 2018). So parts of a prefix, in any number, are attended to one after the other, or by several
threads, whose three numbers are merged at the end.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .simd import (
    between,
    constant,
    exp2,
    fill,
    fill_ints,
    first_lanes,
    fma,
    get_f32,
    get_i32,
    get_i64,
    interleave,
    largest,
    load,
    load_bf16,
    load_ints,
    maximum,
    pairs_bf16,
    put_f32,
    put_i32,
    put_i64,
    store,
    store_ints,
    total,
    where_le,
)  # fmt: skip
from .tiles import bf16_tile, dots

# Queries of a part up to which each is taken by itself, with keys for lanes: by lanes of queries, most would be idle.
_FEW = 4

# Keys in a block: its scores and values stay in the first-level cache.
BLOCK = 128
# What a thread needs for itself: the addresses of a block's keys, its values by pairs, its scores.
LANES = 32
LOG2_E = 1.4426950408889634
LEAST = -1e30  # below every score; finite, so that a column that has seen nothing has no NaN

_scores_8x2 = bf16_tile(8, 2, indexed=True, w_step=None)
_scores_8x1 = bf16_tile(8, 1, indexed=True, w_step=None)
_values_8x2 = bf16_tile(8, 2, add=True, x_row=4, x_step=None, w_step=128)
_values_8x1 = bf16_tile(8, 1, add=True, x_row=4, x_step=None, w_step=64)


def scratch_bytes(head_dim: int) -> int:
    """Working memory of a thread."""
    return 8 * BLOCK + 2 * BLOCK * head_dim + 4 * BLOCK * LANES + 4 * head_dim


@njit
def soft_capped(s, cap):  # type: ignore[no-untyped-def]
    """``cap tanh(s / cap)``, in units of log 2."""
    e = exp2(s * fill(np.float32(2.0 * LOG2_E) / cap))  # tanh x = 1 - 2 / (e^2x + 1)
    return (constant(1.0) - constant(2.0) / (e + constant(1.0))) * fill(cap * np.float32(LOG2_E))


@njit
def hide(scores, rows, row_bytes, first_depth, visible, window):  # type: ignore[no-untyped-def]
    """-inf where a key, at depth ``first_depth`` + row, is beyond a lane's depth ``visible`` or its window."""
    hidden = constant(-np.inf)
    for i in range(rows):
        depth = fill_ints(first_depth + i)
        s = where_le(depth, visible, load(scores + i * row_bytes), hidden)
        if window:
            s = where_le(visible, fill_ints(first_depth + i + window - 1), s, hidden)
        store(scores + i * row_bytes, s)


@njit
def weigh(scores, rows, row_bytes, top, mass):  # type: ignore[no-untyped-def]
    """Scores -> weights, by pairs of rows as bfloat16, in their place; returns what earlier weights are scaled by.

    ``top`` and ``mass`` are the addresses of a vector each, and are updated.
    """
    before = load(top)
    highest = before
    for i in range(rows):
        highest = maximum(highest, load(scores + i * row_bytes))
    scale = exp2(before - highest)
    masses = load(mass) * scale
    for i in range(0, rows - 1, 2):
        first = exp2(load(scores + i * row_bytes) - highest)
        second = exp2(load(scores + (i + 1) * row_bytes) - highest)
        masses = masses + (first + second)
        store_ints(scores + (i // 2) * row_bytes, pairs_bf16(first, second))
    if rows % 2:
        first = exp2(load(scores + (rows - 1) * row_bytes) - highest)
        masses = masses + first
        store_ints(scores + (rows // 2) * row_bytes, pairs_bf16(first, constant(0.0)))
    store(top, highest)
    store(mass, masses)
    return scale


@njit
def attend_one(column, start, count, model, layer, shape, query, lines, to_value, mine, out, top, mass):  # type: ignore[no-untyped-def]
    """One query and a block of keys, whose addresses are at ``lines``: lanes are keys, then dimensions.

    ``query``: the address of its first pair; ``out, top, mass``: of its numbers; ``mine``: scratch.
    """
    dim, stride = model.head_dim, shape.columns * 4
    scores, line = mine + 4 * dim, mine
    for j in range(dim // 2):
        put_i32(line + 4 * j, get_i32(query + j * stride))
    depth = get_i32(shape.visible + 4 * column)
    last = min(count, depth + 1 - start)
    first = max(0, depth + 1 - layer.window - start) if layer.window else 0
    highest = fill(get_f32(top))
    for i in range(0, count, 16):
        s = dots(lines + 8 * i, line, dim // 32)
        if layer.softcap > 0:
            s = soft_capped(s, layer.softcap)
        s = between(s, first - i, last - i)
        highest = maximum(s, highest)
        store(scores + 4 * i, s)
    peak = largest(highest)
    put_f32(line, peak)  # the query has been used
    before, peaks = get_f32(top), fill(peak)
    put_f32(top, peak)
    masses = constant(0.0)
    for i in range(0, count, 16):
        weight = exp2(load(scores + 4 * i) - peaks)
        masses = masses + weight
        store(scores + 4 * i, weight)
    scale = exp2(fill(before) - peaks)
    store(line, scale)
    factor = get_f32(line)
    put_f32(mass, get_f32(mass) * factor + total(masses))
    for d in range(0, dim, 32):
        a, b, c, e = constant(0.0), constant(0.0), constant(0.0), constant(0.0)
        for i in range(0, count - 1, 2):
            low, high = get_i64(lines + 8 * i) + to_value + 2 * d, get_i64(lines + 8 * i + 8) + to_value + 2 * d
            x, y = fill(get_f32(scores + 4 * i)), fill(get_f32(scores + 4 * i + 4))
            a, b = fma(x, load_bf16(low), a), fma(x, load_bf16(low + 32), b)
            c, e = fma(y, load_bf16(high), c), fma(y, load_bf16(high + 32), e)
        if count % 2:
            low = get_i64(lines + 8 * (count - 1)) + to_value + 2 * d
            x = fill(get_f32(scores + 4 * (count - 1)))
            a, b = fma(x, load_bf16(low), a), fma(x, load_bf16(low + 32), b)
        store(line, a + c)
        store(line + 64, b + e)
        for i in range(32):
            place = out + (d + i) * stride
            put_f32(place, get_f32(place) * factor + get_f32(line + 4 * i))


@njit
def attend(part, head, model, layer, shape, memory, keys, mine, out, top, mass):  # type: ignore[no-untyped-def]
    """One part of one head.

    Args:
        part: a `PART`.
        keys: address of the layer's keys; its values follow.
        mine: address of the thread's scratch.
        out, top, mass: addresses of the thread's accumulators of this head.
    """
    dim, columns = model.head_dim, shape.columns
    token = model.kv_heads * dim * 2
    to_value = model.pool_slots * token  # from the address of a key to that of its value
    lines, pairs = mine, mine + 8 * BLOCK
    scores = pairs + 2 * BLOCK * dim
    query = memory.query + head * dim * columns * 2
    few = part.last_column - part.first_column <= _FEW and dim % 32 == 0
    for start in range(part.start, part.end, BLOCK):
        count = min(BLOCK, part.end - start)
        reach = (count + 15) // 16 * 16
        for i in range(reach):  # the last row is repeated to fill a tile; its scores are not used
            slot = get_i64(part.slots + 8 * (start + min(i, count - 1)))
            put_i64(lines + 8 * i, keys + slot * token + head * dim * 2)
        if few:
            for column in range(part.first_column, part.last_column):
                attend_one(column, start, count, model, layer, shape, query + 4 * column, lines, to_value,
                           pairs, out + 4 * column, top + 4 * column, mass + 4 * column)  # fmt: skip
            continue
        halves = (count + 1) // 2
        for i in range(halves):
            low, high = get_i64(lines + 16 * i) + to_value, get_i64(lines + 16 * i + 8) + to_value
            for d in range(0, dim, 16):
                interleave(low + 2 * d, high + 2 * d, pairs + (i * dim + d) * 4)
        column = part.first_column
        while column < part.last_column:
            width = 2 if part.last_column - column > 16 else 1
            row_bytes = 64 * width
            if part.masked and get_i32(shape.visible + 4 * (min(column + 16 * width, part.last_column) - 1)) < start:
                column += 16 * width  # depths ascend within a part: nothing here is visible to these
                continue
            q = query + 4 * column
            for i in range(0, count, 8):
                if width == 2:
                    _scores_8x2(lines + 8 * i, 0, 0, q, 64, columns * 4, dim // 2, scores + i * row_bytes, row_bytes)
                else:
                    _scores_8x1(lines + 8 * i, 0, 0, q, 64, columns * 4, dim // 2, scores + i * row_bytes, row_bytes)
            for b in range(width):
                first = column + 16 * b
                at = scores + 64 * b
                if layer.softcap > 0:
                    for i in range(count):
                        store(at + i * row_bytes, soft_capped(load(at + i * row_bytes), layer.softcap))
                beyond = start + count - 1 > get_i32(shape.visible + 4 * first)
                if part.masked and (beyond or layer.window) or first + 16 > part.last_column:
                    # Lanes beyond the part see nothing of it.
                    depths = first_lanes(load_ints(shape.visible + 4 * first), part.last_column - first)
                    hide(at, count, row_bytes, start, depths, layer.window)
                scale = weigh(at, count, row_bytes, top + 4 * first, mass + 4 * first)
                if total(scale) != np.float32(16):
                    for d in range(dim):
                        place = out + (d * columns + first) * 4
                        store(place, load(place) * scale)
            for d in range(0, dim, 8):
                o = out + (d * columns + column) * 4
                if width == 2:
                    _values_8x2(pairs + 4 * d, 0, 4 * dim, scores, 64, 0, halves, o, columns * 4)
                else:
                    _values_8x1(pairs + 4 * d, 0, 4 * dim, scores, 64, 0, halves, o, columns * 4)
            column += 16 * width
