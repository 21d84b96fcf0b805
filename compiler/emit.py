"""Emit: turn placed nodes into instructions, and list what memory must hold for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alula.compiler.graph import (
    Activation,
    ActivationKind,
    Add,
    Attention,
    Codes,
    Embed,
    Gate,
    Graph,
    Linear,
    Matrix,
    Mul,
    Node,
    QuantMatrix,
    RmsNorm,
    Rope,
    Slice,
    sizes,
)
from alula.compiler.halves import join, phases
from alula.compiler.pieces import cut, rows
from alula.compiler.place import CodesKey, Placement, param_of, quantized_inputs, table_key
from alula.compiler.schedule import BARRIER, Item, LoopBlock
from alula.compiler.sections import Section
from alula.hw import isa, layout
from alula.hw.arch import ArchConfig
from alula.hw.isa import BLOCK, WORD_BYTES, Count, Index

# Address registers. A region's start is in the instruction's offset; registers hold what loops add.
_NONE, _STREAM, _PARAM, _CACHE, _TOKEN, _LOGITS, _TOP = range(7)

_FUNCTIONS = {ActivationKind.SILU: isa.Function.SILU, ActivationKind.GELU: isa.Function.GELU,
              ActivationKind.GELU_TANH: isa.Function.GELU_TANH,
              ActivationKind.RELU: isa.Function.RELU}


@dataclass(frozen=True)
class Table:
    """Rows that ``LoadRow`` gathers from the control memory."""

    rows: int
    stride: int  # words
    format: isa.Format
    source: Matrix | Rope
    group: int = 16


@dataclass
class Draft:
    """A program before its memory map: offsets are relative to their regions."""

    items: list[Item] = field(default_factory=list)
    streams: list[QuantMatrix] = field(default_factory=list)  # in directory order
    params: list[NDArray[np.float32]] = field(default_factory=list)
    param_words: int = 0
    tables: list[tuple[int, Table]] = field(default_factory=list)  # first word, table
    table_words: int = 0
    slot_words: int = 0
    logits_stride: int = 0


def emit(graph: Graph, parts: list[Section], placement: Placement, arch: ArchConfig) -> Draft:
    """Return the program's instructions as nested loops, without tokens."""
    return _Emitter(graph, parts, placement, arch).emit()


