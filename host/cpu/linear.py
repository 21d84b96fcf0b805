"""Products on packed weights: exact integer dots of groups, fp32 sums in ascending groups.

A strip of sixteen rows is the unit of work: a row is a lane of a vector. Its weights are read once
for up to eight rows of activations, sixteen inputs at a time: they become four vectors, of four
inputs of each row. Layout: :mod:`alula.host.cpu.weights`.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from alula.host.cpu.compiled import compiled
from alula.host.cpu.simd import F32, I8, I16, I32, I64, LANES, Simd, constant, vector

ROWS = (1, 2, 4, 8)  # rows of activations that kernels are made for
_DENSE = 0xFFFF  # header of a tile that has all rows, dense and symmetric
_BYTES = vector(I8, 64)


class Tile(Simd):
    """Emits what a tile's codes become: for each window four vectors of 64 codes."""

    def __init__(self, builder: Any, fast: bool, bits: int) -> None:
        super().__init__(builder, fast)
        self.bits = bits

    def dense(self, at: Any, rows: Any) -> list[Any]:
        """Return a dense window's codes, of ``rows`` rows, 16 or a 64-bit integer."""
        step = 64 if rows == LANES else self.times(rows, 4)
        if self.bits == 8:
            return [self.load(self.offset(at, *self._multiple(step, part)), _BYTES)
                    for part in range(4)]
        if self.bits == 4:
            pairs = [self.load(at, _BYTES), self.load(self.offset(at, step), _BYTES)]
            return [self._field(pair, shift, 15) for pair in pairs for shift in (0, 4)]
        whole = self.load(at, _BYTES)
        codes = [self._field(whole, shift, 3) for shift in (0, 2, 4, 6)]
        if self.bits == 2:
            return codes
        high = self.offset(at, step)  # the third bits
        return [self._third(code, self._bit_run(high, rows, part))
                for part, code in enumerate(codes)]

    def _multiple(self, step: Any, count: int) -> tuple[Any, ...]:
        return (step * count,) if isinstance(step, int) else (step,) * count

    def _field(self, codes: Any, shift: int, mask: int) -> Any:
        words = self.builder.bitcast(codes, vector(I32))
        if shift:
            words = self.builder.lshr(words, constant(I32, shift))
        return self.builder.bitcast(
            self.builder.and_(words, constant(I32, mask * 0x0101_0101)), _BYTES)

    def _bit_run(self, at: Any, rows: Any, part: int) -> Any:
        """Return the bits of one of a window's four vectors; past the rows' any."""
        if rows == LANES:
            return self.load(self.offset(at, 8 * part), I64)
        first = self.times(rows, 4 * part)
        word = self.load(self.offset(at, self.builder.lshr(first, I64(3))), I64)
        return self.builder.lshr(word, self.builder.and_(first, I64(7)))

    def _third(self, codes: Any, high: Any) -> Any:
        ones = self.builder.bitcast(high, vector(ir.IntType(1), 64))
        return self.builder.or_(codes, self.builder.select(ones, constant(I8, 4, 64),
                                                           constant(I8, 0, 64)))

    def sparse(self, at: Any, rows: Any, kept: int, zeros: Any) -> list[Any]:
        """Return a window's codes, of which ``kept`` are stored behind a bitmap for each row.

        ``zeros`` are four vectors of what a code is where none is stored, four rows each: of all
        sixteen those that are four apart, of fewer those that follow each other.
        """
        codes = self.offset(at, 2 * LANES if rows == LANES else self.times(rows, 2))
        blocks = []
        for block in range(4):
            mask = self.load(self.offset(at, 8 * block), I64)
            if rows != LANES:
                mask = self.builder.and_(mask, self._clamp(rows, block))
            values = self._unpacked(codes, rows, kept, 4 * block * kept)
            blocks.append(self.expand(values, zeros[block], mask))
        return self._interleaved(blocks) if rows == LANES else self._transposed(blocks)

    def _clamp(self, rows: Any, block: int) -> Any:
        """Return ones for those of a block's four rows that there are, sixteen each."""
        bits = self.builder.sub(self.times(rows, 16), I64(64 * block))
        some = self.builder.sub(self.builder.shl(I64(1), self.builder.and_(bits, I64(63))), I64(1))
        some = self.builder.select(self.builder.icmp_signed(">=", bits, I64(64)), I64(-1), some)
        return self.builder.select(self.builder.icmp_signed("<=", bits, I64(0)), I64(0), some)

    def _unpacked(self, at: Any, rows: Any, kept: int, first: int) -> Any:
        """Return 64 codes of a string from its code ``first`` on; not all need be of it."""
        if self.bits == 8:
            return self.load(self.offset(at, first), _BYTES)
        if self.bits == 4:
            pairs = self.builder.zext(self.load(self.offset(at, first // 2), vector(I8, 32)),
                                      vector(I16, 32))
            spread = self.builder.or_(pairs, self.builder.shl(pairs, constant(I16, 4, 32)))
            return self.builder.bitcast(
                self.builder.and_(spread, constant(I16, 0x0F0F, 32)), _BYTES)
        quads = self.builder.zext(self.load(self.offset(at, first // 4), vector(I8)), vector(I32))
        spread = quads
        for shift in (6, 12, 18):
            spread = self.builder.or_(spread, self.builder.shl(quads, constant(I32, shift)))
        codes = self.builder.bitcast(
            self.builder.and_(spread, constant(I32, 0x0303_0303)), _BYTES)
        if self.bits == 2:
            return codes
        size = rows * kept // 4 if rows == LANES else self.times(rows, kept // 4)
        return self._third(codes, self.load(self.offset(at, size, first // 8), I64))

    def _interleaved(self, blocks: list[Any]) -> list[Any]:
        """Return vectors by inputs from vectors of rows four apart, within each 128 bits."""
        def take(a: Any, b: Any, order: tuple[int, ...]) -> Any:
            return self.shuffle(a, b, [4 * part + at for part in range(4) for at in order])

        words = [self.builder.bitcast(block, vector(I32)) for block in blocks]
        made = []
        for order in ((0, 16, 1, 17), (2, 18, 3, 19)):
            first, second = take(words[0], words[1], order), take(words[2], words[3], order)
            made += [take(first, second, (0, 1, 16, 17)), take(first, second, (2, 3, 18, 19))]
        return [self.builder.bitcast(word, _BYTES) for word in made]

    def _transposed(self, blocks: list[Any]) -> list[Any]:
        """Return vectors by inputs from vectors by rows: 16 rows of four 32-bit words each."""
        words = [self.builder.bitcast(block, vector(I32)) for block in blocks]
        halves = []
        for part in range(4):  # words of one input of rows 0 to 7, then 8 to 15
            order = [4 * row + part for row in range(8)] * 2
            halves.append([self.shuffle(a, b, order[:4] + [at + 16 for at in order[:4]] + [0] * 8)
                           for a, b in (words[:2], words[2:])])
        joined = [self.shuffle(low, high, [*range(8), *range(16, 24)]) for low, high in halves]
        return [self.builder.bitcast(word, _BYTES) for word in joined]


class Strip(Tile):
    """Emits the loop over a strip's tiles.

    Members
    -------
    rows
        Rows of activations.
    x, x_scales, corrections
        Addresses: ``(inputs / 4, rows)`` 32-bit words of four int8, ``(groups, rows)`` fp32, and
        minus each group's sum of activations, ``(groups, rows)`` int32.
    """

    def __init__(self, builder: Any, fast: bool, bits: int, rows: int, x: Any, x_scales: Any,
                 corrections: Any) -> None:
        super().__init__(builder, fast, bits)
        self.rows = rows
        self.x, self.x_scales, self.corrections = x, x_scales, corrections
        self.middle = 1 << (bits - 1)
        self.totals = [self.variable(constant(F32, 0.0)) for _ in range(rows)]

    def variable(self, value: Any) -> Any:
        slot = cgutils.alloca_once(self.builder, value.type)
        self.builder.store(value, slot)
        return slot

    def advance(self, slot: Any, amount: Any) -> None:
        self.builder.store(self.offset(self.builder.load(slot), amount), slot)

    def run(self, heads: Any, meta: Any, codes: Any, groups: Any, windows: Any) -> None:
        """Add every tile's products to the totals; addresses are of the strip's first tile."""
        meta, codes = self.variable(meta), self.variable(codes)
        with cgutils.for_range(self.builder, groups, intp=I64) as loop:
            head = self.load(self.offset(heads, self.times(loop.index, 4)), I32)
            plain = self.builder.icmp_unsigned("==", head, I32(_DENSE))
            with self.builder.if_else(plain, likely=True) as (then, otherwise):
                with then:
                    self._plain(meta, codes, loop.index, windows)
                with otherwise:
                    self._general(head, meta, codes, loop.index, windows)

    def _plain(self, meta: Any, codes: Any, group: Any, windows: Any) -> None:
        sums = self._sums([self._splat_of(self.corrections, group, row, self.middle)
                           for row in range(self.rows)])
        self._windows(sums, codes, group, windows, 32 * self.bits,
                      lambda at: self.dense(at, LANES))
        terms = self._terms(sums, self.halves(self.builder.load(meta)), group)
        for total, term in zip(self.totals, terms, strict=True):
            self.builder.store(self.flush(self.builder.fadd(self.builder.load(total), term)),
                               total)
        self.advance(meta, 2 * LANES)

    def _general(self, head: Any, meta: Any, codes: Any, group: Any, windows: Any) -> None:
        present = self.builder.trunc(head, I16)
        rows = self.builder.zext(self.call("llvm.ctpop.i16", I16, present), I64)
        scales = self.halves(self.builder.load(meta))
        self.advance(meta, self.times(rows, 2))
        points = self._zero_points(head, meta, rows)
        wide = self.builder.zext(points, vector(I32))
        sums = self._sums([self.builder.mul(self._splat_of(self.corrections, group, row, 1), wide)
                           for row in range(self.rows)])
        kept = self.builder.and_(self.builder.lshr(head, I32(16)), I32(15))
        dense = self.times(rows, 2 * self.bits)
        with self.builder.if_then(self.builder.icmp_unsigned("==", kept, I32(0))):
            self._windows(sums, codes, group, windows, dense, lambda at: self.dense(at, rows))
        if self.fast:
            for count in (4, 8, 12):
                is_it = self.builder.icmp_unsigned("==", kept, I32(count))
                with self.builder.if_then(is_it):
                    self._sparse_windows(sums, codes, group, windows, rows, count, points)
        for total, term in zip(self.totals, self._terms(sums, scales, group), strict=True):
            before = self.builder.load(total)
            term = self.expand(term, constant(F32, 0.0), present)
            after = self.flush(self.builder.fadd(before, term))
            ones = self.builder.bitcast(present, vector(ir.IntType(1)))
            self.builder.store(self.builder.select(ones, after, before), total)

    def _sparse_windows(self, sums: list[list[Any]], codes: Any, group: Any, windows: Any,
                        rows: Any, count: int, points: Any) -> None:
        step = self._sparse_bytes(rows, count)
        whole = self.builder.icmp_unsigned("==", rows, I64(LANES))
        apart, together = (
            [self.shuffle(points, points, [of_lane * (lane // 16) + of_block * block
                                           for lane in range(64)]) for block in range(4)]
            for of_lane, of_block in ((4, 1), (1, 4)))
        with self.builder.if_else(whole, likely=True) as (then, otherwise):
            with then:
                self._windows(sums, codes, group, windows, step,
                              lambda at: self.sparse(at, LANES, count, apart))
            with otherwise:
                self._windows(sums, codes, group, windows, step,
                              lambda at: self.sparse(at, rows, count, together))

    def _sparse_bytes(self, rows: Any, kept: int) -> Any:
        """Return the bytes of a window: bitmaps, codes; of 3 bits two, then the third ones."""
        if self.bits == 3:
            third = self.builder.lshr(self.offset(self.times(rows, kept), 7), I64(3))
            return self.offset(self.times(rows, 2 + kept // 4), third)
        return self.times(rows, 2 + kept * self.bits // 8)

    def _zero_points(self, head: Any, meta: Any, rows: Any) -> Any:
        """Return zero points as sixteen bytes, and go past them if they are stored."""
        given = self.builder.trunc(self.builder.lshr(head, I32(22)), ir.IntType(1))
        stored = self.load(self.builder.load(meta), vector(I8))
        points = self.builder.select(given, stored, constant(I8, self.middle))
        self.advance(meta, self.builder.select(given, rows, I64(0)))
        return points

    def _at(self, base: Any, group: Any, row: int) -> Any:
        return self.offset(base, self.times(group, 4 * self.rows), 4 * row)

    def _splat_of(self, base: Any, group: Any, row: int, factor: int) -> Any:
        value = self.load(self._at(base, group, row), I32)
        return self.splat(self.builder.mul(value, I32(factor)) if factor != 1 else value)

    def _sums(self, first: list[Any]) -> list[list[Any]]:
        """Return places of sums: several for each row, if rows are few, so that none waits."""
        parts = max(1, 4 // self.rows)
        return [[self.variable(value), *(self.variable(constant(I32, 0))
                                         for _ in range(parts - 1))] for value in first]

    def _windows(self, sums: list[list[Any]], codes: Any, group: Any, windows: Any, step: Any,
                 decode: Any) -> None:
        """Add all windows of a tile to its sums, and go past their codes."""
        base = self.offset(self.x, self.builder.mul(
            self.builder.mul(group, windows), I64(16 * self.rows)))
        with cgutils.for_range(self.builder, windows, intp=I64) as loop:
            x = self.offset(base, self.times(loop.index, 16 * self.rows))
            for part, four in enumerate(decode(self.builder.load(codes))):
                for row, places in enumerate(sums):
                    word = self.load(self.offset(x, 4 * (part * self.rows + row)), I32)
                    place = places[part % len(places)]
                    self.builder.store(self.dot4(self.builder.load(place), four, word), place)
            self.advance(codes, I64(step) if isinstance(step, int) else step)

    def _terms(self, sums: list[list[Any]], scales: Any, group: Any) -> list[Any]:
        """Return ``(dot * scale) * x scale``.

        The first product is never subnormal: a dot is 0 or at least 1, a scale 0 or at least
        2**-24.
        """
        terms = []
        for row, places in enumerate(sums):
            dot = self.builder.load(places[0])
            for place in places[1:]:
                dot = self.builder.add(dot, self.builder.load(place))
            x_scale = self.load(self._at(self.x_scales, group, row), F32)
            value = self.builder.fmul(self.builder.sitofp(dot, vector(F32)), scales)
            terms.append(self.flush(self.builder.fmul(value, self.splat(x_scale))))
        return terms

    def write(self, target: Any, stride_bytes: Any, count: Any, exponent: Any) -> None:
        """Store the first ``count`` rows' totals, scaled by a power of two."""
        for row, total in enumerate(self.totals):
            with self.builder.if_then(self.builder.icmp_signed("<", I64(row), count)):
                value = self.scale_by_power(self.one_nan(self.builder.load(total)), exponent)
                self.store(value, self.offset(target, self.times(stride_bytes, row)))


@intrinsic(prefer_literal=True)
def strip(typing: Any, fast: Any, bits: Any, rows: Any, heads: Any, meta: Any, codes: Any,
          groups: Any, windows: Any, x: Any, x_scales: Any, corrections: Any, target: Any,
          stride_bytes: Any, count: Any, exponent: Any) -> Any:
    """Compute a strip for some rows of activations; all but the first three are 64-bit integers.

    ``heads`` to ``corrections`` are as :class:`Strip` has them; ``target`` is the address of the
    first row's result, ``count`` how many rows to write.
    """
    made_for: list[Any] = [getattr(one, "literal_value", None) for one in (fast, bits, rows)]
    if None in made_for:
        return None

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (heads, meta, codes, groups, windows, x, x_scales, corrections, target, stride_bytes,
         count, exponent) = arguments[3:]
        made = Strip(builder, bool(made_for[0]), made_for[1], made_for[2], x, x_scales,
                     corrections)
        made.run(heads, meta, codes, groups, windows)
        made.write(target, stride_bytes, count, builder.trunc(exponent, I32))
        return context.get_dummy_value()

    return types.void(fast, bits, rows, *[types.int64] * 12), emit


def make(fast: bool, bits: int, rows: int) -> Any:
    """Return the kernel for a width of codes and up to ``rows`` rows at a time."""
    fast_literal = int(fast)

    def linear(  # type: ignore[no-untyped-def]
            heads, at, meta, codes, exponent, windows, x, x_words, x_scales, source, words,
            scales, corrections, vectors, target):
        count, strips, groups = vectors.shape[0], heads.shape[0], heads.shape[1]
        for block in range(-(-count // rows)):
            for row in range(rows):
                real = block * rows + row
                for group in range(groups):
                    total = 0
                    for word in range(4 * windows * group, 4 * windows * (group + 1)):
                        words[block, word * rows + row] = (
                            x_words[real, 4 * source + word] if real < count else 0)
                    if real < count:
                        for code in range(16 * windows * group, 16 * windows * (group + 1)):
                            total += x[real, 16 * source + code]
                    corrections[block, group * rows + row] = -total
                    scales[block, group * rows + row] = (
                        x_scales[real, source + windows * group] if real < count else 0.0)
        first = vectors.ctypes.data + 4 * 16 * target
        stride = vectors.strides[0]
        for index in prange(strips):
            for block in range(-(-count // rows)):
                strip(fast_literal, bits, rows,
                      heads.ctypes.data + heads.strides[0] * index,
                      meta.ctypes.data + at[index, 0], codes.ctypes.data + at[index, 1],
                      groups, windows, words[block].ctypes.data, scales[block].ctypes.data,
                      corrections[block].ctypes.data,
                      first + block * rows * stride + 64 * index, stride,
                      count - block * rows, exponent)

    linear.__qualname__ = linear.__name__ = f"linear_{fast_literal}_{bits}_{rows}"
    return compiled(linear, parallel=True)
