"""Which of the step's rows a command is for, and how lanes are told how many there are.

The first half of the rows is given by the build, :func:`alula.hw.isa.half`: a command for the
others begins there, and is only given if there are any.
"""

from amaranth.hdl import Cat, Const, Mux

from alula.hw import isa
from alula.hw.isa import Rows
from alula.hw.queues import HEADER

_TOLD = isa.HEADER_BITS["wait"] + isa.HEADER_BITS["release"]  # of no use once a command is given


def first_row(arch, command):
    """Return the first row that a command is for."""
    return Mux(HEADER(command).rows == Rows.SECOND, isa.half(arch.rows), 0)


def end_row(arch, command, rows):
    """Return the first row behind those that a command is for, of a step of ``rows``."""
    return Mux(HEADER(command).rows == Rows.FIRST, isa.half(arch.rows), rows)


def count(arch, command, rows):
    """Return how many rows a command is for."""
    return (end_row(arch, command, rows) - first_row(arch, command))[:(arch.rows).bit_length()]


def tell(command, rows):
    """Return a command that also says how many rows the step has: a lane's run beside others."""
    at = HEADER["wait"].offset
    return Cat(command[:at], rows, Const(0, _TOLD - len(rows)), command[at + _TOLD:])


def told(arch, command):
    """Return how many rows a command that was given to a lane says that the step has."""
    at = HEADER["wait"].offset
    return command[at:at + arch.rows.bit_length()]
