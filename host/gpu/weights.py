"""Weight streams put in the order that the kernels multiply them in; they stay packed.

A matrix is a list of *pieces*: one group of one output row, in the order strip, group, row of the
strip, absent ones left out. A piece is found by its tile's first piece and mask of present rows.
Of each piece there are:

- an fp16 scale, and a 16-bit zero point if the matrix has any that is not ``2**(bits - 1)``;
- *dense*: words of 32 bits. A window of sixteen inputs is four quads of four; a byte of a word
  belongs to an input of a quad. Of 4 bits a word's low nibbles are a quad and its high nibbles the
  next; of 2 bits four quads share a word; of 3 bits so do their low two bits, and a second plane
  has the third bits, eight quads to a word;
- *sparse*: a bitmap of two bytes for each window, and a string of bits, padded to whole bytes: the
  kept codes of one window after the other.

Codes of 8 bits are kept less 128. The format of a matrix is the narrowest that holds its values:
``code - zero point`` is what is multiplied, and stays what it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from alula.hw import layout, numerics
from alula.hw.isa import TILE_ROWS
from alula.sim.unpack import Strips

_BATCH = 1 << 22  # weights taken together


class Format(NamedTuple):
    """What a kernel is compiled for."""

    group: int
    bits: int
    kept: int  # of a window; 16 is dense
    full: bool  # no piece is absent
    zeros: bool  # zero points are stored


@dataclass(frozen=True)
class GpuMatrix:
    """A matrix as kernels read it: tensors on the device."""

    format: Format
    groups: int
    exponent: int
    words: Any  # (pieces, words) int32, or (pieces, bytes) uint8 if sparse
    high: Any  # (pieces, words) int32: the plane of third bits
    scales: Any  # (pieces,) float16
    zeros: Any  # (pieces,) int16
    bitmaps: Any  # (pieces, windows) int16
    masks: Any  # (strips * groups,) int32
    first: Any  # (strips * groups,) int32

    @property
    def size(self) -> int:
        """Bytes that a product reads."""
        parts = [self.words, self.scales]
        parts += [self.high] if self.format.bits == 3 and self.format.kept == 16 else []
        parts += [self.zeros] if self.format.zeros else []
        parts += [self.bitmaps] if self.format.kept < 16 else []
        parts += [] if self.format.full else [self.masks, self.first]
        return int(sum(part.numel() * part.element_size() for part in parts))


def pack(strips: Strips, outputs: int, group: int, exponent: int, device: Any) -> GpuMatrix:
    """Return a matrix in the kernels' order.

    Parameters
    ----------
    strips
        Whole strips: codes less their zero points, scales, and which groups are present.
    outputs
        Rows that count; those past it, to the end of the strip, are not read.
    """
    rows, groups = strips.scales.shape
    present = strips.present.copy()
    full = bool(present[:outputs].all())
    present[outputs:] = full  # pieces past the matrix keep a full one's places regular
    tiles = present.reshape(-1, TILE_ROWS, groups).swapaxes(1, 2)  # strip, group, row
    order = np.flatnonzero(tiles.reshape(-1))
    values = strips.codes.reshape(-1, TILE_ROWS, groups, group).swapaxes(1, 2).reshape(-1, group)
    values = values[order] if order.size else np.zeros((1, group), np.int16)
    scales = strips.scales.reshape(-1, TILE_ROWS, groups).swapaxes(1, 2).reshape(-1)[order]
    kept, bits, points = _narrowest(values)
    shape = Format(group, bits, kept, full, bool((points != 1 << (bits - 1)).any()))
    masks = (tiles.astype(np.int32) << np.arange(TILE_ROWS, dtype=np.int32)).sum(-1).reshape(-1)
    counts = tiles.sum(-1).reshape(-1)
    words, high, bitmaps = _codes(values, points, shape)
    signed = points - 128 if bits == 8 else points

    def move(array: NDArray[Any]) -> Any:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    return GpuMatrix(
        shape, groups, exponent, move(words), move(high),
        move(scales.astype(np.float16) if scales.size else np.zeros(1, np.float16)),
        move(signed.astype(np.int16)), move(bitmaps), move(masks.astype(np.int32)),
        move((np.cumsum(counts) - counts).astype(np.int32)))


def _narrowest(values: NDArray[np.int16]) -> tuple[int, int, NDArray[np.int16]]:
    """Return the kept codes of a window, their width and the zero points that take least."""
    most = int((values.reshape(-1, layout.WINDOW) != 0).sum(-1).max(initial=0))
    found = []
    for kept in (layout.WINDOW, 12, 8, 4):
        bits, points = _width(values, kept)
        bitmap = layout.WINDOW if kept < layout.WINDOW else 0
        if most <= kept:
            found.append((kept * bits + bitmap, kept, bits, points))
    return min(found, key=lambda one: one[0])[1:]


def _width(values: NDArray[np.int16], kept: int) -> tuple[int, NDArray[np.int16]]:
    """Return the narrowest width of codes, and each piece's zero point."""
    low, high = values.min(-1), values.max(-1)
    if kept < layout.WINDOW:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
    span = int((high.astype(np.int32) - low).max(initial=0))
    bits = next(bits for bits in numerics.WEIGHT_BITS if span < 1 << bits)
    middle = np.int16(1 << (bits - 1))
    usual = (low >= -middle) & (high < middle)
    return bits, np.where(usual, middle, -low).astype(np.int16)


