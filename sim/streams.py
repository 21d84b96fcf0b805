"""Weight streams of a program: each lane's share of a matrix, and the matrix put together."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alula.compiler.program import Program
from alula.hw import layout
from alula.hw.isa import TILE_ROWS, WORD_BYTES, Linear
from alula.sim.machine import MachineError
from alula.sim.unpack import Strips, unpack_stream


class Share(NamedTuple):
    """What a lane has of a matrix: the bytes, and how many strips they are."""

    data: NDArray[np.uint8]
    strips: int


def _entries(program: Program, address: int) -> list[Any]:
    """Return the lanes' directory entries of the stream at a byte address."""
    return [image[address:address + WORD_BYTES].view(layout.DIRECTORY_ENTRY)[0]
            for image in program.lanes]


def exponent(program: Program, address: int) -> int:
    """Return the power of two of a stream's scales."""
    return int(_entries(program, address)[0]["exponent"])


def shape(i: Linear) -> tuple[int, int, int]:
    """Return the strips, groups of a strip, and inputs of a group that a product wants."""
    group = 1 << i.group_log2
    return -(-i.outputs // TILE_ROWS), -(-i.inputs // group), group


def shares(program: Program, address: int, i: Linear) -> list[Share]:
    """Return each lane's share of a product's stream; raise MachineError if it is of another shape.
    """
    entries, strips = _entries(program, address), shape(i)[0]
    total = sum(int(entry["strips"]) for entry in entries)
    if total != strips:
        raise MachineError(f"a stream for {i.outputs} outputs must have {strips} strips, "
                           f"not {total}")
    if any(entry["strips"] != len(range(lane, strips, len(entries)))
           for lane, entry in enumerate(entries)):
        raise MachineError("strips must be dealt to the lanes in turn")
    starts = [int(entry["start"]) * WORD_BYTES for entry in entries]
    return [Share(image[start:start + int(entry["beats"]) * program.arch.beat_bytes],
                  int(entry["strips"]))
            for image, entry, start in zip(program.lanes, entries, starts, strict=True)]


def read_strips(program: Program, address: int, i: Linear) -> Strips:
    """Return a product's matrix in whole strips, all lanes put together.

    Raises
    ------
    MachineError, StreamError
        If the stream is not of the instruction's shape, or breaks the format.
    """
    strips, groups, group = shape(i)
    codes = np.zeros((strips, TILE_ROWS, groups * group), np.int16)
    scales = np.zeros((strips, TILE_ROWS, groups), np.float32)
    present = np.zeros(scales.shape, np.bool_)
    found = shares(program, address, i)
    for lane, share in enumerate(found):
        part = unpack_stream(share.data, share.strips, groups, group, program.arch)
        own = slice(lane, None, len(found))
        codes[own] = part.codes.reshape(-1, *codes.shape[1:])
        scales[own] = part.scales.reshape(-1, *scales.shape[1:])
        present[own] = part.present.reshape(-1, *present.shape[1:])
    rows = strips * TILE_ROWS
    return Strips(codes.reshape(rows, -1), scales.reshape(rows, -1), present.reshape(rows, -1))
