"""Products by packed weights in Triton: exact group sums, fp32 terms in the contract's order."""

from __future__ import annotations

import triton
import triton.language as tl

from alula.host.gpu import exact
from alula.host.gpu.vector import combined, run_ops
from alula.hw import isa

_STRIP = tl.constexpr(isa.TILE_ROWS)
_BLOCK = tl.constexpr(isa.BLOCK)
_WINDOW = tl.constexpr(16)


@triton.jit
def _ones(bits):
    """Count the ones of 16 bits."""
    bits = bits - ((bits >> 1) & 0x5555)
    bits = (bits & 0x3333) + ((bits >> 2) & 0x3333)
    bits = (bits + (bits >> 4)) & 0x0F0F
    return (bits + (bits >> 8)) & 0x1F


@triton.jit
def _dot4(a, b, ASSEMBLY: tl.constexpr):
    """Return the sum of the products of four signed bytes of each word."""
    if ASSEMBLY:
        return tl.inline_asm_elementwise(
            "dp4a.s32.s32 $0, $1, $2, 0;", "=r,r,r", [a, b], dtype=tl.int32, is_pure=True, pack=1)
    else:
        total = (a >> 24) * (b >> 24)
        total += ((a << 8) >> 24) * ((b << 8) >> 24)
        total += ((a << 16) >> 24) * ((b << 16) >> 24)
        return total + ((a << 24) >> 24) * ((b << 24) >> 24)


