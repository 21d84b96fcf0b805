"""The instruction set: every opcode and field, written once.

An instruction is a frozen dataclass whose fields carry their widths. Encoder, decoder, disassembly,
``docs/isa.md`` and the RTL's layouts derive from these classes; what an instruction *means* is its
function in :mod:`alula.sim.golden`.

An instruction is 128 bits: opcode, ``wait``, ``release``, ``rows``, then its own fields, low bits
first. Each unit has one in-order queue. ``wait`` has a bit for each other queue: the instruction
starts after taking one token from each queue named. ``release`` likewise: when it ends it gives one
token to each queue named. The sequencer executes SYS instructions itself, in program order, and
sends nothing on until they end; it adds the address register to an instruction's ``offset`` as it
sends the instruction to its queue. Address registers are 0 when a program starts.

Units of fields: memory addresses are in words of 16 bytes, on-chip addresses in blocks of 16
elements, counts in elements, unless a field says otherwise. Elements are written as others are
read: the target of an instruction is in an operand's place or apart from it. What a program may
rely on is what :mod:`alula.compiler.verify` accepts.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from enum import IntEnum
from typing import Any, ClassVar, TypeVar, dataclass_transform

INSTRUCTION_BYTES = 16
WORD_BYTES = 16  # unit of memory addresses
BLOCK = 16  # elements; unit of on-chip addresses
TILE_ROWS = 16  # output rows of a weight tile
SEGMENT_TILES = 16  # tiles that share one run of headers and scales
TOP_K = 16  # best logits kept for each row
LOOP_DEPTH = 8
ADDRESS_REGISTERS = 16
TOKEN_LIMIT = 63  # most tokens from one queue to another that hardware counts


class Queue(IntEnum):
    """Instruction classes, each with its own queue (FlightLLM's names)."""

    LD = 0  # memory to on-chip buffers and the lanes' prefetch streams
    ST = 1  # on-chip buffers to memory
    MM = 2  # a weight matrix by every row's activations
    MV = 3  # each row by its own cached keys and values
    MISC = 4  # the vector unit
    SYS = 5  # the sequencer


class Count(IntEnum):
    """Loop counts that the step's header supplies at run time."""

    IMMEDIATE = 0
    REPEATS = 1  # greedy steps to run without the host, at least 1
    HEAD = 2  # 1 if any row wants logits, else 0
    WHOLE = 3  # 1 if HALVES is 0, else 0
    HALVES = 4  # 1 if the step has rows of the second half, else 0; a device may always count 0


class Rows(IntEnum):
    """Which of the step's rows an instruction is for; other than ALL in a loop of HALVES only."""

    ALL = 0
    FIRST = 1  # as many as half of the most rows of a step, rounded up
    SECOND = 2  # the others


class Index(IntEnum):
    """What a row-gathering load indexes its table with."""

    TOKEN = 0
    POSITION = 1


class Format(IntEnum):
    """How a gathered table row is stored."""

    F32 = 0
    F16 = 1
    Q4 = 2  # fp32 scales for each group, then codes minus 8, low nibble first
    Q8 = 3  # fp32 scales for each group, then codes minus 128


class Elementwise(IntEnum):
    ADD = 0
    MUL = 1
    COPY = 2


class Function(IntEnum):
    """Functions of one variable that the vector unit computes."""

    SILU = 0
    GELU = 1
    GELU_TANH = 2
    RELU = 3


class EncodingError(ValueError):
    """A field's value does not fit, or a word is no instruction."""


def bits(width: int, doc: str, *, kind: type = int, default: int | float | None = None) -> Any:
    """Declare a field of ``width`` bits. ``kind``: int (unsigned), float (fp32) or an IntEnum."""
    metadata = {"width": width, "doc": doc, "kind": kind}
    if default is None:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


def _address(doc: str) -> Any:
    return bits(32, doc)


def _register() -> Any:
    return bits(4, "address register added to `offset`")


def _vector(doc: str) -> Any:
    return bits(16, doc + ": block in each row's vector buffer")


def _codes(doc: str) -> Any:
    return bits(14, doc + ": block in each row's activation buffer")


HEADER_BITS = {"opcode": 8, "wait": 6, "release": 6, "rows": 2}


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """What all instructions share; ``wait`` and ``release`` are masks of :class:`Queue` bits."""

    queue: ClassVar[Queue]
    opcode: ClassVar[int]

    wait: int = 0
    release: int = 0
    rows: Rows = Rows.ALL

    def __post_init__(self) -> None:
        for name, spec in self.operands().items():
            if spec["kind"] is float:  # what a field can hold, so that decoding gives it back
                value = struct.unpack("<f", struct.pack("<f", getattr(self, name)))[0]
                object.__setattr__(self, name, value)

    @classmethod
    def operands(cls) -> dict[str, dict[str, Any]]:
        """Return the own fields in order: name to ``width``, ``doc``, ``kind``."""
        return {f.name: dict(f.metadata) for f in fields(cls) if "width" in f.metadata}


INSTRUCTIONS: dict[int, type[Instruction]] = {}
_Class = TypeVar("_Class", bound=type[Instruction])


@dataclass_transform(kw_only_default=True, frozen_default=True,
                     field_specifiers=(bits, _address, _register, _vector, _codes))
def _opcode(queue: Queue, number: int) -> Callable[[_Class], _Class]:
    """Give a class its queue and opcode (queue in the high nibble) and enter it in the set."""
    def register(cls: _Class) -> _Class:
        cls = dataclass(frozen=True, kw_only=True)(cls)  # type: ignore[assignment]
        cls.queue, cls.opcode = queue, queue << 4 | number
        used = sum(HEADER_BITS.values()) + sum(f["width"] for f in cls.operands().values())
        assert used <= 8 * INSTRUCTION_BYTES, f"{cls.__name__} takes {used} bits"
        assert cls.opcode not in INSTRUCTIONS
        INSTRUCTIONS[cls.opcode] = cls
        return cls
    return register


@_opcode(Queue.LD, 0)
class LoadStream(Instruction):
    """Start prefetching a weight stream in every lane.

    Each lane reads its own directory entry at the address, then the stream it names, and appends
    the stream to its prefetch buffer. Streams are consumed in the order they were loaded.
    """

    register: int = _register()
    offset: int = _address("directory entry, in each lane's memory")


@_opcode(Queue.LD, 1)
class LoadPages(Instruction):
    """Start prefetching the cached keys and values that one attention needs.

    Each lane reads, for each of its (head, class) units and each row's sequence, the committed
    tokens of the pages of that class: keys with their scales, then values with theirs.
    """

    register: int = _register()
    offset: int = _address("the layer's cache, in each lane's memory")
    kv_heads: int = bits(8, "heads of keys and values")
    head_dim: int = bits(9, "elements of a head, a multiple of 16")
    window: int = bits(20, "latest positions seen; 0 for all")


@_opcode(Queue.LD, 2)
class LoadParams(Instruction):
    """Copy fp32 values from the control memory to the parameter buffer."""

    register: int = _register()
    offset: int = _address("source")
    target: int = bits(16, "block in the parameter buffer")
    size: int = bits(20, "elements")


@_opcode(Queue.LD, 3)
class LoadRow(Instruction):
    """For each row, copy a table's row to the vector buffer, converted to fp32.

    The table's row is chosen by the row's token or position. Quantized rows hold one fp32 scale
    for each group of ``2**group_log2`` elements, then the codes.
    """

    register: int = _register()
    offset: int = _address("the table, in the control memory")
    target: int = _vector("destination")
    size: int = bits(16, "elements")
    stride: int = bits(20, "words from one table row to the next")
    index: Index = bits(1, "what chooses the table row", kind=Index)
    format: Format = bits(2, "how a table row is stored", kind=Format)
    group_log2: int = bits(4, "log2 of the elements that share a scale")


@_opcode(Queue.ST, 0)
class StoreKeyValue(Instruction):
    """Write each row's quantized key and value to the row's place in the cache."""

    register: int = _register()
    offset: int = _address("the layer's cache, in each lane's memory")
    key: int = _codes("quantized key")
    value: int = _codes("quantized value")
    kv_heads: int = bits(8, "heads of keys and values")
    head_dim: int = bits(9, "elements of a head")


@_opcode(Queue.ST, 1)
class StoreRow(Instruction):
    """Write a vector of each row that wants its logits to the control memory."""

    register: int = _register()
    offset: int = _address("destination of row 0, in the control memory")
    source: int = _vector("source")
    size: int = bits(20, "elements, a multiple of 16")
    stride: int = bits(24, "words from one row's destination to the next row's")


@_opcode(Queue.ST, 2)
class StoreTop(Instruction):
    """Write each row's best logits to the control memory: values, then tokens, best first."""

    register: int = _register()
    offset: int = _address("destination of row 0, in the control memory")


@_opcode(Queue.MM, 0)
class Linear(Instruction):
    """Multiply each row's quantized activations by the next weight stream.

    Group dot products are exact integers; fp32 sums run over ascending groups. Whole strips are
    written: values past ``outputs``, up to a multiple of 16, are 0. The codes of the second half's
    rows are those that were packed.
    """

    target: int = _vector("destination")
    source: int = _codes("quantized activations")
    outputs: int = bits(20, "rows of the matrix")
    inputs: int = bits(18, "columns of the matrix")
    group_log2: int = bits(4, "log2 of the inputs that share a scale, 4 to 8")


@_opcode(Queue.MV, 0)
class Attend(Instruction):
    """Attend, for each row, to its sequence's cached tokens, its ancestors in the step and itself.

    Cached tokens come from the next page stream; tokens of this step from the activation buffer.
    """

    target: int = _vector("destination, heads * head_dim elements")
    query: int = _codes("quantized queries; their scales hold the softmax scale times log2(e)")
    key: int = _codes("quantized keys of this step")
    value: int = _codes("quantized values of this step")
    heads: int = bits(8, "heads of queries")
    kv_heads: int = bits(8, "heads of keys and values")
    head_dim: int = bits(9, "elements of a head")
    window: int = bits(20, "latest positions seen; 0 for all")


@_opcode(Queue.MISC, 0)
class RmsNorm(Instruction):
    """Divide each part by its root mean square and multiply by the weights."""

    target: int = _vector("destination")
    source: int = _vector("source")
    gamma: int = bits(16, "block of the weights in the parameter buffer")
    size: int = bits(16, "elements of a part")
    parts: int = bits(8, "parts, one after the other, under the same weights")
    eps: float = bits(32, "added to the mean square", kind=float)


@_opcode(Queue.MISC, 1)
class Combine(Instruction):
    """Add, multiply or copy element by element."""

    target: int = _vector("destination")
    source: int = _vector("first operand")
    other: int = bits(16, "second operand: block in the vector or the parameter buffer")
    shared: int = bits(1, "1 if the second operand is in the parameter buffer")
    size: int = bits(20, "elements")
    function: Elementwise = bits(2, "what is done", kind=Elementwise)


@_opcode(Queue.MISC, 2)
class Activate(Instruction):
    """Apply a function to each element, and multiply by a gate's operand if there is one."""

    target: int = _vector("destination")
    source: int = _vector("the function's argument")
    other: int = _vector("what the result is multiplied by")
    gated: int = bits(1, "1 to multiply by `other`")
    size: int = bits(20, "elements")
    function: Function = bits(2, "the function", kind=Function)


@_opcode(Queue.MISC, 3)
class Rotate(Instruction):
    """Apply rotary position embedding to each head, by the row's cosines and sines."""

    target: int = _vector("destination")
    source: int = _vector("source")
    cos: int = _vector("cosines, then sines at the next block boundary")
    heads: int = bits(8, "heads")
    head_dim: int = bits(9, "elements of a head")
    rotary_dim: int = bits(9, "elements of a head that turn")
    interleaved: int = bits(1, "1 to pair neighbours, 0 to pair halves")


@_opcode(Queue.MISC, 4)
class Quantize(Instruction):
    """Quantize to int8 codes with a scale for each group, into the activation buffer of all lanes.

    Elements past ``size``, up to a whole group, become zero codes.
    """

    target: int = _codes("destination")
    source: int = _vector("source")
    size: int = bits(18, "elements")
    group: int = bits(9, "elements that share a scale, a multiple of 16")
    scale: float = bits(32, "multiplies the stored scales, not the codes", kind=float)
    packed: int = bits(1, "1 to put codes in the place of the step's first rows, not of their own",
                       default=0)


@_opcode(Queue.MISC, 5)
class SelectTop(Instruction):
    """Merge a run of logits into each row's best ``TOP_K``; a tie goes to the lower token."""

    source: int = _vector("logits")
    size: int = bits(20, "elements")
    register: int = bits(4, "address register that holds the first element's token")
    offset: int = bits(32, "added to the address register")
    limit: int = bits(20, "tokens from this one on are not candidates")
    clear: int = bits(1, "1 to forget what was kept before")


@_opcode(Queue.SYS, 0)
class End(Instruction):
    """End the step: every queue is empty and every write is in memory."""


@_opcode(Queue.SYS, 1)
class ReadStep(Instruction):
    """Read the step's header and rows from the control memory."""

    register: int = _register()
    offset: int = _address("the step table")


@_opcode(Queue.SYS, 2)
class Advance(Instruction):
    """Give each row its best token and the next position, as the next repeat's input.

    A row whose logits are no numbers has no best token, and takes token 0. Rows must have no
    parents. Once for each of the header's repeats: pages are known for so many positions.
    """


@_opcode(Queue.SYS, 3)
class Loop(Instruction):
    """Run the instructions to the matching ``EndLoop`` a number of times, which may be none."""

    source: Count = bits(4, "where the count comes from", kind=Count)
    count: int = bits(20, "the count, if immediate", default=0)


@_opcode(Queue.SYS, 4)
class EndLoop(Instruction):
    """End the innermost loop's body."""


@_opcode(Queue.SYS, 5)
class SetAddress(Instruction):
    """Set an address register."""

    register: int = bits(4, "address register")
    value: int = bits(32, "new value")


@_opcode(Queue.SYS, 6)
class AddAddress(Instruction):
    """Add to an address register, modulo 2**32."""

    register: int = bits(4, "address register")
    value: int = bits(32, "what is added")


@_opcode(Queue.SYS, 7)
class Sync(Instruction):
    """Do nothing but wait and release, in the queue named."""

    target: Queue = bits(3, "the queue that runs it", kind=Queue)


def runs_in(instruction: Instruction) -> Queue:
    """Return the queue that executes an instruction."""
    return instruction.target if isinstance(instruction, Sync) else instruction.queue


def half(rows: int) -> int:
    """Return how many of the most rows of a step the first half has."""
    return (rows + 1) // 2


SEQUENCED = (Loop, EndLoop, SetAddress, AddAddress)  # change only the sequencer's own state


def encode(instruction: Instruction) -> bytes:
    """Return the 16 bytes of an instruction; raise :class:`EncodingError` if a field is too big."""
    word = type(instruction).opcode
    at = HEADER_BITS["opcode"]
    for name in ("wait", "release"):
        word |= _fit(instruction, name, getattr(instruction, name), HEADER_BITS[name]) << at
        at += HEADER_BITS[name]
    word |= instruction.rows << at
    at += HEADER_BITS["rows"]
    for name, spec in type(instruction).operands().items():
        value = getattr(instruction, name)
        if spec["kind"] is float:
            value = struct.unpack("<I", struct.pack("<f", value))[0]
        word |= _fit(instruction, name, value, spec["width"]) << at
        at += spec["width"]
    return word.to_bytes(INSTRUCTION_BYTES, "little")


def _fit(instruction: Instruction, name: str, value: int, width: int) -> int:
    if not 0 <= value < 1 << width:
        raise EncodingError(f"{type(instruction).__name__}.{name} must be from 0 to "
                            f"{(1 << width) - 1}, not {value}")
    return int(value)


def decode(data: bytes) -> Instruction:
    """Return the instruction that 16 bytes hold; raise :class:`EncodingError` if they hold none."""
    if len(data) != INSTRUCTION_BYTES:
        raise EncodingError(f"an instruction must be {INSTRUCTION_BYTES} bytes, not {len(data)}")
    word = int.from_bytes(data, "little")

    def take(width: int) -> int:
        nonlocal word
        value, word = word & (1 << width) - 1, word >> width
        return value

    opcode = take(HEADER_BITS["opcode"])
    if opcode not in INSTRUCTIONS:
        raise EncodingError(f"opcode must be one of the instruction set's, not {opcode:#04x}")
    cls = INSTRUCTIONS[opcode]
    values: dict[str, int | float] = {name: take(HEADER_BITS[name]) for name in ("wait", "release")}
    rows = take(HEADER_BITS["rows"])
    if rows >= len(Rows):
        raise EncodingError(f"{cls.__name__}.rows must be one of {[int(v) for v in Rows]}, "
                            f"not {rows}")
    values["rows"] = Rows(rows)
    for name, spec in cls.operands().items():
        raw = take(spec["width"])
        if spec["kind"] is float:
            values[name] = struct.unpack("<f", struct.pack("<I", raw))[0]
        elif spec["kind"] is int:
            values[name] = raw
        else:
            try:
                values[name] = spec["kind"](raw)
            except ValueError:
                raise EncodingError(f"{cls.__name__}.{name} must be one of "
                                    f"{[int(v) for v in spec['kind']]}, not {raw}") from None
    if word:
        raise EncodingError(f"{cls.__name__}: the bits past its fields must be 0")
    return cls(**values)  # type: ignore[arg-type]


def assemble(instructions: Iterable[Instruction]) -> bytes:
    return b"".join(encode(instruction) for instruction in instructions)


def disassemble(data: bytes) -> list[Instruction]:
    """Return the instructions of a program; raise :class:`EncodingError` with the failing index."""
    if len(data) % INSTRUCTION_BYTES:
        raise EncodingError(f"a program must be a multiple of {INSTRUCTION_BYTES} bytes long, "
                            f"not {len(data)}")
    program = []
    for at in range(0, len(data), INSTRUCTION_BYTES):
        try:
            program.append(decode(data[at:at + INSTRUCTION_BYTES]))
        except EncodingError as error:
            raise EncodingError(f"instruction {at // INSTRUCTION_BYTES}: {error}") from None
    return program


def text(instruction: Instruction) -> str:
    """Return one line of assembly: class and name, tokens, then every operand."""
    def names(mask: int) -> str:
        return ",".join(queue.name for queue in Queue if mask >> queue & 1)

    cls = type(instruction)
    parts = [f"{cls.queue.name}.{cls.__name__}"]
    if instruction.wait:
        parts.append(f"wait={names(instruction.wait)}")
    if instruction.release:
        parts.append(f"release={names(instruction.release)}")
    if instruction.rows:
        parts.append(f"rows={instruction.rows.name}")
    for name in cls.operands():
        value = getattr(instruction, name)
        parts.append(f"{name}={value.name if isinstance(value, IntEnum) else value}")
    return " ".join(parts)


def _describe() -> str:
    """Return every fact an encoding depends on, as text."""
    lines = [repr((INSTRUCTION_BYTES, WORD_BYTES, BLOCK, TILE_ROWS, SEGMENT_TILES, TOP_K,
                   HEADER_BITS, list(Queue.__members__.items()), list(Rows.__members__.items())))]
    for opcode, cls in sorted(INSTRUCTIONS.items()):
        operands = [(name, spec["width"], spec["kind"].__name__, spec["kind"].__members__.items()
                     if issubclass(spec["kind"], IntEnum) else ())
                    for name, spec in cls.operands().items()]
        lines.append(f"{opcode} {cls.__name__} {operands}")
    return "\n".join(lines)


def isa_hash() -> str:
    """Return sixteen hexadecimal digits that change whenever an encoding or format changes."""
    from alula.hw import layout, numerics  # the formats that instructions read and write

    facts = _describe() + layout.describe() + numerics.describe()
    return hashlib.sha256(facts.encode()).hexdigest()[:16]
