"""The golden model: what every instruction means, in numpy.

A :class:`Machine` has the memories and the on-chip state of one build. :data:`EXECUTE` maps each
instruction class to the function that is its meaning; the machine runs a program's instructions in
program order, which the tokens of a verified program make indistinguishable from the hardware's
order. Arithmetic is :mod:`alula.hw.numerics` and nothing else.
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
from alula.hw import isa, layout, numerics
from alula.hw.isa import BLOCK, TOP_K, WORD_BYTES, Instruction
from alula.sim.unpack import unpack_stream

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
        self.control = np.zeros(memory.top.stop, np.uint8)
        image = self.program.control
        self.control[:image.size] = image
        self.caches = [np.zeros(memory.cache.size, np.uint8) for _ in range(arch.lanes)]
        self.vector = np.zeros((arch.rows, arch.vector_elements), np.float32)
        self.codes = np.zeros((arch.rows, arch.activation_elements), np.int8)
        self.code_scales = np.zeros((arch.rows, arch.activation_elements // BLOCK), np.float32)
        self.params = np.zeros(arch.param_elements, np.float32)
        self.top_values = np.full((arch.rows, TOP_K), -np.inf, np.float32)
        self.top_tokens = np.zeros((arch.rows, TOP_K), np.uint32)
        self.registers = [0] * isa.ADDRESS_REGISTERS
        self.header = np.zeros((), layout.STEP_HEADER)
        self.rows = np.zeros(0, layout.STEP_ROW)
        self.streams: deque[int | Pages] = deque()  # a weight stream is its directory address
        self.loops: list[tuple[int, int]] = []  # first instruction of the body, passes left
        self.next = 0  # instruction
        self.running = False
        self.executed = 0  # instructions, since the machine was made
        # Unquantized copies, kept only for `exact`.
        self.code_values = np.zeros_like(self.codes, np.float32) if self.exact else None
        self.cache_values: dict[tuple[int, int, int], NDArray[np.float32]] = {}

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
                EXECUTE[type(instruction)](self, instruction)

    # Pieces of meaning that instructions share.

    def address(self, instruction: Any) -> int:
        """Return the byte address of an instruction's memory operand."""
        return (self.registers[instruction.register] + instruction.offset) * WORD_BYTES

    def vectors(self, block: int, size: int) -> F32:
        """Return a view of the step's rows in the vector buffer, ``(rows, size)``."""
        return self.vector[:len(self.rows), block * BLOCK:block * BLOCK + size]

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
        lane, index = _unit_places(kv_heads, self.arch.lanes)[head, page_class]
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
def _unit_places(kv_heads: int, lanes: int) -> dict[tuple[int, int], tuple[int, int]]:
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


# LD --------------------------------------------------------------------------------------------

@executes(isa.LoadStream)
def load_stream(machine: Machine, i: isa.LoadStream) -> None:
    machine.streams.append(machine.address(i))