@triton.jit
def _dot_words(words, high, piece, inside, x, FORMAT: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Return the products of dense pieces by one row of activations: stored codes, no zero points.

    ``x`` points to the activations of the group, four to a word.
    """
    BITS: tl.constexpr = FORMAT[1]
    LOW: tl.constexpr = 2 if BITS == 3 else BITS
    QUADS: tl.constexpr = 8 // LOW
    COUNT: tl.constexpr = FORMAT[0] * LOW // 32
    MASK: tl.constexpr = 0x03030303 if LOW == 2 else (0x0F0F0F0F if LOW == 4 else -1)
    at = tl.arange(0, COUNT)[None, :]
    packed = tl.load(words + piece[:, None] * COUNT + at, mask=inside[:, None], other=0)
    if BITS == 3:
        THIRDS: tl.constexpr = max(1, FORMAT[0] // 32)
        third = tl.load(high + piece[:, None] * THIRDS + at // 2, mask=inside[:, None], other=0)
    total = tl.zeros_like(packed)
    for quad in tl.static_range(QUADS):
        codes = (packed >> (LOW * quad)) & MASK
        if BITS == 3:
            codes = codes | (((third >> (at % 2 * 4 + quad)) & 0x01010101) << 2)
        total += _dot4(codes, tl.load(x + at * QUADS + quad), ASSEMBLY)
    return tl.sum(total, axis=1)


@triton.jit
def _codes(words, high, bitmaps, zeros, piece, inside, at, FORMAT: tl.constexpr):
    """Return the stored codes of pieces at elements of the group, ``(pieces, elements)`` int32."""
    BITS: tl.constexpr = FORMAT[1]
    if FORMAT[2] == 16:
        LOW: tl.constexpr = 2 if BITS == 3 else BITS
        QUADS: tl.constexpr = 8 // LOW
        quad = at // 4
        word = piece * (FORMAT[0] * LOW // 32) + quad // QUADS
        shift = LOW * (quad % QUADS) + 8 * (at % 4)
        codes = (tl.load(words + word, mask=inside, other=0) >> shift) & ((1 << LOW) - 1)
        if BITS == 3:
            word = piece * max(1, FORMAT[0] // 32) + quad // 8
            third = tl.load(high + word, mask=inside, other=0) >> (quad % 8 + 8 * (at % 4))
            codes = codes | ((third & 1) << 2)
        return _signed(codes, BITS)
    else:
        WINDOWS: tl.constexpr = FORMAT[0] // _WINDOW
        BYTES: tl.constexpr = (WINDOWS * FORMAT[2] * BITS + 7) // 8
        window = at // _WINDOW
        bitmap = tl.load(bitmaps + piece * WINDOWS + window, mask=inside, other=0).to(tl.int32)
        before = _ones(bitmap & ((1 << (at % _WINDOW)) - 1))
        kept = inside & (((bitmap >> (at % _WINDOW)) & 1) != 0)
        bit = (window * FORMAT[2] + before) * BITS
        byte = words + piece * BYTES + bit // 8
        low = tl.load(byte, mask=kept, other=0).to(tl.int32)
        past = tl.load(byte + 1, mask=kept & (bit % 8 + BITS > 8), other=0).to(tl.int32)
        codes = ((low | (past << 8)) >> (bit % 8)) & ((1 << BITS) - 1)
        return tl.where(kept, _signed(codes, BITS), zeros)


@triton.jit
def _signed(codes, BITS: tl.constexpr):
    if BITS == 8:
        return (codes ^ 128) - 128
    else:
        return codes


@triton.jit
def _pieces(first, masks, strip, row, group, groups, FULL: tl.constexpr):
    """Return the pieces of output rows in a group, and which are present."""
    tile = strip * groups + group
    if FULL:
        return tile * _STRIP + row, row >= 0
    else:
        mask = tl.load(masks + tile)
        return tl.load(first + tile) + _ones(mask & ((1 << row) - 1)), ((mask >> row) & 1) != 0


@triton.jit
def linear_kernel(memory, addresses, words, high, scales, zeros, bitmaps, masks, first, exponent,
                  count, SIZES: tl.constexpr, FORMAT: tl.constexpr, TARGET: tl.constexpr,
                  SOURCE: tl.constexpr, OUTPUTS: tl.constexpr, GROUPS: tl.constexpr,
                  BEFORE: tl.constexpr, AFTER: tl.constexpr, ROWS: tl.constexpr,
                  COLUMNS: tl.constexpr, TILE: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Multiply rows of codes by ``COLUMNS`` rows of a matrix.

    Parameters
    ----------
    count
        Rows of the step.
    FORMAT
        A :class:`alula.host.gpu.weights.Format`.
    BEFORE
        Ops that every program runs for every row before: what they write is the same in all.
    AFTER
        Element by element, the result is combined with another operand: its target, the operand,
        whether that is shared, the function; or nothing.
    ROWS
        1, or rows that tensor cores take at a time, ``count`` or more.
    """
    if len(BEFORE) > 0:
        for row in range(count):
            run_ops(memory, addresses, row, SIZES, BEFORE, TILE)
    output = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = output < (OUTPUTS + _STRIP - 1) // _STRIP * _STRIP
    strip = tl.where(inside, output // _STRIP, 0).to(tl.int64)
    if ROWS == 1:
        total = _one_row(memory, words, high, scales, zeros, bitmaps, masks, first, strip,
                         output % _STRIP, SIZES, FORMAT, SOURCE, GROUPS, COLUMNS, ASSEMBLY)[None, :]
    else:
        total = _rows(memory, words, high, scales, zeros, bitmaps, masks, first, strip,
                      output % _STRIP, count, SIZES, FORMAT, SOURCE, GROUPS, ROWS, COLUMNS)
    total = tl.where((output < OUTPUTS)[None, :], exact.scale_by_power(total, exponent), 0.0)
    row = tl.arange(0, ROWS)[:, None]
    line = memory.vector + row * SIZES[0]
    stored = inside[None, :] & (row < count)
    tl.store(line + TARGET * _BLOCK + output[None, :], total, mask=stored)
    if len(AFTER) > 0:
        stored = stored & (output < OUTPUTS)[None, :]
        if AFTER[2]:
            other = memory.params + AFTER[1] * _BLOCK + row * 0
        else:
            other = line + AFTER[1] * _BLOCK
        b = tl.load(other + output[None, :], mask=stored, other=0.0)
        tl.store(line + AFTER[0] * _BLOCK + output[None, :], combined(total, b, AFTER[3]),
                 mask=stored)


@triton.jit
def _add_terms(total, dots, scale, x_scales, present):
    terms = exact.mul(exact.mul(dots.to(tl.float32), scale), x_scales)
    return tl.where(present, exact.add(total, terms), total)


@triton.jit
def _one_row(memory, words, high, scales, zeros, bitmaps, masks, first, strip, row,
             SIZES: tl.constexpr, FORMAT: tl.constexpr, SOURCE: tl.constexpr,
             GROUPS: tl.constexpr, COLUMNS: tl.constexpr, ASSEMBLY: tl.constexpr):
    GROUP: tl.constexpr = FORMAT[0]
    element = tl.arange(0, GROUP)
    total = tl.zeros((COLUMNS,), tl.float32)
    for group in range(GROUPS):
        piece, present = _pieces(first, masks, strip, row, group, GROUPS, FORMAT[3])
        x = tl.load(memory.codes + SOURCE * _BLOCK + group * GROUP + element).to(tl.int32)
        x_scale = tl.load(memory.code_scales + SOURCE + group * (GROUP // _BLOCK))
        if FORMAT[4]:
            zero = tl.load(zeros + piece, mask=present, other=0).to(tl.int32)
        else:
            zero = (piece * 0 + (0 if FORMAT[1] == 8 else 1 << (FORMAT[1] - 1))).to(tl.int32)
        if FORMAT[2] == 16:
            start = memory.code_words + SOURCE * (_BLOCK // 4) + group * (GROUP // 4)
            dots = _dot_words(words, high, piece, present, start, FORMAT, ASSEMBLY)
        else:
            codes = _codes(words, high, bitmaps, zero[:, None], piece[:, None], present[:, None],
                           element[None, :], FORMAT)
            dots = tl.sum(codes * x[None, :], axis=1)
        dots -= zero * tl.sum(x, axis=0)
        scale = tl.load(scales + piece, mask=present, other=0.0).to(tl.float32)
        total = _add_terms(total, dots, scale, x_scale, present)
    return total


@triton.jit
def _rows(memory, words, high, scales, zeros, bitmaps, masks, first, strip, row, count,
          SIZES: tl.constexpr, FORMAT: tl.constexpr, SOURCE: tl.constexpr, GROUPS: tl.constexpr,
          ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Weights are loaded packed and multiplied dense, by tensor cores: int8 into int32."""
    GROUP: tl.constexpr = FORMAT[0]
    WIDE: tl.constexpr = max(32, GROUP)  # what int8 tensor cores take at the least
    element = tl.arange(0, WIDE)
    counted = tl.arange(0, ROWS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for group in range(GROUPS):
        piece, present = _pieces(first, masks, strip, row, group, GROUPS, FORMAT[3])
        mask = (counted < count)[:, None] & (element < GROUP)[None, :]
        x = tl.load(memory.codes + counted[:, None] * SIZES[1] + SOURCE * _BLOCK + group * GROUP
                    + element[None, :], mask=mask, other=0)
        x_scales = tl.load(memory.code_scales + counted * (SIZES[1] // _BLOCK) + SOURCE
                           + group * (GROUP // _BLOCK), mask=counted < count, other=0.0)
        if FORMAT[4]:
            zero = tl.load(zeros + piece, mask=present, other=0).to(tl.int32)
        else:
            zero = (piece * 0 + (0 if FORMAT[1] == 8 else 1 << (FORMAT[1] - 1))).to(tl.int32)
        there = present[None, :] & (element < GROUP)[:, None]
        codes = _codes(words, high, bitmaps, zero[None, :], piece[None, :], there,
                       element[:, None], FORMAT)
        dots = tl.dot(x, codes.to(tl.int8), out_dtype=tl.int32)
        dots -= zero[None, :] * tl.sum(x.to(tl.int32), axis=1)[:, None]
        scale = tl.load(scales + piece, mask=present, other=0.0).to(tl.float32)
        total = _add_terms(total, dots, scale[None, :], x_scales[:, None], present[None, :])
    return total
