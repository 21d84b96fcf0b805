"""Weight streams put in the order that the processor multiplies them in; they stay packed.

A matrix is cut into tiles of sixteen rows and a group of inputs, as its streams are
(:mod:`alula.hw.layout`); tiles of a strip follow one another. Of each tile's present rows:

- *meta*: fp16 scales, then zero points, a byte each, if its header says so;
- *codes*, window by window of sixteen inputs. Dense: four vectors of four inputs of every row, a
  byte each; of 4 bits the second vector is the high nibbles of the first, of 2 bits the four share
  bytes, of 3 bits the third bits follow, a bit each. Sparse: a bitmap of two bytes for each row,
  then the kept codes, row by row, as a string of fields; of 3 bits two bits each, then the third.

Headers are those of the streams. What is read past the end of a tile is never used.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from alula.compiler.program import Program
from alula.host.cpu.compiled import compiled
from alula.host.cpu.simd import has_avx512
from alula.hw import layout, numerics
from alula.hw.isa import SEGMENT_TILES, TILE_ROWS, WORD_BYTES, Linear
from alula.sim.machine import MachineError
from alula.sim.unpack import unpack_stream

_SLACK = 64  # bytes that a load may go past the end
_WIDTHS = np.array(numerics.WEIGHT_BITS)
_KEPT = 16, 15  # where a header has it, and its mask
_ZERO_POINTS = 22
_BY_CODE = {4: 0, 8: 1, 12: 2}


@dataclass(frozen=True)
class PackedMatrix:
    """A matrix as kernels read it."""

    heads: NDArray[np.uint32]  # (strips, groups)
    at: NDArray[np.int64]  # (strips, 2): where a strip's meta and codes begin
    meta: NDArray[np.uint8]
    codes: NDArray[np.uint8]
    bits: int
    windows: int  # of a group
    exponent: int

    @property
    def size(self) -> int:
        """Bytes that a product reads."""
        return self.heads.nbytes + self.at.nbytes + self.meta.nbytes + self.codes.nbytes


@compiled
def _popcount(mask):  # type: ignore[no-untyped-def]
    count = 0
    for row in range(TILE_ROWS):
        count += mask >> row & 1
    return count


@compiled
def _walk(data, strips, groups, group, beat_bytes, widths, heads, segments):  # type: ignore[no-untyped-def]
    """Find headers and segments of a lane's share; return the bytes it has, or -1."""
    at = 0
    for strip in range(strips):
        for first in range(0, groups, 16):
            tiles = min(16, groups - first)
            segments[strip, first // 16] = at
            size = 4 * tiles
            if at + size > data.size:
                return -1
            for tile in range(tiles):
                start = at + 4 * tile
                head = (np.int64(data[start]) | np.int64(data[start + 1]) << 8
                        | np.int64(data[start + 2]) << 16 | np.int64(data[start + 3]) << 24)
                if head >> 23:
                    return -1
                rows = _popcount(head & 0xFFFF)
                kept, width, given = head >> 16 & 15, widths[head >> 20 & 3], head >> 22 & 1
                if not (kept == 0 or kept == 4 or kept == 8 or kept == 12 and width >= 4):
                    return -1
                position = 11 if kept == 4 or kept == 12 else 14 if kept == 8 else 0
                per_window = kept if kept else 16
                size += (2 + given) * rows + (rows * (group // 16 * position) + 7) // 8
                size += (rows * (group // 16 * per_window * width) + 7) // 8
                heads[strip, first + tile] = head
            at += size
            at += -at % beat_bytes
    return at


@compiled
def _sizes(heads, group, bits, widths, sparse, sizes):  # type: ignore[no-untyped-def]
    """Turn headers into those of the new order; give the bytes of each strip's meta and codes."""
    windows = group // 16
    for strip in range(heads.shape[0]):
        meta = codes = 0
        for tile in range(heads.shape[1]):
            head = np.int64(heads[strip, tile])
            rows = _popcount(head & 0xFFFF)
            kept, given = head >> 16 & 15, head >> 22 & 1
            if widths[head >> 20 & 3] != bits:
                given = 1
            if not sparse:
                kept = 0
            heads[strip, tile] = head & 0xFFFF | kept << 16 | given << 22
            meta += (2 + given) * rows
            codes += windows * _window_bytes(rows, kept, bits)
        sizes[strip, 0], sizes[strip, 1] = meta, codes


@compiled
def _window_bytes(rows, kept, bits):  # type: ignore[no-untyped-def]
    if kept == 0:
        return 2 * bits * rows
    if bits == 3:
        return (2 + kept // 4) * rows + (kept * rows + 7) // 8
    return (2 + kept * bits // 8) * rows


@compiled
def _field(data, start, bit, width):  # type: ignore[no-untyped-def]
    """Return a field of a bit string that starts at a byte; at most 14 bits."""
    at = start + (bit >> 3)
    word = np.int64(data[at])
    if (bit & 7) + width > 8:
        word |= np.int64(data[at + 1]) << 8
        if (bit & 7) + width > 16:
            word |= np.int64(data[at + 2]) << 16
    return word >> (bit & 7) & ((1 << width) - 1)


@compiled
def _put(out, base, rows, row, index, code, bits):  # type: ignore[no-untyped-def]
    """Store a dense tile's code of input ``index`` of its row ``row``."""
    base += (index >> 4) * 2 * bits * rows
    part, place = index >> 2 & 3, 4 * row + (index & 3)
    if bits == 8:
        out[base + part * 4 * rows + place] = code
    elif bits == 4:
        out[base + (part >> 1) * 4 * rows + place] |= code << 4 * (part & 1)
    else:
        out[base + place] |= (code & 3) << 2 * part
        if bits == 3:
            bit = part * 4 * rows + place
            out[base + 4 * rows + (bit >> 3)] |= (code >> 2) << (bit & 7)


@compiled
def _put_kept(out, base, rows, kept, number, code, bits):  # type: ignore[no-untyped-def]
    """Store a sparse window's code ``number``."""
    base += 2 * rows
    if bits == 8:
        out[base + number] = code
    elif bits == 4:
        out[base + (number >> 1)] |= code << 4 * (number & 1)
    else:
        out[base + (number >> 2)] |= (code & 3) << 2 * (number & 3)
        if bits == 3:
            base += kept // 4 * rows
            out[base + (number >> 3)] |= (code >> 2) << (number & 7)


@compiled
def _order(number, per_window, windows, block):  # type: ignore[no-untyped-def]
    """Return where a row's code of natural number lies among its codes in the slices' order."""
    if per_window <= 8:
        return number
    window, inside = number // per_window, number % per_window
    first = window // block * block
    if inside < 8:
        return first * per_window + (window - first) * 8 + inside
    rest = per_window - 8
    return first * per_window + block * 8 + (window - first) * rest + inside - 8


@compiled
def _fast_dense(data, start, out, base, rows, windows, block):  # type: ignore[no-untyped-def]
    """Move a dense tile of 4-bit codes: eight codes of a row are four bytes of either order."""
    for row in range(rows):
        for window in range(windows):
            first = window // block * block
            for half in range(2):
                at = start + 8 * windows * row + 4 * (2 * first + half * block + window - first)
                to = base + 8 * rows * window + 4 * rows * half + 4 * row
                a, b, c, d = data[at], data[at + 1], data[at + 2], data[at + 3]
                out[to] = a & 15 | c << 4
                out[to + 1] = a >> 4 | c & 240
                out[to + 2] = b & 15 | d << 4
                out[to + 3] = b >> 4 | d & 240


@compiled
def _move_codes(data, positions, start, rows, kept, width, windows, block, bitmaps, zeros, out,  # type: ignore[no-untyped-def]
                base, bits, sparse):
    """Move a tile's codes; return whether its patterns are all legal."""
    if kept == 0 and width == 4 and bits == 4:
        _fast_dense(data, start, out, base, rows, windows, block)
        return True
    per_window = kept if kept else 16
    position = 11 if kept == 4 or kept == 12 else 14
    step = _window_bytes(rows, kept, bits)
    for row in range(rows):
        for window in range(windows):
            bitmap = 0xFFFF
            if kept:
                bitmap = np.int64(bitmaps[kept // 4 - 1, _field(
                    data, positions, (row * windows + window) * position, position)])
                if bitmap == 0:
                    return False
                if sparse:
                    out[base + step * window + 2 * row] = bitmap & 255
                    out[base + step * window + 2 * row + 1] = bitmap >> 8
            number = 0
            for inside in range(16):
                if bitmap >> inside & 1:
                    order = row * windows * per_window + _order(
                        window * per_window + number, per_window, windows, block)
                    code = _field(data, start, order * width, width)
                    if kept and sparse:
                        _put_kept(out, base + step * window, rows, kept,
                                  row * kept + number, code, bits)
                    else:
                        _put(out, base, rows, row, 16 * window + inside, code, bits)
                    number += 1
                else:
                    if not sparse:
                        _put(out, base, rows, row, 16 * window + inside, zeros[row], bits)
    return True


def _move(data, groups, group, heads, segments, widths, bitmaps, block, bits, sparse, at, meta,  # type: ignore[no-untyped-def]
          codes, lane, lanes):
    """Move every strip of a lane's share to its place; return how many broke the format."""
    windows = group // 16
    wrong = 0
    for strip in prange(heads.shape[0]):
        meta_at, codes_at = at[lane + strip * lanes, 0], at[lane + strip * lanes, 1]
        zeros = np.zeros(16, np.uint8)
        for first in range(0, groups, 16):
            stop = min(first + 16, groups)
            scales = segments[strip, first // 16] + 4 * (stop - first)
            points = scales
            for tile in range(first, stop):
                points += 2 * _popcount(np.int64(heads[strip, tile]) & 0xFFFF)
            strings = points
            for tile in range(first, stop):
                head = np.int64(heads[strip, tile])
                if head >> 22 & 1:
                    strings += _popcount(head & 0xFFFF)
            fields = strings
            for tile in range(first, stop):
                head = np.int64(heads[strip, tile])
                kept = head >> 16 & 15
                position = 11 if kept == 4 or kept == 12 else 14 if kept == 8 else 0
                fields += (_popcount(head & 0xFFFF) * windows * position + 7) // 8
            for tile in range(first, stop):
                head = np.int64(heads[strip, tile])
                rows = _popcount(head & 0xFFFF)
                kept, width, given = head >> 16 & 15, widths[head >> 20 & 3], head >> 22 & 1
                for byte in range(2 * rows):
                    meta[meta_at + byte] = data[scales + byte]
                meta_at += 2 * rows
                scales += 2 * rows
                for row in range(rows):
                    zeros[row] = data[points + row] if given else 1 << (width - 1)
                if given or width != bits:
                    for row in range(rows):
                        meta[meta_at + row] = zeros[row]
                    meta_at += rows
                points += rows * given
                if not _move_codes(data, strings, fields, rows, kept, width, windows, block,
                                   bitmaps, zeros, codes, codes_at, bits, sparse):
                    wrong += 1
                codes_at += windows * _window_bytes(rows, kept if sparse else 0, bits)
                position = 11 if kept == 4 or kept == 12 else 14 if kept == 8 else 0
                strings += (rows * windows * position + 7) // 8
                fields += (rows * windows * (kept if kept else 16) * width + 7) // 8
    return wrong


_move_strips = compiled(_move, parallel=True)


@cache
def _bitmaps() -> NDArray[np.uint16]:
    """Return bitmaps by pattern code for 4, 8 and 12 of 16."""
    out = np.zeros((3, 1 << 14), np.uint16)
    for at, kept in enumerate((4, 8, 12)):
        table = layout.pattern_tables(kept)[1]
        out[at, :table.size] = table
    return out


def pack(program: Program, address: int, i: Linear, *, sparse: bool | None = None) -> PackedMatrix:
    """Return the matrix of a stream for its instruction.

    Parameters
    ----------
    address
        Byte of the stream's directory entry in each lane.
    sparse
        Keep sparse tiles sparse; if not, they become dense: what processors without the
        instructions to expand them do. By default as this processor can.

    Raises
    ------
    MachineError, StreamError
        If the stream is not of the instruction's shape, or breaks the format.
    """
    sparse = has_avx512() if sparse is None else sparse
    group, lanes = 1 << i.group_log2, len(program.lanes)
    groups, strips = -(-i.inputs // group), -(-i.outputs // TILE_ROWS)
    entries = [image[address:address + WORD_BYTES].view(layout.DIRECTORY_ENTRY)[0]
               for image in program.lanes]
    total = sum(int(entry["strips"]) for entry in entries)
    if total != strips:
        raise MachineError(f"a stream for {i.outputs} outputs must have {strips} strips, "
                           f"not {total}")
    heads = np.zeros((strips, groups), np.uint32)
    shares = []
    for lane, (image, entry) in enumerate(zip(program.lanes, entries, strict=True)):
        start = int(entry["start"]) * WORD_BYTES
        data = np.asarray(image[start:start + int(entry["beats"]) * program.arch.beat_bytes])
        own = np.zeros((int(entry["strips"]), groups), np.uint32)
        segments = np.zeros((len(own), -(-groups // SEGMENT_TILES)), np.int64)
        size = _walk(data, len(own), groups, group, program.arch.beat_bytes, _WIDTHS, own,
                     segments)
        if size != len(data) or len(own) != len(heads[lane::lanes]):
            _refuse(data, len(own), groups, group, program)
        heads[lane::lanes] = own
        shares.append((data, own, segments))
    return _packed(program, shares, heads, group, int(entries[0]["exponent"]), sparse)


def _refuse(data: NDArray[np.uint8], strips: int, groups: int, group: int,
            program: Program) -> None:
    """Let the golden model say what is wrong with a lane's share."""
    unpack_stream(data, strips, groups, group, program.arch)
    raise MachineError("strips must be dealt to the lanes in turn")


def _packed(program: Program, shares: list[Any], heads: NDArray[np.uint32], group: int,
            exponent: int, sparse: bool) -> PackedMatrix:
    lanes, groups = len(shares), heads.shape[1]
    bits = int(_WIDTHS[heads >> 20 & 3].max(initial=2))
    sizes = np.zeros((len(heads), 2), np.int64)
    _sizes(heads, group, bits, _WIDTHS, sparse, sizes)
    at = np.zeros((len(heads) + 1, 2), np.int64)
    np.cumsum(sizes, axis=0, out=at[1:])
    meta, codes = (np.zeros(int(end) + _SLACK, np.uint8) for end in at[-1])
    block = layout.block_windows(group, program.arch.lane_dsps)
    for lane, (data, own, segments) in enumerate(shares):
        if _move_strips(data, groups, group, own, segments, _WIDTHS, _bitmaps(), block, bits,
                        sparse, at, meta, codes, lane, lanes):
            _refuse(data, len(own), groups, group, program)
    return PackedMatrix(heads, at[:-1].copy(), meta, codes, bits, group // layout.WINDOW,
                        exponent)
