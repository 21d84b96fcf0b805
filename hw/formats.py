"""Amaranth layouts of instructions and of formats in memory, derived from their definitions."""

from amaranth.lib import data

from alula.hw import isa

COMMAND_BITS = 8 * isa.INSTRUCTION_BYTES


def instruction_layout(cls):
    """Return the layout of an instruction: ``opcode, wait, release`` and its own fields."""
    fields, at = {}, 0
    widths = isa.HEADER_BITS | {name: spec["width"] for name, spec in cls.operands().items()}
    for name, width in widths.items():
        fields[name] = data.Field(width, at)
        at += width
    return data.FlexibleLayout(COMMAND_BITS, fields)


def record_layout(dtype):
    """Return the layout of a numpy record of 32-bit fields."""
    return data.FlexibleLayout(8 * dtype.itemsize, {
        name: data.Field(8 * dtype.fields[name][0].itemsize, 8 * dtype.fields[name][1])
        for name in dtype.names})
