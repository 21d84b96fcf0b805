"""From a program to kernel launches: one list for each number of rows, the same in every step.

Instructions of the sequencer run here. Vector instructions that follow one another become one
launch, with a program for each row; where a step has few rows they run inside the launch that
follows, in each of its programs alike. What a product is added to joins its launch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from alula.compiler.effects import Range, Space, effects
from alula.compiler.program import Program
from alula.hw import isa, layout, numerics
from alula.hw.isa import BLOCK, WORD_BYTES, Instruction
from alula.sim import streams


class Event(NamedTuple):
    """An instruction as it is executed; the address is that of what it loads or stores.

    ``parts`` are what a product was put together from, itself if nothing.
    """

    instruction: Any
    address: int = 0
    parts: tuple[tuple[int, isa.Linear], ...] = ()


@dataclass
class Launch:
    """What one kernel does. ``place`` is where its addresses begin among all of the plan's."""

    work: Event | None  # a Linear or an Attend; None: vector instructions alone
    before: tuple[Event, ...] = ()
    after: tuple[int, int, int, int] | tuple[()] = ()
    place: int = 0


class Key(NamedTuple):
    """What of a step decides its launches."""

    rows: int
    repeats: int
    head: int
    placed: bool  # some row has a place of its own for its key and value


@dataclass
class Walk:
    """Runs the sequencer's instructions; yields the others."""

    program: Program
    repeats: int
    head: int
    registers: list[int] = field(default_factory=lambda: [0] * isa.ADDRESS_REGISTERS)
    streams: deque[int] = field(default_factory=deque)
    loops: list[tuple[int, int]] = field(default_factory=list)
    next: int = 0

    def events(self) -> Iterator[Event]:
        while not isinstance(i := self.program.instructions[self.next], isa.End):
            self.next += 1
            if isinstance(i, isa.SEQUENCED):
                self._sequence(i)
            elif isinstance(i, (isa.LoadStream, isa.LoadPages)):
                self.streams.append(self._address(i))
            elif isinstance(i, isa.Linear):
                address = self.streams.popleft()
                yield Event(i, address, ((address, i),))
            elif isinstance(i, isa.Attend):
                yield Event(i, self.streams.popleft())
            elif isinstance(i, isa.SelectTop):
                yield Event(i, self.registers[i.register] + i.offset)
            elif not isinstance(i, isa.Sync):
                yield Event(i, self._address(i) if hasattr(i, "register") else 0)

    def _address(self, i: Any) -> int:
        return int(self.registers[i.register] + i.offset) * WORD_BYTES

    def _sequence(self, i: Instruction) -> None:
        match i:
            case isa.SetAddress():
                self.registers[i.register] = i.value
            case isa.AddAddress():
                self.registers[i.register] = (self.registers[i.register] + i.value) & 0xFFFF_FFFF
            case isa.Loop():
                count = {isa.Count.IMMEDIATE: i.count, isa.Count.REPEATS: self.repeats,
                         isa.Count.HEAD: self.head, isa.Count.WHOLE: 1,
                         isa.Count.HALVES: 0}[i.source]  # nothing rests here between halves
                if count:
                    self.loops.append((self.next, count))
                else:
                    self._skip()
            case isa.EndLoop():
                start, left = self.loops.pop()
                if left > 1:
                    self.loops.append((start, left - 1))
                    self.next = start

    def _skip(self) -> None:
        depth = 1
        while depth:
            i = self.program.instructions[self.next]
            depth += isinstance(i, isa.Loop) - isinstance(i, isa.EndLoop)
            self.next += 1


_COLUMNS = tuple(layout.STEP_ROW.names or ())
_REPEATABLE = (isa.LoadParams, isa.RmsNorm, isa.Combine, isa.Activate, isa.Rotate, isa.Quantize,
               isa.StoreKeyValue)


