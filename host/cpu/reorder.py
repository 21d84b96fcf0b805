"""Compiled loops that move a lane's share of a stream to its place in the processor's order.

Formats: :mod:`alula.hw.layout` of the streams, :mod:`alula.host.cpu.weights` of the result.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from alula.host.cpu.compiled import compiled
from alula.hw.isa import TILE_ROWS


@compiled
def _popcount(mask):
    count = 0
    for row in range(TILE_ROWS):
        count += mask >> row & 1
    return count


@compiled
def _position_bits(kept):
    return 14 if kept == 8 else 11 if kept else 0


@compiled
def _bundle_rows(kept, windows, slots, beat_bytes):
    """Return the most rows in a bundle of a lane with DSP slices for so many windows."""
    if kept == 12 or windows > slots:
        return 1
    return min(max(2, beat_bytes // 16), 2 * slots // (windows * (1 if 0 < kept <= 8 else 2)))


@compiled
def _whole(bits, unit):
    return (bits + 8 * unit - 1) // (8 * unit) * unit


@compiled
def _string_bytes(rows, kept, each, windows, slots, beat_bytes, unit):
    """Return the bytes of a tile's bit strings, ``each`` bits of a window, in whole units."""
    most, block = _bundle_rows(kept, windows, slots, beat_bytes), min(windows, slots)
    bits = block * each
    return windows // block * (rows // most * _whole(most * bits, unit)
                               + _whole(rows % most * bits, unit))


@compiled
def _position_bytes(head, windows, slots, beat_bytes):
    kept = head >> 16 & 15
    return _string_bytes(_popcount(head & 0xFFFF), kept, _position_bits(kept), windows, slots,
                         beat_bytes, 1)


