"""The golden machine with its heavy instructions compiled: the same program, the same bits.

:data:`FAST` maps instructions to compiled meanings; one that is not in it has the golden model's.
Weights stay packed, and are read from the program's file once: all by :meth:`CpuMachine.load`, or
each when it is first used.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from alula.compiler.program import Program
from alula.host.cpu import attention, linear, vector
from alula.host.cpu.simd import has_avx512
from alula.host.cpu.weights import PackedMatrix, pack
from alula.hw import isa, layout, numerics
from alula.hw.isa import BLOCK, WORD_BYTES, Instruction
from alula.sim import golden
from alula.sim.attention import row_chain
from alula.sim.machine import EXECUTE, Machine, MachineError, Meaning, Pages, unit_places

Progress = Callable[[float], None]  # told of the bytes of weights read since the last call
FAST: dict[type[Instruction], Callable[[CpuMachine, Any], None]] = {}
_Function = TypeVar("_Function", bound=Callable[..., None])


@dataclass
class CpuMachine(Machine):
    """A machine whose weights stay packed, with compiled meanings of instructions.

    ``control`` is what is behind the program's image in the control memory, which is read from the
    program itself; it is copied only if something is written to it.

    Parameters
    ----------
    fast
        Use AVX-512's instructions; by default if this processor has them.
    """

    fast: bool | None = None
    packed: dict[int, PackedMatrix] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._image = self.program.control
        super().__post_init__()
        self.fast = has_avx512() if self.fast is None else self.fast
        arch = self.arch
        self.cache_array = np.zeros((arch.lanes, self.program.memory.cache.size), np.uint8)
        self.caches = list(self.cache_array)
        rows = -(-arch.rows // max(linear.ROWS)) * max(linear.ROWS)
        self.words = np.zeros(rows * arch.activation_elements // 4, np.int32)
        self.word_scales = np.zeros(rows * arch.activation_elements // BLOCK, np.float32)
        self.corrections = np.zeros(rows * arch.activation_elements // BLOCK, np.int32)
        self.code_words = self.codes.view(np.int32)
        self._sight: _Sight | None = None
        self._places: _Places | None = None
        self._meanings = [_meaning(type(insn)) for insn in self.program.instructions]

    def meaning(self, instruction: Instruction) -> Meaning:
        return self._meanings[self.next - 1]

    def control_memory(self) -> NDArray[np.uint8]:
        return np.zeros(self.program.memory.top.stop - self._image.size, np.uint8)

    def control_bytes(self, start: int, size: int) -> NDArray[np.uint8]:
        if 0 <= start <= start + size <= self._image.size:
            return self._image[start:start + size]
        if 0 <= start < self._image.size:
            self.own_control()
        behind = self._image.size
        if not behind <= start <= start + size <= behind + self.control.size:
            raise MachineError(f"a control address must be below {behind + self.control.size}, "
                               f"not {start + size}")
        return self.control[start - behind:start - behind + size]

    def write_control(self, start: int, data: bytes | NDArray[Any]) -> None:
        self.about_to_write(start)
        super().write_control(start, data)

    def about_to_write(self, start: int) -> None:
        """Copy the image if it is going to be written to."""
        if start < self._image.size:
            self.own_control()

    def own_control(self) -> None:
        self.control = np.concatenate([self._image, self.control])
        self._image = np.zeros(0, np.uint8)

    def whole_control(self) -> NDArray[np.uint8]:
        """Return a copy of the whole control memory."""
        return np.concatenate([self._image, self.control])

    @property
    def halves(self) -> bool:
        return False  # weights would be read twice, and here is nothing to do meanwhile

    # Weights.

    def load(self, progress: Progress) -> None:
        """Read every stream that the program uses; ``progress`` is told of bytes as they are."""
        for address, i in streams(self.program):
            progress(self.matrix(address, i).size)

    def matrix(self, address: int, i: isa.Linear) -> PackedMatrix:
        """Return a stream's matrix, packed once."""
        found = self.packed.get(address)
        if found is None:
            found = self.packed[address] = pack(self.program, address, i, sparse=self.fast)
        return found

    # The sight.

    @property
    def sight(self) -> _Sight:
        """What the step's rows attend to."""
        if self._sight is None:
            self._sight = _Sight.of(self)
        return self._sight

    @property
    def places(self) -> _Places:
        """Where the step's rows keep their keys and values."""
        if self._places is None:
            self._places = _Places.of(self)
        return self._places

    def forget_step(self) -> None:
        self._sight = self._places = None