def words(elements: int, width: int = 4) -> int:
    """Return the memory words that elements of ``width`` bytes take."""
    return -(-elements * width // WORD_BYTES)


class _Emitter:
    def __init__(self, graph: Graph, parts: list[Section], placement: Placement,
                 arch: ArchConfig) -> None:
        self.graph, self.parts, self.placement, self.arch = graph, parts, placement, arch
        self.lengths = sizes(graph)
        self.draft = Draft()
        self.layer_starts = self._layer_starts()
        self.quantized: set[CodesKey] = set()  # copies that the section has made
        self.made: dict[str, list[CodesKey]] = {}
        self.pieces = cut(graph, arch)
        self.rows = isa.Rows.ALL  # that instructions are for

    def _layer_starts(self) -> list[int]:
        """Return the first word of each layer in a cache slot, and at the end the slot's words."""
        starts = [0]
        for node in self.graph.of(Attention):
            assert isinstance(node.op, Attention)
            starts.append(starts[-1] + layout.layer_words(self.arch.lanes, node.op.kv_heads,
                                                          node.op.head_dim))
        return starts

    def emit(self) -> Draft:
        draft = self.draft
        draft.slot_words = max(self.layer_starts[-1], 1)
        draft.logits_stride = words(self.placement.chunk * self.placement.chunks)
        body: list[Item] = [isa.SetAddress(register=_TOP, value=0)]
        step = self._layers()
        step += [BARRIER, LoopBlock(self._head(), source=Count.HEAD)]
        step.append(isa.AddAddress(register=_TOP,
                                   value=words(self.arch.rows * layout.TOP_ROW.itemsize, 1)))
        draft.items = [isa.ReadStep(register=_NONE, offset=0), BARRIER, *body,
                       LoopBlock(step, source=Count.REPEATS), BARRIER, isa.End()]
        return draft

    def _layers(self) -> list[Item]:
        """Emit all but the head, for all rows at once, and if it pays also in two halves."""
        whole = self._rope_tables()
        halves = list(whole)
        for index, part in enumerate(self.parts):
            first_stream, first_param = len(self.draft.streams), self.draft.param_words
            bodies = {}
            for some in isa.Rows if self.placement.halves else [isa.Rows.ALL]:
                self.rows = some
                bodies[some] = self._body(index, part, first_stream, first_param)
            self.rows = isa.Rows.ALL
            self._register(part)
            steps = {_STREAM: self.streams_used, _PARAM: self.param_used,
                     _CACHE: self._cache_step(part) if len(part.passes) > 1 else 0}
            used = {register: step for register, step in steps.items() if step}
            whole += self._loop(part, bodies[isa.Rows.ALL], used)
            if len(part.passes) == 1:
                halves += sum(bodies[isa.Rows.ALL].values(), [])
            elif self.placement.halves:
                halves += self._in_halves(part, bodies, used)
        if not self.placement.halves:
            return whole
        # Of rows whose logits no one wants, the last layer's keys and values are all that counts.
        stored = 1 + max((at for at, item in enumerate(halves)
                          if isinstance(item, isa.StoreKeyValue)), default=-1)
        halves = [*halves[:stored], BARRIER, LoopBlock(halves[stored:], source=Count.HEAD)]
        return [LoopBlock(whole, source=Count.WHOLE), BARRIER,
                LoopBlock(halves, source=Count.HALVES)]

    def _loop(self, part: Section, body: dict[int, list[Item]],
              used: dict[int, int]) -> list[Item]:
        """Return a section's passes over a body, given by phases."""
        items: list[Item] = sum(body.values(), [])
        if len(part.passes) == 1:
            return items
        zero, more = _registers(used)
        return [*zero, LoopBlock([*items, *more], count=len(part.passes)), *zero]

    def _in_halves(self, part: Section, bodies: dict[isa.Rows, dict[int, list[Item]]],
                   used: dict[int, int]) -> list[Item]:
        """Return a section's passes in two halves; see :mod:`alula.compiler.halves`."""
        first, second = bodies[isa.Rows.FIRST], bodies[isa.Rows.SECOND]
        last = max(first)
        zero, more = _registers(used)
        turns = {phase: first[phase] + second[phase] for phase in range(1, last)}
        for phase in range(2, last):
            joined = join(bodies[isa.Rows.ALL][phase], first[phase], second[phase],
                          second[phase - 1])
            if joined:
                made, turns[phase] = joined
                turns[phase - 1] = first[phase - 1] + made
        middle: list[Item] = [item for items in turns.values() for item in items]
        begin = first.get(0, []) + second.get(0, [])
        # Loads of this pass go before the registers move on.
        loads, others = _split(first[last]), _split(second[last])
        turn = [*middle, *loads[0], *others[0], *loads[1], *more, *first.get(0, []), *others[1],
                *second.get(0, [])]
        return [*zero, *begin, LoopBlock(turn, count=len(part.passes) - 1), *middle,
                *first[last], *second[last], *zero]

    def _rope_tables(self) -> list[Item]:
        items: list[Item] = []
        done: set[str] = set()
        for node in self.graph.of(Rope):
            assert isinstance(node.op, Rope)
            key = table_key(node.op)
            if key in done:
                continue
            done.add(key)
            size = 2 * _up(node.op.rotary_dim // 2, BLOCK)
            table = Table(self.graph.positions, words(size), isa.Format.F32, node.op)
            items.append(isa.LoadRow(
                register=_NONE, offset=self._table(table), target=self.placement.tables[key],
                size=size, stride=table.stride, index=Index.POSITION, format=table.format,
                group_log2=4))
        return items

    def _table(self, table: Table) -> int:
        at = self.draft.table_words
        self.draft.tables.append((at, table))
        self.draft.table_words += _up(table.rows * table.stride, 4)
        return at

    def _body(self, index: int, part: Section, first_stream: int,
              first_param: int) -> dict[int, list[Item]]:
        """Emit a pass of a section, by phases, for some rows."""
        self.quantized = set()
        self.made = self._made(index, part)
        self.streams_used, self.param_used = 0, 0
        layers = [node.op.layer for node in part.nodes if isinstance(node.op, Attention)]
        found = phases(part)
        body: dict[int, list[Item]] = {phase: [] for phase in found}
        for node, phase in zip(part.nodes, found, strict=True):
            if node.name != self.graph.output:
                body[phase] += self._node(index, node, first_stream, first_param, layers)
                body[phase] += self._quantize(self.made.get(node.name, []))
        for source, target in self.placement.copies.get(index, []):
            block = self.placement.block(target)
            body[found[-1]].append(isa.Combine(
                target=block, source=self.placement.block(source), other=block, shared=0,
                size=self.lengths[source], function=isa.Elementwise.COPY))
        return {phase: self._of_rows(items) for phase, items in body.items()}

    def _of_rows(self, items: list[Item]) -> list[Item]:
        """Return instructions for the rows at hand; what is for all is done with the first."""
        if self.rows is isa.Rows.ALL:
            return items
        found: list[Item] = []
        for item in items:
            if isinstance(item, _ONCE):
                found += [item] if self.rows is isa.Rows.FIRST else []
            elif isinstance(item, isa.LoadStream):
                found.append(item)
            else:
                assert isinstance(item, isa.Instruction)
                found.append(replace(item, rows=self.rows))
        return found

    def _made(self, index: int, part: Section) -> dict[str, list[CodesKey]]:
        """Return the quantized copies that a section needs of each value.

        Those of its own values are made with the value, so that they do not wait for others.
        """
        made: dict[str, list[CodesKey]] = {}
        for node in part.nodes:
            if node.name != self.graph.output:
                for key in quantized_inputs(node, index):
                    made.setdefault(key.value, []).append(key)
        return made

    def _cache_step(self, part: Section) -> int:
        first, second = ([node.op.layer for node in nodes if isinstance(node.op, Attention)]
                         for nodes in part.passes[:2])
        return self.layer_starts[second[0]] - self.layer_starts[first[0]] if first else 0

    def _register(self, part: Section) -> None:
        for nodes in part.passes:
            for node in nodes:
                if node.name == self.graph.output:
                    continue
                if isinstance(node.op, Linear):
                    self.draft.streams += [rows(_quantized(node.op.weight), piece)
                                           for piece in self.pieces.of(node)]
                vector = param_of(node)
                if vector is not None:
                    self._param(vector)

    def _param(self, vector: NDArray[np.float32]) -> None:
        padded = np.zeros(words(vector.size) * WORD_BYTES // 4, np.float32)
        padded[:vector.size] = vector
        self.draft.params.append(padded)
        self.draft.param_words += words(vector.size)

    def _node(self, index: int, node: Node, first_stream: int, first_param: int,
              layers: list[int]) -> list[Item]:
        """Emit one operation; its parameter and stream are the section's next."""
        place, op = self.placement, node.op
        items = self._quantize(quantized_inputs(node, index))
        target = place.block(node.name) if not isinstance(op, Slice) else 0
        source = [place.block(name) for name in node.inputs]
        size = self.lengths[node.name]
        vector = param_of(node)
        if vector is not None:
            items.append(isa.LoadParams(register=_PARAM, offset=first_param + self.param_used,
                                        target=place.params[node.name], size=vector.size))
            self.param_used += words(vector.size)
        match op:
            case Embed():
                items.append(self._embed(op, target))
            case RmsNorm():
                items.append(isa.RmsNorm(
                    target=target, source=source[0], gamma=place.params[node.name],
                    size=size // op.heads, parts=op.heads, eps=op.eps))
            case Linear():
                items += self._linear(index, node, target, first_stream + self.streams_used)
                self.streams_used += len(self.pieces.of(node))
            case Rope():
                items.append(isa.Rotate(
                    target=target, source=source[0], cos=place.tables[table_key(op)],
                    heads=op.heads, head_dim=op.head_dim, rotary_dim=op.rotary_dim,
                    interleaved=int(op.interleaved)))
            case Attention():
                items += self._attention(index, node, target, self.layer_starts[layers[0]])
            case Gate() if node.name in self.pieces.gates:
                items += self._gate(node, target, min(source))
            case Activation() | Gate():
                items.append(isa.Activate(
                    target=target, source=source[0], other=source[-1],
                    gated=int(isinstance(op, Gate)), size=size, function=_FUNCTIONS[op.kind]))
            case Add() | Mul():
                function = isa.Elementwise.ADD if isinstance(op, Add) else isa.Elementwise.MUL
                items.append(isa.Combine(target=target, source=source[0], other=source[1],
                                         shared=0, size=size, function=function))
        return items

    def _codes(self, index: int, node: Node) -> list[int]:
        """Return the blocks of an operation's quantized inputs."""
        return [self._block(key) for key in quantized_inputs(node, index)]

    def _block(self, key: CodesKey) -> int:
        """Return where a quantized copy of the rows at hand is."""
        packed = self.rows is isa.Rows.SECOND and key in self.placement.packed
        return (self.placement.packed if packed else self.placement.codes)[key]

    def _quantize(self, keys: list[CodesKey]) -> list[Item]:
        """Make the quantized copies that the section has not made yet."""
        items: list[Item] = []
        for key in keys:
            if key not in self.quantized:
                self.quantized.add(key)
                items.append(self._copy(key, 0, self.lengths[key.value]))
        return items

    def _copy(self, key: CodesKey, start: int, size: int) -> isa.Quantize:
        """Quantize some elements of a value, which begin at a group."""
        packed = self.rows is isa.Rows.SECOND and key in self.placement.packed
        return isa.Quantize(target=self._block(key) + start // BLOCK,
                            source=self.placement.block(key.value) + start // BLOCK, size=size,
                            group=key.group, scale=key.scale, packed=int(packed))

    def _gate(self, node: Node, target: int, source: int) -> list[Item]:
        """Emit a gate piece by piece, as its layer makes them, each with its quantized copies."""
        assert isinstance(node.op, Gate)
        items: list[Item] = []
        keys = self.made.get(node.name, [])
        self.quantized.update(keys)
        for start, size in self.pieces.gates[node.name]:
            block = source + 2 * start // BLOCK
            items.append(isa.Activate(
                target=target + start // BLOCK, source=block, other=block + size // BLOCK, gated=1,
                size=size, function=_FUNCTIONS[node.op.kind]))
            items += [self._copy(key, start, size) for key in keys]
        return items

    def _embed(self, op: Embed, target: int) -> isa.LoadRow:
        table = _embedding(op.table)
        return isa.LoadRow(register=_NONE, offset=self._table(table), target=target,
                           size=op.table.cols, stride=table.stride, index=Index.TOKEN,
                           format=table.format, group_log2=table.group.bit_length() - 1)

    def _linear(self, index: int, node: Node, target: int, stream: int) -> list[Item]:
        assert isinstance(node.op, Linear)
        weight = _quantized(node.op.weight)
        items: list[Item] = []
        done = 0
        for at, runs in enumerate(self.pieces.of(node)):
            size = sum(count for _, count in runs)
            block = done // BLOCK
            items += [isa.LoadStream(register=_STREAM, offset=stream + at),
                      isa.Linear(target=target + block, source=self._codes(index, node)[0],
                                 outputs=size, inputs=weight.cols,
                                 group_log2=weight.group.bit_length() - 1)]
            if node.op.bias is not None:
                items.append(self._bias(node, target, size, block))
            done += size
        return items

    def _bias(self, node: Node, target: int, size: int, block: int = 0) -> isa.Combine:
        return isa.Combine(target=target + block, source=target + block,
                           other=self.placement.params[node.name] + block, shared=1, size=size,
                           function=isa.Elementwise.ADD)

    def _attention(self, index: int, node: Node, target: int, first: int) -> list[Item]:
        op = node.op
        assert isinstance(op, Attention)
        query, key, value = self._codes(index, node)
        offset = self.layer_starts[op.layer]
        heads: dict[str, Any] = {"kv_heads": op.kv_heads, "head_dim": op.head_dim}
        return [
            isa.StoreKeyValue(register=_CACHE, offset=offset, key=key, value=value, **heads),
            isa.LoadPages(register=_CACHE, offset=offset, window=op.window, **heads),
            isa.Attend(target=target, query=query, key=key, value=value, heads=op.heads,
                       window=op.window, **heads)]

    def _head(self) -> list[Item]:
        """Emit the logits, chunk by chunk, and the best of them."""
        place, graph = self.placement, self.graph
        node = next(node for node in graph.nodes if node.name == graph.output)
        assert isinstance(node.op, Linear)
        weight = _quantized(node.op.weight)
        index = len(self.parts) - 1
        first = len(self.draft.streams)
        self.draft.streams += [_rows(weight, at * place.chunk, place.chunk)
                               for at in range(place.chunks)]
        size, param = place.chunk, self.draft.param_words
        registers = {_STREAM: 1, _TOKEN: size, _LOGITS: words(size)}
        if node.op.bias is not None:
            registers[_PARAM] = words(size)
            padded = np.zeros(place.chunks * size, np.float32)
            padded[:node.op.bias.size] = node.op.bias
            self._param(padded)
        zero: list[Item] = [isa.SetAddress(register=r, value=0) for r in registers]
        more: list[Item] = [isa.AddAddress(register=r, value=v) for r, v in registers.items()]
        source = self._codes(index, node)[0]
        turns = [item for block in place.chunk_blocks
                 for item in (*self._chunk(node, source, block, first, param), *more)]
        clear = isa.SelectTop(source=0, size=0, register=_NONE, offset=0, limit=0, clear=1)
        return [*self._quantize(quantized_inputs(node, index)), clear, *zero,
                LoopBlock(turns, count=place.chunks // len(place.chunk_blocks)), *zero,
                isa.StoreTop(register=_TOP, offset=0), isa.Advance(), BARRIER]

    def _chunk(self, node: Node, source: int, block: int, stream: int, param: int) -> list[Item]:
        """Emit some logits: computed, searched for the best, and stored."""
        assert isinstance(node.op, Linear)
        weight, size = _quantized(node.op.weight), self.placement.chunk
        items: list[Item] = [
            isa.LoadStream(register=_STREAM, offset=stream),
            isa.Linear(target=block, source=source, outputs=size, inputs=weight.cols,
                       group_log2=weight.group.bit_length() - 1)]
        if node.op.bias is not None:
            items.insert(0, isa.LoadParams(register=_PARAM, offset=param,
                                           target=self.placement.params[node.name], size=size))
            items.append(self._bias(node, block, size))
        return [*items,
                isa.SelectTop(source=block, size=size, register=_TOKEN, offset=0,
                              limit=self.graph.vocab, clear=0),
                isa.StoreRow(register=_LOGITS, offset=0, source=block, size=size,
                             stride=self.draft.logits_stride)]


_ONCE = (isa.LoadParams, isa.StoreKeyValue)


def _registers(used: dict[int, int]) -> tuple[list[Item], list[Item]]:
    """Return what sets registers to 0, and what adds a pass's steps to them."""
    return ([isa.SetAddress(register=register, value=0) for register in used],
            [isa.AddAddress(register=register, value=step) for register, step in used.items()])


def _split(items: list[Item]) -> tuple[list[Item], list[Item]]:
    """Return the loads of streams, and the others."""
    loads = (isa.LoadStream, isa.LoadPages)
    return ([item for item in items if isinstance(item, loads)],
            [item for item in items if not isinstance(item, loads)])


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _quantized(matrix: Matrix) -> QuantMatrix:
    assert isinstance(matrix, QuantMatrix), f"{matrix.name} was not quantized"
    return matrix


def _rows(matrix: QuantMatrix, start: int, count: int) -> QuantMatrix:
    """Return some rows of a matrix; those after its last are absent."""
    def read(first: int, stop: int) -> Codes:
        held = matrix.read(*(min(start + at, matrix.rows) for at in (first, stop)))
        missing = ((0, stop - first - len(held.codes)), (0, 0))
        return Codes(np.pad(held.codes, missing), np.pad(held.scales, missing),
                     np.pad(held.zero_points, missing))

    return replace(matrix, name=f"{matrix.name}[{start}:{start + count}]", rows=count, read=read)


_EMBED_ROWS = 4096  # rows looked at together


def _embedding(table: Matrix) -> Table:
    """Choose how embedding rows are stored: the smallest form that keeps every value."""
    spans = [(at, min(at + _EMBED_ROWS, table.rows)) for at in range(0, table.rows, _EMBED_ROWS)]
    if isinstance(table, QuantMatrix):
        kind = {4: isa.Format.Q4, 8: isa.Format.Q8}.get(table.bits)
        plain = table.cols % table.group == 0 and all(
            (table.read(*span).zero_points == 1 << (table.bits - 1)).all() for span in spans)
        if kind is not None and plain:
            row = words(table.groups) * WORD_BYTES + table.cols * table.bits // 8
            return Table(table.rows, words(row, 1), kind, table, table.group)
    elif all(_is_half(table.read(*span)) for span in spans):
        return Table(table.rows, words(table.cols, 2), isa.Format.F16, table)
    return Table(table.rows, words(table.cols), isa.Format.F32, table)


def _is_half(values: NDArray[np.float32]) -> bool:
    with np.errstate(over="ignore"):
        return bool((values.astype(np.float16).astype(np.float32) == values).all())


def relocate(instruction: isa.Instruction,
             starts: Mapping[type[isa.Instruction], int]) -> isa.Instruction:
    """Add the start of the region an instruction addresses; ``starts`` is in bytes."""
    start = starts.get(type(instruction))
    if start is None:
        return instruction
    operand: Any = instruction
    moved: isa.Instruction = replace(operand, offset=operand.offset + start // WORD_BYTES)
    return moved


