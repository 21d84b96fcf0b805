"""Add, Sub, Mul, Div and Pow between values, constants and tables."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from alula.compiler import graph
from alula.compiler.importer import norms, scores, turns
from alula.compiler.importer.functions import BINARY, as_function, both, compose, normed
from alula.compiler.importer.lowering import Array, Lowering, lowers
from alula.compiler.importer.model import Op
from alula.compiler.importer.values import (
    Function,
    Mixed,
    Normed,
    Rows,
    Scores,
    Value,
    compact,
)

REARRANGING = ("Identity", "Cast", "Reshape", "Flatten", "Unsqueeze", "Squeeze", "Transpose")


@lowers(*BINARY)
def binary(lowering: Lowering, op: Op) -> tuple[Value, ...]:
    left, right = (lowering.values.get(name) for name in op.inputs)
    if left is not None and right is not None:
        return (_of_two(lowering, op, left, right),)
    value, at = (left, 1) if left is not None else (right, 0)
    assert value is not None
    if isinstance(value, Scores):
        return (scores.adjusted(lowering, op, value, at),)
    fixed = lowering.fixed(op.input(at))
    if fixed is None:
        return (turns.turned(lowering, op, at),)
    if fixed.size == 1:
        return (_with_scalar(lowering, op, value, float(fixed.reshape(-1)[0]), at),)
    return (_with_vector(lowering, op, value, fixed, at),)


def _of_two(lowering: Lowering, op: Op, left: Value, right: Value) -> Value:
    """Combine two values that depend on the tokens."""
    if isinstance(left, Mixed) and isinstance(right, Mixed) and op.kind in ("Add", "Sub"):
        return turns.summed(op, left, right)
    if op.kind in ("Mul", "Div"):
        norm = normed(left, right, op.kind == "Div")
        if norm is None and op.kind == "Mul":
            norm = normed(right, left, False)
        if norm is not None:
            return norm
    first, second = as_function(left), as_function(right)
    standalone = op.kind in ("Add", "Mul")
    if first is not None and second is not None and first.of == second.of:
        parts = (op.kind, left, right)
        return both(op, first, second, left.axes, parts) if standalone else _functions(
            op, first, second, left)
    if not standalone:
        raise op.refuse("operands", "a value and a constant, or functions of one value",
                        "two different values")
    rows, others = lowering.settle(op, 0), lowering.settle(op, 1)
    if compact(rows.axes) != compact(others.axes):
        raise op.refuse("operands", "rows of the same arrangement", "different arrangements")
    operation = graph.Add() if op.kind == "Add" else graph.Mul()
    axes = max(rows.axes, others.axes, key=len)
    return lowering.emit(op, operation, (rows.node, others.node), axes, rows.width)


def _functions(op: Op, first: Function, second: Function, left: Value) -> Value:
    found = both(op, first, second, left.axes, ("", left, left))
    return replace(found, parts=None)


def _with_scalar(lowering: Lowering, op: Op, value: Value, number: float, at: int) -> Value:
    """Apply a constant to each element."""
    inner = as_function(value)
    if inner is None:
        name = op.input(1 - at)
        lowering.values[name] = rows = lowering.settled(lowering.model.makers[name], value)
        inner = as_function(rows)
        assert inner is not None
    step = BINARY[op.kind]
    if at == 1:
        return compose(op, inner, lambda x: step(x, np.array(number)), value.axes)
    return compose(op, inner, lambda x: step(np.array(number), x), value.axes)


def _with_vector(lowering: Lowering, op: Op, value: Value, vector: Array, at: int) -> Value:
    """Apply a constant for each element of the last axis: a norm's gamma or a layer's bias."""
    if op.kind == "Mul" and isinstance(value, Normed):
        size = norms.parts(op, value.of)[1]
        gamma = lowering.vector(op, at, size)
        return norms.scaled_norm(lowering, op, value, value.axes, gamma)
    if op.kind == "Add":
        return _biased(lowering, op, at, vector)
    raise op.refuse("operands", "a norm and its gamma, or a layer and its bias",
                    f"{type(value).__name__} and a constant of shape {list(vector.shape)}")


def _biased(lowering: Lowering, op: Op, at: int, vector: Array) -> Rows:
    """Give the layer whose output is the other operand a bias."""
    rows = lowering.flat(op, 1 - at)
    node = lowering.nodes[rows.node]
    alone = _is_alone(lowering, op.input(1 - at))
    if not isinstance(node.op, graph.Linear) or node.op.bias is not None or not alone:
        raise op.refuse("a constant vector", "added to the output of one linear layer, once",
                        f"added to {type(node.op).__name__} {rows.node!r}")
    bias = lowering.vector(op, at, rows.width)
    lowering.nodes[rows.node] = replace(node, op=replace(node.op, bias=bias))
    return rows


def _is_alone(lowering: Lowering, name: str) -> bool:
    """Whether a value has one reader, and so have those it only rearranges."""
    while lowering.uses[name] == 1:
        maker = lowering.model.makers.get(name)
        if maker is None or maker.kind not in REARRANGING:
            return True
        name = maker.input(0)
    return False
