"""Unpack weight streams: the exact inverse of packing. Format: :mod:`alula.hw.layout`."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alula.hw import layout
from alula.hw.arch import ArchConfig
from alula.hw.isa import SEGMENT_TILES, TILE_ROWS


class StreamError(ValueError):
    """A weight stream's bytes break the format."""


class Strips(NamedTuple):
    """A lane's share of a matrix."""

    codes: NDArray[np.int16]  # (rows, cols) code - zero_point
    scales: NDArray[np.float32]  # (rows, groups); 0 where a row is absent
    present: NDArray[np.bool_]  # (rows, groups)


def unpack_stream(data: NDArray[np.uint8], strips: int, groups: int, group: int,
                  arch: ArchConfig) -> Strips:
    """Unpack strips of ``groups`` tiles; raise :class:`StreamError` if they break the format."""
    codes = np.zeros((strips * TILE_ROWS, groups * group), np.int16)
    scales = np.zeros((strips * TILE_ROWS, groups), np.float32)
    present = np.zeros(scales.shape, np.bool_)
    reader = _Reader(data)
    for strip in range(strips):
        rows = slice(strip * TILE_ROWS, (strip + 1) * TILE_ROWS)
        for first in range(0, groups, SEGMENT_TILES):
            tiles = range(first, min(first + SEGMENT_TILES, groups))
            _read_segment(reader, codes[rows], scales[rows], present[rows], tiles, group,
                          arch)
            reader.align(arch.beat_bytes)
    if reader.at != len(data):
        raise StreamError(f"a stream of {strips} strips must end at byte {reader.at}, "
                          f"not {len(data)}")
    return Strips(codes, scales, present)


class _Reader:
    def __init__(self, data: NDArray[np.uint8]) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> NDArray[np.uint8]:
        if self.at + count > len(self.data):
            raise StreamError(f"a stream must have at least {self.at + count} bytes, "
                              f"not {len(self.data)}")
        part = self.data[self.at:self.at + count]
        self.at += count
        return part

    def align(self, beat_bytes: int) -> None:
        self.take(-self.at % beat_bytes)


def _read_segment(reader: _Reader, codes: NDArray[np.int16], scales: NDArray[np.float32],
                  stored: NDArray[np.bool_], tiles: range, group: int, arch: ArchConfig) -> None:
    unit, block = layout.unit_bytes(arch), layout.block_windows(group, arch)
    words = reader.take(layout.HEADER_BYTES * layout.header_words(len(tiles))).copy().view("<u4")
    reader.align(unit)
    headers = [layout.parse_header(int(word)) for word in words[:len(tiles)]]
    rows = [np.flatnonzero(present >> np.arange(TILE_ROWS) & 1) for present, *_ in headers]
    _check_totals(words, headers, group, arch)
    for tile, present in zip(tiles, rows, strict=True):
        half = reader.take(layout.SCALE_BYTES * len(present)).copy().view("<f2")
        scales[present, tile], stored[present, tile] = half.astype(np.float32), True
    reader.align(unit)
    zeros = []
    for (_, _, bits, given), present in zip(headers, rows, strict=True):
        zeros.append(reader.take(len(present)).astype(np.int16) if given
                     else np.full(len(present), 1 << (bits - 1), np.int16))
    reader.align(unit)
    strings = [reader.take(layout.positions_bytes(len(present), group, kept, arch))
               for (_, kept, _, _), present in zip(headers, rows, strict=True)]
    reader.align(unit)
    for tile, (_, kept, bits, _), present, zero, positions in zip(tiles, headers, rows, zeros,
                                                                  strings, strict=True):
        columns = slice(tile * group, (tile + 1) * group)
        string = reader.take(layout.codes_bytes(len(present), group, kept, bits, arch))
        windows = len(present), group // layout.WINDOW
        of_bundle = layout.bundle_rows(group, kept, arch) * block  # windows
        count, each = math.prod(windows), layout.window_codes(kept)
        values = _natural(_fields(string, bits, count, of_bundle, each, unit).reshape(
            *windows, each), block)
        values -= zero[:, None, None]
        if kept:
            patterns = _fields(positions, layout.position_bits(kept), count, of_bundle, 1, 1)
            values = _placed(values, patterns.reshape(windows), kept)
        codes[present, columns] = values.reshape(len(present), group)


def _check_totals(words: NDArray[np.uint32], headers: list[tuple[int, int, int, bool]], group: int,
                  arch: ArchConfig) -> None:
    """Raise if the totals in a segment's headers are not what its tiles say."""
    rows = [present.bit_count() for present, *_ in headers]
    wanted = layout.totals(
        sum(rows), sum(count for count, (*_, given) in zip(rows, headers, strict=True) if given),
        sum(layout.positions_bytes(count, group, kept, arch)
            for count, (_, kept, _, _) in zip(rows, headers, strict=True)))
    found = tuple((words[:layout.TOTALS] >> 32 - layout.TOTAL_BITS).tolist())
    if found != wanted:
        raise StreamError(f"a segment's headers must give the totals {wanted}, not {found}")


def _fields(string: NDArray[np.uint8], width: int, windows: int, of_bundle: int, each: int,
            unit: int) -> NDArray[np.int16]:
    """Return the fields of windows, ``each`` of ``width`` bits, from bundles of whole units."""
    bits = of_bundle * each * width
    size = -(-bits // (8 * unit)) * unit
    whole = np.zeros((-(-windows // of_bundle), size), np.uint8)
    whole.reshape(-1)[:len(string)] = string
    flat = np.unpackbits(whole, axis=1, bitorder="little")[:, :bits].reshape(-1, width)
    flat = flat[:windows * each]
    return (flat.astype(np.int16) << np.arange(width, dtype=np.int16)).sum(axis=-1, dtype=np.int16)


def _natural(codes: NDArray[np.int16], block: int) -> NDArray[np.int16]:
    """Return codes ``(rows, windows, codes)`` window by window, from the slices' order."""
    rows, windows, count = codes.shape
    first, rest = layout.CASCADE, count - layout.CASCADE
    if rest <= 0:
        return codes
    block = min(block, windows)
    by_block = codes.reshape(rows, windows // block, block * count)
    parts = (by_block[..., :block * first].reshape(rows, windows, first),
             by_block[..., block * first:].reshape(rows, windows, rest))
    return np.concatenate(parts, axis=-1)


def _placed(values: NDArray[np.int16], positions: NDArray[np.int16],
            kept: int) -> NDArray[np.int16]:
    """Return values at their inputs, ``(rows, windows, 16)``; 0 where none is kept."""
    rows, windows, _ = values.shape
    table = layout.pattern_tables(kept)[1]
    bitmaps = table[positions].astype(np.int32)[..., None]
    if not bitmaps.all():
        raise StreamError(f"a pattern code of {kept} of 16 must stand for a pattern, not be "
                          f"{positions[bitmaps[..., 0] == 0][0]}")
    out = np.zeros((rows, windows, layout.WINDOW), np.int16)
    out[(bitmaps >> np.arange(layout.WINDOW) & 1).astype(bool)] = values.reshape(-1)
    return out
