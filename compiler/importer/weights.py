"""Weight matrices: every stored form becomes rows of codes or of fp32, read when asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alula.compiler.graph import Codes, FloatMatrix, Matrix, QuantMatrix
from alula.compiler.importer.lowering import Lowering
from alula.compiler.importer.model import Op
from alula.compiler.importer.tensors import (
    FLOATS,
    SIGNED,
    Stored,
    dtype_name,
    unpack,
)

Reader = Callable[[int, int], NDArray[Any]]

Dequantizer = Callable[[Lowering, Op, bool], QuantMatrix]

DEQUANTIZERS: dict[str, Dequantizer] = {}  # by the kind of node that makes the weight

GROUPS = (256, 128, 64, 32, 16)


def matrix(lowering: Lowering, op: Op, at: int, *, by_input: bool) -> Matrix:
    """Return input ``at`` of ``op`` as a matrix of one row an output.

    Parameters
    ----------
    by_input
        Whether the ONNX value is ``(inputs, outputs)``, as MatMul has it.
    """
    name, makers = op.input(at), lowering.model.makers
    while name not in lowering.model.constants:
        maker = makers.get(name)
        if maker is None or maker.kind not in ("Identity", "Cast", "Transpose", *DEQUANTIZERS):
            raise op.refuse(f"input {at}", "a weight of the file",
                            f"made by {maker}" if maker else f"the graph input {name!r}",
                            "merge adapters (LoRA) and scales into the weights before export")
        if maker.kind in DEQUANTIZERS:
            return DEQUANTIZERS[maker.kind](lowering, maker, by_input)
        if maker.kind == "Transpose":
            maker.expect("perm", [1, 0], maker.get("perm", [1, 0]))
            by_input = not by_input
        name = maker.input(0)
    return _float_matrix(op, at, lowering.model.stored(name), by_input)


def _float_matrix(op: Op, at: int, tensor: Stored, by_input: bool) -> FloatMatrix:
    if tensor.dtype not in FLOATS or len(tensor.shape) != 2:
        raise op.refuse(f"input {at}", "a matrix of FLOAT, FLOAT16 or BFLOAT16",
                        f"{dtype_name(tensor.dtype)} of shape {list(tensor.shape)}")
    rows, cols = tensor.shape[::-1] if by_input else tensor.shape
    return FloatMatrix(name=tensor.name, rows=rows, cols=cols,
                       read=float_rows(tensor, by_input))


def float_rows(tensor: Stored, by_input: bool) -> Reader:
    """Return a reader of rows of a float matrix; columns of the file if it is ``by_input``."""
    def read(start: int, stop: int) -> NDArray[np.float32]:
        found = tensor.array()
        found = found[:, start:stop].T if by_input else found[start:stop]
        return np.ascontiguousarray(found, np.float32)
    return read


def code_rows(tensor: Stored, bits: int, by_input: bool) -> Reader:
    """Return a reader of rows of an integer matrix as unsigned codes.

    Signed types are offset by half their range. Packed types are packed in the file's flat order,
    so a row may begin inside a byte.
    """
    rows, cols = tensor.shape
    each = 8 // bits
    sign = np.uint8(1 << (bits - 1) if tensor.dtype in SIGNED else 0)

    def by_rows(start: int, stop: int) -> NDArray[np.uint8]:
        first, last = start * cols, stop * cols
        found = unpack(tensor.data[first // each:-(-last // each)], bits)
        return found[first % each:][:last - first].reshape(-1, cols) ^ sign

    def by_columns(start: int, stop: int) -> NDArray[np.uint8]:
        packed = tensor.data.reshape(rows, -1)[:, start // each:-(-stop // each)]
        found = unpack(packed, bits)[:, start % each:][:, :stop - start]
        return np.ascontiguousarray(found.T) ^ sign

    def scattered(start: int, stop: int) -> NDArray[np.uint8]:
        at = np.arange(rows) * cols + np.arange(start, stop)[:, None]
        shift = (at % each * bits).astype(np.uint8)
        return (tensor.data[at // each] >> shift & np.uint8((1 << bits) - 1)) ^ sign

    if not by_input:
        return by_rows
    return scattered if cols % each else by_columns


def quantized(op: Op, name: str, rows: int, cols: int, bits: int, block: int, codes: Reader,
              scales: Reader, zeros: Reader) -> QuantMatrix:
    """Return a quantized matrix whose blocks of ``block`` inputs become groups.

    Groups are at most 256 inputs: a longer block becomes several groups of equal scale.

    Parameters
    ----------
    codes, scales, zeros
        Readers of ``(rows, cols)``, ``(rows, blocks)`` and ``(rows, blocks)``.
    """
    group = _group(op, block, cols)
    spread = np.arange(-(-cols // group)) * group // block

    def read(start: int, stop: int) -> Codes:
        return Codes(codes(start, stop), scales(start, stop)[:, spread],
                     zeros(start, stop)[:, spread])
    return QuantMatrix(name=name, rows=rows, cols=cols, bits=bits, group=group, read=read)


def _group(op: Op, block: int, cols: int) -> int:
    """Return the group for blocks of ``block``: the same, or the largest that divides it."""
    if block in GROUPS:
        return block
    if block >= cols:
        return next((size for size in reversed(GROUPS) if size >= cols), GROUPS[0])
    if block % GROUPS[-1]:
        raise op.refuse("block_size", f"a multiple of {GROUPS[-1]}", block)
    return next(size for size in GROUPS if block % size == 0)


def filled(value: int, blocks: int) -> Reader:
    """Return a reader of zero points that are all ``value``."""
    return lambda start, stop: np.full((stop - start, blocks), value, np.uint8)


def stored(lowering: Lowering, op: Op, at: int) -> Stored:
    """Return where input ``at`` of ``op``, a constant, lies; copies are looked through."""
    name = op.input(at)
    while name in lowering.model.makers and lowering.model.makers[name].kind == "Identity":
        name = lowering.model.makers[name].input(0)
    if name not in lowering.model.constants:
        raise op.refuse(f"input {at}", "a constant", f"computed ({name!r})" if name else "absent")
    return lowering.model.stored(name)
