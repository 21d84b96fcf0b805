"""Weight streams put in the order that the processor multiplies them in; they stay packed.

A matrix is cut into tiles of sixteen rows and a group of inputs, as its streams are
(:mod:`alula.hw.layout`); tiles of a strip follow one another. Of each tile's present rows:

- *meta*: fp16 scales, then zero points, a byte each, if its header says so;
- *codes*, window by window of sixteen inputs. Dense: four vectors of four inputs of every row, a
  byte each; of 4 bits the second vector is the high nibbles of the first, of 2 bits the four share
  bytes, of 3 bits the third bits follow, a bit each. Sparse: a bitmap of two bytes for each row,
  then the kept codes, row by row, as a string of fields; of 3 bits two bits each, then the third.
  All sixteen rows are in the order 0, 4, 8, 12, 1, 5, ...: words of rows four apart change places
  within 128 bits.

Headers are those of the streams. What is read past the end of a tile is never used.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alula.compiler.program import Program
from alula.host.cpu.reorder import move_strips, sizes_of, walk
from alula.host.cpu.simd import has_avx512
from alula.hw import layout, numerics
from alula.hw.isa import SEGMENT_TILES, Linear
from alula.sim import streams
from alula.sim.unpack import unpack_stream

_SLACK = 64  # bytes that a load may go past the end
_WIDTHS = np.array(numerics.WEIGHT_BITS)


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
    strips, groups, group = streams.shape(i)
    lanes = len(program.lanes)
    heads = np.zeros((strips, groups), np.uint32)
    shares = []
    for lane, share in enumerate(streams.shares(program, address, i)):
        data = _fixed(share.data)
        own = np.zeros((share.strips, groups), np.uint32)
        segments = np.zeros((len(own), -(-groups // SEGMENT_TILES)), np.int64)
        size = walk(data, len(own), groups, group, *_lane_sizes(program), _WIDTHS, own, segments)
        if size != len(data):  # the golden model says what is wrong with it
            unpack_stream(data, len(own), groups, group, program.arch)
        heads[lane::lanes] = own
        shares.append((data, own, segments))
    return _packed(program, shares, heads, group, streams.exponent(program, address), sparse)


def _lane_sizes(program: Program) -> tuple[int, int]:
    """Return the bytes of a beat, and the windows that a lane has DSP slices for."""
    return program.arch.beat_bytes, program.arch.lane_dsps // layout.WINDOW


def _fixed(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return bytes of one type, a file's or not: kernels are compiled for it."""
    view = np.asarray(data)[:]
    view.flags.writeable = False
    return view


def load_kernels() -> None:
    """Run every kernel that reads streams, on nothing."""
    data, heads, segments = _fixed(np.zeros(0, np.uint8)), np.zeros((0, 1), np.uint32), np.zeros(
        (0, 1), np.int64)
    walk(data, 0, 1, 16, 16, 2, _WIDTHS, heads, segments)
    sizes_of(heads, 16, 4, _WIDTHS, True, segments)
    move_strips(data, 1, 16, heads, segments, _WIDTHS, _bitmaps(), 16, 2, 4, True,
                np.zeros((1, 2), np.int64), np.zeros(0, np.uint8), np.zeros(0, np.uint8), 0, 1)


def _packed(program: Program, shares: list[Any], heads: NDArray[np.uint32], group: int,
            exponent: int, sparse: bool) -> PackedMatrix:
    lanes, groups = len(shares), heads.shape[1]
    bits = int(_WIDTHS[heads >> 20 & 3].max(initial=2))
    sizes = np.zeros((len(heads), 2), np.int64)
    sizes_of(heads, group, bits, _WIDTHS, sparse, sizes)
    at = np.zeros((len(heads) + 1, 2), np.int64)
    np.cumsum(sizes, axis=0, out=at[1:])
    meta, codes = (np.zeros(int(end) + _SLACK, np.uint8) for end in at[-1])
    for lane, (data, own, segments) in enumerate(shares):
        if move_strips(data, groups, group, own, segments, _WIDTHS, _bitmaps(),
                       *_lane_sizes(program), bits, sparse, at, meta, codes, lane, lanes):
            unpack_stream(data, len(own), groups, group, program.arch)  # which says why
    return PackedMatrix(heads, at[:-1].copy(), meta, codes, bits, group // layout.WINDOW,
                        exponent)
