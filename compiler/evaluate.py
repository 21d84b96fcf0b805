"""Evaluate the canonical graph in floating point: for calibration, and to compare with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alula.compiler.graph import (
    Activation,
    ActivationKind,
    Add,
    Attention,
    Embed,
    Gate,
    Graph,
    Linear,
    Matrix,
    Mul,
    Op,
    QuantMatrix,
    RmsNorm,
    Rope,
    Slice,
    dequantize,
)

Array = NDArray[Any]
_ROWS = 1 << 24  # weights held as floats at a time


def evaluate(graph: Graph, windows: Array, dtype: type = np.float64) -> Array:
    """Return logits ``(windows, tokens, vocab)`` of causal passes over ``(windows, tokens)``."""
    values: dict[str, Array] = {}
    for node in graph.nodes:
        values[node.name] = node_value(node.op, [values[name] for name in node.inputs], windows,
                                       dtype)
    return values[graph.output]


def rows_of(matrix: Matrix, start: int, stop: int) -> NDArray[np.float32]:
    """Return some rows of a matrix as fp32."""
    if isinstance(matrix, QuantMatrix):
        return dequantize(matrix.read(start, stop), matrix.group)
    return matrix.read(start, stop)


def row_blocks(matrix: Matrix) -> Iterator[tuple[int, int]]:
    """Yield ``(start, stop)`` of blocks of rows that are small enough to hold as floats."""
    step = max(1, _ROWS // matrix.cols)
    for start in range(0, matrix.rows, step):
        yield start, min(start + step, matrix.rows)


def node_value(op: Op, given: list[Array], windows: Array, dtype: type) -> Array:
    """Return an operation's value, ``(windows, tokens, elements)``, from its inputs' values."""
    match op:
        case Embed():
            tokens, where = np.unique(windows, return_inverse=True)
            rows = np.stack([rows_of(op.table, token, token + 1)[0] for token in tokens.tolist()])
            return rows[where.reshape(windows.shape)].astype(dtype)
        case Linear():
            found = np.concatenate([given[0] @ rows_of(op.weight, *span).astype(dtype).T
                                    for span in row_blocks(op.weight)], axis=-1)
            return found if op.bias is None else found + op.bias.astype(dtype)
        case RmsNorm():
            parts = given[0].reshape(*windows.shape, op.heads, -1)
            root = np.sqrt(np.mean(parts**2, -1, keepdims=True) + op.eps)
            return (parts / root * op.gamma.astype(dtype)).reshape(given[0].shape)
        case Slice():
            return given[0][..., op.start:op.start + op.size]
        case Rope():
            return _rotate(op, given[0])
        case Attention():
            return _attend(op, *given)
        case Activation():
            return _activate(op.kind, given[0])
        case Gate():
            return _activate(op.kind, given[0]) * given[1]
        case Add():
            return given[0] + given[1]
        case Mul():
            return given[0] * given[1]


def _rotate(op: Rope, x: Array) -> Array:
    count, half = x.shape[1], op.rotary_dim // 2
    heads = x.reshape(*x.shape[:2], op.heads, op.head_dim)
    cos, sin = (table[:count, None].astype(x.dtype) for table in (op.cos, op.sin))
    first = slice(0, op.rotary_dim, 2) if op.interleaved else slice(0, half)
    second = slice(1, op.rotary_dim, 2) if op.interleaved else slice(half, op.rotary_dim)
    found = heads.copy()
    found[..., first] = heads[..., first] * cos - heads[..., second] * sin
    found[..., second] = heads[..., second] * cos + heads[..., first] * sin
    return found.reshape(x.shape)


def _attend(op: Attention, q: Array, k: Array, v: Array) -> Array:
    count, ratio = q.shape[1], op.heads // op.kv_heads
    query = q.reshape(*q.shape[:2], op.kv_heads, ratio, op.head_dim)
    key, value = (x.reshape(*x.shape[:2], op.kv_heads, op.head_dim) for x in (k, v))
    scores = np.einsum("wigrd,wjgd->wgrij", query, key) * op.scale
    behind = np.arange(count)[:, None] - np.arange(count)
    seen = (behind >= 0) & (behind < (op.window or count))
    scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("wgrij,wjgd->wigrd", weights, value).reshape(q.shape)


def _activate(kind: ActivationKind, x: Array) -> Array:
    match kind:
        case ActivationKind.SILU:
            return x / (1 + np.exp(-x))
        case ActivationKind.GELU:
            return x / 2 * (1 + np.vectorize(math.erf, otypes=[x.dtype])(x / math.sqrt(2)))
        case ActivationKind.GELU_TANH:
            return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        case ActivationKind.RELU:
            return np.maximum(x, 0)