def _meaning(kind: type[Instruction]) -> Any:
    return FAST.get(kind, EXECUTE[kind])


def streams(program: Program) -> Iterator[tuple[int, isa.Linear]]:
    """Yield the directory address and the instruction of each weight stream a program reads.

    Loops whose count is known to the step only are taken once.
    """
    registers = [0] * isa.ADDRESS_REGISTERS
    loaded: deque[int | None] = deque()
    loops: list[tuple[int, int]] = []
    at, seen = 0, set()
    while not isinstance(i := program.instructions[at], isa.End):
        at += 1
        match i:
            case isa.SetAddress():
                registers[i.register] = i.value
            case isa.AddAddress():
                registers[i.register] = (registers[i.register] + i.value) & 0xFFFF_FFFF
            case isa.Loop():
                count = (i.count if i.source is isa.Count.IMMEDIATE
                         else int(i.source is not isa.Count.HALVES))
                if count:
                    loops.append((at, count))
                else:
                    at = _after_body(program, at)
            case isa.EndLoop():
                start, left = loops.pop()
                if left > 1:
                    loops.append((start, left - 1))
                    at = start
            case isa.LoadStream():
                loaded.append((registers[i.register] + i.offset) * WORD_BYTES)
            case isa.LoadPages():
                loaded.append(None)
            case isa.Attend():
                loaded.popleft()
            case isa.Linear():
                address = loaded.popleft()
                assert address is not None
                if address not in seen:
                    seen.add(address)
                    yield address, i


def widths(program: Program) -> set[int]:
    """Return the widths of codes that a program's streams begin with.

    A stream may have tiles of others; its kernel is then compiled when it is first used.
    """
    found = set()
    for address, _ in streams(program):
        for image in program.lanes:
            entry = image[address:address + WORD_BYTES].view(layout.DIRECTORY_ENTRY)[0]
            start = int(entry["start"]) * WORD_BYTES
            if entry["strips"] and start + layout.HEADER_BYTES <= image.size:
                word = int(image[start:start + layout.HEADER_BYTES].view("<u4")[0])
                found.add(numerics.WEIGHT_BITS[word >> 20 & 3])
                break
    return found


def _after_body(program: Program, at: int) -> int:
    depth = 1
    while depth:
        i = program.instructions[at]
        depth += isinstance(i, isa.Loop) - isinstance(i, isa.EndLoop)
        at += 1
    return at


