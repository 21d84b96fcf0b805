"""Decomposed attention: score matrices, their masks and softmax."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from alula.compiler.importer.attention import attend
from alula.compiler.importer.coverage import Disposition
from alula.compiler.importer.functions import factor
from alula.compiler.importer.lowering import Lowering, lowers
from alula.compiler.importer.masks import NEVER, window
from alula.compiler.importer.model import Op
from alula.compiler.importer.values import (
    TOKENS,
    Atom,
    Axes,
    Axis,
    Rows,
    Scores,
    Symbol,
    Value,
    compact,
    merged,
)

GUARD = "guards a row that sees no token, which causal attention does not have"


def product(lowering: Lowering, op: Op) -> Value:
    """Lower a MatMul of two values: query by key, or weights by value."""
    left = lowering.values[op.input(0)]
    if isinstance(left, Scores):
        return _weighted(lowering, op, left)
    query, key = (_scaled(lowering, op, at) for at in (0, 1))
    rows, keys = query[0], key[0]
    head_dim = _width(rows.axes[-1])
    heads = rows.width // head_dim if head_dim else 0
    if not heads or not _is_heads(rows, heads, head_dim, TOKENS, tail=(-2, -1)):
        raise op.refuse("first operand", "queries of shape [batch, heads, tokens, head_dim]",
                        "another arrangement")
    kv_heads = _kv_heads(op, keys, heads, head_dim, tail=(-1, -2))
    axes = (*rows.axes[:-1], _tokens(keys))
    return Scores(axes=axes, query=rows, key=keys, kv_heads=kv_heads,
                  scale=query[1] * key[1])


def _scaled(lowering: Lowering, op: Op, at: int) -> tuple[Rows, float]:
    found = factor(lowering.values[op.input(at)])
    return found if found is not None else (lowering.settle(op, at), 1.0)


def _width(axis: Axis) -> int:
    atoms = merged(axis)
    one = len(atoms) == 1 and atoms[0].stride == 1 and isinstance(atoms[0].size, int)
    return int(atoms[0].size) if one else 0  # type: ignore[arg-type]


def _tokens(rows: Rows) -> Axis:
    """Return the token axis of keys or values: with the cache, if they were appended to one."""
    return (Atom(Symbol.TOTAL),) if rows.past else TOKENS


def _is_heads(rows: Rows, heads: int, head_dim: int, tokens: Axis, tail: tuple[int, int],
              repeat: int = 1) -> bool:
    """Whether axes are (heads, repeats), and at ``tail`` tokens and the elements of a head."""
    wanted: list[Axis] = [(), ()]
    wanted[tail[0]], wanted[tail[1]] = tokens, (Atom(head_dim, 1),)
    shared: Axis = (Atom(heads, head_dim), Atom(repeat, 0))
    return compact(rows.axes) == compact((shared, *wanted))


def _kv_heads(op: Op, rows: Rows, heads: int, head_dim: int, tail: tuple[int, int]) -> int:
    """Return how many heads keys or values have before their repetition for the query heads."""
    kv_heads, rest = divmod(rows.width, head_dim)
    if rest or not kv_heads or heads % kv_heads or not _is_heads(
            rows, kv_heads, head_dim, _tokens(rows), tail, heads // kv_heads):
        raise op.refuse("second operand", f"keys or values for {heads} heads of {head_dim}, each "
                        "repeated for consecutive query heads", "another arrangement")
    return kv_heads


def _weighted(lowering: Lowering, op: Op, found: Scores) -> Value:
    """Lower the product of attention weights and values: the whole attention."""
    value, key = lowering.settle(op, 1), found.key
    head_dim = _width(found.query.axes[-1])
    heads = found.query.width // head_dim
    kv_heads = _kv_heads(op, value, heads, head_dim, tail=(-2, -1))
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
    axis = op.get("axis", -1)
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
