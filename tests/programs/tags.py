"""What a run has covered: tags, by the program's instructions, its streams and its step.

Tags are read off what ran, not off what the generator meant to make.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np

from alula.compiler.program import Program
from alula.hw import isa, layout, numerics
from alula.hw.isa import SEGMENT_TILES, TILE_ROWS, WORD_BYTES, Count, Queue
from alula.sim.memory import MemoryModel
from programs.generate import Case, Rows

Tag = tuple[str, str]  # dimension, value

FAULTS = ("OPCODE", "PROGRAM", "STEP", "LOAD", "STORE", "LANE read", "LANE write", "WATCHDOG")
DIMENSIONS: dict[str, tuple[str, ...]] = {
    "instruction": tuple(cls.__name__ for cls in isa.INSTRUCTIONS.values()),
    "bits": tuple(f"W{bits}" for bits in numerics.WEIGHT_BITS),
    "zeros": ("symmetric", "zero points"),
    "group": tuple(f"G{group}" for group in (16, 32, 64, 128, 256)),
    "sparsity": ("dense", "4:16", "8:16", "12:16", "no weights"),
    "presence": ("all rows", "some rows", "no rows"),
    "rows": ("T 1", "T 2", "T 3-4", "T 5-8", "T 9-16"),
    "build": ("1 lane x 64", "2 lanes x 32", "4 lanes x 16"),
    "memory": ("ideal", "slow", "stalls"),
    "error": ("none", *FAULTS),
}
TILE = ("bits", "zeros", "group", "sparsity", "presence")  # pairs of these are of one tile


def executed(program: Program, step: Rows) -> set[int]:
    """Return the instructions that run in a step."""
    code, found, skip = program.instructions, set(), 0
    for at, insn in enumerate(code):
        if skip:
            skip += isinstance(insn, isa.Loop) - isinstance(insn, isa.EndLoop)
            continue
        found.add(at)
        if isinstance(insn, isa.Loop):
            skip = not passes(program, insn, step)
    return found


def passes(program: Program, loop: isa.Loop, step: Rows) -> int:
    """Return how often a loop runs in a step."""
    halves = step.count > isa.half(program.arch.rows)
    return {Count.IMMEDIATE: loop.count, Count.REPEATS: int(step.header["repeats"]),
            Count.HEAD: int(step.header["head"]), Count.WHOLE: int(not halves),
            Count.HALVES: int(halves)}[loop.source]


def tiles(program: Program, insn: isa.Linear, stream: int) -> Iterator[frozenset[Tag]]:
    """Yield the kinds of tiles of a stream, given by its index in the directory."""
    group = 1 << insn.group_log2
    groups = -(-insn.inputs // group)
    for image in program.lanes:
        entry = image[:program.memory.streams * WORD_BYTES].view(layout.DIRECTORY_ENTRY)[stream]
        at = int(entry["start"]) * WORD_BYTES
        for _ in range(int(entry["strips"])):
            for first in range(0, groups, SEGMENT_TILES):
                count = min(SEGMENT_TILES, groups - first)
                begin = at
                words = image[at:at + 4 * count].copy().view("<u4")
                sizes = np.zeros(len(layout.SECTIONS), int)
                sizes[0] = layout.HEADER_BYTES * layout.header_words(count)
                for word in words:
                    present, kept, bits, zeros = layout.parse_header(int(word))
                    rows = present.bit_count()
                    sizes += (0, rows * layout.SCALE_BYTES,
                              rows * zeros * layout.ZERO_POINT_BYTES,
                              layout.positions_bytes(rows, group, kept, program.arch),
                              layout.codes_bytes(rows, group, kept, bits, program.arch))
                    yield frozenset({
                        ("bits", f"W{bits}"), ("group", f"G{group}"),
                        ("zeros", "zero points" if zeros else "symmetric"),
                        ("sparsity", "no weights" if not rows else
                         f"{kept}:16" if kept else "dense"),
                        ("presence", "no rows" if not rows else
                         "all rows" if rows == TILE_ROWS else "some rows")})
                size = int((sizes + layout.padding(sizes, program.arch)).sum())
                at = begin + size + -size % program.arch.beat_bytes


def streams_of(program: Program, ran: set[int]) -> Iterator[tuple[isa.Linear, int]]:
    """Yield each product that runs with each stream it takes in a first pass through its loops.

    Streams of later passes are not looked at: their tags are left out, never added wrongly.
    """
    registers = [0] * isa.ADDRESS_REGISTERS
    waiting: list[int | None] = []
    for at, insn in enumerate(program.instructions):
        if at not in ran:
            continue
        if isinstance(insn, isa.SetAddress):
            registers[insn.register] = insn.value
        elif isinstance(insn, isa.AddAddress):
            registers[insn.register] += insn.value
        elif isinstance(insn, isa.LoadStream):
            waiting.append(registers[insn.register] + insn.offset)
        elif isinstance(insn, isa.LoadPages):
            waiting.append(None)
        elif isinstance(insn, isa.Attend):
            waiting.pop(0)
        elif isinstance(insn, isa.Linear):
            stream = waiting.pop(0)
            assert stream is not None
            yield insn, stream


def variants(program: Program, ran: set[int], step: Rows) -> Iterator[Tag]:
    """Yield what of each instruction's choices ran."""
    for at in ran:
        insn = program.instructions[at]
        match insn:
            case isa.Combine():
                yield "variant", (f"Combine {insn.function.name} "
                                  f"{'parameter' if insn.shared else 'vector'}")
            case isa.Activate():
                yield "variant", (f"Activate {insn.function.name} "
                                  f"{'gated' if insn.gated else 'plain'}")
            case isa.LoadRow():
                yield "variant", f"LoadRow {insn.format.name} {insn.index.name}"
            case isa.Rotate():
                yield "variant", (f"Rotate {'neighbours' if insn.interleaved else 'halves'} "
                                  f"{'whole' if insn.rotary_dim == insn.head_dim else 'part'}")
            case isa.RmsNorm():
                yield "variant", f"RmsNorm {'one part' if insn.parts == 1 else 'parts'}"
            case isa.SelectTop():
                yield "variant", (f"SelectTop {'clear' if insn.clear else 'keep'} "
                                  f"{'none' if not insn.size else 'some'}")
            case isa.Loop():
                count = str(min(passes(program, insn, step), 2))
                yield "variant", f"Loop {insn.source.name} {count}{'+' if count == '2' else ''}"
            case isa.Quantize():
                yield "variant", ("Quantize power of two" if not insn.group & (insn.group - 1)
                                  else "Quantize other group")
            case isa.Attend():
                yield "variant", f"Attend head_dim {insn.head_dim}"
                yield "variant", f"Attend {insn.heads // insn.kv_heads} queries a key"
                yield "variant", f"Attend {'window' if insn.window else 'all'}"
                pages = int(step.rows["position"].max()) // numerics.PAGE_TOKENS + 1
                yield "variant", ("Attend 1 page" if pages == 1 else "Attend 2-8 pages"
                                  if pages <= 8 else "Attend 9+ pages")
    for at in ran:
        insn = program.instructions[at]
        for other in Queue:
            if insn.release >> other & 1:
                yield "token", f"{isa.runs_in(insn).name} to {other.name}"


