"""Prove that a program is safe on its build, before it is written and again before it runs.

* Every operand fits its on-chip buffer, and every address an instruction can reach, over all loop
  counts and repeats, is inside the region that the instruction may touch.
* Tokens balance over every loop, never exceed what hardware counts, and cannot deadlock: along
  program order each wait finds a token given earlier, and queues are in order.
* Instructions of different queues that touch the same store are ordered by tokens.
* Loops nest, end, and count at least what their source gives.
* A product's stream has the strips that its outputs take, and rows advance only as far as the
  header's repeats say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from alula.compiler.effects import SIZES, Effects, effects
from alula.compiler.program import MemoryMap, Program, Region
from alula.hw import isa, layout, numerics
from alula.hw.arch import ArchConfig
from alula.hw.isa import Count, Instruction, Queue


class VerifyError(ValueError):
    """A program could misbehave on its build."""


@dataclass
class _Loop:
    """A loop's body: instruction indices and inner loops."""

    at: int
    body: list[int | _Loop] = field(default_factory=list)


def verify(program: Program) -> Program:
    """Return ``program`` if it is safe, else raise :class:`VerifyError` naming the instruction."""
    code = program.instructions
    tree = _nest(code)
    _check_memory_map(program.memory, program.arch)
    _check_host_tables(program)
    _check_directory(program)
    _check_image(program)
    for at, instruction in enumerate(code):
        _check_operands(at, instruction, program)
    _check_addresses(code, tree, program)
    _check_advances(code, tree)
    _check_rows(code, tree)
    _check_tokens(code, tree, program.arch.queue_depth)
    _check_strips(code, tree, program)
    if not code or not isinstance(code[-1], isa.End):
        raise VerifyError("a program must end with SYS.End")
    return program


def _where(at: int, instruction: Instruction) -> str:
    return f"instruction {at} ({isa.text(instruction)})"


def _nest(code: list[Instruction]) -> list[int | _Loop]:
    """Return the program as a tree; raise if loops do not nest or nest too deep."""
    stack: list[list[int | _Loop]] = [[]]
    for at, instruction in enumerate(code):
        if isinstance(instruction, isa.Loop):
            loop = _Loop(at)
            stack[-1].append(loop)
            stack.append(loop.body)
            if len(stack) - 1 > isa.LOOP_DEPTH:
                raise VerifyError(f"{_where(at, instruction)}: loops must nest at most "
                                  f"{isa.LOOP_DEPTH} deep")
        elif isinstance(instruction, isa.EndLoop):
            if len(stack) == 1:
                raise VerifyError(f"{_where(at, instruction)}: must end a loop, but none is open")
            stack.pop()
        else:
            stack[-1].append(at)
    if len(stack) > 1:
        raise VerifyError(f"every loop must end; {len(stack) - 1} are open at the end")
    return stack[0]


def _check_memory_map(memory: MemoryMap, arch: ArchConfig) -> None:
    lane = {"weights": memory.weights, "cache": memory.cache}
    control = {name: getattr(memory, name)
               for name in ("program", "params", "tables", "step", "pages", "logits", "top")}
    for regions, limit, what in ((lane, arch.channel_bytes, "a lane's memory"),
                                 (control, arch.control_bytes, "the control memory")):
        last = 0
        for name, region in sorted(regions.items(), key=lambda item: item[1].start):
            if region.start % 64 or region.size < 0 or region.start < last:
                raise VerifyError(f"region {name} must start at a multiple of 64 from {last}, "
                                  f"not {region.start}")
            last = region.stop
        if last > limit:
            raise VerifyError(f"the memory map needs {last} bytes of {what}, but {arch.name} has "
                              f"{limit}; choose a larger board or a smaller context")
    if memory.page_stride * isa.WORD_BYTES * memory.sequences > memory.pages.size:
        raise VerifyError(f"region pages must hold {memory.sequences} tables of "
                          f"{memory.page_stride} words, not {memory.pages.size} bytes")
    needed = memory.slots * memory.slot_words * isa.WORD_BYTES
    if needed > memory.cache.size:
        raise VerifyError(f"region cache must have {needed} bytes for {memory.slots} slots, "
                          f"not {memory.cache.size}")


