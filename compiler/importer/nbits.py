"""MatMulNBits and GatherBlockQuantized: ONNX Runtime's own block-quantized operators.

Ref: ONNX Runtime, docs/ContribOperators.md, com.microsoft.MatMulNBits, GatherBlockQuantized.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from alula.compiler.graph import Embed, Linear, QuantMatrix
from alula.compiler.importer.lowering import Lowering, lowers
from alula.compiler.importer.model import Op
from alula.compiler.importer.tensors import (
    FLOATS,
    PACKED_BITS,
    SIGNED,
    Stored,
    dtype_name,
    unpack,
)
from alula.compiler.importer.values import Value
from alula.compiler.importer.weights import Reader, code_rows, filled, float_rows, quantized, stored

MICROSOFT = ("com.microsoft",)
BITS = (2, 4, 8)


@lowers("MatMulNBits", domains=MICROSOFT)
def matmul_nbits(lowering: Lowering, op: Op) -> tuple[Value, ...]:
    """Lower ``A @ dequantize(B).T + bias``."""
    op.expect("weight_prepacked", 0, op.get("weight_prepacked", 0),
              "re-export with matmulnbits_weights_prepacked=0")
    rows = lowering.flat(op)
    weight = _nbits_matrix(lowering, op)
    _check_order(lowering, op, weight.cols)
    bias = lowering.vector(op, 5, weight.rows) if op.input(5) else None
    return (lowering.emit_flat(op, Linear(weight=weight, bias=bias), (rows.node,), weight.rows),)


def _nbits_matrix(lowering: Lowering, op: Op) -> QuantMatrix:
    """Return B, ``(N, blocks, block_size * bits / 8)`` bytes with K fastest, low bits first."""
    rows, cols = op.get("N", 0), op.get("K", 0)
    bits, block = op.get("bits", 4), op.get("block_size", 32)
    if bits not in BITS:
        raise op.refuse("bits", "2, 4 or 8", bits)
    if block < 16 or block & (block - 1) or rows < 1 or cols < 1:
        raise op.refuse("N, K and block_size", "positive, the last a power of two from 16",
                        [rows, cols, block])
    blocks = -(-cols // block)
    packed = stored(lowering, op, 1)
    op.expect("type of B", "UINT8", dtype_name(packed.dtype))
    op.expect("shape of B", [rows, blocks, block * bits // 8], list(packed.shape))
    codes = Stored(packed.name, packed.dtype, (rows, blocks * block), packed.data)
    whole = byte_rows(codes, bits)
    scales = _scales(lowering, op, 2, rows, blocks)
    zeros = _zeros(lowering, op, bits, rows, blocks)
    return quantized(op, packed.name, rows, cols, bits, block,
                     lambda start, stop: whole(start, stop)[:, :cols], scales, zeros)


def byte_rows(tensor: Stored, bits: int) -> Reader:
    """Return a reader of rows of codes where each row begins a byte."""
    packed = tensor.data.reshape(tensor.shape[0], -1)
    return lambda start, stop: unpack(packed[start:stop], bits)


def _scales(lowering: Lowering, op: Op, at: int, rows: int, blocks: int) -> Reader:
    tensor = stored(lowering, op, at)
    if tensor.dtype not in FLOATS or tensor.size != rows * blocks:
        raise op.refuse("scales", f"{rows} x {blocks} floats",
                        f"{dtype_name(tensor.dtype)} of shape {list(tensor.shape)}")
    return float_rows(Stored(tensor.name, tensor.dtype, (rows, blocks), tensor.data), False)


def _zeros(lowering: Lowering, op: Op, bits: int, rows: int, blocks: int) -> Reader:
    """Return zero points: packed like the codes, one value a block, or half the range."""
    if not op.input(3):
        return filled(1 << (bits - 1), blocks)
    tensor = stored(lowering, op, 3)
    if tensor.dtype in FLOATS and tensor.size == rows * blocks:
        return _whole_zeros(op, tensor, bits, rows, blocks)
    width = -(-blocks * bits // 8)
    if tensor.dtype != TensorProto.UINT8 or tensor.size != rows * width:
        raise op.refuse("zero_points", f"{rows} x {width} bytes or {rows} x {blocks} floats",
                        f"{dtype_name(tensor.dtype)} of shape {list(tensor.shape)}")
    whole = byte_rows(Stored(tensor.name, tensor.dtype, (rows, width), tensor.data), bits)
    return lambda start, stop: whole(start, stop)[:, :blocks]


def _whole_zeros(op: Op, tensor: Stored, bits: int, rows: int, blocks: int) -> Reader:
    """Return float zero points as integers, refusing fractions: those cannot be exact zeros."""
    found = tensor.array().reshape(-1)
    for start in range(0, found.size, 1 << 20):
        part = found[start:start + (1 << 20)].astype(np.float32)
        wrong = part[~((part == np.rint(part)) & (part >= 0) & (part < 1 << bits))]
        if wrong.size:
            raise op.refuse("zero_points", f"integers from 0 to {(1 << bits) - 1}", wrong[0],
                            "quantize with RTN, k-quant or the default algorithm instead of HQQ")
    values = float_rows(Stored(tensor.name, tensor.dtype, (rows, blocks), tensor.data), False)
    return lambda start, stop: values(start, stop).astype(np.uint8)


def _check_order(lowering: Lowering, op: Op, cols: int) -> None:
    """Refuse a g_idx input that permutes the inputs: groups must be of consecutive inputs."""
    if not op.input(4):
        return
    order: NDArray[Any] = lowering.numbers(op, 4).reshape(-1)[:cols]
    block = op.get("block_size", 32)
    if order.size != cols or not np.array_equal(order, np.arange(cols) // block):
        raise op.refuse("g_idx", "absent or in order (input // block_size)", "a permutation",
                        "re-quantize with desc_act=false (act-order off)")


@lowers("GatherBlockQuantized", domains=MICROSOFT)
def gather_block_quantized(lowering: Lowering, op: Op) -> tuple[Value, ...]:
    """Lower the token embedding of a table quantized in blocks along the embedding."""
    lowering.expect_tokens(op)
    op.expect("gather_axis", 0, op.get("gather_axis", 0))
    op.expect("quantize_axis", 1, op.get("quantize_axis", 1) % 2)
    table = _table(lowering, op)
    return (lowering.emit_flat(op, Embed(table=table), (), table.cols),)


def _table(lowering: Lowering, op: Op) -> QuantMatrix:
    """Return the table: packed bytes (zero point half the range) or a 4-bit type (zero)."""
    codes = _through_reshape(lowering, op)
    block = op.get("block_size", 128)
    bits = PACKED_BITS.get(codes.dtype, op.get("bits", 4))
    if bits not in BITS or codes.dtype not in (*PACKED_BITS, TensorProto.UINT8):
        raise op.refuse("data", "UINT8, INT4 or UINT4 codes of 2, 4 or 8 bits",
                        f"{bits} bits in {dtype_name(codes.dtype)}")
    shape = stored(lowering, op, 2).shape
    if len(shape) != 2 or block < 16 or len(codes.shape) < 2 or codes.shape[0] != shape[0]:
        raise op.refuse("data, scales and block_size", "matrices of equal rows, 16 or more",
                        f"{list(codes.shape)}, {list(shape)} and {block}")
    rows, blocks = shape
    each = 8 // bits if codes.dtype == TensorProto.UINT8 else 1
    cols = codes.size // max(rows, 1) * each
    op.expect("blocks of a row", -(-cols // block), blocks)
    scales = _scales(lowering, op, 2, rows, blocks)
    if codes.dtype == TensorProto.UINT8:
        return quantized(op, codes.name, rows, cols, bits, block, byte_rows(codes, bits), scales,
                         _zeros(lowering, op, bits, rows, blocks))
    zeros = filled(1 << (bits - 1) if codes.dtype in SIGNED else 0, blocks)
    if op.input(3):
        points = stored(lowering, op, 3)
        op.expect("zero_points", (codes.dtype, (rows, blocks)), (points.dtype, points.shape))
        zeros = code_rows(points, bits, False)
    return quantized(op, codes.name, rows, cols, bits, block,
                     code_rows(Stored(codes.name, codes.dtype, (rows, cols), codes.data), bits,
                               False), scales, zeros)


def _through_reshape(lowering: Lowering, op: Op) -> Stored:
    """Return the table's codes; tied heads share them with MatMulNBits through a Reshape."""
    maker = lowering.model.makers.get(op.input(0))
    while maker is not None and maker.kind == "Reshape":
        op = maker
        maker = lowering.model.makers.get(op.input(0))
    return stored(lowering, op, 0)