def joined(events: Iterable[Event], program: Program) -> list[Event]:
    """Put products together that follow one another, of the same codes, with targets in a row."""
    out: list[Event] = []
    for event in events:
        i, last = event.instruction, out[-1].instruction if out else None
        if (isinstance(i, isa.Linear) and isinstance(last, isa.Linear)
                and (i.source, i.inputs, i.group_log2) == (last.source, last.inputs,
                                                           last.group_log2)
                and last.outputs % isa.TILE_ROWS == 0
                and i.target == last.target + last.outputs // BLOCK
                and streams.exponent(program, event.address)
                == streams.exponent(program, out[-1].address)):
            whole = replace(last, outputs=last.outputs + i.outputs)
            out[-1] = Event(whole, out[-1].address, out[-1].parts + event.parts)
        else:
            out.append(event)
    return out


def launches(events: Iterable[Event], program: Program, key: Key, fused_rows: int) -> list[Launch]:
    """Return the launches that run events; see :class:`Launches`."""
    made = Launches(key, fused_rows)
    waiting = joined(events, program)
    at = 0
    while at < len(waiting):
        event = waiting[at]
        at += 1
        if isinstance(event.instruction, (isa.Linear, isa.Attend)):
            following = waiting[at] if at < len(waiting) else None
            at += made.work(event, following)
        else:
            made.vector(event)
    made.flush()
    return made.launches


@dataclass
class Launches:
    """Gathers events into launches.

    Parameters
    ----------
    fused_rows
        Most rows whose vector instructions every program of the next launch runs.
    """

    key: Key
    fused_rows: int
    launches: list[Launch] = field(default_factory=list)
    pending: list[Event] = field(default_factory=list)

    def vector(self, event: Event) -> None:
        """Add a vector instruction; before one that changes what rows share, a launch ends."""
        if isinstance(event.instruction, isa.LoadParams):
            shared = effects(event.instruction).writes
            if any(_touches(shared, (other,), (Space.PARAMS,)) for other in self.pending):
                self.flush()
        elif stored := self._stored(event):
            others = [self._stored(other) for other in self.pending]
            if any(range(max(stored.start, o.start), min(stored.stop, o.stop)) for o in others):
                self.flush()
        self.pending.append(event)

    def _stored(self, event: Event) -> range:
        """Return the bytes of the control memory that an event writes, from first to last."""
        i, rows = event.instruction, self.key.rows
        size = 0
        if isinstance(i, isa.StoreRow):
            size = (rows - 1) * i.stride * WORD_BYTES + 4 * i.size
        elif isinstance(i, isa.StoreTop):
            size = rows * layout.TOP_ROW.itemsize
        return range(event.address, event.address + size)

    def flush(self) -> None:
        if self.pending:
            self.launches.append(Launch(None, tuple(self.pending)))
            self.pending = []

    def work(self, event: Event, following: Event | None) -> bool:
        """Add a product or an attention; return whether the instruction after it joined it."""
        after = _after(event.instruction, following)
        writes = list(effects(event.instruction).writes)
        if after and following:
            writes += effects(following.instruction).writes
        first = self._repeatable(writes) if self.key.rows <= self.fused_rows else len(self.pending)
        before, self.pending = tuple(self.pending[first:]), self.pending[:first]
        self.flush()
        self.launches.append(Launch(event, before, after))
        return bool(after)

    def _repeatable(self, writes: list[Range]) -> int:
        """Return where the last run of pending events begins that any program may repeat.

        A program may run behind another: what one writes none before may have read or written
        otherwise. ``writes`` are those of the work that follows.
        """
        later = writes
        at = len(self.pending)
        while at:
            event = self.pending[at - 1]
            mine = effects(event.instruction)
            if (not isinstance(event.instruction, _REPEATABLE)
                    or isinstance(event.instruction, isa.StoreKeyValue) and self.key.placed
                    or _overlap(later, (*mine.reads, *mine.writes))
                    or _overlap(mine.writes, mine.reads)):
                break
            later = [*later, *mine.writes]
            at -= 1
        return at


def _overlap(some: Iterable[Range], others: Iterable[Range]) -> bool:
    others = tuple(others)
    return any(a.overlaps(b) for a in some for b in others)


def _touches(ranges: Iterable[Range], events: Iterable[Event], spaces: tuple[Space, ...]) -> bool:
    chosen = [part for part in ranges if part.space in spaces]
    return any(_overlap(chosen, (*mine.reads, *mine.writes))
               for mine in (effects(event.instruction) for event in events))


