"""The meaning of the canonical graph, in plain numpy: slow, obvious, and nothing of ours in it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alula.compiler import graph
from alula.compiler.graph import ActivationKind, Graph, Matrix, QuantMatrix, dequantize

Array = NDArray[Any]


def run(model: Graph, tokens: list[int], dtype: type = np.float64) -> Array:
    """Return the logits ``(tokens, vocab)`` of a causal pass over ``tokens``, without a cache."""
    values: dict[str, Array] = {}
    for node in model.nodes:
        given = [values[name] for name in node.inputs]
        values[node.name] = np.asarray(_value(node.op, given, tokens, dtype), dtype)
    return values[model.output]


def dense(matrix: Matrix) -> Array:
    """Return all the rows of a matrix as fp32."""
    found = matrix.read(0, matrix.rows)
    return dequantize(found, matrix.group) if isinstance(matrix, QuantMatrix) else found


def _value(op: graph.Op, given: list[Array], tokens: list[int], dtype: type) -> Array:
    match op:
        case graph.Embed():
            return dense(op.table)[tokens].astype(dtype)
        case graph.Linear():
            found = given[0] @ dense(op.weight).astype(dtype).T
            return found if op.bias is None else found + op.bias.astype(dtype)
        case graph.RmsNorm():
            parts = given[0].reshape(len(tokens), op.heads, -1)
            root = np.sqrt(np.mean(parts**2, -1, keepdims=True) + op.eps)
            return (parts / root * op.gamma.astype(dtype)).reshape(len(tokens), -1)
        case graph.Slice():
            return given[0][:, op.start:op.start + op.size]
        case graph.Rope():
            return _rope(op, given[0])
        case graph.Attention():
            return _attention(op, given[0], given[1], given[2])
        case graph.Activation():
            return _activation(op.kind, given[0])
        case graph.Add():
            return given[0] + given[1]
        case graph.Mul():
            return given[0] * given[1]


def _rope(op: graph.Rope, x: Array) -> Array:
    count, half = x.shape[0], op.rotary_dim // 2
    heads = x.reshape(count, op.heads, op.head_dim)
    cos = op.cos[:count, None].astype(x.dtype)
    sin = op.sin[:count, None].astype(x.dtype)
    first = slice(0, op.rotary_dim, 2) if op.interleaved else slice(0, half)
    second = slice(1, op.rotary_dim, 2) if op.interleaved else slice(half, op.rotary_dim)
    found = heads.copy()
    found[..., first] = heads[..., first] * cos - heads[..., second] * sin
    found[..., second] = heads[..., second] * cos + heads[..., first] * sin
    return found.reshape(x.shape)


def _attention(op: graph.Attention, q: Array, k: Array, v: Array) -> Array:
    count = q.shape[0]
    query = q.reshape(count, op.heads, op.head_dim)
    repeat = op.heads // op.kv_heads
    key, value = (np.repeat(x.reshape(count, op.kv_heads, op.head_dim), repeat, 1) for x in (k, v))
    scores = np.einsum("ihd,jhd->hij", query, key) * op.scale
    behind = np.arange(count)[:, None] - np.arange(count)
    seen = (behind >= 0) & (behind < (op.window or count))
    scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("hij,jhd->ihd", weights, value).reshape(count, -1)


def _activation(kind: ActivationKind, x: Array) -> Array:
    match kind:
        case ActivationKind.SILU:
            return x / (1 + np.exp(-x))
        case ActivationKind.GELU:
            return x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
        case ActivationKind.GELU_TANH:
            return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        case ActivationKind.RELU:
            return np.maximum(x, 0)