def _check_host_tables(program: Program) -> None:
    """Check the sizes that hosts go by: of contexts, page tables, results and the program."""
    memory, rows = program.memory, program.arch.rows
    if memory.context > program.model.positions:
        raise VerifyError(f"the context must be at most the model's {program.model.positions} "
                          f"positions, not {memory.context}")
    table = -(-memory.context // numerics.PAGE_TOKENS) * 4
    for name, needed, size in (
            ("page_stride", table, memory.page_stride * isa.WORD_BYTES),
            ("region logits", rows * memory.logits_stride * isa.WORD_BYTES, memory.logits.size),
            ("logits_stride", 4 * program.model.vocab, memory.logits_stride * isa.WORD_BYTES),
            ("region top", memory.repeats * rows * layout.TOP_ROW.itemsize, memory.top.size),
            ("region program", program.program_bytes, memory.program.size)):
        if needed > size:
            raise VerifyError(f"{name} must have {needed} bytes, not {size}")


def _check_directory(program: Program) -> None:
    """Check that each stream a directory names lies inside the lane's weight region."""
    entries = program.memory.streams
    beat_words = program.arch.beat_bytes // isa.WORD_BYTES
    for lane, image in enumerate(program.lanes):
        if not image.size:
            continue
        if image.size < entries * isa.WORD_BYTES or image.size > program.memory.weights.size:
            raise VerifyError(f"lane {lane}'s image must have from {entries * isa.WORD_BYTES} to "
                              f"{program.memory.weights.size} bytes, not {image.size}")
        table = image[:entries * isa.WORD_BYTES].view(layout.DIRECTORY_ENTRY)
        stops = table["start"].astype("u8") + table["beats"].astype("u8") * beat_words
        if len(stops) and int(stops.max()) * isa.WORD_BYTES > image.size:
            raise VerifyError(f"lane {lane}: stream {int(stops.argmax())} must end inside the "
                              f"image of {image.size} bytes")


def _check_image(program: Program) -> None:
    """Check that the control memory's image holds the instructions that are checked here."""
    code = isa.assemble(program.instructions)
    if program.control[:len(code)].tobytes() != code:
        raise VerifyError("the control memory's image must begin with the program's instructions")


def _check_operands(at: int, instruction: Instruction, program: Program) -> None:
    try:
        isa.encode(instruction)
        touched = effects(instruction)
    except (isa.EncodingError, ArithmeticError) as error:
        raise VerifyError(f"{_where(at, instruction)}: {error}") from None
    for access in touched.reads + touched.writes:
        if access.space in SIZES:
            limit = getattr(program.arch, SIZES[access.space]) // isa.BLOCK
            if access.stop > limit:
                raise VerifyError(f"{_where(at, instruction)}: must stay in the "
                                  f"{access.space.value}'s {limit} blocks, not reach block "
                                  f"{access.stop}; {program.arch.name} is too small for this model")
    if isinstance(instruction, isa.SEQUENCED) and instruction.wait | instruction.release:
        raise VerifyError(f"{_where(at, instruction)}: must neither wait nor release; the "
                          "sequencer runs it before any queue")
    if isinstance(instruction, isa.SelectTop) and instruction.limit > program.model.vocab:
        raise VerifyError(f"{_where(at, instruction)}: limit must be at most the "
                          f"{program.model.vocab} tokens that there are, not {instruction.limit}")
    wrong = _disagreement(instruction)
    if wrong:
        raise VerifyError(f"{_where(at, instruction)}: {wrong}")
    for name, (legal, wanted) in _LEGAL.get(type(instruction), {}).items():
        value = getattr(instruction, name)
        if not legal(value):
            raise VerifyError(f"{_where(at, instruction)}: {name} must be {wanted}, not {value}")


def _disagreement(i: Instruction) -> str:
    """Return what is wrong with operands that are legal each for itself, or nothing."""
    match i:
        case isa.Attend(heads=heads, kv_heads=kv_heads) if kv_heads and heads % kv_heads:
            return f"heads must be a multiple of kv_heads ({kv_heads}), not {heads}"
        case isa.Rotate() if i.rotary_dim % 2 or i.rotary_dim > i.head_dim:
            return (f"rotary_dim must be even and at most head_dim ({i.head_dim}), "
                    f"not {i.rotary_dim}")
        case isa.LoadRow() if _row_words(i) > i.stride:
            return f"stride must be at least {_row_words(i)} words for a row of {i.size} elements"
        case isa.LoadRow() if i.format in (isa.Format.Q4, isa.Format.Q8) and i.group_log2 < 4:
            return f"group_log2 must be at least 4, not {i.group_log2}"
        case isa.RmsNorm() if i.parts > 1 and i.size % isa.BLOCK:
            return f"size must be a multiple of {isa.BLOCK} if there are parts, not {i.size}"
    return _overlap(i)


def _overlap(i: Instruction) -> str:
    """Return which operand lies partly under the target: elements are written as they are read."""
    if not isinstance(i, isa.RmsNorm | isa.Combine | isa.Activate | isa.Rotate):
        return ""
    touched = effects(i)
    target = touched.writes[0]
    for access in touched.reads:
        in_place = access.start == target.start and access.start != getattr(i, "cos", None)
        if access.overlaps(target) and not in_place:
            return (f"the target, blocks {target.start} to {target.stop}, must be in an operand's "
                    f"place or apart from it, not over blocks {access.start} to {access.stop}")
    return ""


def _row_words(i: isa.LoadRow) -> int:
    """Return the words of a table's row."""
    if i.format in (isa.Format.F32, isa.Format.F16):
        return _words(i.size, 4 if i.format is isa.Format.F32 else 2)
    codes = -(-i.size // 2) if i.format is isa.Format.Q4 else i.size
    return _words(-(-i.size // (1 << i.group_log2))) + _words(codes, 1)


def _head_dim(value: int) -> bool:
    return value % 16 == 0 and 16 <= value <= 256


_HEADS = (lambda value: value >= 1, "at least 1")
_BLOCKS = (lambda value: value % isa.BLOCK == 0, f"a multiple of {isa.BLOCK}")
_LEGAL: dict[type[Instruction], dict[str, tuple[Callable[[Any], bool], str]]] = {
    isa.Linear: {"group_log2": (lambda value: 4 <= value <= 8, "from 4 to 8"),
                 "outputs": _HEADS, "inputs": _HEADS},
    isa.Attend: {"head_dim": (_head_dim, "a multiple of 16 from 16 to 256"),
                 "heads": _HEADS, "kv_heads": _HEADS},
    isa.LoadPages: {"head_dim": (_head_dim, "a multiple of 16 from 16 to 256"),
                    "kv_heads": _HEADS},
    isa.StoreKeyValue: {"head_dim": (_head_dim, "a multiple of 16 from 16 to 256"),
                        "kv_heads": _HEADS},
    isa.Quantize: {"group": (lambda value: value % 16 == 0 and value >= 16,
                             "a multiple of 16, at least 16"), "size": _HEADS},
    isa.RmsNorm: {"size": _HEADS, "parts": _HEADS},
    isa.Combine: {"size": _HEADS},
    isa.Activate: {"size": _HEADS},
    isa.Rotate: {"heads": _HEADS, "rotary_dim": _HEADS, "head_dim": _BLOCKS},
    isa.StoreRow: {"size": _BLOCKS},
}


# Addresses -------------------------------------------------------------------------------------

_Reach = dict[int, tuple[int, int]]  # address register -> lowest and highest value


def _check_addresses(code: list[Instruction], tree: list[int | _Loop], program: Program) -> None:
    registers: _Reach = dict.fromkeys(range(isa.ADDRESS_REGISTERS), (0, 0))
    _walk_addresses(code, tree, registers, program)


def _walk_addresses(code: list[Instruction], body: list[int | _Loop], registers: _Reach,
                    program: Program, *, checked: bool = True) -> None:
    """Follow the registers' ranges through a body, checking each address on the way."""
    for item in body:
        if isinstance(item, _Loop):
            loop = code[item.at]
            assert isinstance(loop, isa.Loop)
            _walk_loop(code, item, _most(loop, program.memory), registers, program, checked)
            continue
        instruction = code[item]
        if isinstance(instruction, isa.SetAddress):
            registers[instruction.register] = (instruction.value, instruction.value)
        elif isinstance(instruction, isa.AddAddress):
            low, high = registers[instruction.register]
            registers[instruction.register] = (low + instruction.value, high + instruction.value)
        elif checked:
            _check_reach(item, instruction, registers, program)


def _most(loop: isa.Loop, memory: MemoryMap) -> int:
    return {Count.IMMEDIATE: loop.count, Count.REPEATS: memory.repeats}.get(loop.source, 1)


def _walk_loop(code: list[Instruction], loop: _Loop, count: int, registers: _Reach,
               program: Program, checked: bool) -> None:
    """Widen the registers to every iteration's values, then check the body once."""
    if not count:
        return
    before = dict(registers)
    steps = _steps(code, loop.body, program.memory)
    _walk_addresses(code, loop.body, probe := dict(before), program, checked=False)
    for register, step in steps.items():
        low, high = before[register]
        if step is not None:
            registers[register] = (low, high + step * (count - 1))
        elif count > 1:  # set in the body: an iteration starts from the value that one ends with
            registers[register] = _hull(before[register], probe[register])
    _walk_addresses(code, loop.body, probe := dict(registers), program, checked=False)
    for register, step in steps.items():
        if step is None and count > 1 and _hull(registers[register],
                                                probe[register]) != registers[register]:
            raise VerifyError(f"{_where(loop.at, code[loop.at])}: address register {register} must "
                              "be set in each pass, or only added to")
    _walk_addresses(code, loop.body, registers, program, checked=checked)
    if code[loop.at].source not in _COUNTED:  # type: ignore[attr-defined]
        registers.update({register: _hull(before[register], registers[register])
                          for register in steps})


_COUNTED = (Count.IMMEDIATE, Count.REPEATS)  # other loops may not run


def _hull(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return min(a[0], b[0]), max(a[1], b[1])


def _steps(code: list[Instruction], body: list[int | _Loop],
           memory: MemoryMap) -> dict[int, int | None]:
    """Return what one pass of a body adds to each register; None if the body sets it."""
    steps: dict[int, int | None] = {}
    for item in body:
        if isinstance(item, _Loop):
            loop = code[item.at]
            assert isinstance(loop, isa.Loop)
            for register, step in _steps(code, item.body, memory).items():
                known = steps.get(register, 0)
                steps[register] = (None if step is None or known is None
                                   else known + step * _most(loop, memory))
        else:
            instruction = code[item]
            if isinstance(instruction, isa.SetAddress):
                steps[instruction.register] = None
            elif isinstance(instruction, isa.AddAddress):
                known = steps.get(instruction.register, 0)
                steps[instruction.register] = None if known is None else known + instruction.value
    return steps


def _check_reach(at: int, instruction: Instruction, registers: _Reach,
                 program: Program) -> None:
    if "offset" not in type(instruction).operands():
        return
    low, high = registers[instruction.register]  # type: ignore[attr-defined]
    low, high = (value + instruction.offset for value in (low, high))  # type: ignore[attr-defined]
    for region, first, last, name in _touches(instruction, low, high, program):
        if first * isa.WORD_BYTES < region.start or last * isa.WORD_BYTES > region.stop:
            raise VerifyError(
                f"{_where(at, instruction)}: must stay inside {name} ({region.start} to "
                f"{region.stop}), not reach {first * isa.WORD_BYTES} to {last * isa.WORD_BYTES}")


def _words(elements: int, width: int = 4) -> int:
    return -(-elements * width // isa.WORD_BYTES)


def _touches(i: Instruction, low: int, high: int,
             program: Program) -> Iterator[tuple[Region, int, int, str]]:
    """Yield each region an instruction may touch, first and last word, and the region's name."""
    memory, rows = program.memory, program.arch.rows
    match i:
        case isa.LoadStream():
            entries = program.memory.streams
            table = Region(memory.weights.start, entries * isa.WORD_BYTES)
            yield table, low, high + 1, "the stream directory"
        case isa.LoadPages() | isa.StoreKeyValue():
            size = layout.layer_words(program.arch.lanes, i.kv_heads, i.head_dim)
            slot = Region(memory.cache.start, memory.slot_words * isa.WORD_BYTES)
            yield slot, low, high + size, "a cache slot"
        case isa.LoadParams():
            yield memory.params, low, high + _words(i.size), "the parameters"
        case isa.LoadRow():
            count = program.model.vocab if i.index is isa.Index.TOKEN else program.model.positions
            yield memory.tables, low, high + count * i.stride, "the tables"
        case isa.StoreRow():
            yield (memory.logits, low, high + (rows - 1) * i.stride + _words(i.size),
                   "the logits")
        case isa.StoreTop():
            yield (memory.top, low, high + _words(rows * layout.TOP_ROW.itemsize, 1),
                   "the best logits")
        case isa.ReadStep():
            yield (memory.step, low, high + _words(layout.STEP_HEADER.itemsize
                                                   + rows * layout.STEP_ROW.itemsize, 1),
                   "the step table")


# Rows and streams ------------------------------------------------------------------------------

def _check_advances(code: list[Instruction], body: list[int | _Loop], *,
                    repeats: bool = False) -> int:
    """Return how often a pass of a body advances; raise if that is not once for each repeat."""
    count = 0
    for item in body:
        if isinstance(item, _Loop):
            loop = code[item.at]
            assert isinstance(loop, isa.Loop)
            inner = _check_advances(code, item.body,
                                    repeats=repeats or loop.source is Count.REPEATS)
            if loop.source is Count.REPEATS:
                if repeats and inner or inner > 1:
                    raise VerifyError(f"{_where(item.at, loop)}: a pass must advance at most once")
                continue
            count += inner * (loop.count if loop.source is Count.IMMEDIATE else 1)
        elif isinstance(code[item], isa.Advance):
            if not repeats:
                raise VerifyError(f"{_where(item, code[item])}: must be in a loop of REPEATS: "
                                  "pages are known for so many positions")
            count += 1
    return count


_HALVED = (isa.LoadPages, isa.Linear, isa.Attend, isa.RmsNorm, isa.Combine, isa.Activate,
           isa.Rotate, isa.Quantize)


def _check_rows(code: list[Instruction], body: list[int | _Loop], *, halves: bool = False) -> None:
    """Check that what is for some rows only is in a loop of HALVES: a device may pass over it."""
    for item in body:
        if isinstance(item, _Loop):
            loop = code[item.at]
            assert isinstance(loop, isa.Loop)
            _check_rows(code, item.body, halves=halves or loop.source is Count.HALVES)
            continue
        i = code[item]
        if i.rows is not isa.Rows.ALL and not (halves and isinstance(i, _HALVED)):
            raise VerifyError(f"{_where(item, i)}: rows must be ALL, outside of a loop of HALVES "
                              "and for what is done once a step")
        if isinstance(i, isa.Quantize) and i.packed and i.rows is not isa.Rows.SECOND:
            raise VerifyError(f"{_where(item, i)}: only codes of the second half's rows can be "
                              "packed")


def _check_strips(code: list[Instruction], tree: list[int | _Loop], program: Program) -> None:
    """Check that each product's stream has as many strips in each lane as its outputs take."""
    lanes = len(program.lanes)
    tables = [image[:program.memory.streams * isa.WORD_BYTES].view(layout.DIRECTORY_ENTRY)["strips"]
              for image in program.lanes if image.size]
    registers = [0] * isa.ADDRESS_REGISTERS
    loaded: list[int | None] = []
    for at in _follow(code, tree, registers):
        instruction = code[at]
        if isinstance(instruction, isa.LoadStream):
            loaded.append(registers[instruction.register] + instruction.offset)
        elif isinstance(instruction, isa.LoadPages):
            loaded.append(None)
        elif isinstance(instruction, isa.Linear | isa.Attend) and loaded:
            stream = loaded.pop(0)
            if stream is None or not isinstance(instruction, isa.Linear):
                continue
            strips = -(-instruction.outputs // isa.TILE_ROWS)
            for lane, table in enumerate(tables):
                wanted = -(-(strips - lane) // lanes) if strips > lane else 0
                if table[stream] != wanted:
                    raise VerifyError(f"{_where(at, instruction)}: lane {lane}'s stream {stream} "
                                      f"must have {wanted} strips, not {table[stream]}")


def _follow(code: list[Instruction], body: list[int | _Loop],
            registers: list[int]) -> Iterator[int]:
    """Yield the instructions of a run in order, registers as each sees them; a HEAD loop runs."""
    for item in body:
        if isinstance(item, _Loop):
            loop = code[item.at]
            assert isinstance(loop, isa.Loop)
            passes = loop.count if loop.source is Count.IMMEDIATE else 1
            for _ in range(passes):
                yield from _follow(code, item.body, registers)
            continue
        instruction = code[item]
        if isinstance(instruction, isa.SetAddress):
            registers[instruction.register] = instruction.value
        elif isinstance(instruction, isa.AddAddress):
            registers[instruction.register] += instruction.value
        else:
            yield item


# Tokens ----------------------------------------------------------------------------------------

def _check_tokens(code: list[Instruction], tree: list[int | _Loop], depth: int) -> None:
    _check_balance(code, tree)
    # Any loop count behaves like one of these: a loop adds nothing new after its second pass.
    for optional in ({Count.HEAD: head, Count.WHOLE: 1 - halves, Count.HALVES: halves}
                     for head in (0, 1) for halves in (0, 1)):
        run = list(_run(code, tree, optional))
        _check_streams(code, run, depth)
        _check_run(code, run)


def _check_balance(code: list[Instruction], body: list[int | _Loop]) -> Counter[tuple[int, int]]:
    """Return the tokens a body leaves for each pair of queues; raise if a loop leaves any."""
    left: Counter[tuple[int, int]] = Counter()
    for item in body:
        if isinstance(item, _Loop):
            inner = _check_balance(code, item.body)
            loose = [pair for pair, count in inner.items() if count]
            if loose:
                giver, taker = loose[0]
                raise VerifyError(f"{_where(item.at, code[item.at])}: a pass must take as many "
                                  f"tokens as it gives, but leaves {inner[loose[0]]} from "
                                  f"{Queue(giver).name} to {Queue(taker).name}")
            continue
        queue = isa.runs_in(code[item])
        for other in Queue:
            left[queue, other] += code[item].release >> other & 1
            left[other, queue] -= code[item].wait >> other & 1
    return left


def _run(code: list[Instruction], body: list[int | _Loop],
         optional: dict[Count, int]) -> Iterator[int]:
    """Yield instruction indices of a run: three passes of a loop, or as many as are given."""
    for item in body:
        if isinstance(item, _Loop):
            loop = code[item.at]
            assert isinstance(loop, isa.Loop)
            passes = (min(loop.count, 3) if loop.source is Count.IMMEDIATE
                      else optional.get(loop.source, 2))
            for _ in range(passes):
                yield from _run(code, item.body, optional)
        else:
            yield item


def _check_streams(code: list[Instruction], run: list[int], depth: int) -> None:
    """Check that lanes consume streams in the order and of the kind that was loaded.

    A load may have to wait until the stream before it is used. What follows it in its queue, up to
    that use, must fit the queue, of ``depth``, or the use would never be sent.
    """
    loaded: list[Instruction] = []
    places: list[int] = []  # of those, in the queue
    queued = 0
    for at in run:
        instruction = code[at]
        queued += isa.runs_in(instruction) is Queue.LD
        if isinstance(instruction, isa.LoadStream | isa.LoadPages):
            loaded.append(instruction)
            places.append(queued)
        elif isinstance(instruction, isa.Linear | isa.Attend):
            wanted = isa.LoadStream if isinstance(instruction, isa.Linear) else isa.LoadPages
            if not loaded or not isinstance(loaded[0], wanted):
                raise VerifyError(f"{_where(at, instruction)}: the next prefetched stream must be "
                                  f"a {wanted.__name__}'s")
            pages = loaded.pop(0)
            places.pop(0)
            if places and queued - places[0] >= depth:
                raise VerifyError(f"{_where(at, instruction)}: at most {depth} instructions of LD "
                                  f"must come between the next stream's load and this use, not "
                                  f"{queued - places[0] + 1}")
            if isinstance(pages, isa.LoadPages) and isinstance(instruction, isa.Attend):
                for name in ("kv_heads", "head_dim", "window", "rows"):
                    if getattr(pages, name) != getattr(instruction, name):
                        raise VerifyError(f"{_where(at, instruction)}: {name} must be "
                                          f"{getattr(pages, name)} as in its LoadPages, "
                                          f"not {getattr(instruction, name)}")
    if loaded:
        raise VerifyError(f"every prefetched stream must be used; {len(loaded)} are left")


def _check_run(code: list[Instruction], run: list[int]) -> None:
    """Check one run: every wait has its token, and conflicting instructions are ordered."""
    queues = len(Queue)
    last = [[0] * queues for _ in Queue]  # what each queue knows to have ended
    given: dict[tuple[int, int], list[list[int]]] = {}
    taken: Counter[tuple[int, int]] = Counter()
    past: list[list[tuple[int, Effects]]] = [[] for _ in Queue]
    for at in run:
        instruction = code[at]
        if isinstance(instruction, isa.SEQUENCED):
            continue
        queue = isa.runs_in(instruction)
        clock = last[queue]
        for other in Queue:
            if instruction.wait >> other & 1:
                pair = (other, queue)
                tokens = given.get(pair, [])
                if taken[pair] >= len(tokens):
                    raise VerifyError(f"{_where(at, instruction)}: waits for a token from "
                                      f"{other.name} that no earlier instruction gives: "
                                      "it would deadlock")
                clock = [max(a, b) for a, b in zip(clock, tokens[taken[pair]], strict=True)]
                taken[pair] += 1
        own = effects(instruction)
        for other in Queue:
            if other is not queue:
                for index in range(len(past[other]) - 1, clock[other] - 1, -1):
                    if past[other][index][1].conflicts(own):
                        before = past[other][index][0]
                        raise VerifyError(f"{_where(at, instruction)}: must wait for instruction "
                                          f"{before} ({isa.text(code[before])}), with which it "
                                          "shares a store")
        ended = list(clock)
        ended[queue] = len(past[queue]) + 1
        past[queue].append((at, own))
        last[queue] = ended
        for other in Queue:
            if instruction.release >> other & 1:
                pair = (queue, other)
                given.setdefault(pair, []).append(ended)
                if len(given[pair]) - taken[pair] > isa.TOKEN_LIMIT:
                    raise VerifyError(f"{_where(at, instruction)}: leaves more than "
                                      f"{isa.TOKEN_LIMIT} tokens from {queue.name} to {other.name}")
    loose = [pair for pair, tokens in given.items() if len(tokens) != taken[pair]]
    if loose:
        giver, taker = loose[0]
        raise VerifyError(f"every token must be taken, but some from {Queue(giver).name} to "
                          f"{Queue(taker).name} are left at the end")