def _after(i: Any, following: Event | None) -> tuple[int, int, int, int] | tuple[()]:
    """Return what joins a product: target, other operand, whether that is shared, function."""
    if not isinstance(i, isa.Linear) or following is None:
        return ()
    then = following.instruction
    if (not isinstance(then, isa.Combine) or then.size != i.outputs
            or then.function is isa.Elementwise.COPY):
        return ()
    operands = [then.source, then.other]
    if i.target == then.source:
        other, shared = then.other, then.shared
    elif i.target == then.other and not then.shared:
        other, shared = then.source, 0
    else:
        return ()
    blocks = -(-i.outputs // BLOCK)

    def apart(a: int, b: int) -> bool:
        return a == b or a + blocks <= b or b + blocks <= a

    if operands[0] == operands[1] or not apart(then.target, i.target):
        return ()
    if not shared and not (apart(then.target, other) and abs(other - i.target) >= blocks):
        return ()
    return then.target, other, int(shared), int(then.function)


@dataclass
class Encoder:
    """Makes ops of events, and collects the addresses that they use."""

    program: Program
    places: Callable[[int], int]  # where the places of pages begin, by heads of keys
    addresses: list[int] = field(default_factory=list)

    def begin(self) -> int:
        """Start the addresses of a launch where its pointer is aligned."""
        self.addresses += [0] * (-len(self.addresses) % 2)
        self.base = len(self.addresses)
        return self.base

    def address(self, event: Event) -> int:
        self.addresses.append(event.address)
        return len(self.addresses) - 1 - self.base

    def op(self, event: Event) -> tuple[Any, ...]:
        """Return the op of a vector instruction; its operands are those that its kernel names."""
        i = event.instruction
        match i:
            case isa.LoadParams():
                return 0, self.address(event), i.target, i.size
            case isa.LoadRow():
                column = _COLUMNS.index(i.index.name.lower())
                return (1, self.address(event), i.target, i.size, i.stride * WORD_BYTES, column,
                        int(i.format), i.group_log2)
            case isa.StoreKeyValue():
                return (2, self.address(event), i.key, i.value, i.kv_heads, i.head_dim,
                        round_up(i.head_dim), *self.pages(i))
            case isa.StoreRow():
                return 3, self.address(event), i.source, i.size, i.stride * WORD_BYTES
            case isa.StoreTop():
                return 4, self.address(event)
            case isa.RmsNorm():
                inverse = float(numerics.reciprocal(np.asarray(i.size, np.float32)))
                return (5, i.target, i.source, i.gamma, i.size, i.parts, i.eps, inverse,
                        min(16, round_up(i.parts)))
            case isa.Combine():
                return 6, i.target, i.source, i.other, i.shared, i.size, int(i.function)
            case isa.Activate():
                return 7, i.target, i.source, i.other, i.gated, i.size, int(i.function)
            case isa.Rotate():
                return (8, i.target, i.source, i.cos, i.heads, i.head_dim, i.rotary_dim,
                        i.interleaved, round_up(i.head_dim))
            case isa.Quantize():
                return 9, i.target, i.source, i.size, i.group, i.scale, round_up(i.group)
            case isa.SelectTop():
                return 10, self.address(event), i.source, i.size, i.limit, i.clear
            case isa.ReadStep():
                return 11, self.address(event)
            case isa.Advance():
                return (12,)
        raise NotImplementedError(f"the GPU must know the instruction {type(i).__name__}")

    def attend(self, event: Event) -> tuple[Any, ...]:
        i = event.instruction
        return (i.target, i.query, i.key, i.value, i.heads, i.kv_heads, i.head_dim, i.window,
                *self.pages(i), self.address(event))

    def pages(self, i: Any) -> tuple[int, int]:
        return self.places(i.kv_heads), layout.page_words(i.head_dim) * WORD_BYTES


def round_up(number: int) -> int:
    """Return the power of two that is ``number`` or next above."""
    return 1 << max(0, number - 1).bit_length()
