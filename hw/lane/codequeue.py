"""Codes that are cut out and wait to be multiplied."""

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from alula.hw.ram import Ram

DEPTH = 32  # what a memory of LUTs holds at least


class CodeQueue(wiring.Component):
    """What is cut out of a weight stream and how it is to be read, in memories of LUTs.

    With several rows a bundle is multiplied for some clocks; in these the unpacker takes scales and
    positions of the codes after those that wait here.

    Parameters
    ----------
    step
        Layout of how codes are to be read.
    bits
        Of what is cut out.

    Members
    -------
    room : ``Out(1)``
        Something may be written; a register.
    write : ``In(1)``, step_in : ``In(step)``, data_in : ``In(bits)``
        Only while there is ``room``.
    valid : ``Out(1)``, step_out : ``Out(step)``, data_out : ``Out(bits)``
        The first that waits: a clock after it is written at the earliest.
    read : ``In(1)``
        It is taken, if it is there.
    """

    def __init__(self, step, bits, depth=DEPTH):
        self.step, self.bits, self.depth = step, bits, depth
        super().__init__({
            "room": Out(1), "write": In(1), "step_in": In(step), "data_in": In(bits),
            "valid": Out(1), "read": In(1), "step_out": Out(step), "data_out": Out(bits)})

    def elaborate(self, platform):
        m = Module()
        begin, end = Signal(range(self.depth)), Signal(range(self.depth))
        level, taken = Signal(range(self.depth + 1)), Signal()
        m.d.comb += [self.room.eq(~level[-1]), taken.eq(self.read & self.valid)]
        m.d.sync += [level.eq(level + self.write - taken),
                     self.valid.eq(self.write | (level > 1) | (self.valid & ~self.read))]
        for name, shape, passive in (("steps", self.step.size, False), ("data", self.bits, True)):
            m.submodules[name] = held = Ram(shape=shape, depth=self.depth, passive=passive)
            write, read = held.write_port(), held.read_port(domain="comb")
            source, target = ((self.data_in, self.data_out) if passive
                              else (self.step_in.as_value(), self.step_out.as_value()))
            m.d.comb += [write.addr.eq(end), write.data.eq(source), write.en.eq(self.write),
                         read.addr.eq(begin), target.eq(read.data)]
        with m.If(self.write):
            m.d.sync += end.eq(end + 1)
        with m.If(taken):
            m.d.sync += begin.eq(begin + 1)
        return m
