"""The canonical graph: a few language-model operators, and the matrices they hold.

Every front end produces this form and every later step takes it and returns a new one. Values are
named; a node's output is its name. Matrices are *lazy*: a node holds how to read rows, never the
rows, so a 7B model passes through the compiler without being in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class GraphError(ValueError):
    """A graph breaks a rule of the canonical form."""


class Codes(NamedTuple):
    """Rows of a quantized matrix; a weight's value is ``(code - zero_point) * scale``."""

    codes: NDArray[np.uint8]  # (rows, cols), each below 2**bits
    scales: NDArray[np.float32]  # (rows, groups), signed
    zero_points: NDArray[np.uint8]  # (rows, groups)


@dataclass(frozen=True, kw_only=True)
class QuantMatrix:
    """A ``(rows, cols)`` matrix of integer codes, one scale for each ``group`` inputs of a row.

    Parameters
    ----------
    rows, cols
        Outputs and inputs of the linear layer. ``cols`` need not be a multiple of ``group``.
    bits
        2, 3, 4 or 8.
    group
        Inputs that share a scale: a power of two from 16 to 256.
    read
        ``read(start, stop)`` gives rows ``start`` to ``stop`` as :class:`Codes`.
    """

    name: str
    rows: int
    cols: int
    bits: int
    group: int
    read: Callable[[int, int], Codes] = field(compare=False, repr=False)

    @property
    def groups(self) -> int:
        return -(-self.cols // self.group)


@dataclass(frozen=True, kw_only=True)
class FloatMatrix:
    """A ``(rows, cols)`` matrix of fp32 values; ``read(start, stop)`` gives rows as float32."""

    name: str
    rows: int
    cols: int
    read: Callable[[int, int], NDArray[np.float32]] = field(compare=False, repr=False)


Matrix = QuantMatrix | FloatMatrix


def dequantize(rows: Codes, group: int) -> NDArray[np.float32]:
    """Return the fp32 values ``(code - zero_point) * scale`` of some rows, one rounding each."""
    cols = rows.codes.shape[1]
    spread = np.arange(cols) // group
    offsets = rows.codes.astype(np.int16) - rows.zero_points[:, spread]
    return offsets.astype(np.float32) * rows.scales[:, spread]


class ActivationKind(StrEnum):
    """Functions of the vector unit. GELU is the erf form, GELU_TANH the tanh form."""

    SILU = "silu"
    GELU = "gelu"
    GELU_TANH = "gelu_tanh"
    RELU = "relu"


@dataclass(frozen=True, kw_only=True)
class Embed:
    """``() -> (hidden)``: the row of ``table`` that the step's token names."""

    table: Matrix


@dataclass(frozen=True, kw_only=True)
class RmsNorm:
    """``(n) -> (n)``: each of ``heads`` equal parts divided by its root mean square, times gamma.

    ``gamma`` has ``n / heads`` values, used by every part (query and key norms have one part a
    head; a layer's norm has ``heads = 1``).
    """

    gamma: NDArray[np.float32] = field(compare=False, repr=False)
    eps: float
    heads: int = 1


@dataclass(frozen=True, kw_only=True)
class Linear:
    """``(cols) -> (rows)``: ``weight @ x + bias``."""

    weight: Matrix
    bias: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class Slice:
    """``(n) -> (size)``: elements ``start`` to ``start + size``; costs nothing once placed."""

    start: int
    size: int


@dataclass(frozen=True, kw_only=True)
class Rope:
    """``(heads * head_dim) -> same``: rotary embedding by the row of the tables at the position.

    ``cos`` and ``sin`` are ``(positions, rotary_dim / 2)``; dimensions past ``rotary_dim`` pass
    unchanged. ``interleaved`` pairs elements 2i and 2i+1, otherwise i and i + rotary_dim / 2.
    """

    cos: NDArray[np.float32] = field(compare=False, repr=False)
    sin: NDArray[np.float32] = field(compare=False, repr=False)
    heads: int
    head_dim: int
    interleaved: bool = False

    @property
    def rotary_dim(self) -> int:
        return 2 * self.cos.shape[1]


@dataclass(frozen=True, kw_only=True)
class Attention:
    """``(q, k, v) -> (heads * head_dim)``: causal attention over the sequence's cached keys.

    Inputs are one token's query (``heads * head_dim``), key and value (``kv_heads * head_dim``).
    The cache belongs to ``layer``. ``window`` is the number of latest positions seen, itself
    included; 0 means all.
    """

    layer: int
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int = 0


@dataclass(frozen=True, kw_only=True)
class Activation:
    """``(n) -> (n)``: ``kind`` of each element."""

    kind: ActivationKind


@dataclass(frozen=True, kw_only=True)
class Gate:
    """``(n), (n) -> (n)``: ``kind`` of the first times the second."""

    kind: ActivationKind


@dataclass(frozen=True, kw_only=True)
class Add:
    """``(n), (n) -> (n)``."""


@dataclass(frozen=True, kw_only=True)
class Mul:
    """``(n), (n) -> (n)``."""


Op = Embed | RmsNorm | Linear | Slice | Rope | Attention | Activation | Gate | Add | Mul

ARITY = {Embed: 0, RmsNorm: 1, Linear: 1, Slice: 1, Rope: 1, Attention: 3, Activation: 1,
         Gate: 2, Add: 2, Mul: 2}


@dataclass(frozen=True)
class Node:
    """One operation; its output value carries its name."""

    name: str
    op: Op
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A decoder: nodes in topological order, from the step's tokens to ``output``, the logits.

    Parameters
    ----------
    positions
        Largest context the model supports; the rotary tables cover it.
    eos_tokens
        Tokens that end a text.
    architecture
        The exporter's word for the model type ("llama"), for people only.
    """

    nodes: tuple[Node, ...]
    output: str
    vocab: int
    positions: int
    eos_tokens: tuple[int, ...] = ()
    bos_token: int | None = None
    architecture: str = "unknown"

    def with_nodes(self, nodes: list[Node]) -> Graph:
        return replace(self, nodes=tuple(nodes))

    def of(self, kind: type) -> Iterator[Node]:
        """Yield the nodes whose operation is a ``kind``, in order."""
        return (node for node in self.nodes if isinstance(node.op, kind))


def sizes(graph: Graph) -> dict[str, int]:
    """Return the number of elements in a row of each value; raise :class:`GraphError` if none fits.

    This is the legality check of every operator: shapes of inputs against what the operator holds.
    """
    found: dict[str, int] = {}
    for node in graph.nodes:
        if node.name in found:
            raise GraphError(f"value names must be unique, not two called {node.name!r}")
        missing = [name for name in node.inputs if name not in found]
        if missing:
            raise GraphError(f"{node.name}: input {missing[0]!r} must be made by an earlier node")
        if len(node.inputs) != ARITY[type(node.op)]:
            raise GraphError(f"{node.name}: {type(node.op).__name__} must have "
                             f"{ARITY[type(node.op)]} inputs, not {len(node.inputs)}")
        found[node.name] = _size(node, [found[name] for name in node.inputs])
    return found


def _size(node: Node, given: list[int]) -> int:
    """Return the output's row length; ``given`` are the inputs'."""
    op = node.op
    match op:
        case Embed():
            return op.table.cols
        case Linear():
            _expect(node, "input", given[0], op.weight.cols)
            if op.bias is not None:
                _expect(node, "bias", op.bias.size, op.weight.rows)
            return op.weight.rows
        case RmsNorm():
            _expect(node, "input", given[0], op.gamma.size * op.heads)
            return given[0]
        case Slice():
            if not 0 <= op.start < op.start + op.size <= given[0]:
                raise GraphError(f"{node.name}: slice {op.start}:{op.start + op.size} must lie "
                                 f"inside 0:{given[0]}")
            return op.size
        case Rope():
            _expect(node, "input", given[0], op.heads * op.head_dim)
            if op.cos.shape != op.sin.shape or op.rotary_dim > op.head_dim:
                raise GraphError(f"{node.name}: rotary tables must be equal in shape and at most "
                                 f"head_dim / 2 = {op.head_dim // 2} wide, not {op.cos.shape} "
                                 f"and {op.sin.shape}")
            return given[0]
        case Attention():
            if op.heads % op.kv_heads:
                raise GraphError(f"{node.name}: heads must be a multiple of kv_heads "
                                 f"({op.kv_heads}), not {op.heads}")
            for label, size, heads in zip("qkv", given, (op.heads, op.kv_heads, op.kv_heads),
                                          strict=True):
                _expect(node, label, size, heads * op.head_dim)
            return op.heads * op.head_dim
        case Activation():
            return given[0]
        case Gate() | Add() | Mul():
            _expect(node, "second input", given[1], given[0])
            return given[0]


def _expect(node: Node, what: str, size: int, wanted: int) -> None:
    if size != wanted:
        raise GraphError(f"{node.name}: {what} must have {wanted} elements, not {size}")


def verify(graph: Graph) -> Graph:
    """Return ``graph`` if it is legal, else raise :class:`GraphError` naming node and reason."""
    found = sizes(graph)
    if not graph.nodes or graph.output != graph.nodes[-1].name:
        raise GraphError(f"the output {graph.output!r} must be the last node of the graph")
    if found[graph.output] != graph.vocab:
        raise GraphError(f"the output {graph.output!r} must have one element for each of the "
                         f"{graph.vocab} tokens, not {found[graph.output]}")
    layers = [node.op.layer for node in graph.of(Attention) if isinstance(node.op, Attention)]
    if layers != list(range(len(layers))):
        raise GraphError(f"attention layers must be numbered 0, 1, ... in order, not {layers}")
    for node in graph.nodes:
        if isinstance(node.op, Linear | Embed):
            _verify_matrix(node)
        if isinstance(node.op, Rope) and len(node.op.cos) < graph.positions:
            raise GraphError(f"{node.name}: rotary tables must have a row for each of the "
                             f"{graph.positions} positions, not {len(node.op.cos)}")
    return graph


def _verify_matrix(node: Node) -> None:
    matrix = node.op.weight if isinstance(node.op, Linear) else node.op.table  # type: ignore[union-attr]
    if matrix.rows < 1 or matrix.cols < 1:
        raise GraphError(f"{node.name}: matrix {matrix.name!r} must have rows and columns, "
                         f"not {matrix.rows} x {matrix.cols}")
    if isinstance(matrix, QuantMatrix):
        if matrix.bits not in (2, 3, 4, 8):
            raise GraphError(f"{node.name}: bits must be 2, 3, 4 or 8, not {matrix.bits}")
        if matrix.group not in (16, 32, 64, 128, 256):
            raise GraphError(f"{node.name}: group must be a power of two from 16 to 256, "
                             f"not {matrix.group}")
