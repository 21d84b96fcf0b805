"""What the hardware asks of a program beyond what the instruction set does."""

from __future__ import annotations

from collections.abc import Iterator

from alula.compiler.program import Program
from alula.hw import isa, numerics
from alula.hw.isa import BLOCK
from alula.hw.layout import units

ALIGNED = 256  # most codes whose runs begin at a multiple of their length


class LimitError(ValueError):
    """A program that this build of the hardware cannot run."""


def check(program: Program) -> None:
    """Raise :class:`LimitError`, naming the instruction, if the hardware cannot run a program."""
    arch = program.arch
    pages = -(-program.memory.context // numerics.PAGE_TOKENS)
    if arch.rows * pages > arch.page_entries:
        raise LimitError(f"context must be at most "
                         f"{arch.page_entries // arch.rows * numerics.PAGE_TOKENS} tokens on "
                         f"{arch.name}, not {program.memory.context}; compile with --context")
    if len(program.instructions) > arch.program_instructions:
        raise LimitError(f"a program must have at most {arch.program_instructions} instructions, "
                         f"not {len(program.instructions)}")
    for at, instruction in enumerate(program.instructions):
        for name, value, limit in _sizes(program, instruction):
            if value > limit:
                raise LimitError(f"instruction {at} ({isa.text(instruction)}): {name} must be at "
                                 f"most {limit} on {arch.name}, not {value}")
        for name, value, unit in _multiples(instruction):
            if value % unit:
                raise LimitError(f"instruction {at} ({isa.text(instruction)}): {name} must be a "
                                 f"multiple of {unit} on hardware, not {value}")


def _sizes(program: Program, i: isa.Instruction) -> Iterator[tuple[str, int, int]]:
    """Yield what the build has a limit for: its name, value and limit."""
    arch = program.arch
    if isinstance(i, isa.Attend):
        queries = arch.rows * (i.heads // i.kv_heads)
        half = (8 + i.head_dim) * numerics.PAGE_TOKENS // arch.beat_bytes
        yield "rows times queries of a key", queries, arch.attention_queries
        yield "sums of a head of keys", queries * i.head_dim, arch.attention_elements
        yield "beats of a page's keys", half, arch.prefetch_beats // 2
        if arch.lanes > 1 and units(i.kv_heads) % (arch.lanes * numerics.PAGE_CLASSES):
            yield "sums of all heads", arch.rows * i.heads * i.head_dim, arch.merge_elements


def _multiples(i: isa.Instruction) -> Iterator[tuple[str, int, int]]:
    """Yield what must be a multiple, and of what; runs of codes begin at one of their length."""
    if isinstance(i, isa.Rotate):
        yield "rotary_dim", i.rotary_dim, BLOCK if i.interleaved else 2 * BLOCK
    if isinstance(i, isa.Linear):
        yield "source", i.source, min(1 << i.group_log2, ALIGNED) // BLOCK
    if isinstance(i, isa.Attend):
        size = min(i.head_dim & -i.head_dim, ALIGNED) // BLOCK
        yield from (("query", i.query, size), ("key", i.key, size), ("value", i.value, size))
