"""The golden machine: the memories and on-chip state of one build, and how it runs a program.

What each instruction means is not here: :data:`EXECUTE` is filled by :mod:`alula.sim.golden` and
:mod:`alula.sim.attention`. Arithmetic is :mod:`alula.hw.numerics` and nothing else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from alula.compiler.program import Program
from alula.hw import isa, layout
from alula.hw.isa import BLOCK, TOP_K, WORD_BYTES, Instruction

F32 = NDArray[np.float32]

# What a test may leave in fp32, to tell where a difference to another implementation comes from.
EXACT_CHOICES = frozenset({"query", "cache", "softmax"})


class MachineError(ValueError):
    """A step cannot run: an address outside memory, or a step table that breaks a rule."""


@dataclass
class Matrix:
    """A weight stream, unpacked and put together from all lanes."""

    codes: F32  # (groups, outputs, group) integers
    scales: F32  # (groups, outputs)
    exponent: int
    present: NDArray[np.bool_] | None  # (groups, outputs); None: all are


@dataclass
class Pages:
    """A page stream: which layer's cache an attention reads."""

    start: int  # words
    instruction: isa.LoadPages


@dataclass
class Machine:
    """One accelerator: memories, buffers and registers, all zero until written.

    Parameters
    ----------
    program
        What is loaded: its images fill the memories.
    exact
        Any of :data:`EXACT_CHOICES`: not the contract, for tests only.
    """

    program: Program
    exact: frozenset[str] = frozenset()
    matrices: dict[int, Matrix] = field(default_factory=dict)

    def __post_init__(self) -> None:
        arch, memory = self.program.arch, self.program.memory
        if self.exact - EXACT_CHOICES:
            raise ValueError(f"exact must be among {sorted(EXACT_CHOICES)}, not "
                             f"{sorted(self.exact)}")
        self.arch = arch
        self.control = self.control_memory()
        self.caches = [np.zeros(memory.cache.size, np.uint8) for _ in range(arch.lanes)]
        self.vector = np.zeros((arch.rows, arch.vector_elements), np.float32)
        self.codes = np.zeros((arch.rows, arch.activation_elements), np.int8)
        self.code_scales = np.zeros((arch.rows, arch.activation_elements // BLOCK), np.float32)
        self.params = np.zeros(arch.param_elements, np.float32)
        self.top_values = np.full((arch.rows, TOP_K), -np.inf, np.float32)
        self.top_tokens = np.full((arch.rows, TOP_K), layout.NO_TOKEN, np.uint32)
        self.registers = [0] * isa.ADDRESS_REGISTERS
        self.header = np.zeros((), layout.STEP_HEADER)
        self.rows = np.zeros(0, layout.STEP_ROW)
        self.streams: deque[int | Pages] = deque()  # a weight stream is its directory address
        self.loops: list[tuple[int, int]] = []  # first instruction of the body, passes left
        self.next = 0  # instruction
        self.part = isa.Rows.ALL  # rows that the instruction is for
        self.running = False
        self.executed = 0  # instructions, since the machine was made
        # Unquantized copies, kept only for `exact`.
        self.code_values = np.zeros_like(self.codes, np.float32) if self.exact else None
        self.cache_values: dict[tuple[int, int, int], NDArray[np.float32]] = {}

    def control_memory(self) -> NDArray[np.uint8]:
        """Return the control memory as it is before the first step."""
        control = np.zeros(self.program.memory.top.stop, np.uint8)
        image = self.program.control
        control[:image.size] = image
        return control

    # Memory ports, as a host sees them.

    def write_control(self, start: int, data: bytes | NDArray[Any]) -> None:
        raw = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data.view(np.uint8)
        self.control_bytes(start, raw.size)[:] = raw

    def control_bytes(self, start: int, size: int) -> NDArray[np.uint8]:
        if not 0 <= start <= start + size <= self.control.size:
            raise MachineError(f"a control address must be below {self.control.size}, not "
                               f"{start + size}")
        return self.control[start:start + size]

    def run(self) -> None:
        """Run the program from its first instruction to its end."""
        self.registers = [0] * isa.ADDRESS_REGISTERS
        self.streams.clear()
        self.loops.clear()
        self.next, self.running = 0, True
        with _blas().limit(limits=1, user_api="blas"):  # products are too small to share out
            while self.running:
                instruction = self.program.instructions[self.next]
                self.next += 1
                self.executed += 1
                self.part = instruction.rows
                self.meaning(instruction)(self, instruction)

    def meaning(self, instruction: Instruction) -> Meaning:
        """Return what an instruction does; a machine may have another way to the same bits."""
        return EXECUTE[type(instruction)]

    # Pieces of meaning that instructions share.

    def address(self, instruction: Any) -> int:
        """Return the byte address of an instruction's memory operand."""
        return (self.registers[instruction.register] + instruction.offset) * WORD_BYTES

    @property
    def halves(self) -> bool:
        """Whether loops of ``HALVES`` run, instead of those of ``WHOLE``."""
        return len(self.rows) > isa.half(self.arch.rows)

    @property
    def span(self) -> range:
        """The rows that the instruction is for."""
        rows, half = len(self.rows), min(len(self.rows), isa.half(self.arch.rows))
        return {isa.Rows.ALL: range(rows), isa.Rows.FIRST: range(half),
                isa.Rows.SECOND: range(half, rows)}[self.part]

    def vectors(self, block: int, size: int) -> F32:
        """Return a view of the instruction's rows in the vector buffer, ``(rows, size)``."""
        return self.vector[self.span.start:self.span.stop, block * BLOCK:block * BLOCK + size]

    def shared(self, block: int, size: int) -> F32:
        return self.params[block * BLOCK:block * BLOCK + size]

    def quantized(self, block: int, parts: int, size: int) -> tuple[NDArray[np.int8], F32]:
        """Return codes ``(rows, parts, size)`` and their scales ``(rows, parts)``."""
        rows, start = len(self.rows), block * BLOCK
        codes = self.codes[:rows, start:start + parts * size].reshape(rows, parts, size)
        scales = self.code_scales[:rows, block:block + parts * size // BLOCK:size // BLOCK]
        return codes, scales

    def values(self, block: int, parts: int, size: int) -> F32:
        """Return what codes were quantized from, ``(rows, parts, size)``."""
        assert self.code_values is not None
        rows, start = len(self.rows), block * BLOCK
        return self.code_values[:rows, start:start + parts * size].reshape(rows, parts, size)

    def page_slot(self, sequence: int, page: int) -> int:
        """Return the cache slot of a sequence's page."""
        memory, stride = self.program.memory, int(self.header["page_stride"]) * WORD_BYTES
        entry = self.control_bytes(memory.pages.start + sequence * stride + 4 * page, 4)
        return int(entry.view("<u4")[0])

    def page(self, layer: int, slot: int, head: int, page_class: int, kv_heads: int,
             head_dim: int) -> NDArray[np.uint8]:
        """Return the bytes of one head's page; ``layer`` is the layer's first word in a slot."""
        lane, index = unit_places(kv_heads, self.arch.lanes)[head, page_class]
        words = layout.page_words(head_dim)
        start = (layer + slot * int(self.header["slot_words"]) + index * words) * WORD_BYTES
        start -= self.program.memory.cache.start
        if not 0 <= start <= start + words * WORD_BYTES <= self.caches[lane].size:
            raise MachineError(f"cache slot must be below {self.program.memory.slots}, not {slot}")
        return self.caches[lane][start:start + words * WORD_BYTES]


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


@cache
def unit_places(kv_heads: int, lanes: int) -> dict[tuple[int, int], tuple[int, int]]:
    """Return ``(head, class) -> (lane, index in the lane)``."""
    return {unit: (lane, index) for lane in range(lanes)
            for index, unit in enumerate(layout.lane_units(lane, lanes, kv_heads))}


Meaning = Callable[[Machine, Any], None]
EXECUTE: dict[type[Instruction], Meaning] = {}
_Function = TypeVar("_Function", bound=Meaning)


def executes(insn: type[Instruction]) -> Callable[[_Function], _Function]:
    """Make a function the meaning of an instruction."""
    def register(function: _Function) -> _Function:
        EXECUTE[insn] = function
        return function
    return register
