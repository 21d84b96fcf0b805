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
    block = layout.block_windows(group, arch.lane_dsps)
    codes = np.zeros((strips * TILE_ROWS, groups * group), np.int16)
    scales = np.zeros((strips * TILE_ROWS, groups), np.float32)
    present = np.zeros(scales.shape, np.bool_)
    reader = _Reader(data)
    for strip in range(strips):
        rows = slice(strip * TILE_ROWS, (strip + 1) * TILE_ROWS)
        for first in range(0, groups, SEGMENT_TILES):
            tiles = range(first, min(first + SEGMENT_TILES, groups))
            _read_segment(reader, codes[rows], scales[rows], present[rows], tiles, group,
                          block)
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
                  stored: NDArray[np.bool_], tiles: range, group: int, block: int) -> None:
    words = reader.take(layout.HEADER_BYTES * len(tiles)).copy().view("<u4")
    headers = [layout.parse_header(int(word)) for word in words]
    rows = [np.flatnonzero(present >> np.arange(TILE_ROWS) & 1) for present, *_ in headers]
    for tile, present in zip(tiles, rows, strict=True):
        half = reader.take(layout.SCALE_BYTES * len(present)).copy().view("<f2")
        scales[present, tile], stored[present, tile] = half.astype(np.float32), True
    zeros = []
    for (_, _, bits, given), present in zip(headers, rows, strict=True):
        zeros.append(reader.take(len(present)).astype(np.int16) if given
                     else np.full(len(present), 1 << (bits - 1), np.int16))
    strings = [reader.take(layout.positions_bytes(len(present), group, kept))
               for (_, kept, _, _), present in zip(headers, rows, strict=True)]
    for tile, (_, kept, bits, _), present, zero, positions in zip(tiles, headers, rows, zeros,
                                                                  strings, strict=True):
        columns = slice(tile * group, (tile + 1) * group)
        string = reader.take(layout.codes_bytes(len(present), group, kept, bits))
        shape = len(present), group // layout.WINDOW, layout.window_codes(kept)
        values = _natural(_fields(string, bits, math.prod(shape)).reshape(shape), block)
        values -= zero[:, None, None]
        codes[present, columns] = (_placed(values, positions, kept) if kept
                                   else values).reshape(len(present), group)


def _fields(string: NDArray[np.uint8], width: int, count: int) -> NDArray[np.int16]:
    """Return the first ``count`` fields of ``width`` bits."""
    flat = np.unpackbits(string, bitorder="little")[:width * count].reshape(count, width)
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


def _placed(values: NDArray[np.int16], string: NDArray[np.uint8],
            kept: int) -> NDArray[np.int16]:
    """Return values at their inputs, ``(rows, windows, 16)``; 0 where none is kept."""
    rows, windows, _ = values.shape
    positions = _fields(string, layout.position_bits(kept), rows * windows)
    table = layout.pattern_tables(kept)[1]
    bitmaps = table[positions].astype(np.int32).reshape(rows, windows, 1)
    if not bitmaps.all():
        raise StreamError(f"a pattern code of {kept} of 16 must stand for a pattern, not be "
                          f"{positions[bitmaps.reshape(-1) == 0][0]}")
    out = np.zeros((rows, windows, layout.WINDOW), np.int16)
    out[(bitmaps >> np.arange(layout.WINDOW) & 1).astype(bool)] = values.reshape(-1)
    return out
