"""Linear layers on packed weights: inputs rounded to the weights' format, tiles over the outputs."""

from __future__ import annotations

import numpy as np
from numba import njit

from .simd import (
    absolute,
    constant,
    fill,
    largest,
    load,
    peak_of,
    put_f32,
    put_i32,
    store,
    store_bf16,
    store_int8,
    to_floats,
    to_ints,
    total,
)  # fmt: skip
from .tiles import bf16_tile, integer_tile

_bf16_8x3, _bf16_4x3, _bf16_1x3 = (bf16_tile(rows, 3) for rows in (8, 4, 1))
_bf16_8x1, _bf16_4x1, _bf16_1x1 = (bf16_tile(rows, 1) for rows in (8, 4, 1))
_bf16_1x8 = bf16_tile(1, 8)
_int8_4x3, _int8_1x3, _int8_4x1, _int8_1x1, _int8_1x8 = (
    integer_tile(rows, panels, 8) for rows, panels in ((4, 3), (1, 3), (4, 1), (1, 1), (1, 8))
)
_int4_4x3, _int4_1x3, _int4_4x1, _int4_1x1, _int4_1x8 = (
    integer_tile(rows, panels, 4) for rows, panels in ((4, 3), (1, 3), (4, 1), (1, 1), (1, 8))
)

# From so many rows on, a tile of several rows and few panels loads less; below, many panels of one row.
_TILED_ROWS = 4


