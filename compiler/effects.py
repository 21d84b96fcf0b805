"""What each instruction reads and writes on chip: the facts that scheduling and checking share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from alula.hw import isa


class Space(Enum):
    """Stores inside the accelerator. Ranges are in blocks, or 0:1 for a store that is one thing."""

    VECTOR = "vector buffer"
    CODES = "activation buffer"
    PARAMS = "parameter buffer"
    LANES = "lane arrays"  # consume the prefetched streams, in order
    STREAMS = "prefetch order"  # streams enter the lanes in order
    TOP = "best logits"
    ROWS = "step rows"


class Range(NamedTuple):
    space: Space
    start: int
    stop: int
    rows: isa.Rows = isa.Rows.ALL

    def overlaps(self, other: Range) -> bool:
        return (self.space is other.space and self.start < other.stop
                and other.start < self.stop
                and (self.rows is other.rows or isa.Rows.ALL in (self.rows, other.rows)))


@dataclass(frozen=True)
class Effects:
    reads: tuple[Range, ...] = ()
    writes: tuple[Range, ...] = ()

    def conflicts(self, later: Effects) -> bool:
        """Return whether ``later`` must not start before this one ends."""
        return (any(w.overlaps(x) for w in self.writes for x in later.reads + later.writes)
                or any(r.overlaps(w) for r in self.reads for w in later.writes))


def _blocks(space: Space, start: int, size: int) -> Range:
    return Range(space, start, start + -(-size // isa.BLOCK))


def _vector(start: int, size: int) -> Range:
    return _blocks(Space.VECTOR, start, size)


def _codes(start: int, size: int) -> Range:
    return _blocks(Space.CODES, start, size)


_LANES, _STREAMS = Range(Space.LANES, 0, 1), Range(Space.STREAMS, 0, 1)
_TOP, _ROWS = Range(Space.TOP, 0, 1), Range(Space.ROWS, 0, 1)


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _combine(i: isa.Combine) -> Effects:
    other = _blocks(Space.PARAMS if i.shared else Space.VECTOR, i.other, i.size)
    reads = (_vector(i.source, i.size),)
    return Effects(reads if i.function is isa.Elementwise.COPY else (*reads, other),
                   (_vector(i.target, i.size),))


def _activate(i: isa.Activate) -> Effects:
    reads = (_vector(i.source, i.size),) + ((_vector(i.other, i.size),) if i.gated else ())
    return Effects(reads, (_vector(i.target, i.size),))


def _rotate(i: isa.Rotate) -> Effects:
    half, size = _up(i.rotary_dim // 2, isa.BLOCK), i.heads * i.head_dim
    return Effects((_vector(i.source, size), _vector(i.cos, 2 * half)), (_vector(i.target, size),))


def _attend(i: isa.Attend) -> Effects:
    queries, keys = i.heads * i.head_dim, i.kv_heads * i.head_dim
    return Effects((_codes(i.query, queries), _codes(i.key, keys), _codes(i.value, keys), _ROWS),
                   (_vector(i.target, queries), _LANES))


def _store_key_value(i: isa.StoreKeyValue) -> Effects:
    size = i.kv_heads * i.head_dim
    return Effects((_codes(i.key, size), _codes(i.value, size), _ROWS))


_EFFECTS: dict[type[isa.Instruction], Callable[[Any], Effects]] = {
    isa.LoadStream: lambda i: Effects(writes=(_STREAMS,)),
    isa.LoadPages: lambda i: Effects((_ROWS,), (_STREAMS,)),
    isa.LoadParams: lambda i: Effects(writes=(_blocks(Space.PARAMS, i.target, i.size),)),
    isa.LoadRow: lambda i: Effects((_ROWS,), (_vector(i.target, i.size),)),
    isa.StoreKeyValue: _store_key_value,
    isa.StoreRow: lambda i: Effects((_vector(i.source, i.size), _ROWS)),
    isa.StoreTop: lambda i: Effects((_TOP, _ROWS)),
    isa.Linear: lambda i: Effects((_codes(i.source, _up(i.inputs, 1 << i.group_log2)),),
                                  (_vector(i.target, i.outputs), _LANES)),
    isa.Attend: _attend,
    isa.RmsNorm: lambda i: Effects(
        (_vector(i.source, i.size * i.parts), _blocks(Space.PARAMS, i.gamma, i.size)),
        (_vector(i.target, i.size * i.parts),)),
    isa.Combine: _combine,
    isa.Activate: _activate,
    isa.Rotate: _rotate,
    isa.Quantize: lambda i: Effects((_vector(i.source, i.size),),
                                    (_codes(i.target, _up(i.size, max(i.group, 1))),)),
    isa.SelectTop: lambda i: Effects((_vector(i.source, i.size), _TOP), (_TOP,)),
    isa.ReadStep: lambda i: Effects(writes=(_ROWS,)),
    isa.Advance: lambda i: Effects((_TOP, _ROWS), (_ROWS,)),
}

SIZES = {Space.VECTOR: "vector_elements", Space.CODES: "activation_elements",
         Space.PARAMS: "param_elements"}  # field of ArchConfig that bounds each store


def effects(instruction: isa.Instruction) -> Effects:
    """Return what an instruction reads and writes on chip."""
    rule = _EFFECTS.get(type(instruction))
    found = rule(instruction) if rule else Effects()
    if instruction.rows is isa.Rows.ALL:
        return found
    return Effects(tuple(_of_rows(access, instruction) for access in found.reads),
                   tuple(_of_rows(access, instruction) for access in found.writes))


def _of_rows(access: Range, i: isa.Instruction) -> Range:
    """Return a range of an instruction that is for one half of the rows."""
    rows = i.rows
    if access.space is Space.CODES:
        packed = i.packed if isinstance(i, isa.Quantize) else isinstance(i, isa.Linear)
        if packed:
            rows = isa.Rows.FIRST
        elif isinstance(i, isa.Attend) and access.start != i.query and rows is isa.Rows.SECOND:
            rows = isa.Rows.ALL  # rows follow earlier ones
    elif access.space is not Space.VECTOR:
        return access
    return access._replace(rows=rows)
