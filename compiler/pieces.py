"""Cut layers into pieces, so that vector work on one goes on while the lanes make the next.

The vector unit would else wait for a whole matrix product, and the lanes for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from alula.compiler.fuse import stack, users
from alula.compiler.graph import (
    Attention,
    Codes,
    Gate,
    Graph,
    Linear,
    Node,
    QuantMatrix,
    Slice,
)
from alula.hw.arch import ArchConfig
from alula.hw.isa import BLOCK, TILE_ROWS

GATED = 2048  # elements of a gate from which on more pieces save more than they cost

Runs = tuple[tuple[int, int], ...]  # of rows or elements: first, count


@dataclass(frozen=True)
class Pieces:
    """How layers are cut.

    Attributes
    ----------
    rows
        Of a linear layer, by name: the runs of rows that each piece computes, one below the other.
    gates
        Of a gate, by name: the run of elements of each piece. Where it is cut, the layer it takes
        its inputs from is cut alike: each piece has its rows of both inputs.
    """

    rows: dict[str, list[Runs]] = field(default_factory=dict)
    gates: dict[str, Runs] = field(default_factory=dict)

    def of(self, node: Node) -> list[Runs]:
        """Return the pieces of a linear layer."""
        assert isinstance(node.op, Linear)
        return self.rows.get(node.name, [((0, node.op.weight.rows),)])


def cut(graph: Graph, arch: ArchConfig) -> Pieces:
    """Return the pieces of a fused graph's layers on a build."""
    pieces = Pieces()
    by_name, used = {node.name: node for node in graph.nodes}, users(graph)
    for node in graph.of(Gate):
        _cut_gate(pieces, by_name, used, node, arch)
    for node in graph.of(Attention):
        _cut_attention(pieces, by_name, node)
    return pieces


def _cut_gate(pieces: Pieces, by_name: dict[str, Node], used: dict[str, list[Node]], gate: Node,
              arch: ArchConfig) -> None:
    """Cut a gate whose inputs are the two halves of one layer's output, and that layer."""
    halves = [by_name[name] for name in gate.inputs]
    source = halves[0].inputs[0] if isinstance(halves[0].op, Slice) else ""
    layer = by_name.get(source)
    if layer is None or not isinstance(layer.op, Linear) or layer.op.bias is not None:
        return
    size = layer.op.weight.rows // 2
    starts = [half.op.start for half in halves if isinstance(half.op, Slice)
              and half.op.size == size and half.inputs == (source,) and len(used[half.name]) == 1]
    if sorted(starts) != [0, size] or len(used[source]) != 2:
        return
    groups = [user.op.weight.group for user in used[gate.name]
              if isinstance(user.op, Linear) and isinstance(user.op.weight, QuantMatrix)]
    # The strips of a piece's rows go round all lanes.
    unit = math.lcm(TILE_ROWS * arch.lanes, *(2 * group for group in groups), 2 * BLOCK) // 2
    runs = _runs(size, unit, max(1, size // GATED))
    if len(runs) > 1:
        pieces.gates[gate.name] = runs
        pieces.rows[source] = [tuple((start + at, count) for start in starts)
                                for at, count in runs]


def _runs(size: int, unit: int, most: int) -> Runs:
    """Return up to ``most`` runs of whole units, about equal but for the last, which has the rest.

    That is half as long, for nothing goes on while the vector unit works on it.
    """
    units = size // unit
    count = max(1, min(most, units))
    ends = [2 * units * at // (2 * count - 1) * unit for at in range(count)] + [size]
    return tuple((at, end - at) for at, end in zip(ends[:-1], ends[1:], strict=True))


def _cut_attention(pieces: Pieces, by_name: dict[str, Node], node: Node) -> None:
    """Cut a layer whose last rows make values: they are a piece of their own."""
    value = by_name[node.inputs[2]]
    layer = by_name[value.inputs[0]]
    if isinstance(value.op, Slice) and isinstance(layer.op, Linear) and layer.name not in (
            pieces.rows):
        start, size = value.op.start, value.op.size
        if 0 < start == layer.op.weight.rows - size:
            pieces.rows[layer.name] = [((0, start),), ((start, size),)]


def rows(matrix: QuantMatrix, runs: Runs) -> QuantMatrix:
    """Return some runs of a matrix's rows, one below the other."""
    if runs == ((0, matrix.rows),):
        return matrix
    return stack([_run(matrix, *run) for run in runs])


def _run(matrix: QuantMatrix, start: int, count: int) -> QuantMatrix:
    def read(first: int, stop: int) -> Codes:
        return matrix.read(start + first, start + stop)

    return QuantMatrix(name=f"{matrix.name}[{start}:{start + count}]", rows=count,
                       cols=matrix.cols, bits=matrix.bits, group=matrix.group, read=read)
