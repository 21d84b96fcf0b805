"""Pack quantized matrices into weight streams. Format: :mod:`alula.hw.layout`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alula.compiler.graph import Codes
from alula.hw import layout
from alula.hw.arch import ArchConfig
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


def dense_strip(bits: int, group: int, tiles: int, arch: ArchConfig) -> PackStats:
    """Return the bytes of one strip of ``tiles`` tiles, all dense and symmetric."""
    stats = PackStats(weights=TILE_ROWS * group * tiles, kept=TILE_ROWS * group * tiles)
    for first in range(0, tiles, SEGMENT_TILES):
        count = min(SEGMENT_TILES, tiles - first)
        before = stats.total
        headers = layout.HEADER_BYTES * layout.header_words(count)
        stats.headers += headers
        stats.padding += layout.padding(headers, arch)
        stats.scales += layout.SCALE_BYTES * TILE_ROWS * count
        stats.codes += layout.codes_bytes(TILE_ROWS, group, 0, bits, arch) * count
        stats.padding += -(stats.total - before) % arch.beat_bytes
    return stats


def pack_strips(rows: Codes, bits: int, group: int, exponent: int, arch: ArchConfig,
                stats: PackStats) -> list[bytes]:
    """Pack rows into strips of :data:`TILE_ROWS` for a lane of a build.

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
    The bytes of each strip, each a multiple of the build's ``beat_bytes``.
    """
    tiles = _Tiles.of(rows, bits, group, exponent, arch)
    return (_pack_uniform if tiles.uniform_dense else _pack_mixed)(tiles, stats)


@dataclass
class _Tiles:
    """Codes cut into tiles: axes are strip, tile (group of inputs), row of the tile, input."""

    codes: U8  # (strips, 16, tiles, group): not yet in the order of tiles, which bytes cost less
    bitmaps: NDArray[np.uint16]  # (strips, 16, tiles, windows): which inputs are not zero
    zero_points: U8  # (strips, tiles, 16)
    scales: NDArray[np.float16]  # (strips, tiles, 16)
    present: NDArray[np.bool_]  # (strips, tiles, 16)
    kept: NDArray[np.int64]  # (strips, tiles); 0 is dense
    asymmetric: NDArray[np.bool_]  # (strips, tiles)
    bits: int
    group: int
    arch: ArchConfig

    @classmethod
    def of(cls, rows: Codes, bits: int, group: int, exponent: int, arch: ArchConfig) -> _Tiles:
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
        nonzero = codes != zero_points.repeat(group, axis=1)
        bitmaps = np.packbits(nonzero.reshape(-1), bitorder="little").view("<u2").reshape(
            strips, TILE_ROWS, tiles, group // layout.WINDOW)
        # Window by window: a reduction along so short an axis takes four times as long.
        most = reduce(np.maximum, np.moveaxis(_ONES[bitmaps], -1, 0))
        most = np.ascontiguousarray(most.transpose(0, 2, 1))
        zero_points = zero_points.reshape(strips, TILE_ROWS, tiles).transpose(0, 2, 1)
        half = np.ldexp(scales, -exponent).astype(np.float16)
        half = half.reshape(strips, TILE_ROWS, tiles).transpose(0, 2, 1)
        asymmetric = ((zero_points != 1 << (bits - 1)) & (most > 0)).any(axis=-1)
        return cls(codes.reshape(strips, TILE_ROWS, tiles, group), bitmaps, zero_points, half,
                   most > 0, _cheapest(bits, group, arch)[most.max(axis=-1)], asymmetric, bits,
                   group, arch)

    @property
    def uniform_dense(self) -> bool:
        return bool(self.present.all() and not self.kept.any() and not self.asymmetric.any())


@cache
def _cheapest(bits: int, group: int, arch: ArchConfig) -> NDArray[np.int64]:
    """Return, for the most codes kept in any window, the ``kept`` of the smallest format."""
    def size(kept: int) -> int:
        return int(layout.positions_bytes(TILE_ROWS, group, kept, arch)
                   + layout.codes_bytes(TILE_ROWS, group, kept, bits, arch))

    formats = layout.kept_formats(bits)
    best = [min(formats)]
    for most in range(1, layout.WINDOW + 1):
        best.append(min([0, *(kept for kept in formats if kept >= most)], key=size))
    return np.array(best)


_ONES = np.array([value.bit_count() for value in range(1 << layout.WINDOW)], np.uint8)


def _bit_string(values: NDArray[np.integer], bits: int) -> U8:
    """Pack the last axis, ``bits`` each, low bits first, filled up to a whole byte."""
    count = values.shape[-1]
    if bits == 8:
        return values.astype(np.uint8)
    if bits == 16:
        return np.ascontiguousarray(values, "<u2").view(np.uint8)
    if bits in (2, 4) and count * bits % 8 == 0:
        joined = np.ascontiguousarray(values, np.uint8)
        while bits < 8:  # join neighbours
            pairs = joined.view("<u2")
            joined = (pairs | pairs >> np.uint16(8 - bits)).astype(np.uint8)
            bits *= 2
        return joined
    out = np.zeros((*values.shape[:-1], -(-count * bits // 8)), np.uint8)
    for first in range(min(8, count)):  # eight values later a value lies alike in its bytes
        byte, shift = divmod(first * bits, 8)
        fields = values[..., first::8].astype(np.uint32) << np.uint32(shift)
        for part in range(-(-(shift + bits) // 8)):
            piece = (fields >> np.uint32(8 * part)).astype(np.uint8)
            out[..., byte + part::bits][..., :fields.shape[-1]] |= piece
    return out


def _ordered(codes: U8, per_window: int, block: int) -> U8:
    """Return rows of codes, ``per_window`` of each window, in the order of the DSP slices."""
    if per_window <= layout.CASCADE or block == 1:
        return codes
    windows = codes.reshape(*codes.shape[:-1], -1, block, per_window)
    parts = windows[..., :layout.CASCADE], windows[..., layout.CASCADE:]
    joined = np.concatenate([part.reshape(*windows.shape[:-2], -1) for part in parts], axis=-1)
    return joined.reshape(codes.shape)


def _pack_uniform(tiles: _Tiles, stats: PackStats) -> list[bytes]:
    """Pack strips that are dense and symmetric throughout: every segment has one shape.

    Bundles of dense rows are whole units.
    """
    strips, _, count, _ = tiles.codes.shape
    arch = tiles.arch
    codes = _ordered(tiles.codes, layout.WINDOW, layout.block_windows(tiles.group, arch))
    payload = _bit_string(codes, tiles.bits).transpose(0, 2, 1, 3)
    headers = _with_totals(np.full((strips, count), layout.header(0xFFFF, 0, tiles.bits, False)),
                           np.full((strips, count), TILE_ROWS), 0, 0)
    scales = np.ascontiguousarray(tiles.scales).astype("<f2", copy=False)
    parts = []
    for first in range(0, count, SEGMENT_TILES):
        run = slice(first, first + SEGMENT_TILES)
        segment = [np.ascontiguousarray(part[:, run]).view(np.uint8).reshape(strips, -1)
                   for part in (headers, scales, payload)]
        gap = np.zeros((strips, layout.padding(segment[0].shape[1], arch)), np.uint8)
        segment.insert(1, gap)
        pad = -sum(part.shape[1] for part in segment) % arch.beat_bytes
        parts += [*segment, np.zeros((strips, pad), np.uint8)]
        stats.padding += (pad + gap.shape[1]) * strips
    stats.weights += tiles.codes.size
    stats.kept += tiles.codes.size
    stats.codes += payload.size
    stats.scales += scales.nbytes
    stats.headers += headers.nbytes
    return [strip.tobytes() for strip in np.concatenate(parts, axis=1)]


def _with_totals(headers: NDArray[np.int64], scales: NDArray[np.int64], zero_points: Any,
                 positions: Any) -> NDArray[np.uint32]:
    """Return the headers ``(strips, words)`` of tiles, with the totals of their segments."""
    tiles = headers.shape[1]
    firsts = np.arange(0, tiles, SEGMENT_TILES)
    sums = (np.add.reduceat(np.broadcast_to(part, headers.shape), firsts, axis=1)
            for part in (scales, zero_points, positions))
    last = tiles - int(firsts[-1])
    words = np.pad(headers, ((0, 0), (0, layout.header_words(last) - last)))
    for at, total in enumerate(layout.totals(*sums)):
        words[:, firsts + at] |= total << 32 - layout.TOTAL_BITS
    return words.astype("<u4")


def _chosen(values: U8, mask: NDArray[np.bool_]) -> U8:
    """Return ``values[mask]``, four times as fast."""
    return np.compress(mask.reshape(-1), values.reshape(-1))


@cache
def _stored_inputs(kept: int) -> NDArray[np.uint16]:
    """Return, for each bitmap of nonzero inputs, the bitmap of the ``kept`` inputs stored.

    Stored are the nonzero ones, and the first zeros.
    """
    ones = (np.arange(1 << layout.WINDOW)[:, None] >> np.arange(layout.WINDOW)) & 1
    order = np.argsort(1 - ones, axis=-1, kind="stable")[:, :kept]
    return (1 << order).sum(axis=-1).astype("<u2")


def _rows_fields(tiles: _Tiles, which: NDArray[np.bool_],
                 kept: int) -> tuple[NDArray[np.uint16], U8]:
    """Return the position codes and the codes of some tiles' rows: ``(tiles, 16, fields)``."""
    block = layout.block_windows(tiles.group, tiles.arch)
    codes = np.moveaxis(tiles.codes, 2, 1)[which]
    if not kept:
        return np.zeros((*codes.shape[:2], 0), np.uint16), _ordered(codes, layout.WINDOW, block)
    stored = _stored_inputs(kept)[np.moveaxis(tiles.bitmaps, 2, 1)[which]]
    mask = np.unpackbits(stored.view(np.uint8), axis=-1, bitorder="little").view(np.bool_)
    values = _chosen(codes, mask).reshape(*codes.shape[:2], -1)
    return layout.pattern_tables(kept)[0][stored], _ordered(values, kept, block)


