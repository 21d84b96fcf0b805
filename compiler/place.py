"""Place values in the on-chip buffers: where each vector, quantized copy and parameter lives."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from alula.compiler.graph import (
    Activation,
    Add,
    Attention,
    Gate,
    Graph,
    Linear,
    Mul,
    Node,
    QuantMatrix,
    RmsNorm,
    Rope,
    Slice,
    sizes,
)
from alula.compiler.halves import phases, worth
from alula.compiler.sections import Section
from alula.hw.arch import ArchConfig
from alula.hw.isa import BLOCK, TILE_ROWS

LOGITS = 4096  # computed at a time, if there is room for twice as many


class PlaceError(ValueError):
    """A model does not fit the on-chip buffers of a build."""


@dataclass(frozen=True)
class CodesKey:
    """A quantized copy: of which value, with how many elements to a scale, for which section.

    ``scale`` is folded into the stored scales: an attention's query has its softmax scale there.
    """

    value: str
    group: int
    scale: float
    section: int


@dataclass
class Placement:
    """Blocks of everything on chip. Values are named as in the first pass of their section."""

    names: dict[str, str]  # value of a last pass -> its name in the first pass
    vector: dict[str, int] = field(default_factory=dict)
    codes: dict[CodesKey, int] = field(default_factory=dict)
    packed: dict[CodesKey, int] = field(default_factory=dict)  # of the rows of the second half
    halves: bool = False  # layers are also done in two halves
    params: dict[str, int] = field(default_factory=dict)  # by node
    tables: dict[str, int] = field(default_factory=dict)  # by table_key
    copies: dict[int, list[tuple[str, str]]] = field(default_factory=dict)  # by section: from, to
    chunk: int = 0  # logits computed at a time
    chunks: int = 0
    chunk_blocks: tuple[int, ...] = ()  # where, in turn

    def block(self, value: str) -> int:
        return self.vector[self.names.get(value, value)]


def table_key(op: Rope) -> str:
    """Return a name that rotary operations with the same tables share."""
    return hashlib.sha256(op.cos.tobytes() + op.sin.tobytes()).hexdigest()


def param_of(node: Node) -> NDArray[np.float32] | None:
    """Return the parameter vector an operation needs, or None."""
    if isinstance(node.op, RmsNorm):
        return node.op.gamma
    return node.op.bias if isinstance(node.op, Linear) else None


def quantized_inputs(node: Node, section: int) -> list[CodesKey]:
    """Return the quantized copy of each input that an operation takes as int8 codes."""
    match node.op:
        case Linear(weight=QuantMatrix(group=group)):
            return [CodesKey(node.inputs[0], group, 1.0, section)]
        case Attention(head_dim=head_dim, scale=scale):
            scales = (float(np.float32(scale * math.log2(math.e))), 1.0, 1.0)
            return [CodesKey(name, head_dim, factor, section)
                    for name, factor in zip(node.inputs, scales, strict=True)]
    return []


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def place(graph: Graph, parts: list[Section], arch: ArchConfig) -> Placement:
    """Return where everything goes; raise :class:`PlaceError` with the sizes if it cannot fit."""
    lengths = sizes(graph)
    names = {last.name: first.name for part in parts
             for first, last in zip(part.passes[0], part.passes[-1], strict=True)}
    placement = Placement(names)
    reserved = _place_tables(placement, parts)
    values = _Values(graph, parts, names, lengths)
    pinned: set[str] = set()
    while True:
        vector, top = _place_vectors(values, pinned, reserved, arch)
        torn = {(at, inside, names.get(outside, outside)) for at, part in enumerate(parts)
                for outside, inside in part.carried
                if vector[inside] != vector[names.get(outside, outside)]}
        fresh = {outside for _, _, outside in torn} - pinned
        if not fresh:
            break
        pinned |= fresh
    placement.vector = vector
    for at, inside, outside in sorted(torn):
        placement.copies.setdefault(at, []).append((inside, outside))
    _place_chunk(placement, graph, top, arch)
    placement.halves = (worth(graph, parts, arch)
                        and _place_halves(placement, parts, lengths, graph.output, arch))
    if not placement.halves:
        placement.codes.clear()
        placement.packed.clear()
        _place_codes(placement, parts, lengths, graph.output, arch)
    _place_params(placement, graph, parts, arch)
    return placement


def _place_tables(placement: Placement, parts: list[Section]) -> int:
    """Put rotary tables at the bottom of the vector buffer; return the blocks they take."""
    at = 0
    for part in parts:
        for node in part.nodes:
            if isinstance(node.op, Rope) and (key := table_key(node.op)) not in placement.tables:
                placement.tables[key] = at
                at += 2 * _up(node.op.rotary_dim // 2, BLOCK) // BLOCK
    return at


@dataclass
class _Values:
    """When each value lives, over the first passes of all sections laid end to end."""

    graph: Graph
    parts: list[Section]
    names: dict[str, str]
    lengths: dict[str, int]
    roots: dict[str, tuple[str, int]] = field(default_factory=dict)  # slice -> root, offset
    last: dict[str, int] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    ends: dict[str, int] = field(default_factory=dict)  # carried outside value -> its loop's end

    def __post_init__(self) -> None:
        time = 0
        for part in self.parts:
            end = time + len(part.nodes) - 1
            inside = {node.name for node in part.nodes}
            carried = {self.names.get(outside, outside) for outside, _ in part.carried}
            for node in part.nodes:
                self._enter(node, time, end if len(part.passes) > 1 else None, inside, carried)
                time += 1
            for outside, value in part.carried:
                self._extend(value, end)
                self.ends[self.names.get(outside, outside)] = end
        self._extend(self.graph.output, time)

    def _enter(self, node: Node, time: int, loop_end: int | None, inside: set[str],
               carried: set[str]) -> None:
        self.nodes.append(node)
        inputs = [self.names.get(name, name) for name in node.inputs]
        if isinstance(node.op, Slice):
            root, offset = self.root(inputs[0])
            self.roots[node.name] = root, offset + node.op.start
        for name in inputs:
            stays = loop_end is not None and name not in inside and name not in carried
            self._extend(name, loop_end if stays and loop_end is not None else time)

    def root(self, name: str) -> tuple[str, int]:
        return self.roots.get(self.names.get(name, name), (self.names.get(name, name), 0))

    def _extend(self, name: str, time: int) -> None:
        root, _ = self.root(name)
        self.last[root] = max(self.last.get(root, 0), time)


_IN_PLACE = (Add, Mul, Gate, Activation)


def _place_vectors(values: _Values, pinned: set[str], reserved: int,
                   arch: ArchConfig) -> tuple[dict[str, int], int]:
    """Return the block of every value, and the first block free while logits are computed."""
    limit = arch.vector_elements // BLOCK
    last = dict(values.last)
    for name in pinned:
        root, _ = values.root(name)
        last[root] = max(last[root], values.ends[name])
    where: dict[str, int] = {}
    live: dict[str, tuple[int, int]] = {}  # value -> block, blocks
    for time, node in enumerate(values.nodes):
        live = {name: span for name, span in live.items() if last[name] >= time}
        if node.name in values.roots or node.name == values.graph.output:
            continue
        blocks = _up(values.lengths[node.name], BLOCK) // BLOCK
        dying = [root for root, offset in map(values.root, node.inputs)
                 if offset == 0 and last[root] == time and live[root][1] == blocks]
        if isinstance(node.op, _IN_PLACE) and dying:
            block = live.pop(dying[0])[0]
        else:
            block = _first_fit(sorted(live.values()), blocks, reserved)
        if block + blocks > limit:
            raise PlaceError(f"{node.name}: the vector buffer must hold {(block + blocks) * BLOCK} "
                             f"elements a row, but {arch.name} has {arch.vector_elements}; "
                             "choose a larger build")
        live[node.name] = block, blocks
        where[node.name] = block
        last.setdefault(node.name, time)
    for name in values.roots:
        root, offset = values.root(name)
        if offset % BLOCK:
            raise PlaceError(f"{name}: a slice must start at a multiple of {BLOCK} elements, "
                             f"not {offset}")
        where[name] = where[root] + offset // BLOCK
    busy = [start + count for name, (start, count) in live.items() if name != values.graph.output]
    return where, max([reserved, *busy])


def _first_fit(taken: list[tuple[int, int]], blocks: int, start: int) -> int:
    at = start
    for block, count in taken:
        if at + blocks <= block:
            break
        at = max(at, block + count)
    return at


def _place_chunk(placement: Placement, graph: Graph, top: int, arch: ArchConfig) -> None:
    """Cut the logits into equal chunks that fit what is left of the vector buffer."""
    room = (arch.vector_elements // BLOCK - top) * BLOCK
    if room < TILE_ROWS:
        raise PlaceError(f"the vector buffer must have room for {TILE_ROWS} logits; {arch.name} "
                         "has none left; choose a larger build")
    # With room for two chunks one is stored and searched while the next is computed.
    turns = 2 if graph.vocab > LOGITS and room >= 2 * TILE_ROWS * arch.lanes else 1
    room //= turns
    chunks = _up(-(-graph.vocab // min(room, LOGITS if turns > 1 else room)), turns)
    size = _up(-(-graph.vocab // chunks), TILE_ROWS)
    even = _up(size, TILE_ROWS * arch.lanes)  # the same number of strips in every lane
    placement.chunk = even if even <= room and chunks > 1 else size
    placement.chunks = _up(-(-graph.vocab // placement.chunk), turns)
    placement.chunk_blocks = tuple(top + turn * (placement.chunk // BLOCK)
                                   for turn in range(turns))


def _place_codes(placement: Placement, parts: list[Section], lengths: dict[str, int],
                 output: str, arch: ArchConfig) -> None:
    """Give quantized copies blocks in turn, so that one is not soon written over another."""
    limit = arch.activation_elements // BLOCK
    at = 0
    for index, part in enumerate(parts):
        last = {key: time for time, node in enumerate(part.nodes)
                for key in quantized_inputs(node, index)}
        made = _made_at(part, index, output)
        live: dict[CodesKey, tuple[int, int]] = {}
        for time, node in enumerate(part.nodes):
            live = {key: span for key, span in live.items() if last[key] >= time}
            for key in made[time]:
                blocks = _up(lengths[key.value], key.group) // BLOCK
                # Hardware reads a group as one run, which begins at a multiple of its length.
                unit = min(key.group & -key.group, 256) // BLOCK
                block = _next_fit(sorted(live.values()), blocks, at, limit, unit)
                if block is None:
                    raise PlaceError(f"{node.name}: the activation buffer must hold "
                                     f"{blocks * BLOCK} more elements a row, but {arch.name} has "
                                     f"{arch.activation_elements} in all; choose a larger build")
                placement.codes[key] = block
                live[key] = block, blocks
                at = block + blocks


def _place_halves(placement: Placement, parts: list[Section], lengths: dict[str, int],
                  output: str, arch: ArchConfig) -> bool:
    """Give quantized copies blocks for layers in two halves; return whether there is room.

    A product takes the codes of the second half's rows from the place of the first rows, so these
    have blocks of their own. The halves take turns in a phase, so what lives in one is apart.
    """
    limit = arch.activation_elements // BLOCK
    for index, part in enumerate(parts):
        of_node = phases(part)
        period = max(of_node) if len(part.passes) > 1 else len(parts[index].nodes) + 1
        spans: dict[CodesKey, tuple[int, int]] = {}
        for time, keys in _made_at(part, index, output).items():
            spans |= dict.fromkeys(keys, (of_node[time], of_node[time]))
        linear: set[CodesKey] = set()
        for time, node in enumerate(part.nodes):
            for key in quantized_inputs(node, index):
                spans[key] = spans[key][0], max(of_node[time], spans[key][1])
                if isinstance(node.op, Linear):
                    linear.add(key)
        wanted = [(key, packed) for key in spans for packed in (False, True)
                  if not packed or (key in linear and len(part.passes) > 1)]
        wanted.sort(key=lambda item: -lengths[item[0].value])
        placed: list[tuple[tuple[int, int], tuple[int, int]]] = []
        for key, packed in wanted:
            blocks = _up(lengths[key.value], key.group) // BLOCK
            unit = min(key.group & -key.group, 256) // BLOCK
            block = _next_fit(sorted(run for span, run in placed
                                     if _meet(span, spans[key], period)), blocks, 0, limit, unit)
            if block is None:
                return False
            (placement.packed if packed else placement.codes)[key] = block
            placed.append((spans[key], (block, blocks)))
    return True


def _meet(a: tuple[int, int], b: tuple[int, int], period: int) -> bool:
    """Return whether two runs of phases share one, where phase ``period`` is 0 of the next pass."""
    return any(a[0] + turn <= b[1] and b[0] <= a[1] + turn for turn in (-period, 0, period))


def _made_at(part: Section, index: int, output: str) -> dict[int, list[CodesKey]]:
    """Return the quantized copies made at each node: with their value, or before their first use.

    Those of the graph's output are made with it.
    """
    where = {node.name: time for time, node in enumerate(part.nodes)}
    made: dict[int, list[CodesKey]] = {time: [] for time in where.values()}
    seen: set[CodesKey] = set()
    for node in sorted(part.nodes, key=lambda node: node.name == output):
        for key in quantized_inputs(node, index):
            if key not in seen:
                seen.add(key)
                time = where[node.name]
                made[time if node.name == output else where.get(key.value, time)].append(key)
    return made


def _next_fit(taken: list[tuple[int, int]], blocks: int, start: int, limit: int,
              unit: int) -> int | None:
    """Return the first free run at a multiple of ``unit``, from ``start`` on, then from 0."""
    for first in (start, 0):
        block = _up(first, unit)
        for used, count in taken:
            if used + count <= block:
                continue
            if block + blocks <= used:
                break
            block = _up(used + count, unit)
        if block + blocks <= limit:
            return block
    return None


def _place_params(placement: Placement, graph: Graph, parts: list[Section],
                  arch: ArchConfig) -> None:
    at = 0
    for node in _template(parts):
        vector = param_of(node)
        if vector is None:
            continue
        size = placement.chunk if node.name == graph.output else vector.size
        placement.params[node.name] = at
        at += _up(size, BLOCK) // BLOCK
    if at * BLOCK > arch.param_elements:
        raise PlaceError(f"the parameter buffer must hold {at * BLOCK} elements, but {arch.name} "
                         f"has {arch.param_elements}; choose a larger build")


def _template(parts: list[Section]) -> Iterator[Node]:
    for part in parts:
        yield from part.nodes
