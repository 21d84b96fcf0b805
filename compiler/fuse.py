"""Fuse: fewer, larger operations, each of which the accelerator does at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from alula.compiler.graph import (
    Activation,
    Attention,
    Codes,
    Gate,
    Graph,
    GraphError,
    Linear,
    Mul,
    Node,
    QuantMatrix,
    RmsNorm,
    Rope,
    Slice,
)
from alula.hw.isa import BLOCK


def fuse(graph: Graph) -> Graph:
    """Return the graph with gates formed, and layers of the same input made one, values last."""
    return values_last(merge_linears(values_last(form_gates(graph))))


def users(graph: Graph) -> dict[str, list[Node]]:
    """Return the nodes that take each value."""
    found: dict[str, list[Node]] = {node.name: [] for node in graph.nodes}
    for node in graph.nodes:
        for name in node.inputs:
            found[name].append(node)
    return found


def form_gates(graph: Graph) -> Graph:
    """Replace ``Mul(Activation(a), b)`` by ``Gate(a, b)`` where nothing else uses ``a``'s."""
    used = users(graph)
    by_name = {node.name: node for node in graph.nodes}
    gates: dict[str, Node] = {}
    gone = set()
    for node in graph.of(Mul):
        for index, name in enumerate(node.inputs):
            source = by_name[name]
            if isinstance(source.op, Activation) and len(used[name]) == 1:
                other = node.inputs[1 - index]
                gates[node.name] = Node(node.name, Gate(kind=source.op.kind),
                                        (source.inputs[0], other))
                gone.add(name)
                break
    return graph.with_nodes([gates.get(node.name, node) for node in graph.nodes
                             if node.name not in gone])


def values_last(graph: Graph) -> Graph:
    """Return the graph with what only an attention's values need right before it.

    Values are quantized, queries and keys rotated before: that is done while values are computed.
    """
    by_name, used = {node.name: node for node in graph.nodes}, users(graph)
    chains = {node.name: list(_value_chain(by_name, used, node)) for node in graph.of(Attention)}
    late = {node.name for chain in chains.values() for node in chain}
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.name not in late:
            nodes += [*reversed(chains.get(node.name, [])), node]
    return graph.with_nodes(nodes)


def _value_chain(by_name: dict[str, Node], used: dict[str, list[Node]],
                 attention: Node) -> Iterator[Node]:
    """Yield the operations that only the values come through, the last first, from a layer on."""
    node = by_name[attention.inputs[2]]
    while isinstance(node.op, (Rope, RmsNorm, Slice, Linear)) and len(used[node.name]) == 1:
        yield node
        if isinstance(node.op, Linear):
            return
        node = by_name[node.inputs[0]]


def _can_merge(a: Linear, b: Linear) -> bool:
    one, two = a.weight, b.weight
    return (isinstance(one, QuantMatrix) and isinstance(two, QuantMatrix)
            and (one.cols, one.bits, one.group) == (two.cols, two.bits, two.group)
            and one.rows % BLOCK == 0)


def merge_linears(graph: Graph) -> Graph:
    """Make quantized linear layers of one input and format one layer, and slices of its output."""
    groups: dict[str, list[Node]] = {}
    for node in graph.of(Linear):
        run = groups.setdefault(node.inputs[0], [])
        if node.name != graph.output and (not run or _can_merge(_op(run[-1]), _op(node))):
            run.append(node)
    heads = {run[0].name: run for run in groups.values() if len(run) > 1}
    members = {node.name: run[0].name for run in heads.values() for node in run}
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.name in heads:
            nodes += _merged(heads[node.name])
        elif node.name not in members:
            nodes.append(node)
    return graph.with_nodes(nodes)


def _op(node: Node) -> Linear:
    assert isinstance(node.op, Linear)
    return node.op


def _merged(run: list[Node]) -> list[Node]:
    ops = [_op(node) for node in run]
    matrix = stack([op.weight for op in ops])  # type: ignore[misc]
    bias = None
    if any(op.bias is not None for op in ops):
        bias = np.concatenate([np.zeros(op.weight.rows, np.float32) if op.bias is None else op.bias
                               for op in ops])
    whole = Node(f"{run[0].name}+{len(run) - 1}", Linear(weight=matrix, bias=bias), run[0].inputs)
    parts, start = [whole], 0
    for node, op in zip(run, ops, strict=True):
        parts.append(Node(node.name, Slice(start=start, size=op.weight.rows), (whole.name,)))
        start += op.weight.rows
    return parts


def stack(matrices: list[QuantMatrix]) -> QuantMatrix:
    """Return matrices of one format one below the other."""
    first = matrices[0]
    if any((m.cols, m.bits, m.group) != (first.cols, first.bits, first.group) for m in matrices):
        raise GraphError(f"{first.name}: stacked matrices must have one width and format")
    starts = np.cumsum([0, *(m.rows for m in matrices)])

    def read(start: int, stop: int) -> Codes:
        parts = [m.read(max(start - at, 0), min(stop - at, m.rows))
                 for m, at in zip(matrices, starts[:-1].tolist(), strict=True)
                 if start < at + m.rows and stop > at]
        codes, scales, zero_points = zip(*parts, strict=True)
        return Codes(np.concatenate(codes), np.concatenate(scales), np.concatenate(zero_points))

    return replace(first, name="+".join(m.name for m in matrices), rows=int(starts[-1]), read=read)