@compiled
def _code_bytes(head, width, windows, slots, beat_bytes):
    kept = head >> 16 & 15
    return _string_bytes(_popcount(head & 0xFFFF), kept, (kept if kept else 16) * width, windows,
                         slots, beat_bytes, beat_bytes // 8)


@compiled
def _place(number, kept, each, windows, slots, beat_bytes, unit):
    """Return the first byte and bit in a tile's strings of block ``number``, row by row."""
    most, bits = _bundle_rows(kept, windows, slots, beat_bytes), min(windows, slots) * each
    return number // most * _whole(most * bits, unit), number % most * bits


@compiled
def walk(data, strips, groups, group, beat_bytes, slots, widths, heads, segments):
    """Find headers and segments of a lane's share; return the bytes it has, or -1."""
    at, unit, windows = 0, beat_bytes // 8, group // 16
    for strip in range(strips):
        for first in range(0, groups, 16):
            tiles = min(16, groups - first)
            segments[strip, first // 16] = at
            size = 4 * max(4, tiles)
            if at + size > data.size:
                return -1
            scales = points = positions = codes = 0
            totals = np.zeros(4, np.int64)
            for tile in range(max(4, tiles)):
                start = at + 4 * tile
                head = (np.int64(data[start]) | np.int64(data[start + 1]) << 8
                        | np.int64(data[start + 2]) << 16 | np.int64(data[start + 3]) << 24)
                if tile < 4:
                    totals[tile] = head >> 23
                if tile >= tiles:
                    continue
                head &= 0x7FFFFF
                rows = _popcount(head & 0xFFFF)
                kept, width, given = head >> 16 & 15, widths[head >> 20 & 3], head >> 22 & 1
                if not (kept == 0 or kept == 4 or kept == 8 or kept == 12 and width >= 4):
                    return -1
                scales += rows
                points += given * rows
                positions += _position_bytes(head, windows, slots, beat_bytes)
                codes += _code_bytes(head, width, windows, slots, beat_bytes)
                heads[strip, first + tile] = head
            if (totals[0] != scales or totals[1] != points
                    or totals[2] + (totals[3] << 9) != positions):
                return -1
            at += (_whole(8 * size, unit) + _whole(16 * scales, unit) + _whole(8 * points, unit)
                   + _whole(8 * positions, unit) + codes)
            at += -at % beat_bytes
    return at


@compiled
def sizes_of(heads, group, bits, widths, sparse, sizes):
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
def _window_bytes(rows, kept, bits):
    if kept == 0:
        return 2 * bits * rows
    if bits == 3:
        return (2 + kept // 4) * rows + (kept * rows + 7) // 8
    return (2 + kept * bits // 8) * rows


@compiled
def _field(data, start, bit, width):
    """Return a field of a bit string that starts at a byte; at most 14 bits."""
    at = start + (bit >> 3)
    word = np.int64(data[at])
    if (bit & 7) + width > 8:
        word |= np.int64(data[at + 1]) << 8
        if (bit & 7) + width > 16:
            word |= np.int64(data[at + 2]) << 16
    return word >> (bit & 7) & ((1 << width) - 1)


@compiled
def _put(out, base, rows, row, index, code, bits):
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
def _put_kept(out, base, rows, kept, number, code, bits):
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
def _order(number, per_window, windows, block):
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
def _fast_dense(data, start, out, base, rows, windows, block):
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
def _move_codes(data, positions, start, rows, kept, width, windows, slots, beat_bytes, bitmaps,
                zeros, out, base, bits, sparse):
    """Move a tile's codes; return whether its patterns are all legal."""
    block = min(windows, slots)
    if kept == 0 and width == 4 and bits == 4:  # rows without gaps: bundles are whole units
        _fast_dense(data, start, out, base, rows, windows, block)
        return True
    per_window = kept if kept else 16
    position = _position_bits(kept)
    step = _window_bytes(rows, kept, bits)
    for row in range(rows):
        place = 4 * (row & 3) + (row >> 2) if rows == TILE_ROWS else row
        for window in range(windows):
            first = window // block * block
            number = row * (windows // block) + window // block
            bitmap = 0xFFFF
            if kept:
                byte, bit = _place(number, kept, position, windows, slots, beat_bytes, 1)
                bitmap = np.int64(bitmaps[kept // 4 - 1, _field(
                    data, positions + byte, bit + (window - first) * position, position)])
                if bitmap == 0:
                    return False
                if sparse:
                    out[base + step * window + 2 * place] = bitmap & 255
                    out[base + step * window + 2 * place + 1] = bitmap >> 8
            byte, bit = _place(number, kept, per_window * width, windows, slots, beat_bytes,
                               beat_bytes // 8)
            number = 0
            for inside in range(16):
                if bitmap >> inside & 1:
                    order = _order(window * per_window + number, per_window, windows,
                                   block) - first * per_window
                    code = _field(data, start + byte, bit + order * width, width)
                    if kept and sparse:
                        _put_kept(out, base + step * window, rows, kept,
                                  place * kept + number, code, bits)
                    else:
                        _put(out, base, rows, row, 16 * window + inside, code, bits)
                    number += 1
                else:
                    if not sparse:
                        _put(out, base, rows, row, 16 * window + inside, zeros[row], bits)
    return True


def _move(data, groups, group, heads, segments, widths, bitmaps, beat_bytes, slots, bits, sparse,
          at, meta, codes, lane, lanes):
    """Move every strip of a lane's share to its place; return how many broke the format."""
    windows, unit = group // 16, beat_bytes // 8
    wrong = 0
    for strip in prange(heads.shape[0]):
        meta_at, codes_at = at[lane + strip * lanes, 0], at[lane + strip * lanes, 1]
        zeros = np.zeros(16, np.uint8)
        for first in range(0, groups, 16):
            stop = min(first + 16, groups)
            count = given_count = positions = 0
            for tile in range(first, stop):
                head = np.int64(heads[strip, tile])
                rows = _popcount(head & 0xFFFF)
                count += rows
                given_count += rows * (head >> 22 & 1)
                positions += _position_bytes(head, windows, slots, beat_bytes)
            scales = segments[strip, first // 16] + _whole(32 * max(4, stop - first), unit)
            points = scales + _whole(16 * count, unit)
            strings = points + _whole(8 * given_count, unit)
            fields = strings + _whole(8 * positions, unit)
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
                if not _move_codes(data, strings, fields, rows, kept, width, windows, slots,
                                   beat_bytes, bitmaps, zeros, codes, codes_at, bits, sparse):
                    wrong += 1
                codes_at += windows * _window_bytes(rows, kept if sparse else 0, bits)
                strings += _position_bytes(head, windows, slots, beat_bytes)
                fields += _code_bytes(head, width, windows, slots, beat_bytes)
    return wrong


move_strips = compiled(_move, parallel=True)