def _strings(fields: NDArray[np.integer], present: NDArray[np.bool_], bits: int, most: int,
             blocks: int, unit: int) -> U8:
    """Return the fields of each tile's present rows as bundles' bit strings, ``(tiles, bytes)``.

    A bundle is ``most`` rows, or one of ``blocks`` of a row, and whole units. What follows the last
    row's is zeros.
    """
    if not present.all():
        order = np.argsort(~present, axis=-1, kind="stable")[..., None]
        fields = np.take_along_axis(np.where(present[..., None], fields, 0), order, axis=1)
    strings = _bit_string(fields.reshape(len(fields), TILE_ROWS * blocks // most, -1), bits)
    short = -strings.shape[-1] % unit
    if short:
        strings = np.pad(strings, ((0, 0), (0, 0), (0, short)))
    return strings.reshape(len(fields), -1)


def _joined(strings: list[tuple[NDArray[np.bool_], U8]], sizes: NDArray[np.int64]) -> U8:
    """Return the first ``sizes`` bytes of each tile's string, in the order of the tiles."""
    out = np.zeros((*sizes.shape, int(sizes.max(initial=0))), np.uint8)
    for which, string in strings:
        out[which, :string.shape[-1]] = string[:, :out.shape[-1]]
    if (sizes == out.shape[-1]).all():
        return out.reshape(-1)
    return _chosen(out, np.arange(out.shape[-1]) < sizes[..., None])


def _pack_mixed(tiles: _Tiles, stats: PackStats) -> list[bytes]:
    """Pack strips whose tiles differ in presence, sparsity or zero points."""
    mask = np.packbits(tiles.present, axis=-1, bitorder="little").view("<u2")[..., 0]
    rows = _ONES[mask].astype(np.int64)
    headers = layout.header(mask.astype(np.int64), tiles.kept, tiles.bits, tiles.asymmetric)
    zeros = tiles.zero_points[tiles.present & tiles.asymmetric[..., None]]
    arch, group = tiles.arch, tiles.group
    position_sizes, code_sizes = np.zeros_like(rows), np.zeros_like(rows)
    positions, codes = [], []
    for kept in map(int, np.unique(tiles.kept)):
        which = tiles.kept == kept
        position_sizes[which] = layout.positions_bytes(rows[which], group, kept, arch)
        code_sizes[which] = layout.codes_bytes(rows[which], group, kept, tiles.bits, arch)
        fields, values = _rows_fields(tiles, which, kept)
        cut = layout.bundle_rows(group, kept, arch), layout.row_blocks(group, arch)
        if kept:
            width = layout.position_bits(kept)
            positions.append((which, _strings(fields, tiles.present[which], width, *cut, 1)))
        codes.append((which, _strings(values, tiles.present[which], tiles.bits, *cut,
                                      layout.unit_bytes(arch))))
    zero_sizes = layout.ZERO_POINT_BYTES * rows * tiles.asymmetric
    words = _with_totals(headers, rows, zero_sizes, position_sizes)
    parts: list[tuple[NDArray[Any], NDArray[np.int64]]] = [
        (words, np.full(words.shape, layout.HEADER_BYTES)),
        (tiles.scales[tiles.present], layout.SCALE_BYTES * rows),
        (zeros, zero_sizes),
        (_joined(positions, position_sizes), position_sizes),
        (_joined(codes, code_sizes), code_sizes)]
    _count(tiles, rows, [data.nbytes for data, _ in parts], stats)
    return _segments(parts, arch, stats)


def _segments(parts: list[tuple[NDArray[Any], NDArray[np.int64]]], arch: ArchConfig,
              stats: PackStats) -> list[bytes]:
    """Return strips made of segments; parts are their bytes and how many each tile has."""
    datas = [np.ascontiguousarray(data).data.cast("B") for data, _ in parts]
    firsts = np.arange(0, parts[0][1].shape[1], SEGMENT_TILES)
    sizes = np.stack([np.add.reduceat(part, firsts, axis=1) for _, part in parts], axis=-1)
    ends = sizes.reshape(-1, len(parts)).cumsum(axis=0).reshape(sizes.shape)
    padding = layout.padding(sizes, arch)
    padding[..., -1] = -(sizes + padding).sum(axis=-1) % arch.beat_bytes  # codes are whole units
    stats.padding += int(padding.sum())
    strips = []
    for start, stop, fill in zip((ends - sizes).tolist(), ends.tolist(), padding.tolist(),
                                 strict=True):
        pieces: list[memoryview | bytes] = []
        for segment in zip(start, stop, fill, strict=True):
            for data, begin, end, pad in zip(datas, *segment, strict=True):
                pieces += [data[begin:end], bytes(pad)]
        strips.append(b"".join(pieces))
    return strips


def _count(tiles: _Tiles, rows: NDArray[np.int64], sizes: list[int], stats: PackStats) -> None:
    """Count what was packed: ``rows`` are the present ones; bytes of the five kinds of parts."""
    per_window = np.array([layout.window_codes(kept) for kept in range(layout.WINDOW)])
    stats.weights += tiles.codes.size
    stats.kept += int((per_window[tiles.kept] * (tiles.group // layout.WINDOW) * rows).sum())
    for name, size in zip(layout.SECTIONS, sizes, strict=True):
        setattr(stats, name, getattr(stats, name) + size)
