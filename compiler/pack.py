"""Pack quantized matrices into weight streams. Format: :mod:`alula.hw.layout`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from alula.compiler.graph import Codes
from alula.hw import layout
from alula.hw.isa import SEGMENT_TILES, TILE_ROWS

U8 = NDArray[np.uint8]


@dataclass
class PackStats:
    """Bytes of packed streams by kind; ``weights`` counts every weight, kept or not."""

    weights: int = 0
    kept: int = 0
    codes: int = 0
    positions: int = 0
    scales: int = 0
    zero_points: int = 0
    headers: int = 0
    padding: int = 0

    @property
    def total(self) -> int:
        return (self.codes + self.positions + self.scales + self.zero_points + self.headers
                + self.padding)

    def add(self, other: PackStats) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


def dense_strip(bits: int, group: int, tiles: int, beat_bytes: int) -> PackStats:
    """Return the bytes of one strip of ``tiles`` tiles, all dense and symmetric."""
    stats = PackStats(weights=TILE_ROWS * group * tiles, kept=TILE_ROWS * group * tiles)
    for first in range(0, tiles, SEGMENT_TILES):
        count = min(SEGMENT_TILES, tiles - first)
        before = stats.total
        stats.headers += layout.HEADER_BYTES * count
        stats.scales += layout.SCALE_BYTES * TILE_ROWS * count
        stats.codes += TILE_ROWS * layout.payload_bytes(group, 0, bits) * count
        stats.padding += -(stats.total - before) % beat_bytes
    return stats


def pack_strips(rows: Codes, bits: int, group: int, exponent: int, beat_bytes: int,
                stats: PackStats) -> list[bytes]:
    """Pack rows into strips of :data:`TILE_ROWS`.

    Parameters
    ----------
    rows
        At most ``2**bits`` codes, ``(n, cols)``; a last strip that is short, and a last group that
        is short, are filled with absent rows and zero weights.
    exponent
        Scales are stored as fp16 of ``scale / 2**exponent``.
    stats
        Counts what was packed.

    Returns
    -------
    The bytes of each strip, each a multiple of ``beat_bytes``.
    """
    tiles = _Tiles.of(rows, bits, group, exponent)
    if tiles.uniform_dense:
        return _pack_uniform(tiles, beat_bytes, stats)
    return _pack_mixed(tiles, beat_bytes, stats)


@dataclass
class _Tiles:
    """Codes cut into tiles: axes are strip, tile (group of inputs), row of the tile, input."""

    codes: U8  # (strips, tiles, 16, group)
    bitmaps: NDArray[np.uint16]  # (strips, tiles, 16, windows): which inputs are not zero
    zero_points: U8  # (strips, tiles, 16)
    scales: NDArray[np.float16]  # (strips, tiles, 16)
    present: NDArray[np.bool_]  # (strips, tiles, 16)
    kept: NDArray[np.int64]  # (strips, tiles); 0 is dense
    asymmetric: NDArray[np.bool_]  # (strips, tiles)
    bits: int
    group: int

    @classmethod
    def of(cls, rows: Codes, bits: int, group: int, exponent: int) -> _Tiles:
        count, cols = rows.codes.shape
        tiles, strips = rows.scales.shape[1], -(-count // TILE_ROWS)
        codes, scales, zero_points = rows
        if cols != tiles * group:
            fill = zero_points[:, -1:].repeat(tiles * group - cols, axis=1)
            codes = np.concatenate([codes, fill], axis=1)
        short = strips * TILE_ROWS - count
        if short:
            below = ((0, short), (0, 0))
            codes, zero_points = np.pad(codes, below), np.pad(zero_points, below)
            scales = np.pad(scales, below)
        cut = codes.reshape(strips, TILE_ROWS, tiles, group).transpose(0, 2, 1, 3)
        zero_points = zero_points.reshape(strips, TILE_ROWS, tiles).transpose(0, 2, 1)
        half = np.ldexp(scales, -exponent).astype(np.float16)
        half = half.reshape(strips, TILE_ROWS, tiles).transpose(0, 2, 1)
        nonzero = np.ascontiguousarray(cut != zero_points[..., None])
        bitmaps = np.packbits(nonzero, axis=-1, bitorder="little").view("<u2")
        present = np.asarray(bitmaps.any(axis=-1))
        most = _ONES[bitmaps].max(axis=(-1, -2))
        asymmetric = ((zero_points != 1 << (bits - 1)) & present).any(axis=-1)
        return cls(cut, bitmaps, zero_points, half, present, _KEPT[bits][most], asymmetric, bits,
                   group)

    @property
    def uniform_dense(self) -> bool:
        return bool(self.present.all() and not self.kept.any() and not self.asymmetric.any())


def _cheapest(bits: int) -> NDArray[np.int64]:
    """Return, for the most codes kept in any window, the ``kept`` of the smallest format."""
    def window_bits(kept: int) -> int:
        return kept * bits + layout.position_bits(kept) if kept else layout.WINDOW * bits

    best = [1]
    for most in range(1, layout.WINDOW + 1):
        best.append(min([0, *range(most, layout.WINDOW)], key=window_bits))
    return np.array(best)


_ONES = np.array([value.bit_count() for value in range(1 << layout.WINDOW)])
_KEPT = {bits: _cheapest(bits) for bits in (2, 3, 4, 8)}


def _bit_string(values: NDArray[np.integer], bits: int) -> U8:
    """Pack the last axis, ``bits`` each, low bits first, filled up to a whole byte."""
    if bits == 8:
        return values.astype(np.uint8)
    even = values.shape[-1] * bits % 8 == 0
    if bits == 4 and even:
        pairs = values.astype(np.uint8)
        return np.bitwise_or(pairs[..., 0::2], pairs[..., 1::2] << np.uint8(4))
    if bits == 2 and even:
        pairs = values.astype(np.uint8)
        pairs = np.bitwise_or(pairs[..., 0::2], pairs[..., 1::2] << np.uint8(2))
        return np.bitwise_or(pairs[..., 0::2], pairs[..., 1::2] << np.uint8(4))
    wide = np.unpackbits(np.ascontiguousarray(values.astype("<u2")).view(np.uint8), axis=-1,
                         bitorder="little")
    flat = wide.reshape(*values.shape, 16)[..., :bits].reshape(*values.shape[:-1], -1)
    return np.packbits(flat, axis=-1, bitorder="little")


def _pack_uniform(tiles: _Tiles, beat_bytes: int, stats: PackStats) -> list[bytes]:
    """Pack strips that are dense and symmetric throughout: every segment has one shape."""
    strips, count = tiles.codes.shape[:2]
    payload = _bit_string(tiles.codes, tiles.bits).reshape(strips, count, -1)
    headers = np.full((strips, count), layout.header(0xFFFF, 0, tiles.bits, False), "<u4")
    scales = np.ascontiguousarray(tiles.scales).astype("<f2", copy=False)
    parts = []
    for first in range(0, count, SEGMENT_TILES):
        run = slice(first, first + SEGMENT_TILES)
        segment = [np.ascontiguousarray(part[:, run]).view(np.uint8).reshape(strips, -1)
                   for part in (headers, scales, payload)]
        pad = -sum(part.shape[1] for part in segment) % beat_bytes
        parts += [*segment, np.zeros((strips, pad), np.uint8)]
        stats.padding += pad * strips
    stats.weights += tiles.codes.size
    stats.kept += tiles.codes.size
    stats.codes += payload.size
    stats.scales += scales.nbytes
    stats.headers += headers.nbytes
    return [strip.tobytes() for strip in np.concatenate(parts, axis=1)]


def _payloads(tiles: _Tiles, strip: int) -> tuple[U8, NDArray[np.int64]]:
    """Return the payload of each row of a strip, ``(tiles, 16, longest)``, and its true lengths."""
    count = tiles.codes.shape[1]
    sizes = np.array([layout.payload_bytes(tiles.group, int(kept), tiles.bits)
                      for kept in tiles.kept[strip]])
    out = np.zeros((count, TILE_ROWS, sizes.max()), np.uint8)
    for kept in np.unique(tiles.kept[strip]):
        which = tiles.kept[strip] == kept
        codes = tiles.codes[strip, which]
        if kept:
            packed = _sparse_rows(codes, tiles.bitmaps[strip, which], int(kept), tiles.bits)
        else:
            packed = _bit_string(codes, tiles.bits)
        out[which, :, :packed.shape[-1]] = packed
    return out, np.where(tiles.present[strip], sizes[:, None], 0)


@cache
def _stored_inputs(kept: int) -> NDArray[np.uint16]:
    """Return, for each bitmap of nonzero inputs, the bitmap of the ``kept`` inputs stored.

    Stored are the nonzero ones, and the first zeros.
    """
    ones = (np.arange(1 << layout.WINDOW)[:, None] >> np.arange(layout.WINDOW)) & 1
    order = np.argsort(1 - ones, axis=-1, kind="stable")[:, :kept]
    return (1 << order).sum(axis=-1).astype("<u2")


def _sparse_rows(codes: U8, bitmaps: NDArray[np.uint16], kept: int, bits: int) -> U8:
    """Pack rows as positions and then the codes at them; ``codes`` is ``(tiles, 16, group)``."""
    windows = bitmaps.shape[-1]
    positions = _stored_inputs(kept)[bitmaps]
    mask = np.unpackbits(positions.view(np.uint8), axis=-1, bitorder="little").view(np.bool_)
    values = codes[mask].reshape(*codes.shape[:-1], windows * kept)
    if kept in layout.KEPT_PATTERNS:
        positions = layout.pattern_tables(kept)[0][positions]
    width = layout.position_bits(kept)
    size = layout.payload_bytes(windows * layout.WINDOW, kept, bits)
    return _join(_bit_string(positions, width), windows * width, _bit_string(values, bits), size)


def _join(first: U8, first_bits: int, second: U8, size: int) -> U8:
    """Return ``first_bits`` bits of one string, then another, in ``size`` bytes."""
    whole, shift = divmod(first_bits, 8)
    out = np.zeros((*first.shape[:-1], max(size, whole + 1 + second.shape[-1])), np.uint8)
    out[..., :first.shape[-1]] = first
    out[..., whole:whole + second.shape[-1]] |= second << np.uint8(shift)
    if shift:
        out[..., whole + 1:whole + 1 + second.shape[-1]] |= second >> np.uint8(8 - shift)
    return out[..., :size]


def _pack_mixed(tiles: _Tiles, beat_bytes: int, stats: PackStats) -> list[bytes]:
    """Pack strips whose tiles differ in presence, sparsity or zero points."""
    strips = []
    for strip in range(tiles.codes.shape[0]):
        payloads, lengths = _payloads(tiles, strip)
        present = tiles.present[strip]
        filled = np.arange(payloads.shape[-1]) < lengths[..., None]
        data = bytearray()
        for first in range(0, present.shape[0], SEGMENT_TILES):
            run = slice(first, first + SEGMENT_TILES)
            headers = np.array([
                layout.header(int(mask), int(kept), tiles.bits, bool(zero)) for mask, kept, zero in
                zip(_mask(present[run]), tiles.kept[strip, run], tiles.asymmetric[strip, run],
                    strict=True)], "<u4")
            scales = tiles.scales[strip, run][present[run]].astype("<f2")
            has_zero = present[run] & tiles.asymmetric[strip, run, None]
            zeros = tiles.zero_points[strip, run][has_zero]
            codes = payloads[run][filled[run]]
            for part in (headers, scales, zeros, codes):
                data += part.tobytes()
            pad = -len(data) % beat_bytes
            data += bytes(pad)
            stats.headers += headers.nbytes
            stats.scales += scales.nbytes
            stats.zero_points += zeros.nbytes
            stats.padding += pad
        _count(tiles, strip, lengths, stats)
        strips.append(bytes(data))
    return strips


def _mask(present: NDArray[np.bool_]) -> NDArray[np.int64]:
    return (present.astype(np.int64) << np.arange(TILE_ROWS)).sum(axis=-1)


def _count(tiles: _Tiles, strip: int, lengths: NDArray[np.int64], stats: PackStats) -> None:
    windows = tiles.group // layout.WINDOW
    rows = tiles.present[strip].sum(axis=-1)
    kept = np.where(tiles.kept[strip] == 0, layout.WINDOW, tiles.kept[strip]) * windows * rows
    positions = np.array([layout.position_bits(int(k)) for k in tiles.kept[strip]]) * windows * rows
    stats.weights += tiles.codes[strip].size
    stats.kept += int(kept.sum())
    stats.positions += int(positions.sum()) // 8
    stats.codes += int(lengths.sum()) - int(positions.sum()) // 8
