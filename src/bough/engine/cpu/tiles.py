"""Matrix products, a tile at a time: code generated for a tile's size, with every sum in a register.

A tile is ``rows`` rows of x by ``panels`` panels of 16 outputs. The weights' layout (`bough.models.packed`) puts what
one instruction multiplies side by side, so a step along the inputs is a load for each panel, a broadcast for each
row, and a product for each pair of them. Every output is summed in the order of the inputs whatever the tile, so a
row's result does not depend on what else is in the pass.

- bfloat16: VDPBF16PS, two inputs a step, summed in float32.
- 8 and 4 bits: VPDPBUSD, four inputs a step. Weights are unsigned (code = q + zero), inputs are int8, sums are exact
  integers within a group of inputs that share a scale. As sum q x = sum code x - zero sum x, a group's sum starts at
  -zero times the sum of its inputs, which quantising them has left ready.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from llvmlite import ir
from numba import types

from .simd import F32, FLOATS, INTS, PAIRS, call, primitive, read, splat, write

_BYTES, _I32, _I64, _FLOAT = 64, ir.IntType(32), ir.IntType(64), ir.FloatType()

Values = list[ir.Value]


def _loop(b: ir.IRBuilder, count: ir.Value, start: Values, step: Callable[[ir.Value, Values], Values]) -> Values:
    """``for i in range(count): values = step(i, values)``; at least once."""
    entry, body, done = b.block, b.append_basic_block("body"), b.append_basic_block("done")
    b.branch(body)
    b.position_at_end(body)
    index = b.phi(_I64)
    index.add_incoming(_I64(0), entry)
    values = [b.phi(value.type) for value in start]
    results = step(index, values)
    following = b.add(index, _I64(1))
    for phi, before, after in zip([index, *values], [_I64(0), *start], [following, *results], strict=True):
        if phi is not index:
            phi.add_incoming(before, entry)
        phi.add_incoming(after, b.block)
    b.cbranch(b.icmp_signed("<", following, count), body, done)
    b.position_at_end(done)
    return results


def _plus(b: ir.IRBuilder, base: ir.Value, index: ir.Value | int, size: ir.Value | int) -> ir.Value:
    """The address ``base + index * size``."""
    if isinstance(index, int) and isinstance(size, int):
        return b.add(base, _I64(index * size))
    return b.add(base, b.mul(*(_I64(x) if isinstance(x, int) else x for x in (index, size))))


@cache
def bf16_tile(
    rows: int,
    panels: int,
    indexed: bool = False,
    add: bool = False,
    x_row: int | None = None,
    x_step: int | None = 4,
    w_step: int | None = 64,
) -> Any:
    """Products of bfloat16: ``out[r, 16 p + l] = sum over steps j and i < 2 of x[r, j, i] w[p, j, l, i]``.

    The compiled function's arguments, all int64: ``x, x_row, x_step`` (address; bytes from a row, and from a step,
    to the next), ``w, w_panel, w_step`` (the same of panels), ``steps, out, out_row``. ``out`` is float32.

    Args:
        indexed: x is the address of the rows' addresses, and x_row is not used.
        add: to what is in ``out`` already.
        x_row, x_step, w_step: where they are known (not None), so that the addresses need fewer registers; then
            the argument of that name is not used.
    """
    known = x_row, x_step, w_step

    def generate(b: ir.IRBuilder, x: Any, x_row: Any, x_step: Any, w: Any, w_panel: Any, w_step: Any, steps: Any,
                 out: Any, out_row: Any) -> None:  # fmt: skip
        given = x_row, x_step, w_step
        x_row, x_step, w_step = (y if k is None else k for k, y in zip(known, given, strict=True))
        lines = [read(b, _plus(b, x, r, 8), _I64, 8) if indexed else _plus(b, x, r, x_row) for r in range(rows)]
        blocks = [_plus(b, w, p, w_panel) for p in range(panels)]
        places = [_plus(b, _plus(b, out, r, out_row), p, _BYTES) for r in range(rows) for p in range(panels)]

        def step(j: ir.Value, sums: Values) -> Values:
            weights = [read(b, _plus(b, block, j, w_step), PAIRS, 4) for block in blocks]
            results = []
            for r, line in enumerate(lines):  # a broadcast right before its products: it needs a register till then
                value = b.bitcast(splat(b, read(b, _plus(b, line, j, x_step), _I32, 4), INTS), PAIRS)
                for total, weight in zip(sums[r * panels :], weights, strict=False):
                    results.append(call(b, "llvm.x86.avx512bf16.dpbf16ps.512", FLOATS, [total, value, weight]))
            return results

        zero = ir.Constant(FLOATS, [0.0] * 16)
        start = [read(b, place, FLOATS, 4) if add else zero for place in places]
        for place, total in zip(places, _loop(b, steps, start, step), strict=True):
            write(b, place, total, 4)

    return primitive(types.void, [types.int64] * 9, generate)


@cache
def integer_tile(rows: int, panels: int, bits: int) -> Any:
    """Products of quantised numbers, in groups of inputs that share scales: float32 ``out[r, 16 p + l]``.

    The compiled function's arguments, all int64: ``x, x_row`` (int8 inputs), ``x_scales, x_starts, x_groups`` (of
    each row and group: float32 scales, int32 starts of the sums; bytes from a row to the next of either), ``w,
    w_panel, w_scales, w_scales_panel`` (codes, and float16 scales ``[panel, group, 16]``), ``group`` (inputs in a
    group), ``groups, out, out_row``.
    """

    def generate(b: ir.IRBuilder, x: Any, x_row: Any, x_scales: Any, x_starts: Any, x_groups: Any, w: Any,
                 w_panel: Any, w_scales: Any, w_scales_panel: Any, group: Any, groups: Any, out: Any,
                 out_row: Any) -> None:  # fmt: skip
        steps = b.lshr(group, _I64(2 if bits == 8 else 3))

        def product(total: ir.Value, weight: ir.Value, value: ir.Value) -> ir.Value:
            return call(b, "llvm.x86.avx512.vpdpbusd.512", INTS, [total, weight, value])

        def of_group(g: ir.Value, sums: Values) -> Values:
            lines = [_plus(b, _plus(b, x, r, x_row), g, group) for r in range(rows)]
            blocks = [_plus(b, _plus(b, w, p, w_panel), g, b.mul(steps, _I64(_BYTES))) for p in range(panels)]
            per_row = [_plus(b, _plus(b, _I64(0), r, x_groups), g, 4) for r in range(rows)]
            starts = [splat(b, read(b, b.add(x_starts, at), _I32, 4), INTS) for at in per_row]

            def step(j: ir.Value, partial: Values) -> Values:
                weights = [read(b, _plus(b, block, j, _BYTES), INTS, 4) for block in blocks]
                halves = [weights]
                if bits == 4:
                    nibble, four = ir.Constant(INTS, [0x0F0F0F0F] * 16), ir.Constant(INTS, [4] * 16)
                    shifted = [b.lshr(weight, four) for weight in weights]
                    halves = [[b.and_(weight, nibble) for weight in half] for half in (weights, shifted)]
                for half, codes in enumerate(halves):
                    results = []
                    for r, line in enumerate(lines):
                        at = b.add(_plus(b, line, j, 4 * len(halves)), _I64(4 * half))
                        value = splat(b, read(b, at, _I32, 4), INTS)
                        for total, code in zip(partial[r * panels :], codes, strict=False):
                            results.append(product(total, code, value))
                    partial = results
                return partial

            integers = _loop(b, steps, [start for start in starts for _ in blocks], step)
            places = [_plus(b, _plus(b, w_scales, p, w_scales_panel), g, 32) for p in range(panels)]
            wider = [b.fpext(read(b, place, ir.VectorType(ir.HalfType(), 16), 2), FLOATS) for place in places]
            of_rows = [splat(b, read(b, b.add(x_scales, at), _FLOAT, 4), FLOATS) for at in per_row]
            factors = [b.fmul(row, scale) for row in of_rows for scale in wider]
            return [
                call(b, "llvm.fma.v16f32", FLOATS, [b.sitofp(integer, FLOATS), factor, total])
                for integer, factor, total in zip(integers, factors, sums, strict=True)
            ]

        totals = _loop(b, groups, [ir.Constant(FLOATS, [0.0] * 16)] * (rows * panels), of_group)
        for i, total in enumerate(totals):
            row, panel = divmod(i, panels)
            write(b, _plus(b, _plus(b, out, row, out_row), panel, _BYTES), total, 4)

    return primitive(types.void, [types.int64] * 13, generate)


def _sums(b: ir.IRBuilder, vectors: Values) -> ir.Value:
    """The sum over the lanes of each of 16 vectors, as one vector: halves are added while vectors are merged."""
    width = 1
    while len(vectors) > 1:
        # Lanes in groups of 2 width: of x the first, of y the second half of each group holds what is left to add.
        kept = [lane for lane in range(16) if not lane // width % 2]
        low = [
            k for lane in kept[::width] for k in [*range(lane, lane + width), *range(16 + lane, 16 + lane + width)]
        ]
        high = [lane + width for lane in low]
        masks = [ir.Constant(ir.VectorType(_I32, 16), indices) for indices in (low, high)]
        vectors = [
            b.fadd(*(b.shuffle_vector(x, y, mask) for mask in masks))
            for x, y in zip(vectors[::2], vectors[1::2], strict=True)
        ]
        width *= 2
    return vectors[0]


def _dots(b: ir.IRBuilder, lines: ir.Value, x: ir.Value, steps: ir.Value) -> ir.Value:
    rows = [read(b, _plus(b, lines, r, 8), _I64, 8) for r in range(16)]

    def step(j: ir.Value, sums: Values) -> Values:
        value = read(b, _plus(b, x, j, _BYTES), PAIRS, 4)
        weights = [read(b, _plus(b, row, j, _BYTES), PAIRS, 2) for row in rows]
        dot = "llvm.x86.avx512bf16.dpbf16ps.512"
        return [call(b, dot, FLOATS, [total, value, w]) for total, w in zip(sums, weights, strict=True)]

    return _sums(b, _loop(b, steps, [ir.Constant(FLOATS, [0.0] * 16)] * 16, step))


# Of the rows of bfloat16 whose 16 addresses lie at ``lines``: the products with the row at ``x``, both of ``steps``
# times 32 numbers. For few rows of x: a tile would leave most lanes empty.
dots = primitive(F32, [types.int64] * 3, _dots)
