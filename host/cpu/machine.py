"""The golden machine with its heavy instructions compiled: the same program, the same bits.

:data:`FAST` maps instructions to compiled meanings; an instruction that is not in it has the golden
model's. Weights are packed, and read from the program file once, when the machine is made.
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
from alula.sim.attention import row_chain
from alula.sim.golden import advance as golden_advance, read_step as golden_read_step
from alula.sim.machine import EXECUTE, Machine, MachineError, Meaning, Pages, unit_places

Progress = Callable[[float], None]  # told of the bytes of weights read since the last call
FAST: dict[type[Instruction], Callable[[CpuMachine, Any], None]] = {}
_Function = TypeVar("_Function", bound=Callable[..., None])


@dataclass
class CpuMachine(Machine):
    """A machine whose weights stay packed.

    Parameters
    ----------
    fast
        Use AVX-512's instructions; by default if this processor has them.
    progress
        Is told of the weights read, in bytes of their streams.
    """

    fast: bool | None = None
    progress: Progress | None = None
    packed: dict[int, PackedMatrix] = field(default_factory=dict)

    def __post_init__(self) -> None:
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
        self._step: _Step | None = None
        self._meanings = [_meaning(type(insn)) for insn in self.program.instructions]
        for address, i in streams(self.program):
            self.matrix(address, i)

    def meaning(self, instruction: Instruction) -> Meaning:
        return self._meanings[self.next - 1]

    def matrix(self, address: int, i: isa.Linear) -> PackedMatrix:
        """Return a stream's matrix, packed once."""
        found = self.packed.get(address)
        if found is None:
            found = self.packed[address] = pack(self.program, address, i, sparse=self.fast)
            if self.progress:
                self.progress(found.size)
        return found

    @property
    def step(self) -> _Step:
        """What attention needs to know of the step's rows."""
        if self._step is None:
            self._step = _Step.of(self)
        return self._step

    def forget_step(self) -> None:
        self._step = None


@cache
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
                count = i.count if i.source is isa.Count.IMMEDIATE else 1
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


def _after_body(program: Program, at: int) -> int:
    depth = 1
    while depth:
        i = program.instructions[at]
        depth += isinstance(i, isa.Loop) - isinstance(i, isa.EndLoop)
        at += 1
    return at


@dataclass
class _Step:
    """A step's rows as attention sees them."""

    chains: NDArray[np.int32]  # (rows, rows): the rows that a row follows, itself last
    lengths: NDArray[np.int64]  # (rows,) of the chains
    bases: NDArray[np.int64]  # (rows,) first positions of the chains
    slots: NDArray[np.int64]  # (rows, pages): cache slots of the positions before

    @classmethod
    def of(cls, machine: CpuMachine) -> _Step:
        count = len(machine.rows)
        chains = [row_chain(machine, row) for row in range(count)]
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


def fast(insn: type[Instruction]) -> Callable[[_Function], _Function]:
    """Make a function the compiled meaning of an instruction."""
    def register(function: _Function) -> _Function:
        FAST[insn] = function
        return function
    return register


@fast(isa.ReadStep)
def read_step(machine: CpuMachine, i: isa.ReadStep) -> None:
    machine.forget_step()
    golden_read_step(machine, i)


@fast(isa.Advance)
def advance(machine: CpuMachine, i: isa.Advance) -> None:
    machine.forget_step()
    golden_advance(machine, i)


@fast(isa.LoadParams)
def load_params(machine: CpuMachine, i: isa.LoadParams) -> None:
    data = machine.control_bytes(machine.address(i), 4 * i.size)
    vector.load_params(data.view(np.float32), i.target, machine.params)


@cache
def kernel(fast: bool, bits: int, rows: int) -> Any:
    """Return the product kernel for so many rows or more."""
    return linear.make(fast, bits, rows)


@fast(isa.Linear)
def multiply(machine: CpuMachine, i: isa.Linear) -> None:
    address = machine.streams.popleft()
    assert isinstance(address, int)
    matrix = machine.matrix(address, i)
    count = len(machine.rows)
    rows = next((rows for rows in linear.ROWS if rows >= count), max(linear.ROWS))
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
    rows = machine.rows
    places = rows["place"].astype(np.int64)
    for row in np.flatnonzero(places == layout.PLACE_BY_POSITION):
        page, offset = divmod(int(rows[row]["position"]), numerics.PAGE_TOKENS)
        slot = machine.page_slot(int(rows[row]["sequence"]), page)
        places[row] = slot * numerics.PAGE_TOKENS + offset
    slots, offsets = np.divmod(places, numerics.PAGE_TOKENS)
    start, slot_bytes, geometry = _layer(machine, machine.address(i) // WORD_BYTES, slots, i)
    classes = rows["position"].astype(np.int64) // numerics.PAGE_TOKENS % numerics.PAGE_CLASSES
    attention.store_key_value(
        machine.cache_array, start + slots * slot_bytes, offsets, classes, geometry.places,
        geometry.page_bytes, machine.codes, machine.code_scales, i.key, i.value, i.head_dim)


@fast(isa.Attend)
def attend(machine: CpuMachine, i: isa.Attend) -> None:
    pages = machine.streams.popleft()
    assert isinstance(pages, Pages)
    step = machine.step
    start, slot_bytes, geometry = _layer(machine, pages.start, step.slots, i)
    attention.attend(
        machine.cache_array, step.bases, start, slot_bytes, geometry.places, geometry.page_bytes,
        machine.vector, machine.codes, machine.code_scales, len(machine.rows), step.chains,
        step.lengths, step.slots, i.target, i.query, i.key, i.value, i.heads, i.kv_heads,
        i.head_dim, i.window)

