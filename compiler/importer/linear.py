"""MatMul and Gemm with a weight, and the token embedding."""

from __future__ import annotations

from alula.compiler.graph import Embed, Linear
from alula.compiler.importer.layout import last_token
from alula.compiler.importer.lowering import Lowering, lowers
from alula.compiler.importer.model import Op
from alula.compiler.importer.scores import product
from alula.compiler.importer.values import TOKENS, Value
from alula.compiler.importer.weights import matrix


@lowers("MatMul")
def matmul(lowering: Lowering, op: Op) -> tuple[Value, ...]:
    """Lower a layer, if the second operand is a weight, else a product of attention."""
    if op.input(1) in lowering.values:
        return (product(lowering, op),)
    return _linear(lowering, op, by_input=True)


@lowers("Gemm")
def gemm(lowering: Lowering, op: Op) -> tuple[Value, ...]:
    for name, wanted in (("alpha", 1.0), ("beta", 1.0)):
        op.expect(name, wanted, op.get(name, 1.0))
    op.expect("transA", 0, op.get("transA", 0))
    return _linear(lowering, op, by_input=not op.get("transB", 0))


def _linear(lowering: Lowering, op: Op, *, by_input: bool) -> tuple[Value, ...]:
    rows = lowering.flat(op)
    weight = matrix(lowering, op, 1, by_input=by_input)
    op.expect("inputs of the weight", rows.width, weight.cols)
    bias = lowering.vector(op, 2, weight.rows) if op.input(2) else None
    return (lowering.emit_flat(op, Linear(weight=weight, bias=bias), (rows.node,), weight.rows),)


@lowers("Gather")
def gather(lowering: Lowering, op: Op) -> tuple[Value, ...]:
    """Lower the token embedding, or the choice of the last token before the head."""
    if op.input(0) in lowering.values:
        return (_last(lowering, op),)
    lowering.expect_tokens(op)
    op.expect("axis", 0, op.get("axis", 0))
    table = matrix(lowering, op, 0, by_input=False)
    return (lowering.emit_flat(op, Embed(table=table), (), table.cols),)


def _last(lowering: Lowering, op: Op) -> Value:
    index = lowering.numbers(op, 1)
    rows = lowering.settle(op, 0)
    at = op.get("axis", 0) % len(rows.axes)
    if rows.axes[at] != TOKENS or index.reshape(-1).tolist() != [-1]:
        raise op.refuse("axis and indices", "those of the last token", f"{at} and {index.tolist()}")
    return last_token(lowering, op, rows, at, keep=index.ndim > 0)
