"""Unpack weight streams: the exact inverse of packing. Format: :mod:`alula.hw.layout`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alula.hw import layout
from alula.hw.isa import SEGMENT_TILES, TILE_ROWS


class StreamError(ValueError):
    """A weight stream's bytes break the format."""


class Strips(NamedTuple):
    """A lane's share of a matrix."""

    codes: NDArray[np.int16]  # (rows, cols) code - zero_point
    scales: NDArray[np.float32]  # (rows, groups); 0 where a row is absent
    present: NDArray[np.bool_]  # (rows, groups)


def unpack_stream(data: NDArray[np.uint8], strips: int, groups: int, group: int,
                  beat_bytes: int) -> Strips:
    """Unpack strips of ``groups`` tiles; raise :class:`StreamError` if they break the format."""
    codes = np.zeros((strips * TILE_ROWS, groups * group), np.int16)
    scales = np.zeros((strips * TILE_ROWS, groups), np.float32)
    present = np.zeros(scales.shape, np.bool_)
    reader = _Reader(data)
    for strip in range(strips):
        rows = slice(strip * TILE_ROWS, (strip + 1) * TILE_ROWS)
        for first in range(0, groups, SEGMENT_TILES):
            tiles = range(first, min(first + SEGMENT_TILES, groups))
            _read_segment(reader, codes[rows], scales[rows], present[rows], tiles, group)
            reader.align(beat_bytes)
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
                  stored: NDArray[np.bool_], tiles: range, group: int) -> None:
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
    for tile, (_, kept, bits, _), present, zero in zip(tiles, headers, rows, zeros, strict=True):
        size = layout.payload_bytes(group, kept, bits)
        payload = reader.take(size * len(present)).reshape(len(present), size)
        columns = slice(tile * group, (tile + 1) * group)
        codes[present, columns] = _row_values(payload, group, kept, bits) - zero[:, None]
        if kept:
            codes[present, columns] *= _kept_mask(payload, group, kept)


def _fields(payload: NDArray[np.uint8], first: int, width: int, count: int) -> NDArray[np.int16]:
    """Return ``count`` fields of ``width`` bits, from bit ``first`` of each row."""
    flat = np.unpackbits(payload, axis=-1, bitorder="little")
    flat = flat[:, first:first + width * count].reshape(len(payload), count, width)
    return (flat.astype(np.int32) << np.arange(width)).sum(axis=-1)


def _bitmaps(payload: NDArray[np.uint8], group: int, kept: int) -> NDArray[np.bool_]:
    """Return which inputs of each row are kept, ``(rows, windows, 16)``."""
    positions = _fields(payload, 0, layout.position_bits(kept), group // layout.WINDOW)
    table = layout.pattern_tables(kept)[1]
    if positions.size and positions.max() >= len(table):
        raise StreamError(f"a pattern code of {kept} of 16 must be below {len(table)}, "
                          f"not {positions.max()}")
    positions = table[positions].astype(np.int32)
    return (positions[..., None] >> np.arange(layout.WINDOW) & 1).astype(bool)


def _row_values(payload: NDArray[np.uint8], group: int, kept: int,
                bits: int) -> NDArray[np.int16]:
    """Return the codes of each row at their inputs, ``(rows, group)``; 0 where none is kept."""
    if not kept:
        return _fields(payload, 0, bits, group).astype(np.int16)
    windows = group // layout.WINDOW
    bitmaps = _bitmaps(payload, group, kept)
    values = _fields(payload, windows * layout.position_bits(kept), bits, windows * kept)
    out = np.zeros(bitmaps.shape, np.int16)
    out[bitmaps] = values.reshape(-1)
    return out.reshape(len(payload), group)


def _kept_mask(payload: NDArray[np.uint8], group: int, kept: int) -> NDArray[np.bool_]:
    return _bitmaps(payload, group, kept).reshape(len(payload), group)
