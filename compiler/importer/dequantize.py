"""DequantizeLinear on a weight: the QDQ form of a quantized linear layer."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from alula.compiler.graph import QuantMatrix
from alula.compiler.importer.coverage import Disposition
from alula.compiler.importer.lowering import Lowering
from alula.compiler.importer.model import Op
from alula.compiler.importer.tensors import PACKED_BITS, SIGNED, Stored, dtype_name
from alula.compiler.importer.weights import (
    DEQUANTIZERS,
    Reader,
    code_rows,
    filled,
    float_rows,
    quantized,
    stored,
)

INTEGERS = (*PACKED_BITS, TensorProto.INT8, TensorProto.UINT8)


def dequantized(lowering: Lowering, op: Op, by_input: bool) -> QuantMatrix:
    """Return the matrix of a DequantizeLinear node, ``(inputs, outputs)`` if ``by_input``.

    Blocks lie along the inputs. A scale for each output, or one for all, is a single block as long
    as the row.
    """
    lowering.note(op, Disposition.ACCELERATOR, "the codes and scales of a linear layer")
    codes = stored(lowering, op, 0)
    if codes.dtype not in INTEGERS or len(codes.shape) != 2:
        raise op.refuse("x", "a matrix of INT or UINT of 2, 4 or 8 bits",
                        f"{dtype_name(codes.dtype)} of shape {list(codes.shape)}")
    bits = PACKED_BITS.get(codes.dtype, 8)
    rows, cols = codes.shape[::-1] if by_input else codes.shape
    block = op.get("block_size", 0)
    blocks = -(-cols // block) if block > 0 else 1
    scales = _laid_out(op, stored(lowering, op, 1), "x_scale", codes, blocks, by_input)
    zeros = filled(1 << (bits - 1) if codes.dtype in SIGNED else 0, blocks)
    if op.input(2):
        points = stored(lowering, op, 2)
        op.expect("type of x_zero_point", dtype_name(codes.dtype), dtype_name(points.dtype))
        zeros = _spread(code_rows(_laid_out(op, points, "x_zero_point", codes, blocks, by_input),
                                  bits, by_input), rows, points)
    return quantized(op, codes.name, rows, cols, bits, block or cols,
                     code_rows(codes, bits, by_input),
                     _spread(float_rows(scales, by_input), rows, scales), zeros)


def _laid_out(op: Op, tensor: Stored, what: str, codes: Stored, blocks: int,
              by_input: bool) -> Stored:
    """Return scales or zero points as a matrix laid out like the codes, blocks for inputs."""
    rows = codes.shape[1 if by_input else 0]
    wanted = (blocks, rows) if by_input else (rows, blocks)
    axis = op.get("axis", 1) % 2
    shape = tensor.shape
    if op.get("block_size", 0):
        op.expect("axis", 1 - by_input, axis, "blocks must lie along the inputs of the layer")
    elif len(shape) == 1 and tensor.size == rows and axis == int(by_input):
        shape = wanted
    elif tensor.size == 1:
        shape = wanted = (1, 1)
    if shape != wanted:
        raise op.refuse(f"shape of {what}", list(wanted), list(tensor.shape),
                        "export with blocks along the inputs of the layer")
    return Stored(tensor.name, tensor.dtype, wanted, tensor.data)


def _spread(reader: Reader, rows: int, tensor: Stored) -> Reader:
    """Return ``reader``, or one that repeats a single value for every row."""
    if tensor.size != 1:
        return reader
    return lambda start, stop: np.repeat(reader(0, 1), stop - start, axis=0)


DEQUANTIZERS["DequantizeLinear"] = dequantized