def shape_of(step: Rows) -> Iterator[Tag]:
    """Yield what kinds of rows a step has."""
    parents = step.rows["parent"]
    if (parents < 0).sum() > 1:
        yield "variant", "rows: several sequences"
    if len(parents) > 1 and (parents[1:] == np.arange(len(parents) - 1)).any():
        yield "variant", "rows: a chain"
    if len(set(parents[parents >= 0].tolist())) < int((parents >= 0).sum()):
        yield "variant", "rows: a tree"
    if (step.rows["place"] != layout.PLACE_BY_POSITION).any():
        yield "variant", "rows: a place of its own"


def rows_tag(count: int) -> Tag:
    most = (1, 2, 4, 8, 16)
    return "rows", DIMENSIONS["rows"][next(at for at, top in enumerate(most) if count <= top)]


def memory_tag(memory: MemoryModel) -> Tag:
    if memory.stall:
        return "memory", "stalls"
    return "memory", "ideal" if memory == MemoryModel() else "slow"


def pairs_of(case: Case, step: Rows, memory: MemoryModel, *, error: str = "none",
             culprit: int | None = None) -> tuple[set[Tag], set[frozenset[Tag]]]:
    """Return the tags and the pairs of tags of a run.

    With an error the only instruction counted is the one at fault.
    """
    program = case.program
    ran = executed(program, step)
    arch = program.arch
    run: set[Tag] = {rows_tag(step.count), memory_tag(memory), ("error", error),
                     ("build", f"{arch.lanes} lane{'s' * (arch.lanes > 1)} x {arch.beat_bytes}")}
    names = ran if error == "none" else set() if culprit is None else {culprit}
    run |= {("instruction", type(program.instructions[at]).__name__) for at in names}
    kinds = {kind for insn, stream in streams_of(program, ran)
             for kind in tiles(program, insn, stream)}
    of_tiles = {tag for kind in kinds for tag in kind}
    pairs = {frozenset(pair) for pair in combinations(sorted(run), 2)}
    pairs |= {frozenset((a, b)) for a in run for b in of_tiles}
    pairs |= {frozenset(pair) for kind in kinds for pair in combinations(sorted(kind), 2)}
    extra = set(shape_of(step))
    if error == "none":
        extra |= set(variants(program, ran, step))
    return run | of_tiles | extra, pairs
