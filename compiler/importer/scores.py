"""Decomposed attention: score matrices, their masks and softmax."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from alula.compiler.importer.attention import attend
from alula.compiler.importer.coverage import Disposition
from alula.compiler.importer.heads import (
    head_width,
    operand,
    query_heads,
    shared_heads,
    token_axis,
)
from alula.compiler.importer.lowering import Lowering, lowers
from alula.compiler.importer.masks import NEVER, window
from alula.compiler.importer.model import Op
from alula.compiler.importer.values import Atom, Axes, Scores, Value

GUARD = "guards a row that sees no token, which causal attention does not have"


def product(lowering: Lowering, op: Op) -> Value:
    """Lower a MatMul of two values: query by key, or weights by value."""
    left = lowering.values[op.input(0)]
    if isinstance(left, Scores):
        return _weighted(lowering, op, left)
    (query, query_scale), (key, key_scale) = operand(lowering, op, 0), operand(lowering, op, 1)
    head_dim = head_width(query.axes[-1])
    heads = query_heads(op, query, head_dim, "htd")
    kv_heads = shared_heads(op, key, heads, head_dim, "hdt")
    return Scores(axes=(*query.axes[:-1], token_axis(key)), query=query, key=key,
                  kv_heads=kv_heads, scale=query_scale * key_scale)


def _weighted(lowering: Lowering, op: Op, found: Scores) -> Value:
    """Lower the product of attention weights and values: the whole attention."""
    value, key = lowering.settle(op, 1), found.key
    head_dim = head_width(found.query.axes[-1])
    heads = found.query.width // head_dim
    kv_heads = shared_heads(op, value, heads, head_dim, "htd")
    if not found.softmax or kv_heads != found.kv_heads or bool(value.past) != bool(key.past):
        raise op.refuse("operands", "softmax weights and values cached as the keys are",
                        "scores without softmax, or values of other heads")
    size = window(lowering, op, found.masks)
    rows = attend(lowering, op, (found.query, key, value), heads, kv_heads, found.scale, size,
                  key.past)
    axes: Axes = (*found.axes[:-1], (Atom(head_dim, 1),))
    return replace(rows, axes=axes)


def adjusted(lowering: Lowering, op: Op, value: Scores, at: int) -> Scores:
    """Apply a constant factor, or an added mask, at input ``at`` to scores."""
    fixed = lowering.fixed(op.input(at))
    if fixed is not None and fixed.size == 1 and not value.softmax:
        number = float(fixed.reshape(-1)[0])
        if op.kind == "Mul" and not value.masks:
            return replace(value, scale=value.scale * number)
        if op.kind == "Div" and at == 1 and number and not value.masks:
            return replace(value, scale=value.scale / number)
    if op.kind != "Add" or value.softmax:
        raise op.refuse("a step on attention scores", "a scale, then a mask added, then softmax",
                        op.kind)
    return replace(value, masks=(*value.masks, (op.input(at), "add")))


@lowers("Softmax")
def softmax(lowering: Lowering, op: Op) -> tuple[Value, ...]:
    value = lowering.values[op.input(0)]
    axis = op.get("axis", -1 if op.opset >= 13 else 1)
    if not isinstance(value, Scores) or value.softmax or axis not in (-1, len(value.axes) - 1):
        raise op.refuse("input and axis", "attention scores and the last", f"others ({axis})")
    return (replace(value, softmax=True),)


@lowers("IsNaN")
def is_nan(lowering: Lowering, op: Op) -> tuple[Value, ...]:
    value = lowering.values[op.input(0)]
    if not isinstance(value, Scores) or not value.softmax:
        raise op.refuse("input", "attention weights", type(value).__name__)
    lowering.note(op, Disposition.FOLDED, GUARD)
    return (replace(value, isnan=True),)


@lowers("Where")
def where(lowering: Lowering, op: Op) -> tuple[Value, ...]:
    """Read a mask on scores, or the guard that makes rows of no tokens zero."""
    condition, kept, other = (lowering.values.get(name) for name in op.inputs)
    if isinstance(condition, Scores) and condition.isnan and isinstance(other, Scores):
        fill = lowering.fixed(op.input(1))
        if fill is not None and not fill.any() and replace(condition, isnan=False) == other:
            lowering.note(op, Disposition.FOLDED, GUARD)
            return (other,)
    value, at, use = (kept, 2, "keep") if kept is not None else (other, 1, "drop")
    fill = lowering.fixed(op.input(at))
    never = fill is not None and bool(np.all(fill <= NEVER))
    if condition is not None or not isinstance(value, Scores) or value.softmax or not never:
        raise op.refuse("operands", "a mask, attention scores and a large negative number",
                        "others")
    return (replace(value, masks=(*value.masks, (op.input(0), use))),)


@lowers("Max")
def maximum(lowering: Lowering, op: Op) -> tuple[Value, ...]:
    """Pass scores kept above the lowest number, which softmax does not notice."""
    value = lowering.values.get(op.input(0))
    floor = lowering.fixed(op.input(1)) if op.input(1) else None
    if not isinstance(value, Scores) or floor is None or not (floor <= NEVER).all():
        raise op.refuse("operands", "attention scores and the type's lowest number", "others")
    return (value,)