@njit
def narrow_row(linear, values, row, memory):  # type: ignore[no-untyped-def]
    """Store a row of inputs, float32 at an address, as this linear layer reads them."""
    into = memory.narrow + row * memory.narrow_row
    if linear.bits == 16:
        for i in range(0, linear.inputs, 16):
            store_bf16(into + 2 * i, load(values + 4 * i))
        return
    zero = 128 if linear.bits == 8 else 8
    place = row * memory.groups * 4
    for g in range(linear.inputs // linear.group):
        first = values + 4 * g * linear.group
        peak = constant(0.0)
        for i in range(0, linear.group, 16):
            peak = peak_of(absolute(load(first + 4 * i)), peak)
        scale = largest(peak) / np.float32(127)
        inverse = fill(np.float32(1) / scale if scale > 0 else np.float32(0))
        amount = constant(0.0)
        for i in range(0, linear.group, 16):
            codes = to_ints(load(first + 4 * i) * inverse)
            amount = amount + to_floats(codes)
            store_int8(into + g * linear.group + i, codes)
        put_f32(memory.scales + place + 4 * g, scale)
        put_i32(memory.starts + place + 4 * g, -zero * int(total(amount)))


@njit
def linear_rows(linear, memory, rows, first, last, out, out_row):  # type: ignore[no-untyped-def]
    """Outputs of panels first..last, for all rows: float32 at ``out``, rows ``out_row`` bytes apart; no bias."""
    if linear.bits == 16:
        _bf16_rows(linear, memory, rows, first, last, out, out_row)
    elif linear.bits == 8:
        _int8_rows(linear, memory, rows, first, last, out, out_row)
    else:
        _int4_rows(linear, memory, rows, first, last, out, out_row)


@njit
def _bf16_rows(linear, memory, rows, first, last, out, out_row):  # type: ignore[no-untyped-def]
    x, x_row = memory.narrow, memory.narrow_row
    panel, steps = linear.inputs * 32, linear.inputs // 2
    p = first
    while p < last:
        width = 1
        if rows < _TILED_ROWS:
            if p + 8 <= last:
                width = 8
        elif p + 3 <= last:
            width = 3
        w, o = linear.codes + p * panel, out + 64 * p
        r = 0
        while r < rows:
            xr, orow = x + r * x_row, o + r * out_row
            if width == 8:
                _bf16_1x8(xr, 0, 0, w, panel, 0, steps, orow, 0)
                r += 1
            elif r + 8 <= rows:
                if width == 3:
                    _bf16_8x3(xr, x_row, 0, w, panel, 0, steps, orow, out_row)
                else:
                    _bf16_8x1(xr, x_row, 0, w, panel, 0, steps, orow, out_row)
                r += 8
            elif r + 4 <= rows:
                if width == 3:
                    _bf16_4x3(xr, x_row, 0, w, panel, 0, steps, orow, out_row)
                else:
                    _bf16_4x1(xr, x_row, 0, w, panel, 0, steps, orow, out_row)
                r += 4
            else:
                if width == 3:
                    _bf16_1x3(xr, 0, 0, w, panel, 0, steps, orow, 0)
                else:
                    _bf16_1x1(xr, 0, 0, w, panel, 0, steps, orow, 0)
                r += 1
        p += width


def _integer_rows(bits, tile_4x3, tile_1x3, tile_4x1, tile_1x1, tile_1x8):  # type: ignore[no-untyped-def]
    """`linear_rows` for weights of so many bits."""

    @njit
    def rows_of(linear, memory, rows, first, last, out, out_row):  # type: ignore[no-untyped-def]
        x, x_row, x_groups = memory.narrow, memory.narrow_row, memory.groups * 4
        group, groups = linear.group, linear.inputs // linear.group
        panel, panel_scales = linear.inputs * 2 * bits, groups * 32
        p = first
        while p < last:
            width = 1
            if rows < _TILED_ROWS:
                if p + 8 <= last:
                    width = 8
            elif p + 3 <= last:
                width = 3
            w, ws, o = linear.codes + p * panel, linear.scales + p * panel_scales, out + 64 * p
            r = 0
            while r < rows:
                xr, orow = x + r * x_row, o + r * out_row
                xs, xt = memory.scales + r * x_groups, memory.starts + r * x_groups
                if width == 8:
                    tile_1x8(xr, 0, xs, xt, 0, w, panel, ws, panel_scales, group, groups, orow, 0)
                    r += 1
                elif r + 4 <= rows:
                    if width == 3:
                        tile_4x3(
                            xr, x_row, xs, xt, x_groups, w, panel, ws, panel_scales, group, groups, orow, out_row
                        )
                    else:
                        tile_4x1(
                            xr, x_row, xs, xt, x_groups, w, panel, ws, panel_scales, group, groups, orow, out_row
                        )
                    r += 4
                else:
                    if width == 3:
                        tile_1x3(xr, 0, xs, xt, 0, w, panel, ws, panel_scales, group, groups, orow, 0)
                    else:
                        tile_1x1(xr, 0, xs, xt, 0, w, panel, ws, panel_scales, group, groups, orow, 0)
                    r += 1
            p += width

    return rows_of


_int8_rows = _integer_rows(8, _int8_4x3, _int8_1x3, _int8_4x1, _int8_1x1, _int8_1x8)
_int4_rows = _integer_rows(4, _int4_4x3, _int4_1x3, _int4_4x1, _int4_1x1, _int4_1x8)


@njit
def add_bias(linear, row):  # type: ignore[no-untyped-def]
    """Add the bias to a row of outputs at an address."""
    if linear.bias:
        for i in range(0, 16 * linear.panels, 16):
            store(row + 4 * i, load(row + 4 * i) + load(linear.bias + 4 * i))


@njit
def sum_of_squares(row, size):  # type: ignore[no-untyped-def]
    """Of float32 at an address."""
    squares = constant(0.0)
    for i in range(0, size, 16):
        x = load(row + 4 * i)
        squares = squares + x * x
    return total(squares)


@njit
def norm_row(row, weight, size, eps, into):  # type: ignore[no-untyped-def]
    """RMSNorm of float32 at an address; ``into`` may be the same."""
    scale = fill(np.float32(1) / np.sqrt(sum_of_squares(row, size) / np.float32(size) + eps))
    for i in range(0, size, 16):
        store(into + 4 * i, load(row + 4 * i) * scale * load(weight + 4 * i))
