"""MatMul and Gemm with a weight, and the token embedding."""

from __future__ import annotations

from alula.compiler.graph import Embed, Linear
from alula.compiler.importer.lowering import Lowering, lowers
from alula.compiler.importer.model import Op
from alula.compiler.importer.scores import product
from alula.compiler.importer.values import Value
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
    """Lower the token embedding."""
    if not lowering.is_embedding(op):
        raise op.refuse("indices", "the tokens (input_ids)", f"{op.input(1)!r}")
    op.expect("axis", 0, op.get("axis", 0))
    table = matrix(lowering, op, 0, by_input=False)
    return (lowering.emit_flat(op, Embed(table=table), (), table.cols),)