def _codes(values: NDArray[np.int16], points: NDArray[np.int16],
           shape: Format) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return words, third bits and bitmaps of pieces ``(pieces, group)``."""
    none = np.zeros(1, np.int16)
    parts: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = []
    for start in range(0, len(values), max(1, _BATCH // shape.group)):
        part = slice(start, start + max(1, _BATCH // shape.group))
        codes = values[part] + points[part, None]
        if shape.bits == 8:
            codes = (codes - 128) & 0xFF
        if shape.kept == layout.WINDOW:
            parts.append((*_dense(codes.astype(np.uint32), shape.bits), none))
        else:
            parts.append(_sparse(codes.astype(np.uint8), values[part] != 0, shape))
    words, high, bitmaps = (np.concatenate(column) for column in zip(*parts, strict=True))
    return words, high, bitmaps


def _dense(codes: NDArray[np.uint32], bits: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    pieces, group = codes.shape
    quads = codes.reshape(pieces, group // 4, 4)
    bytes_of = np.arange(0, 32, 8, dtype=np.uint32)
    low = 2 if bits == 3 else bits
    share = 8 // low  # quads of a word
    words = ((quads & ((1 << low) - 1)) << bytes_of).sum(-1, dtype=np.uint32)
    shifts = np.arange(0, 8, low, dtype=np.uint32)
    words = (words.reshape(pieces, -1, share) << shifts).sum(-1, dtype=np.uint32)
    if bits != 3:
        return words.view(np.int32), np.zeros(1, np.int32)
    third = ((quads >> 2) << bytes_of).sum(-1, dtype=np.uint32)
    third = np.pad(third, ((0, 0), (0, -third.shape[1] % 8))).reshape(pieces, -1, 8)
    high = (third << np.arange(8, dtype=np.uint32)).sum(-1, dtype=np.uint32)
    return words.view(np.int32), high.view(np.int32)


def _sparse(codes: NDArray[np.uint8], used: NDArray[np.bool_],
            shape: Format) -> tuple[NDArray[np.uint8], NDArray[np.int32], NDArray[np.int16]]:
    pieces, windows = len(codes), shape.group // layout.WINDOW
    used = used.reshape(-1, layout.WINDOW)
    spare = np.argsort(~used, axis=-1, kind="stable")[:, :shape.kept]  # used ones, then others
    chosen = np.zeros_like(used)
    np.put_along_axis(chosen, spare, True, axis=-1)
    values = codes.reshape(-1, layout.WINDOW)[chosen].reshape(pieces, -1)
    flat = np.unpackbits(values[..., None], axis=-1, bitorder="little")[..., :shape.bits]
    string = np.packbits(flat.reshape(pieces, -1), axis=-1, bitorder="little")
    bitmaps = np.packbits(chosen, axis=-1, bitorder="little").view("<i2").reshape(pieces, windows)
    return string, np.zeros(1, np.int32), bitmaps