@executes(isa.LoadPages)
def load_pages(machine: Machine, i: isa.LoadPages) -> None:
    machine.streams.append(Pages(machine.address(i) // WORD_BYTES, i))


@executes(isa.LoadParams)
def load_params(machine: Machine, i: isa.LoadParams) -> None:
    data = machine.control_bytes(machine.address(i), 4 * i.size)
    machine.shared(i.target, i.size)[:] = data.view("<f4")


@executes(isa.LoadRow)
def load_row(machine: Machine, i: isa.LoadRow) -> None:
    out = machine.vectors(i.target, i.size)
    for row, entry in enumerate(machine.rows):
        index = int(entry["token"] if i.index is isa.Index.TOKEN else entry["position"])
        start = machine.address(i) + index * i.stride * WORD_BYTES
        out[row] = _decode_row(machine.control_bytes(start, i.stride * WORD_BYTES), i)


def _decode_row(data: NDArray[np.uint8], i: isa.LoadRow) -> F32:
    if i.format is isa.Format.F32:
        return data[:4 * i.size].view("<f4")
    if i.format is isa.Format.F16:
        return numerics.canonical(data[:2 * i.size].view("<f2").astype(np.float32))
    group = 1 << i.group_log2
    groups = -(-i.size // group)
    scales = data[:4 * groups].view("<f4")
    codes = data[-(-4 * groups // WORD_BYTES) * WORD_BYTES:]
    if i.format is isa.Format.Q8:
        signed = codes[:i.size].astype(np.int16) - 128
    else:
        pairs = codes[:-(-i.size // 2)]
        signed = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(-1)[:i.size].astype(
            np.int16) - 8
    return numerics.mul(numerics.from_int(signed), np.repeat(scales, group)[:i.size])


# ST --------------------------------------------------------------------------------------------

@executes(isa.StoreKeyValue)
def store_key_value(machine: Machine, i: isa.StoreKeyValue) -> None:
    layer = machine.address(i) // WORD_BYTES
    keys, key_scales = machine.quantized(i.key, i.kv_heads, i.head_dim)
    values, value_scales = machine.quantized(i.value, i.kv_heads, i.head_dim)
    for row, entry in enumerate(machine.rows):
        slot, offset = _place(machine, entry)
        page_class = int(entry["position"]) // numerics.PAGE_TOKENS % numerics.PAGE_CLASSES
        for head in range(i.kv_heads):
            page = _PageView(machine.page(layer, slot, head, page_class, i.kv_heads, i.head_dim),
                             i.head_dim)
            page.keys[offset], page.key_scales[offset] = keys[row, head], key_scales[row, head]
            page.values[offset] = values[row, head]
            page.value_scales[offset] = value_scales[row, head]
        if machine.exact:
            _store_exact(machine, i, row, layer, slot, page_class, offset)


def _place(machine: Machine, entry: Any) -> tuple[int, int]:
    """Return the cache slot and the token in its page where a row's key and value belong."""
    if entry["place"] != layout.PLACE_BY_POSITION:
        slot, offset = divmod(int(entry["place"]), numerics.PAGE_TOKENS)
        return slot, offset
    page, offset = divmod(int(entry["position"]), numerics.PAGE_TOKENS)
    return machine.page_slot(int(entry["sequence"]), page), offset


class _PageView:
    """A page's parts, as views of its bytes."""

    def __init__(self, data: NDArray[np.uint8], head_dim: int) -> None:
        tokens = numerics.PAGE_TOKENS
        scales, codes = 4 * tokens, head_dim * tokens
        self.key_scales = data[:scales].view("<f4")
        self.keys = data[scales:scales + codes].view(np.int8).reshape(tokens, head_dim)
        rest = data[scales + codes:]
        self.value_scales = rest[:scales].view("<f4")
        self.values = rest[scales:scales + codes].view(np.int8).reshape(tokens, head_dim)


@executes(isa.StoreRow)
def store_row(machine: Machine, i: isa.StoreRow) -> None:
    for row, entry in enumerate(machine.rows):
        if entry["flags"] & layout.WANTS_LOGITS:
            start = machine.address(i) + row * i.stride * WORD_BYTES
            machine.control_bytes(start, 4 * i.size).view("<f4")[:] = machine.vectors(
                i.source, i.size)[row]


@executes(isa.StoreTop)
def store_top(machine: Machine, i: isa.StoreTop) -> None:
    size = layout.TOP_ROW.itemsize
    for row in range(len(machine.rows)):
        data = machine.control_bytes(machine.address(i) + row * size, size)
        out = data.view(layout.TOP_ROW)
        out["values"], out["tokens"] = machine.top_values[row], machine.top_tokens[row]


# MM, MV ----------------------------------------------------------------------------------------

@executes(isa.Linear)
def linear(machine: Machine, i: isa.Linear) -> None:
    stream = machine.streams.popleft()
    assert isinstance(stream, int)
    if stream not in machine.matrices:
        machine.matrices[stream] = _read_matrix(machine, stream, i)
    matrix = machine.matrices[stream]
    group = 1 << i.group_log2
    codes, scales = machine.quantized(i.source, -(-i.inputs // group), group)
    result = numerics.linear(matrix.codes, matrix.scales, codes, scales, matrix.exponent)
    out = machine.vectors(i.target, i.outputs)
    count = min(result.shape[1], i.outputs)
    out[:, :count], out[:, count:] = result[:, :count], 0


def _read_matrix(machine: Machine, address: int, i: isa.Linear) -> Matrix:
    """Unpack every lane's share of a stream and put the strips back in order."""
    group = 1 << i.group_log2
    groups = -(-i.inputs // group)
    entries = [image[address:address + WORD_BYTES].view(layout.DIRECTORY_ENTRY)[0]
               for image in machine.program.lanes]
    total = sum(int(entry["strips"]) for entry in entries)
    codes = np.zeros((total, isa.TILE_ROWS, groups * group), np.float32)
    scales = np.zeros((total, isa.TILE_ROWS, groups), np.float32)
    for lane, (image, entry) in enumerate(zip(machine.program.lanes, entries, strict=True)):
        start = int(entry["start"]) * WORD_BYTES
        share = unpack_stream(image[start:start + int(entry["beats"]) * machine.arch.beat_bytes],
                              int(entry["strips"]), groups, group, machine.arch.beat_bytes)
        codes[lane::len(entries)] = share.codes.reshape(-1, *codes.shape[1:])
        scales[lane::len(entries)] = share.scales.reshape(-1, *scales.shape[1:])
    return Matrix(np.ascontiguousarray(codes.reshape(-1, groups, group).transpose(1, 0, 2)),
                  np.ascontiguousarray(scales.reshape(-1, groups).T), int(entries[0]["exponent"]))


@executes(isa.Attend)
def attend(machine: Machine, i: isa.Attend) -> None:
    pages = machine.streams.popleft()
    assert isinstance(pages, Pages)
    query, query_scales = machine.quantized(i.query, i.heads, i.head_dim)
    out = machine.vectors(i.target, i.heads * i.head_dim)
    for chain, members in _chains(machine):
        history = _read_history(machine, pages, chain, i)
        kept = np.stack([_visible(int(machine.rows[row]["position"]), i.window,
                                  history.keys.shape[1]) for row in members])
        if machine.exact:
            for row, sees in zip(members, kept, strict=True):
                out[row] = _attend_exact(machine, pages, i, row, history, sees)
        else:
            out[members] = _attend_rows(query[members], query_scales[members], history, kept)


def _chains(machine: Machine) -> list[tuple[list[int], list[int]]]:
    """Return ``(chain, members)``: rows whose ancestors are all in one chain attend together."""
    found: list[tuple[list[int], list[int]]] = []
    for row in reversed(range(len(machine.rows))):
        chain = _ancestors(machine, row)
        for longer, members in found:
            if longer[:len(chain)] == chain:
                members.append(row)
                break
        else:
            found.append((chain, [row]))
    return found


def _ancestors(machine: Machine, row: int) -> list[int]:
    """Return the rows that a row follows in this step, the first first, itself last."""
    chain = [row]
    while (parent := int(machine.rows[chain[-1]]["parent"])) >= 0:
        if parent >= chain[-1]:
            raise MachineError(f"row {chain[-1]}'s parent must be an earlier row, not {parent}")
        chain.append(parent)
    chain.reverse()
    positions = machine.rows["position"][chain].astype(np.int64)
    if (np.diff(positions) != 1).any():
        raise MachineError(f"row {row}'s ancestors must have consecutive positions, not "
                           f"{positions.tolist()}")
    return chain


def _visible(position: int, window: int, count: int) -> NDArray[np.bool_]:
    """Return which of ``count`` positions a row attends to, ``(pages, PAGE_TOKENS)``."""
    at = np.arange(count)
    kept = at <= position
    if window:
        kept &= at > position - window
    return kept.reshape(-1, numerics.PAGE_TOKENS)


@dataclass
class _History:
    """Keys and values of a sequence's positions, up to a whole page."""

    keys: NDArray[np.int8]  # (kv_heads, positions, head_dim)
    values: NDArray[np.int8]
    key_scales: F32  # (kv_heads, positions)
    value_scales: F32


def _read_history(machine: Machine, pages: Pages, chain: list[int],
                  i: isa.Attend) -> _History:
    """Read what a chain of rows sees: its sequence's cached tokens, then the chain's own."""
    tokens, first = numerics.PAGE_TOKENS, machine.rows[chain[0]]
    base = int(first["position"])
    shape = (i.kv_heads, -(-(base + len(chain)) // tokens) * tokens)
    history = _History(np.zeros((*shape, i.head_dim), np.int8),
                       np.zeros((*shape, i.head_dim), np.int8), np.zeros(shape, np.float32),
                       np.zeros(shape, np.float32))
    for number in range(-(-base // tokens)):
        slot = machine.page_slot(int(first["sequence"]), number)
        span = slice(number * tokens, min((number + 1) * tokens, base))
        count = span.stop - span.start
        for head in range(i.kv_heads):
            page = _PageView(machine.page(pages.start, slot, head, number % numerics.PAGE_CLASSES,
                                          i.kv_heads, i.head_dim), i.head_dim)
            history.keys[head, span] = page.keys[:count]
            history.values[head, span] = page.values[:count]
            history.key_scales[head, span] = page.key_scales[:count]
            history.value_scales[head, span] = page.value_scales[:count]
    own = slice(base, base + len(chain))
    keys, key_scales = machine.quantized(i.key, i.kv_heads, i.head_dim)
    values, value_scales = machine.quantized(i.value, i.kv_heads, i.head_dim)
    history.keys[:, own] = keys[chain].swapaxes(0, 1)
    history.values[:, own] = values[chain].swapaxes(0, 1)
    history.key_scales[:, own] = key_scales[chain].T
    history.value_scales[:, own] = value_scales[chain].T
    return history


def _store_exact(machine: Machine, i: isa.StoreKeyValue, row: int, layer: int, slot: int,
                 page_class: int, offset: int) -> None:
    shape = (2, i.kv_heads, numerics.PAGE_TOKENS, i.head_dim)
    page = machine.cache_values.setdefault((layer, slot, page_class), np.zeros(shape, np.float32))
    page[0, :, offset] = machine.values(i.key, i.kv_heads, i.head_dim)[row]
    page[1, :, offset] = machine.values(i.value, i.kv_heads, i.head_dim)[row]


def _attend_exact(machine: Machine, pages: Pages, i: isa.Attend, row: int, history: _History,
                  kept: NDArray[np.bool_]) -> F32:
    """Attend with some of query, cache and softmax weights in fp32, for tests."""
    exact, ratio = machine.exact, i.heads // i.kv_heads
    codes, scales = machine.quantized(i.query, i.heads, i.head_dim)
    query = codes[row] * scales[row][:, None]
    if "query" in exact:
        query = machine.values(i.query, i.heads, i.head_dim)[row]
    keys = history.keys * history.key_scales[..., None]
    values = history.values * history.value_scales[..., None]
    if "cache" in exact:
        keys, values = _exact_history(machine, pages, row, keys.shape)
    flat = kept.reshape(-1)
    scores = np.matmul(query.reshape(i.kv_heads, ratio, i.head_dim), keys.transpose(0, 2, 1))
    if "softmax" not in exact:
        scores = scores.reshape(i.kv_heads, ratio, *kept.shape)
        codes_of, value_scales = numerics.quantize(values)
        paged = (i.kv_heads, *kept.shape)
        return numerics.attend_pages(scores[None], codes_of.reshape(*paged, i.head_dim),
                                     value_scales.reshape(paged), kept[None])[0]
    weights = np.where(flat, np.exp2(scores - scores[..., flat].max(axis=-1, keepdims=True)), 0)
    result = np.matmul(weights / weights.sum(axis=-1, keepdims=True), values)
    return result.astype(np.float32).reshape(-1)


def _exact_history(machine: Machine, pages: Pages, row: int,
                   shape: tuple[int, ...]) -> tuple[F32, F32]:
    """Return a row's keys and values as they were before quantization."""
    both = np.zeros((2, *shape), np.float32)
    entry, tokens = machine.rows[row], numerics.PAGE_TOKENS
    for number in range(shape[1] // tokens):
        slot = machine.page_slot(int(entry["sequence"]), number)
        page = machine.cache_values.get((pages.start, slot, number % numerics.PAGE_CLASSES))
        if page is not None:
            both[:, :, number * tokens:(number + 1) * tokens] = page
    return both[0], both[1]


def _attend_rows(query: NDArray[np.int8], query_scales: F32, history: _History,
                 kept: NDArray[np.bool_]) -> F32:
    """Attend with rows of one history.

    ``query`` is ``(rows, heads, head_dim)``, ``kept`` ``(rows, pages, PAGE_TOKENS)``; the result
    ``(rows, heads * head_dim)``.
    """
    rows, _, head_dim = query.shape
    kv_heads = history.keys.shape[0]
    query = query.reshape(rows, kv_heads, -1, head_dim)  # heads that share a key
    dots = np.matmul(query.astype(np.float32),
                     history.keys.astype(np.float32).transpose(0, 2, 1))  # exact: below 2**24
    scores = numerics.mul(numerics.mul(dots, query_scales.reshape(rows, kv_heads, -1, 1)),
                          history.key_scales[:, None, :])
    pages = kept.shape[1:]
    return numerics.attend_pages(
        scores.reshape(*scores.shape[:3], *pages),
        history.values.reshape(kv_heads, *pages, head_dim),
        history.value_scales.reshape(kv_heads, *pages), kept)


# MISC ------------------------------------------------------------------------------------------

@executes(isa.RmsNorm)
def rms_norm(machine: Machine, i: isa.RmsNorm) -> None:
    source = machine.vectors(i.source, i.size * i.parts).reshape(-1, i.parts, i.size)
    result = numerics.rms_norm(source, machine.shared(i.gamma, i.size), np.float32(i.eps))
    machine.vectors(i.target, i.size * i.parts)[:] = result.reshape(len(machine.rows), -1)


@executes(isa.Combine)
def combine(machine: Machine, i: isa.Combine) -> None:
    a = machine.vectors(i.source, i.size)
    b = machine.shared(i.other, i.size) if i.shared else machine.vectors(i.other, i.size)
    result = {isa.Elementwise.ADD: numerics.add, isa.Elementwise.MUL: numerics.mul,
              isa.Elementwise.COPY: lambda a, b: a}[i.function](a, b)
    machine.vectors(i.target, i.size)[:] = result


_FUNCTIONS = {isa.Function.SILU: numerics.silu, isa.Function.GELU: numerics.gelu,
              isa.Function.GELU_TANH: numerics.gelu_tanh, isa.Function.RELU: numerics.relu}


@executes(isa.Activate)
def activate(machine: Machine, i: isa.Activate) -> None:
    result = _FUNCTIONS[i.function](machine.vectors(i.source, i.size))
    if i.gated:
        result = numerics.mul(result, machine.vectors(i.other, i.size))
    machine.vectors(i.target, i.size)[:] = result


@executes(isa.Rotate)
def rotate(machine: Machine, i: isa.Rotate) -> None:
    half = i.rotary_dim // 2
    cos = machine.vectors(i.cos, half)[:, None]
    sin = machine.vectors(i.cos + -(-half // BLOCK), half)[:, None]
    source = machine.vectors(i.source, i.heads * i.head_dim).reshape(-1, i.heads, i.head_dim)
    result = numerics.rotate(source, cos, sin, bool(i.interleaved))
    machine.vectors(i.target, i.heads * i.head_dim)[:] = result.reshape(len(machine.rows), -1)


@executes(isa.Quantize)
def quantize(machine: Machine, i: isa.Quantize) -> None:
    rows, groups = len(machine.rows), -(-i.size // i.group)
    source = np.zeros((rows, groups * i.group), np.float32)
    source[:, :i.size] = machine.vectors(i.source, i.size)
    codes, scales = numerics.quantize(source.reshape(rows, groups, i.group), np.float32(i.scale))
    start, stop = i.target * BLOCK, i.target * BLOCK + groups * i.group
    machine.codes[:rows, start:stop] = codes.reshape(rows, -1)
    step = i.group // BLOCK
    machine.code_scales[:rows, i.target:i.target + groups * step:step] = scales
    if machine.code_values is not None:
        machine.code_values[:rows, start:stop] = source * np.float32(i.scale)


@executes(isa.SelectTop)
def select_top(machine: Machine, i: isa.SelectTop) -> None:
    if i.clear:
        machine.top_values[:], machine.top_tokens[:] = -np.inf, layout.NO_TOKEN
    first = machine.registers[i.register] + i.offset
    count = max(0, min(i.size, i.limit - first))
    for row, values in enumerate(machine.vectors(i.source, count)):
        machine.top_values[row], machine.top_tokens[row] = numerics.merge_top(
            machine.top_values[row], machine.top_tokens[row], values, first, TOP_K)


# SYS -------------------------------------------------------------------------------------------

@executes(isa.ReadStep)
def read_step(machine: Machine, i: isa.ReadStep) -> None:
    start = machine.address(i)
    machine.header = machine.control_bytes(start, layout.STEP_HEADER.itemsize).view(
        layout.STEP_HEADER)[0].copy()
    count = int(machine.header["rows"])
    if not 1 <= count <= machine.arch.rows:
        raise MachineError(f"a step must have from 1 to {machine.arch.rows} rows, not {count}")
    if not 1 <= machine.header["repeats"] <= machine.program.memory.repeats:
        raise MachineError(f"a run must have from 1 to {machine.program.memory.repeats} repeats, "
                           f"not {machine.header['repeats']}")
    start += layout.STEP_HEADER.itemsize
    machine.rows = machine.control_bytes(start, count * layout.STEP_ROW.itemsize).view(
        layout.STEP_ROW).copy()


@executes(isa.Advance)
def advance(machine: Machine, i: isa.Advance) -> None:
    best = machine.top_tokens[:len(machine.rows), 0]
    machine.rows["token"] = np.where(best == layout.NO_TOKEN, 0, best)
    machine.rows["position"] += 1
    machine.rows["place"] = layout.PLACE_BY_POSITION


@executes(isa.SetAddress)
def set_address(machine: Machine, i: isa.SetAddress) -> None:
    machine.registers[i.register] = i.value


@executes(isa.AddAddress)
def add_address(machine: Machine, i: isa.AddAddress) -> None:
    machine.registers[i.register] = (machine.registers[i.register] + i.value) & 0xFFFF_FFFF


@executes(isa.Sync)
def sync(machine: Machine, i: isa.Sync) -> None:
    """Order is program order here."""


@executes(isa.Loop)
def loop(machine: Machine, i: isa.Loop) -> None:
    count = {isa.Count.IMMEDIATE: i.count, isa.Count.REPEATS: int(machine.header["repeats"]),
             isa.Count.HEAD: int(machine.header["head"])}[i.source]
    machine.loops.append((machine.next, count))
    if not count:
        _skip_body(machine)


def _skip_body(machine: Machine) -> None:
    depth = 1
    while depth:
        instruction = machine.program.instructions[machine.next]
        depth += isinstance(instruction, isa.Loop) - isinstance(instruction, isa.EndLoop)
        machine.next += 1
    machine.loops.pop()


@executes(isa.EndLoop)
def end_loop(machine: Machine, i: isa.EndLoop) -> None:
    start, left = machine.loops.pop()
    if left > 1:
        machine.loops.append((start, left - 1))
        machine.next = start


@executes(isa.End)
def end(machine: Machine, i: isa.End) -> None:
    machine.running = False