@dataclass
class _Sight:
    """A step's rows as attention sees them."""

    chains: NDArray[np.int32]  # (rows, rows): the rows that a row follows, itself last
    lengths: NDArray[np.int64]  # (rows,) of the chains
    bases: NDArray[np.int64]  # (rows,) first positions of the chains
    slots: NDArray[np.int64]  # (rows, pages): cache slots of the positions before

    @classmethod
    def of(cls, machine: CpuMachine) -> _Sight:
        count = len(machine.rows)
        chains = [row_chain(machine.rows, row) for row in range(count)]
        table = np.zeros((count, count), np.int32)
        for row, chain in enumerate(chains):
            table[row, :len(chain)] = chain
        bases = machine.rows["position"][[chain[0] for chain in chains]].astype(np.int64)
        pages = -(-bases // numerics.PAGE_TOKENS)
        slots = np.zeros((count, int(pages.max())), np.int64)
        for row, chain in enumerate(chains):
            for page in range(int(pages[row])):
                slots[row, page] = machine.page_slot(int(machine.rows[chain[0]]["sequence"]), page)
        return cls(table, np.array([len(chain) for chain in chains], np.int64), bases, slots)


@dataclass
class _Places:
    """Where each row's key and value belong, ``(rows,)`` each."""

    slots: NDArray[np.int64]
    offsets: NDArray[np.int64]  # tokens in the page
    classes: NDArray[np.int64]

    @classmethod
    def of(cls, machine: CpuMachine) -> _Places:
        rows = machine.rows
        places, positions = (rows[name].astype(np.int64) for name in ("place", "position"))
        for row in np.flatnonzero(places == layout.PLACE_BY_POSITION):
            page, offset = divmod(int(positions[row]), numerics.PAGE_TOKENS)
            slot = machine.page_slot(int(rows[row]["sequence"]), page)
            places[row] = slot * numerics.PAGE_TOKENS + offset
        return cls(*np.divmod(places, numerics.PAGE_TOKENS),
                   positions // numerics.PAGE_TOKENS % numerics.PAGE_CLASSES)


def fast(insn: type[Instruction]) -> Callable[[_Function], _Function]:
    """Make a function the compiled meaning of an instruction."""
    def register(function: _Function) -> _Function:
        FAST[insn] = function
        return function
    return register


@fast(isa.ReadStep)
def read_step(machine: CpuMachine, i: isa.ReadStep) -> None:
    machine.forget_step()
    golden.read_step(machine, i)


@fast(isa.Advance)
def advance(machine: CpuMachine, i: isa.Advance) -> None:
    machine.forget_step()
    golden.advance(machine, i)


@fast(isa.LoadParams)
def load_params(machine: CpuMachine, i: isa.LoadParams) -> None:
    vector.load_params(_floats(machine.control_bytes(machine.address(i), 4 * i.size)), i.target,
                       machine.params)


def _floats(data: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return numbers of a type that does not depend on whether the bytes are a file's."""
    numbers = np.asarray(data).view(np.float32)
    numbers.flags.writeable = False
    return numbers


@fast(isa.StoreRow)
def store_row(machine: CpuMachine, i: isa.StoreRow) -> None:
    machine.about_to_write(machine.address(i))
    golden.store_row(machine, i)


@fast(isa.StoreTop)
def store_top(machine: CpuMachine, i: isa.StoreTop) -> None:
    machine.about_to_write(machine.address(i))
    golden.store_top(machine, i)


@cache
def kernel(fast: bool, bits: int, rows: int) -> Any:
    """Return the product kernel for so many rows or more."""
    return linear.make(fast, bits, rows)


@fast(isa.Linear)
def multiply(machine: CpuMachine, i: isa.Linear) -> None:
    address = machine.streams.popleft()
    assert isinstance(address, int)
    count = len(machine.rows)
    rows = next((rows for rows in linear.ROWS if rows >= count), max(linear.ROWS))
    product(machine, machine.matrix(address, i), i, rows, count)


def product(machine: CpuMachine, matrix: PackedMatrix, i: isa.Linear, rows: int,
            count: int) -> None:
    """Multiply ``count`` rows of codes by a matrix, ``rows`` at a time."""
    blocks, groups = -(-count // rows), matrix.heads.shape[1]
    width = groups * rows
    kernel(bool(machine.fast), matrix.bits, rows)(
        matrix.heads, matrix.at, matrix.meta, matrix.codes, matrix.exponent, matrix.windows,
        machine.codes, machine.code_words, machine.code_scales, i.source,
        machine.words[:blocks * width * 4 * matrix.windows].reshape(blocks, -1),
        machine.word_scales[:blocks * width].reshape(blocks, width),
        machine.corrections[:blocks * width].reshape(blocks, width),
        machine.vector[:count], i.target)


@fast(isa.RmsNorm)
def rms_norm(machine: CpuMachine, i: isa.RmsNorm) -> None:
    vector.rms_norm(machine.vector, machine.params, len(machine.rows), i.target, i.source, i.gamma,
                    i.size, i.parts, np.float32(i.eps))


@fast(isa.Combine)
def combine(machine: CpuMachine, i: isa.Combine) -> None:
    vector.combine(machine.vector, machine.params, len(machine.rows), i.target, i.source, i.other,
                   i.shared, i.size, int(i.function))


@fast(isa.Activate)
def activate(machine: CpuMachine, i: isa.Activate) -> None:
    vector.activate(machine.vector, len(machine.rows), i.target, i.source, i.other, i.gated, i.size,
                    int(i.function))


@fast(isa.Rotate)
def rotate(machine: CpuMachine, i: isa.Rotate) -> None:
    vector.rotate(machine.vector, len(machine.rows), i.target, i.source, i.cos, i.heads, i.head_dim,
                  i.rotary_dim, i.interleaved)


@fast(isa.Quantize)
def quantize(machine: CpuMachine, i: isa.Quantize) -> None:
    vector.quantize(machine.vector, machine.codes, machine.code_scales, len(machine.rows), i.target,
                    i.source, i.size, i.group, np.float32(i.scale))


@fast(isa.SelectTop)
def select_top(machine: CpuMachine, i: isa.SelectTop) -> None:
    if i.clear:
        machine.top_values[:], machine.top_tokens[:] = -np.inf, layout.NO_TOKEN
    first = machine.registers[i.register] + i.offset
    size = max(0, min(i.size, i.limit - first))
    vector.select_top(machine.vector, len(machine.rows), i.source, size, first,
                      machine.top_values, machine.top_tokens)


@dataclass(frozen=True)
class _Geometry:
    """Where heads' pages are: ``places`` has the lane and the index of a (head, class)."""

    places: NDArray[np.int64]  # (kv_heads, PAGE_CLASSES, 2)
    page_bytes: int
    most: int  # index


@cache
def _geometry(kv_heads: int, head_dim: int, lanes: int) -> _Geometry:
    places = np.zeros((kv_heads, numerics.PAGE_CLASSES, 2), np.int64)
    for unit, place in unit_places(kv_heads, lanes).items():
        places[unit] = place
    return _Geometry(places, layout.page_words(head_dim) * WORD_BYTES, int(places[..., 1].max()))


def _layer(machine: CpuMachine, words: int, slots: NDArray[np.int64], i: Any) -> tuple[Any, ...]:
    """Return a layer's first byte, a slot's bytes and the geometry; all pages are in memory."""
    geometry = _geometry(i.kv_heads, i.head_dim, machine.arch.lanes)
    start = words * WORD_BYTES - machine.program.memory.cache.start
    slot_bytes = int(machine.header["slot_words"]) * WORD_BYTES
    worst = int(slots.max(initial=-1))
    end = start + worst * slot_bytes + (geometry.most + 1) * geometry.page_bytes
    if worst >= 0 and (start < 0 or end > machine.cache_array.shape[1]):
        raise MachineError(f"cache slot must be below {machine.program.memory.slots}, not {worst}")
    return start, slot_bytes, geometry


@fast(isa.StoreKeyValue)
def store_key_value(machine: CpuMachine, i: isa.StoreKeyValue) -> None:
    places = machine.places
    start, slot_bytes, geometry = _layer(machine, machine.address(i) // WORD_BYTES, places.slots, i)
    attention.store_key_value(
        machine.cache_array, start + places.slots * slot_bytes, places.offsets, places.classes,
        geometry.places, geometry.page_bytes, machine.codes, machine.code_scales, i.key, i.value,
        i.head_dim)


@fast(isa.Attend)
def attend(machine: CpuMachine, i: isa.Attend) -> None:
    pages = machine.streams.popleft()
    assert isinstance(pages, Pages)
    sight = machine.sight
    start, slot_bytes, geometry = _layer(machine, pages.start, sight.slots, i)
    attention.attend(
        machine.cache_array, sight.bases, start, slot_bytes, geometry.places, geometry.page_bytes,
        machine.vector, machine.codes, machine.code_scales, len(machine.rows), sight.chains,
        sight.lengths, sight.slots, i.target, i.query, i.key, i.value, i.heads, i.kv_heads,
        i.head_dim, i.window)

